"""The options of a solve."""

from __future__ import annotations

from dataclasses import dataclass, field

from riemannian_diffusion.arguments import check_kind, check_not_negative, check_whole
from riemannian_diffusion.geodesics.solvers import PathLBFGS, Solver

RTOL = 1e-4  # default relative tolerance
THOROUGH = 3  # number of sub-chords with which chords hardly ever leap
FIRST = 2  # number of sub-chords that is tried first


@dataclass(frozen=True)
class Options:
    """Options of a solve.

    Attributes:
        num_quadrature: Number of sub-chords of each segment, at least 1. None tries 2. If
            the energy that was found misses more than 5 % of the energy on a finer sampling, the
            solve begins again with 3.
        solver: The solver.
        rtol: Largest share of the energy by which a converged path may lie above the minimum, as
            the solver estimates it.
        max_evals: Largest number of evaluations of energy and gradient for each problem.

    Raises:
        ValueError: If an option is out of range.
    """

    num_quadrature: int | None = None
    solver: Solver = field(default_factory=PathLBFGS)
    rtol: float = RTOL
    max_evals: int = 200

    def __post_init__(self):
        check_whole(1, max_evals=self.max_evals)
        if self.num_quadrature is not None:
            check_whole(1, num_quadrature=self.num_quadrature)
        check_not_negative(rtol=self.rtol)
        check_kind(Solver, solver=self.solver)
