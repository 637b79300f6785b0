"""Measures of a frame sequence and of pairs of images, each with its range and better direction.

Images are `(N, 3, H, W)` in [0, 1]. A distance maps two batches of images to `(N,)`. The measures
take any distance; published values use LPIPS.
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
        ImportError: If the module cannot be imported; the message says what to install.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision does not match torch
        package = name.partition(".")[0]
        raise ImportError(
            f"{package} cannot be imported ({error}): pip install 'riemannian-diffusion[eval]', "
            "with a torchvision that matches torch."
        ) from error


def in_float64(values: Tensor) -> Tensor:
    """The values in float64 on the CPU, because not every device has float64.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.measures import in_float64
        >>> callable(in_float64)
        True
    """
    return values.detach().cpu().double()


# --------------------------------------------------------------------- distances along a sequence


def distances(x: Tensor, y: Tensor, distance: Distance, *, max_batch_size: int = 8) -> Tensor:
    """Distance of each image of `x` to its partner in `y`, `(N, 3, H, W) x2 -> (N,)`.

    The result is float64 on the CPU.

    Raises:
        ValueError: If the shapes differ, or the distance returns another shape or a value that is
            not finite.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import distances
        >>> x = torch.rand(3, 3, 4, 4)
        >>> distances(x, x, lambda a, b: (a - b).abs().flatten(1).mean(1)).tolist()
        [0.0, 0.0, 0.0]
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
        pieces.append(in_float64(piece))
    result = torch.cat(pieces)
    if not result.isfinite().all():
        raise ValueError(f"`distance` must return finite values, but got {result.tolist()}.")
    return result


def adjacent_distances(frames: Tensor, distance: Distance, *, max_batch_size: int = 8) -> Tensor:
    """The gaps of a sequence: distances between adjacent frames, `(F, 3, H, W) -> (F - 1,)`.

    Raises:
        ValueError: If there are fewer than 2 frames, and as in `distances`.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import adjacent_distances
        >>> frames = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 3, 4, 4)
        >>> adjacent_distances(frames, lambda a, b: (a - b).abs().flatten(1).mean(1)).tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    if len(frames) < 2:
        raise ValueError(f"`frames` must hold at least 2 frames, but got {len(frames)}.")
    return distances(frames[:-1], frames[1:], distance, max_batch_size=max_batch_size)


def ppl(gaps: Tensor) -> Tensor:
    """Perceptual path length: the sum of the gaps, `(..., G) -> (...)`.

    It lies in [0, inf), and lower is better. This is the definition of DiffMorpher (CVPR 2024). It
    grows with the number of frames. StyleGAN and torchmetrics use the same name for another
    measure, which samples the latent space of a generator.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import ppl
        >>> gaps = torch.tensor([0.1, 0.1, 0.4])
        >>> ppl(gaps)
        tensor(0.6000)
    """
    return gaps.sum(-1)


def pdv_variance(gaps: Tensor) -> Tensor:
    """Perceptual distance variance of DiffMorpher: the population variance of the gaps.

    The shapes are `(..., G) -> (...)`. It lies in [0, inf), and lower is better.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import pdv_variance
        >>> gaps = torch.tensor([0.1, 0.1, 0.4])
        >>> round(float(pdv_variance(gaps)), 3)
        0.02
    """
    return gaps.var(-1, correction=0)


def pdv_std(gaps: Tensor) -> Tensor:
    """Perceptual distance deviation: the population standard deviation of the gaps.

    The shapes are `(..., G) -> (...)`. It lies in [0, inf), and lower is better. It is also
    published under the name PDV. It is the square root of `pdv_variance` for one sequence, but not
    for means over sequences.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import pdv_std
        >>> gaps = torch.tensor([0.1, 0.1, 0.4])
        >>> round(float(pdv_std(gaps)), 3)
        0.141
    """
    return gaps.std(-1, correction=0)


def consistency(gaps: Tensor) -> Tensor:
    """Mean of the gaps, `(..., G) -> (...)`; in [0, inf), lower is better (AID, NeurIPS 2024).

    It is `ppl` divided by the number of gaps.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import consistency
        >>> gaps = torch.tensor([0.1, 0.1, 0.4])
        >>> consistency(gaps)
        tensor(0.2000)
    """
    return gaps.mean(-1)


def smoothness(gaps: Tensor) -> Tensor:
    """1 minus the Gini coefficient of the gaps, `(..., G) -> (...)`; higher is better (AID).

    It lies in [1 / G, 1]. It is 1 if all gaps are equal, also if all are 0. It is 1 / G if only one
    gap is not 0.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import smoothness
        >>> gaps = torch.tensor([0.1, 0.1, 0.4])
        >>> smoothness(torch.full((3,), 0.1))  # even steps
        tensor(1.)
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

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import mse
        >>> mse(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4))
        tensor([1.])
    """
    _check_pair(x, y)
    return (x - y).square().flatten(1).mean(1)


def rmse(x: Tensor, y: Tensor) -> Tensor:
    """Root mean squared error per image, `(N, 3, H, W) x2 -> (N,)`; in [0, 1], lower is better.

    Raises:
        ValueError: If the shapes differ.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import rmse
        >>> rmse(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5))
        tensor([0.5000])
    """
    return mse(x, y).sqrt()


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image in dB, `(N, 3, H, W) x2 -> (N,)`; higher is better.

    It is `-10 log10(mse)`, computed by torchmetrics. It lies in [0, inf], and is infinite for equal
    images.

    Raises:
        ImportError: If torchmetrics is missing.
        ValueError: If the shapes differ.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import psnr
        >>> psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.1)).round()
        tensor([20.])
    """
    _check_pair(x, y)
    image = import_extra("torchmetrics.functional.image")
    return image.peak_signal_noise_ratio(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity per image, `(N, 3, H, W) x2 -> (N,)`; in [-1, 1], higher is better.

    It is the mean of torchmetrics' map with the Gaussian window of Wang et al. (2004), sigma 1.5,
    and a range of 1. As in that paper and in scikit-image, the mean is over pixels whose whole
    window lies in the image.

    Raises:
        ImportError: If torchmetrics is missing.
        ValueError: If the shapes differ or an image is smaller than the window of 11 pixels.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import ssim
        >>> x = torch.rand(1, 3, 16, 16)
        >>> round(float(ssim(x, x)), 4)
        1.0
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
    margin = SSIM_WINDOW // 2  # closer to the edge, the window covers padding
    return full[..., margin:-margin, margin:-margin].flatten(1).mean(1)


def largest_step(frames: Tensor) -> Tensor:
    """Largest root mean squared difference of adjacent frames, `(F, 3, H, W) -> ()`.

    It lies in [0, 1], and lower is better. It shows a leap that a mean over the sequence hides.

    Raises:
        ValueError: If there are fewer than 2 frames.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import largest_step
        >>> frames = torch.tensor([0.0, 0.25, 1.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
        >>> largest_step(frames)
        tensor(0.7500)
    """
    if len(frames) < 2:
        raise ValueError(f"`frames` must hold at least 2 frames, but got {len(frames)}.")
    return rmse(frames[:-1], frames[1:]).max()


def _check_pair(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(
            "`x` and `y` must be images of one shape (N, 3, H, W), but got "
            f"{tuple(x.shape)} and {tuple(y.shape)}."
        )
