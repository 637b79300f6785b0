"""The visitors' inputs, in the form that the pipeline takes."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from riemannian_diffusion.media import open_image
from riemannian_diffusion.media.images import opened

LARGEST_SIZE = 4  # times the model's own
MOST_IMAGES = 12
MOST_FRAMES = 257
MOST_PIXELS = 50_000_000  # of one uploaded image: decoded, these are 150 MB
NO_METRIC, NO = "none", "no"
ANALOGY = "Change another image instead"  # a label of the page

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What a visitor asks for; each field is an input of the page and a parameter of its API.

    Attributes:
        model: Name of the model.
        images: Files of the images and their captions, as gradio's gallery gives them.
        prompts: As `parse_prompts` reads them.
        metric: Name of the metric.
        other: Name of a metric to compare with, or "none".
        num_frames: Frames from each image to the next, both included.
        at_frames: As `frames_of_gaps` reads it; empty takes `num_frames`.
        fps: Frames per second.
        strength: Noise level.
        width: Width in pixels; 0 is the model's own.
        height: Height in pixels; 0 is the model's own.
        negative: Negative prompt.
        guidance: Guidance scale.
        damping: Share by which guidance across the data manifold is damped.
        steps: Steps of the whole schedule.
        max_evals: Evaluations of each solve at most.
        start: Names of the starts; none is the default.
        adapt: What is fitted to the images first: "embeddings", "lora", "both" or "no".
        space: The space of the path.
        attention: Share of the sampling steps with interpolated attention.
        retime: The distance by which frames are spaced evenly, or "no".
        extrapolate: How far to go beyond the last image, as a share of the last gap.
        analogy: The image that is shown in place of the two, changed as the first changes to the
            second; at most one, as gradio's gallery gives it.
        paste: Put the images in place of their reconstructions.
        ping_pong: Play forth and back.
        seed: Seed of all random numbers.
    """

    model: str
    images: list[tuple[str, str | None]]
    prompts: str
    metric: str
    other: str
    num_frames: float
    at_frames: str
    fps: float
    strength: float
    width: float
    height: float
    negative: str
    guidance: float
    damping: float
    steps: float
    max_evals: float
    start: list[str]
    adapt: str
    space: str
    attention: float
    retime: str
    extrapolate: float
    analogy: list[tuple[str, str | None]] | None
    paste: bool
    ping_pong: bool
    seed: float

    @property
    def metrics(self) -> list[str]:
        """The metrics to solve with."""
        is_compared = self.other not in (NO_METRIC, self.metric)
        return [self.metric, self.other] if is_compared else [self.metric]

    @property
    def starts(self) -> list[str] | None:
        """Where the solve starts; None is the default."""
        return self.start or None

    def check(self) -> None:
        """Refuse what no model can do.

        Raises:
            ValueError: Naming the label on the page.
        """
        labels = {
            **{"Frames": self.num_frames, "Frames/s": self.fps, "Strength": self.strength},
            **{"Guidance": self.guidance, "Guidance damping": self.damping, "Steps": self.steps},
            **{"Evaluations at most": self.max_evals, "Attention interpolation": self.attention},
            **{"Go on beyond the last image": self.extrapolate, "Seed": self.seed},
        }
        check_numbers(**labels)
        whole = {"Frames": self.num_frames, "Steps": self.steps, "Seed": self.seed}
        for name, value in (whole | {"Evaluations at most": self.max_evals}).items():
            if value != int(value):
                raise ValueError(f"{name} must be a whole number, but got {value:g}.")
        if not 0.01 <= self.fps <= 1000:
            raise ValueError(f"Frames/s must be from 0.01 to 1000, but got {self.fps:g}.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"Seed must be from 0 to 2^63 - 1, but got {self.seed:g}.")
        if len(self.images or []) > MOST_IMAGES:
            raise ValueError(
                f"A morph takes at most {MOST_IMAGES} images here, but got {len(self.images)}."
            )
        if not self.analogy:
            return
        if len(self.analogy) > 1 or len(self.images or []) != 2:
            raise ValueError(
                f"“{ANALOGY}” needs two images above and one here, but got "
                f"{len(self.images or [])} and {len(self.analogy)}."
            )
        if self.extrapolate:
            raise ValueError(
                f"“{ANALOGY}” and “Go on beyond the last image” exclude each other: use one of "
                "them."
            )

    def inversion(self) -> dict[str, Any]:
        """Options of `Request.invert`."""
        return {
            "prompt": parse_prompts(self.prompts),
            "negative_prompt": self.negative or "",
            "adapt": None if self.adapt == NO else self.adapt,
            "space": self.space,
            "strength": self.strength,
            "num_inference_steps": int(self.steps),
            "guidance_scale": self.guidance,
            "guidance_damping": self.damping,
        }

    def morph(self) -> dict[str, Any]:
        """Options of `Request.morphs`."""
        num_images = len(self.images or [])
        return {
            "num_frames": frames_of_gaps(self.at_frames, num_images) or int(self.num_frames),
            "max_evals": int(self.max_evals),
            "init": self.starts,
            "attention_interpolation": self.attention,
            "retime": None if self.retime == NO else self.retime,
            "share": self.extrapolate,
            "paste": self.paste,
        }


def parse_prompts(text: str) -> str | list[str]:
    """One line is a prompt for all images; more are one for each, empty ones among them."""
    lines = [line.strip() for line in (text or "").strip().splitlines()]
    return lines if len(lines) > 1 else "".join(lines)


def frames_of_gaps(text: str, num_images: int) -> list[int]:
    """The number of frames from each image to the next, from the frames that show the images.

    Args:
        text: The number of each image's frame, rising from 0, such as "0, 12, 48".
        num_images: Number of images.

    Returns:
        A number for each gap, both images included; none if the text is empty.

    Raises:
        ValueError: If the numbers do not rise from 0, or there is not one for each image.
    """
    words = (text or "").replace(",", " ").split()
    if not words:
        return []
    numbers = [
        int(word) if word.isascii() and word.isdecimal() and len(word) < 10 else -1
        for word in words
    ]
    rises = all(a < b for a, b in zip(numbers, numbers[1:], strict=False))
    if numbers[0] != 0 or not rises or numbers[-1] >= MOST_FRAMES:
        raise ValueError(
            "Images at frames must be whole numbers that rise from 0 to at most "
            f"{MOST_FRAMES - 1}, such as 0, 12, 48, but got {' '.join(words)[:100]}."
        )
    if len(numbers) != num_images:
        raise ValueError(
            f"Images at frames must be one number for each of {num_images} images, but got "
            f"{len(numbers)}."
        )
    return [b - a + 1 for a, b in zip(numbers, numbers[1:], strict=False)]


def check_numbers(**numbers: float | None) -> None:
    """Refuse a number that is missing or not finite.

    Raises:
        ValueError: Naming it.
    """
    for name, value in numbers.items():
        if value is None or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, but got {value}.")


def check_size(width: float, height: float, native: int) -> tuple[int, int]:
    """The size in whole pixels; 0 stands for the model's own.

    Raises:
        ValueError: If it is no size, or far beyond what the model can draw.
    """
    check_numbers(Width=width, Height=height)
    width, height = width or native, height or native
    most = LARGEST_SIZE * native
    if not (1 <= width <= most and 1 <= height <= most):
        raise ValueError(
            f"Width and Height must be from 1 to {most}, {LARGEST_SIZE} times what the model was "
            f"trained on, but got {width:g} x {height:g}."
        )
    return int(width), int(height)


def check_upload(path: Path) -> None:
    """Refuse a file that is no image, or one with too many pixels, before it is decoded.

    Raises:
        ValueError: Naming the file, and what to do.
    """
    try:
        with opened(path) as image:
            width, height = image.size
    except OSError as error:
        raise ValueError(_named(str(error), path)) from error
    if width * height > MOST_PIXELS:
        raise ValueError(
            f"{path.name} has {width} x {height} pixels, more than {MOST_PIXELS // 10**6} million: "
            "scale it down first."
        )


def fit_images(paths: Sequence[str], size: tuple[int, int], tell: Tell) -> list[PIL.Image.Image]:
    """Image files, cropped and scaled.

    Args:
        paths: The files.
        size: Width and height.
        tell: Receives sentences about what may be read differently from what is meant.

    Raises:
        ValueError: Naming the file that is no image, or too large.
    """
    images = []
    for path in map(Path, paths):

        def tell_of(text: str, path: Path = path) -> None:
            tell(text.replace(str(path), path.name))

        check_upload(path)
        try:
            images.append(open_image(path, size, tell=tell_of))
        except OSError as error:
            raise ValueError(_named(str(error), path)) from error
    return images


def as_text(words: str) -> str:
    """Words that may quote the input, for where the page takes HTML."""
    return html.escape(" ".join(words.split()), quote=False)


def _named(why: str, path: Path) -> str:
    """Why a file cannot be read, without the folder of the server."""
    if not path.exists():
        return f"{path.name} cannot be read as an image: it does not exist."
    return why.replace(str(path), path.name)
