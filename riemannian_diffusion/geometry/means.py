"""The Frechet mean of points in a metric."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from riemannian_diffusion.arguments import (
    check_kind,
    check_not_negative,
    check_points,
    check_whole,
)
from riemannian_diffusion.geodesics import Start
from riemannian_diffusion.geometry.logarithms import caution_of, logarithms
from riemannian_diffusion.geometry.tangents import own, paced_norm
from riemannian_diffusion.metrics import Metric
from riemannian_diffusion.paths import length, smooth

_LEAST_FACTOR = 0.01  # of a step that is halved until it lowers the mean squared distance
_ROUNDING = 4.0  # rounding errors of a step between equal points, relative to those of the dtype


@torch.inference_mode(False)
@torch.no_grad()
def frechet_mean(
    metric: Metric,
    points: Tensor,
    weights: Tensor | None = None,
    *,
    init: Tensor | None = None,
    num_points: int = 17,
    num_quadrature: int = 1,
    rtol: float = 1e-3,
    max_steps: int = 20,
    max_evals: int = 200,
) -> Tensor:
    """Compute the point with the least mean squared distance to several points (Karcher 1977).

    Each step moves the mean by the weighted mean of the logarithms, `x + sum w_i log_x(p_i)`. The
    geodesics to all points are solved side by side, and each starts from its path of the previous
    step. If a step raises the mean squared distance, this step and all later steps are halved.

    Distances are lengths in the metric; for metrics that read a score, they are the flat lengths of
    its geodesics.

    Args:
        metric: The metric.
        points: The points, `(N, *shape)`.
        weights: Weights of the points, `(N,)`, non-negative and not all 0. They are normalised
            here. None gives equal weights.
        init: First estimate of the mean, `shape`. None takes the weighted mean of the coordinates,
            which lies off the data if the points spread over much of a curved manifold. In that
            case, give one of the points.
        num_points: Number of points of each geodesic.
        num_quadrature: Number of chords per step of each geodesic, as in `geodesic`.
        rtol: The descent ends when a step is shorter than this share of the mean distance.
        max_steps: Largest number of steps.
        max_evals: Largest number of evaluations of each geodesic.

    Returns:
        The mean, `shape`.

    Warns:
        UserWarning: If the mean has not converged after `max_steps` steps, no step lowers the mean
            squared distance, or the geodesics to the mean have not converged or leave the data.

    Raises:
        ValueError: If `points`, `weights` or `init` are not valid, or no geodesic was found.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore
        >>> from riemannian_diffusion import TangentNormalMetric
        >>> from riemannian_diffusion import frechet_mean
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> metric = TangentNormalMetric(score)
        >>> mean = frechet_mean(metric, circle[[0, 6]])
        >>> bool((mean - circle[3]).norm() < 0.05)
        True
    """
    check_kind(Metric, metric=metric)
    check_points(points=points)
    check_whole(2, num_points=num_points)
    check_whole(1, max_steps=max_steps)
    check_not_negative(rtol=rtol)
    if points.ndim < 2 or len(points) == 0:
        raise ValueError(
            f"`points` must be finite (N, *shape), but they are {tuple(points.shape)}."
        )
    if weights is None:
        weights = points.new_ones(len(points))
    check_points(weights=weights)
    weights = weights.to(points)
    if weights.shape != points.shape[:1] or (weights < 0).any() or not weights.sum() > 0:
        raise ValueError(
            f"`weights` must be ({len(points)},), non-negative and not all 0, but got {weights}."
        )
    if init is not None:
        check_points(init=init)
    if init is not None and init.shape != points.shape[1:]:
        raise ValueError(
            f"`init` must be a finite point {tuple(points.shape[1:])}, but it is "
            f"{tuple(init.shape)}."
        )
    points, weights = own(points, weights)
    weights = (weights / weights.sum()).view(-1, *[1] * (points.ndim - 1))
    mean = (weights * points).sum(0) if init is None else init.detach().to(points)
    start: Start = "lerp"
    least, size, base, step = math.inf, math.inf, mean, torch.zeros_like(mean)
    factor = 1.0
    left = torch.linspace(1, 0, num_points).to(points).view(-1, *[1] * (points.ndim - 1))
    for _ in range(max_steps):
        options = (num_points, num_quadrature, start, None, 0.1 * rtol**2, max_evals)
        velocities, paths, found = logarithms(metric, mean.expand_as(points), points, *options)
        squares = metric.inner(mean.repeat(len(points), *[1] * mean.ndim), velocities, velocities)
        if metric.flat_pace:
            for i, path in enumerate(paths):
                velocities[i], squares[i] = _flat(metric, velocities[i], path)
        reach = squares.clamp(min=0).sqrt()
        spread = float((weights.flatten() * reach.square()).sum())
        if spread <= (1 + rtol) * least:
            least, base, step = spread, mean, factor * (weights * velocities).sum(0)
        else:  # the step was too long: halve it and all later steps
            factor, step = factor / 2, step / 2
        size = float(paced_norm(metric, base, step)) / factor  # halved steps prove nothing
        if factor < _LEAST_FACTOR:
            break
        rounding = _ROUNDING * torch.finfo(points.dtype).eps * float(points.abs().max())
        if size <= max(rtol * float((weights.flatten() * reach).sum()), rounding):
            caution = caution_of(found)
            if caution is not None:
                warnings.warn(f"frechet_mean: {caution}", stacklevel=4)  # past two decorators
            return base + step
        start = paths + left * (
            base + step - mean
        )  # the first points move with the mean, and the last points stay
        mean = base + step
    problem = f"after `max_steps`={max_steps} a step is still {size:.3g} long: give more steps,"
    if factor < _LEAST_FACTOR:
        problem = (
            f"the step of {size:.3g} along the logarithms does not lower the mean squared "
            "distance, however short it is made: give an `init` on the data,"
        )
    warnings.warn(
        f"frechet_mean: {problem} a larger `rtol`, or points nearer to each other.",
        stacklevel=4,  # past two decorators
    )
    return base


def _flat(metric: Metric, velocity: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
    """The velocity of a path `(K, *shape)` whose tangential part has the flat length of the path.

    The part that is normal to the data stays, because it brings a mean back to the data.

    Returns:
        The velocity, `shape`, and its square: flat for the tangential part, and that in the metric
        for the rest.
    """
    x = path[0]
    rest = velocity - metric.project(x, x, velocity)
    tangent = velocity - rest
    tangent = tangent * (length(smooth(path, 4)) / velocity.norm().clamp(min=1e-30))
    return tangent + rest, tangent.square().sum() + metric.inner(x[None], rest[None], rest[None])[0]
