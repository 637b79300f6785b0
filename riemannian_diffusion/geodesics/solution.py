"""The geodesic between two points: the problem, and the outcome of its solution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from riemannian_diffusion.geodesics.solvers import PathLBFGS, Solver
from riemannian_diffusion.metrics import Metric, PullbackMetric
from riemannian_diffusion.paths import lerp, points_at, refine, segment_lengths, slerp

_MESSAGES = {
    "converged": "The energy no longer falls by more than `rtol`.",
    "max_evals": "The energy was still falling when `max_evals` was reached: raise it, or take a "
    "coarser `rtol`.",
    "nonfinite": "The model returned a non-finite value; the path is the best finite one before "
    "it. Check the inputs, or run the network in a wider dtype.",
}


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
        status: "converged", "max_evals" or "nonfinite"; `message` says what to do.
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
        fractions = torch.as_tensor(u, dtype=torch.float64, device="cpu")
        if not ((fractions >= 0) & (fractions <= 1)).all():
            raise ValueError(f"`u` must lie in [0, 1], but got {u}.")
        points = points_at(self._fine_path, self._arc, fractions.reshape(-1))
        return points if fractions.ndim else points[0]


@dataclass(frozen=True)
class Iterate:
    """One iteration of a solver, for callbacks: the whole path and its optimised energy."""

    path: Tensor
    energy: float
    num_evals: int


@torch.inference_mode(False)  # also inside a caller's inference mode the energy has a gradient
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
    _check(metric, x0, x1, num_points, num_quadrature, rtol, max_evals)
    metrics = [metric] if isinstance(metric, Metric) else list(metric)
    solver = PathLBFGS() if solver is None else solver
    dtype = torch.float64 if torch.float64 in (x0.dtype, x1.dtype) else torch.float32
    x0, x1 = x0.detach().to(dtype, copy=True), x1.detach().to(dtype, copy=True)
    inits = init if isinstance(init, (list, tuple)) else [init]
    if not inits:
        raise ValueError("`init` must name at least one start, but got an empty list.")
    starts = [_initial_path(one, x0, x1, num_points) for one in inits]
    found, num_evals = [], 0
    for i, start in enumerate(starts):
        budget = (max_evals - num_evals) // (len(starts) - i)
        solve = partial(_Solve, num_quadrature=num_quadrature, callback=callback)
        found.append(_descend(metrics, start, solve, solver, rtol, budget, num_evals))
        num_evals += found[-1].num_evals
    best = min(found, key=lambda one: one.energy if math.isfinite(one.energy) else math.inf)
    return replace(best, num_evals=num_evals)


def _descend(metrics, path: Tensor, new_solve, solver, rtol, max_evals, evals_before) -> Geodesic:
    """The geodesic of the last metric, from a path by way of the metrics before it."""
    num_evals, history, status = 0, (), "converged"
    for i, stage in enumerate(metrics):
        budget = (max_evals - num_evals) // (len(metrics) - i)
        solve = new_solve(stage, path, max_evals=budget, evals_before=evals_before + num_evals)
        status = solve.run(solver, rtol)
        path, history = solve.best_path, tuple(solve.history)
        num_evals += solve.num_evals
        if status == "nonfinite":
            break
    with torch.no_grad():
        fine = refine(path, 2 * solve.num_quadrature)
        lengths = _within_memory(stage, lambda: segment_lengths(fine, stage)).cpu().double()
        energy = float(0.5 * len(lengths) * lengths.square().sum())
        pulled_back = isinstance(stage, PullbackMetric)
        bound = float(stage.lower_bound(path[0], path[-1])) if pulled_back else 0.0
    if not math.isfinite(energy):  # also where only the finer sampling meets such values
        status, lengths = "nonfinite", segment_lengths(fine).cpu().double()
    arc = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return Geodesic(path, energy, history, bound, num_evals, status, fine, arc)


class _Stop(Exception):
    """Raised by an objective that must not be evaluated again; its text is the status."""


class _Solve:
    """One metric's solve: counts evaluations, remembers the best path, decides when to stop."""

    def __init__(self, metric, path, *, num_quadrature, max_evals, evals_before, callback):
        self.metric, self.best_path, self.num_quadrature = metric, path, num_quadrature
        self.x0, self.x1, self.shape = path[:1], path[-1:], path.shape[1:]
        self.max_evals, self.evals_before, self.callback = max_evals, evals_before, callback
        self.num_evals, self.best_energy, self.history = 0, math.inf, []

    def run(self, solver: Solver, rtol: float) -> str:
        """Iterate to the end; returns the status."""
        start = self.best_path[1:-1].flatten(1)
        if len(start) == 0:
            return "converged"
        with torch.no_grad():
            pulled_back = isinstance(self.metric, PullbackMetric)
            bound = float(self.metric.lower_bound(self.x0[0], self.x1[0])) if pulled_back else 0.0
        try:
            scale = self._scale(self.best_path)
            calm = 0
            for points, energy in solver.iterate(self.objective, start, scale, self.max_evals):
                fell = self.history[-1] - energy if self.history else math.inf
                self.history.append(energy)
                if self.callback is not None:
                    num_evals = self.evals_before + self.num_evals
                    self.callback(Iterate(self._whole(points), energy, num_evals))
                calm = calm + 1 if fell <= rtol * abs(energy) else 0
                if solver.patience is None:
                    continue
                if calm >= solver.patience or energy - bound <= rtol * energy:
                    return "converged"
        except _Stop as stop:
            return str(stop)
        return "converged" if solver.patience is not None else "max_evals"

    def objective(self, points: Tensor) -> tuple[float, Tensor]:
        """Energy and gradient `(K - 2, d)` of the points between the ends."""
        if self.num_evals >= self.max_evals:
            raise _Stop("max_evals")
        self.num_evals += 1
        total, gradient = _within_memory(self.metric, lambda: self._gradient(points))
        energy = float(total)
        if not (math.isfinite(energy) and gradient.isfinite().all()):
            raise _Stop("nonfinite")
        if energy < self.best_energy:
            self.best_energy, self.best_path = energy, self._whole(points.detach())
        return energy, gradient

    @torch.enable_grad()
    def _gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        points = points.detach().requires_grad_()
        total = self.metric.energy(refine(self._whole(points), self.num_quadrature)).sum()
        return total.detach(), torch.autograd.grad(total, points)[0]

    def _whole(self, points: Tensor) -> Tensor:
        return torch.cat([self.x0, points.view(-1, *self.shape), self.x1])

    @torch.no_grad()
    def _scale(self, path: Tensor) -> float:
        flat = 0.5 * (len(path) - 1) * (path[1:] - path[:-1]).square().sum()
        fine = refine(path, self.num_quadrature)
        energies = _within_memory(self.metric, lambda: self.metric.energy(fine))
        return float(energies.sum() / flat.clamp(min=1e-30))


