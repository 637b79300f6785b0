"""Geodesic interpolation for Chroma.

With `x_t = (1 - t) x_0 + t eps` the network predicts the velocity `v = eps - x_0`, so that
`eps = x_t + (1 - t) v` and the score is `-eps / t`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import ChromaPipeline
from torch import Tensor

from riemannian_diffusion.pipelines.families.prediction import (
    TransformerMixin,
    TransformerPrediction,
)
from riemannian_diffusion.pipelines.latents import pack, unpack
from riemannian_diffusion.pipelines.prompts import Encoded, TextRequest, conditions_of, encode


class ChromaPrediction(TransformerPrediction):
    """The velocity that a `ChromaTransformer2DModel` predicts."""

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output at points `(K, C, h, w)`."""
        num, _, height, width = x.shape
        hidden, tokens = conditions["encoder_hidden_states"], pack(x)
        mask = conditions["attention_mask"]  # (K, L), of the text; the image has no padding
        output = self.transformer(
            hidden_states=tokens,
            timestep=self.times(x, timestep),
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


class GeodesicInterpolationChromaPipeline(TransformerMixin, ChromaPipeline):
    """Morph images into each other along geodesics of Chroma's data manifold.

    Attention masks mean what they mean in `ChromaPipeline`: those that `encode_prompt` returns are
    numbers, which diffusers adds to the attention scores; boolean ones hide their tokens.

    Examples:
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationChromaPipeline
        >>> pipe = GeodesicInterpolationChromaPipeline.from_pretrained(  # doctest: +SKIP
        ...     'lodestones/Chroma1-HD'
        ... )
        >>> pipe(images).frames  # doctest: +SKIP
    """

    _predicts = ChromaPrediction
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


def _masked(hidden: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Embeddings `(P, L, C)` and their mask `(P, L)`, both of the same device."""
    mask = mask.to(hidden.device)
    mask = mask if mask.dtype == torch.bool else mask.to(hidden.dtype)
    return {"encoder_hidden_states": hidden, "attention_mask": mask}
