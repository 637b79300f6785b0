"""Curves between keyframes that are no geodesics of a metric, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from riemannian_diffusion.baselines import density_geodesic, nao, noise_diffusion
from riemannian_diffusion.paths import lerp, slerp
from riemannian_diffusion.score import ScoreModel


@dataclass(frozen=True)
class Gap:
    """What a curve between two keyframes may use."""

    x0: Tensor
    x1: Tensor
    clean0: Tensor
    clean1: Tensor
    num_frames: int
    levels: Callable[[int], ScoreModel]
    timestep: int
    num_timesteps: int
    generator: torch.Generator | None


def _density(gap: Gap) -> Tensor:
    spread = min(100, gap.timestep, gap.num_timesteps - 1 - gap.timestep)
    return density_geodesic(
        *(gap.levels, gap.timestep, gap.x0, gap.x1, gap.num_frames),
        spread=spread,
        generator=gap.generator,
    )


def _noise_diffusion(gap: Gap) -> Tensor:
    return noise_diffusion(
        *(gap.x0, gap.x1, gap.num_frames),
        clean0=gap.clean0,
        clean1=gap.clean1,
        alpha=gap.levels(gap.timestep).alpha,
    )


CURVES: dict[str, Callable[[Gap], Tensor]] = {  # no geodesics of a metric, for comparison
    "slerp": lambda gap: slerp(gap.x0, gap.x1, gap.num_frames),
    "lerp": lambda gap: lerp(gap.x0, gap.x1, gap.num_frames),
    "nao": lambda gap: nao(gap.x0, gap.x1, gap.num_frames),
    "noise_diffusion": _noise_diffusion,
    "density": _density,
}
NOISE_CURVES = ("nao", "noise_diffusion", "density")  # of noise space alone
