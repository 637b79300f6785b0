"""Paths: tensors `(K, *shape)` of K points, joined by straight segments."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from riemannian_diffusion.arguments import (
    check_path,
    check_points,
    check_tensor,
    check_whole,
    kind_of,
)


class HasEnergy(Protocol):
    """An object, such as a `Metric`, that defines energies and lengths of a path's segments."""

    def energy(self, path: Tensor) -> Tensor:
        """The energy of each segment, `(K, *shape) -> (K - 1,)`."""

    def lengths_from(self, path: Tensor, energies: Tensor) -> Tensor:
        """The length of each segment, from its energy, `(K - 1,)`."""


def lerp(x0: Tensor, x1: Tensor, num_points: int) -> Tensor:
    """The straight path from `x0` to `x1`, `(num_points, *shape)`.

    Its end points equal `x0` and `x1` bit for bit.

    Raises:
        ValueError: If the shapes differ, values are not finite or `num_points` is less than 2.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import lerp
        >>> lerp(torch.zeros(1), torch.ones(1), 3).flatten()
        tensor([0.0000, 0.5000, 1.0000])
    """
    _check_ends(x0, x1, num_points)
    u = _fractions(num_points, x0)
    return _with_ends(x0 + u * (x1 - x0), x0, x1)


def slerp(x0: Tensor, x1: Tensor, num_points: int) -> Tensor:
    """The spherical path from `x0` to `x1`, `(num_points, *shape)` (Shoemake 1985).

    Its end points equal `x0` and `x1` bit for bit. The angle is that between the two tensors as
    vectors. Directions turn at constant speed, and norms change linearly. If the directions are
    equal, or one of the points is 0, the path is straight.

    Raises:
        ValueError: If the shapes differ, values are not finite, `num_points` is less than 2, or
            the directions are opposite, because then no arc between them is the shortest.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import slerp
        >>> path = slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 3)
        >>> path.norm(dim=1)
        tensor([1.0000, 1.0000, 1.0000])
    """
    _check_ends(x0, x1, num_points)
    wide0, wide1 = x0.cpu().double(), x1.cpu().double()  # not every device has float64
    norm0, norm1 = wide0.norm(), wide1.norm()
    if norm0 == 0 or norm1 == 0:
        return lerp(x0, x1, num_points)
    unit0, unit1 = wide0 / norm0, wide1 / norm1
    angle = 2 * torch.atan2((unit1 - unit0).norm(), (unit1 + unit0).norm())  # exact at 0 and pi
    if angle < 1e-7:
        return lerp(x0, x1, num_points)
    if angle > torch.pi - 1e-6:
        raise ValueError(
            "slerp: `x0` and `x1` point in opposite directions, so no arc between them is the "
            "shortest. Start from lerp, or move one of them."
        )
    u = _fractions(num_points, wide0)
    path = (torch.sin((1 - u) * angle) * unit0 + torch.sin(u * angle) * unit1) / torch.sin(angle)
    return _with_ends((path * torch.lerp(norm0, norm1, u)).to(x0), x0, x1)


def adain(path: Tensor) -> Tensor:
    """Interpolate the mean and the spread of each channel linearly along a path (AdaIN).

    In every channel of point k, the mean and the standard deviation become those of the end points,
    interpolated at `k / (K - 1)`. DiffMorpher does so for paths of noise (Zhang et al., arXiv
    2312.07409).

    Args:
        path: Points `(K, C, h, w)`, at least 2.

    Returns:
        Points `(K, C, h, w)`; the end points are unchanged bit for bit. A channel that is constant
        in a point stays constant there.

    Raises:
        ValueError: If `path` is not such points, or not finite.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import adain
        >>> tuple(adain(torch.randn(3, 4, 8, 8)).shape)
        (3, 4, 8, 8)
    """
    check_path(path)
    check_points(path=path)
    if path.ndim != 4:
        raise ValueError(f"`path` must be points (K, C, h, w), but got {tuple(path.shape)}.")
    u = _fractions(len(path), path[0])
    mean, std = path.mean((2, 3), keepdim=True), path.std((2, 3), correction=0, keepdim=True)
    rounding = 4 * torch.finfo(path.dtype).eps * path.abs().amax((2, 3), keepdim=True)
    scale = torch.where(std > rounding, torch.lerp(std[:1], std[-1:], u) / std, 0.0)
    matched = (path - mean) * scale + torch.lerp(mean[:1], mean[-1:], u)
    return _with_ends(matched, path[0], path[-1])


