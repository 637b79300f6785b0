"""Ways between clean latents on which a solve may start, and ways beyond and beside them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from riemannian_diffusion.ddim import sdedit
from riemannian_diffusion.geometry import analogy, extrapolate
from riemannian_diffusion.metrics import EuclideanMetric, TangentNormalMetric
from riemannian_diffusion.paths import length
from riemannian_diffusion.roadmaps import Roadmap, roadmap
from riemannian_diffusion.score import ScoreModel, SharedNoiseScore

DRAW_NOISES = (0.8, 1.6, 2.8)  # that samples are carried to, in units of the clean latents
METRIC_NOISE = 0.5  # at which the metric tells leaps
BEYOND_NOISE = 0.25  # whose denoiser brings points beyond the last keyframe back
CARRY_NOISE = 0.5  # whose denoiser finds the tangents of an analogy
DRAW_STEPS = 6


def way_between(
    clean0: Tensor,
    clean1: Tensor,
    num_points: int,
    levels: Callable[[float], ScoreModel],
    timestep_of: Callable[[float], int],
    carry: Callable[[Tensor], Tensor],
    **options,
) -> Tensor:
    """Points of a way between clean latents, carried to the space of the path."""
    way = clean_roadmap(levels, timestep_of, clean0, clean1, **options)
    return carry(way(clean0, clean1, num_points))


def clean_roadmap(
    levels: Callable[[float], ScoreModel],
    timestep_of: Callable[[float], int],
    x0: Tensor,
    x1: Tensor,
    *,
    final_abar: float,
    max_samples: int,
    generator: torch.Generator | None,
) -> Roadmap:
    """A roadmap between clean latents `shape`, of SDEdit samples to three noise levels."""
    draws = []
    for noise in DRAW_NOISES:
        top = timestep_of(noise)
        timesteps = sorted({max(1, round(top * i / DRAW_STEPS)) for i in range(1, DRAW_STEPS + 1)})
        draws.append(
            partial(
                *(sdedit, levels),
                timesteps=timesteps,
                final_abar=final_abar,
                generator=generator,
            )
        )
    device = "cpu" if generator is None else generator.device
    seed = int(torch.randint(2**31, (), generator=generator, device=device))
    on_cpu = torch.Generator().manual_seed(seed)
    shared = torch.randn(x0.shape, generator=on_cpu, dtype=x0.dtype).to(x0.device)
    level = levels(timestep_of(METRIC_NOISE))
    metric = TangentNormalMetric(SharedNoiseScore(level, shared))
    options = {"max_samples": max_samples, "generator": on_cpu}
    return roadmap(draws, x0, x1, metric=metric, **options)


def go_on(
    latents: Tensor,
    levels: Callable[[float], ScoreModel],
    timestep_of: Callable[[float], int],
    share: float,
) -> Tensor:
    """The continuation of clean latents by a share of their length, `(M, C, h, w)`."""
    level = levels(timestep_of(BEYOND_NOISE))

    def denoise(x: Tensor) -> Tensor:
        return level.denoise(level.alpha * x) / level.alpha

    distance = share * float(length(latents))
    if not distance > 0:
        return latents[:0]
    return extrapolate(EuclideanMetric(), latents, distance, project=denoise)[len(latents) :]


def carry_over(
    latents: Tensor, levels: Callable[[float], ScoreModel], timestep_of: Callable[[float], int]
) -> Tensor:
    """Frames from C on, of clean latents `(2 F - 1, C, h, w)` that lead from B by A to C."""
    middle = len(latents) // 2
    path, way = latents[: middle + 1].flip(0), latents[middle:]
    level = levels(timestep_of(CARRY_NOISE))
    carried = analogy(level, level.alpha * path, level.alpha * way[-1], way=level.alpha * way)
    return carried / level.alpha
