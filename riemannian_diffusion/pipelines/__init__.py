"""Diffusers pipelines: images in, frames out."""

from typing import TYPE_CHECKING

from riemannian_diffusion.lazy import lazy_names

if TYPE_CHECKING:
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
    from riemannian_diffusion.pipelines.unconditional import (
        GeodesicInterpolationUnconditionalPipeline,
    )
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "flow": (
                "GeodesicInterpolationFlowPipeline",
                "GeodesicInterpolationFluxPipeline",
                "GeodesicInterpolationSD3Pipeline",
            ),
            "geodesic_interpolation": ("GeodesicInterpolationOutput",),
            "loading": ("AutoGeodesicInterpolationPipeline",),
            "stable_diffusion": (
                "GeodesicInterpolationPipeline",
                "GeodesicInterpolationXLPipeline",
            ),
            "unconditional": ("GeodesicInterpolationUnconditionalPipeline",),
        },
    )

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
