"""The pace of a geodesic in noise space that spaces its samples evenly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_whole
from riemannian_diffusion.ddim import Levels, level_of, sample, sorted_timesteps
from riemannian_diffusion.geodesics import Geodesic
from riemannian_diffusion.paths import points_at, segment_lengths, smooth
from riemannian_diffusion.score import Where

_FINER = 8  # points of a smooth curve through the samples, for each of its segments


@torch.no_grad()
def pace_by_samples(
    model: Levels,
    found: Sequence[Geodesic],
    timesteps: Iterable[float],
    *,
    num_points: int | Sequence[int] = 17,
    num_steps: int = 5,
    final_abar: float = 1.0,
) -> list[Geodesic]:
    """Pace geodesics between noisy points so that their samples are evenly spaced.

    Sampling stretches some parts of a path in noise space more than others, so points at equal
    distances do not become samples at equal distances. This function samples a few points of each
    geodesic in a few steps, all geodesics in one batch, and takes the flat length along a smooth
    curve through the samples as the new pace. The curve of the geodesic does not change.

    Args:
        model: See `invert`. The place of a point is its fraction of the new length, and its pair is
            the index of the geodesic.
        found: The geodesics, between points at the noisiest of the timesteps.
        timesteps: See `invert`.
        num_points: Number of points of each geodesic that are sampled, at least 2: one number, or
            one for each geodesic.
        num_steps: Largest number of sampling steps, at least 1. They visit the noisiest of the
            timesteps, and others that are about evenly spaced in the cube root of the noise.
        final_abar: See `invert`.

    Returns:
        The geodesics with other `path` and `arc`. Their lengths are the same; `arc` is the length
        of the samples up to each point, scaled to the geodesic's length. A geodesic keeps its pace
        if its energy or a sample is not finite, or if its samples are all equal.

    Raises:
        ValueError: If an argument is out of range; see also `invert`.

    Examples:
        >>> import torch
        >>> from diffusers import DDIMScheduler
        >>> from riemannian_diffusion import GaussianMixtureScore, TangentNormalMetric
        >>> from riemannian_diffusion import geodesic, invert, pace_by_samples, sample
        >>> abar = DDIMScheduler().alphas_cumprod
        >>> angles = torch.arange(512) * 2 * torch.pi / 512
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> def level(timestep):  # the exact score of a circle
        ...     a = float(abar[int(timestep)])
        ...     return GaussianMixtureScore(circle, (1 - a) ** 0.5, alpha=a**0.5)
        >>> timesteps = range(600, 0, -40)
        >>> ends = invert(level, circle[[0, 160]], timesteps)
        >>> found = geodesic(TangentNormalMetric(level(600)), *ends)
        >>> (paced,) = pace_by_samples(level, [found], timesteps)
        >>> def unevenness(points):
        ...     steps = (points[1:] - points[:-1]).norm(dim=1)
        ...     return float(steps.std() / steps.mean())
        >>> before = unevenness(sample(level, found.path, timesteps))
        >>> unevenness(sample(level, paced.path, timesteps)) < 0.1 * before
        True
    """
    found = list(found)
    numbers = [num_points] * len(found) if isinstance(num_points, int) else list(num_points)
    if len(numbers) != len(found):
        raise ValueError(
            f"`num_points` must be one number, or one for each of {len(found)} geodesics, but got "
            f"{len(numbers)}."
        )
    for number in numbers:
        check_whole(2, num_points=number)
    check_whole(1, num_steps=num_steps)
    if not found:
        return []
    fractions = [torch.linspace(0, 1, number, dtype=torch.float64) for number in numbers]
    points = torch.cat([one(u) for one, u in zip(found, fractions, strict=True)])
    where = Where.cat([Where(u, pair) for pair, u in enumerate(fractions)])
    steps = _some_of(model, sorted_timesteps(timesteps), num_steps)
    samples = sample(model, points, steps, final_abar=final_abar, where=where)
    return [_paced(one, part) for one, part in zip(found, samples.split(numbers), strict=True)]


def _paced(found: Geodesic, samples: Tensor) -> Geodesic:
    """A geodesic at the pace of samples of its evenly spaced points, `(M, *shape)`."""
    lengths = segment_lengths(smooth(samples, _FINER)).cpu().double()
    share = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    total = float(share[-1])
    if not (0 < total < torch.inf and found.length > 0):
        return found
    even = torch.linspace(0, 1, len(share), dtype=torch.float64)
    arc = points_at(share / total * found.length, even, found.arc / found.arc[-1])
    frames = torch.linspace(0, 1, len(found.path), dtype=torch.float64)
    return replace(found, arc=arc, path=points_at(found.curve, arc, frames))


def _some_of(model: Levels, timesteps: Sequence[float], num: int) -> list[float]:
    """Some timesteps: the noisiest, and others about even in the cube root of the noise."""
    levels = [level_of(model, timestep) for timestep in timesteps]
    noises = [(level.sigma / level.alpha) ** (1 / 3) for level in levels]
    shares = torch.linspace(1, 0, num + 1, dtype=torch.float64).tolist()[:-1]
    wanted = [max(noises) * share for share in shares]
    nearest = {min(range(len(noises)), key=lambda i: abs(noises[i] - one)) for one in wanted}
    return [timesteps[i] for i in sorted(nearest)]
