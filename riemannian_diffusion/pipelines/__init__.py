"""Diffusers pipelines: images in, frames out."""

from typing import TYPE_CHECKING

from riemannian_diffusion.lazy import lazy_names

if TYPE_CHECKING:
    from riemannian_diffusion.pipelines.aura_flow import GeodesicInterpolationAuraFlowPipeline
    from riemannian_diffusion.pipelines.chroma import GeodesicInterpolationChromaPipeline
    from riemannian_diffusion.pipelines.dit import GeodesicInterpolationDiTPipeline
    from riemannian_diffusion.pipelines.flux import GeodesicInterpolationFluxPipeline
    from riemannian_diffusion.pipelines.flux_2 import (
        GeodesicInterpolationFlux2KleinPipeline,
        GeodesicInterpolationFlux2Pipeline,
    )
    from riemannian_diffusion.pipelines.loading import AutoGeodesicInterpolationPipeline
    from riemannian_diffusion.pipelines.lumina_2 import GeodesicInterpolationLumina2Pipeline
    from riemannian_diffusion.pipelines.morph import Keyframes, MorphOutOfMemoryError, MorphPath
    from riemannian_diffusion.pipelines.output import GeodesicInterpolationOutput
    from riemannian_diffusion.pipelines.pixart import (
        GeodesicInterpolationPixArtAlphaPipeline,
        GeodesicInterpolationPixArtSigmaPipeline,
    )
    from riemannian_diffusion.pipelines.quality import ImageWarning
    from riemannian_diffusion.pipelines.qwen_image import GeodesicInterpolationQwenImagePipeline
    from riemannian_diffusion.pipelines.sana import GeodesicInterpolationSanaPipeline
    from riemannian_diffusion.pipelines.stable_diffusion import (
        GeodesicInterpolationPipeline,
        GeodesicInterpolationXLPipeline,
    )
    from riemannian_diffusion.pipelines.stable_diffusion_3 import GeodesicInterpolationSD3Pipeline
    from riemannian_diffusion.pipelines.starts import RoadmapStart
    from riemannian_diffusion.pipelines.unconditional import (
        GeodesicInterpolationUnconditionalPipeline,
    )
    from riemannian_diffusion.pipelines.z_image import GeodesicInterpolationZImagePipeline
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "aura_flow": ("GeodesicInterpolationAuraFlowPipeline",),
            "chroma": ("GeodesicInterpolationChromaPipeline",),
            "dit": ("GeodesicInterpolationDiTPipeline",),
            "flux": ("GeodesicInterpolationFluxPipeline",),
            "flux_2": (
                "GeodesicInterpolationFlux2KleinPipeline",
                "GeodesicInterpolationFlux2Pipeline",
            ),
            "loading": ("AutoGeodesicInterpolationPipeline",),
            "lumina_2": ("GeodesicInterpolationLumina2Pipeline",),
            "morph": ("Keyframes", "MorphOutOfMemoryError", "MorphPath"),
            "output": ("GeodesicInterpolationOutput",),
            "pixart": (
                "GeodesicInterpolationPixArtAlphaPipeline",
                "GeodesicInterpolationPixArtSigmaPipeline",
            ),
            "quality": ("ImageWarning",),
            "qwen_image": ("GeodesicInterpolationQwenImagePipeline",),
            "sana": ("GeodesicInterpolationSanaPipeline",),
            "stable_diffusion": (
                "GeodesicInterpolationPipeline",
                "GeodesicInterpolationXLPipeline",
            ),
            "stable_diffusion_3": ("GeodesicInterpolationSD3Pipeline",),
            "starts": ("RoadmapStart",),
            "unconditional": ("GeodesicInterpolationUnconditionalPipeline",),
            "z_image": ("GeodesicInterpolationZImagePipeline",),
        },
    )

__all__ = [
    "AutoGeodesicInterpolationPipeline",
    "GeodesicInterpolationAuraFlowPipeline",
    "GeodesicInterpolationChromaPipeline",
    "GeodesicInterpolationFlux2KleinPipeline",
    "GeodesicInterpolationFlux2Pipeline",
    "GeodesicInterpolationDiTPipeline",
    "GeodesicInterpolationFluxPipeline",
    "GeodesicInterpolationLumina2Pipeline",
    "GeodesicInterpolationOutput",
    "GeodesicInterpolationPipeline",
    "GeodesicInterpolationPixArtAlphaPipeline",
    "GeodesicInterpolationPixArtSigmaPipeline",
    "GeodesicInterpolationQwenImagePipeline",
    "GeodesicInterpolationSD3Pipeline",
    "GeodesicInterpolationSanaPipeline",
    "GeodesicInterpolationUnconditionalPipeline",
    "GeodesicInterpolationXLPipeline",
    "GeodesicInterpolationZImagePipeline",
    "ImageWarning",
    "Keyframes",
    "MorphOutOfMemoryError",
    "MorphPath",
    "RoadmapStart",
]
