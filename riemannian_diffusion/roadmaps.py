"""Roadmaps: where to start a geodesic, found in a graph of the model's own samples.

A solve descends into the valley it starts in, and from a straight start that is often one that
leaves the manifold. A roadmap explores first: it draws samples around the two points, links each
to its nearest, and looks for the way whose hops are short, so that none needs to leave the
manifold. Sampling roadmaps are those of motion planning (Kavraki et al. 1996). Where to draw next
follows RRT's preference for what is sparsely covered (LaValle 1998), among points no farther from
either end than half the best way's cost, as the better ways are (informed search, Gammell et al.
2014). Powers of lengths as costs make Fermat distances (Hwang, Damelin, Hero 2016).
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

LEAP = 2.0  # a hop leaves the manifold that a metric stretches so much more than it usually does
NUM_USUAL = 32  # hops that are measured to know what is usual
Draw = Callable[[Tensor], Tensor]
Graph = list[dict[int, float]]  # of each node, its neighbours and what the way there costs


@dataclass(frozen=True)
class Roadmap:
    """What `roadmap` found; as `init` of a `geodesic` between the same points, it is the start.

    Attributes:
        path: The points on the cheapest way, `(N, *shape)`, from `x0` to `x1`.
        samples: All samples drawn, `(M, *shape)`.
        longest_hop: The longest step of the path, as a share of the distance of `x0` and `x1`: 1
            where nothing better than the straight line was found.
    """

    path: Tensor
    samples: Tensor
    longest_hop: float

    def __call__(self, x0: Tensor, x1: Tensor, num_points: int) -> Tensor:
        """Points at equal lengths along the path, `(num_points, *shape)`.

        Raises:
            ValueError: If the roadmap is one between other points.
        """
        if not (torch.equal(self.path[0], x0) and torch.equal(self.path[-1], x1)):
            raise ValueError(
                "This roadmap leads between other points than `x0` and `x1`: make one for them."
            )
        return resample(self.path, num_points)


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
    """Find a way from `x0` to `x1` along samples of a model.

    Args:
        draws: One or more ways to draw samples near given points, `(B, *shape) -> (B, *shape)`,
            such as `sdedit` to several noise levels; every batch is shared out among them. Strong
            noise finds far parts of the manifold, weak noise fills gaps.
        x0: A point `(*shape)` on the manifold.
        x1: Another.
        metric: Finds steps that leave the manifold, and makes them longer: those whose length in
            the metric exceeds the flat one more than twice as much as is usual for samples that far
            apart. A model's samples are not all on its manifold, and without a metric a few
            between two parts of it are taken for a bridge. `TangentNormalMetric` is made for this.
            Hops lie on no path, so a score with several prompts is refused.
        max_samples: Stop when so many have been drawn.
        batch_size: Samples per batch.
        max_hop: Stop when no step of the path is longer than this share of the distance of `x0` and
            `x1`.
        num_neighbors: Nearest points that each sample is linked to.
        power: A step of length l costs `l ** power`; above 1, many short steps are cheaper than a
            long one.
        generator: Chooses, on the CPU, the points to draw around.

    Returns:
        A `Roadmap`.

    Raises:
        ValueError: If the points' shapes differ or are equal points, there is nothing to draw with,
            a draw returns another shape or values that are not finite, or a number is out of range.
    """
    _check(draws, x0, x1, max_samples, batch_size, max_hop, num_neighbors, power)
    if metric is not None:
        check_kind(Metric, metric=metric)
    if generator is not None:
        check_kind(torch.Generator, generator=generator)
    points = torch.stack([x0, x1])
    chord = float((x1 - x0).norm())
    graph: Graph = [{1: chord**power}, {0: chord**power}]
    stretches: dict[tuple[int, int], float] = {}  # of hops measured, metric over flat length
    centres = lerp(x0, x1, 4).repeat_interleave(-(-batch_size // 4), 0)[:batch_size]
    while True:
        samples = _draw(draws, centres[: 2 + max_samples - len(points)])
        points = torch.cat([points, samples])
        _link(graph, points, num_neighbors, power)
        while True:
            from0, way = _cheapest_way(graph)
            hop = max(graph[i][j] for i, j in pairwise(way)) ** (1 / power) / chord
            enough = hop <= max_hop or len(points) - 2 >= max_samples
            unknown = [h for h in pairwise(way) if h not in stretches] if metric and enough else []
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
            return Roadmap(points[way], points[2:], hop)
        # draw on around what is near either end, the more often the sparser the points there
        from1, _ = _cheapest(graph, 1)
        near = [i for i, c in enumerate(map(min, from0, from1)) if c <= from0[1] / 2]
        sparse = [sorted(graph[i].values())[:4][-1] ** (1 / power) for i in near]
        weights = torch.tensor(sparse, dtype=torch.float64) + 1e-9 * chord
        chosen = torch.multinomial(weights, batch_size, replacement=True, generator=generator)
        centres = points[[near[i] for i in chosen.tolist()]]


def _draw(draws: Sequence[Draw], centres: Tensor) -> Tensor:
    # strided, so that every function draws around centres of all kinds
    drawn = [draw(centres[i :: len(draws)]) for i, draw in enumerate(draws)]
    if not all(isinstance(some, Tensor) for some in drawn):
        raise ValueError("Each function of `draws` must return a tensor, but one did not.")
    samples = torch.cat([some for some in drawn if len(some)])
    if samples.shape != centres.shape or not samples.isfinite().all():
        raise ValueError(
            f"`draws` must give finite points of the shape they are given, {tuple(centres.shape)} "
            f"in all, but gave {tuple(samples.shape)}, finite: {bool(samples.isfinite().all())}."
        )
    return samples.to(centres)


def _link(graph: Graph, points: Tensor, num_neighbors: int, power: float) -> None:
    """Take the points that are not in the graph yet into it."""
    first = len(graph)
    flat = points.flatten(1)
    distances = torch.cdist(flat[first:], flat, compute_mode="donot_use_mm_for_euclid_dist")
    distances[:, first:].fill_diagonal_(math.inf)
    lengths, nearest = distances.topk(min(num_neighbors, len(points) - 1), largest=False)
    graph.extend({} for _ in range(first, len(points)))
    for i, (row, others) in enumerate(zip(lengths.tolist(), nearest.tolist(), strict=True), first):
        for length, j in zip(row, others, strict=True):
            graph[i][j] = graph[j][i] = length**power


def _stretches(
    metric: Metric, points: Tensor, hops: list[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """The metric's length over the flat length of straight hops, in either direction."""
    starts, ends = points[[i for i, _ in hops]], points[[j for _, j in hops]]  # (H, *shape)
    halves = torch.stack([starts, (starts + ends) / 2, ends], 1)  # (H, 3, *shape)
    flat = (halves[:, 1:] - halves[:, :-1]).flatten(2).norm(dim=2).sum(1)
    ratios = (metric.hop_lengths(halves).sum(1) / flat.clamp(min=1e-30)).tolist()
    return {way: r for (i, j), r in zip(hops, ratios, strict=True) for way in ((i, j), (j, i))}


