"""The geodesic between two points: the problem, and the outcome of its solution."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from riemannian_diffusion.arguments import (
    check_callable,
    check_kind,
    check_not_negative,
    check_points,
    check_whole,
    kind_of,
)
from riemannian_diffusion.geodesics.energies import Answer, Ask, Energies
from riemannian_diffusion.geodesics.solvers import PathLBFGS, Solver
from riemannian_diffusion.metrics import Metric, PullbackMetric
from riemannian_diffusion.paths import lerp, points_at, refine, segment_lengths, slerp

_MESSAGES = {
    "converged": "The energy no longer falls by more than `rtol`.",
    "max_evals": "The energy was still falling when `max_evals` was reached: raise it, or take a "
    "coarser `rtol`.",
    "nonfinite": "The model returned a non-finite value; the path is the best finite one before "
    "it. Check the inputs, or run the network in a wider dtype.",
    "rounding": "Neighbouring points differ by less than the network's dtype resolves; the path is "
    "the start. Run the network in a wider dtype, or give the path fewer points.",
}
_FAILED = ("nonfinite", "rounding")
_LEAST_RESOLUTION = 2.0  # chords over the rounding of what they are differences of

T = TypeVar("T")
Start = str | Tensor | Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Geodesic:
    """A path of least energy found between two points, and how it was found.

    Attributes:
        path: `(K, *shape)`; its ends are the given points bit for bit.
        energy: Energy of the path, on a sampling twice as fine as the one optimised. Points can be
            placed so that an optimised energy misses what lies between them; this one shows it.
        energy_history: The optimised energy at the start and after every iteration (for a sequence
            of metrics: of the last one; for several starts: from the best).
        lower_bound: No path between these points has less energy in a pullback metric; 0 for other
            metrics.
        num_evals: Evaluations of energy and gradient spent, over all starts and metrics.
        status: "converged", "max_evals", "nonfinite" or "rounding"; `message` says what to do.
    """

    path: Tensor
    energy: float
    energy_history: tuple[float, ...]
    lower_bound: float
    num_evals: int
    status: str
    _fine_path: Tensor = field(repr=False)
    # metric length up to each point of the fine path; flat length where the energy is not finite
    _arc: Tensor = field(repr=False)

    @property
    def message(self) -> str:
        """A sentence on the status."""
        return _MESSAGES[self.status]

    @property
    def length(self) -> float:
        """Metric length of the path, on the finer sampling."""
        return float(self._arc[-1]) if math.isfinite(self.energy) else math.nan

    def __call__(self, u: Tensor | Sequence[float] | float) -> Tensor:
        """Points at fractions of the metric length.

        Args:
            u: `(U,)` or a single number, in [0, 1]; 0 and 1 give the end points bit for bit.

        Returns:
            `(U, *shape)`, or `shape` for a single number.

        Raises:
            ValueError: If a fraction lies outside [0, 1].
        """
        try:
            fractions = torch.as_tensor(u, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"`u` must be numbers in [0, 1], but got {u!r}.") from error
        if fractions.ndim > 1:
            raise ValueError(f"`u` must be one number or (U,), but got {tuple(fractions.shape)}.")
        if not ((fractions >= 0) & (fractions <= 1)).all():
            raise ValueError(f"`u` must lie in [0, 1], but got {u}.")
        points = points_at(self._fine_path, self._arc, fractions.reshape(-1))
        return points if fractions.ndim else points[0]


@dataclass(frozen=True)
class Iterate:
    """One iteration of a solver, for callbacks: the whole path and its optimised energy.

    `pair` is the pair's place in a call of `geodesics`.
    """

    path: Tensor
    energy: float
    num_evals: int
    pair: int = 0


def geodesic(
    metric: Metric | Sequence[Metric],
    x0: Tensor,
    x1: Tensor,
    *,
    num_points: int = 17,
    num_quadrature: int = 3,
    init: Start | Sequence[Start] = "slerp",
    solver: Solver | None = None,
    rtol: float = 1e-3,
    max_evals: int = 200,
    callback: Callable[[Iterate], None] | None = None,
) -> Geodesic:
    """Find a path of least energy between two points.

    The unknowns are the points between the ends. The energy optimised sums over `num_quadrature`
    sub-chords of every straight segment: an energy of the points alone can be lowered by leaping
    between them. The solve is local, it ends in the valley of its start, and deterministic.

    Args:
        metric: A metric, or several, coarse to fine: each is solved from the path before it, with
            an equal share of the evaluations that are left.
        x0: First point, `shape`. Solved in float64 if it or `x1` is, else in float32.
        x1: Last point, `shape`.
        num_points: Points of the path, at least 2.
        num_quadrature: Sub-chords per segment, at least 1.
        init: Where to start: "slerp", "lerp", a path `(num_points, *shape)` whose ends are `x0` and
            `x1`, or a callable `(x0, x1, num_points) -> path`. Or a list of these: each start is
            solved from, with an equal share of the evaluations that are left, and the path of least
            `Geodesic.energy` is returned.
        solver: `PathLBFGS()` where None.
        rtol: Converged when three iterations in a row lower the energy by less than this share of
            it, or when it is within this share of the lower bound.
        max_evals: Evaluations of energy and gradient at most, over all starts and metrics.
        callback: Called with an `Iterate` after every iteration.

    Returns:
        The `Geodesic`; not converging is a status, not an error.

    Raises:
        ValueError: If the points differ in shape or are not finite, or an argument is out of range.
    """
    inits = init if isinstance(init, (list, tuple)) else [init]
    options = (num_points, num_quadrature, inits, solver, rtol, max_evals, callback)
    _check_ends(x0, x1)
    for one in inits:
        if isinstance(one, Tensor) and one.ndim != x0.ndim + 1:
            raise ValueError(
                f"`init` must be {(num_points, *x0.shape)}, but got {tuple(one.shape)}."
            )
    return _solve(metric, x0[None], x1[None], *options)[0]


def geodesics(
    metric: Metric | Sequence[Metric],
    x0: Tensor,
    x1: Tensor,
    *,
    num_points: int = 17,
    num_quadrature: int = 3,
    init: Start | Sequence[Start] = "slerp",
    solver: Solver | None = None,
    rtol: float = 1e-3,
    max_evals: int = 200,
    callback: Callable[[Iterate], None] | None = None,
) -> list[Geodesic]:
    """Find paths of least energy for many pairs of points, side by side.

    Each pair is solved as by `geodesic`, but one batch holds the points of all the paths that are
    still being solved, so that a small model keeps a large device busy.

    Args:
        metric: As in `geodesic`, for all pairs; prompts and shared noises may differ between them
            (see `DiffusionScore` and `SharedNoiseScore`).
        x0: First points, `(P, *shape)`.
        x1: Last points, `(P, *shape)`.
        num_points: As in `geodesic`.
        num_quadrature: As in `geodesic`.
        init: As in `geodesic`, for every pair; but paths are `(P, num_points, *shape)`.
        solver: As in `geodesic`.
        rtol: As in `geodesic`.
        max_evals: As in `geodesic`, for each pair.
        callback: Called with an `Iterate`, which names its pair, after every iteration of each.

    Returns:
        A `Geodesic` per pair.

    Raises:
        ValueError: As in `geodesic`.
    """
    check_points(x0=x0, x1=x1)
    if x0.ndim < 2 or x0.shape != x1.shape or x0.numel() == 0:
        raise ValueError(
            "`x0` and `x1` must be points (P, *shape) of one shape, "
            f"but got {tuple(x0.shape)} and {tuple(x1.shape)}."
        )
    inits = init if isinstance(init, (list, tuple)) else [init]
    for one in inits:
        if isinstance(one, Tensor) and (one.ndim != x0.ndim + 1 or len(one) != len(x0)):
            raise ValueError(
                f"`init` must be {(len(x0), num_points, *x0.shape[1:])}, "
                f"but got {tuple(one.shape)}."
            )
    options = (num_points, num_quadrature, inits, solver, rtol, max_evals, callback)
    return _solve(metric, x0, x1, *options)


@torch.inference_mode(False)  # also inside a caller's inference mode the energy has a gradient
def _solve(metric, x0, x1, num_points, num_quadrature, inits, solver, rtol, max_evals, callback):
    """Solve every pair, answering the questions of all that are not done in one go."""
    _check(metric, num_points, num_quadrature, solver, rtol, max_evals, callback)
    metrics = [metric] if isinstance(metric, Metric) else list(metric)
    solver = PathLBFGS() if solver is None else solver
    if not inits:
        raise ValueError("`init` must name at least one start, but got an empty list.")
    dtype = torch.float64 if torch.float64 in (x0.dtype, x1.dtype) else torch.float32
    x0, x1 = x0.detach().to(dtype, copy=True), x1.detach().to(dtype, copy=True)
    solves = {}
    for pair, ends in enumerate(zip(x0, x1, strict=True)):
        mine = [i[pair] if isinstance(i, Tensor) and i.ndim > x0.ndim else i for i in inits]
        starts = [_initial_path(one, *ends, num_points) for one in mine]
        options = (metrics, pair, num_quadrature, solver, rtol, callback)
        solves[pair] = _from_every_start(starts, max_evals, options)
    found, answers, energies = {}, dict.fromkeys(solves), Energies()
    while answers:
        asks = {}
        for pair, answer in answers.items():
            try:
                asks[pair] = solves[pair].send(answer)
            except StopIteration as end:
                found[pair] = end.value
        answers = dict(zip(asks, energies(list(asks.values())), strict=True))
    return [found[pair] for pair in solves]


Asking = Generator[Ask, Answer, T]


def _from_every_start(starts: list[Tensor], max_evals: int, options: tuple) -> Asking[Geodesic]:
    """The geodesic of least energy, of those found from the starts."""
    found, num_evals = [], 0
    for i, start in enumerate(starts):
        budget = (max_evals - num_evals) // (len(starts) - i)
        found.append((yield from _descend(start, budget, num_evals, *options)))
        num_evals += found[-1].num_evals
    best = min(found, key=_rank)
    return replace(best, num_evals=num_evals)


def _rank(found: Geodesic) -> tuple[bool, float]:
    return found.status in _FAILED, found.energy if math.isfinite(found.energy) else math.inf


def _descend(
    path, max_evals, evals_before, metrics, pair, num_quadrature, solver, rtol, callback
) -> Asking[Geodesic]:
    """The geodesic of the last metric, from a path by way of the metrics before it."""
    num_evals, history, status = 0, (), "converged"
    for i, stage in enumerate(metrics):
        budget = (max_evals - num_evals) // (len(metrics) - i)
        before = evals_before + num_evals
        solve = _Solve(stage, path, pair, num_quadrature, budget, before, callback)
        status = yield from solve.run(solver, rtol)
        path, history = solve.best_path, tuple(solve.history)
        num_evals += solve.num_evals
        if status in _FAILED:
            break
    stage = metrics[-1]
    fine = refine(path, 2 * num_quadrature)
    energies = (yield Ask(stage, fine, pair)).energies.cpu().double().clamp(min=0)
    lengths = (2 * energies / len(energies)).sqrt()
    energy = float(energies.sum())
    if not math.isfinite(energy):  # also where only the finer sampling meets such values
        status, lengths = "nonfinite", segment_lengths(fine).cpu().double()
    arc = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    bound = yield from _lower_bound(stage, path, pair)
    return Geodesic(path, energy, history, bound, num_evals, status, fine, arc)


def _lower_bound(metric: Metric, path: Tensor, pair: int) -> Asking[float]:
    """Of the energy: that of the one chord between the embedded ends."""
    if type(metric).energy is not PullbackMetric.energy:
        return 0.0
    answer = yield Ask(metric, path[[0, -1]], pair)
    return float(answer.energies)


class _Solve:
    """One metric's solve: counts evaluations, remembers the best path, decides when to stop."""

    def __init__(self, metric, path, pair, num_quadrature, max_evals, evals_before, callback):
        self.metric, self.best_path, self.pair = metric, path, pair
        self.num_quadrature, self.callback = num_quadrature, callback
        self.x0, self.x1, self.shape = path[:1], path[-1:], path.shape[1:]
        self.max_evals, self.evals_before = max_evals, evals_before
        self.num_evals, self.best_energy, self.history = 0, math.inf, []

    def run(self, solver: Solver, rtol: float) -> Asking[str]:
        """Iterate to the end; returns the status."""
        path = self.best_path
        if len(path) == 2:
            return "converged"
        bound = yield from _lower_bound(self.metric, path, self.pair)
        flat = float(0.5 * (len(path) - 1) * (path[1:] - path[:-1]).square().sum())
        steps = solver.iterate(path[1:-1].flatten(1), flat, self.max_evals)
        told, calm = None, 0
        while True:
            try:
                step = steps.send(told)
            except StopIteration:
                return "converged" if solver.patience is not None else "max_evals"
            if isinstance(step, Tensor):
                if self.num_evals >= self.max_evals:
                    return "max_evals"
                energy, gradient, resolution = yield from self._evaluate(step)
                if not (math.isfinite(energy) and gradient.isfinite().all()):
                    return "nonfinite"
                if self.num_evals == 1 and resolution < _LEAST_RESOLUTION:
                    return "rounding"
                if energy < self.best_energy:
                    self.best_energy, self.best_path = energy, self._whole(step.detach())
                told = energy, gradient
                continue
            (points, energy), told = step, None
            fell = self.history[-1] - energy if self.history else math.inf
            self.history.append(energy)
            if self.callback is not None:
                num_evals = self.evals_before + self.num_evals
                self.callback(Iterate(self._whole(points), energy, num_evals, self.pair))
            calm = calm + 1 if fell <= rtol * abs(energy) else 0
            if solver.patience is None:
                continue
            if calm >= solver.patience or energy - bound <= rtol * energy:
                return "converged"

    def _evaluate(self, points: Tensor) -> Asking[tuple[float, Tensor, float]]:
        """Energy, gradient `(K - 2, d)` and resolution of the points between the ends."""
        self.num_evals += 1
        points = points.detach().requires_grad_()
        with torch.enable_grad():
            fine = refine(self._whole(points), self.num_quadrature)
        answer = yield Ask(self.metric, fine.detach(), self.pair, differentiate=True)
        gradient = torch.autograd.grad(fine, points, answer.gradient)[0]
        return float(answer.energies.sum()), gradient, answer.resolution

    def _whole(self, points: Tensor) -> Tensor:
        return torch.cat([self.x0, points.view(-1, *self.shape), self.x1])


