"""Continue a path along the data manifold, or apply its change to another point."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from riemannian_diffusion.arguments import (
    check_callable,
    check_finite,
    check_kind,
    check_points,
    is_finite,
    kind_of,
)
from riemannian_diffusion.geometry.tangents import own
from riemannian_diffusion.paths import segment_lengths
from riemannian_diffusion.score.model import ScoreModel
from riemannian_diffusion.tangent import split_tangent

NUM_TRIES = 3  # largest number of corrections of the length of a step


@torch.no_grad()
def extrapolate(
    path: Tensor,
    distance: float,
    *,
    project: Callable[[Tensor], Tensor],
    max_residual: float = 3.0,
) -> Tensor:
    """Continue a path beyond its end along a geodesic of the data manifold.

    Each step continues in the direction of the previous step, and the denoiser projects its end
    onto the manifold: `x_{k+1} = D(x_k + c (x_k - x_{k-1}))`. The factor `c` makes all steps
    equally long. This is the integrator SHAKE (Ryckaert, Ciccotti, Berendsen 1977), with the
    denoiser as its constraint. Its steps follow the geodesic of the manifold to second order. The
    geodesic equation of `TangentNormalMetric` is unstable instead. Around a circle of radius R, the
    distance r of its solution from the centre obeys `r'' = (r - R) t'^2` in the angle t, so the
    solution leaves the data exponentially fast.

    Args:
        path: At least 2 points, `(K, *shape)`. The last two give the direction.
        distance: Flat length of the continuation, positive. Its steps are about as long as the mean
            step of the path.
        project: A function that maps points near the manifold, `(1, *shape)`, to the nearest points
            on it, such as `score.denoise`.
        max_residual: Limit at which the continuation ends because it leaves the data. It ends
            before a point that `project` moves by more than a tenth of a step and by more than
            `max_residual` times its largest move of a point of the path. It also ends if `project`
            shortens a step to less than half. `math.inf` switches both tests off.

    Returns:
        The path and its continuation, `(K + M, *shape)`. If the continuation leaves the data, M is
        smaller than `distance` requires, and can be 0.

    Raises:
        ValueError: If `path` has fewer than 2 points or no length, `distance` or `max_residual` is
            not positive, or `project` does not return finite points.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore
        >>> from riemannian_diffusion import TangentNormalMetric
        >>> from riemannian_diffusion import extrapolate
        >>> from riemannian_diffusion import geodesic
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> metric = TangentNormalMetric(score)
        >>> path = geodesic(metric, circle[0], circle[9], num_points=9).path
        >>> longer = extrapolate(path, 0.5, project=score.denoise)
        >>> bool((longer[-1].norm() - 1).abs() < 0.1)
        True
    """
    check_points(path=path)
    if path.ndim < 2 or len(path) < 2:
        raise ValueError(
            "`path` must be finite points `(K, *shape)`, at least 2, but it is "
            f"{tuple(path.shape)}."
        )
    if not (is_finite(distance) and distance > 0):
        raise ValueError(f"`distance` must be positive and finite, but got {distance}.")
    if max_residual != math.inf:
        check_finite(max_residual=max_residual)
    if not max_residual > 0:
        raise ValueError(f"`max_residual` must be positive, but got {max_residual}.")
    project = _checked(project)
    mean_step = float(segment_lengths(path).mean())
    if not 0 < mean_step < math.inf:
        raise ValueError(f"`path` must have a length, but its mean step is {mean_step} long.")
    if torch.equal(path[-1], path[-2]):
        raise ValueError(
            "The last two points of `path` are equal and give no direction: remove one of them."
        )
    num_steps = max(1, round(distance / mean_step))
    size = distance / num_steps
    points, limit = list(path.unbind()), math.inf
    if max_residual < math.inf:
        moved = max(float((project(point[None])[0] - point).norm()) for point in path)
        limit = max(max_residual * moved, 0.1 * size)
    for _ in range(num_steps):
        point = _step(project, points[-1], points[-1] - points[-2], size)
        if limit < math.inf:
            too_short = float((point - points[-1]).norm()) < size / 2
            if too_short or float((project(point[None])[0] - point).norm()) > limit:
                break
        points.append(point)
    return torch.stack(points)


def _checked(project: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`project` with a check that it returns finite points of the shape of its argument."""
    check_callable(project=project)

    def projected(x: Tensor) -> Tensor:
        found = project(x)
        if not isinstance(found, Tensor) or found.shape != x.shape or not found.isfinite().all():
            raise ValueError(
                f"`project` must return finite points {tuple(x.shape)} like its argument, but "
                f"returned {tuple(found.shape) if isinstance(found, Tensor) else kind_of(found)}."
            )
        return found

    return projected


