"""Geodesic interpolation for DiT, a transformer of the classes of ImageNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel, SchedulerMixin
from torch import Tensor

from riemannian_diffusion.pipelines.classes import (
    CLASSES,
    Label,
    label_numbers,
    no_texts,
)
from riemannian_diffusion.pipelines.families.prediction import (
    TransformerMixin,
    TransformerPrediction,
)
from riemannian_diffusion.pipelines.prompts import Encoded, TextRequest
from riemannian_diffusion.score import Condition
from riemannian_diffusion.score.labels import MixedLabels


class DiTPrediction(TransformerPrediction):
    """The noise that a `DiTTransformer2DModel` predicts, and a variance."""

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output at points `(K, C, h, h)`: `(K, 2 C, h, h)`."""
        return self.transformer(
            x,
            timestep=timestep.expand(len(x)),
            class_labels=MixedLabels(conditions[CLASSES]),
            cross_attention_kwargs=dict(self.options) or None,
            return_dict=False,
        )[0]


class GeodesicInterpolationDiTPipeline(TransformerMixin, DiTPipeline):
    """Morph images into each other along geodesics of a DiT's data manifold.

    There are no prompts: `condition(class_labels=...)` takes classes, as numbers or by their names
    in `labels`. Without them the model is unconditional. Images must be square.

    Examples:
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationDiTPipeline
        >>> pipe = GeodesicInterpolationDiTPipeline.from_pretrained(  # doctest: +SKIP
        ...     'facebook/DiT-XL-2-256'
        ... )
        >>> pipe(images).frames  # doctest: +SKIP
    """

    _predicts = DiTPrediction

    if TYPE_CHECKING:  # what DiTPipeline brings along
        labels: dict[str, int]
        register_to_config: Any

    def __init__(
        self,
        transformer: DiTTransformer2DModel,
        vae: AutoencoderKL,
        scheduler: SchedulerMixin,
        id2label: dict[int, str] | None = None,
    ):
        super().__init__(transformer, vae, scheduler, id2label)
        self.register_to_config(id2label=id2label)  # DiTPipeline does not save the names
        self.vae_scale_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def _size_factor(self) -> int:
        return self.transformer.config.patch_size * self.vae_scale_factor

    def _encode_texts(self, request: TextRequest) -> Encoded:
        return no_texts(self, request)

    def _class_conditions(self, labels: Label | Sequence[Label] | None):
        num = self.transformer.config.num_embeds_ada_norm
        none = torch.tensor([num])  # the class of no class
        given = none if labels is None else label_numbers(labels, num, self.labels)
        positive, negative = (F.one_hot(one, num + 1).float() for one in (given, none))
        return {CLASSES: Condition.of(positive)}, {CLASSES: Condition.of(negative)}

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        if height != width:
            raise ValueError(
                f"A DiT takes square images alone, but got {height} x {width}: crop them first."
            )
        return super()._encode_pixels(pixels)
