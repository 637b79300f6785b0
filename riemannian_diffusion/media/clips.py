"""Frames of videos and of animated images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from riemannian_diffusion.media.images import converted, fitted, is_image, num_frames, opened
from riemannian_diffusion.media.numbers import Tell, warn

CLIP_SUFFIXES = (
    *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".ts", ".mts", ".m2ts", ".3gp", ".ogv", ".mxf", ".y4m"),
)
USUAL_FPS = 12.0  # of pictures without times, such as the pages of a TIFF file
HDR_TRANSFERS = (16, 18)  # PQ and HLG

Frame = tuple[float | None, Callable[[], Any]]  # its time in seconds, and what makes the picture


@dataclass(frozen=True)
class Clip:
    """Frames that were read from a video or an animated image.

    Attributes:
        frames: The frames, PIL images in RGB, upright and with square pixels.
        fps: Frames per second, the mean where the rate changes.
        places: Number of each frame in the order in which they are shown, from 0.

    Examples:
        >>> from PIL import Image
        >>> from riemannian_diffusion.media import Clip
        >>> clip = Clip([Image.new('RGB', (8, 8))] * 24, fps=12, places=[*range(24)])
        >>> len(clip.frames) / clip.fps  # seconds
        2.0
    """

    frames: list[Any]
    fps: float
    places: list[int]


def is_clip(path: Path) -> bool:
    """Whether a file is a video by its name, or an image file with several frames.

    Examples:
        >>> from pathlib import Path
        >>> from riemannian_diffusion import demo
        >>> from riemannian_diffusion.media import is_clip
        >>> is_clip(Path('morph.mp4')), is_clip(Path(demo.endpoint_paths()[0]))
        (True, False)
    """
    if not is_image(path) or not path.is_file():
        return path.suffix.lower() in CLIP_SUFFIXES
    with opened(path) as image:
        return num_frames(image) > 1


def read_clip(
    path: Path,
    places: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
    *,
    background: str = "white",
    tell: Tell = warn,
) -> Clip:
    """Read frames of a video or an animated image.

    Frame `k` is the k-th frame that is shown, however long each of them is shown.

    Args:
        path: The file, in any format that FFmpeg or Pillow reads.
        places: Numbers of the frames, from 0; negative ones count from the end. None takes all.
        size: Width and height to which frames are cropped and scaled; None keeps their size.
        background: The colour behind transparent parts, as Pillow writes colours.
        tell: Receives sentences about what may be read differently from what is meant.

    Raises:
        OSError: If the file is missing, damaged or no video.
        ValueError: If the video has no frame with one of the numbers.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from riemannian_diffusion.media import read_clip, write_frames
        >>> frames = [Image.new('RGB', (8, 8), colour) for colour in ('red', 'green', 'blue')]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_frames(frames, Path(folder) / 'morph.gif', 10)
        ...     clip = read_clip(Path(folder) / 'morph.gif', [0, -1])
        >>> clip.places, clip.fps
        ([0, 2], 10.0)
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    if path.stat().st_size == 0:
        raise OSError(f"{path} cannot be read as a video: it is empty.")
    source: _Video | _Animation = _Animation(path) if is_image(path) else _Video(path)
    times = [time for time, _ in source.frames()]
    num = len(times)
    if num == 0:
        raise OSError(f"{path} cannot be read as a video: it has no frames.")
    fps = _rate(times, source.fps)
    source.tell_of_facts(num, num / fps, tell)
    places = range(num) if places is None else places
    wanted = [place + num if place < 0 else place for place in places]
    for place, given in zip(wanted, places, strict=True):
        if not 0 <= place < num:
            raise ValueError(f"{path} has {num} frames, none with the number {given}.")
    told: set[str] = set()  # what is so of every frame is told once
    seen = partial(converted, mode="RGB", name=str(path), background=background, tell=told.add)
    found = {}
    for i, (_, picture) in enumerate(source.frames()):
        if i in wanted:
            found[i] = fitted(seen(picture()), size)
        if len(found) == len(set(wanted)):
            break
    for text in sorted(told):
        tell(text)
    return Clip([found[place] for place in wanted], fps, wanted)