def _step(project, start: Tensor, direction: Tensor, size: float) -> Tensor:
    """The projected point in a direction from a start, at a distance of about `size`."""
    factor = size / float(direction.norm())
    for _ in range(NUM_TRIES):
        end = project((start + factor * direction)[None])[0]
        reached = float((end - start).norm())
        if abs(reached - size) <= 0.01 * size:
            break
        factor *= min(2.0, max(0.5, size / max(reached, 1e-30)))
    return end


@torch.no_grad()
def analogy(
    score: ScoreModel,
    path: Tensor,
    start: Tensor,
    *,
    bridge: Tensor | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Apply the change from A to B to another point C: "A is to B as C is to D".

    Every step of the path from A to B is transported back along the path to A, along the bridge
    from A to C, and along the new path to its current end. There it is appended to the new path,
    and the denoiser projects its end onto the data, as in `extrapolate`. Every step keeps its
    length. Steps are transported as in `parallel_transport`, but the Jacobian of the denoiser
    projects onto the tangent spaces. On a sphere, the new path is the rotated old path, to second
    order in the step.

    Args:
        score: The score, whose denoiser defines the manifold.
        path: The path from A to B, at least 2 points, `(K, *shape)`.
        start: The point C, `shape`.
        bridge: A path from A to C, at least 2 points, `(M, *shape)`. None takes the two points
            alone.
        project: As in `extrapolate`; None takes `score.denoise`.

    Returns:
        The path from C to D, `(K, *shape)`.

    Raises:
        ValueError: If a path has fewer than 2 points, the bridge does not lead from A to C, the
            shapes differ, or `project` does not return finite points.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore, analogy, slerp
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> change = slerp(circle[0], circle[5], 5)  # A to B
        >>> tuple(analogy(score, change, circle[20]).shape)  # C to D
        (5, 2)
    """
    check_kind(ScoreModel, score=score)
    check_points(start=start)
    for name, points in (("path", path), ("bridge", path if bridge is None else bridge)):
        check_points(**{name: points})
        if points.ndim < 2 or len(points) < 2:
            raise ValueError(
                f"`{name}` must be finite points (K, *shape), at least 2, but it is "
                f"{tuple(points.shape)}."
            )
    if start.shape != path.shape[1:]:
        raise ValueError(
            f"`start` must be a finite point {tuple(path.shape[1:])}, but it is "
            f"{tuple(start.shape)}."
        )
    if bridge is None:
        bridge = torch.stack([path[0], start])
    elif not (torch.equal(bridge[0], path[0]) and torch.equal(bridge[-1], start)):
        raise ValueError("`bridge` must lead from the first point of `path` to `start`.")
    project = _checked(score.denoise if project is None else project)
    path, bridge, start = own(path, bridge, start)
    steps = path.diff(dim=0)
    for k in range(len(steps) - 1, 0, -1):  # back to A; one more step each time
        steps[k:] = _transported(score, path[k], path[k - 1], steps[k:])
    for before, after in zip(bridge[:-1], bridge[1:], strict=True):
        steps = _transported(score, before, after, steps)
    found = [start]
    for k in range(len(steps)):
        size = float(steps[k].norm())
        moved = _step(project, found[-1], steps[k], size) if size else found[-1]
        found.append(moved)
        steps[k + 1 :] = _transported(score, found[-2], found[-1], steps[k + 1 :])
    return torch.stack(found)


def _transported(score: ScoreModel, x0: Tensor, x1: Tensor, vectors: Tensor) -> Tensor:
    """Tangents `(N, *shape)` at `x0`, transported to `x1` without a change of their lengths."""
    if len(vectors) == 0:
        return vectors

    def projected(x: Tensor, v: Tensor) -> Tensor:
        return split_tangent(score, x.expand_as(v), v)[0]

    back = projected(x0, projected(x1, vectors))
    moved = projected(x1, 1.5 * vectors - 0.5 * back)
    wide = [-1] + [1] * x0.ndim
    before, after = (v.flatten(1).norm(dim=1).view(wide) for v in (vectors, moved))
    return moved * (before / after.clamp(min=1e-30))
