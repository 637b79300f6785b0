"""Geodesic interpolation for models of images in pixel space, unconditional or of classes."""

# No postponed annotations: diffusers 0.35 reads those of the constructor, and not as strings.
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from diffusers import DDIMPipeline, SchedulerMixin, UNet2DModel
from torch import Tensor

from riemannian_diffusion.pipelines.classes import (
    CLASSES,
    Label,
    label_numbers,
    no_texts,
)
from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin
from riemannian_diffusion.pipelines.prompts import Encoded, TextRequest
from riemannian_diffusion.score import Condition
from riemannian_diffusion.score.labels import MixedLabels
from riemannian_diffusion.score.network import Predict


@dataclass(frozen=True)
class UnconditionalPrediction:
    """The prediction of a `UNet2DModel`.

    Attributes:
        unet: The network.
    """

    unet: Any

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output at points `(K, C, H, W)`."""
        labels: Any = conditions.get(CLASSES)
        if labels is not None and self.unet.config.class_embed_type is None:
            labels = MixedLabels(labels)
        return self.unet(x, timestep, class_labels=labels, return_dict=False)[0]


class GeodesicInterpolationUnconditionalPipeline(GeodesicInterpolationMixin, DDIMPipeline):
    """Morph images into each other along geodesics of a model of their pixels.

    Loads from repositories and directories of `DDPMPipeline` and `DDIMPipeline`. There are no
    prompts and no guidance. A model of classes needs `condition(class_labels=...)`. Latents are
    images in [-1, 1], and no step of sampling clips them, whatever the scheduler's `clip_sample`
    says: inversion could not undo that.

    Examples:
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationUnconditionalPipeline
        >>> pipe = GeodesicInterpolationUnconditionalPipeline.from_pretrained(  # doctest: +SKIP
        ...     'google/ddpm-celebahq-256'
        ... )
        >>> pipe(images).frames  # doctest: +SKIP
    """

    _takes_classes = True

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin):
        super(DDIMPipeline, self).__init__()  # DDIMPipeline would put its own scheduler in place
        self.register_modules(unet=unet, scheduler=scheduler)

    @property
    def _image_channels(self) -> int:
        return self.unet.config.in_channels

    @property
    def _size_factor(self) -> int:
        return 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def _input_channels(self) -> None:
        return None  # a model of pixels takes the images' channels, whatever they are

    def _encode_texts(self, request: TextRequest) -> Encoded:
        return no_texts(self, request)

    def _class_conditions(self, labels: Label | Sequence[Label] | None):
        config = self.unet.config
        kind, num = config.class_embed_type, config.num_class_embeds
        if kind is None and num is None:
            return super()._class_conditions(labels)
        if kind not in (None, "timestep"):
            raise ValueError(
                f"This model takes embeddings in place of classes (`class_embed_type` {kind!r} in "
                "its config), which this pipeline does not give."
            )
        if labels is None:
            raise ValueError(
                "This is a model of classes: give `class_labels` to `condition`, and what that "
                "returns to `invert`."
            )
        if kind is None:
            return {CLASSES: Condition.of(F.one_hot(label_numbers(labels, num), num).float())}, {}
        # the network embeds a number as it embeds a time, so the number itself is interpolated
        return {CLASSES: Condition.of(label_numbers(labels, num).float())}, {}

    def _prediction(self, options: Mapping[str, Any]) -> Predict:
        if options:
            raise ValueError(
                f"An unconditional model takes no `cross_attention_kwargs`, but got {options}."
            )
        return UnconditionalPrediction(self.unet)

    @contextmanager
    def _vae_ready(self) -> Iterator[None]:
        yield  # there is no autoencoder

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        return 2 * pixels - 1

    def _decode_latents(self, latents: Tensor) -> Tensor:
        return latents