def _rate(times: list[float | None], stated: float | None) -> float:
    """Frames per second: what is stated if the times agree, and else their mean."""
    first, last = times[0], times[-1]
    if first is None or last is None or last <= first:
        return stated or USUAL_FPS
    mean = (len(times) - 1) / (last - first)
    return stated if stated and abs(stated / mean - 1) < 0.01 else mean


class _Animation:
    """An image file with several frames, as Pillow reads it."""

    def __init__(self, path: Path):
        self.path = path
        self.fps: float | None = None

    def frames(self) -> Iterator[Frame]:
        from PIL import ImageSequence

        with opened(self.path) as image:
            seconds, timed = 0.0, True
            for frame in ImageSequence.Iterator(image):
                frame.load()  # the duration of a WebP frame is known now
                yield seconds if timed else None, frame.copy
                shown = frame.info.get("duration", 0) / 1000
                timed &= shown > 0
                # Browsers show frames of less than 2/100 s for 10/100 s.
                seconds += 0.1 if image.format == "GIF" and shown < 0.02 else shown

    def tell_of_facts(self, num: int, seconds: float, tell: Tell) -> None:
        """Nothing can be missing."""


class _Video:
    """A video file, as FFmpeg reads it."""

    def __init__(self, path: Path):
        self.path = path
        self.fps: float | None = None
        self._num, self._seconds, self._transfer = 0, 0.0, 0

    def frames(self) -> Iterator[Frame]:
        import av

        try:
            # A name with a colon would be taken for a protocol, so FFmpeg gets an open file.
            with self.path.open("rb") as file, av.open(file, "r") as container:
                stream: Any = container.streams.best("video")
                if stream is None:
                    raise OSError(f"{self.path} cannot be read as a video: it has no pictures.")
                stream.thread_type = "AUTO"
                self.fps = float(stream.average_rate) if stream.average_rate else None
                self._num, self._seconds = stream.frames, (container.duration or 0) / av.time_base
                shape = stream.sample_aspect_ratio or 1
                frames: Iterator[Any] = container.decode(stream)
                for frame in frames:
                    self._transfer = frame.color_trc
                    yield frame.time, partial(_picture, frame, float(shape))
        except av.FFmpegError as error:
            raise OSError(f"{self.path} cannot be read as a video: {error.strerror}") from error

    def tell_of_facts(self, num: int, seconds: float, tell: Tell) -> None:
        if self._num > num or (not self._num and self._seconds > 1.1 * seconds + 1):
            promised = f"{self._num} frames" if self._num else f"{self._seconds:.3g} s"
            tell(f"{self.path} should have {promised}, but ends after {num} frames, as if cut off.")
        if self._transfer in HDR_TRANSFERS:
            tell(f"{self.path} is HDR video: its colours are read without tone mapping.")


def _picture(frame, shape: float):
    """A frame as a PIL image with square pixels, upright."""
    from PIL import Image

    has_alpha = any(component.is_alpha for component in frame.format.components)
    image = Image.fromarray(frame.to_ndarray(format="rgba" if has_alpha else "rgb24"))
    if shape > 0 and shape != 1:  # the shorter side of a pixel is stretched
        width, height = image.width * max(1, shape), image.height * max(1, 1 / shape)
        image = image.resize((round(width), round(height)), Image.Resampling.LANCZOS)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    return _displayed(image, np.frombuffer(bytes(matrix), np.int32).reshape(3, 3))


def _displayed(image, matrix: np.ndarray):
    """An image as a display matrix shows it: a pixel `(x, y)` moves to `(x, y) @ matrix`."""
    from PIL.Image import Transpose

    (a, b, _), (c, d, _), _ = matrix
    if not a:  # the axes are swapped
        image, a, d = image.transpose(Transpose.TRANSPOSE), c, b
    if a < 0:
        image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
    return image.transpose(Transpose.FLIP_TOP_BOTTOM) if d < 0 else image
