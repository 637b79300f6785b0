"""Geodesic interpolation for AuraFlow.

With `x_t = (1 - t) x_0 + t eps` the network predicts the velocity `v = eps - x_0`, so that
`eps = x_t + (1 - t) v` and the score is `-eps / t`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from diffusers import AuraFlowPipeline
from torch import Tensor

from riemannian_diffusion.levels import Schedule
from riemannian_diffusion.pipelines.families.prediction import (
    TransformerMixin,
    TransformerPrediction,
)
from riemannian_diffusion.pipelines.prompts import Encoded, TextRequest, conditions_of, encode


class AuraFlowPrediction(TransformerPrediction):
    """The velocity that an `AuraFlowTransformer2DModel` predicts."""

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output at points `(K, C, h, w)`."""
        return self.transformer(
            hidden_states=x,
            timestep=self.times(x, timestep),
            attention_kwargs=dict(self.options) or None,
            return_dict=False,
            **conditions,
        )[0]


class GeodesicInterpolationAuraFlowPipeline(TransformerMixin, AuraFlowPipeline):
    """Morph images into each other along geodesics of AuraFlow's data manifold.

    Examples:
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationAuraFlowPipeline
        >>> pipe = GeodesicInterpolationAuraFlowPipeline.from_pretrained(  # doctest: +SKIP
        ...     'fal/AuraFlow-v0.3'
        ... )
        >>> pipe(images).frames  # doctest: +SKIP
    """

    _predicts = AuraFlowPrediction
    _is_flow = True
    _patch_size = 2
    _overflows_in_half = True
    _repeats_masks = True

    def _read_schedule(self, num_steps: int, strength: float, size: tuple[int, int]) -> Schedule:
        limit = math.isqrt(self.transformer.config.pos_embed_max_size) * self._size_factor
        if max(size) > limit:  # the network would read wrong positions without an error
            raise ValueError(
                f"The network has positions for images of at most {limit} pixels along each side, "
                f"but got {size}: resize the images first."
            )
        return super()._read_schedule(num_steps, strength, size)

    def _encode_texts(self, request: TextRequest) -> Encoded:
        hidden, mask, negative, negative_mask = encode(self, request)
        return conditions_of(
            _masked(hidden, mask), _masked(negative, negative_mask) if request.guided else None
        )


def _masked(hidden: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Embeddings `(P, L, C)` that are 0 for padding, as `encode_prompt` makes them."""
    columns = mask.to(hidden).reshape(*hidden.shape[:2], -1)  # (P, L, 1) or (P, L, C)
    return {"encoder_hidden_states": hidden * columns}
