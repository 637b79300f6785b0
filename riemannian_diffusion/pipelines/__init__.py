"""Diffusers pipelines: images in, frames out."""

from riemannian_diffusion.pipelines.flow import (
    GeodesicInterpolationFlowPipeline,
    GeodesicInterpolationFluxPipeline,
    GeodesicInterpolationSD3Pipeline,
)
from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationOutput
from riemannian_diffusion.pipelines.loading import AutoGeodesicInterpolationPipeline
from riemannian_diffusion.pipelines.stable_diffusion import (
    GeodesicInterpolationPipeline,
    GeodesicInterpolationXLPipeline,
)
from riemannian_diffusion.pipelines.unconditional import GeodesicInterpolationUnconditionalPipeline

__all__ = [
    "AutoGeodesicInterpolationPipeline",
    "GeodesicInterpolationFlowPipeline",
    "GeodesicInterpolationFluxPipeline",
    "GeodesicInterpolationOutput",
    "GeodesicInterpolationPipeline",
    "GeodesicInterpolationSD3Pipeline",
    "GeodesicInterpolationUnconditionalPipeline",
    "GeodesicInterpolationXLPipeline",
]
