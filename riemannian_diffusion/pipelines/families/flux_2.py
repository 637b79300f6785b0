"""Geodesic interpolation for Flux.2.

With `x_t = (1 - t) x_0 + t eps` the network predicts the velocity `v = eps - x_0`, so that
`eps = x_t + (1 - t) v` and the score is `-eps / t`. The network sees patches of 2 x 2 latents as
channels, normalised by the statistics of the autoencoder's batch norm.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from riemannian_diffusion.levels import Levels, Schedule
from riemannian_diffusion.pipelines.families.prediction import (
    TransformerMixin,
    TransformerPrediction,
)
from riemannian_diffusion.pipelines.prompts import Encoded, TextRequest, conditions_of, encode
from riemannian_diffusion.score import Conditions


class Flux2Prediction(TransformerPrediction):
    """The velocity that a `Flux2Transformer2DModel` predicts."""

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output at points `(K, C, h, w)`."""
        hidden = conditions["encoder_hidden_states"]
        output = self.transformer(
            hidden_states=x.flatten(2).mT,
            timestep=self.times(x, timestep),
            guidance=conditions.get("guidance"),  # (K,), for networks that take it as an input
            encoder_hidden_states=hidden,
            txt_ids=Flux2Pipeline._prepare_text_ids(hidden[:1]).to(x.device),
            img_ids=Flux2Pipeline._prepare_latent_ids(x[:1]).to(x.device),
            joint_attention_kwargs=dict(self.options) or None,
            return_dict=False,
        )[0]
        return output.mT.reshape(x.shape)


class _Flux2(TransformerMixin):
    """What the models of Flux.2 have in common."""

    _predicts = Flux2Prediction

    if TYPE_CHECKING:
        _patchify_latents: Any
        _unpatchify_latents: Any

    _is_flow = True
    _even_levels = True
    _patch_size = 2

    @property
    def _input_channels(self) -> int:
        return 4 * self.vae.config.latent_channels

    def _mu(self, size: tuple[int, int], num_steps: int) -> float:
        return compute_empirical_mu(size[0] * size[1] // self._size_factor**2, num_steps)

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(C, 1, 1)` of the channels of patches."""
        norm, eps = self.vae.bn, self.vae.config.batch_norm_eps
        mean, variance = (
            values.to(device, torch.float32).view(-1, 1, 1)
            for values in (norm.running_mean, norm.running_var)
        )
        return mean, (variance + eps).sqrt()

    def _normalise(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents.device)
        return (self._patchify_latents(latents) - mean) / std

    def _denormalise(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents.device)
        return self._unpatchify_latents(latents * std + mean)

    def _encode_texts(self, request: TextRequest) -> Encoded:
        positive = self._encode_one(request.side(False))
        return conditions_of(
            positive, self._encode_one(request.side(True)) if request.guided else None
        )

    def _encode_one(self, request: TextRequest) -> dict[str, Tensor]:
        return {"encoder_hidden_states": encode(self, request)[0]}


class GeodesicInterpolationFlux2Pipeline(_Flux2, Flux2Pipeline):
    """Morph images into each other along geodesics of the data manifold of Flux.2 [dev].

    `guidance_scale` is an input of its network, as in `Flux2Pipeline`; 1 follows the data most
    closely. `true_cfg_scale` of `invert` above 1 is classifier-free guidance.

    Examples:
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationFlux2Pipeline
        >>> pipe = GeodesicInterpolationFlux2Pipeline.from_pretrained(  # doctest: +SKIP
        ...     'black-forest-labs/FLUX.2-dev'
        ... )
        >>> pipe(images).frames  # doctest: +SKIP
    """

    @property
    def _embeds_guidance(self) -> bool:
        return self.transformer.config.guidance_embeds


class GeodesicInterpolationFlux2KleinPipeline(_Flux2, Flux2KleinPipeline):
    """Morph images into each other along geodesics of the data manifold of Flux.2 [klein].

    Guidance is classifier-free. A model whose config says `is_distilled` takes none, as in
    `Flux2KleinPipeline`.

    Examples:
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationFlux2KleinPipeline
        >>> pipe = GeodesicInterpolationFlux2KleinPipeline.from_pretrained(  # doctest: +SKIP
        ...     'black-forest-labs/FLUX.2-klein-base-4B'
        ... )
        >>> pipe(images).frames  # doctest: +SKIP
    """

    def _levels(
        self,
        conditions: Conditions,
        schedule: Schedule,
        *,
        guidance_scale: float,
        true_cfg_scale: float,
        **options: Any,
    ) -> Levels:
        if self.config.is_distilled and max(guidance_scale, true_cfg_scale) > 1:
            warnings.warn(
                "This model was distilled with its guidance (`is_distilled` in its config), so "
                "`guidance_scale` and `true_cfg_scale` are ignored: leave them at 1.",
                stacklevel=4,  # the caller of the stage
            )
            guidance_scale = true_cfg_scale = 1.0
        return super()._levels(
            conditions,
            schedule,
            guidance_scale=guidance_scale,
            true_cfg_scale=true_cfg_scale,
            **options,
        )
