"""Energies of many paths and their gradients, at the cost of the network's own passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from riemannian_diffusion.metrics import Metric, PullbackMetric
from riemannian_diffusion.score.model import even_fractions


@dataclass(frozen=True)
class Ask:
    """A question to `Energies`.

    Attributes:
        metric: Of the energy.
        path: `(N, *shape)`.
        pair: Which of the pairs its ends are.
        differentiate: Whether the gradient is wanted.
    """

    metric: Metric
    path: Tensor
    pair: int
    differentiate: bool = False


class Answer(NamedTuple):
    """Energies `(N - 1,)` of the segments, and the gradient `(N, *shape)` of their sum.

    The gradient at the two ends is 0: they are fixed. `resolution` is the root mean square chord of
    the embedding over the rounding of its values, infinite where no chords were taken.
    """

    energies: Tensor
    gradient: Tensor | None
    resolution: float


class Energies:
    """Answers questions on many paths at once.

    The points of all paths form one batch, run in chunks of the score's `max_batch_size`. Every
    chunk's gradient is finished before the next chunk begins, so that one chunk's activations are
    held; for that, the first point of each chunk is embedded beforehand, without a graph. End
    points are embedded once.
    """

    def __init__(self):
        self._ends: dict[tuple[int, int], Tensor] = {}

    def __call__(self, asks: Sequence[Ask]) -> list[Answer]:
        """One answer per question, in order."""
        groups: dict[tuple[int, bool], list[int]] = {}
        for i, ask in enumerate(asks):
            groups.setdefault((id(ask.metric), ask.differentiate), []).append(i)
        answers = {}
        for members in groups.values():
            group = [asks[i] for i in members]
            answers |= zip(members, self._answer(group), strict=True)
        return [answers[i] for i in range(len(asks))]

    def _answer(self, asks: list[Ask]) -> list[Answer]:
        metric = asks[0].metric
        if type(metric).energy is PullbackMetric.energy:
            return _within_memory(asks, self._by_chords)
        if type(metric).energy is Metric.energy:
            return _within_memory(asks, _by_midpoints)
        return [answer for ask in asks for answer in _within_memory([ask], _as_defined)]

    def _by_chords(self, asks: list[Ask]) -> list[Answer]:
        metric = asks[0].metric
        points = torch.cat([ask.path[1:-1] for ask in asks])  # (n, *shape)
        places = torch.cat([even_fractions(len(ask.path))[1:-1] for ask in asks])
        pairs = torch.cat([torch.full((len(a.path) - 2,), a.pair, dtype=torch.long) for a in asks])
        num = len(points)
        ends = self._embedded_ends(metric, asks)  # (A, 2, *embedding shape)
        table = ends.new_empty(num + 2 * len(asks), *ends.shape[2:])
        table[num:] = ends.flatten(0, 1)
        rows, start = [], 0  # of the table, for every path
        for i, ask in enumerate(asks):
            stop = start + len(ask.path) - 2
            rows.append([num + 2 * i, *range(start, stop), num + 2 * i + 1])
            start = stop

        def embed(index: Tensor | slice, x: Tensor) -> Tensor:
            return metric.along(places[index], pairs[index]).embed(x)

        gradient = None
        if asks[0].differentiate:
            left = torch.tensor([i for row in rows for i in row[:-2]], device=points.device)
            right = torch.tensor([i for row in rows for i in row[2:]], device=points.device)
            weights = torch.cat(
                [points.new_full((len(a.path) - 2,), len(a.path) - 1.0) for a in asks]
            ).view(-1, *[1] * (table.ndim - 1))
            chunks = _chunks(metric, points)
            gradient = torch.empty_like(points)
            if len(chunks) > 1:
                firsts = torch.tensor([chunk.start for chunk in chunks[1:]])
                with torch.no_grad():
                    table[firsts.to(points.device)] = embed(firsts, points[firsts])
            for chunk in chunks:
                x = points[chunk].detach().requires_grad_()
                with torch.enable_grad():
                    here = embed(chunk, x)
                table[chunk] = value = here.detach()
                behind, ahead = value - table[left[chunk]], table[right[chunk]] - value
                gradient[chunk] = torch.autograd.grad(here, x, weights[chunk] * (behind - ahead))[0]
                del here
        elif num:
            with torch.no_grad():
                table[:num] = embed(slice(None), points)
        answers, start = [], 0
        for ask, row in zip(asks, rows, strict=True):
            embedded = table[torch.tensor(row, device=points.device)].flatten(1)
            squares = (embedded[1:] - embedded[:-1]).square().sum(1)
            size = float((squares.mean() / embedded.square().sum(1).mean().clamp(min=1e-30)).sqrt())
            part = None
            if gradient is not None:
                part = torch.zeros_like(ask.path)
                part[1:-1] = gradient[start : start + len(row) - 2]
            start += len(row) - 2
            resolution = size / metric.rounding if metric.rounding and size else torch.inf
            answers.append(Answer(0.5 * len(squares) * squares, part, resolution))
        return answers

    @torch.no_grad()
    def _embedded_ends(self, metric: PullbackMetric, asks: list[Ask]) -> Tensor:
        new = {ask.pair: ask for ask in asks if (id(metric), ask.pair) not in self._ends}
        if new:
            points = torch.cat([ask.path[[0, -1]] for ask in new.values()])
            places = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(len(new))
            pairs = torch.tensor(list(new)).repeat_interleave(2)
            embedded = metric.along(places, pairs).embed(points)
            for pair, both in zip(new, embedded.split(2), strict=True):
                self._ends[id(metric), pair] = both
        return torch.stack([self._ends[id(metric), ask.pair] for ask in asks])


def _by_midpoints(asks: list[Ask]) -> list[Answer]:
    """Energies of segments by the metric at their midpoints, as in `Metric.energy`."""
    metric = asks[0].metric
    steps = torch.cat([ask.path[1:] - ask.path[:-1] for ask in asks])
    middles = torch.cat([(ask.path[1:] + ask.path[:-1]) / 2 for ask in asks])
    numbers = [len(ask.path) - 1 for ask in asks]
    fractions = [even_fractions(len(ask.path)) for ask in asks]
    places = torch.cat([(u[1:] + u[:-1]) / 2 for u in fractions])
    pairs = torch.cat([torch.full((n,), a.pair) for n, a in zip(numbers, asks, strict=True)])
    weights = torch.cat([steps.new_full((n,), n / 2) for n in numbers])
    differentiate = asks[0].differentiate
    energies, by_middle, by_step = [], [], []
    for chunk in _chunks(metric, steps):
        x = middles[chunk].detach().requires_grad_(differentiate)
        v = steps[chunk].detach().requires_grad_(differentiate)
        with torch.set_grad_enabled(differentiate):
            energy = weights[chunk] * metric.along(places[chunk], pairs[chunk]).inner(x, v, v)
        energies.append(energy.detach())
        if differentiate:
            parts = torch.autograd.grad(energy.sum(), (x, v), materialize_grads=True)
            by_middle.append(parts[0])
            by_step.append(parts[1])
    answers = []
    energies = torch.cat(energies).split(numbers)
    if not differentiate:
        return [Answer(energy, None, torch.inf) for energy in energies]
    by_middle, by_step = torch.cat(by_middle).split(numbers), torch.cat(by_step).split(numbers)
    for ask, energy, middle, step in zip(asks, energies, by_middle, by_step, strict=True):
        gradient = torch.zeros_like(ask.path)
        gradient[1:-1] = (middle[:-1] + middle[1:]) / 2 + step[:-1] - step[1:]
        answers.append(Answer(energy, gradient, torch.inf))
    return answers


def _as_defined(asks: list[Ask]) -> list[Answer]:
    """For a metric that defines its energies itself: one path at a time."""
    (ask,) = asks
    num = len(ask.path)
    metric = ask.metric.along(even_fractions(num), torch.full((num,), ask.pair))
    inner = ask.path[1:-1].detach().requires_grad_(ask.differentiate)
    with torch.set_grad_enabled(ask.differentiate):
        energies = metric.energy(torch.cat([ask.path[:1], inner, ask.path[-1:]]))
    gradient = None
    if ask.differentiate:
        gradient = torch.zeros_like(ask.path)
        gradient[1:-1] = torch.autograd.grad(energies.sum(), inner)[0]
    return [Answer(energies.detach(), gradient, torch.inf)]


def _chunks(metric: Metric, points: Tensor) -> list[slice]:
    num, size = len(points), metric.points_at_once(points)
    return [slice(start, min(start + size, num)) for start in range(0, num, size)]


def _within_memory(asks: list[Ask], answer: Callable[[list[Ask]], list[Answer]]) -> list[Answer]:
    """The answers, sought again in smaller batches while memory runs out."""
    while True:
        try:
            return answer(asks)
        except torch.OutOfMemoryError:
            points = torch.cat([ask.path[1:] for ask in asks])
            if not asks[0].metric.use_less_memory(points):
                raise