def _usual_stretch(metric, points: Tensor, hops, generator) -> float:
    """The median stretch between samples as far apart as a way's hops are, by length, on average.

    Between very close samples the scatter about the manifold is most of a hop.
    """
    flat = points.flatten(1)
    lengths = torch.stack([(flat[i] - flat[j]).norm() for i, j in hops])
    size = lengths.square().sum() / lengths.sum()
    some = torch.randint(2, len(points), (NUM_USUAL,), generator=generator).unique()
    apart = torch.cdist(flat[some], flat, compute_mode="donot_use_mm_for_euclid_dist")
    others = (apart - size).abs().argmin(1).tolist()
    pairs = [(i, j) for i, j in zip(some.tolist(), others, strict=True) if i != j]
    return statistics.median(_stretches(metric, points, pairs).values())


def _cheapest_way(graph: Graph) -> tuple[list[float], list[int]]:
    """Costs from node 0 to all, and the nodes on the way from it to node 1."""
    costs, before = _cheapest(graph, 0)
    way = [1]
    while way[-1] != 0:
        way.append(before[way[-1]])
    return costs, way[::-1]


def _cheapest(graph: Graph, start: int) -> tuple[list[float], list[int]]:
    """Dijkstra's costs from a node to all, and on each way the node before."""
    costs, before = [math.inf] * len(graph), [-1] * len(graph)
    costs[start] = 0.0
    queue = [(0.0, start)]
    while queue:
        cost, i = heapq.heappop(queue)
        if cost > costs[i]:
            continue
        for j, step in graph[i].items():
            if cost + step < costs[j]:
                costs[j], before[j] = cost + step, i
                heapq.heappush(queue, (costs[j], j))
    return costs, before


def _check(draws, x0, x1, max_samples, batch_size, max_hop, num_neighbors, power) -> None:
    check_kind(Sequence, draws=draws)
    for draw in draws:
        check_callable(draws=draw)
    check_points(x0=x0, x1=x1)
    if not draws:
        raise ValueError("`draws` must hold at least one way to draw samples, but is empty.")
    if x0.shape != x1.shape or torch.equal(x0, x1):
        raise ValueError(
            "`x0` and `x1` must be different points of one shape, but their shapes are "
            f"{tuple(x0.shape)} and {tuple(x1.shape)}."
        )
    check_whole(1, max_samples=max_samples, batch_size=batch_size, num_neighbors=num_neighbors)
    check_finite(power=power)
    if power < 1:
        raise ValueError(f"`power` must be at least 1, but got {power}.")
    if not (is_finite(max_hop) and 0 < max_hop <= 1):
        raise ValueError(f"`max_hop` must be in (0, 1], but got {max_hop}.")
