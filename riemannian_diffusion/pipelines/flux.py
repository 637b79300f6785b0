"""Geodesic interpolation for Flux.1.

With `x_t = (1 - t) x_0 + t eps` the network predicts the velocity `v = eps - x_0`, so that
`eps = x_t + (1 - t) v` and the score is `-eps / t`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin
from riemannian_diffusion.score import Condition
from riemannian_diffusion.score.network import Predict

MAX_TOKENS = 512  # the length to which Flux pads its T5 embeddings


@dataclass(frozen=True)
class FluxPrediction:
    """The velocity that a `FluxTransformer2DModel` predicts.

    Attributes:
        transformer: The network.
        num_train_timesteps: The timestep of pure noise.
        options: Arguments of its attention.
    """

    transformer: nn.Module
    num_train_timesteps: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output at points `(K, C, h, w)`."""
        num, channels, height, width = x.shape
        hidden = conditions["encoder_hidden_states"]
        guidance = conditions.get("guidance")  # (K,), for networks that take it as an input
        output = self.transformer(
            hidden_states=FluxPipeline._pack_latents(x, num, channels, height, width),
            timestep=(timestep / self.num_train_timesteps).expand(num),
            guidance=guidance,
            encoder_hidden_states=hidden,
            pooled_projections=conditions["pooled_projections"],
            txt_ids=torch.zeros(hidden.shape[1], 3, device=x.device, dtype=x.dtype),
            img_ids=FluxPipeline._prepare_latent_image_ids(
                num, height // 2, width // 2, x.device, x.dtype
            ),
            joint_attention_kwargs=dict(self.options) or None,
            return_dict=False,
        )[0]
        output = output.view(num, height // 2, width // 2, channels, 2, 2)
        return output.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


class GeodesicInterpolationFluxPipeline(GeodesicInterpolationMixin, FluxPipeline):
    """Morph images into each other along geodesics of Flux's data manifold.

    For a network that takes guidance as an input (Flux.1-dev), `guidance_scale` is that input, as
    in `FluxPipeline`; 1 follows the data most closely. For others it is classifier-free guidance.
    """

    _is_flow = True
    _even_levels = True
    _patch_size = 2
    _has_ip_adapters = False
    _pools_prompts = True

    @property
    def _embeds_guidance(self) -> bool:
        return self.transformer.config.guidance_embeds

    def _encode_texts(self, texts, negatives, guided, embeddings, scale):
        positive = self._encode_one(texts, embeddings, "", MAX_TOKENS, scale)
        if not guided:
            return positive, None
        length = positive["encoder_hidden_states"].values.shape[2]
        return positive, self._encode_one(negatives, embeddings, "negative_", length, scale)

    def _encode_one(self, texts, embeddings, prefix: str, length: int, scale):
        names = ("prompt_embeds", "pooled_prompt_embeds")
        given = {n: embeddings[prefix + n] for n in names if prefix + n in embeddings}
        hidden, pooled, _ = self.encode_prompt(
            *(None if given else texts or "", None),
            device=self.device_of_work,
            max_sequence_length=length,
            lora_scale=scale,
            **given,
        )
        return {
            "encoder_hidden_states": Condition.of(hidden),
            "pooled_projections": Condition.of(pooled),
        }

    def _prediction(self, options: Mapping[str, Any]) -> Predict:
        num = self.scheduler.config.num_train_timesteps
        return FluxPrediction(self.transformer, num, options)
