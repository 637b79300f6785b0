"""The solve of one problem, which requests evaluations and processes their results."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from riemannian_diffusion.geodesics.coarse import (
    numbers_of_points,
    with_points,
)
from riemannian_diffusion.geodesics.outcome import SETTLED, Geodesic
from riemannian_diffusion.geodesics.problem import Problem
from riemannian_diffusion.geodesics.progress import Iterate, Options, Question, Standing
from riemannian_diffusion.metrics import Departure, Metric, PathEnergy, PullbackMetric
from riemannian_diffusion.paths import points_at, segment_lengths, smooth

_FAILED = ("nonfinite", "rounding")
_LEAST_RESOLUTION = 2.0  # smallest length of chords, in rounding errors of the embedding
_PATIENCE = 3  # iterations in a row close to the minimum; one less after each coarse curve
_LEAST_BUDGET = 40  # smallest number of evaluations with which a solve begins on coarse curves
_MOST_COARSE = 40  # largest number of evaluations for each coarse curve
_LARGEST_JUMP = 0.1  # relative change of the energy from a coarse curve to the next curve
_LEAST_TO_REFINE = 20.0  # smallest resolution at which a finer sampling shows more than rounding
_STALL = 8  # evaluations in which the energy must fall by more than rounding errors may hide
_HIDDEN = 0.5  # the share of the energy that they may hide, times the squared resolution
_NOISY = 10.0  # times as much, by which an energy may then exceed the best one
_FINEST = 12  # largest number of finer chords for each chord that was optimised


class Run:
    """The solve of one problem.

    `question` is the next path to evaluate, and None at the end. `take` receives the answer.

    Args:
        problem: The problem.
        index: Index of the problem among those that are solved side by side.
        metrics: The metrics, coarse to fine.
        options: The options of the solve.
        ends: For each metric, its values at the ends, as in `Metric.energies`.
        state: A result of `state`, from which the run is resumed; None starts a new run.
    """

    def __init__(
        self,
        problem: Problem,
        index: int,
        metrics: Sequence[Metric],
        options: Options,
        ends: Sequence[dict],
        state: dict[str, Any] | None = None,
    ):
        self.problem, self.index, self.metrics = problem, index, metrics
        self.options, self.ends = options, ends
        self.question: Question | None = None
        self.result: Geodesic | None = None
        self.log: list[PathEnergy] = []  # the answers since the stored state
        self._bounds: dict[int, float] = {}
        if state is None:
            self.now = Standing(0, 0, [], **self._fresh(problem.starts[0]))
        else:
            self.now = Standing(**state["standing"])
        self._keep()
        self._steps = self._solve()
        self._advance(None)
        for answer in [] if state is None else state["log"]:
            departure = answer["departure"] and Departure(**answer["departure"])
            self.take(PathEnergy(**answer | {"departure": departure}))

    def take(self, answer: PathEnergy) -> list[Iterate]:
        """Continue with the answer to the question; return the iterates up to the next question."""
        self.log.append(answer)
        return self._advance(answer)

    def state(self) -> dict[str, Any]:
        """The state of the run: the progress at the last iteration, and the answers since then."""
        names = [item.name for item in fields(PathEnergy)]
        log: list[dict[str, Any]] = []
        for answer in self.log:
            log.append({name: getattr(answer, name) for name in names})
            if answer.departure is not None:
                log[-1]["departure"] = dict(vars(answer.departure))
        return {"standing": self._kept, "log": log}

    def _fresh(self, path: Tensor) -> dict[str, Any]:
        """The progress of a solve that begins at a path."""
        return {
            "stage": 0,
            "used": 0,
            "status": "converged",
            "path": path,
            "evals": 0,
            "numbers": [],
            "limit": 0,
            "before": 0,
            "chords": self.options.num_quadrature,
            "coarse_energy": None,
            "best_path": path,
            "best_energy": math.inf,
            "close": 0,
            "iterates": [],
            "first": 0,
            "estimated": False,
            "solver": None,
        }

    def _keep(self) -> None:
        """Store the progress for checkpoints."""
        self._kept = {item.name: getattr(self.now, item.name) for item in fields(Standing)}
        self._kept |= {"found": list(self.now.found), "iterates": list(self.now.iterates)}
        self.log = []

    def _advance(self, answer: PathEnergy | None) -> list[Iterate]:
        """Continue to the next question, and return the iterates up to there."""
        self.question, iterates = None, []
        steps: Any = self._steps  # it takes an answer after a question, and None after an iterate
        try:
            step = steps.send(answer)
            while isinstance(step, Iterate):
                iterates.append(step)
                step = next(steps)
            self.question = step
        except StopIteration as end:
            self.result = end.value
        return iterates

    # The following generators yield questions and iterates, and receive the answers to questions.

    def _solve(self) -> Generator[Question | Iterate, PathEnergy, Geodesic]:
        """The geodesic of least energy, among those from all starts."""
        now, starts = self.now, self.problem.starts
        while now.start < len(starts):
            while now.stage < len(self.metrics) and now.status not in _FAILED:
                yield from self._descend()
            found = yield from self._measure()
            now.found, now.spent = [*now.found, found], now.spent + now.used
            now.start += 1
            if now.start < len(starts):
                for name, value in self._fresh(starts[now.start]).items():
                    setattr(now, name, value)
        return replace(min(now.found, key=_rank), num_evals=now.spent)

    def _descend(self) -> Generator[Question | Iterate, PathEnergy, None]:
        """Minimise the energy under one metric, on coarse curves first."""
        now, options = self.now, self.options
        for_start = (options.max_evals - now.spent) // (len(self.problem.starts) - now.start)
        budget = (for_start - now.used) // (len(self.metrics) - now.stage)
        if not now.numbers:
            now.evals, now.before, now.coarse_energy = 0, 0, None
            now.chords = options.num_quadrature
            now.iterates, now.numbers = [], [len(now.path)]
            if budget >= _LEAST_BUDGET and self._may_begin_coarse():
                now.numbers = numbers_of_points(now.path)
            self._begin(self._curve(now.path, now.numbers[0]), budget)
        while now.numbers:
            now.status = yield from self._iterate()
            final = len(now.numbers) == 1 and now.status != "lost"
            if final or now.status in _FAILED:
                now.numbers = []
            elif now.status != "lost" and now.solver is not None:
                now.numbers = now.numbers[1:]
                now.coarse_energy, now.before = now.best_energy, now.before + 1
                path = self._curve(now.best_path, now.numbers[0])
                state = options.solver.prolong(now.solver, path[1:-1].flatten(1))
                self._begin(path, budget, state)
            else:
                now.numbers, now.coarse_energy, now.before = now.numbers[-1:], None, 0
                now.chords = options.num_quadrature + 1  # it is a hard problem
                self._begin(now.path, budget)
        if math.isfinite(now.best_energy):
            now.path = self._curve(now.best_path, len(now.path))
        now.used, now.stage = now.used + now.evals, now.stage + 1

    def _may_begin_coarse(self) -> bool:
        """Whether a solve from this start may begin on coarse curves.

        On a coarse curve, energies of several chords a segment are nearly right. Others can be far
        too low.
        """
        guessed = self.now.stage == 0 and any(self.problem.guessed[self.now.start :][:1])
        chords = isinstance(self.metrics[0], PullbackMetric) and self.options.num_quadrature > 1
        return self.options.solver.coarse_first and guessed and chords

    def _begin(self, path: Tensor, budget: int, solver: dict[str, Any] | None = None) -> None:
        """Begin on another curve, `(n, *shape)`, with the state from which the solver goes on."""
        now = self.now
        now.best_path, now.best_energy, now.solver = path, math.inf, solver
        now.close, now.limit, now.first = 0, budget, len(now.iterates)
        if len(now.numbers) > 1:
            now.limit = min(budget // 2, now.evals + _MOST_COARSE)
        self._keep()

    def _iterate(self) -> Generator[Question | Iterate, PathEnergy, str]:
        """Iterate on one curve until the solver or the budget ends.

        Returns:
            The status, or "lost" if the coarse curve before this one had too little energy, or led
            away from the data.
        """
        now, solver = self.now, self.options.solver
        patience, rtol = max(1, _PATIENCE - now.before), self.options.rtol
        if len(now.path) == 2:
            return "converged"
        whole, final = now.best_path, len(now.numbers) == 1
        flat = float(0.5 * (len(whole) - 1) * (whole[1:] - whole[:-1]).square().sum())
        given = [] if now.solver is None else [now.solver]
        steps = solver.iterate(whole[1:-1].flatten(1), flat, now.limit, *given)
        answer: tuple[float, Tensor] | None = None
        excess: float | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration:
                return "max_evals" if excess is None else "converged"
            if isinstance(step, Tensor):
                if now.evals >= now.limit:
                    return "max_evals"
                first = math.isinf(now.best_energy)
                checked = first and final and now.coarse_energy is not None
                found = yield from self._evaluate(step, checked)
                energy, gradient = float(found[0].segments.sum()), found[1]
                if not (math.isfinite(energy) and gradient.isfinite().all()):
                    return "lost" if checked else "nonfinite"
                chords = (len(whole) - 1) / (len(now.path) - 1)  # over those of the path itself
                if first and not now.before and found[0].resolution * chords < _LEAST_RESOLUTION:
                    return "rounding"
                if checked and self._is_lost(found[0], energy):
                    return "lost"
                if energy < now.best_energy:
                    now.best_energy, now.best_path = energy, self._whole(step.detach())
                if self._stalls(energy, found[0].resolution):
                    return "converged"
                answer = energy, gradient
                continue
            answer, energy, excess = None, step.energy, step.excess
            near = excess is not None and excess <= rtol * abs(energy)
            now.close = now.close + 1 if near else 0
            above_bound = energy - self._lower_bound()
            at_bound = excess is not None and 0 <= above_bound <= rtol * abs(energy)
            now.iterates = [*now.iterates, (self._num_evals(), energy)]
            ended = now.close >= patience or at_bound
            now.estimated = excess is not None
            if step.state is not None:
                now.solver = step.state
                if not ended:
                    self._keep()
            yield self._seen(step.points, energy, iteration=True)
            if ended:
                return "converged"

    def _stalls(self, energy: float, resolution: float) -> bool:
        """Whether the energy on this curve falls by no more than rounding errors may hide.

        A step that is far too long has a much higher energy. It says nothing about rounding.
        """
        now, num = self.now, self._num_evals()
        before = [e for n, e in now.iterates[now.first :] if n <= num - _STALL]
        hidden = _HIDDEN * abs(now.best_energy) / resolution**2
        if not (now.estimated and before and energy - now.best_energy <= _NOISY * hidden):
            return False
        return min(before) - now.best_energy <= hidden

    def _evaluate(
        self, points: Tensor, departures: bool
    ) -> Generator[Question | Iterate, PathEnergy, tuple[PathEnergy, Tensor]]:
        """The energy of the points between the ends, and its gradient `(n - 2, d)` in them."""
        self.now.evals += 1
        points = points.detach().requires_grad_()
        with torch.enable_grad():
            fine = smooth(self._whole(points), self.now.chords)
        answer = yield Question(self.now.stage, fine.detach(), True, departures)
        gradient = torch.autograd.grad(fine, points, answer.gradient)[0]
        yield self._seen(points.detach(), float(answer.segments.sum()), iteration=False)
        return answer, gradient

    def _seen(self, points: Tensor, energy: float, iteration: bool) -> Iterate:
        path = self._curve(self._whole(points), len(self.now.path))
        return Iterate(path, energy, self._num_evals(), self.index, iteration)

    def _curve(self, curve: Tensor, num: int) -> Tensor:
        """A curve by `num` points, with its ends bit for bit."""
        if len(curve) == num:
            return curve
        return self._whole(with_points(curve, num)[1:-1])

    def _is_lost(self, answer: PathEnergy, energy: float) -> bool:
        """Whether the coarse curve had too little energy, or its refinement leaves the data."""
        coarse, departure = self.now.coarse_energy, answer.departure
        assert coarse is not None
        off_data = departure is not None and departure.on_data is False
        return off_data or energy > coarse + _LARGEST_JUMP * abs(coarse)

    def _measure(self) -> Generator[Question | Iterate, PathEnergy, Geodesic]:
        """The geodesic along the path that was found, by its energy on a finer sampling."""
        self._keep()
        now = self.now
        now.stage, metric = len(self.metrics) - 1, self.metrics[-1]
        before, factor = now.best_energy, now.chords
        while True:
            factor *= 2
            fine, status = smooth(now.path, factor), now.status
            answer = yield Question(now.stage, fine, differentiate=False, departures=True)
            energy = float(answer.segments.cpu().double().sum())
            change = (energy - before) / abs(energy) if energy else 0.0
            departure = answer.departure
            settled = departure is None or departure.shows_leaps(len(now.path))
            if (
                not math.isfinite(energy)
                or (settled and abs(change) <= SETTLED)
                or factor >= _FINEST * now.chords
                or answer.resolution < _LEAST_TO_REFINE
            ):
                break
            before = energy
        resolution = answer.resolution * factor / now.chords  # on the chords that were optimised
        if len(now.path) > 2 and resolution < _LEAST_RESOLUTION:
            status = "rounding"
        # rounding errors alone can change the energy by this share; all energy of one point is such
        hidden = status == "rounding" or abs(change) * answer.resolution**2 <= 1
        if hidden or not (fine[1:] - fine[:-1]).any():
            change = 0.0
        if not math.isfinite(energy):  # perhaps only on the finer sampling
            status = "nonfinite"
        lengths = segment_lengths(fine)
        if math.isfinite(energy) and not metric.flat_pace:
            lengths = metric.lengths_from(fine, answer.segments)
        lengths = lengths.cpu().double()
        arc = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        even = torch.linspace(0, 1, len(now.path), dtype=torch.float64)
        return Geodesic(
            path=points_at(fine, arc, even),
            energy=energy,
            lower_bound=self._lower_bound(),
            num_evals=now.used,
            status=status,
            iterates=tuple(now.iterates),
            curve=fine,
            arc=arc,
            nodes=now.path,
            on_data=None if departure is None else departure.on_data,
            energy_change=change if math.isfinite(change) else 0.0,
        )

    def _lower_bound(self) -> float:
        """The lower bound of the energy under the metric of this stage."""
        stage, problem = self.now.stage, self.problem
        if stage not in self._bounds:
            metric, ends = self.metrics[stage], self.ends[stage]
            bound = metric.lower_bound(problem.x0, problem.x1, problem.pair, ends=ends)
            self._bounds[stage] = float(bound)
        return self._bounds[stage]

    def _num_evals(self) -> int:
        return self.now.spent + self.now.used + self.now.evals

    def _whole(self, points: Tensor) -> Tensor:
        x0, x1 = self.problem.x0, self.problem.x1
        return torch.cat([x0[None], points.view(-1, *x0.shape), x1[None]])


def _rank(found: Geodesic) -> tuple[bool, float]:
    return found.status in _FAILED, found.energy if math.isfinite(found.energy) else math.inf
