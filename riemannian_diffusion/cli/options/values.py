"""The values of options, as argparse reads them."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

# Names that the library defines, repeated here because importing the library takes seconds.
INIT_NAMES = ("slerp", "lerp", "split", "roadmap")


def weighted(text: str) -> tuple[str, float]:
    """A path and the weight behind its last colon, 1 without one."""
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        found = float(weight)
    except ValueError:  # the colon belongs to the path
        return text, 1.0
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"must have a finite weight, but got {text!r}")
    return path, found


def seed(text: str) -> int:
    """A whole number of 64 bits."""
    try:
        found = int(text)
    except ValueError:
        found = -1
    if not 0 <= found < 2**64:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 0 to 2^64 - 1, but got {text}"
        )
    return found


def start(text: str) -> str | Path:
    """A start's name, or the folder or file of its images."""
    if text in INIT_NAMES:
        return text
    if not Path(text).exists():
        names = ", ".join(INIT_NAMES)
        raise argparse.ArgumentTypeError(
            f"must be {names}, a folder of images or a video, but got {text!r}"
        )
    return Path(text)


def frames(text: str) -> int | list[int]:
    """One number, or several between commas."""
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a whole number, or one for each gap, but got {text!r}"
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]


def colour(text: str) -> str:
    """The name of an opaque colour, or #rrggbb."""
    from PIL import ImageColor

    try:
        num_channels = len(ImageColor.getrgb(text))
    except ValueError:
        num_channels = 0
    if num_channels != 3:
        raise argparse.ArgumentTypeError(
            f"must be a colour such as grey or #808080, but got {text!r}"
        )
    return text


def size(text: str) -> tuple[int, int]:
    """Width and height in pixels; one number stands for both."""
    width, _, height = text.partition("x")
    try:
        found = int(width), int(height or width)
    except ValueError:
        found = (0, 0)
    if not 1 <= min(found) <= max(found) <= 2**14:
        raise argparse.ArgumentTypeError(f"must be like 512 or 768x512, but got {text!r}")
    return found


def scale(text: str) -> int:
    """A whole factor of the size of what is written."""
    if not text.isdecimal() or not 1 <= int(text) <= 32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 32, but got {text}")
    return int(text)
