"""`DenoiserScore` in the conventions of EDM and k-diffusion, against exact mixtures."""

from __future__ import annotations

import doctest

import pytest
import torch
from diffusers import DDIMScheduler
from models import randn

from riemannian_diffusion import DenoiserScore, GaussianMixtureScore
from riemannian_diffusion.score import denoiser

SCHEDULER = DDIMScheduler()


class Preconditioned:
    """The exact denoiser of a mixture, as EDM writes it (table 1 of arXiv 2206.00364).

    `D(x; s) = c_skip x + c_out F(c_in x; c_noise)`, where `F` plays the network. Its input has unit
    variance and its time is `c_noise = log(s) / 4`.
    """

    def __init__(self, means, std, data):
        self.means, self.std, self.data = means, std, data

    def network(self, scaled, noise):
        sigma = (4 * noise).exp().view(-1, 1)
        total = sigma**2 + self.data**2
        x = scaled * total.sqrt()
        spread = sigma**2 + self.std**2
        gaps = x[:, None] - self.means  # (K, M, D)
        weights = (-gaps.square().sum(2) / (2 * spread)).softmax(1)
        means = (weights[..., None] * self.means).sum(1)
        denoised = means + self.std**2 / spread * (x - means)
        return (denoised - self.data**2 / total * x) * total.sqrt() / (sigma * self.data)

    def __call__(self, x, sigma):
        sigma = sigma.view(-1, 1)
        total = sigma**2 + self.data**2
        scaled, noise = x / total.sqrt(), sigma.flatten().log() / 4
        output = self.network(scaled, noise)
        return self.data**2 / total * x + sigma * self.data / total.sqrt() * output


@pytest.mark.parametrize("sigma", [0.05, 0.7, 20.0])
def test_denoisers_of_edm_are_scores(sigma):
    means, x, v = randn(4, 3), randn(5, 3, seed=1), randn(5, 3, seed=2)
    network = Preconditioned(means, 0.3, data=0.5)
    x = means[[0, 1, 2, 3, 0]] + sigma * x
    score = DenoiserScore(lambda x: network(x, x.new_full((len(x),), sigma)), sigma)
    exact = GaussianMixtureScore(means, sigma, std=0.3)
    torch.testing.assert_close(score(x), exact(x))
    torch.testing.assert_close(score.jvp(x, v), exact.jvp(x, v))
    torch.testing.assert_close(score.vjp(x, v), exact.vjp(x, v))


@pytest.mark.parametrize("timestep", [5, 400, 900])
def test_denoisers_of_k_diffusion_are_scores(timestep):
    """A model of noise at `alpha x_0 + sigma eps`, wrapped as k-diffusion's CompVisDenoiser does.

    There `x_0 + s eps` has `s = sigma / alpha`, and `D(x; s) = x - s eps(x / sqrt(s^2 + 1), t)`.
    """
    abar = float(SCHEDULER.alphas_cumprod[timestep])
    alpha, sigma = abar**0.5, (1 - abar) ** 0.5
    means, x, v = randn(4, 3), randn(5, 3, seed=1), randn(5, 3, seed=2)
    exact = GaussianMixtureScore(means, sigma, std=0.3, alpha=alpha)
    ratio = sigma / alpha

    def denoise(x):
        return x - ratio * -sigma * exact(x / (ratio**2 + 1) ** 0.5)

    clean = GaussianMixtureScore(means, ratio, std=0.3)
    score = DenoiserScore(denoise, ratio)
    x = means[[0, 1, 2, 3, 0]] + ratio * x
    torch.testing.assert_close(score(x), clean(x))
    torch.testing.assert_close(score.jvp(x, v), clean.jvp(x, v))
    scaled = DenoiserScore(lambda x: alpha * denoise(x / alpha), sigma, alpha=alpha)
    torch.testing.assert_close(scaled(alpha * x), exact(alpha * x))


def test_the_example_runs():
    found = doctest.testmod(denoiser)
    assert found.attempted > 3 and not found.failed
