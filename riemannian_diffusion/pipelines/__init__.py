"""Diffusers pipelines: images in, frames out."""

from typing import TYPE_CHECKING

from riemannian_diffusion.lazy import lazy_names
from riemannian_diffusion.runtime import quiet_imports

if TYPE_CHECKING:
    from riemannian_diffusion.pipelines.families.aura_flow import (
        GeodesicInterpolationAuraFlowPipeline,
    )
    from riemannian_diffusion.pipelines.families.chroma import GeodesicInterpolationChromaPipeline
    from riemannian_diffusion.pipelines.families.dit import GeodesicInterpolationDiTPipeline
    from riemannian_diffusion.pipelines.families.flux import GeodesicInterpolationFluxPipeline
    from riemannian_diffusion.pipelines.families.flux_2 import (
        GeodesicInterpolationFlux2KleinPipeline,
        GeodesicInterpolationFlux2Pipeline,
    )
    from riemannian_diffusion.pipelines.families.lumina_2 import (
        GeodesicInterpolationLumina2Pipeline,
    )
    from riemannian_diffusion.pipelines.families.pixart import (
        GeodesicInterpolationPixArtAlphaPipeline,
        GeodesicInterpolationPixArtSigmaPipeline,
    )
    from riemannian_diffusion.pipelines.families.qwen_image import (
        GeodesicInterpolationQwenImagePipeline,
    )
    from riemannian_diffusion.pipelines.families.sana import GeodesicInterpolationSanaPipeline
    from riemannian_diffusion.pipelines.families.stable_diffusion import (
        GeodesicInterpolationPipeline,
        GeodesicInterpolationXLPipeline,
    )
    from riemannian_diffusion.pipelines.families.stable_diffusion_3 import (
        GeodesicInterpolationSD3Pipeline,
    )
    from riemannian_diffusion.pipelines.families.unconditional import (
        GeodesicInterpolationUnconditionalPipeline,
    )
    from riemannian_diffusion.pipelines.families.z_image import GeodesicInterpolationZImagePipeline
    from riemannian_diffusion.pipelines.loading import AutoGeodesicInterpolationPipeline
    from riemannian_diffusion.pipelines.morph import Keyframes, MorphPath
    from riemannian_diffusion.pipelines.output import GeodesicInterpolationOutput
    from riemannian_diffusion.pipelines.quality import ImageWarning
    from riemannian_diffusion.pipelines.starts import RoadmapStart
    from riemannian_diffusion.pipelines.unused import UnusedWarning
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "families.aura_flow": ("GeodesicInterpolationAuraFlowPipeline",),
            "families.chroma": ("GeodesicInterpolationChromaPipeline",),
            "families.dit": ("GeodesicInterpolationDiTPipeline",),
            "families.flux": ("GeodesicInterpolationFluxPipeline",),
            "families.flux_2": (
                "GeodesicInterpolationFlux2KleinPipeline",
                "GeodesicInterpolationFlux2Pipeline",
            ),
            "loading": ("AutoGeodesicInterpolationPipeline",),
            "families.lumina_2": ("GeodesicInterpolationLumina2Pipeline",),
            "morph": ("Keyframes", "MorphPath"),
            "output": ("GeodesicInterpolationOutput",),
            "families.pixart": (
                "GeodesicInterpolationPixArtAlphaPipeline",
                "GeodesicInterpolationPixArtSigmaPipeline",
            ),
            "quality": ("ImageWarning",),
            "families.qwen_image": ("GeodesicInterpolationQwenImagePipeline",),
            "families.sana": ("GeodesicInterpolationSanaPipeline",),
            "families.stable_diffusion": (
                "GeodesicInterpolationPipeline",
                "GeodesicInterpolationXLPipeline",
            ),
            "families.stable_diffusion_3": ("GeodesicInterpolationSD3Pipeline",),
            "starts": ("RoadmapStart",),
            "unused": ("UnusedWarning",),
            "families.unconditional": ("GeodesicInterpolationUnconditionalPipeline",),
            "families.z_image": ("GeodesicInterpolationZImagePipeline",),
        },
        importing=quiet_imports,
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
    "MorphPath",
    "RoadmapStart",
    "UnusedWarning",
]
