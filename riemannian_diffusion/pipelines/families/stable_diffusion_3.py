"""Geodesic interpolation for Stable Diffusion 3 and 3.5.

With `x_t = (1 - t) x_0 + t eps` the network predicts the velocity `v = eps - x_0`, so that
`eps = x_t + (1 - t) v` and the score is `-eps / t`.
"""

from __future__ import annotations

from collections.abc import Mapping

from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from riemannian_diffusion.pipelines.families.prediction import (
    TransformerMixin,
    TransformerPrediction,
)
from riemannian_diffusion.pipelines.prompts import Encoded, TextRequest, conditions_of, encode


class SD3Prediction(TransformerPrediction):
    """The velocity that an `SD3Transformer2DModel` predicts."""

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output at points `(K, C, h, w)`."""
        return self.transformer(
            hidden_states=x,
            timestep=timestep.expand(len(x)),
            joint_attention_kwargs=dict(self.options) or None,
            return_dict=False,
            **conditions,
        )[0]


class GeodesicInterpolationSD3Pipeline(TransformerMixin, StableDiffusion3Pipeline):
    """Morph images into each other along geodesics of Stable Diffusion 3's data manifold.

    Examples:
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationSD3Pipeline
        >>> pipe = GeodesicInterpolationSD3Pipeline.from_pretrained(  # doctest: +SKIP
        ...     'stabilityai/stable-diffusion-3.5-medium'
        ... )
        >>> pipe(images).frames  # doctest: +SKIP
    """

    _predicts = SD3Prediction
    _is_flow = True
    _patch_size = 2

    def _encode_texts(self, request: TextRequest) -> Encoded:
        hidden, negative, pooled, negative_pooled = encode(self, request)
        return conditions_of(
            {"encoder_hidden_states": hidden, "pooled_projections": pooled},
            {"encoder_hidden_states": negative, "pooled_projections": negative_pooled}
            if request.guided
            else None,
        )
