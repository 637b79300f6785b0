"""Scores of small networks that are trained on points of a manifold in about a minute."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from methods import Count, Counting, Levels
from problems import Problem
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from riemannian_diffusion import DiffusionScore
from riemannian_diffusion.files import write_atomically

BATCH = 256  # points of a training step


class Denoiser(nn.Module):
    """A small network that predicts clean points, with the interface of diffusers."""

    def __init__(self, size: int, width: int = 256):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(size + 16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()),
            *(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size)),
        )

    def forward(self, x: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Predict clean points `(K, n)`, in a tuple, from noisy points and their timestep."""
        waves = timestep.float().reshape(-1, 1) / 1000 * torch.pi * 2.0 ** torch.arange(8) / 2
        waves = torch.cat([waves.sin(), waves.cos()], 1).expand(len(x), -1)
        return (self.layers(torch.cat([x, waves], 1)),)


def train(problem: Problem, num_steps: int, seed: int) -> Denoiser:
    """A denoiser of the problem's points at every noise level."""
    scheduler = DDIMScheduler(prediction_type="sample")
    alphas = scheduler.alphas_cumprod.sqrt()
    sigmas = (1 - scheduler.alphas_cumprod).sqrt()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Denoiser(problem.points.shape[1])
    weights = problem.weights
    weights = torch.ones(len(problem.points)) if weights is None else weights
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        index = torch.multinomial(weights, BATCH, replacement=True, generator=generator)
        clean = problem.points[index].float()
        timesteps = (
            999 * torch.rand(BATCH, generator=generator) ** 2
        ).long()  # most timesteps have weak noise
        alpha, sigma = alphas[timesteps, None], sigmas[timesteps, None]
        noisy = alpha * clean + sigma * torch.randn(clean.shape, generator=generator)
        error = (model(noisy, timesteps)[0] - clean).square().sum(1)
        loss = (error / (sigma.squeeze(1) ** 2 + 0.01)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def trained(problem: Problem, num_steps: int, seed: int, file: Path | None = None) -> Denoiser:
    """The denoiser of a problem's points. A file keeps its weights; None keeps nothing."""
    if file is None or not file.exists():
        model = train(problem, num_steps, seed)
        if file is not None:
            write_atomically(file, lambda path: save_file(model.state_dict(), path))
        return model
    model = Denoiser(problem.points.shape[1])
    model.load_state_dict(load_file(file))
    return model.eval()


def timestep_of(noise: float) -> int:
    """The timestep of the usual schedule with a given noise in units of the clean data."""
    abar = DDIMScheduler().alphas_cumprod
    return int(((1 - abar) / abar).sqrt().sub(noise).abs().argmin())


def network_levels(model: Denoiser, count: Count) -> Levels:
    """The scores of a denoiser at the timesteps of diffusers' usual schedule."""
    scheduler = DDIMScheduler(prediction_type="sample")
    return cache(lambda timestep: Counting(DiffusionScore(model, scheduler, timestep), count))


def exact_levels(problem: Problem, count: Count) -> Levels:
    """The exact scores of a problem at the timesteps of diffusers' usual schedule."""
    abar = DDIMScheduler().alphas_cumprod

    def level(timestep: int) -> Counting:
        alpha, sigma = float(abar[timestep].sqrt()), float((1 - abar[timestep]).sqrt())
        return Counting(problem.level(alpha, sigma), count)

    return cache(level)
