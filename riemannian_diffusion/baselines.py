"""The published interpolations that are no geodesics of a metric of this library.

With `lerp` and `slerp` they are what a geodesic has to beat. Each draws a path between two points
of noise space, `x_t = alpha x_0 + sigma eps`, which `sample` carries back to clean points.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from riemannian_diffusion.arguments import (
    check_callable,
    check_finite,
    check_not_negative,
    check_points,
    check_whole,
)
from riemannian_diffusion.paths import lerp, slerp
from riemannian_diffusion.score import ScoreModel, Where


def chi_log_density(norm: Tensor, dim: int) -> Tensor:
    """Log-density of the norm of standard normal noise, at norms of any shape.

    `(d - 1) log r - r^2 / 2 - ((d / 2 - 1) log 2 + log Gamma(d / 2))`
    """
    constant = (dim / 2 - 1) * math.log(2) + math.lgamma(dim / 2)
    return (dim - 1) * norm.log() - norm.square() / 2 - constant


@torch.inference_mode(False)
def nao(
    x0: Tensor,
    x1: Tensor,
    num_points: int,
    *,
    gap_weight: float = 1.0,
    lr: float = 0.01,
    tol: float = 1e-3,
    max_steps: int = 1000,
) -> Tensor:
    """Norm-guided interpolation (Samuel et al., NeurIPS 2023), from the straight line.

    Minimises `sum_i -|dx_i| f(|m_i|) + gap_weight relu(|dx_i| - eps)` by Adam: the length of the
    path where a step `dx` at midpoint `m` weighs minus the log-density `f` of a noise's norm
    (`chi_log_density`), and `eps = 2 |x1 - x0| / (num_points - 1)` bounds the steps. It knows norms
    alone and asks no model; its points are to be noise of variance 1.

    Args:
        x0: `shape`, a noise.
        x1: Another.
        num_points: Points of the path, at least 2.
        gap_weight: Weight of steps longer than `eps`, non-negative; no published value is known.
        lr: Adam's learning rate.
        tol: Ends when the objective has changed by less than this ten times in a row.
        max_steps: Ends after so many steps in any case.

    Returns:
        `(num_points, *shape)`, ends bit for bit.

    Raises:
        ValueError: If the shapes differ or an argument is out of range.
    """
    check_not_negative(gap_weight=gap_weight, lr=lr, tol=tol)
    check_whole(1, max_steps=max_steps)
    path = lerp(x0, x1, num_points).detach().clone()
    longest = 2 * float((x1 - x0).norm()) / (num_points - 1)
    inner = path[1:-1].flatten(1).clone().requires_grad_()
    ends = path[:1].flatten(1), path[-1:].flatten(1)
    optimizer = torch.optim.Adam([inner], lr=lr)
    previous, calm = math.inf, 0
    for _ in range(max_steps if len(inner) else 0):
        with torch.enable_grad():
            whole = torch.cat([ends[0], inner, ends[1]])
            steps = (whole[1:] - whole[:-1]).norm(dim=1)
            norms = ((whole[1:] + whole[:-1]) / 2).norm(dim=1)
            # float64 on the CPU: the terms of f are of the size of the dimension
            weights = -chi_log_density(norms.cpu().double(), x0.numel()).to(steps)
            loss = (steps * weights + gap_weight * F.relu(steps - longest)).sum()
            (inner.grad,) = torch.autograd.grad(loss, inner)
        optimizer.step()
        calm = calm + 1 if abs(previous - float(loss.detach())) < tol else 0
        previous = float(loss.detach())
        if calm == 10:
            break
    return torch.cat([x0[None], inner.detach().view_as(path[1:-1]), x1[None]])


def noise_diffusion(
    x0: Tensor,
    x1: Tensor,
    num_points: int,
    *,
    clean0: Tensor,
    clean1: Tensor,
    alpha: float,
    clip: float = 2.0,
    boost: float = 1.2,
    noise_weight: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """NoiseDiffusion (Zheng et al., ICLR 2024): a spherical blend with the clean points mixed in.

    `a l0 + b l1 + (mu - a) alpha clean0 + (nu - b) alpha clean1 + g sigma eps` with `l` the
    points clipped, `a = sqrt(1 - g^2) cos(u pi / 2)`, `b = sqrt(1 - g^2) sin(u pi / 2)`,
    `mu = boost a / (a + b)` and `nu = boost b / (a + b)`. It misses both ends: they are clipped,
    and their clean part is boosted.

    Args:
        x0: `shape` at the level of `alpha`, inverted from `clean0`.
        x1: The same for `clean1`.
        num_points: Points of the path, at least 2.
        clean0: The clean point `shape`.
        clean1: The same.
        alpha: Factor of the clean data at the level, in (0, 1]; `sigma = sqrt(1 - alpha^2)`.
        clip: Entries of both points are clipped to this, positive.
        boost: Sum of the clean points' weights over `alpha`.
        noise_weight: `g` in [0, 1), of one fresh noise shared by all points.
        generator: Source of that noise.

    Returns:
        `(num_points, *shape)`.

    Raises:
        ValueError: If the shapes differ or an argument is out of range.
    """
    check_points(x0=x0, x1=x1, clean0=clean0, clean1=clean1)
    check_finite(alpha=alpha, clip=clip, boost=boost, noise_weight=noise_weight)
    if not (0 < alpha <= 1 and clip > 0 and 0 <= noise_weight < 1):
        raise ValueError(
            "`alpha` must be in (0, 1], `clip` positive and `noise_weight` in [0, 1), but got "
            f"{alpha}, {clip} and {noise_weight}."
        )
    shapes = {tuple(point.shape) for point in (x0, x1, clean0, clean1)}
    if len(shapes) > 1:
        raise ValueError(f"All points must have one shape, but got {sorted(shapes)}.")
    u = lerp(x0.new_zeros(()), x0.new_ones(()), num_points).view(-1, *[1] * x0.ndim)
    kept = (1 - noise_weight**2) ** 0.5
    a, b = kept * torch.cos(u * torch.pi / 2), kept * torch.sin(u * torch.pi / 2)
    mu, nu = boost * a / (a + b), boost * b / (a + b)
    path = a * x0.clamp(-clip, clip) + b * x1.clamp(-clip, clip)
    path = path + alpha * ((mu - a) * clean0 + (nu - b) * clean1)
    if noise_weight:
        path = path + noise_weight * (1 - alpha**2) ** 0.5 * _noise(x0, generator)
    return path


@torch.no_grad()
def density_geodesic(
    levels: Callable[[int], ScoreModel],
    timestep: int,
    x0: Tensor,
    x1: Tensor,
    num_points: int,
    *,
    exponent: float = 0.002,
    spread: int = 100,
    num_stages: int = 4,
    steps_per_stage: int = 100,
    lr: float = 0.1,
    generator: torch.Generator | None = None,
    pair: int = 0,
) -> Tensor:
    """A probability-density geodesic (Yu et al., CVPR 2025, arXiv 2504.06675), from slerp.

    Descends to a stationary path of the length `int p^-exponent |dx|` on the sphere of the ends'
    mean norm: a point of velocity v and acceleration a moves by `d + a / (|v|^2 exponent)`, both
    without their parts along the point and along v. The density's direction d is `sigma score / 2`
    at a random level near `timestep`, the points carried there under fresh noise. Stages have 1, 3,
    7, 15... points between the ends; one ends early where the term of the acceleration
    outweighs that of the density, as in the authors' code.

    Two things differ from that code: its splines run on the sphere, where these are natural cubic
    ones brought back to it, and the ends stay as given where it scales them to the sphere. Prompts
    fitted to the images by textual inversion are the caller's.

    Args:
        levels: Timestep -> score model; published: the difference of a prompt and a negative one.
        timestep: The level of `x0` and `x1`.
        x0: `shape`.
        x1: Another.
        num_points: Points of the path, at least 2.
        exponent: Positive; small values weigh the path's straightness on the sphere.
        spread: The random level is at most so many timesteps away; 0 for none.
        num_stages: At least 1.
        steps_per_stage: At least 1.
        lr: Length of the steps; it falls to 0 linearly and is shared among a stage's points.
        generator: Source of levels and noises.
        pair: The index of this pair of points, for scores that differ between pairs; the points of
            the path lie at even fractions of it.

    Returns:
        `(num_points, *shape)`, ends bit for bit.

    Raises:
        ValueError: If the shapes differ or an argument is out of range.
    """
    check_callable(levels=levels)
    check_whole(1, num_stages=num_stages, steps_per_stage=steps_per_stage)
    check_finite(exponent=exponent, spread=spread, lr=lr)
    if not exponent > 0 or spread < 0:
        raise ValueError(
            f"`exponent` must be positive and `spread` not negative, but got {exponent} and "
            f"{spread}."
        )
    radius = (x0.norm() + x1.norm()) / 2
    path = _on_sphere(slerp(x0, x1, 3).flatten(1), radius)
    total, step = num_stages * steps_per_stage, 0
    for stage in range(1, num_stages + 1):
        u = torch.linspace(0, 1, 2**stage + 1, dtype=torch.float64)
        value, _, _ = natural_spline(len(path), u)
        path = _on_sphere(value.to(path) @ path, radius)
        _, first, second = (matrix[1:-1].to(path) for matrix in natural_spline(len(path), u))
        while step < stage * steps_per_stage:
            points, velocity = path[1:-1], first @ path
            whole, where = path.view(-1, *x0.shape), Where.even(len(path), pair)
            density = _uphill(levels, timestep, whole, where, spread, generator)
            bend = second @ path / velocity.square().sum(1, keepdim=True) / exponent
            terms = (density.flatten(1)[1:-1], bend)
            density, bend = (_across(_across(term, points), velocity) for term in terms)
            rate = lr * (1 - step / total) / len(points)
            step += 1
            if density.norm() < bend.norm():
                break
            moved = _on_sphere(points + rate * (density + bend), radius)
            path = torch.cat([path[:1], moved, path[-1:]])
    u = torch.linspace(0, 1, num_points, dtype=torch.float64)
    value, _, _ = natural_spline(len(path), u)
    drawn = _on_sphere(value[1:-1].to(path) @ path, radius)
    return torch.cat([x0[None], drawn.view(-1, *x0.shape), x1[None]])


def natural_spline(num_knots: int, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The natural cubic spline through even knots on [0, 1], as matrices on the knots' values.

    Args:
        num_knots: K, at least 2.
        u: `(U,)` in [0, 1], float64.

    Returns:
        Matrices `(U, K)` that give its values and its first and second derivatives at `u`.
    """
    h, eye = 1 / (num_knots - 1), torch.eye(num_knots, dtype=torch.float64)
    system, jumps = eye.clone(), torch.zeros_like(eye)
    system[1:-1] = h / 6 * (eye[:-2] + 4 * eye[1:-1] + eye[2:])
    jumps[1:-1] = (eye[:-2] - 2 * eye[1:-1] + eye[2:]) / h
    bends = torch.linalg.solve(system, jumps)  # second derivatives at the knots
    index = (u / h).long().clamp(max=num_knots - 2)
    right = (u / h - index)[:, None]
    left = 1 - right
    y0, y1, bend0, bend1 = eye[index], eye[index + 1], bends[index], bends[index + 1]
    value = left * y0 + right * y1
    value = value + h**2 / 6 * ((left**3 - left) * bend0 + (right**3 - right) * bend1)
    first = (y1 - y0) / h + h / 6 * ((1 - 3 * left**2) * bend0 + (3 * right**2 - 1) * bend1)
    return value, first, left * bend0 + right * bend1


def _uphill(levels, timestep: int, path: Tensor, where: Where, spread: int, generator) -> Tensor:
    """`sigma score / 2` at a random level, the points carried there under fresh noise."""
    device = "cpu" if generator is None else generator.device
    offset = torch.randint(-spread, spread + 1, (), generator=generator, device=device)
    here, there = levels(timestep), levels(timestep + int(offset))
    scale = there.alpha / here.alpha
    moved = scale * path + (there.sigma - scale * here.sigma) * _noise(path, generator)
    return there.sigma * there(moved, where) / 2


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=device).to(like)


def _on_sphere(points: Tensor, radius: Tensor) -> Tensor:  # (K, d), each scaled to the radius
    return points * (radius / points.norm(dim=1, keepdim=True))


def _across(v: Tensor, direction: Tensor) -> Tensor:  # (K, d) without their parts along directions
    along = (v * direction).sum(1, keepdim=True) / direction.square().sum(1, keepdim=True)
    return v - along * direction
