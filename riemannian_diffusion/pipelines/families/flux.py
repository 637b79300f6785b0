"""Geodesic interpolation for Flux.1.

With `x_t = (1 - t) x_0 + t eps` the network predicts the velocity `v = eps - x_0`, so that
`eps = x_t + (1 - t) v` and the score is `-eps / t`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from diffusers import FluxPipeline
from torch import Tensor

from riemannian_diffusion.pipelines.families.prediction import (
    TransformerMixin,
    TransformerPrediction,
)
from riemannian_diffusion.pipelines.latents import pack, unpack
from riemannian_diffusion.pipelines.prompts import Encoded, TextRequest, conditions_of, encode


class FluxPrediction(TransformerPrediction):
    """The velocity that a `FluxTransformer2DModel` predicts."""

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output at points `(K, C, h, w)`."""
        num, _, height, width = x.shape
        hidden = conditions["encoder_hidden_states"]
        guidance = conditions.get("guidance")  # (K,), for networks that take it as an input
        output = self.transformer(
            hidden_states=pack(x),
            timestep=self.times(x, timestep),
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
        return unpack(output, x.shape)


class GeodesicInterpolationFluxPipeline(TransformerMixin, FluxPipeline):
    """Morph images into each other along geodesics of Flux's data manifold.

    For a network that takes guidance as an input (Flux.1-dev), `guidance_scale` is that input, as
    in `FluxPipeline`; 1 follows the data most closely. `true_cfg_scale` of `invert` above 1 is
    classifier-free guidance. For other networks both are classifier-free guidance.

    Examples:
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationFluxPipeline
        >>> pipe = GeodesicInterpolationFluxPipeline.from_pretrained(  # doctest: +SKIP
        ...     'black-forest-labs/FLUX.1-dev'
        ... )
        >>> pipe(images).frames  # doctest: +SKIP
    """

    _predicts = FluxPrediction
    _is_flow = True
    _even_levels = True
    _patch_size = 2

    @property
    def _input_channels(self) -> int:
        return 4 * self.vae.config.latent_channels

    @property
    def _embeds_guidance(self) -> bool:
        return self.transformer.config.guidance_embeds

    def _encode_texts(self, request: TextRequest) -> Encoded:
        positive = self._encode_one(request.side(False))
        if not request.guided:
            return conditions_of(positive)
        length = positive["encoder_hidden_states"].shape[1]  # of given embeddings, too
        options = dict(request.options) | {"max_sequence_length": length}
        negative = self._encode_one(replace(request, options=options).side(True))
        return conditions_of(positive, negative)

    def _encode_one(self, request: TextRequest) -> dict[str, Tensor]:
        hidden, pooled, _ = encode(self, request)
        return {"encoder_hidden_states": hidden, "pooled_projections": pooled}
