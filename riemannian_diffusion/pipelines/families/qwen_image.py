"""Geodesic interpolation for Qwen-Image.

With `x_t = (1 - t) x_0 + t eps` the network predicts the velocity `v = eps - x_0`, so that
`eps = x_t + (1 - t) v` and the score is `-eps / t`.
"""

from __future__ import annotations

from collections.abc import Mapping

from diffusers import QwenImagePipeline
from torch import Tensor

from riemannian_diffusion.pipelines.families.prediction import (
    TransformerMixin,
    TransformerPrediction,
)
from riemannian_diffusion.pipelines.latents import pack, unpack
from riemannian_diffusion.pipelines.prompts import (
    MASK,
    Encoded,
    TextRequest,
    conditions_of,
    defaults_of,
    encode_masked,
)
from riemannian_diffusion.score.network import linear_guidance


class QwenImagePrediction(TransformerPrediction):
    """The velocity that a `QwenImageTransformer2DModel` predicts."""

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output at points `(K, C, h, w)`."""
        num, _, height, width = x.shape
        output = self.transformer(
            hidden_states=pack(x),
            timestep=self.times(x, timestep),
            encoder_hidden_states=conditions["encoder_hidden_states"],
            encoder_hidden_states_mask=conditions[MASK],
            img_shapes=[[(1, height // 2, width // 2)]] * num,
            attention_kwargs=dict(self.options) or None,
            return_dict=False,
        )[0]
        return unpack(output, x.shape)

    def guide(self, positive: Tensor, negative: Tensor, scale: float) -> Tensor:
        """Guidance that keeps the norm of each token of the positive prediction."""
        guided = pack(linear_guidance(positive, negative, scale))
        norms = [tokens.norm(dim=-1, keepdim=True) for tokens in (pack(positive), guided)]
        return unpack(guided * (norms[0] / norms[1]), positive.shape)


class GeodesicInterpolationQwenImagePipeline(TransformerMixin, QwenImagePipeline):
    """Morph images into each other along geodesics of Qwen-Image's data manifold.

    `guidance_scale` is what `QwenImagePipeline` calls `true_cfg_scale`: guidance by a negative
    prompt that keeps the norm of each image token. 1 is without guidance.

    Examples:
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationQwenImagePipeline
        >>> pipe = GeodesicInterpolationQwenImagePipeline.from_pretrained(  # doctest: +SKIP
        ...     'Qwen/Qwen-Image'
        ... )
        >>> pipe(images).frames  # doctest: +SKIP
    """

    _predicts = QwenImagePrediction
    _is_flow = True
    _even_levels = True
    _patch_size = 2

    @property
    def _input_channels(self) -> int:
        return 4 * self.vae.config.z_dim

    @property
    def _output_channels(self) -> int:
        return self.vae.config.z_dim  # the network multiplies it by the size of a patch

    def _encode_texts(self, request: TextRequest) -> Encoded:
        defaults = defaults_of(QwenImagePipeline.__call__, "max_sequence_length")
        positive = encode_masked(self, request.side(False), defaults)
        negative = encode_masked(self, request.side(True), defaults) if request.guided else None
        return conditions_of(positive, negative, masks=(MASK,))
