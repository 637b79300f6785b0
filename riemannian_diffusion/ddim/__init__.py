"""Deterministic DDIM between noise levels, forwards and backwards."""

from riemannian_diffusion.ddim.inversion import invert, invert_steps
from riemannian_diffusion.ddim.steps import (
    Levels,
    ddim_step,
    level_of,
    sample,
    sample_steps,
    sdedit,
    sorted_timesteps,
)

__all__ = [
    "Levels",
    "ddim_step",
    "invert",
    "invert_steps",
    "level_of",
    "sample",
    "sample_steps",
    "sdedit",
    "sorted_timesteps",
]
