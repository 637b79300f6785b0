"""Energies of many paths and their gradients, with as few passes of the network as possible."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from riemannian_diffusion.batches import is_out_of_memory
from riemannian_diffusion.metrics.departures import Departure
from riemannian_diffusion.score.model import outside_inference
from riemannian_diffusion.score.where import Where

if TYPE_CHECKING:
    from riemannian_diffusion.metrics.base import Metric


@dataclass(frozen=True, eq=False)
class PathEnergy:
    """The energy of one path.

    Attributes:
        segments: The energy of each segment, `(K - 1,)`. The energy of the path is their sum.
        gradient: The gradient of the energy of the path in its points, `(K, *shape)`, 0 at the two
            ends, which are fixed. None if it was not requested.
        resolution: Root mean square length of the segments divided by that of rounding errors of
            the points, of their embedding and of a network, whichever are largest. Infinite if no
            rounding error matters.
        departure: How far the path departs from the data; None if it was not requested, or the
            metric reads no score.
    """

    segments: Tensor
    gradient: Tensor | None = None
    resolution: float = torch.inf
    departure: Departure | None = None


class PathBatch:
    """Several paths whose points a metric evaluates together.

    Args:
        paths: Paths `(K_i, *shape)`.
        pairs: For each path, the index of the pair of ends that it joins.
    """

    def __init__(self, paths: Sequence[Tensor], pairs: Sequence[int]):
        self.paths = [outside_inference(path).detach() for path in paths]
        self.pairs = list(pairs)
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
        """The points of all paths without the first point of each; one point per segment."""
        return torch.cat([path[1:] for path in self.paths])


def middle(where: Where) -> Where:
    """The places of the midpoints of a path's segments, from the places of its points."""
    return Where((where.u[1:] + where.u[:-1]) / 2, where.pair[1:])


def within_memory(
    metric: Metric, batch: PathBatch, compute: Callable[[], list[PathEnergy]]
) -> list[PathEnergy]:
    """Call `compute`, and again with smaller batches as long as memory runs out."""
    while True:
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not (is_out_of_memory(error) and metric.use_less_memory(batch.after_start())):
                raise


def chunks_of(metric: Metric, points: Tensor) -> list[slice]:
    """Slices of the points, each of which the metric may differentiate in one call."""
    num, size = len(points), max(1, metric.points_at_once(points))
    return [slice(start, min(start + size, num)) for start in range(0, num, size)]


# Cotangents of a table of values under an overridden energy, and those under the usual energy.
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

    The graph of a chunk is freed before the next chunk begins, so memory holds the activations of
    only one chunk. An overridden energy can depend on all values at once. With several chunks, the
    gradient of the usual energy is computed first. A second pass corrects it, but only if the
    overridden energy has other cotangents.

    Args:
        evaluate: A differentiable function `(chunk, *inputs of the chunk) -> values`.
        inputs: Tensors `(n, ...)`.
        chunks: Slices that cover all n rows.
        table: The table, whose first n rows receive the values.
        usual: A function that returns the cotangents of a chunk's values under the usual energy. It
            is called when these values are in the table.
        overridden: A function that returns the cotangents of all n values under the overridden
            energy and under the usual energy. It is called when the table is full. None if the
            energy is not overridden.

    Returns:
        The gradients in the inputs, `(n, ...)` each.
    """
    gradients = [torch.zeros_like(values) for values in inputs]

    def run(chunk: slice, cotangent: Callable[[], Tensor]) -> None:
        leaves = [values[chunk].detach().requires_grad_() for values in inputs]
        with torch.enable_grad():
            here = evaluate(chunk, *leaves)
        table[chunk] = here.detach()
        if not here.requires_grad:  # the values are the same everywhere
            return
        parts = torch.autograd.grad(here, leaves, cotangent(), materialize_grads=True)
        for gradient, part in zip(gradients, parts, strict=True):
            gradient[chunk] += part

    if overridden is not None and len(chunks) == 1:
        run(chunks[0], lambda: overridden()[0])
        return gradients
    for chunk in chunks:
        run(chunk, partial(usual, chunk))
    if overridden is not None and chunks:
        mine, expected = overridden()
        missing = mine - expected
        if missing.any():  # NaN counts as well
            for chunk in chunks:
                run(chunk, partial(missing.__getitem__, chunk))
    return gradients


def own_energies(
    energy: Callable[..., Tensor],
    metric: Metric,
    batch: PathBatch,
    values: Sequence[Tensor],
    differentiate: bool,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Compute energies of paths from values that are already known.

    Args:
        energy: A method of the metric's class, `(metric, path, where) -> (K - 1,)`.
        metric: The metric.
        batch: The paths.
        values: The known values of each path, for `Metric._serving`.
        differentiate: Whether to compute gradients.

    Returns:
        For each path, the energies of its segments and the gradients of their sum in the values and
        in the path; the gradients are 0 if `differentiate` is False.
    """
    found = []
    for i, (path, known) in enumerate(zip(batch.paths, values, strict=True)):
        path, known = (a.detach().requires_grad_(differentiate) for a in (path, known))
        functions = metric._serving(batch.paths[i], batch.places[i], known)
        there = served(metric, batch.places[i], **functions)
        with torch.set_grad_enabled(differentiate):
            segments = energy(there, path, batch.places[i])
        if differentiate and segments.requires_grad:
            inputs = known, path
            by_value, by_path = torch.autograd.grad(segments.sum(), inputs, materialize_grads=True)
        else:
            by_value, by_path = torch.zeros_like(known), torch.zeros_like(path)
        found.append((segments.detach(), by_value, by_path))
    return found


def served(metric: Metric, where: Where, **functions: Callable) -> Metric:
    """A copy of a metric for the points of one path, with some methods replaced.

    If its `energy` is called without places, the path is taken to cover the same fractions.
    """
    there = copy.copy(metric)
    there._stretch = float(where.u[0]), float(where.u[-1]), int(where.pair[0])
    for name, function in functions.items():
        setattr(there, name, function)
    return there


def same_places(a: Where | None, b: Where) -> bool:
    """Whether the places `a` are None or equal `b`."""
    return a is None or (torch.equal(a.u, b.u) and torch.equal(a.pair, b.pair))
