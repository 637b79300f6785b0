"""Diffusers pipelines: images in, frames out."""

from riemannian_diffusion.pipelines.geodesic_interpolation import (
    GeodesicInterpolationOutput,
    GeodesicInterpolationPipeline,
)

__all__ = ["GeodesicInterpolationOutput", "GeodesicInterpolationPipeline"]
