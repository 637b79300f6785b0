"""Distances between two sets of images: FID and KID, from features of the images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from riemannian_diffusion.measures.frames import import_extra

Features = Callable[[Tensor], Tensor]
Statistic = Callable[[Tensor], Tensor]

FID_IMAGES_PER_FEATURE = 5  # about 10,000 images for 2,048 features, as the authors of FID advise


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """Frechet distance of the Gaussians fitted to two sets of features, `(n, d), (m, d) -> ()`.

    It is `|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))` with sample covariances (ddof 1), in
    float64. With features of Inception this is FID (Heusel et al., 2017). It lies in [0, inf), and
    lower is better. It is biased upwards, and the bias grows as the sets shrink. With `S = A^T A`
    the last trace is the sum of the singular values of `A_x A_y^T`. This needs no matrix root, and
    it also holds for singular covariances.

    Warns:
        UserWarning: If a set has fewer than `FID_IMAGES_PER_FEATURE` images per feature.

    Raises:
        ValueError: If the sets are not matrices with equally many columns, a set has fewer than 2
            rows, or a value is not finite.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import frechet_distance
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> bool(abs(float(frechet_distance(x, x))) < 1e-3)
        True
    """
    _check_sets(x, y)
    caution = too_small_for_fid(len(x), len(y), x.shape[1])
    if caution is not None:
        warnings.warn(caution, stacklevel=2)
    return _frechet(x, y)


def _frechet(x: Tensor, y: Tensor) -> Tensor:
    """Frechet distance in float64, without checks and without a warning."""
    x, y = x.double(), y.double()
    a, b = _covariance_factor(x), _covariance_factor(y)
    cross = torch.linalg.svdvals(a @ b.T).sum()
    shift = (x.mean(0) - y.mean(0)).square().sum()
    return (shift + a.square().sum() + b.square().sum() - 2 * cross).clamp(min=0)


def too_small_for_fid(num_x: int, num_y: int, num_features: int) -> str | None:
    """A warning if sets of these sizes are too small for a Frechet distance, else None."""
    least = FID_IMAGES_PER_FEATURE * num_features
    if min(num_x, num_y) >= least:
        return None
    return (
        f"FID of {num_x} images against {num_y} is biased upwards: {num_features} features need at "
        f"least {least} images in each set. Compare it only with values of the same protocol and "
        "the same numbers of images, and read KID too."
    )


def kernel_distance(x: Tensor, y: Tensor) -> Tensor:
    """Kernel distance of two sets of features, `(n, d), (m, d) -> ()`; lower is better.

    This is the unbiased estimate of the squared maximum mean discrepancy with the kernel
    `(x . y / d + 1)^3`, from all images at once, in float64. With features of Inception this is KID
    (Binkowski et al., 2018). It lies in (-inf, inf). Its expected value is 0 if both sets come from
    the same distribution. The sets may differ in size, unlike those of `poly_mmd` of torchmetrics.

    Raises:
        ImportError: If torchmetrics is missing.
        ValueError: If the sets are not matrices with equally many columns, a set has fewer than 2
            rows, or a value is not finite.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import kernel_distance
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> bool(abs(float(kernel_distance(x, x + 3))) > 0)
        True
    """
    _check_sets(x, y)
    within_x, between, within_y = _kernels(x, y)
    return _off_diagonal_mean(within_x) + _off_diagonal_mean(within_y) - 2 * between.mean()


def _kernels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel of KID within `x`, between `x` and `y`, and within `y`.

    The shapes are `(n, n)`, `(n, m)` and `(m, m)`.
    """
    poly_kernel = import_extra("torchmetrics.image.kid").poly_kernel
    x, y = x.double(), y.double()
    return poly_kernel(x, x), poly_kernel(x, y), poly_kernel(y, y)


def _off_diagonal_mean(kernel: Tensor) -> Tensor:
    return (kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1))


def _covariance_factor(x: Tensor) -> Tensor:
    """A matrix A `(min(n, d), d)` such that `A^T A` is the sample covariance of `x`."""
    centred = (x - x.mean(0)) / math.sqrt(len(x) - 1)
    return torch.linalg.qr(centred, mode="r").R if len(x) > x.shape[1] else centred


def frechet_statistic(generated: Tensor, reference: Tensor) -> Statistic:
    """FID as a function of the sequences from which it is computed.

    Args:
        generated: Features `(draws, S, f, d)` of f frames of each of S sequences. Every draw has
            other frames, and the result is the mean of FID over draws.
        reference: Features `(S, k, d)` of k reference images of each sequence.

    Returns:
        A function that maps indices of sequences, `(m,)`, without repetitions, to a scalar.
    """
    pairs = [_in_their_span(draw, reference) for draw in generated]

    def of(index: Tensor) -> Tensor:
        drawn = [_frechet(x[index].flatten(0, 1), y[index].flatten(0, 1)) for x, y in pairs]
        return torch.stack(drawn).mean()

    return of


def _in_their_span(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Features `(S, f, d), (S, k, d)` in coordinates of the space they span, if that is smaller.

    The change of coordinates keeps all distances between features and therefore FID. It makes FID
    cheaper.
    """
    both = torch.cat([x.flatten(0, 1), y.flatten(0, 1)])
    if len(both) >= both.shape[1]:
        return x, y
    both = torch.linalg.qr((both - both.mean(0)).T, mode="r").R.T  # (N, N)
    split = len(x) * x.shape[1]
    return both[:split].view(*x.shape[:2], -1), both[split:].view(*y.shape[:2], -1)


def kernel_statistic(generated: Tensor, reference: Tensor) -> Statistic:
    """KID as a function of the sequences from which it is computed.

    The kernels are computed once and summed over the frames of each pair of sequences.

    Args:
        generated: See `frechet_statistic`.
        reference: See `frechet_statistic`.

    Returns:
        A function that maps indices of sequences, `(m,)`, without repetitions, to a scalar.
    """
    (_, n, f, _), k = generated.shape, reference.shape[1]
    y = reference.flatten(0, 1)
    sums = []
    for draw in generated:  # (S, f, d)
        within_x, between, within_y = _kernels(draw.flatten(0, 1), y)
        for kernel in (within_x, within_y):  # leaves out comparisons of an image with itself
            kernel.fill_diagonal_(0)
        sums.append(
            torch.stack(
                [
                    within_x.view(n, f, n, f).sum((1, 3)),
                    between.view(n, f, n, k).sum((1, 3)),
                    within_y.view(n, k, n, k).sum((1, 3)),
                ]
            )
        )
    total = torch.stack(sums).mean(0)  # (3, S, S)

    def of(index: Tensor) -> Tensor:
        within_x, between, within_y = total[:, index][:, :, index].sum((1, 2))
        num_x, num_y = f * len(index), k * len(index)
        inner = within_x / (num_x * (num_x - 1)) + within_y / (num_y * (num_y - 1))
        return inner - 2 * between / (num_x * num_y)

    return of


def _check_sets(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            "`x` and `y` must be features (n, d) and (m, d), but got "
            f"{tuple(x.shape)} and {tuple(y.shape)}."
        )
    if min(len(x), len(y)) < 2:
        raise ValueError(f"`x` and `y` must have at least 2 rows, but got {len(x)} and {len(y)}.")
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("`x` and `y` must have finite values.")
