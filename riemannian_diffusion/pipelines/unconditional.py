"""Geodesic interpolation for unconditional models of images in pixel space."""

# No postponed annotations: diffusers 0.35 reads those of the constructor, and not as strings.
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers import DDIMPipeline, SchedulerMixin, UNet2DModel
from torch import Tensor, nn

from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin
from riemannian_diffusion.pipelines.prompts import Encoded, TextRequest
from riemannian_diffusion.score.network import Predict


@dataclass(frozen=True)
class UnconditionalPrediction:
    """The prediction of a `UNet2DModel`.

    Attributes:
        unet: The network.
    """

    unet: nn.Module

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output at points `(K, C, H, W)`."""
        return self.unet(x, timestep, return_dict=False)[0]


class GeodesicInterpolationUnconditionalPipeline(GeodesicInterpolationMixin, DDIMPipeline):
    """Morph images into each other along geodesics of a model of their pixels.

    Loads from repositories and directories of `DDPMPipeline` and `DDIMPipeline`. There are no
    prompts and no guidance; latents are images in [-1, 1], and no step of sampling clips them,
    whatever the scheduler's `clip_sample` says: inversion could not undo that.
    """

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
        if any(request.prompts or []) or request.negatives or request.embeddings:
            raise ValueError(
                "An unconditional model takes no `prompt`, no `negative_prompt` and no embeddings, "
                f"but got {request.prompts} and {request.negatives}."
            )
        return {}, None

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
