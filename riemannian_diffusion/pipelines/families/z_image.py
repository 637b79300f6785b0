"""Geodesic interpolation for Z-Image.

With `x_t = (1 - t) x_0 + t eps` the network predicts `x_0 - eps` at the time `1 - t`. The velocity
is `v = eps - x_0`, so that `eps = x_t + (1 - t) v` and the score is `-eps / t`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import ZImagePipeline
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
    encode,
    masked,
    padded,
)


class ZImagePrediction(TransformerPrediction):
    """The velocity that a `ZImageTransformer2DModel` predicts."""

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output at points `(K, C, h, w)`."""
        prompts = zip(conditions["encoder_hidden_states"], conditions[MASK], strict=True)
        # diffusers below 0.41 has no such argument
        options = {"joint_attention_kwargs": dict(self.options)} if self.options else {}
        outputs = self.transformer(
            list(x[:, :, None]),  # images as videos of one frame
            1 - self.times(x, timestep),
            [hidden[mask] for hidden, mask in prompts],
            return_dict=False,
            **options,
        )[0]
        return -torch.stack(list(outputs))[:, :, 0]

    def guide(self, positive: Tensor, negative: Tensor, scale: float) -> Tensor:
        """Guidance that starts from the positive prediction, as in `ZImagePipeline`."""
        return positive + scale * (positive - negative)


class GeodesicInterpolationZImagePipeline(TransformerMixin, ZImagePipeline):
    """Morph images into each other along geodesics of Z-Image's data manifold.

    `guidance_scale` above 1 is that of `ZImagePipeline`: it adds `guidance_scale` times the
    difference between the predictions for the prompt and for the negative prompt. This is
    classifier-free guidance of a scale that is larger by 1. A `guidance_scale` of 1 is without
    guidance, as for all models; this is 0 in `ZImagePipeline`.

    The network numbers the places of an image after those of the prompt, and it rounds their number
    up to a multiple of 32. Between keyframes with prompts of different lengths it is that of the
    longer one.

    Examples:
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationZImagePipeline
        >>> pipe = GeodesicInterpolationZImagePipeline.from_pretrained(  # doctest: +SKIP
        ...     'Tongyi-MAI/Z-Image'
        ... )
        >>> pipe(images).frames  # doctest: +SKIP
    """

    _predicts = ZImagePrediction
    _is_flow = True
    _even_levels = True
    _patch_size = 2
    _masks_texts = True

    def _encode_texts(self, request: TextRequest) -> Encoded:
        positive = self._encode_one(request.side(False))
        negative = self._encode_one(request.side(True)) if request.guided else None
        return conditions_of(positive, negative, masks=(MASK,))

    def _encode_one(self, request: TextRequest) -> dict[str, Tensor]:
        if request.embeddings:
            given = request.embeddings
            return masked(given["prompt_embeds"], given["prompt_attention_mask"])
        prompts, _ = encode(self, request)  # (L, C), each of another length
        found = padded({"prompt_embeds": prompts})
        return masked(found["prompt_embeds"], found["prompt_attention_mask"])
