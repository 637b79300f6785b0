"""Images, clips and morphs as files: keyframes are read, frames written, never half a file."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from riemannian_diffusion.files import write_atomically

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CLIP_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


@dataclass(frozen=True)
class Clip:
    """Frames of a clip.

    Attributes:
        frames: PIL images, RGB.
        fps: Its frames per second.
        places: The frames' numbers in it.
    """

    frames: list[Any]
    fps: float
    places: list[int]


def sorted_by_name(folder: Path) -> list[Path]:
    """What is in a folder and not hidden, numbers in names by value."""
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return sorted(visible, key=lambda path: (_natural(path.name), path.name))


def _natural(name: str) -> list[tuple[int, int, str]]:
    pieces = re.split(r"(\d+)", name)  # text and digits by turns
    return [(1, int(p), "") if i % 2 else (0, 0, p) for i, p in enumerate(pieces)]


def images_in(folder: Path) -> tuple[Path, ...]:
    """The image files in a folder, by name."""
    return tuple(
        p for p in sorted_by_name(folder) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
    )


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An image file for as long as it is read.

    Raises:
        OSError: Whatever goes wrong meanwhile: Pillow's errors are of many kinds, and not all of
            them name the file.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise
    except Exception as error:
        raise OSError(f"{path} cannot be read as an image: {error}") from error


def open_image(path: Path, size: tuple[int, int] | None):
    """An image file, upright, RGB; cropped and scaled to (width, height) where given."""
    from PIL import ImageOps

    with opened(path) as image:
        image = converted(ImageOps.exif_transpose(image), "RGB")
    return _fitted(image, size)


def converted(image, mode: str):
    """A PIL image in another mode; of 16-bit greys, which Pillow clips, the upper 8 bits."""
    from PIL import Image

    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    return image.convert(mode)


def read_clip(
    path: Path, places: Sequence[int] | None = None, size: tuple[int, int] | None = None
) -> Clip:
    """Frames of a video file.

    Args:
        path: The file, of any kind that ffmpeg reads.
        places: Numbers of the frames, from 0; negative ones count from the end. None takes all.
        size: Crop and scale them to (width, height).

    Raises:
        OSError: If the file is missing or is no video.
        ValueError: If it has no such frame.
    """
    import imageio_ffmpeg
    from PIL import Image

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        num_frames, _ = imageio_ffmpeg.count_frames_and_secs(path)
        reader = imageio_ffmpeg.read_frames(path)
        meta = next(reader)
    except (RuntimeError, OSError, StopIteration) as error:
        raise OSError(f"{path} cannot be read as a video: {error}") from error
    places = range(num_frames) if places is None else places
    wanted = [place + num_frames if place < 0 else place for place in places]
    for place, given in zip(wanted, places, strict=True):
        if not 0 <= place < num_frames:
            reader.close()
            raise ValueError(f"{path} has {num_frames} frames, none with the number {given}.")
    found = {}
    for i, data in enumerate(reader):
        if i in wanted:
            found[i] = _fitted(Image.frombytes("RGB", meta["size"], data), size)
        if len(found) == len(set(wanted)):
            break
    reader.close()
    if len(found) < len(set(wanted)):
        raise OSError(f"{path} ended after {len(found)} of the {len(set(wanted))} frames sought.")
    return Clip([found[place] for place in wanted], float(meta["fps"]), wanted)


def _fitted(image, size: tuple[int, int] | None):
    from PIL import Image, ImageOps

    return image if size is None else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def write_frames(frames: list, output: Path, fps: float) -> None:
    """Write frames as a GIF, a video, a grid or a directory, under a temporary name first."""
    suffix = output.suffix.lower()
    if suffix == "":
        _write_directory(frames, output)
    elif suffix == ".gif":
        options = {
            "append_images": frames[1:],
            "duration": round(1000 / fps),
            "loop": 0,
        }
        write_atomically(output, lambda path: frames[0].save(path, save_all=True, **options))
    elif suffix == ".mp4":
        write_atomically(output, lambda path: _write_video(frames, path, fps))
    else:
        write_atomically(output, _grid(frames).save)


def _write_directory(frames: list, output: Path) -> None:
    temporary = output.with_name(f".{os.getpid()}-{output.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a process of this number that was killed
        temporary.mkdir()
        for i, frame in enumerate(frames):
            frame.save(temporary / f"frame_{i:04d}.png")
        if output.exists():  # only with --force: replace the frames, leave what else is there
            names = {new.name for new in temporary.iterdir()}
            for new in sorted_by_name(temporary):
                new.replace(output / new.name)
            old = [p for p in sorted_by_name(output) if re.fullmatch(r"frame_\d{4,}\.png", p.name)]
            for path in reversed(old):  # no gap, whenever this ends
                if path.name not in names:
                    path.unlink()
        else:
            temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_video(frames: list, path: Path, fps: float) -> None:
    import imageio_ffmpeg

    width, height = frames[0].size
    writer = imageio_ffmpeg.write_frames(
        path, (width, height), fps=fps, quality=9, macro_block_size=2, ffmpeg_log_level="error"
    )
    with closing(writer):
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(np.asarray(frame.convert("RGB"))))
    try:  # ffmpeg tells nobody that the disk was full when it finished the file
        num_frames, _ = imageio_ffmpeg.count_frames_and_secs(path)
    except RuntimeError:
        num_frames = 0
    if num_frames != len(frames):
        raise OSError(f"ffmpeg wrote {num_frames} of {len(frames)} frames: is the disk full?")


def _grid(frames: list):
    """All frames in rows, as near to a square as they come, on white."""
    from PIL import Image

    width, height = frames[0].size
    columns = min(len(frames), max(1, round((len(frames) * height / width) ** 0.5)))
    rows = -(-len(frames) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i, frame in enumerate(frames):
        sheet.paste(frame, (i % columns * width, i // columns * height))
    return sheet
