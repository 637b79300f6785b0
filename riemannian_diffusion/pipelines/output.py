"""The result of a morph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass
class GeodesicInterpolationOutput(BaseOutput):
    """The result of a morph; each entry is a list for a list of morphs.

    The `frames` of a list of morphs of one shape are one array or tensor `(B, F, ...)`, unless they
    are PIL images.

    Attributes:
        frames: The frames, first to last: PIL images, an array `(F, H, W, 3)` or a tensor `(F, 3,
            H, W)` in [0, 1], or clean latents `(F, C, h, w)`.
        geodesics: One `riemannian_diffusion.Geodesic` per gap between keyframes, or None for a
            curve that is no geodesic.
        latents: The path `(F, C, h, w)`, float32, in the space it was solved in: noisy latents, or
            clean ones.
        reconstruction_error: Mean squared error of each keyframe's frame before pasting, of images
            in [0, 1] (of latents for `output_type="latent"`).
        nsfw_content_detected: One flag per frame, or None without a safety checker.
        path: The `MorphPath`, which further stages take and which can be saved.
        autoencoder_error: Mean squared error of each keyframe, encoded and decoded, of images in
            [0, 1]: the part of `reconstruction_error` that no inversion can avoid. None if the
            keyframes come from a file that lacks it.
        warnings: Sentences about keyframes that the model does not know or the morph does not show.
            Each was also an `ImageWarning` of the stage that found it.

    Examples:
        >>> from PIL import Image
        >>> from riemannian_diffusion import demo
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
        >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
        >>> images = [Image.open(path) for path in demo.endpoint_paths()]
        >>> out = pipe(images, metric='slerp', num_frames=3, num_inference_steps=5)
        >>> len(out.frames), out.geodesics
        (3, [None])
    """

    frames: Any
    geodesics: Any
    latents: Any
    reconstruction_error: Any
    nsfw_content_detected: Any
    path: Any
    autoencoder_error: Any
    warnings: Any


def stacked(frames: list[Any]) -> Any:
    """Frames of several morphs as one array or tensor, where they are such and of one shape."""
    if isinstance(frames[0], list) or len({one.shape for one in frames}) > 1:
        return frames
    return torch.stack(frames) if isinstance(frames[0], Tensor) else np.stack(frames)
