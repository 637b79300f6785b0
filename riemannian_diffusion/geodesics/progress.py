"""What a solve is asked for, how far it has come, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from riemannian_diffusion.arguments import check_kind, check_not_negative, check_whole
from riemannian_diffusion.geodesics.outcome import Geodesic
from riemannian_diffusion.geodesics.solvers import PathLBFGS, Solver

RTOL = 1e-4  # default relative tolerance
NUM_QUADRATURE = 2  # default number of chords of each segment


@dataclass(frozen=True)
class Options:
    """Options of a solve.

    Attributes:
        num_quadrature: Number of chords of each segment, at least 1.
        solver: The solver.
        rtol: Largest share of the energy by which a converged path may lie above the minimum, as
            the solver estimates it.
        max_evals: Largest number of evaluations of energy and gradient for each problem.

    Raises:
        ValueError: If an option is out of range.
    """

    num_quadrature: int = NUM_QUADRATURE
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
        energy: Optimised energy of this path. A solve may begin on coarse curves, whose energies
            are somewhat too low, so it can rise where a finer curve begins.
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
        numbers: Numbers of points of the curves on which the solve under this metric goes on,
            coarse to fine; the first is that of the current curve. Empty before the solve begins.
        limit: Number of evaluations under this metric up to which the current curve may be solved.
        chords: Number of chords of each segment.
        before: Number of coarse curves before the current curve.
        coarse_energy: Energy of the coarse curve before the current curve; None if there is none.
        best_path: The curve of least energy under this metric, by its points.
        best_energy: Energy of `best_path`.
        close: Number of the latest iterations in a row that were close to the minimum.
        iterates: Number of evaluations and energy at the end of each iteration under this metric.
        first: Number of `iterates` on earlier curves.
        estimated: Whether the solver estimated the excess energy at the last iteration.
        solver: The state from which the solver goes on; None starts it at `best_path`.
    """

    start: int
    spent: int
    found: list[Geodesic]
    stage: int
    used: int
    status: str
    path: Tensor
    evals: int
    numbers: list[int]
    limit: int
    chords: int
    before: int
    coarse_energy: float | None
    best_path: Tensor
    best_energy: float
    close: int
    iterates: list[tuple[int, float]]
    first: int
    estimated: bool
    solver: dict[str, Any] | None
