"""Deterministic DDIM between noise levels, forwards and backwards."""

from riemannian_diffusion.ddim.inversion import invert, invert_steps
from riemannian_diffusion.ddim.steps import ddim_step, sample, sample_steps, sdedit

__all__ = ["ddim_step", "invert", "invert_steps", "sample", "sample_steps", "sdedit"]
