"""Images and prompts as callers write them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from riemannian_diffusion.arguments import kind_of
from riemannian_diffusion.media import converted, white_of

Image = PIL.Image.Image | np.ndarray | Tensor
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow's "L"


def split_morphs(image, prompt) -> tuple[bool, list[list[Image]], list[list[str]]]:
    """Whether there is one morph only, and the keyframes and prompts of each morph."""
    _check_is_several(image)
    if getattr(image, "ndim", 0) == 5:  # (B, P, C, H, W)
        image = [list(one) for one in image]
    single = not (len(image) > 0 and all(isinstance(i, (list, tuple)) for i in image))
    morphs = [list(image)] if single else [list(i) for i in image]
    if not isinstance(prompt, (str, list, tuple)):
        raise ValueError(f"`prompt` must be one or more strings, but got {kind_of(prompt)}.")
    if isinstance(prompt, str):
        prompts = [[prompt]] * len(morphs)
    elif single or all(isinstance(p, str) for p in prompt) and len(prompt) != len(morphs):
        prompts = [list(prompt)] * len(morphs)
    else:
        prompts = [list(p) if isinstance(p, (list, tuple)) else [p] for p in prompt]
    if len(prompts) != len(morphs):
        raise ValueError(f"`prompt` is for {len(prompts)} morphs, but `image` has {len(morphs)}.")
    for images, texts in zip(morphs, prompts, strict=True):
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"`prompt` must consist of strings, but got {texts!r}.")
        if len(texts) not in (1, len(images)):
            raise ValueError(
                f"`prompt` must be one prompt or one per image, but got {len(texts)} prompts for "
                f"{len(images)} images."
            )
    return single, morphs, prompts


def for_each(name: str, value: Any, num: int) -> list[Any]:
    """One value for all morphs, or a list with one for each, as a list.

    Raises:
        ValueError: If it is a list of another length.
    """
    if not isinstance(value, (list, tuple)):
        return [value] * num
    if len(value) != num:
        raise ValueError(f"`{name}` is for {len(value)} morphs, but `image` has {num}.")
    return list(value)


def _check_is_several(image) -> None:
    several = isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) > 0
    if not several:
        raise ValueError(f"`image` must be two or more images, but got {type(image).__name__}.")
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[-1] <= 4:
        raise ValueError(
            f"`image` must be two or more images, but got one array of shape {image.shape}."
        )


def is_images(value: object) -> TypeGuard[Sequence[Image]]:
    """Whether a value is a list of images, and not of paths."""
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(
            isinstance(one, (PIL.Image.Image, np.ndarray))
            or (isinstance(one, Tensor) and one.ndim == 3)
            for one in value
        )
    )


def to_keyframes(
    images: Sequence[Image] | Tensor, num_channels: int, factor: int, *, least: int = 2
) -> Tensor:
    """Images of one size as `(P, C, H, W)`, float32 in [0, 1].

    Args:
        images: PIL images, arrays or tensors.
        num_channels: 3 for colours, 1 for greys.
        factor: What height and width must be multiples of, in pixels.
        least: The least number of images.

    Raises:
        ValueError: If there are fewer, their sizes differ or do not fit, or one is no image.
    """
    _check_is_several(images)
    pixels = [to_pixels(image, i, num_channels) for i, image in enumerate(images)]
    if len(pixels) < least:
        raise ValueError(f"A morph needs at least {least} images, but got {len(pixels)}.")
    sizes = [tuple(p.shape[-2:]) for p in pixels]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"All images of a morph must have one size, but got (height, width) {sizes}: resize or "
            "crop them first."
        )
    if sizes[0][0] % factor or sizes[0][1] % factor:
        raise ValueError(
            f"Height and width must be multiples of {factor}, but got {sizes[0]}: resize or crop "
            "them first."
        )
    return torch.stack(pixels)


def to_pixels(image: Image, index: int, num_channels: int = 3) -> Tensor:
    """One keyframe as `(3, H, W)` or `(1, H, W)`, float32 in [0, 1].

    Args:
        image: A PIL image, which is read as `media.converted` says; or an array `(H, W)` or
            `(H, W, C)`; or a tensor `(3, H, W)`, of a grey model `(1, H, W)`. One channel of an
            array is grey, three are colours, and the last of two or four is opacity. White is
            behind transparent parts. Which number is white, `media.white_of` says.
        index: Number of the image, for messages.
        num_channels: 3 for colours, 1 for greys.

    Raises:
        OSError: If the file of a PIL image is cut short.
        ValueError: If it is no image, or its numbers fit no known range.
    """
    name = f"Image {index}"
    if isinstance(image, PIL.Image.Image):
        file = getattr(image, "filename", "")
        label = f"{name} ({file})" if file else name
        try:
            image = np.array(converted(image, "RGB" if num_channels == 3 else "L", name=label))
        except (OSError, SyntaxError, struct.error) as error:
            raise OSError(f"{label} cannot be read: {error}") from error
    counts = [num_channels]
    if isinstance(image, np.ndarray):
        counts = [1, 2, 3, 4]
        if image.dtype.kind not in "fiub":
            raise ValueError(f"{name} must hold real numbers, but got {image.dtype}.")
        if image.dtype.byteorder != "=":
            image = image.astype(image.dtype.newbyteorder("="))
        if image.dtype.kind == "f" and image.dtype.itemsize > 8:
            image = image.astype(np.float64)
        image = torch.from_numpy(image.copy())
        image = image[..., None] if image.ndim == 2 else image
        image = image.permute(2, 0, 1) if image.ndim == 3 else image
    elif isinstance(image, Tensor):
        image = image[0] if image.ndim == 4 and len(image) == 1 else image
    else:
        raise ValueError(
            f"{name} must be a PIL image, an array or a tensor, but got {type(image).__name__}: "
            "open files with `diffusers.utils.load_image`."
        )
    if image.ndim != 3 or image.shape[0] not in counts:
        raise ValueError(
            f"{name} must be (H, W, {num_channels}) as an array or ({num_channels}, H, W) as a "
            f"tensor, but its channels-first shape is {tuple(image.shape)}."
        )
    if image.is_complex():
        raise ValueError(f"{name} must hold real numbers, but got {image.dtype}.")
    if image.numel() == 0:
        raise ValueError(f"{name} has no pixels: its channels-first shape is {tuple(image.shape)}.")
    return _in_channels(_in_unit_range(image, name), num_channels)


def _in_unit_range(image: Tensor, name: str) -> Tensor:
    """Numbers of any type as float32 in [0, 1]."""
    values = image if image.dtype == torch.float64 else image.float()
    if not values.isfinite().all():
        raise ValueError(f"{name} has NaN or infinite values.")
    if image.dtype == torch.bool:
        return values
    num_bits = 8 if image.dtype == torch.uint8 else max(16, 8 * image.element_size())
    low, high = values.detach().aminmax()
    white = white_of(
        *(float(low), float(high)),
        num_bits=None if image.dtype.is_floating_point else num_bits,
        name=name,
    )
    return (values / white).clamp(0, 1).float()


def _in_channels(image: Tensor, num_channels: int) -> Tensor:
    """Greys or colours `(C, H, W)`, perhaps with opacity, as `num_channels` over white."""
    if len(image) == num_channels:
        return image  # also of a model whose images have 2 or 4 channels
    if len(image) in (2, 4):
        opacity = image[-1:]
        image = image[:-1] * opacity + 1 - opacity
    if len(image) == 3 and num_channels == 1:
        return torch.einsum("c,chw->hw", image.new_tensor(LUMA), image)[None]
    return image.expand(num_channels, -1, -1)