def _check_ends(x0: Tensor, x1: Tensor) -> None:
    check_points(x0=x0, x1=x1)
    if x0.shape != x1.shape or x0.ndim == 0 or x0.numel() == 0:
        raise ValueError(
            "`x0` and `x1` must be points of one shape, "
            f"but got {tuple(x0.shape)} and {tuple(x1.shape)}."
        )


def _check(metric, num_points, num_quadrature, solver, rtol, max_evals, callback) -> None:
    stages = metric if isinstance(metric, Sequence) else [metric]
    if not stages or not all(isinstance(stage, Metric) for stage in stages):
        raise ValueError(f"`metric` must be a Metric or a sequence of them, but got {metric!r}.")
    check_whole(2, num_points=num_points)
    check_whole(1, num_quadrature=num_quadrature, max_evals=max_evals)
    check_not_negative(rtol=rtol)
    if solver is not None:
        check_kind(Solver, solver=solver)
    if callback is not None:
        check_callable(callback=callback)


def _initial_path(init, x0: Tensor, x1: Tensor, num_points: int) -> Tensor:
    if isinstance(init, str):
        init = {"slerp": slerp, "lerp": lerp}.get(init, init)
    if not (isinstance(init, Tensor) or callable(init)):
        raise ValueError(f"`init` must be 'slerp', 'lerp', a path or a callable, but got {init!r}.")
    path = init if isinstance(init, Tensor) else init(x0, x1, num_points)
    if not isinstance(path, Tensor):
        raise ValueError(f"`init` must return a path, but gave {kind_of(path)}.")
    path = path.detach().to(x0)
    if path.shape != (num_points, *x0.shape):
        raise ValueError(f"`init` must be {(num_points, *x0.shape)}, but got {tuple(path.shape)}.")
    if not path.isfinite().all():
        raise ValueError("`init` must be finite.")
    return torch.cat([x0[None], path[1:-1], x1[None]])
