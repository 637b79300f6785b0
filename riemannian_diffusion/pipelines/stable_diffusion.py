"""Geodesic interpolation for Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin
from riemannian_diffusion.score import Condition
from riemannian_diffusion.score.network import Predict


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
            size = tuple(side * self.pixels_per_latent for side in x.shape[-2:])
            pooled = others.pop("text_embeds")
            ids = torch.tensor([*size, 0, 0, *size], device=x.device, dtype=pooled.dtype)
            added = {"text_embeds": pooled, "time_ids": ids.expand(len(x), -1)}
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
    """

    def _encode_texts(self, texts, negatives, guided, embeddings, scale):
        positive, negative = self.encode_prompt(
            texts,
            self.device_of_work,
            1,
            guided,
            negatives,
            lora_scale=scale,
            **embeddings,
        )
        return (
            {"encoder_hidden_states": Condition.of(positive)},
            {"encoder_hidden_states": Condition.of(negative)} if guided else None,
        )

    def _prediction(self, options: Mapping[str, Any]) -> Predict:
        return UNetPrediction(self.unet, options)

    def _check_safety(self, frames: Tensor) -> tuple[Tensor, list[bool] | None]:
        return self.run_safety_checker(frames, frames.device, self.unet.dtype)


class GeodesicInterpolationXLPipeline(GeodesicInterpolationMixin, StableDiffusionXLPipeline):
    """Morph images into each other along geodesics of Stable Diffusion XL's data manifold.

    The network is conditioned on the size of the images, without a crop.
    """

    _pools_prompts = True

    def _encode_texts(self, texts, negatives, guided, embeddings, scale):
        hidden, negative, pooled, negative_pooled = self.encode_prompt(
            texts,
            device=self.device_of_work,
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
            negative_prompt=negatives,
            lora_scale=scale,
            **embeddings,
        )
        ours, theirs = (
            {"encoder_hidden_states": Condition.of(h), "text_embeds": Condition.of(p)}
            if h is not None
            else None
            for h, p in ((hidden, pooled), (negative, negative_pooled))
        )
        return ours, theirs if guided else None

    def _prediction(self, options: Mapping[str, Any]) -> Predict:
        return UNetPrediction(self.unet, options, self.vae_scale_factor)
