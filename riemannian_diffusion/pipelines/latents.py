"""Latents of any autoencoder of diffusers, scaled as the network takes them.

A network sees `(z - mean) / std`, where `z` is what the autoencoder's encoder returns. The
autoencoder's config states `mean` and `std`: as `shift_factor` and `scaling_factor`, and for some
autoencoders also as `latents_mean` and `latents_std` of each channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def encode_images(vae: Any, pixels: Tensor) -> Tensor:
    """The latents of an autoencoder, without scaling.

    Args:
        vae: An autoencoder of images or of videos.
        pixels: `(K, 3, H, W)` in [-1, 1].

    Returns:
        `(K, C, h, w)`, float32. Where the autoencoder returns a distribution, this is its mode.
    """
    pixels = pixels.to(vae.dtype)
    encoded = vae.encode(pixels[:, :, None] if _is_of_videos(vae) else pixels)
    if hasattr(encoded, "latent_dist"):
        latents = encoded.latent_dist.mode()
    else:
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent
    return (latents[:, :, 0] if _is_of_videos(vae) else latents).float()


def decode_images(vae: Any, latents: Tensor) -> Tensor:
    """The images of latents without scaling.

    Args:
        vae: An autoencoder of images or of videos.
        latents: `(K, C, h, w)`.

    Returns:
        `(K, 3, H, W)` in about [-1, 1].
    """
    latents = latents.to(vae.dtype)
    if _is_of_videos(vae):
        return vae.decode(latents[:, :, None], return_dict=False)[0][:, :, 0]
    return vae.decode(latents, return_dict=False)[0]


def statistics(vae: Any, device: torch.device) -> tuple[Tensor | float, Tensor | float]:
    """The mean and the standard deviation of latents that an autoencoder's config states.

    Args:
        vae: An autoencoder of images or of videos.
        device: The device of the result; the autoencoder's own may be offloaded.

    Returns:
        Two numbers, or tensors `(C, 1, 1)` where they differ between channels.
    """
    config = vae.config
    scale = config.get("scaling_factor") or 1.0
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return config.get("shift_factor") or 0.0, 1 / scale
    columns = [torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std)]
    return columns[0], columns[1] / scale


def pack(latents: Tensor) -> Tensor:
    """Patches of 2 x 2 latents as tokens, `(K, C, h, w) -> (K, h w / 4, 4 C)`."""
    num, channels, height, width = latents.shape
    patches = latents.view(num, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(num, -1, 4 * channels)


def unpack(tokens: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `pack`.

    Args:
        tokens: `(K, h w / 4, 4 C)`.
        shape: The shape of the latents `(K, C, h, w)`.
    """
    num, channels, height, width = shape
    patches = tokens.view(num, height // 2, width // 2, channels, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(shape)


def _is_of_videos(vae: Any) -> bool:
    """Whether an autoencoder takes images as videos of one frame."""
    return "temperal_downsample" in vae.config or "temporal_downsample" in vae.config
