"""Real digits on known manifolds: the rotations of an image form a closed curve."""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ENVIRONMENT = "RIEMANNIAN_DIFFUSION_MNIST"
NUM_ANGLES = 720
NUM_SEEN = 9000  # models and classifiers are trained on digits before this index only
SIZE = 32


def load_mnist(root: str | None = None) -> tuple[Tensor, Tensor]:
    """Read the 10,000 test digits of MNIST, as `torchvision.datasets.MNIST` stores them.

    Args:
        root: The folder that torchvision was given, or the folder of the files themselves. None
            takes the environment variable `RIEMANNIAN_DIFFUSION_MNIST`.

    Returns:
        Images `(10000, 28, 28)`, float32 in [0, 1], and labels `(10000,)`.

    Raises:
        FileNotFoundError: If no folder is given, or a file is missing.
    """
    root = root or os.environ.get(ENVIRONMENT)
    if not root:
        raise FileNotFoundError(f"This needs MNIST: give --data DIR or set {ENVIRONMENT}.")
    arrays = []
    for name, header in (("t10k-images-idx3-ubyte", 16), ("t10k-labels-idx1-ubyte", 8)):
        folders = (Path(root), Path(root) / "MNIST" / "raw")
        paths = [folder / (name + end) for folder in folders for end in ("", ".gz")]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{name} is neither in {root} nor in {root}/MNIST/raw.")
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        arrays.append(np.frombuffer(content, np.uint8, offset=header).copy())
    images = torch.from_numpy(arrays[0]).view(-1, 28, 28).float() / 255
    return images, torch.from_numpy(arrays[1]).long()


def rotate(images: Tensor, angles: Tensor) -> Tensor:
    """Rotate each image by its angle.

    Args:
        images: `(N, 28, 28)` in [0, 1].
        angles: `(N,)`, radians.

    Returns:
        `(N, 1, 32, 32)` in [-1, 1]. Images are rotated on a grid that is four times as fine and
        then averaged, so that the rotations of a digit form a smooth curve.
    """
    fine = F.interpolate(F.pad(images[:, None], (2,) * 4), scale_factor=4, mode="bicubic")
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    turn = torch.stack([torch.stack([cos, -sin, zero], -1), torch.stack([sin, cos, zero], -1)], 1)
    grid = F.affine_grid(turn, list(fine.shape), align_corners=False)
    turned = F.grid_sample(fine, grid, align_corners=False)
    return 2 * F.avg_pool2d(turned, 4).clamp(0, 1) - 1


def orbits(images: Tensor) -> Tensor:
    """Rotate images `(N, 28, 28)` in [0, 1] by 720 angles: `(N, 720, 1, 32, 32)` in [-1, 1]."""
    angles = torch.arange(NUM_ANGLES) * (2 * math.pi / NUM_ANGLES)
    turned = [
        torch.cat([rotate(i.expand(90, -1, -1), a) for a in angles.split(90)]) for i in images
    ]
    return torch.stack(turned)
