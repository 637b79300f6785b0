"""Geometry of a metric: exponential and logarithm maps, transport, means, continuation and pace."""

from riemannian_diffusion.geometry.continuation import analogy, extrapolate
from riemannian_diffusion.geometry.logarithms import logarithm_map
from riemannian_diffusion.geometry.maps import exponential_map
from riemannian_diffusion.geometry.means import frechet_mean
from riemannian_diffusion.geometry.pacing import pace_by_samples
from riemannian_diffusion.geometry.transport import parallel_transport

__all__ = [
    "analogy",
    "exponential_map",
    "extrapolate",
    "frechet_mean",
    "logarithm_map",
    "pace_by_samples",
    "parallel_transport",
]
