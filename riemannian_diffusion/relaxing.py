"""Relaxation of paths: geodesics of the data manifold without derivatives of the network.

The denoiser projects points onto the data manifold. A path that gets shorter between projections
becomes a geodesic of the manifold, as a string that is pulled tight. This is a string method (E,
Ren and Vanden-Eijnden, J. Chem. Phys. 126, 164103, 2007) with the denoiser in place of the gradient
flow. It needs forward passes only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from riemannian_diffusion.arguments import (
    check_kind,
    check_not_negative,
    check_points,
    check_whole,
)
from riemannian_diffusion.paths import length, resample, solve_second_difference
from riemannian_diffusion.score.model import ScoreModel
from riemannian_diffusion.score.where import Where

REACH = 2.0  # the largest move of a point in one step, in standard deviations of the noise
PROBE = 0.5  # the largest step of a finite difference, in standard deviations of the noise
Denoiser = Callable[[Tensor], Tensor]


@torch.no_grad()
def relax(
    score: ScoreModel | Sequence[ScoreModel],
    path: Tensor,
    *,
    num_steps: int = 20,
    rtol: float = 1e-3,
    pair: int = 0,
) -> Tensor:
    """Relax a path to a geodesic of the data manifold, with forward passes only.

    One step has three parts. D is the denoiser, `x` are the points of the path and `w` their second
    differences:

    1. Shorten the path along the manifold. The tangential part of `w` is a finite difference of
       the denoiser, `(D(x + h w) - D(x)) / h`. The points move to where a flat manifold would have
       its geodesic, but at most by twice the noise, and less far after a step that went too far.
    2. Project the points onto the manifold by `2 D(x) - D(D(x))`. The denoiser also moves points
       along the manifold, towards denser data. The second term takes this tangential motion out.
    3. Re-space the points evenly.

    The denoiser draws points towards the inside of a curved manifold, by `sigma^2 / 2` times the
    sum of its curvatures, and towards denser data by a multiple of `sigma^2`. With at least two
    scores, the result is extrapolated from the last two to zero noise, which removes both.

    The relaxation is local: it finds the geodesic near its start, and a segment that leaps between
    two parts of the manifold stays. Relax several paths, such as lerp and a roadmap's, and keep the
    one whose energy in a metric is least.

    Args:
        score: A score, or several, coarse to fine. Each relaxes the path of the previous one.
        path: Clean points `x_0`, `(K, *shape)`. Scores are read at `alpha x_0`, without noise, or
            with the noise of a `SharedNoiseScore`. Paths in noise space cannot be relaxed.
        num_steps: Largest number of steps with each score. Per interior point a step costs 4
            forward passes, and the last projection 2.
        rtol: The steps with a score end when no point moves by more than this share of the length
            of the path.
        pair: Index of the path, for scores that differ between paths.

    Returns:
        The relaxed path, `(K, *shape)`, evenly spaced in flat length. Its ends are those of `path`
        bit for bit.

    Raises:
        ValueError: If an argument is out of range, the last two scores have the same noise, or a
            score is not finite at a point of the path.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore, lerp, relax
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> relaxed = relax([score], lerp(circle[0], circle[9], 9))
        >>> tuple(relaxed.path.shape) if hasattr(relaxed, 'path') else tuple(relaxed.shape)
        (9, 2)
    """
    scores = [score] if isinstance(score, ScoreModel) else list(score)
    _check(scores, path, num_steps, rtol, pair)
    places = Where.even(len(path), pair)[1:-1]
    x = path.to(torch.promote_types(path.dtype, torch.float32))
    if len(path) == 2:
        return path.clone()
    denoisers = [_denoiser(one, places) for one in scores]
    noises = [one.sigma / one.alpha for one in scores]
    for denoise, noise in zip(denoisers, noises, strict=True):
        x = _relaxed(denoise, noise, x, num_steps, rtol)
    if len(scores) == 1:
        last = _projected(denoisers[0], x[1:-1])
    else:
        coarse, fine = noises[-2] ** 2, noises[-1] ** 2
        first, last = (denoise(x[1:-1]) for denoise in denoisers[-2:])
        last = (coarse * last - fine * first) / (coarse - fine)
    x = resample(_joined(x, last), len(path))
    return _joined(path, x[1:-1].to(path))


def _denoiser(score: ScoreModel, places: Where) -> Denoiser:
    """The denoiser as a function of the clean interior points of a path."""

    def denoise(x: Tensor) -> Tensor:
        found = score.denoise(score.alpha * x, places) / score.alpha
        if not found.isfinite().all():
            raise ValueError(
                "`score` is not finite at a point of the path: start from a path nearer to the "
                "data, or use a noisier score."
            )
        return found

    return denoise


def _relaxed(denoise: Denoiser, noise: float, x: Tensor, num_steps: int, rtol: float) -> Tensor:
    """The path `(K, *shape)` after the steps with one denoiser."""
    move, share = torch.zeros_like(x[1:-1]), 1.0
    for step in range(num_steps):
        before, last = x, move
        x = resample(_joined(x, _projected(denoise, x[1:-1] + share * move)), len(x))
        if step and _largest(x - before) <= rtol * float(length(x)):
            break
        bend = x[2:] - 2 * x[1:-1] + x[:-2]
        scale = PROBE * noise / _largest(bend)
        tangential = (denoise(x[1:-1] + scale * bend) - denoise(x[1:-1])) / scale
        move = solve_second_difference(tangential)
        move = move * min(1.0, REACH * noise / _largest(move))
        back = float((move * last).sum()) < 0  # the last move went too far
        share = share / 2 if back else min(1.0, 1.5 * share)
    return x


def _projected(denoise: Denoiser, x: Tensor) -> Tensor:
    """The denoised points without the tangential part of their motion."""
    first = denoise(x)
    return 2 * first - denoise(first)


def _joined(x: Tensor, interior: Tensor) -> Tensor:
    """The ends of a path with other points between them."""
    return torch.cat([x[:1], interior, x[-1:]])


def _largest(vectors: Tensor) -> float:
    """The largest norm of some vectors, and not 0."""
    return max(float(vectors.flatten(1).norm(dim=1).max()), 1e-30)


def _check(
    scores: Sequence[ScoreModel], path: Tensor, num_steps: int, rtol: float, pair: int
) -> None:
    if not scores:
        raise ValueError("`score` must be a ScoreModel or several of them, but got an empty list.")
    for one in scores:
        check_kind(ScoreModel, score=one)
    check_points(path=path)
    if path.ndim < 2 or len(path) < 2:
        raise ValueError(
            f"`path` must be at least 2 points (K, *shape), but got {tuple(path.shape)}."
        )
    check_whole(1, num_steps=num_steps)
    check_whole(0, pair=pair)
    check_not_negative(rtol=rtol)
    noises = [one.sigma / one.alpha for one in scores]
    if len(scores) > 1 and not noises[-2] > noises[-1]:
        raise ValueError(
            "`score` must go from coarse to fine: the noises sigma / alpha of the last two are "
            f"{noises[-2]:.4g} and {noises[-1]:.4g}."
        )
