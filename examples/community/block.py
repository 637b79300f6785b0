"""Geodesic morphs with Stable Diffusion XL, as one block of diffusers' modular pipelines.

pipe = GeodesicInterpolationBlock().init_pipeline("stabilityai/stable-diffusion-xl-base-1.0")
pipe.load_components(torch_dtype=torch.float16)
frames = pipe(image=[image_a, image_b], prompt=["a cat", "a dog"], output="frames")
"""

from __future__ import annotations

import inspect
from dataclasses import fields

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    ModularPipelineBlocks,
    UNet2DConditionModel,
)
from diffusers.modular_pipelines import ComponentSpec, InputParam, OutputParam
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from riemannian_diffusion.pipelines import (
    GeodesicInterpolationOutput,
    GeodesicInterpolationXLPipeline,
)

COMPONENTS = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "tokenizer": CLIPTokenizer,
    "tokenizer_2": CLIPTokenizer,
    "scheduler": DDIMScheduler,
}

OUTPUTS = tuple(item.name for item in fields(GeodesicInterpolationOutput))


class GeodesicInterpolationBlock(ModularPipelineBlocks):
    """Images in, frames out: the inputs are the arguments of the pipeline's call."""

    model_name = "stable-diffusion-xl"

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """The components of Stable Diffusion XL."""
        return [ComponentSpec(name, kind) for name, kind in COMPONENTS.items()]

    @property
    def inputs(self) -> list[InputParam]:
        """`image`, `prompt` and all other arguments."""
        arguments = inspect.signature(GeodesicInterpolationXLPipeline.__call__).parameters.values()
        return [
            InputParam(one.name, required=True)
            if one.default is one.empty
            else InputParam(one.name, default=one.default)
            for one in arguments
            if one.name not in ("self", "return_dict")
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The entries of `GeodesicInterpolationOutput`."""
        return [OutputParam(name) for name in OUTPUTS]

    def __call__(self, components, state):
        """Run the pipeline with the components of the block."""
        block = self.get_block_state(state)
        pipe = GeodesicInterpolationXLPipeline(**{n: getattr(components, n) for n in COMPONENTS})
        found = pipe(**{one.name: getattr(block, one.name) for one in self.inputs})
        for output in self.intermediate_outputs:
            setattr(block, output.name, getattr(found, output.name))
        self.set_block_state(state, block)
        return components, state
