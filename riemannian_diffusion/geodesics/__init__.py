"""Geodesics between two points: paths of least energy between fixed ends."""

import inspect
import sys
from types import ModuleType

from riemannian_diffusion.geodesics.outcome import Geodesic
from riemannian_diffusion.geodesics.problem import Problem, Start
from riemannian_diffusion.geodesics.progress import NUM_QUADRATURE, RTOL, Iterate
from riemannian_diffusion.geodesics.solvers import Adam, Iteration, PathLBFGS, Solver
from riemannian_diffusion.geodesics.solving import geodesic, geodesics, solving

__all__ = [
    "NUM_QUADRATURE",
    "RTOL",
    "Adam",
    "Geodesic",
    "Iterate",
    "Iteration",
    "PathLBFGS",
    "Problem",
    "Solver",
    "Start",
    "geodesic",
    "geodesics",
    "solving",
]


class _CallableModule(ModuleType):
    """A module that can be called as the function `geodesics`."""

    __signature__ = inspect.signature(geodesics)

    def __call__(self, *args, **kwargs):
        return geodesics(*args, **kwargs)


# `riemannian_diffusion.geodesics` is the name of this subpackage and of a public function. Python
# sets the attribute to the subpackage whenever a submodule is imported first. A function as the
# attribute would therefore depend on the order of imports. A callable subpackage serves as both.
sys.modules[__name__].__class__ = _CallableModule
