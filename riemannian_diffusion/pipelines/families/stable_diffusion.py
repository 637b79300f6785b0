"""Geodesic interpolation for Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from riemannian_diffusion.arguments import check_whole
from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin
from riemannian_diffusion.pipelines.prompts import Encoded, TextRequest, conditions_of, encode
from riemannian_diffusion.score import Condition
from riemannian_diffusion.score.network import Predict

SIZES = ("original_size", "crops_coords_top_left", "target_size")
"""The conditions on sizes of Stable Diffusion XL, in the order in which its network takes them."""


@dataclass(frozen=True)
class UNetPrediction:
    """The prediction of a `UNet2DConditionModel`.

    Attributes:
        unet: The network.
        options: Arguments of its attention.
        pixels_per_latent: Sets the image size that Stable Diffusion XL is conditioned on; None for
            networks that are not.
    """

    unet: nn.Module
    options: Mapping[str, Any] = field(default_factory=dict)
    pixels_per_latent: int | None = None

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output at points `(K, C, h, w)`."""
        others = dict(conditions)
        hidden = others.pop("encoder_hidden_states")
        added: dict[str, Any] = {}
        if self.pixels_per_latent is not None:
            pooled = others.pop("text_embeds")
            size = [side * self.pixels_per_latent for side in x.shape[-2:]]
            usual = pooled.new_tensor([*size, 0, 0, *size]).expand(len(x), -1).split(2, 1)
            ids = [others.pop(name, two) for name, two in zip(SIZES, usual, strict=True)]
            added = {"text_embeds": pooled, "time_ids": torch.cat(ids, 1)}
        if others:
            added["image_embeds"] = list(others.values())
        return self.unet(
            x,
            timestep,
            encoder_hidden_states=hidden,
            cross_attention_kwargs=dict(self.options) or None,
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]


class GeodesicInterpolationPipeline(GeodesicInterpolationMixin, StableDiffusionPipeline):
    """Morph images into each other along geodesics of Stable Diffusion's data manifold.

    Loads from any Stable Diffusion 1.x or 2.x repository or directory with `from_pretrained`, and
    takes over the components of a loaded pipeline with `from_pipe`.

    Examples:
        >>> from PIL import Image
        >>> from riemannian_diffusion import demo
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
        >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
        >>> images = [Image.open(path) for path in demo.endpoint_paths()]
        >>> len(pipe(images, metric='slerp', num_frames=3, num_inference_steps=5).frames)
        3
    """

    _has_ip_adapters = True

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        safety_checker: StableDiffusionSafetyChecker | None,
        feature_extractor: CLIPImageProcessor | None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        requires_safety_checker: bool = True,
    ):
        super().__init__(
            *(vae, text_encoder, tokenizer, unet),
            None,  # StableDiffusionPipeline would change `steps_offset` of the given scheduler
            *(safety_checker, feature_extractor, image_encoder),
            requires_safety_checker=requires_safety_checker,
        )
        self.register_modules(scheduler=scheduler)

    def _encode_texts(self, request: TextRequest) -> Encoded:
        with _text_model_found(self.text_encoder):
            positive, negative = encode(self, request)
        return conditions_of(
            {"encoder_hidden_states": positive},
            {"encoder_hidden_states": negative} if request.guided else None,
        )

    def _prediction(self, options: Mapping[str, Any]) -> Predict:
        return UNetPrediction(self.unet, options)

    def _check_safety(self, frames: Tensor) -> tuple[Tensor, list[bool] | None]:
        _, flags = self.run_safety_checker(frames.clone(), frames.device, self.unet.dtype)
        if flags is not None:
            frames = frames.clone()
            frames[torch.tensor(flags, dtype=torch.bool)] = -1.0  # black, as diffusers shows it
        return frames, flags


@contextmanager
def _text_model_found(encoder: Any) -> Iterator[None]:
    """Let diffusers find the last norm of CLIP, which it reads for `clip_skip`.

    It looks in `encoder.text_model`. Since transformers 5, that is the encoder itself.
    """
    absent = encoder is not None and not hasattr(encoder, "text_model")
    try:
        if absent:
            encoder.__dict__["text_model"] = encoder  # not as a submodule: it would contain itself
        yield
    finally:
        if absent:
            del encoder.__dict__["text_model"]


class GeodesicInterpolationXLPipeline(GeodesicInterpolationMixin, StableDiffusionXLPipeline):
    """Morph images into each other along geodesics of Stable Diffusion XL's data manifold.

    The network is conditioned on the size of the images, without a crop, unless `condition` is
    given other sizes.

    Examples:
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationXLPipeline
        >>> pipe = GeodesicInterpolationXLPipeline.from_pretrained(  # doctest: +SKIP
        ...     'stabilityai/stable-diffusion-xl-base-1.0'
        ... )
        >>> pipe(images).frames  # doctest: +SKIP
    """

    _has_ip_adapters = True
    _overflows_in_half = True
    _additions = ("text_time",)

    def _encode_texts(self, request: TextRequest) -> Encoded:
        hidden, negative, pooled, negative_pooled = encode(self, request)
        return conditions_of(
            {"encoder_hidden_states": hidden, "text_embeds": pooled},
            {"encoder_hidden_states": negative, "text_embeds": negative_pooled}
            if request.guided
            else None,
        )

    def _size_conditions(self, original, crop, target):
        found = {}
        for name, value in zip(SIZES, (original, crop, target), strict=True):
            if value is None:
                continue
            least = 0 if name == "crops_coords_top_left" else 1
            if not isinstance(value, (tuple, list)) or len(value) != 2:
                raise ValueError(f"`{name}` must be two numbers of pixels, but got {value!r}.")
            for i, number in enumerate(value):
                check_whole(least, **{f"{name}[{i}]": number})
            found[name] = Condition(torch.tensor([[[*map(float, value)]]]), "fixed")
        return found

    def _prediction(self, options: Mapping[str, Any]) -> Predict:
        return UNetPrediction(self.unet, options, self.vae_scale_factor)
