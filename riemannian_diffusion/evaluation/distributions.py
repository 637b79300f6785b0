"""Measures of one set of images against another: FID and KID, on features of the images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from riemannian_diffusion.measures.frames import import_extra

Features = Callable[[Tensor], Tensor]
Statistic = Callable[[Tensor], Tensor]

FID_IMAGES_PER_FEATURE = 5  # about the 10,000 images that FID's authors ask for at 2,048 features


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """Frechet distance of the Gaussians fitted to two sets of features, `(n, d), (m, d) -> ()`.

    `|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))` with sample covariances (ddof 1), in
    float64 (Heusel et al., 2017: FID, where the features are Inception's). In [0, inf), lower is
    better; biased upwards, the more so the smaller the sets. With `S = A^T A` the last trace is the
    sum of the singular values of `A_x A_y^T`: no matrix root of a product is taken, and a singular
    covariance is no special case.

    Warns:
        UserWarning: If a set has fewer than `FID_IMAGES_PER_FEATURE` images per feature.

    Raises:
        ValueError: If the sets are no matrices of as many columns, hold fewer than 2 rows, or a
            value that is not finite.
    """
    _check_sets(x, y)
    caution = too_small_for_fid(len(x), len(y), x.shape[1])
    if caution is not None:
        warnings.warn(caution, stacklevel=2)
    return _frechet(x, y)


def _frechet(x: Tensor, y: Tensor) -> Tensor:
    """`frechet_distance` without its checks and its warning, in float64."""
    x, y = x.double(), y.double()
    a, b = _covariance_factor(x), _covariance_factor(y)
    cross = torch.linalg.svdvals(a @ b.T).sum()
    shift = (x.mean(0) - y.mean(0)).square().sum()
    return (shift + a.square().sum() + b.square().sum() - 2 * cross).clamp(min=0)


def too_small_for_fid(num_x: int, num_y: int, num_features: int) -> str | None:
    """A sentence where sets of these sizes are too small for a Frechet distance, else None."""
    least = FID_IMAGES_PER_FEATURE * num_features
    if min(num_x, num_y) >= least:
        return None
    return (
        f"FID of {num_x} images against {num_y} is far from unbiased: {num_features} features ask "
        f"for at least {least} in each set. Compare it only with numbers of the same protocol and "
        "counts, and read KID beside it."
    )


def kernel_distance(x: Tensor, y: Tensor) -> Tensor:
    """Kernel distance of two sets of features, `(n, d), (m, d) -> ()`; lower is better.

    The unbiased estimate of the squared maximum mean discrepancy under the kernel
    `(x . y / d + 1)^3`, on the whole sets, in float64 (Binkowski et al., 2018: KID, where the
    features are Inception's). In (-inf, inf): its mean is 0 for sets of one distribution. The sets
    may differ in size, which torchmetrics' `poly_mmd` does not allow.

    Raises:
        ImportError: If torchmetrics is missing.
        ValueError: As in `frechet_distance`.
    """
    _check_sets(x, y)
    return _discrepancy(*_kernels(x, y))


def _kernels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """KID's kernel within `x`, between both and within `y`: `(n, n)`, `(n, m)`, `(m, m)`."""
    poly_kernel = import_extra("torchmetrics.image.kid").poly_kernel
    x, y = x.double(), y.double()
    return poly_kernel(x, x), poly_kernel(x, y), poly_kernel(y, y)


def _discrepancy(within_x: Tensor, between: Tensor, within_y: Tensor) -> Tensor:
    """The unbiased squared maximum mean discrepancy of kernel matrices; diagonals do not count."""
    n, m = between.shape
    inner_x = (within_x.sum() - within_x.trace()) / (n * (n - 1))
    inner_y = (within_y.sum() - within_y.trace()) / (m * (m - 1))
    return inner_x + inner_y - 2 * between.mean()


def _covariance_factor(x: Tensor) -> Tensor:
    """A matrix `(min(n, d), d)` whose `A^T A` is the sample covariance of `x`."""
    centred = (x - x.mean(0)) / math.sqrt(len(x) - 1)
    return torch.linalg.qr(centred, mode="r").R if len(x) > x.shape[1] else centred


def frechet_statistic(generated: Tensor, reference: Tensor) -> Statistic:
    """FID as a function of the sequences it is taken over, for resampling.

    Args:
        generated: Features `(draws, S, f, d)` of f frames of each of S sequences, drawn anew in
            every draw; FID is the mean over draws.
        reference: Features `(S, k, d)`.

    Returns:
        Maps indices of sequences, which may repeat, to a scalar.
    """
    pairs = [_in_their_span(draw, reference) for draw in generated]

    def of(index: Tensor) -> Tensor:
        drawn = [_frechet(x[index].flatten(0, 1), y[index].flatten(0, 1)) for x, y in pairs]
        return torch.stack(drawn).mean()

    return of


def _in_their_span(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Features `(S, f, d), (S, k, d)` in coordinates of the space they span, if that is smaller.

    Distances among them stay what they were, so FID does too, and its resamples cost less.
    """
    both = torch.cat([x.flatten(0, 1), y.flatten(0, 1)])
    if len(both) >= both.shape[1]:
        return x, y
    both = torch.linalg.qr((both - both.mean(0)).T, mode="r").R.T  # (N, N)
    split = len(x) * x.shape[1]
    return both[:split].view(*x.shape[:2], -1), both[split:].view(*y.shape[:2], -1)


def kernel_statistic(generated: Tensor, reference: Tensor) -> Statistic:
    """KID as a function of the sequences it is taken over, as in `frechet_statistic`.

    The kernels are computed once, for all resamples.
    """
    n, k = generated.shape[1], reference.shape[1]
    y = reference.flatten(0, 1)
    kernels = []
    for draw in generated:  # (S, frames, d)
        f = draw.shape[1]
        within_x, between, within_y = _kernels(draw.flatten(0, 1), y)
        kernels.append(
            (within_x.view(n, f, n, f), between.view(n, f, n, k), within_y.view(n, k, n, k))
        )

    def of(index: Tensor) -> Tensor:
        drawn = [
            _discrepancy(*(_block(kernel, index) for kernel in matrices)) for matrices in kernels
        ]
        return torch.stack(drawn).mean()

    return of


def _block(kernel: Tensor, index: Tensor) -> Tensor:
    """The rows and columns of some sequences, `(S, f, S, k) -> (I f, I k)`."""
    return kernel[index][:, :, index].flatten(2, 3).flatten(0, 1)


def _check_sets(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            "Two sets of features must be (n, d) and (m, d), but got "
            f"{tuple(x.shape)} and {tuple(y.shape)}."
        )
    if min(len(x), len(y)) < 2:
        raise ValueError(f"A set of features needs at least 2 rows, but got {len(x)} and {len(y)}.")
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("Features must be finite.")
