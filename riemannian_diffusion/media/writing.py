"""Frames of morphs as videos, animated images, sheets and folders."""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np

from riemannian_diffusion.files import unfinished, write_atomically
from riemannian_diffusion.media.images import sorted_by_name
from riemannian_diffusion.media.numbers import Tell, warn

GIF_FPS = 50  # browsers play what is faster at 10 frames per second


def write_frames(frames: list, output: Path, fps: float, *, tell: Tell = warn) -> None:
    """Write frames to a file or a folder, first under a temporary name.

    A GIF plays at most 50 frames per second: of faster ones, evenly spaced frames are written, so
    that the duration is right. If a video has an odd width or height, its last column or row is
    repeated.

    Args:
        frames: PIL images of one size.
        output: The suffix selects the kind: `.gif`, `.mp4`, another image format for a grid of all
            frames, or no suffix for a folder of PNG files.
        fps: Frames per second of a GIF or a video.
        tell: Receives a sentence if frames of a GIF are left out.

    Raises:
        OSError: If the output cannot be written. Frames of a file are then kept as a folder of PNG
            files if that is possible, beside it or among the temporary files, and the message says
            where.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from riemannian_diffusion.media import write_frames
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / 'morph.gif'
        ...     write_frames([Image.new('RGB', (8, 8), c) for c in ('red', 'blue')], file, 12)
        ...     Image.open(file).n_frames
        2
    """
    suffix = output.suffix.lower()
    if suffix == "":
        _write_directory(frames, output)
        return
    try:
        if suffix == ".gif":
            _write_gif(frames, output, fps, tell)
        elif suffix == ".mp4":
            write_atomically(output, lambda path: _write_video(frames, path, fps))
        else:
            write_atomically(output, _grid(frames).save)
    except Exception as error:
        kept = _rescued(frames, output)
        where = "" if kept is None else f". Its frames are in the folder {kept}."
        raise OSError(f"{output} cannot be written: {error}{where}") from error


def _rescued(frames: list, output: Path) -> Path | None:
    """A new folder with the frames, or None if it cannot be written either."""
    for place in (output.parent, Path(tempfile.gettempdir())):
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{output.stem}-frames-", dir=place))
            for i, frame in enumerate(frames):
                frame.save(folder / f"frame_{i:04d}.png")
            return folder
        except Exception:  # the first error is the one to report
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
    return None


def _write_directory(frames: list, output: Path) -> None:
    with unfinished(output.with_name(f".{os.getpid()}-{output.name}")) as temporary:
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


def _write_gif(frames: list, output: Path, fps: float, tell: Tell) -> None:
    num = len(frames)
    if fps > GIF_FPS and num > 1:
        kept = max(2, round(num * GIF_FPS / fps))
        frames = [frames[round(i)] for i in np.linspace(0, num - 1, kept)]
        tell(
            f"{output} plays {GIF_FPS} frames per second, as no GIF plays {fps:g}: {kept} of {num} "
            "frames are in it."
        )
    ends = [round(100 * (i + 1) / min(fps, GIF_FPS)) for i in range(len(frames))]  # in 1/100 s
    delays = np.diff([0, *ends])
    options = {
        "append_images": frames[1:],
        "duration": [10 * int(delay) for delay in delays],  # in ms
        "loop": 0,
    }
    write_atomically(output, lambda path: frames[0].save(path, save_all=True, **options))


def _write_video(frames: list, path: Path, fps: float) -> None:
    """H.264 in the colours of BT.709, which players assume of most videos."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    height, width = np.asarray(frames[0]).shape[:2]
    file = io.BytesIO()  # FFmpeg would take a name with a colon for a protocol
    with av.open(file, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"qp": "5"})
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = stream.codec_context.color_primaries = 1
        stream.codec_context.color_trc, stream.codec_context.color_range = 1, ColorRange.MPEG
        for image in frames:
            pixels = np.asarray(image.convert("RGB"))
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path.write_bytes(file.getbuffer())


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
