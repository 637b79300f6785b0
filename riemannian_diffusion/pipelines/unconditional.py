"""Geodesics of unconditional models of images in pixel space."""

from __future__ import annotations

import torch
from diffusers import DDIMPipeline
from torch import Tensor

from riemannian_diffusion.pipelines.conditioning import Conditions
from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin


class GeodesicInterpolationUnconditionalPipeline(GeodesicInterpolationMixin, DDIMPipeline):
    """Morph images into each other along geodesics of a model of their pixels.

    Loads from repositories and directories of `DDPMPipeline` and `DDIMPipeline`. There are no
    prompts and no guidance; latents are images in [-1, 1], and no step of sampling clips them,
    whatever the scheduler's `clip_sample`, since inversion could not undo that.
    """

    _callback_tensor_inputs = ["latents"]
    _has_ip_adapters = False

    @property
    def _image_channels(self) -> int:
        return self.unet.config.in_channels

    @property
    def _size_factor(self) -> int:
        return 2 ** (len(self.unet.config.block_out_channels) - 1)

    def _encode_texts(self, texts, negatives, guided: bool, embeddings: dict[str, Tensor]):
        if guided or any(texts or []) or negatives or embeddings or self._cross_attention_kwargs:
            raise ValueError(
                "An unconditional model takes no prompts and no guidance, nor "
                f"`cross_attention_kwargs`, but got prompts {texts}, {negatives}, "
                f"guidance_scale={self._guidance_scale}."
            )
        nothing = torch.zeros(1, 1, 1, device=self._execution_device)
        return {"encoder_hidden_states": nothing}, {}

    def _predict(self, x: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        return self.unet(x, timestep, return_dict=False)[0]

    def _encode(self, pixels: Tensor, max_batch_size: int | None) -> Tensor:
        return 2 * pixels - 1

    def _decode(self, latents: Tensor, max_batch_size: int | None) -> Tensor:
        return latents