def refine(path: Tensor, factor: int) -> Tensor:
    """Split every segment of a path into `factor` equal segments.

    `(K, *shape) -> ((K - 1) factor + 1, *shape)`. The given points stay, and the result is
    differentiable in them.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import lerp, refine
        >>> len(refine(lerp(torch.zeros(1), torch.ones(1), 3), 2))
        5
    """
    check_path(path)
    check_whole(1, factor=factor)
    if factor == 1:
        return path
    u = torch.arange(factor, dtype=path.dtype, device=path.device) / factor
    u = u.view(1, -1, *[1] * (path.ndim - 1))
    start, step = path[:-1, None], (path[1:] - path[:-1])[:, None]
    return torch.cat([(start + u * step).flatten(0, 1), path[-1:]])


def smooth(path: Tensor, factor: int) -> Tensor:
    """Points on a smooth curve through the points of a path.

    `(K, *shape) -> ((K - 1) factor + 1, *shape)`. The given points stay. Between two points, the
    curve is a cubic. Its slope at a point is that of the parabola through the point and its two
    neighbours, or at an end through the three nearest points (Catmull and Rom 1974). A geodesic is
    such a curve through its nodes. It is linear and differentiable in the points.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import smooth
        >>> smooth(torch.tensor([[0.0], [1.0], [4.0]]), 2).flatten().tolist()  # a parabola
        [0.0, 0.25, 1.0, 2.25, 4.0]
    """
    check_path(path)
    check_whole(1, factor=factor)
    if factor == 1:
        return path
    num = (len(path) - 1) * factor
    return on_curve(path, torch.arange(num + 1, dtype=torch.float64) / factor)


def on_curve(path: Tensor, places: Tensor) -> Tensor:
    """Points on the curve of `smooth` through the points of a path.

    Args:
        path: The points, `(K, *shape)`, at the places 0, 1, ..., K - 1.
        places: Places `(N,)` between 0 and K - 1.

    Returns:
        Points `(N, *shape)`; at whole places the given points.
    """
    num, shape = len(path), (-1, *[1] * (path.ndim - 1))
    places = places.cpu().double()
    index = places.floor().long().clamp(0, num - 2)
    u = (places - index).to(path).view(shape)
    index = index.to(path.device)
    steps = path[1:] - path[:-1]
    if num == 2:
        return torch.where(u == 1, path[1:], path[:1] + u * steps)
    inner = (steps[1:] + steps[:-1]) / 2
    first, last = (3 * steps[:1] - steps[1:2]) / 2, (3 * steps[-1:] - steps[-2:-1]) / 2
    slopes = torch.cat([first, inner, last])
    start, stop = path[index], path[index + 1]
    step, bend = steps[index], u * (1 - u)
    cubic = (1 - u) * (slopes[index] - step) - u * (slopes[index + 1] - step)
    points = start + u * step + bend * cubic
    return torch.where(u == 0, start, torch.where(u == 1, stop, points))


def length(path: Tensor, metric: HasEnergy | None = None) -> Tensor:
    """The length of a path, a scalar, in a metric; None measures in flat space.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import length, lerp
        >>> length(lerp(torch.zeros(2), torch.tensor([3.0, 4.0]), 5))
        tensor(5.)
    """
    return segment_lengths(path, metric).sum()


def speed(path: Tensor, metric: HasEnergy | None = None) -> Tensor:
    """The speed on each segment, `(K - 1,)`, if the path is run through in unit time.

    The mean speed is the length of the path.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import lerp, speed
        >>> len(speed(lerp(torch.zeros(2), torch.ones(2), 5)))
        4
    """
    return segment_lengths(path, metric) * (len(path) - 1)


def segment_lengths(path: Tensor, metric: HasEnergy | None = None) -> Tensor:
    """The length of each segment, `(K, *shape) -> (K - 1,)`; None measures in flat space."""
    check_tensor(path=path)
    if path.ndim < 2:
        raise ValueError(f"`path` must be points (K, *shape), but got {tuple(path.shape)}.")
    if metric is None:
        return (path[1:] - path[:-1]).flatten(1).norm(dim=1)
    if not hasattr(metric, "lengths_from"):
        raise ValueError(f"`metric` must be a Metric, but got {kind_of(metric)}.")
    return metric.lengths_from(path, metric.energy(path))


