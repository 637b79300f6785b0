"""Geodesic morphs as blocks of diffusers' modular pipelines, for Stable Diffusion XL and Flux.1.

The whole morph is a sequence of four blocks, one for each stage:

pipe = GeodesicInterpolationBlock().init_pipeline("stabilityai/stable-diffusion-xl-base-1.0")
pipe.load_components(torch_dtype=torch.float16)
frames = pipe(image=[image_a, image_b], prompt=["a cat", "a dog"], output="frames")

Each stage is also a block of its own. What a stage makes is in the state under the name that the
next one reads, so that images are inverted once for several metrics:

invert = InvertXL().init_pipeline("stabilityai/stable-diffusion-xl-base-1.0")
keys = invert(image=[image_a, image_b], prompt=["a cat", "a dog"], output="keys")
path = SolveXL().init_pipeline(...)(keys=keys, metric="stein", output="path")
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    UNet2DConditionModel,
)
from diffusers.modular_pipelines import (
    ComponentSpec,
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    SequentialPipelineBlocks,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5EncoderModel,
    T5TokenizerFast,
)

from riemannian_diffusion.pipelines import (
    GeodesicInterpolationFluxPipeline,
    GeodesicInterpolationOutput,
    GeodesicInterpolationXLPipeline,
)


class XL:
    """What is particular to Stable Diffusion XL."""

    model_name = "stable-diffusion-xl"
    pipeline = GeodesicInterpolationXLPipeline
    components: ClassVar[Mapping[str, Any]] = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "scheduler": DDIMScheduler,
    }


class Flux:
    """What is particular to Flux.1."""

    model_name = "flux"
    pipeline = GeodesicInterpolationFluxPipeline
    components: ClassVar[Mapping[str, Any]] = {
        "transformer": FluxTransformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": T5TokenizerFast,
        "scheduler": FlowMatchEulerDiscreteScheduler,
    }


class Stage(ModularPipelineBlocks):
    """A stage of a morph: its inputs are the arguments of the pipeline's method of that name."""

    pipeline: Any
    components: ClassVar[Mapping[str, Any]]
    stage: str
    outputs: ClassVar[tuple[str, ...]]

    @property
    def description(self) -> str:
        """The first line of the docstring of the method."""
        return (inspect.getdoc(getattr(self.pipeline, self.stage)) or "").partition("\n")[0]

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """The components of the model."""
        return [ComponentSpec(name, kind) for name, kind in self.components.items()]

    @property
    def inputs(self) -> list[InputParam]:
        """The arguments of the stage."""
        arguments = inspect.signature(getattr(self.pipeline, self.stage)).parameters.values()
        return [
            InputParam(one.name, required=True)
            if one.default is one.empty
            else InputParam(one.name, default=one.default)
            for one in arguments
            if one.name not in ("self", "on_event")
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """What the stage makes."""
        return [OutputParam(name) for name in self.outputs]

    def __call__(self, components, state):
        """Run the stage with the components of the block."""
        block = self.get_block_state(state)
        pipe = self.pipeline(**{name: getattr(components, name) for name in self.components})
        stage = getattr(pipe, self.stage)
        found = stage(**{one.name: getattr(block, one.name) for one in self.inputs})
        for name in self.outputs:
            setattr(block, name, found if len(self.outputs) == 1 else getattr(found, name))
        self.set_block_state(state, block)
        return components, state


class Invert(Stage):
    """Images to keyframes."""

    stage, outputs = "invert", ("keys",)


class Solve(Stage):
    """Keyframes to a path."""

    stage, outputs = "solve", ("path",)


class Sample(Stage):
    """A path to a path with clean latents."""

    stage, outputs = "sample", ("path",)


class Render(Stage):
    """A path to frames, and what is known of them."""

    stage = "render"
    outputs = tuple(one.name for one in fields(GeodesicInterpolationOutput))


class InvertXL(XL, Invert):
    """Images to keyframes, with Stable Diffusion XL."""


class SolveXL(XL, Solve):
    """Keyframes to a path, with Stable Diffusion XL."""


class SampleXL(XL, Sample):
    """A path to a path with clean latents, with Stable Diffusion XL."""


class RenderXL(XL, Render):
    """A path to frames, with Stable Diffusion XL."""


class InvertFlux(Flux, Invert):
    """Images to keyframes, with Flux.1."""


class SolveFlux(Flux, Solve):
    """Keyframes to a path, with Flux.1."""


class SampleFlux(Flux, Sample):
    """A path to a path with clean latents, with Flux.1."""


class RenderFlux(Flux, Render):
    """A path to frames, with Flux.1."""


STAGES = ["invert", "solve", "sample", "render"]


class GeodesicInterpolationBlock(SequentialPipelineBlocks):
    """Images in, frames out, with Stable Diffusion XL."""

    block_classes = [InvertXL, SolveXL, SampleXL, RenderXL]
    block_names = STAGES


class GeodesicInterpolationFluxBlock(SequentialPipelineBlocks):
    """Images in, frames out, with Flux.1."""

    block_classes = [InvertFlux, SolveFlux, SampleFlux, RenderFlux]
    block_names = STAGES
