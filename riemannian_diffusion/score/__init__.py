"""Scores: a diffusion model read at one noise level.

At a fixed level a noisy point is `x = alpha x_0 + sigma eps`, and a `ScoreModel` gives `grad log
p(x)`, the denoiser that goes with it (Tweedie's formula) and products with the score's Jacobian.
"""

from riemannian_diffusion.score.conditions import Condition, Conditions
from riemannian_diffusion.score.denoiser import DenoiserScore
from riemannian_diffusion.score.diffusion import DiffusionScore
from riemannian_diffusion.score.mixture import GaussianMixtureScore
from riemannian_diffusion.score.model import ScoreModel
from riemannian_diffusion.score.network import Level, NetworkScore
from riemannian_diffusion.score.shared_noise import SharedNoiseScore
from riemannian_diffusion.score.where import Where

__all__ = [
    "Condition",
    "Conditions",
    "DenoiserScore",
    "DiffusionScore",
    "GaussianMixtureScore",
    "Level",
    "NetworkScore",
    "ScoreModel",
    "SharedNoiseScore",
    "Where",
]
