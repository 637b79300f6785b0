"""The visitors' inputs, in the form that the pipeline takes."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
import PIL.Image

from riemannian_diffusion.media import open_image

LARGEST_SIZE = 4  # times the model's own


def parse_prompts(text: str) -> str | list[str]:
    """One line is a prompt for all images; more are one for each, empty ones among them."""
    lines = [line.strip() for line in (text or "").strip().splitlines()]
    return lines if len(lines) > 1 else "".join(lines)


def check_numbers(**numbers: float | None) -> None:
    """Refuse a number that is missing or not finite.

    Raises:
        ValueError: Naming it.
    """
    for name, value in numbers.items():
        if value is None or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, but got {value}.")


def check_size(width: float, height: float, native: int) -> tuple[int, int]:
    """The size in whole pixels.

    Raises:
        ValueError: If it is no size, or far beyond what the model can draw.
    """
    check_numbers(width=width, height=height)
    most = LARGEST_SIZE * native
    if not (1 <= width <= most and 1 <= height <= most):
        raise ValueError(
            f"Width and height must be from 1 to {most}, {LARGEST_SIZE} times what the model was "
            f"trained on, but got {width:g} x {height:g}."
        )
    return int(width), int(height)


def fit_images(paths: Sequence[str], size: tuple[int, int]) -> list[PIL.Image.Image]:
    """Image files, cropped and scaled to (width, height). What they leave open, the page tells.

    Raises:
        ValueError: Naming the file that is no image.
    """
    images = []
    for path in map(Path, paths):

        def tell(text: str, path: Path = path) -> None:
            gr.Warning(html.escape(text.replace(str(path), path.name), quote=False))

        try:
            images.append(open_image(path, size, tell=tell))
        except OSError as error:
            why = str(error).replace(str(path), path.name)
            if isinstance(error, FileNotFoundError):
                why = f"{path.name} cannot be read as an image: it does not exist."
            raise ValueError(why) from error
    return images
