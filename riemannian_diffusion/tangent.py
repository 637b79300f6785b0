"""Local geometry of the data manifold: tangent spaces, dimension and curvature.

Near the data, the Jacobian of the denoiser, `J_D = I + sigma^2 J`, projects onto the tangent space
of the data manifold. Its singular values are about 1 in tangent directions and about 0 in normal
directions. In directions in which the data spread around the manifold by a distance `s`, they are
`s^2 / (s^2 + sigma^2)`. Points are `(K, *shape)`, in the coordinates of the score's noise level.
All functions use only products with `J` and `J^T`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from riemannian_diffusion.arguments import (
    check_finite,
    check_kind,
    check_not_negative,
    check_points,
    check_tensor,
    check_whole,
    is_whole,
)
from riemannian_diffusion.score.model import ScoreModel
from riemannian_diffusion.score.shared_noise import SharedNoiseScore
from riemannian_diffusion.score.where import Where

NUM_SPARE = 8  # extra tangents in the subspace iteration


class Spectrum(NamedTuple):
    """The largest singular values of `J_D` and their left singular vectors, at K points.

    Attributes:
        values: Singular values `(K, rank)`, in falling order.
        vectors: Unit vectors `(K, rank, *shape)`.
    """

    values: Tensor
    vectors: Tensor


class Dimension(NamedTuple):
    """The dimension of the manifold at K points, and how certain it is.

    Attributes:
        dimension: Dimension at each point, `(K,)`, int64, from 0 to the number of values of a
            point.
        gap: Difference of the two singular values on either side of the dimension, `(K,)`, in
            [0, 1]. Near 1 it is certain at this noise; below about 0.5 the noise is too large for
            the data or their curvature; near 0 it is undefined. NaN for "flipd" and "loss".
        estimate: The dimension before it was rounded to a whole number, `(K,)`.
        std_error: Standard error of the mean over the probes of "flipd" and "loss", `(K,)`. It
            does not contain the bias of the method. NaN for "spectrum" and "scores".
    """

    dimension: Tensor
    gap: Tensor
    estimate: Tensor
    std_error: Tensor


@torch.no_grad()
def tangent_spectrum(
    score: ScoreModel,
    x: Tensor,
    rank: int,
    *,
    rtol: float = 1e-5,
    max_iterations: int = 30,
    generator: torch.Generator | None = None,
    where: Where | None = None,
) -> Spectrum:
    """Compute the largest singular values of the denoiser's Jacobian and their left vectors.

    The method is randomised subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4).
    Each iteration takes `rank + 8` products with `J` and as many with its transpose. The Jacobian
    need not be symmetric, and that of a network is not.

    Args:
        score: The score.
        x: Points `(K, *shape)`.
        rank: Number of singular values, from 1 to the number of values of a point.
        rtol: The iteration ends when no value changes by more than this share of the largest
            value.
        max_iterations: Largest number of iterations.
        generator: Source of the first tangents; None takes a generator seeded with 0.
        where: The places of the points on their paths, for scores that change along the path.

    Raises:
        ValueError: If an argument is out of range, or the score's derivative is not finite.
    """
    check_kind(ScoreModel, score=score)
    size = _size_of(x)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    check_not_negative(rtol=rtol)
    check_whole(1, max_iterations=max_iterations)
    if not (is_whole(rank) and 1 <= rank <= size):
        raise ValueError(f"`rank` must be in [1, {size}], but got {rank}.")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    check_kind(torch.Generator, generator=generator)
    num, before = min(size, rank + NUM_SPARE), None
    drawn = torch.randn(len(x), num, size, generator=generator, device=generator.device)
    tangents = torch.linalg.qr(drawn.to(x).mT).Q.mT
    places = None if where is None else where.repeat_interleave(num)
    for _ in range(max_iterations):
        pushed = torch.linalg.qr(_each(score.jvp, score.sigma, x, tangents, places).mT).Q.mT
        pulled = _each(score.vjp, score.sigma, x, pushed, places)  # (K, num, d): rows of Q^T J_D
        left, values, right = torch.linalg.svd(pulled, full_matrices=False)
        values = values[:, :rank]
        if before is not None and ((values - before).abs() <= rtol * values[:, :1]).all():
            break
        before, tangents = values, right
    vectors = (left.mT @ pushed)[:, :rank]
    return Spectrum(values, vectors.unflatten(2, x.shape[1:]))


def tangent_basis(score: ScoreModel, x: Tensor, dim: int, *, where: Where | None = None) -> Tensor:
    """Compute orthonormal tangents that span the tangent space, `(K, dim, *shape)`.

    They are the first `dim` vectors of `tangent_spectrum`. A step along one of them, followed by
    the denoiser, edits a point: `score.denoise(x + step * basis[:, i])`.

    Raises:
        ValueError: See `tangent_spectrum`.
    """
    return tangent_spectrum(score, x, dim, where=where).vectors


@torch.no_grad()
def intrinsic_dimension(
    score: ScoreModel,
    x: Tensor,
    *,
    method: str = "spectrum",
    max_dim: int | None = None,
    num_samples: int | None = None,
    generator: torch.Generator | None = None,
    where: Where | None = None,
) -> Dimension:
    """Estimate the dimension of the data manifold at points on or near it.

    A point has d values. Each method can answer 0 (a single point) to d (a density on all space).
    The noise must be below the radius of curvature and the spread of the data in each direction,
    `R / sqrt(k + 1)` on a k-sphere; under more noise, data look like one point. The methods are:

    - "spectrum": Singular values of the denoiser's Jacobian, until they fall below a tenth. The
      dimension is the index of the widest gap between neighbours. The gaps above the first value,
      up to 1, and below the last of d values, down to 0, count too. Per point this costs `m + 8`
      forward-mode and as many reverse-mode products for each iteration of `tangent_spectrum`, where
      m = 8, 16, ... exceeds the dimension.
    - "scores": Scores at noisy points around x span the normal space (Stanczuk et al., arXiv
      2212.12611). The widest gap between the singular values of the scores, without their mean,
      gives the dimension of the normal space. Per point this costs `num_samples` forward passes,
      more than d.
    - "flipd": `tr J_D + |r|^2 / sigma^2` with the residual `r = x - D(x)` (FLIPD, Kamkari et al.,
      arXiv 2406.03537). It equals d plus the slope of the log-density in `log sigma`. The trace is
      estimated by `num_samples` products with random signs (Hutchinson). Per point this costs one
      forward pass and `num_samples` forward-mode products.
    - "loss": The mean of `|D(x + sigma e) - x|^2 / sigma^2` over noises e, a scaled denoising loss
      (arXiv 2510.12975). Per point this costs `num_samples` forward passes.

    "flipd" and "loss" are means over probes with a standard error of about
    `sqrt(2 dimension / num_samples)`. Away from the manifold they grow by the squared distance over
    `sigma^2`, so along a path they also show which points are off the data. They need noiseless
    points `alpha x_0`, a small sigma and a score without guidance.

    Args:
        score: The score.
        x: Points `(K, *shape)`.
        method: "spectrum", "scores", "flipd" or "loss".
        max_dim: Largest dimension for "spectrum"; None takes d. Larger ones give it, with gap 0.
        num_samples: Number of noises or probes at each point. "scores" takes at least d + 1; None
            takes 4 d, or 64 if that is more. "flipd" and "loss" take at least 2; None takes 8.
        generator: Source of tangents or noises; None takes a generator seeded with 0.
        where: See `tangent_spectrum`.

    Raises:
        ValueError: If an argument is out of range, the score is not finite, or it adds noise to its
            points and the method is "flipd" or "loss".

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore, intrinsic_dimension
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> intrinsic_dimension(score, circle[:2]).dimension
        tensor([1, 1])
    """
    check_kind(ScoreModel, score=score)
    size = _size_of(x)
    methods = ("spectrum", "scores", "flipd", "loss")
    if method not in methods:
        raise ValueError(f"`method` must be one of {', '.join(methods)}, but got {method!r}.")
    most = size if max_dim is None else max_dim
    if not (is_whole(most) and 1 <= most <= size):
        raise ValueError(f"`max_dim` must be in [1, {size}], but got {max_dim}.")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    check_kind(torch.Generator, generator=generator)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if method == "scores":
        num = max(4 * size, 64) if num_samples is None else num_samples
        check_whole(size + 1, num_samples=num)
        return _dimension_from_scores(score, x, num, generator, where)
    if method != "spectrum":
        num = 8 if num_samples is None else num_samples
        check_whole(2, num_samples=num)
        if isinstance(score, SharedNoiseScore):
            raise ValueError(
                f"`score` adds a shared noise to its points, but method {method!r} needs noiseless "
                "points: pass the score inside, `score.score`, and points `alpha x_0`."
            )
        return _dimension_from_probes(score, x, method, num, generator, where)
    rank = min(most, 7)
    while True:  # one value more than dimensions, to see the drop after the last dimension
        num = min(size, rank + 1)
        spectrum = tangent_spectrum(score, x, num, rtol=1e-2, generator=generator, where=where)
        values = spectrum.values
        if rank == most or float(values[:, -1].max()) < 0.1:
            break
        rank = min(most, 2 * rank + 1)
    return _at_widest_gap(values, complete=num == size, most=rank == most)


def _at_widest_gap(values: Tensor, *, complete: bool, most: bool = False) -> Dimension:
    """The number of singular values `(K, N)` above the widest gap.

    The values fall from about 1 to 0. A gap above the first value gives 0, and one below the last
    gives N if the values are `complete`. If N - 1 is the `most`, unseen wider gaps give it.
    """
    ends = [values.new_ones(len(values), 1), values, values.new_zeros(len(values), complete)]
    gaps = torch.cat(ends, 1).clamp(max=1).diff(dim=1).neg()
    gap, index = gaps.max(1)
    seen = values[:, -1] <= gap if most and not complete else gap >= 0
    gap, index = gap.where(seen, gaps[:, -1]), index.where(seen, values.shape[1] - 1)
    return Dimension(index, gap, index.to(values), torch.full_like(gap, math.nan))


def _dimension_from_scores(
    score: ScoreModel, x: Tensor, num: int, generator: torch.Generator, where: Where | None
) -> Dimension:
    found = []
    for i, point in enumerate(x):
        noise = torch.randn(num, *point.shape, generator=generator, device=generator.device).to(x)
        places = None if where is None else where[[i] * num]
        scores = score(point + score.sigma * noise, places).flatten(1)
        _check_finite(scores)
        # the mean score is long, but tangential, where the data have a density in all of space
        found.append(torch.linalg.svdvals(score.sigma * (scores - scores.mean(0))) / num**0.5)
    normal = _at_widest_gap(torch.stack(found), complete=True)
    size = x[0].numel()
    return normal._replace(dimension=size - normal.dimension, estimate=size - normal.estimate)


def _dimension_from_probes(
    score: ScoreModel,
    x: Tensor,
    method: str,
    num: int,
    generator: torch.Generator,
    where: Where | None,
) -> Dimension:
    points = x.flatten(1)
    noise = torch.randn(len(x), num, points.shape[1], generator=generator, device=generator.device)
    noise, places = noise.to(x), None if where is None else where.repeat_interleave(num)
    if method == "flipd":
        signs = noise.sign()
        off = (score.sigma * score(x, where)).flatten(1).square().sum(1)  # |r|^2 / sigma^2
        probes = (signs * _each(score.jvp, score.sigma, x, signs, places)).sum(2) + off[:, None]
    else:
        noisy = (points[:, None] + score.sigma * noise).view(-1, *x.shape[1:])
        clean = score.denoise(noisy, places).view_as(noise)
        probes = ((clean - points[:, None]) / score.sigma).square().sum(2)
    _check_finite(probes)
    estimate, std_error = probes.mean(1), probes.std(1) / num**0.5
    dimension = estimate.round().clamp(0, points.shape[1]).long()
    return Dimension(dimension, torch.full_like(estimate, math.nan), estimate, std_error)


def _check_finite(values: Tensor) -> None:
    if not values.isfinite().all():
        raise ValueError("`score` or its derivative is not finite near `x`: use a wider dtype.")


@torch.no_grad()
def split_tangent(
    score: ScoreModel, x: Tensor, v: Tensor, where: Where | None = None
) -> tuple[Tensor, Tensor]:
    """Split vectors into their tangential part `J_D v` and their normal part, `(K, *shape)` each.

    Args:
        score: The score.
        x: Points `(K, *shape)`.
        v: One vector per point, `(K, *shape)`.
        where: See `tangent_spectrum`.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_tangents(score, x, v=v)
    tangential = v + score.sigma**2 * score.jvp(x, v, where)
    return tangential, v - tangential