def _within_memory(metric: Metric, function: Callable[[], T]) -> T:
    """The function's value, called again in smaller batches while memory runs out."""
    while True:
        try:
            return function()
        except torch.OutOfMemoryError:
            if not metric.use_less_memory():
                raise


def _check(metric, x0, x1, num_points, num_quadrature, rtol, max_evals) -> None:
    stages = metric if isinstance(metric, Sequence) else [metric]
    if not stages or not all(isinstance(stage, Metric) for stage in stages):
        raise ValueError(f"`metric` must be a Metric or a sequence of them, but got {metric!r}.")
    if x0.shape != x1.shape or x0.ndim == 0:
        raise ValueError(
            "`x0` and `x1` must be points of one shape, "
            f"but got {tuple(x0.shape)} and {tuple(x1.shape)}."
        )
    for name, point in (("x0", x0), ("x1", x1)):
        if not (point.is_floating_point() and point.isfinite().all()):
            raise ValueError(f"`{name}` must be a floating-point tensor of finite values.")
    for name, value, least in (
        ("num_points", num_points, 2),
        ("num_quadrature", num_quadrature, 1),
        ("max_evals", max_evals, 1),
    ):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, but got {value}.")
    if not rtol >= 0:
        raise ValueError(f"`rtol` must not be negative, but got {rtol}.")


def _initial_path(init, x0: Tensor, x1: Tensor, num_points: int) -> Tensor:
    if isinstance(init, str):
        init = {"slerp": slerp, "lerp": lerp}.get(init, init)
    if not (isinstance(init, Tensor) or callable(init)):
        raise ValueError(f"`init` must be 'slerp', 'lerp', a path or a callable, but got {init!r}.")
    path = (init if isinstance(init, Tensor) else init(x0, x1, num_points)).detach().to(x0)
    if path.shape != (num_points, *x0.shape):
        raise ValueError(f"`init` must be {(num_points, *x0.shape)}, but got {tuple(path.shape)}.")
    if not path.isfinite().all():
        raise ValueError("`init` must be finite.")
    return torch.cat([x0[None], path[1:-1], x1[None]])
