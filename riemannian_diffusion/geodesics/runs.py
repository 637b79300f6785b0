"""The solve of one problem, which requests evaluations and processes their results."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_kind, check_not_negative, check_whole
from riemannian_diffusion.geodesics.outcome import SETTLED, Geodesic
from riemannian_diffusion.geodesics.problem import Problem
from riemannian_diffusion.geodesics.solvers import PathLBFGS, Solver
from riemannian_diffusion.metrics import Departure, Metric, PathEnergy
from riemannian_diffusion.paths import points_at, refine, segment_lengths, smooth

_FAILED = ("nonfinite", "rounding")
_LEAST_RESOLUTION = 2.0  # smallest length of chords, in rounding errors of the embedding
RTOL = 1e-4  # default relative tolerance
_PATIENCE = 3  # number of iterations in a row that must be close to the minimum
_LEAST_TO_REFINE = 20.0  # smallest resolution at which a finer sampling shows more than rounding
_FINEST = 8  # largest number of finer sub-chords for each sub-chord that was optimised


@dataclass(frozen=True)
class Options:
    """Options of a solve.

    Attributes:
        num_quadrature: Number of sub-chords of each segment, at least 1.
        solver: The solver.
        rtol: Largest share of the energy by which a converged path may lie above the minimum, as
            the solver estimates it.
        max_evals: Largest number of evaluations of energy and gradient for each problem.

    Raises:
        ValueError: If an option is out of range.
    """

    num_quadrature: int = 3
    solver: Solver = field(default_factory=PathLBFGS)
    rtol: float = RTOL
    max_evals: int = 200

    def __post_init__(self):
        check_whole(1, num_quadrature=self.num_quadrature, max_evals=self.max_evals)
        check_not_negative(rtol=self.rtol)
        check_kind(Solver, solver=self.solver)


@dataclass(frozen=True, eq=False)
class Iterate:
    """The state of a solve after an evaluation, or at the end of an iteration.

    Attributes:
        path: The path that was evaluated or that ends the iteration, `(K, *shape)`.
        energy: Optimised energy of this path.
        num_evals: Number of evaluations of energy and gradient for this pair so far.
        pair: Index of the problem among those that are solved side by side.
        iteration: Whether this state ends an iteration.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore
        >>> from riemannian_diffusion import TangentNormalMetric
        >>> from riemannian_diffusion import geodesic
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> metric = TangentNormalMetric(score)
        >>> seen = []  # the callback receives iterates
        >>> _ = geodesic(metric, circle[0], circle[9], callback=seen.append)
        >>> seen[0].energy >= seen[-1].energy
        True
    """

    path: Tensor
    energy: float
    num_evals: int
    pair: int = 0
    iteration: bool = True


@dataclass(frozen=True, eq=False)
class Question:
    """A request for the energy of a path under one of the metrics.

    Attributes:
        stage: Index of the metric.
        path: The path, `(K, *shape)`.
        differentiate: Whether the gradient is needed, too.
        departures: Whether to return how far the path departs from the data, too.
    """

    stage: int
    path: Tensor
    differentiate: bool
    departures: bool = False


@dataclass
class Standing:
    """The progress of the solve of one problem, from which it can be resumed.

    Attributes:
        start: Index of the start.
        spent: Number of evaluations from earlier starts.
        found: The geodesics from earlier starts.
        stage: Index of the metric.
        used: Number of evaluations from this start under earlier metrics.
        status: Status with which the previous metric ended.
        path: The path from which the solve under this metric started.
        evals: Number of evaluations under this metric.
        best_path: The path of least energy under this metric.
        best_energy: Energy of `best_path`.
        close: Number of the latest iterations in a row that were close to the minimum.
        iterates: Number of evaluations and energy at the end of each iteration.
        solver: The state of the solver after the last iteration; None before the first.
    """

    start: int
    spent: int
    found: list[Geodesic]
    stage: int
    used: int
    status: str
    path: Tensor
    evals: int
    best_path: Tensor
    best_energy: float
    close: int
    iterates: list[tuple[int, float]]
    solver: dict[str, Any] | None


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
            "best_path": path,
            "best_energy": math.inf,
            "close": 0,
            "iterates": [],
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
        """Minimise the energy under one metric."""
        now, options = self.now, self.options
        if now.solver is None:
            now.evals, now.close, now.iterates = 0, 0, []
            now.best_path, now.best_energy = now.path, math.inf
            self._keep()
        for_start = (options.max_evals - now.spent) // (len(self.problem.starts) - now.start)
        budget = (for_start - now.used) // (len(self.metrics) - now.stage)
        now.status = yield from self._iterate(budget)
        now.path, now.used, now.stage = now.best_path, now.used + now.evals, now.stage + 1
        now.solver = None

    def _iterate(self, budget: int) -> Generator[Question | Iterate, PathEnergy, str]:
        """Iterate until the solver or the budget ends; returns the status."""
        now, solver, rtol = self.now, self.options.solver, self.options.rtol
        if len(now.path) == 2:
            return "converged"
        flat = float(0.5 * (len(now.path) - 1) * (now.path[1:] - now.path[:-1]).square().sum())
        given = [] if now.solver is None else [now.solver]
        steps = solver.iterate(now.path[1:-1].flatten(1), flat, budget, *given)
        answer: tuple[float, Tensor] | None = None
        excess: float | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration:
                return "max_evals" if excess is None else "converged"
            if isinstance(step, Tensor):
                if now.evals >= budget:
                    return "max_evals"
                energy, gradient, resolution = yield from self._evaluate(step)
                if not (math.isfinite(energy) and gradient.isfinite().all()):
                    return "nonfinite"
                if now.evals == 1 and resolution < _LEAST_RESOLUTION:
                    return "rounding"
                if energy < now.best_energy:
                    now.best_energy, now.best_path = energy, self._whole(step.detach())
                answer = energy, gradient
                continue
            answer, energy, excess = None, step.energy, step.excess
            now.iterates = [*now.iterates, (self._num_evals(), energy)]
            near = excess is not None and excess <= rtol * abs(energy)
            now.close = now.close + 1 if near else 0
            above_bound = energy - self._lower_bound()
            at_bound = excess is not None and 0 <= above_bound <= rtol * abs(energy)
            ended = now.close >= _PATIENCE or at_bound
            if step.state is not None:
                now.solver = step.state
                if not ended:
                    self._keep()
            yield Iterate(self._whole(step.points), energy, self._num_evals(), self.index)
            if ended:
                return "converged"

    def _evaluate(
        self, points: Tensor
    ) -> Generator[Question | Iterate, PathEnergy, tuple[float, Tensor, float]]:
        """Energy, gradient `(K - 2, d)` and resolution of the points between the ends."""
        self.now.evals += 1
        points = points.detach().requires_grad_()
        with torch.enable_grad():
            fine = refine(self._whole(points), self.options.num_quadrature)
        answer = yield Question(self.now.stage, fine.detach(), differentiate=True)
        gradient = torch.autograd.grad(fine, points, answer.gradient)[0]
        energy = float(answer.segments.sum())
        path = self._whole(points.detach())
        yield Iterate(path, energy, self._num_evals(), self.index, iteration=False)
        return energy, gradient, answer.resolution

    def _measure(self) -> Generator[Question | Iterate, PathEnergy, Geodesic]:
        """The geodesic along the path that was found, by its energy on a finer sampling."""
        self._keep()
        now = self.now
        now.stage, metric = len(self.metrics) - 1, self.metrics[-1]
        before, factor = now.best_energy, self.options.num_quadrature
        while True:
            factor *= 2
            fine, status = refine(now.path, factor), now.status
            answer = yield Question(now.stage, fine, differentiate=False, departures=True)
            energy = float(answer.segments.cpu().double().sum())
            change = (energy - before) / abs(energy) if energy else 0.0
            if (
                not math.isfinite(energy)
                or abs(change) <= SETTLED
                or factor >= _FINEST * self.options.num_quadrature
                or answer.resolution < _LEAST_TO_REFINE
            ):
                break
            before = energy
        if not math.isfinite(energy):  # perhaps only on the finer sampling
            status = "nonfinite"
        if math.isfinite(energy) and not metric.flat_pace:
            curve, lengths = fine, metric.lengths_from(fine, answer.segments)
        else:
            curve = smooth(now.path, factor)
            lengths = segment_lengths(curve)
        lengths = lengths.cpu().double()
        arc = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        even = torch.linspace(0, 1, len(now.path), dtype=torch.float64)
        return Geodesic(
            path=points_at(curve, arc, even),
            energy=energy,
            lower_bound=self._lower_bound(),
            num_evals=now.used,
            status=status,
            iterates=tuple(now.iterates),
            curve=curve,
            arc=arc,
            nodes=now.path,
            on_data=None if answer.departure is None else answer.departure.on_data,
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
