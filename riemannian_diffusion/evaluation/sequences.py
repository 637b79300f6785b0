"""Sequences of frames in memory, and folders of sequences on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from riemannian_diffusion.media import images_in, open_image, shown_size, sorted_by_name


@dataclass(frozen=True, eq=False)
class FrameSequence:
    """The frames of one morph, and the images with which they are compared.

    Attributes:
        name: Name of the sequence in error messages and reports.
        frames: Frames `(F, 3, H, W)`, first to last, as the model made them: floats in [0, 1], or
            uint8.
        inputs: The two original images `(2, 3, H, W)`, or None.
        truth: The true middle frames `(F - 2, 3, H, W)`, or None.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import FrameSequence
        >>> frames = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 3, 16, 16)
        >>> len(FrameSequence('fade', frames).frames)
        5
    """

    name: str
    frames: Tensor
    inputs: Tensor | None = None
    truth: Tensor | None = None


@dataclass(frozen=True)
class SequenceFiles:
    """The files of one sequence; `load` reads them.

    Attributes:
        name: Name of the folder.
        frames: Image files, sorted by name; `2` comes before `10`.
        inputs: Files of the two original images, or an empty tuple.
        truth: Files of the true middle frames, or an empty tuple.
        resolution: Height and width of every image.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from riemannian_diffusion.evaluation import find_sequences
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i in range(3):
        ...         (Path(folder) / 'a').mkdir(exist_ok=True)
        ...         Image.new('RGB', (8, 8)).save(Path(folder) / 'a' / f'{i}.png')
        ...     [tuple(one.load().frames.shape) for one in find_sequences(Path(folder))]
        [(3, 3, 8, 8)]
    """

    name: str
    frames: tuple[Path, ...]
    inputs: tuple[Path, ...]
    truth: tuple[Path, ...]
    resolution: tuple[int, int]

    def load(self) -> FrameSequence:
        """Read the images as uint8.

        Raises:
            OSError: If an image cannot be read.
        """
        inputs, truth = (_read(paths) if paths else None for paths in (self.inputs, self.truth))
        return FrameSequence(self.name, _read(self.frames), inputs, truth)


def find_sequences(directory: Path | str) -> list[SequenceFiles]:
    """Find the sequences in a folder, sorted by name, without reading pixels.

    Every sub-folder is a sequence. Its images are the frames, first to last by name (`frame_2.png`
    before `frame_10.png`). A sub-folder may hold a folder `inputs` with the two original images,
    `0.png` and `1.png`, and a folder `truth` with the true middle frames. Other files are ignored,
    and so is everything whose name begins with a dot.

    Raises:
        OSError: If the directory does not exist or an image cannot be read.
        ValueError: If there are no sub-folders, a sub-folder holds no images, the images of a
            sub-folder differ in size, have several frames each or differ in the suffix alone, or
            `inputs` does not hold two images.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from riemannian_diffusion.evaluation import find_sequences
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i in range(3):
        ...         (Path(folder) / 'a').mkdir(exist_ok=True)
        ...         Image.new('RGB', (8, 8)).save(Path(folder) / 'a' / f'{i}.png')
        ...     [len(one.frames) for one in find_sequences(Path(folder))]
        [3]
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise NotADirectoryError(f"{directory} is not a folder.")
    folders = [path for path in sorted_by_name(directory) if path.is_dir()]
    if {folder.name for folder in folders} <= {"inputs", "truth"}:
        advice = ""
        if images_in(directory):
            advice = ": it holds images itself; pass the folder above it, or move them into one"
        raise ValueError(f"{directory} holds no folder of frames{advice}.")
    return [_find_sequence(folder) for folder in folders]


def _find_sequence(folder: Path) -> SequenceFiles:
    frames = images_in(folder)
    if not frames:
        raise ValueError(f"{folder} holds no frames: images ending in .png, .jpg or the like.")
    inputs, truth = (
        images_in(folder / name) if (folder / name).is_dir() else () for name in ("inputs", "truth")
    )
    if (folder / "inputs").is_dir() and len(inputs) != 2:
        raise ValueError(f"{folder / 'inputs'} must hold two images, but holds {len(inputs)}.")
    size = _size(frames[0])
    for path in (*frames, *inputs, *truth):
        if _size(path) != size:
            raise ValueError(
                "All images of a sequence must have one size, but (height, width) of "
                f"{frames[0]} are {size} and of {path} {_size(path)}: resize the originals as the "
                "morph did."
            )
    return SequenceFiles(folder.name, frames, inputs, truth, size)


def _size(path: Path) -> tuple[int, int]:
    width, height = shown_size(path)
    return height, width


def _read(paths: tuple[Path, ...]) -> Tensor:
    images = [np.asarray(open_image(path, None)) for path in paths]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)  # (N, 3, H, W)
