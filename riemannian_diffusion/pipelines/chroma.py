"""Geodesic interpolation for Chroma.

With `x_t = (1 - t) x_0 + t eps` the network predicts the velocity `v = eps - x_0`, so that
`eps = x_t + (1 - t) v` and the score is `-eps / t`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import ChromaPipeline
from torch import Tensor, nn

from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin
from riemannian_diffusion.pipelines.latents import pack, unpack
from riemannian_diffusion.pipelines.prompts import Encoded, TextRequest, conditions_of, encode
from riemannian_diffusion.score.network import Predict


@dataclass(frozen=True)
class ChromaPrediction:
    """The velocity that a `ChromaTransformer2DModel` predicts.

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
        num, _, height, width = x.shape
        hidden, tokens = conditions["encoder_hidden_states"], pack(x)
        mask = conditions["attention_mask"]  # (K, L), of the text; the image has no padding
        output = self.transformer(
            hidden_states=tokens,
            timestep=(timestep / self.num_train_timesteps).expand(num),
            encoder_hidden_states=hidden,
            attention_mask=torch.cat([mask, mask.new_ones(tokens.shape[:2])], 1),
            txt_ids=torch.zeros(hidden.shape[1], 3, device=x.device, dtype=x.dtype),
            img_ids=ChromaPipeline._prepare_latent_image_ids(
                num, height // 2, width // 2, x.device, x.dtype
            ),
            joint_attention_kwargs=dict(self.options) or None,
            return_dict=False,
        )[0]
        return unpack(output, x.shape)


class GeodesicInterpolationChromaPipeline(GeodesicInterpolationMixin, ChromaPipeline):
    """Morph images into each other along geodesics of Chroma's data manifold.

    Attention masks mean what they mean in `ChromaPipeline`: those that `encode_prompt` returns are
    numbers, which diffusers adds to the attention scores; boolean ones hide their tokens.
    """

    _is_flow = True
    _even_levels = True
    _patch_size = 2

    @property
    def _input_channels(self) -> int:
        return 4 * self.vae.config.latent_channels

    def _encode_texts(self, request: TextRequest) -> Encoded:
        hidden, _, mask, negative, _, negative_mask = encode(self, request)
        return conditions_of(
            _masked(hidden, mask),
            _masked(negative, negative_mask) if request.guided else None,
            masks=("attention_mask",),
        )

    def _prediction(self, options: Mapping[str, Any]) -> Predict:
        num = self.scheduler.config.num_train_timesteps
        return ChromaPrediction(self.transformer, num, options)


def _masked(hidden: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Embeddings `(P, L, C)` and their mask `(P, L)`, both of the same device."""
    mask = mask.to(hidden.device)
    mask = mask if mask.dtype == torch.bool else mask.to(hidden.dtype)
    return {"encoder_hidden_states": hidden, "attention_mask": mask}
