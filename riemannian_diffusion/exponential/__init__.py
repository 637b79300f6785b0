"""The geometry of a metric beyond one geodesic."""

from riemannian_diffusion.exponential.continuation import analogy, extrapolate
from riemannian_diffusion.exponential.maps import (
    exponential_map,
    frechet_mean,
    logarithm_map,
    parallel_transport,
)

__all__ = [
    "analogy",
    "exponential_map",
    "extrapolate",
    "frechet_mean",
    "logarithm_map",
    "parallel_transport",
]
