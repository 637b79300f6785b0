"""The pipeline that fits a model."""

from __future__ import annotations

from typing import Any

from diffusers import DiffusionPipeline

from riemannian_diffusion.pipelines.aura_flow import GeodesicInterpolationAuraFlowPipeline
from riemannian_diffusion.pipelines.chroma import GeodesicInterpolationChromaPipeline
from riemannian_diffusion.pipelines.dit import GeodesicInterpolationDiTPipeline
from riemannian_diffusion.pipelines.flux import GeodesicInterpolationFluxPipeline
from riemannian_diffusion.pipelines.flux_2 import (
    GeodesicInterpolationFlux2KleinPipeline,
    GeodesicInterpolationFlux2Pipeline,
)
from riemannian_diffusion.pipelines.pixart import (
    GeodesicInterpolationPixArtAlphaPipeline,
    GeodesicInterpolationPixArtSigmaPipeline,
)
from riemannian_diffusion.pipelines.qwen_image import GeodesicInterpolationQwenImagePipeline
from riemannian_diffusion.pipelines.sana import GeodesicInterpolationSanaPipeline
from riemannian_diffusion.pipelines.stable_diffusion import (
    GeodesicInterpolationPipeline,
    GeodesicInterpolationXLPipeline,
)
from riemannian_diffusion.pipelines.stable_diffusion_3 import GeodesicInterpolationSD3Pipeline
from riemannian_diffusion.pipelines.unconditional import GeodesicInterpolationUnconditionalPipeline
from riemannian_diffusion.pipelines.z_image import GeodesicInterpolationZImagePipeline

_PIPELINES = {  # by the class named in the model's model_index.json
    "StableDiffusionPipeline": GeodesicInterpolationPipeline,
    "StableDiffusionImg2ImgPipeline": GeodesicInterpolationPipeline,
    "StableDiffusionXLPipeline": GeodesicInterpolationXLPipeline,
    "StableDiffusionXLImg2ImgPipeline": GeodesicInterpolationXLPipeline,
    "StableDiffusion3Pipeline": GeodesicInterpolationSD3Pipeline,
    "StableDiffusion3Img2ImgPipeline": GeodesicInterpolationSD3Pipeline,
    "FluxPipeline": GeodesicInterpolationFluxPipeline,
    "FluxImg2ImgPipeline": GeodesicInterpolationFluxPipeline,
    "FluxInpaintPipeline": GeodesicInterpolationFluxPipeline,
    "Flux2Pipeline": GeodesicInterpolationFlux2Pipeline,
    "Flux2KleinPipeline": GeodesicInterpolationFlux2KleinPipeline,
    "Flux2KleinInpaintPipeline": GeodesicInterpolationFlux2KleinPipeline,
    "ChromaPipeline": GeodesicInterpolationChromaPipeline,
    "ChromaImg2ImgPipeline": GeodesicInterpolationChromaPipeline,
    "ChromaInpaintPipeline": GeodesicInterpolationChromaPipeline,
    "AuraFlowPipeline": GeodesicInterpolationAuraFlowPipeline,
    "PixArtAlphaPipeline": GeodesicInterpolationPixArtAlphaPipeline,
    "PixArtSigmaPipeline": GeodesicInterpolationPixArtSigmaPipeline,
    "SanaPipeline": GeodesicInterpolationSanaPipeline,
    "DiTPipeline": GeodesicInterpolationDiTPipeline,
    "QwenImagePipeline": GeodesicInterpolationQwenImagePipeline,
    "QwenImageImg2ImgPipeline": GeodesicInterpolationQwenImagePipeline,
    "ZImagePipeline": GeodesicInterpolationZImagePipeline,
    "ZImageImg2ImgPipeline": GeodesicInterpolationZImagePipeline,
    "DDPMPipeline": GeodesicInterpolationUnconditionalPipeline,
    "DDIMPipeline": GeodesicInterpolationUnconditionalPipeline,
    "GeodesicInterpolation": GeodesicInterpolationPipeline,  # examples/community/pipeline.py
}
_PIPELINES |= {kind.__name__: kind for kind in tuple(_PIPELINES.values())}


class AutoGeodesicInterpolationPipeline:
    """Picks the pipeline that fits a model, as diffusers' auto pipelines do."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> DiffusionPipeline:
        """Load a model with the pipeline that fits it; arguments as in diffusers.

        Raises:
            ValueError: If none does.
            OSError: If there is no such model, or it has no safetensors.
        """
        config = DiffusionPipeline.load_config(pretrained_model_name_or_path, **kwargs)
        name = config.get("_class_name")
        if isinstance(name, (list, tuple)) and name:  # [file, class]: its code is not run
            name = name[-1]
        kind = cls._for(name, pretrained_model_name_or_path)
        return kind.from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> DiffusionPipeline:
        """Make the pipeline that fits from the components of a loaded one."""
        name = type(pipeline).__name__
        return cls._for(name, name).from_pipe(pipeline, **kwargs)

    @staticmethod
    def _for(name: str, model) -> Any:
        if name not in _PIPELINES:
            raise ValueError(
                f"{model} is a {name}; geodesics are there for models of "
                f"{', '.join(n for n in _PIPELINES if not n.startswith('Geodesic'))}."
            )
        return _PIPELINES[name]