@torch.no_grad()
def second_fundamental_form(
    score: ScoreModel,
    x: Tensor,
    u: Tensor,
    v: Tensor,
    where: Where | None = None,
    *,
    step: float = 0.1,
) -> Tensor:
    """Compute the second fundamental form `II(u, v)`: how the manifold bends along tangents.

    It is the normal part of the derivative of the projection `J_D v` along `u`, from a central
    difference. On a sphere of radius R around the origin it is `-<u, v> x / R^2`.

    Args:
        score: The score, at a noise level well below the radius of curvature of the manifold.
        x: Points of the manifold, `(K, *shape)`.
        u: Tangents, `(K, *shape)`.
        v: Tangents, `(K, *shape)`.
        where: See `tangent_spectrum`.
        step: Step of the difference, in standard deviations of the noise.

    Returns:
        Normal vectors `(K, *shape)`.

    Raises:
        ValueError: If the shapes differ, or `step` is not positive.
    """
    _check_tangents(score, x, u=u, v=v)
    check_finite(step=step)
    if not step > 0:
        raise ValueError(f"`step` must be positive, but got {step}.")
    norms = u.flatten(1).norm(dim=1).clamp(min=1e-30).view(-1, *[1] * (x.ndim - 1))
    h = step * score.sigma / norms
    ahead, behind = score.jvp(x + h * u, v, where), score.jvp(x - h * u, v, where)
    return split_tangent(score, x, score.sigma**2 * (ahead - behind) / (2 * h), where)[1]


