"""Parallel transport of a tangent along a path."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_kind, check_points
from riemannian_diffusion.geometry.tangents import check_tangent, own, paced_norm
from riemannian_diffusion.metrics import Metric

_MOST_NORMAL = 0.5  # largest length of a tangent's normal part, relative to the tangent


@torch.inference_mode(False)
@torch.no_grad()
def parallel_transport(metric: Metric, path: Tensor, v: Tensor) -> Tensor:
    """Transport a tangent along a path without turning it.

    In the embedding `phi` a tangent is an arrow on a surface. The projection `P` of an arrow onto
    the next tangent space obeys `G_{k+1} P v = J_{k+1}^T J_k v`. Each step applies the isometry
    that is nearest to `P`. This is the polar factor of `P`, which is `P (3 v - P^T P v) / 2` to
    second order. The result agrees with the Levi-Civita connection of the metric to second order in
    the step. The projection alone agrees only to first order, because it shortens the part of a
    tangent along the path.

    Metrics that read a score transport along the data manifold: they project onto its tangents by
    the denoiser's Jacobian, and keep flat lengths. The result is tangent to the data. If `v` has a
    part that is normal to the data, the first step removes this part and lengthens the rest to the
    length of `v`. So give a tangent of the data, such as a difference of near points on them.

    Args:
        metric: A `PullbackMetric`.
        path: `(K, *shape)`. Its steps must be short compared with its radius of curvature.
        v: The tangent at the first point, `shape`.

    Returns:
        The tangent at every point, `(K, *shape)`.

    Warns:
        UserWarning: If the metric reads a score, and more than half of `v` is normal to the data.

    Raises:
        ValueError: If the metric is not a pullback, shapes differ or values are not finite.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore
        >>> from riemannian_diffusion import TangentNormalMetric
        >>> from riemannian_diffusion import geodesic
        >>> from riemannian_diffusion import parallel_transport
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> metric = TangentNormalMetric(score)
        >>> path = geodesic(metric, circle[0], circle[9]).path
        >>> v = torch.tensor([0.0, 1.0])
        >>> tuple(parallel_transport(metric, path, v).shape)
        (17, 2)
    """
    check_kind(Metric, metric=metric)
    check_points(path=path)
    if path.ndim < 2 or len(path) == 0:
        raise ValueError(f"`path` must be finite points (K, *shape), but got {tuple(path.shape)}.")
    check_tangent(path[0], v)
    path, v = own(path, v)
    if metric.flat_pace and len(path) > 1:
        normal = float((v - metric.project(path[0], path[0], v)).norm() / v.norm())
        if normal > _MOST_NORMAL:
            warnings.warn(
                f"parallel_transport: a part of `v` with {normal:.0%} of its length is normal to "
                "the data. It is removed, and the rest is lengthened to the length of `v`: give a "
                "tangent of the data.",
                stacklevel=4,  # past two decorators
            )
    tangents = [v]
    for x0, x1 in zip(path[:-1], path[1:], strict=True):
        v = tangents[-1]
        back = metric.project(x1, x0, metric.project(x0, x1, v))
        moved = metric.project(x0, x1, 1.5 * v - 0.5 * back)
        before, after = (float(paced_norm(metric, x, t)) for x, t in ((x0, v), (x1, moved)))
        tangents.append(moved * (before / after if after else 1.0))
    return torch.stack(tangents)
