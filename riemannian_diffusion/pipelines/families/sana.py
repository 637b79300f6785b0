"""Geodesic interpolation for Sana.

With `x_t = (1 - t) x_0 + t eps` the network predicts the velocity `v = eps - x_0`, so that
`eps = x_t + (1 - t) v` and the score is `-eps / t`.
"""

from __future__ import annotations

from collections.abc import Mapping

from diffusers import SanaPipeline
from torch import Tensor

from riemannian_diffusion.pipelines.families.prediction import (
    TransformerMixin,
    TransformerPrediction,
)
from riemannian_diffusion.pipelines.prompts import (
    MASK,
    Encoded,
    TextRequest,
    conditions_of,
    defaults_of,
    encode_masked,
)


class SanaPrediction(TransformerPrediction):
    """The velocity that a `SanaTransformer2DModel` predicts."""

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output at points `(K, C, h, w)`."""
        return self.transformer(
            x,
            timestep=timestep.expand(len(x)) * self.transformer.config.timestep_scale,
            attention_kwargs=dict(self.options) or None,
            return_dict=False,
            **conditions,
        )[0]


class GeodesicInterpolationSanaPipeline(TransformerMixin, SanaPipeline):
    """Morph images into each other along geodesics of Sana's data manifold.

    As in `SanaPipeline`, an instruction to the text encoder precedes each prompt, but not the
    negative prompt.

    Examples:
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationSanaPipeline
        >>> pipe = GeodesicInterpolationSanaPipeline.from_pretrained(  # doctest: +SKIP
        ...     'Efficient-Large-Model/Sana_1600M_1024px_diffusers'
        ... )
        >>> pipe(images).frames  # doctest: +SKIP
    """

    _predicts = SanaPrediction
    _is_flow = True

    @property
    def _size_factor(self) -> int:
        return self.transformer.config.patch_size * self.vae_scale_factor

    def _encode_texts(self, request: TextRequest) -> Encoded:
        defaults = defaults_of(SanaPipeline.__call__, "clean_caption", "complex_human_instruction")
        positive = encode_masked(self, request.side(False), defaults)
        if not request.guided:
            return conditions_of(positive, masks=(MASK,))
        plain = defaults | {"complex_human_instruction": None}
        negative = encode_masked(self, request.side(True), plain)
        return conditions_of(positive, negative, masks=(MASK,))
