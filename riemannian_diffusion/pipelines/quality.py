"""How much of an image a model loses, and warnings where that is too much."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

TOO_MUCH = 0.1  # of an image's variance; scenes of the shipped model lose up to 0.02
LEAST_VARIANCE = 0.01  # of an image, lest a flat one is compared with nothing


class ImageWarning(UserWarning):
    """A model does not know an image, or a morph does not show it, or not all its frames."""


def too_much_lost(errors: Tensor, images: Tensor) -> list[int]:
    """The numbers of the images, from 1, that differ too much from what a model makes of them.

    Args:
        errors: Mean squared error of each image `(P,)`.
        images: The images or latents `(P, C, H, W)`.

    Returns:
        The numbers of the images whose error is above a tenth of their variance. The variance is
        that within a channel, at least 0.01.
    """
    variance = images.flatten(2).var(2, correction=0).mean(1).clamp_min(LEAST_VARIANCE)
    lost = errors.to(images) / variance > TOO_MUCH
    return [int(i) + 1 for i in lost.nonzero()[:, 0]]


def autoencoder_warning(errors: Tensor | None, pixels: Tensor) -> str | None:
    """A warning about images that an autoencoder does not reproduce, or None.

    Args:
        errors: Mean squared error of each image, encoded and decoded `(P,)`; None if unknown.
        pixels: The images `(P, C, H, W)` in [0, 1].
    """
    bad = [] if errors is None else too_much_lost(errors, pixels)
    if errors is None or not bad:
        return None
    return (
        f"The model does not know images like {_named(bad)}: its autoencoder alone returns them "
        f"with a PSNR of {_listed(-10 * errors.log10(), bad)} dB, so the morph will not show them; "
        "use a model that was trained on such images."
    )


def inversion_warning(errors: Tensor, known: Tensor, images: Tensor) -> str | None:
    """A warning about images that are lost between inversion and sampling, or None.

    Args:
        errors: Mean squared error of each image, inverted, sampled and decoded `(P,)`.
        known: The part of it that is the autoencoder's `(P,)`.
        images: The images or latents `(P, C, H, W)`.
    """
    bad = too_much_lost(errors - known.to(errors), images)
    if not bad:
        return None
    return (
        f"The morph does not show {_named(bad)}: inverted and sampled back, they return with a "
        f"mean squared error of {_listed(errors, bad)}, of which the autoencoder causes "
        f"{_listed(known, bad)}; raise `num_inference_steps` and `max_levels`, or lower "
        "`strength` or `guidance_scale`."
    )


def safety_warning(flags: Sequence[bool] | None) -> str | None:
    """A warning about frames that a safety checker has replaced by black ones, or None.

    Args:
        flags: Whether each frame is black; None without a safety checker.
    """
    black = [i + 1 for i, flag in enumerate(flags or ()) if flag]
    if not flags or not black:
        return None
    which = "all" if len(black) == len(flags) else _and([str(number) for number in black])
    return (
        f"The model's safety checker takes frames for unsafe (NSFW) and shows them black: {which} "
        f"of {len(flags)}. Other images or prompts avoid that, and so does a model that is loaded "
        "with `safety_checker=None`."
    )


def _named(numbers: Sequence[int]) -> str:
    return f"keyframe{'s' * (len(numbers) > 1)} {_and([str(number) for number in numbers])}"


def _listed(values: Tensor, numbers: Sequence[int]) -> str:
    return _and([f"{float(values[i - 1]):.2g}" for i in numbers])


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
