"""Riemannian metrics that are made from a score, without d x d matrices.

Arguments come in the order `(x, u, v)`. Points and tangents are `(K, *shape)`, and each method
returns one value or one tangent per point. In formulas, `s` is the score and `J` is its Jacobian.
`r = -sigma^2 s` is the residual (the point minus the denoised point), and `D = x - r` is the
denoised point.
"""

from riemannian_diffusion.metrics.base import Metric
from riemannian_diffusion.metrics.departures import Departure
from riemannian_diffusion.metrics.energies import PathEnergy
from riemannian_diffusion.metrics.likely import LikelyMetric
from riemannian_diffusion.metrics.pullback import EuclideanMetric, PullbackMetric
from riemannian_diffusion.metrics.residual import ScoreJacobianMetric, TangentNormalMetric
from riemannian_diffusion.metrics.stein import SteinScoreMetric

__all__ = [
    "Departure",
    "EuclideanMetric",
    "LikelyMetric",
    "Metric",
    "PathEnergy",
    "PullbackMetric",
    "ScoreJacobianMetric",
    "SteinScoreMetric",
    "TangentNormalMetric",
]
