"""Roadmaps: first paths for geodesics, found in a graph of the model's own samples.

A solver finds the local minimum that is nearest to its start. From a straight start this path often
leaves the manifold. A roadmap explores first. It draws samples around the two points and links each
sample to its nearest neighbours. It then looks for a path with short hops, so that no hop has to
leave the manifold. Sampling roadmaps come from motion planning (Kavraki et al. 1996). New samples
are drawn where the graph is sparse, as in RRT (LaValle 1998), and only around points whose cost
from one of the ends is at most half the cost of the best path, because every better path runs among
them (informed search, Gammell et al. 2014). Powers of lengths as costs give Fermat distances
(Hwang, Damelin, Hero 2016).
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from riemannian_diffusion.arguments import (
    check_callable,
    check_finite,
    check_kind,
    check_points,
    check_whole,
    is_finite,
)
from riemannian_diffusion.metrics import Metric
from riemannian_diffusion.paths import lerp, resample

LEAP = 2.0  # a hop leaves the manifold if its stretch is this many times the usual stretch
NUM_USUAL = 32  # hops that are measured to find the usual stretch
Draw = Callable[[Tensor], Tensor]
Graph = list[dict[int, float]]  # for each node, its neighbours and the cost of the hop to each


@dataclass(frozen=True)
class Roadmap:
    """The result of `roadmap`; pass it as `init` to `geodesic` between the same points.

    Attributes:
        path: The points of the cheapest path from `x0` to `x1`, `(N, *shape)`.
        samples: All samples drawn, `(M, *shape)`.
        longest_hop: The longest step of the path, as a share of the distance from `x0` to `x1`; 1
            if nothing better than the straight line was found.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import Roadmap
        >>> path = torch.tensor([[0.0], [3.0], [4.0]])
        >>> Roadmap(path, path, 0.75)(path[0], path[-1], 5).flatten()
        tensor([0., 1., 2., 3., 4.])
    """

    path: Tensor
    samples: Tensor
    longest_hop: float

    def __call__(self, x0: Tensor, x1: Tensor, num_points: int) -> Tensor:
        """Points at equal distances along the path, `(num_points, *shape)`.

        Raises:
            ValueError: If the path of the roadmap does not join `x0` and `x1`.
        """
        path = self.path.to(x0)  # a geodesic may run in a wider dtype
        if not (torch.equal(path[0], x0) and torch.equal(path[-1], x1)):
            raise ValueError(
                "This roadmap leads between other points than `x0` and `x1`: call `roadmap` for "
                "them."
            )
        return resample(path, num_points)


@torch.no_grad()
def roadmap(
    draws: Sequence[Draw],
    x0: Tensor,
    x1: Tensor,
    *,
    metric: Metric | None = None,
    max_samples: int = 4096,
    batch_size: int = 96,
    max_hop: float = 0.25,
    num_neighbors: int = 8,
    power: float = 3.0,
    generator: torch.Generator | None = None,
) -> Roadmap:
    """Find a path from `x0` to `x1` along samples of a model.

    Args:
        draws: One or more functions that draw samples near given points, `(B, *shape) ->
            (B, *shape)`, such as `sdedit` with several noise levels. They share every batch.
            Strong noise finds far parts of the manifold, and weak noise finds samples between near
            points.
        x0: A point on the manifold, `shape`.
        x1: Another point on the manifold, `shape`.
        metric: A metric that detects hops off the manifold, such as `TangentNormalMetric`. The
            stretch of a hop is its length in the metric over its flat length. A hop costs more if
            its stretch is more than twice the usual stretch of equally distant samples. Without a
            metric, a few samples off the manifold can join two separate parts of it. Hops belong to
            no path, so a score that changes along the path is not possible.
        max_samples: Largest number of samples.
        batch_size: Number of samples per batch.
        max_hop: The search ends when no hop of the path is longer than this share of the distance
            from `x0` to `x1`, in (0, 1].
        num_neighbors: Number of nearest points to which each sample is linked.
        power: A hop of length l costs `l ** power`, at least 1. Above 1, many short hops are
            cheaper than a long one.
        generator: A CPU generator that chooses the points around which to draw.

    Returns:
        The `Roadmap`.

    Raises:
        ValueError: If `x0` and `x1` are equal or differ in shape, `draws` is empty, a function of
            it returns another shape or non-finite values, or a number is out of range.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore
        >>> from riemannian_diffusion import TangentNormalMetric
        >>> from riemannian_diffusion import roadmap
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> metric = TangentNormalMetric(score)
        >>> def draw(x):  # samples near the given points: here, any point of the circle
        ...     return circle[torch.randint(64, (len(x),), generator=generator)]
        >>> generator = torch.Generator().manual_seed(0)
        >>> found = roadmap([draw], circle[0], circle[20], metric=metric, max_samples=192)
        >>> found.longest_hop < 1
        True
    """
    _check(draws, x0, x1, max_samples, batch_size, max_hop, num_neighbors, power)
    if metric is not None:
        check_kind(Metric, metric=metric)
    if generator is not None:
        check_kind(torch.Generator, generator=generator)
    points = torch.stack([x0, x1])
    chord = float((x1 - x0).norm())
    graph: Graph = [{1: chord**power}, {0: chord**power}]
    stretches: dict[tuple[int, int], float] = {}  # stretches of the hops that were measured
    centres = lerp(x0, x1, 4).repeat_interleave(-(-batch_size // 4), 0)[:batch_size]
    while True:
        samples = _draw(draws, centres[: 2 + max_samples - len(points)])
        points = torch.cat([points, samples])
        _link(graph, points, num_neighbors, power)
        while True:
            from0, route = _cheapest_route(graph)
            hop = max(graph[i][j] for i, j in pairwise(route)) ** (1 / power) / chord
            enough = hop <= max_hop or len(points) - 2 >= max_samples
            unknown = [h for h in pairwise(route) if h not in stretches]
            unknown = unknown if metric and enough else []
            if metric is None or not unknown:
                break
            if not stretches:
                usual = _usual_stretch(metric, points, unknown, generator)
            stretches |= _stretches(metric, points, unknown)
            for i, j in unknown:
                if stretches[i, j] > LEAP * usual:
                    cost = graph[i][j] * (stretches[i, j] / usual) ** power
                    graph[i][j] = graph[j][i] = cost
        if enough:
            return Roadmap(points[route], points[2:], hop)
        # draw around points near either end, and more often where points are sparse
        from1, _ = _cheapest(graph, 1)
        near = [i for i, c in enumerate(map(min, from0, from1)) if c <= from0[1] / 2]
        sparse = [sorted(graph[i].values())[:4][-1] ** (1 / power) for i in near]
        weights = torch.tensor(sparse, dtype=torch.float64) + 1e-9 * chord
        chosen = torch.multinomial(weights, batch_size, replacement=True, generator=generator)
        centres = points[[near[i] for i in chosen.tolist()]]


def _draw(draws: Sequence[Draw], centres: Tensor) -> Tensor:
    # strided, so that every function draws around all parts of the graph
    drawn = [draw(centres[i :: len(draws)]) for i, draw in enumerate(draws)]
    if not all(isinstance(some, Tensor) for some in drawn):
        raise ValueError("Each function of `draws` must return a tensor, but one did not.")
    samples = torch.cat([some for some in drawn if len(some)])
    if samples.shape != centres.shape or not samples.isfinite().all():
        raise ValueError(
            "The functions of `draws` must return finite points of the shape of their argument, "
            f"{tuple(centres.shape)} in all, but returned {tuple(samples.shape)}, finite: "
            f"{bool(samples.isfinite().all())}."
        )
    return samples.to(centres)


def _link(graph: Graph, points: Tensor, num_neighbors: int, power: float) -> None:
    """Add the points that are not in the graph yet."""
    first = len(graph)
    flat = _flat(points)
    distances = torch.cdist(flat[first:], flat, compute_mode="donot_use_mm_for_euclid_dist")
    distances[:, first:].fill_diagonal_(math.inf)
    lengths, nearest = distances.topk(min(num_neighbors, len(points) - 1), largest=False)
    graph.extend({} for _ in range(first, len(points)))
    for i, (row, others) in enumerate(zip(lengths.tolist(), nearest.tolist(), strict=True), first):
        for length, j in zip(row, others, strict=True):
            graph[i][j] = graph[j][i] = length**power


def _flat(points: Tensor) -> Tensor:
    """Points `(N, d)`, at least in float32, because half precision has no distances."""
    return points.flatten(1).to(torch.promote_types(points.dtype, torch.float32))


def _stretches(
    metric: Metric, points: Tensor, hops: list[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """The stretch of straight hops: metric length over flat length, for both directions."""
    starts, ends = points[[i for i, _ in hops]], points[[j for _, j in hops]]  # (H, *shape)
    halves = torch.stack([starts, (starts + ends) / 2, ends], 1)  # (H, 3, *shape)
    flat = (halves[:, 1:] - halves[:, :-1]).flatten(2).norm(dim=2).sum(1)
    ratios = (metric.hop_lengths(halves).sum(1) / flat.clamp(min=1e-30)).tolist()
    return {hop: r for (i, j), r in zip(hops, ratios, strict=True) for hop in ((i, j), (j, i))}


def _usual_stretch(metric, points: Tensor, hops, generator) -> float:
    """The median stretch between samples that are as far apart as the ends of the given hops.

    Their distance matters: the scatter of samples around the manifold makes up most of a very short
    hop. The average length of the hops is weighted by length.
    """
    flat = _flat(points)
    lengths = torch.stack([(flat[i] - flat[j]).norm() for i, j in hops])
    size = lengths.square().sum() / lengths.sum()
    some = torch.randint(2, len(points), (NUM_USUAL,), generator=generator).unique()
    distances = torch.cdist(flat[some], flat, compute_mode="donot_use_mm_for_euclid_dist")
    others = (distances - size).abs().argmin(1).tolist()
    pairs = [(i, j) for i, j in zip(some.tolist(), others, strict=True) if i != j]
    return statistics.median(_stretches(metric, points, pairs).values())


def _cheapest_route(graph: Graph) -> tuple[list[float], list[int]]:
    """The cost of every node from node 0, and the nodes of the cheapest route from 0 to 1."""
    costs, previous = _cheapest(graph, 0)
    route = [1]
    while route[-1] != 0:
        route.append(previous[route[-1]])
    return costs, route[::-1]


def _cheapest(graph: Graph, start: int) -> tuple[list[float], list[int]]:
    """The cost of every node from a start, and the previous node of each (Dijkstra 1959)."""
    costs, previous = [math.inf] * len(graph), [-1] * len(graph)
    costs[start] = 0.0
    queue = [(0.0, start)]
    while queue:
        cost, i = heapq.heappop(queue)
        if cost > costs[i]:
            continue
        for j, step in graph[i].items():
            if cost + step < costs[j]:
                costs[j], previous[j] = cost + step, i
                heapq.heappush(queue, (costs[j], j))
    return costs, previous


def _check(draws, x0, x1, max_samples, batch_size, max_hop, num_neighbors, power) -> None:
    check_kind(Sequence, draws=draws)
    for draw in draws:
        check_callable(draws=draw)
    check_points(x0=x0, x1=x1)
    if not draws:
        raise ValueError(
            "`draws` must hold at least one function that draws samples, but it is empty."
        )
    if x0.shape != x1.shape or torch.equal(x0, x1):
        raise ValueError(
            "`x0` and `x1` must be different points of one shape, but got shapes "
            f"{tuple(x0.shape)} and {tuple(x1.shape)}."
        )
    check_whole(1, max_samples=max_samples, batch_size=batch_size, num_neighbors=num_neighbors)
    check_finite(power=power)
    if power < 1:
        raise ValueError(f"`power` must be at least 1, but got {power}.")
    if not (is_finite(max_hop) and 0 < max_hop <= 1):
        raise ValueError(f"`max_hop` must be in (0, 1], but got {max_hop}.")
