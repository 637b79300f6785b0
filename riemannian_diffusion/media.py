"""Images, clips and morphs as files. Files are complete when they appear under their name."""

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
    """Frames that were read from a video.

    Attributes:
        frames: The frames, PIL images in RGB.
        fps: Frames per second of the video.
        places: Number of each frame in the video, from 0.
    """

    frames: list[Any]
    fps: float
    places: list[int]


def sorted_by_name(folder: Path) -> list[Path]:
    """Files and folders of a folder by name, without hidden ones; `2` comes before `10`."""
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return sorted(visible, key=lambda path: (_natural(path.name), path.name))


def _natural(name: str) -> list[tuple[int, int, str]]:
    pieces = re.split(r"(\d+)", name)  # text and digits alternate
    return [(1, int(p), "") if i % 2 else (0, 0, p) for i, p in enumerate(pieces)]


def images_in(folder: Path) -> tuple[Path, ...]:
    """The image files in a folder, sorted by name."""
    return tuple(
        p for p in sorted_by_name(folder) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
    )


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open an image file inside the context.

    Raises:
        OSError: If the file cannot be read as an image. Pillow raises errors of many classes, and
            not all of them name the file, so they are replaced by this one.
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
    """Read an image file in RGB and turn it upright.

    Args:
        path: The file.
        size: Width and height to which the image is cropped and scaled; None keeps its size.

    Raises:
        OSError: If the file cannot be read as an image.
    """
    from PIL import ImageOps

    with opened(path) as image:
        image = converted(ImageOps.exif_transpose(image), "RGB")
    return _fitted(image, size)


def converted(image, mode: str):
    """A PIL image in another mode. Of 16-bit greys the upper 8 bits are kept; Pillow clips them."""
    from PIL import Image

    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    return image.convert(mode)


def read_clip(
    path: Path, places: Sequence[int] | None = None, size: tuple[int, int] | None = None
) -> Clip:
    """Read frames of a video file.

    Args:
        path: The file, in any format that ffmpeg reads.
        places: Numbers of the frames, from 0; negative ones count from the end. None takes all.
        size: Width and height to which frames are cropped and scaled; None keeps their size.

    Raises:
        OSError: If the file is missing or is no video.
        ValueError: If the video has no frame with one of the numbers.
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
    """Write frames to a file or a folder, first under a temporary name.

    Args:
        frames: PIL images of one size.
        output: The suffix selects the kind: `.gif`, `.mp4`, another image format for a grid of all
            frames, or no suffix for a folder of PNG files.
        fps: Frames per second of a GIF or a video.

    Raises:
        OSError: If the file cannot be written.
    """
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
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process of this number
        temporary.mkdir()
        for i, frame in enumerate(frames):
            frame.save(temporary / f"frame_{i:04d}.png")
        if output.exists():  # only with --force: replace the frames, keep all other files
            names = {new.name for new in temporary.iterdir()}
            for new in sorted_by_name(temporary):
                new.replace(output / new.name)
            old = [p for p in sorted_by_name(output) if re.fullmatch(r"frame_\d{4,}\.png", p.name)]
            for path in reversed(old):  # from the end, so that an interruption leaves no gap
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
    try:  # ffmpeg reports no error if the disk was full when it finished the file
        num_frames, _ = imageio_ffmpeg.count_frames_and_secs(path)
    except RuntimeError:
        num_frames = 0
    if num_frames != len(frames):
        raise OSError(f"ffmpeg wrote {num_frames} of {len(frames)} frames: is the disk full?")


def _grid(frames: list):
    """All frames in rows on a white sheet that is nearly square."""
    from PIL import Image

    width, height = frames[0].size
    columns = min(len(frames), max(1, round((len(frames) * height / width) ** 0.5)))
    rows = -(-len(frames) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i, frame in enumerate(frames):
        sheet.paste(frame, (i % columns * width, i // columns * height))
    return sheet
