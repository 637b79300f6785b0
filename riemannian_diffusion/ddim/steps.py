"""Deterministic DDIM between noise levels (Song et al., arXiv 2010.02502).

In the coordinates `z = x / alpha` and `tau = sigma / alpha`, a DDIM step is the Euler step
`z' = z + (tau' - tau) eps`. For a rectified flow, `x = (1 - t) x_0 + t eps`, the same formula is
the Euler step along the velocity `v`, `x' = x + (t' - t) v`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable

import torch
from torch import Tensor

from riemannian_diffusion.arguments import (
    check_callable,
    check_kind,
    check_points,
    check_tensor,
    is_finite,
    plain,
)
from riemannian_diffusion.score import ScoreModel, Where

Levels = Callable[[float], ScoreModel]
Factors = tuple[float, float]  # of the data and of the noise at a level


def ddim_step(x: Tensor, eps: Tensor, abar_from: float, abar_to: float) -> Tensor:
    """Take one deterministic step between two noise levels, in either direction.

    Args:
        x: Points `(K, *shape)` at the level `abar_from`.
        eps: The predicted noise, `(K, *shape)`.
        abar_from: Squared factor of the clean data at the start of the step, in (0, 1].
        abar_to: Squared factor of the clean data at the end of the step, in (0, 1].

    Returns:
        Points `(K, *shape)` at the level `abar_to`.

    Raises:
        ValueError: If a level lies outside (0, 1], or the shapes differ.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import ddim_step
        >>> tuple(ddim_step(torch.ones(1, 2), torch.zeros(1, 2), 0.5, 1.0).shape)
        (1, 2)
    """
    check_tensor(x=x, eps=eps)
    if x.shape != eps.shape:
        raise ValueError(
            f"`x` and `eps` must have one shape, but got {tuple(x.shape)} and {tuple(eps.shape)}."
        )
    return step(x, eps, factors_of("abar_from", abar_from), factors_of("abar_to", abar_to))


def sample(
    model: Levels,
    x: Tensor,
    timesteps: Iterable[float],
    *,
    final_abar: float = 1.0,
    where: Where | None = None,
) -> Tensor:
    """Turn noisy points into clean points.

    Args:
        model: See `invert`.
        x: Points `(K, *shape)` at the noisiest of the timesteps.
        timesteps: See `invert`.
        final_abar: See `invert`.
        where: See `invert`.

    Returns:
        Clean points `(K, *shape)`.

    Raises:
        ValueError: See `invert`.

    Examples:
        >>> import torch
        >>> from diffusers import DDIMScheduler
        >>> from riemannian_diffusion import GaussianMixtureScore, sample
        >>> abar = DDIMScheduler().alphas_cumprod
        >>> def level(timestep):  # the exact score of two points
        ...     a = float(abar[int(timestep)])
        ...     return GaussianMixtureScore(points, (1 - a) ** 0.5, alpha=a**0.5)
        >>> points = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> found = sample(level, torch.randn(3, 2), [800, 400, 0])
        >>> tuple(found.shape)
        (3, 2)
    """
    steps = sample_steps(model, x, timesteps, final_abar=final_abar, where=where)
    return deque(steps, maxlen=1).pop()


def sdedit(
    model: Levels,
    x: Tensor,
    timesteps: Iterable[float],
    *,
    final_abar: float = 1.0,
    generator: torch.Generator | None = None,
    where: Where | None = None,
) -> Tensor:
    """Add noise to clean points and sample back: SDEdit (Meng et al., arXiv 2108.01073).

    Args:
        model: See `invert`.
        x: Clean points `(K, *shape)`.
        timesteps: The timesteps of the noisy levels to visit, in any order. The added noise is that
            of the noisiest level.
        final_abar: See `invert`.
        generator: Source of the noise.
        where: See `invert`.

    Returns:
        Samples of the model near the given points, `(K, *shape)`. More noise moves them farther.

    Raises:
        ValueError: See `invert`.

    Examples:
        >>> import torch
        >>> from diffusers import DDIMScheduler
        >>> from riemannian_diffusion import GaussianMixtureScore, sdedit
        >>> abar = DDIMScheduler().alphas_cumprod
        >>> def level(timestep):  # the exact score of two points
        ...     a = float(abar[int(timestep)])
        ...     return GaussianMixtureScore(points, (1 - a) ** 0.5, alpha=a**0.5)
        >>> points = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> tuple(sdedit(level, points, timesteps=[400, 0]).shape)
        (2, 2)
    """
    check_points(x=x)
    levels = sorted_timesteps(timesteps)
    level = level_of(model, levels[-1])
    if generator is not None:
        check_kind(torch.Generator, generator=generator)
    device = x.device if generator is None else generator.device
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
    noisy = level.alpha * x + level.sigma * noise
    return sample(model, noisy, levels, final_abar=final_abar, where=where)


def sample_steps(
    model: Levels,
    x: Tensor,
    timesteps: Iterable[float],
    *,
    final_abar: float = 1.0,
    where: Where | None = None,
) -> Generator[Tensor, Tensor | None, None]:
    """Yield the points of `sample` after each of its steps.

    If the caller sends points back to the generator, the next step starts from them.

    Examples:
        >>> import torch
        >>> from diffusers import DDIMScheduler
        >>> from riemannian_diffusion import GaussianMixtureScore, sample_steps
        >>> abar = DDIMScheduler().alphas_cumprod
        >>> def level(timestep):  # the exact score of two points
        ...     a = float(abar[int(timestep)])
        ...     return GaussianMixtureScore(points, (1 - a) ** 0.5, alpha=a**0.5)
        >>> points = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> len(list(sample_steps(level, torch.randn(3, 2), [800, 400, 0])))
        3
    """
    check_points(x=x)
    levels = sorted_timesteps(timesteps)[::-1]
    for i, timestep in enumerate(levels):
        level, target = level_of(model, timestep), factors_of("final_abar", final_abar)
        if i + 1 < len(levels):
            following = level_of(model, levels[i + 1])
            target = following.alpha, following.sigma
        x = step(x, -level.sigma * level(x, where), (level.alpha, level.sigma), target)
        sent = yield x
        x = x if sent is None else sent


def level_of(model: Levels, timestep: float) -> ScoreModel:
    """The score model of a timestep.

    Raises:
        ValueError: If `model` is no function, or does not return a score model.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore
        >>> from riemannian_diffusion.ddim import level_of
        >>> model = lambda timestep: GaussianMixtureScore(torch.zeros(1, 2), timestep / 1000)
        >>> level_of(model, 200).sigma
        0.2
    """
    check_callable(model=model)
    level = model(timestep)
    if not isinstance(level, ScoreModel):
        raise ValueError(
            f"`model` must give a ScoreModel for timestep {timestep}, but gave "
            f"{type(level).__name__}."
        )
    return level


def factors_of(name: str, abar: float) -> Factors:
    """The factors of the data and of the noise at a level.

    Raises:
        ValueError: Naming the argument, if it is outside (0, 1].
    """
    if not (is_finite(abar) and 0 < abar <= 1):
        raise ValueError(f"`{name}` must be in (0, 1], but got {abar}.")
    abar = float(abar)
    return abar**0.5, (1 - abar) ** 0.5


def step(x: Tensor, eps: Tensor, start: Factors, end: Factors) -> Tensor:
    """One DDIM step between levels that are given by their factors of data and noise."""
    clean = (x - start[1] * eps) / start[0]
    return end[0] * clean + end[1] * eps


def sorted_timesteps(timesteps: Iterable[float]) -> list[float]:
    """The timesteps as numbers, from clean to noisy.

    Raises:
        ValueError: If there are none, or they are not finite or not different.

    Examples:
        >>> from riemannian_diffusion.ddim import sorted_timesteps
        >>> sorted_timesteps([600, 1, 300])
        [1, 300, 600]
    """
    if not isinstance(timesteps, Iterable):
        raise ValueError(f"`timesteps` must be one or more different levels, but got {timesteps}.")
    found = list(timesteps)
    if not all(map(is_finite, found)):
        raise ValueError(f"`timesteps` must be finite numbers, but got {found}.")
    levels = sorted(map(plain, found))
    if not levels or len(set(levels)) < len(levels):
        raise ValueError(f"`timesteps` must be one or more different levels, but got {levels}.")
    return levels
