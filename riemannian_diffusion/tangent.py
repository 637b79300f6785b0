"""Local geometry of the data: tangent spaces, their dimension, how they bend.

Near the data the Jacobian of the denoiser, `J_D = I + sigma^2 J`, projects on the data manifold's
tangent space: its singular values are about 1 along it and about 0 across. Where data spread over
a distance `s` around the manifold, theirs are `s^2 / (s^2 + sigma^2)`. Points are `(K, *shape)`, in
the coordinates of the score's level, and nothing but products with `J` and `J^T` is taken.
"""

from __future__ import annotations

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
from riemannian_diffusion.score.where import Where

NUM_SPARE = 8  # tangents iterated beyond those asked for


class Spectrum(NamedTuple):
    """Singular values `(K, rank)`, falling, and unit vectors `(K, rank, *shape)` of `J_D`."""

    values: Tensor
    vectors: Tensor


class Dimension(NamedTuple):
    """Of the manifold at each point, `(K,)`, and the gap that tells it, `(K,)` in [0, 1].

    A gap near 1 leaves no doubt. Below about 0.5 the noise is of the size of the manifold's bends
    or spread and the number depends on its level; near 0 there is no gap, hence no dimension.
    """

    dimension: Tensor
    gap: Tensor


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
    """The largest singular values of the denoiser's Jacobian, and their left vectors.

    By randomised subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4): each takes
    `rank + 8` products with `J` and as many with its transpose, so that Jacobians that are not
    symmetric, as networks' are not, do no harm.

    Args:
        score: The score.
        x: Points `(K, *shape)`.
        rank: Number of singular values, from 1 to the number of values of a point.
        rtol: The iteration ends when no value has changed by more than this share of the largest.
        max_iterations: Largest number of iterations.
        generator: Source of the first tangents; seeded with 0 where None.
        where: The places of the points on their paths, for scores that change along the path.

    Raises:
        ValueError: If points or rank are out of range.
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
    num = min(size, rank + NUM_SPARE)
    drawn = torch.randn(len(x), num, size, generator=generator, device=generator.device)
    tangents, before = _orthonormal(drawn.to(x)), None
    places = None if where is None else where.repeat_interleave(num)
    for _ in range(max_iterations):
        pushed = _orthonormal(_each(score.jvp, score.sigma, x, tangents, places))
        pulled = _each(score.vjp, score.sigma, x, pushed, places)  # (K, num, d): rows of Q^T J_D
        left, values, right = torch.linalg.svd(pulled, full_matrices=False)
        values = values[:, :rank]
        if before is not None and ((values - before).abs() <= rtol * values[:, :1]).all():
            break
        before, tangents = values, right
    vectors = (left.mT @ pushed)[:, :rank]
    return Spectrum(values, vectors.unflatten(2, x.shape[1:]))


def tangent_basis(score: ScoreModel, x: Tensor, dim: int, *, where: Where | None = None) -> Tensor:
    """Orthonormal tangents that span the tangent space, `(K, dim, *shape)`.

    The first `dim` vectors of `tangent_spectrum`; `denoise(x + step * basis[:, i])` is an edit.

    Raises:
        ValueError: As `tangent_spectrum`.
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
    """The dimension of the data manifold at points on or near it.

    Args:
        score: The score.
        x: Points `(K, *shape)`.
        method: "spectrum": the widest gap between neighbouring singular values of the denoiser's
            Jacobian, of as many as it takes to see them fall below a tenth. "scores": scores at
            noisy points around x span the normal space; the dimension is what is left beyond the
            widest gap of their singular values (Stanczuk et al., arXiv 2212.12611), which takes
            more samples than a point has values.
        max_dim: Largest dimension that "spectrum" looks for; the number of values of a point where
            None.
        num_samples: Number of samples of "scores"; 4 times the number of values of a point where
            None.
        generator: Source of tangents or noises; seeded with 0 where None.
        where: As in `tangent_spectrum`.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_kind(ScoreModel, score=score)
    size = _size_of(x)
    if method not in ("spectrum", "scores"):
        raise ValueError(f"`method` must be 'spectrum' or 'scores', but got {method!r}.")
    most = size if max_dim is None else max_dim
    if not (is_whole(most) and 1 <= most <= size):
        raise ValueError(f"`max_dim` must be in [1, {size}], but got {max_dim}.")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    check_kind(torch.Generator, generator=generator)
    if method == "scores":
        num = 4 * size if num_samples is None else num_samples
        check_whole(size, num_samples=num)
        return _dimension_from_scores(score, x, num, generator, where)
    rank = min(most, 7)
    while True:  # one value more than dimensions, to see the fall after the last
        num = min(size, rank + 1)
        spectrum = tangent_spectrum(score, x, num, rtol=1e-2, generator=generator, where=where)
        values = spectrum.values
        if rank == most or float(values[:, -1].max()) < 0.1:
            break
        rank = min(most, 2 * rank + 1)
    if num == size:
        values = torch.cat([values, values.new_zeros(len(x), 1)], 1)
    gap, index = values.clamp(max=1).diff(dim=1).neg().max(1)
    return Dimension(index + 1, gap)


def _dimension_from_scores(
    score: ScoreModel, x: Tensor, num: int, generator: torch.Generator, where: Where | None
) -> Dimension:
    found = []
    for i, point in enumerate(x):
        noise = torch.randn(num, *point.shape, generator=generator, device=generator.device).to(x)
        places = None if where is None else where[[i] * num]
        scores = score(point + score.sigma * noise, places).flatten(1)
        values = torch.linalg.svdvals(score.sigma * scores) / num**0.5
        values = torch.cat([values[:1], values]).clamp(max=1)  # a point has no gap before the first
        gap, index = values.diff().neg().max(0)
        found.append((point.numel() - index, gap))
    return Dimension(*(torch.stack(column) for column in zip(*found, strict=True)))


@torch.no_grad()
def split_tangent(
    score: ScoreModel, x: Tensor, v: Tensor, where: Where | None = None
) -> tuple[Tensor, Tensor]:
    """The tangential part `J_D v` of vectors and the normal rest, both `(K, *shape)`."""
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
    """How the manifold bends away from its tangent space, `II(u, v)`, normal, `(K, *shape)`.

    The derivative of the projection `J_D v` along `u`, made normal, by a central difference. On a
    sphere of radius R it is `-<u, v> x / R^2`.

    Args:
        score: The score, at a level of noise well below the radius of the bends.
        x: Points of the manifold, `(K, *shape)`.
        u: Tangents, `(K, *shape)`.
        v: Tangents, `(K, *shape)`.
        where: As in `tangent_spectrum`.
        step: Step of the difference, in standard deviations of the noise.
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
    """The curvature `|II(u, u)| / |u|^2` of the manifold along tangents, `(K,)`, in 1 / length.

    Args:
        score: As in `second_fundamental_form`.
        x: Points of the manifold, `(K, *shape)`.
        u: Tangents, `(K, *shape)`.
        where: As in `tangent_spectrum`.
        step: As in `second_fundamental_form`.
    """
    bend = second_fundamental_form(score, x, u, u, where, step=step).flatten(1).norm(dim=1)
    return bend / u.flatten(1).square().sum(1).clamp(min=1e-30)


def _each(
    product: Callable[..., Tensor], sigma: float, x: Tensor, v: Tensor, places: Where | None
) -> Tensor:
    """Products of `J_D` or its transpose with T tangents `(K, T, d)` at every point."""
    out = product(x.repeat_interleave(v.shape[1], 0), v.reshape(-1, *x.shape[1:]), places)
    return v + sigma**2 * out.view(v.shape)


def _orthonormal(vectors: Tensor) -> Tensor:
    """An orthonormal basis of the rows' span, `(K, T, d)`."""
    return torch.linalg.qr(vectors.mT).Q.mT


def _check_tangents(score: ScoreModel, x: Tensor, **tangents: Tensor) -> None:
    check_kind(ScoreModel, score=score)
    check_tensor(x=x, **tangents)
    for name, v in tangents.items():
        if v.shape != x.shape or x.ndim < 2:
            raise ValueError(
                f"`{name}` must be tangents (K, *shape) at the points `x` {tuple(x.shape)}, but it "
                f"is {tuple(v.shape)}."
            )


def _size_of(x: Tensor) -> int:
    check_points(x=x)
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"`x` must be finite floating-point points (K, *shape), but it is {tuple(x.shape)}."
        )
    return x[0].numel()
