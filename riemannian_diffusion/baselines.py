"""Published interpolations that are not geodesics of a metric of this library.

Together with `lerp` and `slerp` they are the baselines for a geodesic. Each returns a path between
two points of noise space, `x_t = alpha x_0 + sigma eps`. `sample` turns its points into clean ones.
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
    check_kind,
    check_not_negative,
    check_points,
    check_whole,
)
from riemannian_diffusion.paths import lerp, slerp
from riemannian_diffusion.score import ScoreModel, Where


def chi_log_density(norm: Tensor, dim: int) -> Tensor:
    """Log-density of the norm of standard normal noise (the chi distribution).

    `log p(r) = (d - 1) log r - r^2 / 2 - ((d / 2 - 1) log 2 + log Gamma(d / 2))`

    Args:
        norm: Norms r, positive, of any shape.
        dim: The number d of values of the noise.

    Returns:
        Log-densities of the shape of `norm`.
    """
    constant = (dim / 2 - 1) * math.log(2) + math.lgamma(dim / 2)
    return (dim - 1) * norm.log() - norm.square() / 2 - constant


@torch.no_grad()
def split(score: ScoreModel, x0: Tensor, x1: Tensor, num_points: int, *, pair: int = 0) -> Tensor:
    """Interpolate the clean estimates linearly and the noise estimates spherically.

    It is the mixing rule of FlowMorph (WACV 2026):
    `x(u) = alpha lerp(clean0, clean1) + sigma slerp(eps0, eps1)`. The two estimates of an end are
    `eps = -sigma score(x)` and `alpha clean = x - sigma eps`. Norms of the noise change linearly.
    The score is evaluated at the two ends only. If the data are a single point, the path is slerp
    about that point. With a `SharedNoiseScore` the path is nearly straight, because both ends have
    about the same noise. `partial(split, score)` is a start for `geodesic`.

    Args:
        score: The score at the level of `x0` and `x1`, also of a rectified flow.
        x0: The first noisy point, `shape`.
        x1: The last noisy point, `shape`.
        num_points: Number of points of the path, at least 2.
        pair: Index of this pair of points. The score of `x0` is read at the start of its path, and
            that of `x1` at the end, so that each end has its own prompt.

    Returns:
        The path, `(num_points, *shape)`; its end points equal `x0` and `x1` bit for bit.

    Raises:
        ValueError: If the shapes differ, values are not finite, `num_points` is less than 2, or
            the noise estimates are opposite, because then no arc between them is the shortest.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore, split
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> tuple(split(score, circle[0], circle[9], 5).shape)
        (5, 2)
    """
    check_kind(ScoreModel, score=score)
    straight = lerp(x0, x1, num_points)  # checks the ends
    scores = score(torch.stack([x0, x1]), Where([0.0, 1.0], pair))
    if not scores.isfinite().all():
        raise ValueError("split: `score` must be finite at `x0` and `x1`, but is not.")
    noise0, noise1 = -score.sigma * scores
    try:
        noise = slerp(noise0, noise1, num_points)
    except ValueError as error:
        raise ValueError(
            "split: the noise estimates of `x0` and `x1` are opposite, so no arc between them is "
            "the shortest. Take lerp, or move one of the points."
        ) from error
    # alpha lerp(clean0, clean1) is the straight path without sigma lerp(eps0, eps1)
    path = straight + score.sigma * (noise - lerp(noise0, noise1, num_points))
    return torch.cat([x0[None], path[1:-1], x1[None]])


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
    """Compute the norm-guided interpolation (NAO; Samuel et al., NeurIPS 2023).

    Adam minimises `sum_i -|dx_i| f(|m_i|) + gap_weight relu(|dx_i| - eps)` from the straight line.
    The first term is the length of the path, in which a step `dx` with midpoint `m` has the weight
    `-f(|m|)`. Here `f` is the log-density of the norm of noise (`chi_log_density`). The second term
    keeps steps shorter than `eps = 2 |x1 - x0| / (num_points - 1)`. The method uses norms alone and
    no model. It assumes noise of variance 1.

    Args:
        x0: The first noise, `shape`.
        x1: The last noise, `shape`.
        num_points: Number of points of the path, at least 2.
        gap_weight: Weight of steps longer than `eps`, non-negative; no published value is known.
        lr: Adam's learning rate.
        tol: The descent ends when the objective has changed by less than this ten times in a row.
        max_steps: Largest number of steps.

    Returns:
        The path, `(num_points, *shape)`; its end points equal `x0` and `x1` bit for bit.

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
    previous, num_small = math.inf, 0
    for _ in range(max_steps if len(inner) else 0):
        with torch.enable_grad():
            whole = torch.cat([ends[0], inner, ends[1]])
            steps = (whole[1:] - whole[:-1]).norm(dim=1)
            norms = ((whole[1:] + whole[:-1]) / 2).norm(dim=1)
            # float64 on the CPU, because the terms of f are as large as the dimension
            weights = -chi_log_density(norms.cpu().double(), x0.numel()).to(steps)
            loss = (steps * weights + gap_weight * F.relu(steps - longest)).sum()
            (inner.grad,) = torch.autograd.grad(loss, inner)
        optimizer.step()
        num_small = num_small + 1 if abs(previous - float(loss.detach())) < tol else 0
        previous = float(loss.detach())
        if num_small == 10:
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
    """Compute the interpolation of NoiseDiffusion (Zheng et al., ICLR 2024).

    It is a spherical blend of the noisy points and of the clean points:
    `a l0 + b l1 + (mu - a) alpha clean0 + (nu - b) alpha clean1 + g sigma eps`, where `l0` and `l1`
    are the clipped noisy points, `a = sqrt(1 - g^2) cos(u pi / 2)`,
    `b = sqrt(1 - g^2) sin(u pi / 2)`, `mu = boost a / (a + b)` and `nu = boost b / (a + b)`. The
    path does not meet `x0` and `x1`, because its ends are clipped and their clean part is boosted.

    Args:
        x0: The first noisy point, `shape`, inverted from `clean0`.
        x1: The last noisy point, `shape`, inverted from `clean1`.
        num_points: Number of points of the path, at least 2.
        clean0: The first clean point, `shape`.
        clean1: The last clean point, `shape`.
        alpha: Factor of the clean data at the level of `x0` and `x1`, in (0, 1];
            `sigma = sqrt(1 - alpha^2)`.
        clip: Largest absolute value of the entries of `l0` and `l1`, positive.
        boost: Sum of the weights of the clean points over `alpha`.
        noise_weight: Weight `g` of a fresh noise `eps`, in [0, 1). All points share the noise.
        generator: Source of that noise.

    Returns:
        The path, `(num_points, *shape)`.

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
        raise ValueError(
            f"`x0`, `x1`, `clean0` and `clean1` must have one shape, but got {sorted(shapes)}."
        )
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
    levels: Callable[[float], ScoreModel],
    timestep: float,
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
    """Compute a probability-density geodesic (Yu et al., CVPR 2025, arXiv 2504.06675).

    The descent starts from slerp and seeks a stationary path of the length
    `int p^-exponent |dx|` on a sphere, whose radius is the mean norm of the end points. A point
    with velocity v and acceleration a moves by `d + a / (|v|^2 exponent)`. Both terms are projected
    orthogonally to the point and to v. The direction d of rising density is `sigma score / 2` at a
    random noise level near `timestep`, to which the points are moved with fresh noise. Stages have
    1, 3, 7, 15, ... points between the end points. A stage ends early when the term of the
    acceleration is larger than the term of the density, as in the authors' code.

    Two things differ from the authors' code. It uses splines on the sphere, and this function uses
    natural cubic splines and projects them onto the sphere. It scales the end points to the sphere,
    and this function leaves them as they are. The authors fit prompts to the images by textual
    inversion. This function leaves that to the caller.

    Args:
        levels: A function that takes a timestep and returns the score model at that level. The
            authors use the difference of a prompt and a negative prompt.
        timestep: Timestep of the noise level of `x0` and `x1`.
        x0: The first point, `shape`.
        x1: The last point, `shape`.
        num_points: Number of points of the path, at least 2.
        exponent: Exponent of the density, positive. Small values favour straight paths on the
            sphere.
        spread: Largest difference between `timestep` and the random timestep, at least 0.
        num_stages: Number of stages, at least 1.
        steps_per_stage: Largest number of steps of each stage, at least 1.
        lr: First length of a step. It falls to 0 linearly, and the points of a stage share it.
        generator: Source of the random levels and noises.
        pair: Index of this pair of points, for scores that differ between pairs.

    Returns:
        The path, `(num_points, *shape)`; its end points equal `x0` and `x1` bit for bit.

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
    """Evaluate the natural cubic spline through evenly spaced knots on [0, 1].

    The spline is linear in the values at the knots, so the result is given as matrices.

    Args:
        num_knots: Number of knots K, at least 2.
        u: Places `(U,)` in [0, 1], float64.

    Returns:
        Three matrices `(U, K)`. Times the values at the knots, they give the spline at `u`, its
        first and its second derivative.
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


def _uphill(levels, timestep: float, path: Tensor, where: Where, spread: int, generator) -> Tensor:
    """`sigma score / 2` at a random level, with the points moved there under fresh noise."""
    device = "cpu" if generator is None else generator.device
    offset = torch.randint(-spread, spread + 1, (), generator=generator, device=device)
    level, target = levels(timestep), levels(timestep + int(offset))
    scale = target.alpha / level.alpha
    moved = scale * path + (target.sigma - scale * level.sigma) * _noise(path, generator)
    return target.sigma * target(moved, where) / 2


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=device).to(like)


def _on_sphere(points: Tensor, radius: Tensor) -> Tensor:
    """Points `(K, d)`, each scaled to the radius."""
    return points * (radius / points.norm(dim=1, keepdim=True))


def _across(v: Tensor, direction: Tensor) -> Tensor:
    """The parts of vectors `(K, d)` that are orthogonal to the directions `(K, d)`."""
    along = (v * direction).sum(1, keepdim=True) / direction.square().sum(1, keepdim=True)
    return v - along * direction
