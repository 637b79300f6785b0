"""Measures of a frame sequence and of images against images: range, and what is better.

Images are `(N, 3, H, W)` in [0, 1]. A distance maps two such batches to `(N,)`; what is said of
LPIPS here holds for whatever distance is given.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]

SSIM_WINDOW = 11


def import_extra(name: str) -> ModuleType:
    """Import a module of the `eval` extra.

    Raises:
        ImportError: If it cannot be imported; the message says what to install.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch: RuntimeError
        package = name.partition(".")[0]
        raise ImportError(
            f"{package} cannot be imported ({error}): pip install 'riemannian-diffusion[eval]', "
            "with a torchvision that matches torch."
        ) from error


# --------------------------------------------------------------------- distances along a sequence


def distances(x: Tensor, y: Tensor, distance: Distance, *, max_batch_size: int = 8) -> Tensor:
    """The distance of each image of `x` to that of `y`, `(N, 3, H, W) x2 -> (N,)`, float64, CPU.

    Raises:
        ValueError: If the shapes differ, or the distance returns another shape or a value that is
            not finite.
    """
    _check_pair(x, y)
    pieces = []
    for a, b in zip(x.split(max_batch_size), y.split(max_batch_size), strict=True):
        piece = distance(a, b)
        if piece.shape != (len(a),):
            raise ValueError(
                f"`distance` must return {(len(a),)} for {len(a)} pairs of images, but got "
                f"{tuple(piece.shape)}; `lpips_distance` wraps a network of the lpips package."
            )
        pieces.append(piece.detach().cpu().double())
    result = torch.cat(pieces)
    if not result.isfinite().all():
        raise ValueError(f"`distance` must return finite values, but got {result.tolist()}.")
    return result


def adjacent_distances(frames: Tensor, distance: Distance, *, max_batch_size: int = 8) -> Tensor:
    """The gaps of a sequence: the distance of each frame to the next, `(F, 3, H, W) -> (F - 1,)`.

    Raises:
        ValueError: If there are fewer than 2 frames, or as in `distances`.
    """
    if len(frames) < 2:
        raise ValueError(f"A sequence needs at least 2 frames, but got {len(frames)}.")
    return distances(frames[:-1], frames[1:], distance, max_batch_size=max_batch_size)


def ppl(gaps: Tensor) -> Tensor:
    """Perceptual path length: the SUM of the gaps, `(..., G) -> (...)`; in [0, inf), lower better.

    As of DiffMorpher (CVPR 2024). It grows with the number of frames, and it is not the measure of
    this name in StyleGAN and torchmetrics, which samples a generator's latent space.
    """
    return gaps.sum(-1)


def pdv_variance(gaps: Tensor) -> Tensor:
    """Perceptual distance variance of DiffMorpher: the population variance of the gaps.

    `(..., G) -> (...)`; in [0, inf), lower is better.
    """
    return gaps.var(-1, correction=0)


def pdv_std(gaps: Tensor) -> Tensor:
    """Perceptual distance deviation: the population standard deviation of the gaps.

    `(..., G) -> (...)`; in [0, inf), lower is better. Published under the name PDV as well; it is
    the square root of `pdv_variance` for one sequence, but not for means over sequences.
    """
    return gaps.std(-1, correction=0)


def consistency(gaps: Tensor) -> Tensor:
    """The mean of the gaps, `(..., G) -> (...)`; in [0, inf), lower is better (AID, NeurIPS 2024).

    It is `ppl` over the number of gaps.
    """
    return gaps.mean(-1)


def smoothness(gaps: Tensor) -> Tensor:
    """1 minus the Gini coefficient of the gaps, `(..., G) -> (...)`; higher is better (AID).

    In [1 / G, 1]: 1 where all gaps are equal, 1 / G where one of them holds all of the change.
    Where every gap is 0 they are equal, and it is 1.
    """
    count = gaps.shape[-1]
    rank = torch.arange(1, count + 1, dtype=gaps.dtype, device=gaps.device)
    total = gaps.sum(-1)
    spread = ((2 * rank - count - 1) * gaps.sort(-1).values).sum(-1)
    return 1 - torch.where(total > 0, spread / (count * total), 0)


# ------------------------------------------------------------------------------ image against image


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error per image, `(N, 3, H, W) x2 -> (N,)`; in [0, 1], lower is better.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_pair(x, y)
    return (x - y).square().flatten(1).mean(1)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image in dB, `(N, 3, H, W) x2 -> (N,)`; higher is better.

    `-10 log10(mse)` by torchmetrics, in [0, inf], infinite for equal images.

    Raises:
        ImportError: If torchmetrics is missing.
        ValueError: If the shapes differ.
    """
    _check_pair(x, y)
    image = import_extra("torchmetrics.functional.image")
    return image.peak_signal_noise_ratio(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity per image, `(N, 3, H, W) x2 -> (N,)`; in [-1, 1], higher is better.

    Mean of torchmetrics' map, with the Gaussian window of sigma 1.5 of Wang et al. (2004) and a
    range of 1, over the pixels whose window lies in the image, as there and in scikit-image.

    Raises:
        ImportError: If torchmetrics is missing.
        ValueError: If the shapes differ or an image is smaller than the window of 11 pixels.
    """
    _check_pair(x, y)
    if min(x.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {SSIM_WINDOW} pixels a side, but got "
            f"{x.shape[-2]} x {x.shape[-1]}."
        )
    image = import_extra("torchmetrics.functional.image")
    _, full = image.structural_similarity_index_measure(
        x, y, data_range=1.0, reduction="none", return_full_image=True
    )  # (N, 3, H, W)
    margin = SSIM_WINDOW // 2  # windows that leave the image see its reflection
    return full[..., margin:-margin, margin:-margin].flatten(1).mean(1)


def largest_step(frames: Tensor) -> Tensor:
    """The greatest root mean square difference of adjacent frames, `(F, 3, H, W) -> ()`.

    In [0, 1], lower is better. It shows a leap that means over a sequence hide.

    Raises:
        ValueError: If there are fewer than 2 frames.
    """
    if len(frames) < 2:
        raise ValueError(f"A sequence needs at least 2 frames, but got {len(frames)}.")
    return mse(frames[:-1], frames[1:]).max().sqrt()


def _check_pair(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(
            "Two batches of images must have one shape (N, 3, H, W), but got "
            f"{tuple(x.shape)} and {tuple(y.shape)}."
        )
