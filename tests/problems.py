"""Manifolds whose geodesics are known in closed form, with the exact score of points spread over them.

The points stand closer than sigma, and blurring by sigma leaves a share `exp(-2 (pi sigma / gap)^2)`
of their pattern, less than 1e-8: the score is that of the manifold.
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
    """Two points on a manifold in R^n, the distance to it, and the length of the geodesic between
    the points."""

    name: str
    score: GaussianMixtureScore
    x0: Tensor
    x1: Tensor
    length: float
    distance: Callable[[Tensor], Tensor]  # (K, n) -> (K,)


def _embedding(k: int, n: int) -> Tensor:  # an isometry R^k -> R^n
    generator = torch.Generator().manual_seed(100 * k + n)
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0][:, :k]


def _problem(name, points, ends, n, length, distance, sigma) -> Problem:
    isometry = _embedding(points.shape[1], n)

    def distance_in_rn(x: Tensor) -> Tensor:
        inside = x.double() @ isometry
        outside = (x.double() - inside @ isometry.T).norm(dim=1)
        return torch.hypot(distance(inside), outside)

    x0, x1 = ends @ isometry.T
    return Problem(
        name, GaussianMixtureScore(points @ isometry.T, sigma), x0, x1, length, distance_in_rn
    )


def circle(n: int, *, angle: float = 2.2, num: int = 400, sigma: float = 0.1) -> Problem:
    """The unit circle in R^n."""
    t = torch.arange(num, dtype=torch.float64) * (2 * math.pi / num)
    ends = torch.tensor([0.3, 0.3 + angle], dtype=torch.float64)
    points, ends = (torch.stack([a.cos(), a.sin()], 1) for a in (t, ends))
    return _problem(
        f"circle in R^{n}", points, ends, n, angle, lambda p: (p.norm(dim=1) - 1).abs(), sigma
    )


def sphere(n: int, *, angle: float = 2.2, num: int = 2400, sigma: float = 0.1) -> Problem:
    """The unit 2-sphere in R^n, covered by a Fibonacci spiral."""
    i = torch.arange(num, dtype=torch.float64) + 0.5
    z, longitude = 1 - 2 * i / num, math.pi * (1 + 5**0.5) * i
    points = torch.stack(
        [(1 - z * z).sqrt() * longitude.cos(), (1 - z * z).sqrt() * longitude.sin(), z], 1
    )
    turn = torch.tensor([0.4, 0.4 + angle], dtype=torch.float64)
    ends = torch.stack([turn.cos(), 0.6 * turn.sin(), 0.8 * turn.sin()], 1)
    return _problem(
        f"2-sphere in R^{n}", points, ends, n, angle, lambda p: (p.norm(dim=1) - 1).abs(), sigma
    )


def torus(
    n: int, *, angles: tuple[float, float] = (1.7, 1.3), num: int = 64, sigma: float = 0.1
) -> Problem:
    """The flat torus, two unit circles' product, in R^n: geodesics are straight in the angles."""
    t = torch.arange(num, dtype=torch.float64) * (2 * math.pi / num)
    grid = torch.cartesian_prod(t, t)
    ends = torch.tensor([[0.2, 0.5], [0.2 + angles[0], 0.5 + angles[1]]], dtype=torch.float64)
    points, ends = (torch.cat([a.cos(), a.sin()], 1)[:, [0, 2, 1, 3]] for a in (grid, ends))

    def distance(p: Tensor) -> Tensor:
        return torch.hypot(p[:, :2].norm(dim=1) - 1, p[:, 2:].norm(dim=1) - 1)

    return _problem(f"flat torus in R^{n}", points, ends, n, math.hypot(*angles), distance, sigma)


def all_problems() -> list[Problem]:
    """The suite."""
    return [circle(2), circle(8), circle(32), sphere(10), torus(6)]
