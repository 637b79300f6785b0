"""The images that a command line names, and the frames at which the morph shows them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from riemannian_diffusion.arguments import check_finite, check_not_negative
from riemannian_diffusion.media import (
    CLIP_SUFFIXES,
    images_in,
    is_clip,
    left_out,
    open_image,
    read_clip,
)
from riemannian_diffusion.pairs.manifest import MOST_FRAMES
from riemannian_diffusion.pipelines.checks import check_inversion, check_sampling, check_solve


@dataclass(frozen=True)
class Inputs:
    """The images of a morph and how to place them.

    Attributes:
        images: The keyframes, PIL images.
        names: Where each comes from.
        num_frames: Number of frames of each gap between keyframes, both keyframes included.
        fps: Frames per second.
        third: The image of `--analogy`, or None.
        starts: Where the solve starts: names, or lists of PIL images; None for the default.
    """

    images: list[Any]
    names: list[str]
    num_frames: list[int]
    fps: float
    third: Any
    starts: list[Any] | None


def check_ranges(args: argparse.Namespace) -> None:
    """Refuse options that are out of range, before any work and without PyTorch.

    Raises:
        ValueError: Naming the argument of the library.
    """
    check_inversion(
        args.space, args.strength, args.steps, args.spacing, None, args.max_batch_size, None
    )
    check_solve(None, args.max_evals, 0.0 if args.rtol is None else args.rtol, 1, None)
    check_sampling(args.adain, args.attention_interpolation, args.space, None)
    check_not_negative(share=args.extrapolate)
    check_finite(guidance_scale=args.guidance, guidance_damping=args.guidance_damping)


class Reader:
    """Reads the files of a command line.

    Args:
        background: The colour behind transparent parts.
        tell: Receives sentences about what may be read differently from what is meant.
    """

    def __init__(self, background: str, tell: Callable[[str], None]):
        self._tell = tell
        self.image = partial(open_image, background=background, tell=tell)
        self.clip = partial(read_clip, background=background, tell=tell)

    def folder(self, path: Path) -> list[Path]:
        """The images in a folder; what else it holds is told."""
        rest = left_out(path)
        if rest is not None:
            self._tell(rest)
        return list(images_in(path))


def read_inputs(args: argparse.Namespace, tell: Callable[[str], None]) -> Inputs:
    """Read the images of a command line.

    Args:
        args: The command line.
        tell: Receives sentences about what may be read differently from what is meant.

    Raises:
        OSError: If a file is missing or cannot be read.
        ValueError: If the images, their frame numbers and other options do not fit together.
    """
    reader = Reader(args.background, tell)
    images, names, frames, fps = _keyframes(args, reader)
    third = None if args.analogy is None else reader.image(args.analogy, args.size)
    if third is not None and args.extrapolate:
        raise ValueError("--analogy and --extrapolate exclude each other: give one of them.")
    if third is not None and len(images) != 2:
        raise ValueError(f"--analogy needs two images, but got {len(images)}.")
    if third is not None and third.size != images[0].size:
        own, theirs = ("{} x {}".format(*image.size) for image in (third, images[0]))
        raise ValueError(
            f"--analogy {args.analogy} has {own} pixels, but the first image has {theirs}: crop "
            "and scale them with --size WIDTHxHEIGHT."
        )
    num_prompts, num_shown = len(args.prompt or [""]), len(images) + (third is not None)
    if num_prompts not in (1, num_shown):
        raise ValueError(
            f"--prompt must be given once, or once for each of {num_shown} images (that of "
            f"--analogy is the last), but is given {num_prompts} times."
        )
    num_frames = frames_of_gaps(frames, len(images) - 1)
    return Inputs(images, names, num_frames, fps, third, _starts(args, images, reader))


def _keyframes(
    args: argparse.Namespace, reader: Reader
) -> tuple[list[Any], list[str], int | list[int], float]:
    """The keyframes, their names, the frames that the user asks for, and frames per second."""
    from riemannian_diffusion import demo

    given = args.images or [Path(path) for path in demo.endpoint_paths()]
    paths, numbers = map(list, zip(*map(split_number, given), strict=True))
    has_frames = len(paths) == 1 and is_clip(paths[0])
    is_folder = len(paths) == 1 and paths[0].is_dir()
    if (has_frames or is_folder) and numbers != [None]:
        raise ValueError(
            f"a frame number stands behind an image, but {paths[0]} is a folder or a video."
        )
    clips = [path for path in paths if path.suffix.lower() in CLIP_SUFFIXES]
    if clips and len(paths) > 1:
        raise ValueError(f"{clips[0]} is a video: give it alone, or give images of its frames.")
    if has_frames:
        clip = reader.clip(paths[0], tuple(args.clip_frames or (0, -1)), args.size)
        first, last = clip.places
        if not first < last:
            raise ValueError(
                f"--clip-frames must name an earlier and a later frame of {paths[0]}, but got "
                f"{first} and {last}."
            )
        frames = last - first + 1 if args.frames is None else args.frames
        names = [f"{paths[0]}#{place}" for place in clip.places]
        return clip.frames, names, frames, args.fps or clip.fps
    if args.clip_frames is not None:
        raise ValueError("--clip-frames chooses frames of a video, but no video is given.")
    if is_folder:
        folder, paths = paths[0], reader.folder(paths[0])
        if not paths:
            raise ValueError(f"the folder {folder} holds no images.")
        numbers = [None] * len(paths)
    if len(paths) == 1 and not (paths[0].suffix or paths[0].exists()):  # meant as a folder
        raise FileNotFoundError(f"{paths[0]} does not exist.")
    if len(paths) == 1:
        raise ValueError(f"a morph needs two or more images, but got {paths[0]} alone.")
    frames = 17 if args.frames is None else args.frames
    if numbers != [None] * len(numbers):
        if args.frames is not None:
            raise ValueError("frame numbers behind images and --frames exclude each other.")
        frames = frames_between(paths, numbers)
    images = [reader.image(path, args.size) for path in paths]
    return images, [*map(str, paths)], frames, args.fps or 12.0


def split_number(path: Path) -> tuple[Path, int | None]:
    """A file and its frame number, as in `cat.png@24`.

    If a file has the whole name, `@24` is part of its name.

    Returns:
        The file, and the number or None.
    """
    name, _, number = path.name.rpartition("@")
    if not (name and number.isascii() and number.isdecimal()) or path.exists():
        return path, None
    return path.with_name(name), int(number)


def frames_between(paths: Sequence[Path], numbers: Sequence[int | None]) -> list[int]:
    """The number of frames from each image to the next, both included.

    Args:
        paths: The images.
        numbers: Their frame numbers.

    Raises:
        ValueError: If an image has no number, or they do not rise from 0.
    """
    placed = [number for number in numbers if number is not None]
    if len(placed) < len(numbers):
        bare = paths[list(numbers).index(None)]
        raise ValueError(
            "give every image a frame number, as in a.png@0 b.png@24, or none of them: "
            f"{bare} has none."
        )
    gaps = [b - a + 1 for a, b in zip(placed, placed[1:], strict=False)]
    if placed[0] != 0 or min(gaps) < 2:
        raise ValueError(
            "the frame numbers behind images must rise from 0, but got "
            f"{', '.join(map(str, placed))}."
        )
    return gaps


def frames_of_gaps(frames: int | list[int], num_gaps: int) -> list[int]:
    """The number of frames of each gap, from one number or one for each.

    Raises:
        ValueError: If one is below 2, there is not one for each gap, or there are too many frames.
    """
    found = frames if isinstance(frames, list) else [frames] * num_gaps
    if len(found) != num_gaps:
        raise ValueError(
            "--frames must be one number, or one from each image to the next, which makes "
            f"{num_gaps}, but got {len(found)}."
        )
    if min(found) < 2:
        raise ValueError(f"--frames must be at least 2, but got {min(found)}.")
    if sum(found) > MOST_FRAMES:
        raise ValueError(
            f"the morph would have {sum(found)} frames, more than {MOST_FRAMES}: ask for fewer "
            "with --frames, or with smaller frame numbers behind images."
        )
    return found


def _starts(args: argparse.Namespace, images: list[Any], reader: Reader) -> list[Any] | None:
    """Names of starts, and images of those that are folders or videos, in the keyframes' size."""
    if args.init is None:
        return None
    starts: list[Any] = []
    for start in args.init:
        if isinstance(start, Path):
            size = images[0].size
            if len(images) != 2:
                raise ValueError(
                    f"--init {start} starts a morph of two images, but there are {len(images)}."
                )
            if start.is_dir():
                shown = [reader.image(path, size) for path in reader.folder(start)]
            else:
                shown = reader.clip(start, None, size).frames
            if len(shown) < 2:
                raise ValueError(f"--init {start} must hold two or more images.")
            starts.append(shown)
        else:
            starts.append(start)
    return starts
