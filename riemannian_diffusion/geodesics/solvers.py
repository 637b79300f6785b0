"""Solvers that lower the energy of a path."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_finite, check_whole
from riemannian_diffusion.geodesics.coarse import prolonged
from riemannian_diffusion.paths import solve_second_difference

T = TypeVar("T")
State = dict[str, Any]
Evaluating = Generator[Tensor, tuple[float, Tensor], T]


@dataclass(frozen=True, eq=False)
class Iteration:
    """The end of an iteration of a solver.

    Attributes:
        points: The points between the ends, `(K - 2, d)`.
        energy: Their energy.
        excess: An estimate of how far the energy lies above the minimum; None if the solver has
            none. A solve converges by this estimate, so without it, all evaluations are used.
        state: A state from which the solver can continue: a dict of tensors, numbers and lists of
            these, which is not changed later. None if the solver cannot continue. A checkpoint then
            records every evaluation.

    Examples:
        >>> from riemannian_diffusion import Iteration
        >>> isinstance(Iteration, type)
        True
    """

    points: Tensor
    energy: float
    excess: float | None = None
    state: State | None = None


class Solver(ABC):
    """An algorithm that lowers the energy of a path; `iterate` receives the problem.

    Examples:
        >>> from riemannian_diffusion import PathLBFGS, Solver
        >>> isinstance(PathLBFGS(), Solver)
        True
    """

    # Whether a solve begins on coarse curves, as `prolong` allows.
    coarse_first = False

    @abstractmethod
    def iterate(
        self, points: Tensor, flat_energy: float, max_evals: int, state: State | None = None
    ) -> Generator[Tensor | Iteration, tuple[float, Tensor] | None, None]:
        """Request evaluations and report iterations until the energy falls no more.

        `energy, gradient = yield points` evaluates the points between the ends, `(K - 2, d)`.
        `yield Iteration(points, energy)` ends an iteration. The first iteration ends at the given
        points. A solver that reports no states may leave out the argument `state`.

        Args:
            points: The points of the first path between its ends, `(K - 2, d)`.
            flat_energy: Energy of the first path in flat space.
            max_evals: Largest number of evaluations.
            state: The state of an earlier iteration, after which the solver continues. None starts
                at `points`.
        """

    def prolong(self, state: State, points: Tensor) -> State:
        """The state with which the solver goes on, on a curve with more points.

        It is called if `coarse_first` is True.

        Args:
            state: The state of the last iteration on the coarse curve.
            points: The points between the ends of the curve with more points, `(K - 2, d)`.
        """
        raise NotImplementedError


class PathLBFGS(Solver):
    """Limited-memory BFGS with a preconditioner for paths.

    The Hessian of the energy in flat space is the matrix of second differences along the path. Its
    inverse is the initial inverse Hessian. Changes of long wavelength along the path then converge
    as fast as changes of short wavelength. Time and memory of an iteration grow in proportion to
    the number of points, up to a logarithm. Steps satisfy the strong Wolfe conditions (Nocedal and
    Wright, chapters 3 and 7).

    Args:
        history_size: Number of stored pairs of a step and a change of the gradient, at least 1.
        precondition: Whether to use the preconditioner; False gives plain L-BFGS.
        coarse_first: Whether to begin on smooth curves through a few points. A coarse curve takes
            fewer points of the network for each evaluation, and its steps and changes of the
            gradient serve the finer curve, too. If a coarse curve leaves the data or does not
            converge soon, the solve begins again at its start, with one more chord for each
            segment.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore
        >>> from riemannian_diffusion import TangentNormalMetric
        >>> from riemannian_diffusion import PathLBFGS
        >>> from riemannian_diffusion import geodesic
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> metric = TangentNormalMetric(score)
        >>> geodesic(metric, circle[0], circle[9], solver=PathLBFGS()).status
        'converged'
    """

    def __init__(
        self, history_size: int = 10, precondition: bool = True, coarse_first: bool = True
    ):
        check_whole(1, history_size=history_size)
        self.history_size, self.precondition = history_size, precondition
        self.coarse_first = coarse_first

    def iterate(self, points, flat_energy, max_evals, state=None):
        """Iterate as in `Solver.iterate`."""
        pairs: list[tuple[Tensor, Tensor, float]] = []
        if state is None:
            energy, gradient = yield points
            scale = energy / max(flat_energy, 1e-30)  # the metric's typical size
            if not scale > 1e-6:  # energies with a potential may be about 0
                scale = 1.0
        else:
            points, energy, gradient = state["points"], state["energy"], state["gradient"]
            scale = state["scale"]
            if energy is None:  # the state comes from a coarse curve
                energy, gradient = yield points
            pairs = [(moved, change, rho) for moved, change, rho in state["pairs"]]

        initial = partial(self._initial_inverse, scale)
        report = state is None or state["energy"] is None  # others were reported before
        while True:
            direction = -self._apply_inverse(pairs, initial, gradient)
            slope = _inner(direction, gradient)
            if slope >= 0 and pairs:  # rounding errors have spoiled the history
                pairs = []
                continue
            if report:
                kept = {
                    "points": points,
                    "energy": energy,
                    "gradient": gradient,
                    "scale": scale,
                    "pairs": pairs,
                }
                # the quadratic model of the energy falls by half of the slope
                yield Iteration(points, energy, -0.5 * slope, kept)
            first = 1.0
            if not pairs and not self.precondition:
                first = min(1.0, 1 / float(gradient.abs().sum().clamp(min=1e-30)))
            step = None
            if slope < 0:
                step = yield from _strong_wolfe(points, direction, energy, slope, first)
            if step is None:
                if not pairs:
                    return  # no descent along the preconditioned gradient: a minimum up to rounding
                pairs, report = [], False
                continue
            report = True
            size, energy, new_gradient = step
            change, moved = new_gradient - gradient, size * direction
            points, gradient = points + moved, new_gradient
            curvature = _inner(moved, change)
            if curvature > 0:
                pairs = [*pairs, (moved, change, 1 / curvature)][-self.history_size :]

    def prolong(self, state, points):
        """The state on a curve with more points; see `Solver.prolong`."""
        num = len(points) + 2
        ratio = (len(state["points"]) + 1) / (num - 1)  # a gradient is shared by more points
        pairs = []
        for moved, change, _ in state["pairs"]:
            moved, change = prolonged(moved, num), ratio * prolonged(change, num)
            curvature = _inner(moved, change)
            if curvature > 0:
                pairs.append((moved, change, 1 / curvature))
        unknown = {"energy": None, "gradient": None}
        return {"points": points, **unknown, "scale": state["scale"], "pairs": pairs}

    def _initial_inverse(self, scale: float, gradient: Tensor) -> Tensor:
        """The initial inverse Hessian times a gradient `(K - 2, d)`."""
        if not self.precondition:
            return gradient
        return solve_second_difference(gradient) / ((len(gradient) + 1) * scale)

    @staticmethod
    def _apply_inverse(pairs, initial: Callable[[Tensor], Tensor], gradient: Tensor) -> Tensor:
        weights = []
        for moved, change, rho in reversed(pairs):
            weights.append(rho * _inner(moved, gradient))
            gradient = gradient - weights[-1] * change
        out = initial(gradient)
        if pairs:
            moved, change, rho = pairs[-1]
            out = out / (rho * _inner(change, initial(change)))
        for (moved, change, rho), weight in zip(pairs, reversed(weights), strict=True):
            out = out + (weight - rho * _inner(change, out)) * moved
        return out


class Adam(Solver):
    """Adam whose learning rate falls from `lr` to `final_lr` along a cosine over all evaluations.

    The papers of the Stein score metric and of the score Jacobian metric use it with 500
    evaluations, `max_evals=500`.

    Args:
        lr: First learning rate, in the units of the points.
        final_lr: Last learning rate, in the units of the points, positive and at most `lr`.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore
        >>> from riemannian_diffusion import TangentNormalMetric
        >>> from riemannian_diffusion import Adam
        >>> from riemannian_diffusion import geodesic
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> metric = TangentNormalMetric(score)
        >>> found = geodesic(metric, circle[0], circle[9], solver=Adam(1e-2), max_evals=20)
        >>> found.num_evals <= 20
        True
    """

    def __init__(self, lr: float = 1e-3, final_lr: float = 1e-4):
        check_finite(lr=lr, final_lr=final_lr)
        if not lr >= final_lr > 0:
            raise ValueError(f"`lr` >= `final_lr` > 0 must hold, but got {lr} and {final_lr}.")
        self.lr, self.final_lr = lr, final_lr

    def iterate(self, points, flat_energy, max_evals, state=None):
        """Iterate as in `Solver.iterate`."""
        step = 0
        points = (points if state is None else state["points"]).clone()
        optimizer = torch.optim.Adam([points], lr=self.lr)
        if state is not None:
            step, points.grad = state["step"], state["gradient"].clone()
            if step:
                optimizer.state[points] = {n: m.clone() for n, m in state["moments"].items()}
        while step < max_evals:
            if state is None:
                energy, points.grad = yield points.clone()
                kept = {"points": points.clone(), "gradient": points.grad, "step": step}
                kept["moments"] = {n: m.clone() for n, m in optimizer.state[points].items()}
                yield Iteration(points.clone(), energy, state=kept)
            state = None
            cosine = 0.5 + 0.5 * math.cos(math.pi * step / max(1, max_evals - 1))
            optimizer.param_groups[0]["lr"] = self.final_lr + (self.lr - self.final_lr) * cosine
            optimizer.step()
            step += 1


def _inner(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(1).cpu().double().sum())  # not every device has float64


# A step that was tried: its size, and energy, gradient and slope there.
_Tried = tuple[float, float, Tensor | None, float]


def _strong_wolfe(
    points: Tensor, direction: Tensor, energy0: float, slope0: float, first: float
) -> Evaluating[tuple[float, float, Tensor] | None]:
    """Search a step along a direction of descent that satisfies the strong Wolfe conditions.

    Returns:
        The size of the step, and the energy and the gradient after it. If no step satisfies the
        conditions, those of the step with the lowest energy. None if no step lowered the energy.
    """
    rounding = 4 * torch.finfo(points.dtype).eps * abs(energy0)
    low: _Tried = (0.0, energy0, None, slope0)
    high: _Tried | None = None
    size = first
    for _ in range(12):
        if size * abs(slope0) <= rounding:  # rounding errors hide what the step would change
            break
        energy, gradient = yield points + size * direction
        slope = _inner(gradient, direction)
        here = (size, energy, gradient, slope)
        enough = energy <= energy0 + 1e-4 * size * slope0 + rounding
        if enough and abs(slope) <= 0.9 * abs(slope0):
            low = here
            break
        if not enough or (energy >= low[1] and (low[0] > 0 or high is not None)):
            high = here
        else:
            if slope * (high[0] - low[0] if high is not None else 1) >= 0:
                high = low
            low = here
        size = 3 * size if high is None else _cubic_minimum(low, high)
        if high is not None and abs(high[0] - low[0]) <= 1e-9 * max(1.0, abs(low[0])):
            break
    size, energy, found, _ = low
    return None if found is None else (size, energy, found)


def _cubic_minimum(low, high) -> float:
    """The minimum of the cubic with given values and slopes at two points, kept away from both."""
    (a, fa, _, da), (b, fb, _, db) = low, high
    d1 = da + db - 3 * (fa - fb) / (a - b)
    square = d1 * d1 - da * db
    guess = 0.5 * (a + b)
    if square >= 0:
        d2 = math.copysign(math.sqrt(square), b - a)
        if db - da + 2 * d2 != 0:
            guess = b - (b - a) * (db + d2 - d1) / (db - da + 2 * d2)
    margin = 0.1 * abs(b - a)
    return min(max(guess, min(a, b) + margin), max(a, b) - margin)
