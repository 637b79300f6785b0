"""Beyond the last point: paths that go on as straight as the data manifold lets them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from riemannian_diffusion.metrics import Metric
from riemannian_diffusion.paths import segment_lengths

NUM_TRIES = 3  # per step, to meet its length


@torch.no_grad()
def extrapolate(
    metric: Metric,
    path: Tensor,
    distance: float,
    *,
    project: Callable[[Tensor], Tensor] | None = None,
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
        metric: A metric read off a score, whose denoiser finds the manifold.
        path: `(K, *shape)`, at least 2 points; the last two give the direction.
        distance: How far to go, positive, in flat length, which is the manifold's own. The steps
            are about as long as the path's are on average.
        project: Points near the manifold `(1, *shape)` -> the nearest on it; None takes
            `metric.score.denoise`.

    Returns:
        The path and its continuation, `(K + M, *shape)`, M at least 1.

    Raises:
        ValueError: If the path is no path, the distance is not positive, or the metric has no score
            and `project` is None.
    """
    if path.ndim < 2 or len(path) < 2 or not path.isfinite().all():
        raise ValueError(
            "`path` must be finite points `(K, *shape)`, at least 2, but it is "
            f"{tuple(path.shape)}{'' if path.isfinite().all() else ' with NaN or infinite values'}."
        )
    if not 0 < distance < math.inf:
        raise ValueError(f"`distance` must be positive and finite, but got {distance}.")
    if project is None:
        if not hasattr(metric, "score"):
            raise ValueError(
                f"{type(metric).__name__} has no score to denoise with: give `project`, a function "
                "that brings points back to the manifold."
            )
        project = metric.score.denoise
    usual = float(segment_lengths(path).mean())
    if not 0 < usual < math.inf:
        raise ValueError(f"`path` must have a length, but its mean step is {usual} long.")
    if torch.equal(path[-1], path[-2]):
        raise ValueError("The last two points of `path` are the same: they give no direction.")
    num_steps = max(1, round(distance / usual))
    size = distance / num_steps
    points = list(path)
    for _ in range(num_steps):
        points.append(_step(project, points[-2], points[-1], size))
    return torch.stack(points)


def _step(project, before: Tensor, here: Tensor, size: float) -> Tensor:
    """The next point, at a distance of `size`."""
    direction = here - before
    factor = size / float(direction.norm())
    for _ in range(NUM_TRIES):
        there = project((here + factor * direction)[None])[0]
        reached = float((there - here).norm())
        if abs(reached - size) <= 0.01 * size:
            break
        factor *= min(2.0, max(0.5, size / max(reached, 1e-30)))
    return there