def normal_curvature(
    score: ScoreModel, x: Tensor, u: Tensor, where: Where | None = None, *, step: float = 0.1
) -> Tensor:
    """Compute the curvature `|II(u, u)| / |u|^2` of the manifold along tangents.

    Args:
        score: See `second_fundamental_form`.
        x: Points of the manifold, `(K, *shape)`.
        u: Tangents, `(K, *shape)`.
        where: See `tangent_spectrum`.
        step: See `second_fundamental_form`.

    Returns:
        Curvatures `(K,)`, in 1 / length.

    Raises:
        ValueError: See `second_fundamental_form`.
    """
    bend = second_fundamental_form(score, x, u, u, where, step=step).flatten(1).norm(dim=1)
    return bend / u.flatten(1).square().sum(1).clamp(min=1e-30)


def _each(
    product: Callable[..., Tensor], sigma: float, x: Tensor, v: Tensor, places: Where | None
) -> Tensor:
    """Products of `J_D` or its transpose with T tangents at every point, `(K, T, d)`."""
    out = product(x.repeat_interleave(v.shape[1], 0), v.reshape(-1, *x.shape[1:]), places)
    _check_finite(out)
    return v + sigma**2 * out.view(v.shape)


def _check_tangents(score: ScoreModel, x: Tensor, **tangents: Tensor) -> None:
    check_kind(ScoreModel, score=score)
    check_tensor(x=x, **tangents)
    for name, v in tangents.items():
        if v.shape != x.shape or x.ndim < 2:
            raise ValueError(
                f"`{name}` must be tangents (K, *shape) at the points `x` {tuple(x.shape)}, but "
                f"got {tuple(v.shape)}."
            )


def _size_of(x: Tensor) -> int:
    """The number of values of a point."""
    check_points(x=x)
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"`x` must be finite floating-point points (K, *shape), but it is {tuple(x.shape)}."
        )
    return x[0].numel()
