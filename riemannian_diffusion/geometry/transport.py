"""Parallel transport of a tangent along a path."""

from __future__ import annotations

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_kind, check_points
from riemannian_diffusion.geometry.tangents import check_tangent, own
from riemannian_diffusion.metrics import Metric


@torch.inference_mode(False)
@torch.no_grad()
def parallel_transport(metric: Metric, path: Tensor, v: Tensor) -> Tensor:
    """Move a tangent along a path without turning it.

    In the embedding `phi` a tangent is an arrow on a surface. Each step moves it to the next
    tangent space by the isometry nearest to the projection `P`, `G_{k+1} P v = J_{k+1}^T J_k v`.
    This isometry is the polar factor of `P`, `P (3 v - P^T P v) / 2` to second order. The result
    agrees with the Levi-Civita connection of the metric to second order in the step. The projection
    alone agrees to first order only, since it shortens the part of a tangent along the path.

    Args:
        metric: A `PullbackMetric`.
        path: `(K, *shape)`. Its steps must be short compared with its radius of curvature.
        v: The tangent at the first point, `shape`.

    Returns:
        The tangent at every point, `(K, *shape)`.

    Raises:
        ValueError: If the metric is not a pullback, shapes differ or values are not finite.
    """
    check_kind(Metric, metric=metric)
    check_points(path=path)
    if path.ndim < 2 or len(path) == 0:
        raise ValueError(f"`path` must be finite points (K, *shape), but got {tuple(path.shape)}.")
    check_tangent(path[0], v)
    path, v = own(path, v)
    tangents = [v]
    for here, there in zip(path[:-1], path[1:], strict=True):
        v = tangents[-1]
        back = metric.project(there, here, metric.project(here, there, v))
        carried = metric.project(here, there, 1.5 * v - 0.5 * back)
        size, before = (
            float(metric.norm(x[None], t[None])) for x, t in ((there, carried), (here, v))
        )
        tangents.append(carried * (before / size if size else 1.0))
    return torch.stack(tangents)
