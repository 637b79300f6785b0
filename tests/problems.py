"""Manifolds whose geodesics are known, with the exact score of points spread densely over them.

Blurring by sigma leaves a share `exp(-2 (pi sigma / gap)^2)` of the pattern of points that stand
`gap` apart: less than 1e-8 of it here, so the score is that of the manifold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from riemannian_diffusion import GaussianMixtureScore


@dataclass(frozen=True)
class Problem:
    """Two points on a manifold in R^n, the distance to it, and the geodesic between the points."""

    name: str
    score: GaussianMixtureScore
    x0: Tensor
    x1: Tensor
    length: float
    distance: Callable[[Tensor], Tensor]  # (K, n) -> (K,)
    geodesic: Callable[[Tensor], Tensor]  # fractions (K,) of its length -> points (K, n)


def _embedding(k: int, n: int) -> Tensor:  # an isometry R^k -> R^n
    generator = torch.Generator().manual_seed(100 * k + n)
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0][:, :k]


def _problem(name, points, geodesic, n, length, distance, sigma) -> Problem:
    isometry = _embedding(points.shape[1], n)

    def distance_in_rn(x: Tensor) -> Tensor:
        inside = x.double() @ isometry
        outside = (x.double() - inside @ isometry.T).norm(dim=1)
        return torch.hypot(distance(inside), outside)

    def geodesic_in_rn(u: Tensor) -> Tensor:
        return geodesic(u.double()[:, None]) @ isometry.T

    x0, x1 = geodesic_in_rn(torch.tensor([0.0, 1.0]))
    score = GaussianMixtureScore(points @ isometry.T, sigma)
    return Problem(name, score, x0, x1, length, distance_in_rn, geodesic_in_rn)


def circle(n: int, *, angle: float = 2.2, num: int = 400, sigma: float = 0.1) -> Problem:
    """The unit circle in R^n."""

    def at(t: Tensor) -> Tensor:  # (K, 1) -> (K, 2)
        return torch.cat([t.cos(), t.sin()], 1)

    points = at(torch.arange(num, dtype=torch.float64)[:, None] * (2 * math.pi / num))
    return _problem(
        f"circle in R^{n}",
        points,
        lambda u: at(0.3 + angle * u),
        n,
        angle,
        lambda p: (p.norm(dim=1) - 1).abs(),
        sigma,
    )


def sphere(n: int, *, angle: float = 2.2, num: int = 2400, sigma: float = 0.1) -> Problem:
    """The unit 2-sphere in R^n, covered by a Fibonacci spiral."""
    i = torch.arange(num, dtype=torch.float64) + 0.5
    z, longitude = 1 - 2 * i / num, math.pi * (1 + 5**0.5) * i
    radius = (1 - z * z).sqrt()
    points = torch.stack([radius * longitude.cos(), radius * longitude.sin(), z], 1)

    def great_circle(u: Tensor) -> Tensor:
        t = 0.4 + angle * u
        return torch.cat([t.cos(), 0.6 * t.sin(), 0.8 * t.sin()], 1)

    return _problem(
        f"2-sphere in R^{n}",
        points,
        great_circle,
        n,
        angle,
        lambda p: (p.norm(dim=1) - 1).abs(),
        sigma,
    )


def torus(
    n: int, *, angles: tuple[float, float] = (1.7, 1.3), num: int = 64, sigma: float = 0.1
) -> Problem:
    """The flat torus, two unit circles' product, in R^n: geodesics are straight in the angles."""

    def at(a: Tensor) -> Tensor:  # (K, 2) -> (K, 4)
        return torch.stack([a.cos(), a.sin()], 2).flatten(1)

    t = torch.arange(num, dtype=torch.float64) * (2 * math.pi / num)
    start, turn = torch.tensor([[0.2, 0.5], angles], dtype=torch.float64)

    def distance(p: Tensor) -> Tensor:
        return torch.hypot(p[:, :2].norm(dim=1) - 1, p[:, 2:].norm(dim=1) - 1)

    return _problem(
        f"flat torus in R^{n}",
        at(torch.cartesian_prod(t, t)),
        lambda u: at(start + turn * u),
        n,
        math.hypot(*angles),
        distance,
        sigma,
    )


def all_problems() -> list[Problem]:
    """The suite."""
    return [circle(2), circle(8), circle(32), sphere(10), torus(6)]
