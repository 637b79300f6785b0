"""Geodesic interpolation for PixArt-alpha and PixArt-Sigma.

Their networks predict the noise of a variance-preserving schedule, and also a variance, which has
no use for a score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline
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
from riemannian_diffusion.score.network import Predict


@dataclass(frozen=True)
class PixArtPrediction(TransformerPrediction):
    """The noise that a `PixArtTransformer2DModel` predicts, and a variance.

    Attributes:
        pixels_per_latent: Sets the image size, on which some of these networks are conditioned.
    """

    pixels_per_latent: int = 8

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output at points `(K, C, h, w)`: `(K, 2 C, h, w)`."""
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.transformer.use_additional_conditions:
            height, width = (side * self.pixels_per_latent for side in x.shape[-2:])
            added["resolution"] = x.new_tensor([[height, width]]).expand(len(x), -1)
            added["aspect_ratio"] = x.new_tensor([[height / width]]).expand(len(x), -1)
        return self.transformer(
            x,
            timestep=timestep.expand(len(x)),
            added_cond_kwargs=added,
            cross_attention_kwargs=dict(self.options) or None,
            return_dict=False,
            **conditions,
        )[0]


class _PixArt(TransformerMixin):
    """What both families share."""

    @property
    def _size_factor(self) -> int:
        return self.transformer.config.patch_size * self.vae_scale_factor

    def _encode_texts(self, request: TextRequest) -> Encoded:
        defaults = defaults_of(PixArtAlphaPipeline.__call__, "clean_caption")
        positive = encode_masked(self, request.side(False), defaults)
        negative = encode_masked(self, request.side(True), defaults) if request.guided else None
        return conditions_of(positive, negative, masks=(MASK,))

    def _prediction(self, options: Mapping[str, Any]) -> Predict:
        num = self.scheduler.config.num_train_timesteps
        return PixArtPrediction(self.transformer, num, options, self.vae_scale_factor)


class GeodesicInterpolationPixArtAlphaPipeline(_PixArt, PixArtAlphaPipeline):
    """Morph images into each other along geodesics of PixArt-alpha's data manifold.

    Networks for images of about 1024 pixels are conditioned on the size of the images.

    Examples:
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPixArtAlphaPipeline
        >>> pipe = GeodesicInterpolationPixArtAlphaPipeline.from_pretrained(  # doctest: +SKIP
        ...     'PixArt-alpha/PixArt-XL-2-1024-MS'
        ... )
        >>> pipe(images).frames  # doctest: +SKIP
    """


class GeodesicInterpolationPixArtSigmaPipeline(_PixArt, PixArtSigmaPipeline):
    """Morph images into each other along geodesics of PixArt-Sigma's data manifold.

    Examples:
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPixArtSigmaPipeline
        >>> pipe = GeodesicInterpolationPixArtSigmaPipeline.from_pretrained(  # doctest: +SKIP
        ...     'PixArt-alpha/PixArt-Sigma-XL-2-1024-MS'
        ... )
        >>> pipe(images).frames  # doctest: +SKIP
    """

    _overflows_in_half = True  # it is that of Stable Diffusion XL
