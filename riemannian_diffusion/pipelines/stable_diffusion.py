"""Geodesics of Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from riemannian_diffusion.pipelines.conditioning import Conditions
from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin
from riemannian_diffusion.pipelines.inputs import lora_scale


class GeodesicInterpolationPipeline(GeodesicInterpolationMixin, StableDiffusionPipeline):
    """Morph images into each other along geodesics of Stable Diffusion's data manifold.

    Loads from any Stable Diffusion 1.x or 2.x repository or directory with `from_pretrained`, and
    takes over the components of a loaded pipeline with `from_pipe`.
    """

    _callback_tensor_inputs = ["latents"]

    def _encode_texts(self, texts, negatives, guided: bool, embeddings: dict[str, Tensor]):
        positive, negative = self.encode_prompt(
            texts,
            self._execution_device,
            1,
            guided,
            negatives,
            lora_scale=lora_scale(self._cross_attention_kwargs),
            **embeddings,
        )
        return {"encoder_hidden_states": positive}, {"encoder_hidden_states": negative}

    def _predict(self, x: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        hidden = conditions.pop("encoder_hidden_states")
        return self.unet(
            x,
            timestep,
            encoder_hidden_states=hidden,
            cross_attention_kwargs=self._cross_attention_kwargs,
            added_cond_kwargs={"image_embeds": list(conditions.values())} if conditions else None,
            return_dict=False,
        )[0]

    def _check_safety(self, frames: Tensor) -> tuple[Tensor, list[bool] | None]:
        return self.run_safety_checker(frames, frames.device, self.unet.dtype)


class GeodesicInterpolationXLPipeline(GeodesicInterpolationMixin, StableDiffusionXLPipeline):
    """The same of Stable Diffusion XL.

    The images' size is the size that the network is conditioned on, uncropped.
    """

    _callback_tensor_inputs = ["latents"]
    _pools_prompts = True

    def _encode_texts(self, texts, negatives, guided: bool, embeddings: dict[str, Tensor]):
        hidden, negative, pooled, negative_pooled = self.encode_prompt(
            texts,
            device=self._execution_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
            negative_prompt=negatives,
            lora_scale=lora_scale(self._cross_attention_kwargs),
            **embeddings,
        )
        return (
            {"encoder_hidden_states": hidden, "text_embeds": pooled},
            {"encoder_hidden_states": negative, "text_embeds": negative_pooled},
        )

    def _predict(self, x: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        hidden, pooled = (conditions.pop(name) for name in ("encoder_hidden_states", "text_embeds"))
        size = tuple(side * self.vae_scale_factor for side in x.shape[-2:])
        ids = torch.tensor([*size, 0, 0, *size], device=x.device, dtype=pooled.dtype)
        added = {"text_embeds": pooled, "time_ids": ids.expand(len(x), -1)}
        if conditions:
            added["image_embeds"] = list(conditions.values())
        return self.unet(
            x,
            timestep,
            encoder_hidden_states=hidden,
            cross_attention_kwargs=self._cross_attention_kwargs,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
