"""Geodesic interpolation for Lumina-Image 2.0.

With `x_t = (1 - t) x_0 + t eps` the network predicts `x_0 - eps` at the time `1 - t`. The velocity
is `v = eps - x_0`, so that `eps = x_t + (1 - t) v` and the score is `-eps / t`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers import Lumina2Pipeline
from torch import Tensor, nn

from riemannian_diffusion.levels import linear_shift
from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin
from riemannian_diffusion.pipelines.prompts import (
    MASK,
    Encoded,
    TextRequest,
    conditions_of,
    encode,
    masked,
)
from riemannian_diffusion.score.network import Predict, linear_guidance


@dataclass(frozen=True)
class Lumina2Prediction:
    """The velocity that a `Lumina2Transformer2DModel` predicts.

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
        return -self.transformer(
            hidden_states=x,
            timestep=(1 - timestep / self.num_train_timesteps).expand(len(x)),
            attention_kwargs=dict(self.options) or None,
            return_dict=False,
            **conditions,
        )[0]

    def guide(self, positive: Tensor, negative: Tensor, scale: float) -> Tensor:
        """Guidance that keeps the norm of each row of latents, as in `Lumina2Pipeline`."""
        guided = linear_guidance(positive, negative, scale)
        norms = [rows.norm(dim=-1, keepdim=True) for rows in (positive, guided)]
        return guided * (norms[0] / norms[1])


class GeodesicInterpolationLumina2Pipeline(GeodesicInterpolationMixin, Lumina2Pipeline):
    """Morph images into each other along geodesics of Lumina 2's data manifold.

    Prompts follow the pipeline's `system_prompt`; the negative prompt stands alone. As in
    `Lumina2Pipeline`, guidance keeps the norm of each row of latents.

    The network numbers the places of an image after those of the prompt. Between keyframes with
    prompts of different lengths, the longer one counts.
    """

    _is_flow = True
    _even_levels = True

    @property
    def _size_factor(self) -> int:
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1)  # `vae_scale_factor` is always 8
        return self.transformer.config.patch_size * scale

    def _mu(self, size: tuple[int, int], num_steps: int) -> float:
        # `Lumina2Pipeline` reads the number of image tokens at the axis of the channels
        return linear_shift(self.scheduler, self.transformer.config.in_channels)

    def _encode_texts(self, request: TextRequest) -> Encoded:
        hidden, mask, negative, negative_mask = encode(self, request)
        return conditions_of(
            masked(hidden, mask),
            masked(negative, negative_mask) if request.guided else None,
            masks=(MASK,),
        )

    def _prediction(self, options: Mapping[str, Any]) -> Predict:
        num = self.scheduler.config.num_train_timesteps
        return Lumina2Prediction(self.transformer, num, options)
