"""Coarse curves, on which a solve begins: smooth curves through a few points."""

from __future__ import annotations

import torch
from torch import Tensor

from riemannian_diffusion.paths import on_curve, segment_lengths

_FEWEST = 5  # points of the coarsest curve
_LARGEST_DEPARTURE = 0.05  # of a start from the coarse curve through it, in steps of the start


def numbers_of_points(start: Tensor) -> list[int]:
    """Numbers of points of the curves on which a solve runs, coarse to fine.

    The last number is that of the start, `(K, *shape)`. Others are 5, 9, 17 and so on, up to two
    thirds of K. A coarse curve through points of the start must follow it closely, so starts with
    corners have fewer coarse curves or none.
    """
    num, found = len(start), list[int]()
    step = float(segment_lengths(start).mean())
    count = _FEWEST
    while 3 * count <= 2 * num:
        if _departure(start, count) <= _LARGEST_DEPARTURE * step:
            found.append(count)
        count = 2 * count - 1
    return [*found, num]


def with_points(path: Tensor, num: int) -> Tensor:
    """`num` points on the smooth curve through the points of a path, `(num, *shape)`."""
    last = len(path) - 1
    return on_curve(path, torch.arange(num, dtype=torch.float64) * last / (num - 1))


def _departure(start: Tensor, count: int) -> float:
    """The largest distance between a path and the curve through `count` of its points."""
    curve = with_points(with_points(start, count), len(start))
    return float((curve - start).flatten(1).norm(dim=1).max())


def prolonged(values: Tensor, num: int) -> Tensor:
    """Changes of the points between two fixed ends, `(n, d)`, on a finer curve: `(num - 2, d)`."""
    ends = values.new_zeros(1, values.shape[1])
    return with_points(torch.cat([ends, values, ends]), num)[1:-1]
