"""Energies of many paths and their gradients, at no more passes of the network than needed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from riemannian_diffusion.score.where import Where

if TYPE_CHECKING:
    from riemannian_diffusion.metrics.base import Metric


@dataclass(frozen=True, eq=False)
class PathEnergy:
    """The energy of one path.

    Attributes:
        segments: `(K - 1,)`, the energy of each segment; their sum is the energy of the path.
        gradient: `(K, *shape)`, the gradient of that sum in the points, 0 at the two ends, which
            are fixed; None if it was not asked for.
        resolution: Root mean square chord of the embedding over the rounding error of its values;
            infinite without rounding or without an embedding.
    """

    segments: Tensor
    gradient: Tensor | None = None
    resolution: float = torch.inf


class PathBatch:
    """Several paths whose points a metric evaluates together.

    Args:
        paths: Paths `(K_i, *shape)`.
        pairs: The index of the pair of ends that each path joins.
    """

    def __init__(self, paths: Sequence[Tensor], pairs: Sequence[int]):
        self.paths, self.pairs = [path.detach() for path in paths], list(pairs)
        if len(self.pairs) != len(self.paths):
            raise ValueError(
                "`pairs` must have one index for each path, but there are "
                f"{len(self.paths)} paths and {len(self.pairs)} indices."
            )
        # the places of all points of each path
        self.places = [Where.even(len(path), pair) for path, pair in zip(paths, pairs, strict=True)]

    def __len__(self) -> int:
        return len(self.paths)

    def between(self) -> tuple[Tensor, Where]:
        """The points between the ends of all paths, `(n, *shape)`, and their places."""
        where = Where.cat([place[1:-1] for place in self.places])
        return torch.cat([path[1:-1] for path in self.paths]), where

    def segments(self) -> tuple[Tensor, Tensor, Where]:
        """The midpoints and steps of all segments, `(n, *shape)` twice, and their places."""
        middles = torch.cat([(path[1:] + path[:-1]) / 2 for path in self.paths])
        steps = torch.cat([path[1:] - path[:-1] for path in self.paths])
        return middles, steps, Where.cat([middle(place) for place in self.places])

    def after_start(self) -> Tensor:
        """All points but the first of each path: as many as there are segments."""
        return torch.cat([path[1:] for path in self.paths])


def middle(where: Where) -> Where:
    """The places of the midpoints of a path's segments, from the places of its points."""
    return Where((where.u[1:] + where.u[:-1]) / 2, where.pair[1:])


def within_memory(
    metric: Metric, batch: PathBatch, compute: Callable[[], list[PathEnergy]]
) -> list[PathEnergy]:
    """What `compute` returns, called again with smaller batches while memory runs out."""
    while True:
        try:
            return compute()
        except torch.OutOfMemoryError:
            if not metric.use_less_memory(batch.after_start()):
                raise


def chunks_of(metric: Metric, points: Tensor) -> list[slice]:
    """Slices of the points that the metric may differentiate in one call."""
    num, size = len(points), max(1, metric.points_at_once(points))
    return [slice(start, min(start + size, num)) for start in range(0, num, size)]


# Cotangents of a table of values, and those that the class's own energy would have.
Cotangents = Callable[[], tuple[Tensor, Tensor]]


def pull_back(
    evaluate: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    chunks: Sequence[slice],
    table: Tensor,
    usual: Callable[[slice], Tensor],
    overridden: Cotangents | None,
) -> list[Tensor]:
    """Fill a table with values of a function, and return the gradients in its inputs.

    The graph of a chunk is freed before the next chunk begins, so that the activations of one
    chunk are held at a time. An overridden energy can depend on all values at once. If there are
    several chunks, the gradient of the usual energy is formed first, and corrected by a second
    pass only if the overridden energy has other cotangents.

    Args:
        evaluate: `(chunk, *inputs of the chunk) -> values`, differentiable.
        inputs: Tensors `(n, ...)`.
        chunks: Slices that cover all n.
        table: Receives the values in its first n rows.
        usual: The cotangents of a chunk's values, once they are in the table.
        overridden: Once the table is full, the cotangents of all n values under the overridden
            energy and under the usual one; None if the energy is not overridden.
    """
    at_once = overridden is not None and len(chunks) == 1
    gradients = [torch.zeros_like(values) for values in inputs]

    def run(chunk: slice, cotangent: Callable[[], Tensor]) -> None:
        leaves = [values[chunk].detach().requires_grad_() for values in inputs]
        with torch.enable_grad():
            here = evaluate(chunk, *leaves)
        table[chunk] = here.detach()
        parts = torch.autograd.grad(here, leaves, cotangent(), materialize_grads=True)
        for gradient, part in zip(gradients, parts, strict=True):
            gradient[chunk] += part

    for chunk in chunks:
        if at_once:
            run(chunk, lambda: overridden()[0])
        else:
            run(chunk, lambda chunk=chunk: usual(chunk))
    if overridden is not None and not at_once and chunks:
        mine, expected = overridden()
        missing = mine - expected
        if missing.any():  # also if it is NaN
            for chunk in chunks:
                run(chunk, lambda chunk=chunk: missing[chunk])
    return gradients


def own_energies(
    energy: Callable[..., Tensor],
    metric: Metric,
    batch: PathBatch,
    values: Sequence[Tensor],
    differentiate: bool,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Energies of paths by a function that reads values which are known already.

    Args:
        energy: `(metric, path, where) -> (K - 1,)`: a method of the metric's class.
        metric: The metric.
        batch: The paths.
        values: The known values of each path, for `Metric._serving`.
        differentiate: Whether gradients are wanted.

    Returns:
        For each path: the energies of its segments, and the gradients of their sum in the values
        and in the path; zeros if they are not wanted.
    """
    found = []
    for i, (path, known) in enumerate(zip(batch.paths, values, strict=True)):
        path, known = (a.detach().requires_grad_(differentiate) for a in (path, known))
        functions = metric._serving(batch.paths[i], batch.places[i], known)
        there = served(metric, batch.places[i], **functions)
        with torch.set_grad_enabled(differentiate):
            segments = energy(there, path, batch.places[i])
        if differentiate and segments.requires_grad:
            parts = torch.autograd.grad(segments.sum(), (known, path), materialize_grads=True)
        else:
            parts = torch.zeros_like(known), torch.zeros_like(path)
        found.append((segments.detach(), *parts))
    return found


def served(metric: Metric, where: Where, **functions: Callable) -> Metric:
    """A copy of a metric for the points of one path, some of whose methods are replaced.

    Its `energy` takes a path without places for one that covers the same stretch.
    """
    there = copy.copy(metric)
    there._stretch = float(where.u[0]), float(where.u[-1]), int(where.pair[0])
    for name, function in functions.items():
        setattr(there, name, function)
    return there


def same_places(a: Where | None, b: Where) -> bool:
    """Whether places are those of `b`, or not given."""
    return a is None or (torch.equal(a.u, b.u) and torch.equal(a.pair, b.pair))
