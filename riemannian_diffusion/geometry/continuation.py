"""Paths continued, and changes carried over, along the data manifold itself."""

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

NUM_TRIES = 3  # per step, to meet its length


@torch.no_grad()
def extrapolate(
    path: Tensor,
    distance: float,
    *,
    project: Callable[[Tensor], Tensor],
    max_residual: float = 3.0,
) -> Tensor:
    """Continue a path along the geodesic of the data manifold that it ends on.

    Each step goes on in the direction of the one before and is brought back to the manifold by the
    denoiser, `x_{k+1} = D(x_k + c (x_k - x_{k-1}))`: the integrator SHAKE (Ryckaert, Ciccotti,
    Berendsen 1977), whose steps are the manifold's own geodesic to second order, with the denoiser
    for its constraint. `c` is chosen so that steps are equally long. The geodesic equation of
    `TangentNormalMetric` itself is no way to go on: around a circle of radius R its distance r from
    the centre obeys `r'' = (r - R) t'^2` in the angle t, so that it leaves the data exponentially
    fast.

    Args:
        path: `(K, *shape)`, at least 2 points; the last two give the direction.
        distance: How far to go, positive, in flat length, which is the manifold's own. The steps
            are about as long as the path's are on average.
        project: Points near the manifold `(1, *shape)` -> the nearest points on it, such as
            `score.denoise`.
        max_residual: It ends where it leaves the data: before a point that `project` would move by
            more than this multiple of the most it moves a point of the path and by more than a
            tenth of a step, or that is less than half a step away because `project` holds it back.
            `math.inf` goes on to the end.

    Returns:
        The path and its continuation, `(K + M, *shape)`; where the data ended, M is smaller than
        the distance asks for, or 0.

    Raises:
        ValueError: If the path is no path, the distance is not positive, or `project` returns
            anything but finite points.
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
    usual = float(segment_lengths(path).mean())
    if not 0 < usual < math.inf:
        raise ValueError(f"`path` must have a length, but its mean step is {usual} long.")
    if torch.equal(path[-1], path[-2]):
        raise ValueError("The last two points of `path` are the same: they give no direction.")
    num_steps = max(1, round(distance / usual))
    size = distance / num_steps
    points, limit = list(path.unbind()), math.inf
    if max_residual < math.inf:
        moved = max(float((project(point[None])[0] - point).norm()) for point in path)
        limit = max(max_residual * moved, 0.1 * size)
    for _ in range(num_steps):
        there = _step(project, points[-1], points[-1] - points[-2], size)
        if limit < math.inf:
            held = float((there - points[-1]).norm()) < size / 2
            if held or float((project(there[None])[0] - there).norm()) > limit:
                break
        points.append(there)
    return torch.stack(points)


def _checked(project: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`project` with a check that it returns finite points of the shape of its argument."""
    check_callable(project=project)

    def projected(x: Tensor) -> Tensor:
        found = project(x)
        if not isinstance(found, Tensor) or found.shape != x.shape or not found.isfinite().all():
            raise ValueError(
                f"`project` must return finite points {tuple(x.shape)}, as it is given, but gave "
                f"{tuple(found.shape) if isinstance(found, Tensor) else kind_of(found)}."
            )
        return found

    return projected


def _step(project, here: Tensor, direction: Tensor, size: float) -> Tensor:
    """The next point in a direction, at a distance of `size`."""
    factor = size / float(direction.norm())
    for _ in range(NUM_TRIES):
        there = project((here + factor * direction)[None])[0]
        reached = float((there - here).norm())
        if abs(reached - size) <= 0.01 * size:
            break
        factor *= min(2.0, max(0.5, size / max(reached, 1e-30)))
    return there


@torch.no_grad()
def analogy(
    score: ScoreModel,
    path: Tensor,
    start: Tensor,
    *,
    way: Tensor | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Apply the change along a path from A to B at another point C: "A is to B as C is to D".

    Every step of the path is carried back to A, along a way to C, and on along the new path, which
    it continues; there it is brought back to the data by the denoiser and kept as long as it was,
    as in `extrapolate`. The way from one tangent space to the next is that of
    `parallel_transport`, with the Jacobian of the denoiser for the projection. On a sphere the new
    path is the old one, rotated, to second order in the step.

    Args:
        score: The score, whose denoiser finds the manifold.
        path: From A to B, `(K, *shape)`.
        start: C, `shape`.
        way: From A to C, `(M, *shape)`; None carries steps straight across.
        project: As in `extrapolate`; None takes `score.denoise`.

    Returns:
        The path from C to D, `(K, *shape)`.

    Raises:
        ValueError: If the path is no path, the way does not lead from A to C, or shapes differ.
    """
    check_kind(ScoreModel, score=score)
    check_points(start=start)
    for name, points in (("path", path), ("way", path if way is None else way)):
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
    if way is None:
        way = torch.stack([path[0], start])
    elif not (torch.equal(way[0], path[0]) and torch.equal(way[-1], start)):
        raise ValueError("`way` must lead from the first point of `path` to `start`.")
    project = _checked(score.denoise if project is None else project)
    path, way, start = own(path, way, start)
    steps = path.diff(dim=0)
    for k in range(len(steps) - 1, 0, -1):  # back to A, each joined by the next
        steps[k:] = _carried(score, path[k], path[k - 1], steps[k:])
    for here, there in zip(way[:-1], way[1:], strict=True):
        steps = _carried(score, here, there, steps)
    found = [start]
    for k in range(len(steps)):
        size = float(steps[k].norm())
        moved = _step(project, found[-1], steps[k], size) if size else found[-1]
        found.append(moved)
        steps[k + 1 :] = _carried(score, found[-2], found[-1], steps[k + 1 :])
    return torch.stack(found)


def _carried(score: ScoreModel, here: Tensor, there: Tensor, vectors: Tensor) -> Tensor:
    """Tangents `(N, *shape)` at a point as tangents at the next one, as long as they were."""
    if len(vectors) == 0:
        return vectors

    def projected(x: Tensor, v: Tensor) -> Tensor:
        return split_tangent(score, x.expand_as(v), v)[0]

    back = projected(here, projected(there, vectors))
    carried = projected(there, 1.5 * vectors - 0.5 * back)
    wide = [-1] + [1] * here.ndim
    before, after = (v.flatten(1).norm(dim=1).view(wide) for v in (vectors, carried))
    return carried * (before / after.clamp(min=1e-30))
