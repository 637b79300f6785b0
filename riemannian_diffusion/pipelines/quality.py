"""How much of an image a model loses, and warnings where that is too much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from riemannian_diffusion.pipelines.morph import MorphPath
    from riemannian_diffusion.pipelines.output import GeodesicInterpolationOutput

TOO_MUCH = 0.1  # of an image's variance; scenes of the shipped model lose up to 0.02
MISSED = 0.3  # of the norm of an image's latents: a larger miss after sampling back is too much
LEAST_VARIANCE = 0.01  # of an image, lest a flat one is compared with nothing
GOOD, FAIR = 30.0, 20.0  # PSNR in dB: from 30 on, an image looks as given; below 20 it is another


class ImageWarning(UserWarning):
    """A model does not know an image, or a morph does not show it, or not all its frames.

    Examples:
        >>> import warnings
        >>> from riemannian_diffusion.pipelines import ImageWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter('error', ImageWarning)  # stop at images that are not known
    """


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
    lost = ~(errors.to(images) / variance <= TOO_MUCH)  # NaN counts as lost
    return [int(i) + 1 for i in lost.nonzero()[:, 0]]


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of images in [0, 1], or NaN."""
    return math.inf if error == 0 else -10 * math.log10(error)


def verdict(output: GeodesicInterpolationOutput) -> str:
    """How good a morph is, in one sentence.

    It is "poor" if a keyframe returns with a PSNR below 20 dB, a path leaves the data, or an image
    or a solve met values that are not finite; "good" if every keyframe returns with 30 dB or more
    and every solve converged; and otherwise "fair". A curve without a solve, such as slerp, is
    "poor" or "not judged", because nothing is known of its path. If an image does not return, the
    path is not said to stay on the data: it stays near what the model made of the image.

    Args:
        output: What `render` returns for one morph, with pixels.
    """
    decibels = [psnr(error) for error in output.reconstruction_error]
    found = [one for one in output.geodesics if one is not None]
    worst = min(decibels, key=lambda value: -math.inf if math.isnan(value) else value)
    leaves = any(one.on_data is False for one in found)
    if not worst >= FAIR or leaves or any(one.status == "nonfinite" for one in found):
        word = "poor"
    elif not found:
        word = "not judged"
    elif worst >= GOOD and all(one.status in ("converged", "rounding") for one in found):
        word = "good"
    else:
        word = "fair"
    if len(decibels) > 2:
        order = numbers_of(output.path, len(decibels))
        shown = f"{worst:.1f} dB at worst (image {order[decibels.index(worst)]})"
    else:
        shown = f"{_and([f'{value:.1f}' for value in decibels])} dB"
    parts = [f"the images return with a PSNR of {shown}"]
    bounds = [one.energy / one.lower_bound for one in found if one.lower_bound > 0]
    bounds = [bound for bound in bounds if math.isfinite(bound)]
    if bounds:
        at_most = "" if len(bounds) == 1 else "at most "
        parts.append(f"the energy is {at_most}{max(bounds):.3g} times its lower bound")
    if leaves:
        parts.append("the path leaves the data")
    elif worst >= FAIR and found and all(one.on_data for one in found):
        parts.append("the path stays on the data")
    return f"{word}: {'; '.join(parts)}"


def numbers_of(path: MorphPath, num: int) -> list[int]:
    """The numbers of a path's `num` keyframes, from 1, as the caller gave them."""
    numbers = list(range(1, 1 + num))
    if path.transported is not None:  # its path runs from the second image to the first
        numbers[:2] = [2, 1]
    return numbers


def autoencoder_warning(
    errors: Tensor | None,
    pixels: Tensor,
    *,
    known: str | None = None,
    numbers: Sequence[int] | None = None,
) -> str | None:
    """A warning about images that an autoencoder does not reproduce, or None.

    Args:
        errors: Mean squared error of each image, encoded and decoded `(P,)`; None if unknown.
        pixels: The images `(P, C, H, W)` in [0, 1].
        known: A sentence about what the model knows, and what to do.
        numbers: The numbers of the images for the message; None counts from 1.
    """
    bad = [] if errors is None else too_much_lost(errors, pixels)
    if errors is None or not bad:
        return None
    return (
        f"The model does not know images like {_named(bad, numbers)}: its autoencoder alone "
        f"returns them with a PSNR of {_listed(-10 * errors.log10(), bad)} dB, so the morph will "
        "not show them. "
        f"{known or 'Use a model that was trained on such images.'}"
    )


def inversion_warning(
    errors: Tensor,
    known: Tensor,
    images: Tensor,
    missed: Tensor,
    *,
    numbers: Sequence[int] | None = None,
) -> str | None:
    """A warning about images that are lost between inversion and sampling, or None.

    An image is lost if it loses over a tenth of its variance and the autoencoder alone does not, or
    the rest loses as much. An autoencoder that knows no image hides such losses, so an image is
    also lost if its latents are missed by over 30 % of their norm.

    Args:
        errors: Mean squared error of each image, inverted, sampled and decoded `(P,)`.
        known: The part of it that is the autoencoder's `(P,)`.
        images: The images or latents `(P, C, H, W)`.
        missed: The distance of the sampled latents from those of the image, over their norm `(P,)`.
        numbers: The numbers of the images for the message; None counts from 1.
    """
    known = known.to(errors)
    lost = set(too_much_lost(errors, images)) - set(too_much_lost(known, images))
    lost |= set(too_much_lost(errors - known, images))
    lost |= {int(i) + 1 for i in (~(missed <= MISSED)).nonzero()[:, 0]}
    bad = sorted(lost)
    if not bad:
        return None
    return (
        f"The morph does not show {_named(bad, numbers)}: inverted and sampled back, the latents "
        f"miss by {_and([f'{float(missed[i - 1]):.0%}' for i in bad])} of their norm, and the mean "
        f"squared error is {_listed(errors, bad)}, of which the autoencoder causes "
        f"{_listed(known, bad)}; raise `num_inference_steps`, or lower `strength` or "
        "`guidance_scale`."
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


def _named(bad: Sequence[int], numbers: Sequence[int] | None) -> str:
    shown = sorted(bad if numbers is None else (numbers[i - 1] for i in bad))
    return f"keyframe{'s' * (len(shown) > 1)} {_and([str(number) for number in shown])}"


def _listed(values: Tensor, numbers: Sequence[int]) -> str:
    return _and([f"{float(values[i - 1]):.2g}" for i in numbers])


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
