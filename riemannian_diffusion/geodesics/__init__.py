"""Geodesics between two points: paths of least energy between fixed ends."""

from riemannian_diffusion.geodesics.solution import Geodesic, Iterate, Start, geodesic, geodesics
from riemannian_diffusion.geodesics.solvers import Adam, PathLBFGS, Solver

__all__ = [
    "Adam",
    "Geodesic",
    "Iterate",
    "PathLBFGS",
    "Solver",
    "Start",
    "geodesic",
    "geodesics",
]
