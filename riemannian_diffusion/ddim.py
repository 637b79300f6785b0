"""Deterministic DDIM between noise levels, forwards and backwards (Song et al., arXiv 2010.02502).

In `z = x / alpha` and `tau = sigma / alpha` a step is an Euler step `z' = z + (tau' - tau) eps`.
Sampling takes `eps` at the level it leaves. Inversion must undo exactly that step, so its `eps` is
that of the level it arrives at: an implicit equation, solved by fixed-point iteration. For a
rectified flow, `x = (1 - t) x_0 + t eps`, it is the Euler step along the velocity,
`x' = x + (t' - t) v`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator

import torch
from torch import Tensor

from riemannian_diffusion.arguments import (
    check_callable,
    check_kind,
    check_points,
    check_tensor,
    check_whole,
    is_finite,
)
from riemannian_diffusion.score import ScoreModel, Where

Levels = Callable[[float], ScoreModel]


def ddim_step(x: Tensor, eps: Tensor, abar_from: float, abar_to: float) -> Tensor:
    """One deterministic step of noise prediction `eps` between two levels, in either direction.

    Args:
        x: `(K, *shape)` at the level `abar_from`.
        eps: `(K, *shape)`, the predicted noise.
        abar_from: Squared factor of the clean data where the step starts, in (0, 1].
        abar_to: The same where it ends.

    Returns:
        `(K, *shape)` at the level `abar_to`.

    Raises:
        ValueError: If a level lies outside (0, 1], or the shapes differ.
    """
    check_tensor(x=x, eps=eps)
    if x.shape != eps.shape:
        raise ValueError(
            f"`x` and `eps` must have one shape, but are {tuple(x.shape)} and {tuple(eps.shape)}."
        )
    return _step(x, eps, *(_factors(abar) for abar in (abar_from, abar_to)))


def invert(
    model: Levels,
    x: Tensor,
    timesteps: Iterable[float],
    *,
    final_abar: float = 1.0,
    fixed_point_iterations: int = 3,
    where: Where | None = None,
) -> Tensor:
    """Turn clean points into the noise from which `sample` returns them.

    Args:
        model: Timestep -> score model at that level; any callable.
        x: Clean points `(K, *shape)`.
        timesteps: The noisy levels to visit, in any order; the last one visited is the noisiest.
        final_abar: Squared factor of the data at the clean level: 1, or the scheduler's
            `final_alpha_cumprod`.
        fixed_point_iterations: Evaluations per step after the first guess, at least 0. With 0 this
            is the usual approximate inversion, whose `eps` is taken at the point the step leaves.
        where: The places of the points on their paths, for scores that change along the path.

    Returns:
        Points `(K, *shape)` at the noisiest of the timesteps.
    """
    steps = invert_steps(
        model,
        x,
        timesteps,
        final_abar=final_abar,
        fixed_point_iterations=fixed_point_iterations,
        where=where,
    )
    return deque(steps, maxlen=1).pop()


def sample(
    model: Levels,
    x: Tensor,
    timesteps: Iterable[float],
    *,
    final_abar: float = 1.0,
    where: Where | None = None,
) -> Tensor:
    """Turn noisy points back into clean ones; arguments are those of `invert`."""
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
        model: Timestep -> score model at that level; any callable.
        x: Clean points `(K, *shape)`.
        timesteps: The noisy levels to visit, in any order; noise is added for the noisiest.
        final_abar: As for `invert`.
        generator: Source of the noise.
        where: As for `invert`.

    Returns:
        Samples of the model near the given points `(K, *shape)`, the farther the noisier the level.
    """
    check_points(x=x)
    levels = _checked(timesteps)
    level = _level(model, levels[-1])
    if generator is not None:
        check_kind(torch.Generator, generator=generator)
    device = x.device if generator is None else generator.device
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
    noisy = level.alpha * x + level.sigma * noise
    return sample(model, noisy, levels, final_abar=final_abar, where=where)


def invert_steps(
    model: Levels,
    x: Tensor,
    timesteps: Iterable[float],
    *,
    final_abar: float = 1.0,
    fixed_point_iterations: int = 3,
    where: Where | None = None,
) -> Iterator[Tensor]:
    """The steps of `invert`, one level after the other."""
    check_points(x=x)
    check_whole(0, fixed_point_iterations=fixed_point_iterations)
    here = _factors(final_abar)
    for timestep in _checked(timesteps):
        level = _level(model, timestep)
        there = level.alpha, level.sigma
        guess = x
        for _ in range(1 + fixed_point_iterations):
            guess = _step(x, -level.sigma * level(guess, where), here, there)
        x, here = guess, there
        yield x


def sample_steps(
    model: Levels,
    x: Tensor,
    timesteps: Iterable[float],
    *,
    final_abar: float = 1.0,
    where: Where | None = None,
) -> Generator[Tensor, Tensor | None, None]:
    """The steps of `sample`, one level after the other.

    A caller may `send` back other points to go on from.
    """
    check_points(x=x)
    levels = _checked(timesteps)[::-1]
    for i, timestep in enumerate(levels):
        level, there = _level(model, timestep), _factors(final_abar)
        if i + 1 < len(levels):
            following = _level(model, levels[i + 1])
            there = following.alpha, following.sigma
        x = _step(x, -level.sigma * level(x, where), (level.alpha, level.sigma), there)
        sent = yield x
        x = x if sent is None else sent


def _level(model: Levels, timestep: float) -> ScoreModel:
    check_callable(model=model)
    level = model(timestep)
    if not isinstance(level, ScoreModel):
        raise ValueError(
            f"`model` must give a ScoreModel for timestep {timestep}, but gave "
            f"{type(level).__name__}."
        )
    return level


def _factors(abar: float) -> tuple[float, float]:
    """The factors of data and noise."""
    if not (is_finite(abar) and 0 < abar <= 1):
        raise ValueError(f"Levels must be in (0, 1], but got {abar}.")
    return abar**0.5, (1 - abar) ** 0.5


def _step(x: Tensor, eps: Tensor, here: tuple[float, float], there: tuple[float, float]) -> Tensor:
    clean = (x - here[1] * eps) / here[0]
    return there[0] * clean + there[1] * eps


def _checked(timesteps: Iterable[float]) -> list[float]:
    if not isinstance(timesteps, Iterable):
        raise ValueError(f"`timesteps` must be one or more different levels, but got {timesteps}.")
    levels = [t.item() if isinstance(t, Tensor) else t for t in timesteps]
    if not all(map(is_finite, levels)):
        raise ValueError(f"`timesteps` must be finite numbers, but got {levels}.")
    levels.sort()
    if not levels or len(set(levels)) < len(levels):
        raise ValueError(f"`timesteps` must be one or more different levels, but got {levels}.")
    return levels
