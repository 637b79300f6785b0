"""Geodesic interpolation for Lumina-Image 2.0.

With `x_t = (1 - t) x_0 + t eps` the network predicts `x_0 - eps` at the time `1 - t`. The velocity
is `v = eps - x_0`, so that `eps = x_t + (1 - t) v` and the score is `-eps / t`.
"""

from __future__ import annotations

from collections.abc import Mapping

from diffusers import Lumina2Pipeline
from torch import Tensor

from riemannian_diffusion.levels import linear_shift
from riemannian_diffusion.pipelines.families.prediction import (
    TransformerMixin,
    TransformerPrediction,
)
from riemannian_diffusion.pipelines.prompts import (
    MASK,
    Encoded,
    TextRequest,
    conditions_of,
    encode,
    masked,
)
from riemannian_diffusion.score.network import linear_guidance


class Lumina2Prediction(TransformerPrediction):
    """The velocity that a `Lumina2Transformer2DModel` predicts."""

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output at points `(K, C, h, w)`."""
        return -self.transformer(
            hidden_states=x,
            timestep=1 - self.times(x, timestep),
            attention_kwargs=dict(self.options) or None,
            return_dict=False,
            **conditions,
        )[0]

    def guide(self, positive: Tensor, negative: Tensor, scale: float) -> Tensor:
        """Guidance that keeps the norm of each row of latents, as in `Lumina2Pipeline`."""
        guided = linear_guidance(positive, negative, scale)
        norms = [rows.norm(dim=-1, keepdim=True) for rows in (positive, guided)]
        return guided * (norms[0] / norms[1])


class GeodesicInterpolationLumina2Pipeline(TransformerMixin, Lumina2Pipeline):
    """Morph images into each other along geodesics of Lumina 2's data manifold.

    Prompts follow the pipeline's `system_prompt`; the negative prompt stands alone. As in
    `Lumina2Pipeline`, guidance keeps the norm of each row of latents.

    The network numbers the places of an image after those of the prompt. Between keyframes with
    prompts of different lengths, the longer one counts.

    Examples:
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationLumina2Pipeline
        >>> pipe = GeodesicInterpolationLumina2Pipeline.from_pretrained(  # doctest: +SKIP
        ...     'Alpha-VLLM/Lumina-Image-2.0'
        ... )
        >>> pipe(images).frames  # doctest: +SKIP
    """

    _predicts = Lumina2Prediction
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
