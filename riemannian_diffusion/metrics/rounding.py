"""Whether rounding errors hide the steps of a path."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from riemannian_diffusion.score.where import Where

_ENOUGH = 1000.0  # no metric hides steps that are this many rounding errors of the points long
_NUM_PROBED = 8  # points of a path at which the effect of rounding errors is measured

# Norms `(n,)` of steps from points at their places, `(n, *shape)` each, as in `Metric.norm`.
Norm = Callable[[Tensor, Tensor, Where], Tensor]


@torch.no_grad()
def point_resolution(
    path: Tensor, gradient: Tensor | None, where: Where, squares: Tensor, norm: Norm
) -> float:
    """The length of a path's segments divided by that of the rounding errors of its points.

    Far from the origin, the coordinates are coarse. A metric can lengthen their rounding errors
    more than the steps of the path, so both are measured in the metric, as root mean squares. This
    takes one evaluation of at most 8 points, and none where the steps are very long.

    Args:
        path: The points, `(K, *shape)`.
        gradient: The gradient of the energy in the points, or None. A solver will move the values
            with a gradient, so these have rounding errors even if they are the same at all points.
        where: The places of the points.
        squares: The squared length of each segment, `(K - 1,)`.
        norm: The norms of small steps in the metric.

    Returns:
        The ratio; infinite if it is very large, or if all points are equal.
    """
    errors, steps = rounding_errors(path, gradient), path[1:] - path[:-1]
    size = float(steps.flatten(1).square().sum(1).mean().sqrt())
    if not 0 < size < _ENOUGH * float(errors.norm()):
        return torch.inf
    num = min(len(path), _NUM_PROBED)
    rows = torch.linspace(0, len(path) - 1, num, dtype=torch.float64).round().long()
    signs = torch.randint(2, (num, errors.numel()), generator=torch.Generator().manual_seed(0))
    moves = (2 * signs.to(path) - 1).view(num, *errors.shape) * errors
    return ratio(squares, norm(path[rows.to(path.device)], moves, where[rows]).square())


def rounding_errors(values: Tensor, gradient: Tensor | None = None) -> Tensor:
    """The rounding error of each value along a path, `(K, ...) -> (...)`.

    A value that is the same at all points, and has no gradient, takes no part in the steps.
    """
    least, largest = values.aminmax(dim=0)
    counts = least < largest
    if gradient is not None:
        counts = counts | (gradient != 0).any(0)
    size = torch.maximum(least.abs(), largest.abs()) * torch.finfo(values.dtype).eps
    return torch.where(counts, size, 0.0)


def ratio(squares: Tensor, errors: Tensor) -> float:
    """The root of the mean of squares over that of squared errors; infinite if one is 0."""
    size, error = float(squares.mean()), float(errors.mean())
    return (size / error) ** 0.5 if size and error else torch.inf


def at_rounding(size: float, before: float, scale: float) -> bool:
    """Whether a correction is small and no longer falls, because the dtype is too coarse."""
    return 0.9 * before <= size <= 1e-3 * scale
