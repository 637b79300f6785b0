"""Scores: a diffusion model read at one noise level.

At a fixed noise level a noisy point is `x = alpha x_0 + sigma eps`. A `ScoreModel` gives the score
`grad log p(x)`, the denoiser (Tweedie's formula) and products with the Jacobian of the score.
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
