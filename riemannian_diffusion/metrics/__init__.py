"""Riemannian metrics from a score; no d x d matrix is ever formed.

Arguments come in the order `(x, u, v)`. Points and tangents are `(K, *shape)`, and each method
returns one value or one tangent per point. Notation: `s` is the score, `J` its Jacobian,
`r = -sigma^2 s` the residual (`x` minus its denoised version), `D = x - r` the denoised point.
"""

from riemannian_diffusion.metrics.base import Metric
from riemannian_diffusion.metrics.energies import PathEnergy
from riemannian_diffusion.metrics.pullback import EuclideanMetric, PullbackMetric
from riemannian_diffusion.metrics.residual import ScoreJacobianMetric, TangentNormalMetric
from riemannian_diffusion.metrics.stein import SteinScoreMetric

__all__ = [
    "EuclideanMetric",
    "Metric",
    "PathEnergy",
    "PullbackMetric",
    "ScoreJacobianMetric",
    "SteinScoreMetric",
    "TangentNormalMetric",
]