def resample(path: Tensor, num_points: int, *, metric: HasEnergy | None = None) -> Tensor:
    """Place points at equal distances along a path, `(K, *shape) -> (num_points, *shape)`.

    The end points stay. Distances are lengths along the path, in the metric or, without one, in
    flat space. The speed on each segment of the given path is constant.

    Raises:
        ValueError: If the path is not finite or has fewer than 2 points, or `num_points` is less
            than 2.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import resample
        >>> resample(torch.tensor([[0.0], [1.0], [4.0]]), 3).flatten()
        tensor([0., 2., 4.])
    """
    check_path(path)
    check_points(path=path)
    check_whole(2, num_points=num_points)
    arc = torch.cat([path.new_zeros(1), segment_lengths(path, metric).cumsum(0)])
    return points_at(path, arc, torch.linspace(0, 1, num_points, dtype=torch.float64))


def points_at(path: Tensor, arc: Tensor, u: Tensor) -> Tensor:
    """Points of a path at fractions of its length.

    Args:
        path: The path, `(K, *shape)`.
        arc: Length of the path up to each of its points, `(K,)`.
        u: Fractions `(U,)` of the whole length, in [0, 1].

    Returns:
        Points `(U, *shape)`; fractions 0 and 1 give the end points bit for bit.
    """
    arc, u = arc.cpu().double(), u.cpu().double()
    target = u * arc[-1]
    index = (torch.searchsorted(arc, target, right=True) - 1).clamp(0, len(path) - 2)
    span = arc[index + 1] - arc[index]
    weight = (target - arc[index]) / span.clamp(min=1e-300)
    shape = (-1, *[1] * (path.ndim - 1))
    index, weight = index.to(path.device), weight.clamp(0, 1).to(path).view(shape)
    points = torch.lerp(path[index], path[index + 1], weight)
    first, last = (u <= 0).to(path.device).view(shape), (u >= 1).to(path.device).view(shape)
    return torch.where(first, path[0], torch.where(last, path[-1], points))


def solve_second_difference(values: Tensor) -> Tensor:
    """The points whose negative second difference along a path between two zeros is given.

    It solves `2 x_k - x_(k - 1) - x_(k + 1) = b_k` for k from 1 to n, with `x_0 = x_(n + 1) = 0`.
    With the fractions `u_k = k / (n + 1)`, Green's function gives the solution as two running sums,

        x_k = (n + 1) ((1 - u_k) sum_(j <= k) u_j b_j + u_k sum_(j > k) (1 - u_j) b_j).

    All factors are positive, so values of one sign lose no digits. The inverse matrix, which would
    have n^2 entries, is not formed.

    Args:
        values: The right side b, `(n, ...)`; each entry along the first axis belongs to a point.

    Returns:
        The solution x, like `values`.
    """
    num = len(values) + 1
    u = torch.arange(1, num, dtype=values.dtype, device=values.device) / num
    u = u.view(-1, *[1] * (values.ndim - 1))
    before = _running_sum(u * values)
    after = _running_sum(((1 - u) * values).flip(0)).flip(0) - (1 - u) * values
    return num * ((1 - u) * before + u * after)


def _running_sum(values: Tensor) -> Tensor:
    """The sums of the first 1, 2, ... entries, by doubling.

    Rounding errors grow with the logarithm of the number of entries. `torch.cumsum` would not be
    deterministic on CUDA.
    """
    reach = 1
    while reach < len(values):
        values = torch.cat([values[:reach], values[reach:] + values[:-reach]])
        reach *= 2
    return values


def _check_ends(x0: Tensor, x1: Tensor, num_points: int) -> None:
    check_points(x0=x0, x1=x1)
    if x0.shape != x1.shape:
        raise ValueError(
            f"`x0` and `x1` must have one shape, but got {tuple(x0.shape)} and {tuple(x1.shape)}."
        )
    check_whole(2, num_points=num_points)


def _fractions(num_points: int, like: Tensor) -> Tensor:
    u = torch.linspace(0, 1, num_points, dtype=like.dtype, device=like.device)
    return u.view(-1, *[1] * like.ndim)


def _with_ends(path: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
    return torch.cat([x0[None], path[1:-1], x1[None]])
