"""LikelyMetric: paths that balance flat length against likelihood, without backward passes."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from models import embeddings, prompted_score_unet, randn, vector
from problems import circle
from torch.testing import assert_close

from riemannian_diffusion import (
    DenoiserScore,
    DiffusionScore,
    GaussianMixtureScore,
    LikelyMetric,
    SharedNoiseScore,
    exponential_map,
    geodesic,
    geodesics,
    length,
    lerp,
    logarithm_map,
    resample,
)

MIXTURE = GaussianMixtureScore(randn(6, 4), 0.5, std=0.3)
FAR = vector(2.0, 0.0, 0.0), vector(0.0, 2.0, 0.0)


def gaussian(k: float, variance: float = 0.5) -> LikelyMetric:
    """The metric of a centred Gaussian with paths `x'' = k^2 x`."""
    score = GaussianMixtureScore(torch.zeros(1, 3, dtype=torch.float64), variance**0.5)
    return LikelyMetric(score, lam=variance * k**2)


def hyperbolic(k: float, u: torch.Tensor) -> torch.Tensor:
    """The path of `gaussian(k)` between the points `FAR`, `(U, 3)`."""
    x0, x1 = FAR
    u = u.double()[:, None]
    return (torch.sinh(k * (1 - u)) * x0 + torch.sinh(k * u) * x1) / math.sinh(k)


def test_the_gradient_is_that_of_the_exact_log_density():
    """The gradient is exact, and the energy is exact to second order in the steps."""
    metric = LikelyMetric(MIXTURE, lam=2.0)

    def exact(path):
        num, log_prob = len(path) - 1, MIXTURE.log_prob(path) - MIXTURE.log_prob(path[:1])
        flat = num / 2 * (path[1:] - path[:-1]).square().sum(1)
        return flat - 2.0 * (log_prob[1:] + log_prob[:-1]) / (2 * num)

    path = randn(7, 4, seed=1).requires_grad_()
    (answer,) = metric.energies([path.detach()], differentiate=True)
    for energy in (exact, metric.energy):
        (gradient,) = torch.autograd.grad(energy(path).sum(), path)
        assert_close(answer.gradient[1:-1], gradient[1:-1], rtol=1e-10, atol=1e-10)
    assert not answer.gradient[[0, -1]].any()
    lines = [lerp(*randn(2, 4, seed=2), num + 1) for num in (100, 200)]
    coarse, fine = (float(metric.energy(a).sum() - exact(a).sum()) for a in lines)
    assert coarse == pytest.approx(4 * fine, rel=0.05) and abs(fine) < 1e-3


@pytest.mark.parametrize("k", [0.0, 0.5, 2.0, 3.0, 5.0])
def test_paths_of_a_gaussian_in_closed_form(k):
    """Energies are negative for k above 2.1: the middle is more likely than the ends."""
    metric, num = gaussian(k), 65
    found = geodesic(metric, *FAR, num_points=num, num_quadrature=1, rtol=1e-8)
    u = torch.linspace(0, 1, num)
    expected = hyperbolic(k, u) if k else lerp(*FAR, num)
    assert found.status == "converged" and found.num_evals < 60
    assert_close(found.nodes, expected, rtol=0, atol=2e-3)
    energy = 4.0 if not k else 4 * k / math.tanh(k) - 2 * k**2
    assert found.energy == pytest.approx(energy, rel=2e-3, abs=1e-2)
    assert found.lower_bound == -math.inf and (found.energy < 0) == (k > 2.1)


@pytest.mark.parametrize("share", [0.0, 1e-6, -1e-6, 1e-3])
def test_a_solve_converges_from_an_energy_near_zero(share):
    """The weight is such that the straight path has this share of its flat energy."""
    flat, all_of_it = (float(gaussian(k).energy(lerp(*FAR, 33)).sum()) for k in (0.0, 1.0))
    k = math.sqrt((1 - share) * flat / (flat - all_of_it))
    found = geodesic(gaussian(k), *FAR, num_points=17, rtol=1e-6)
    assert found.iterates[0][1] == pytest.approx(share * flat, abs=1e-6)
    assert found.status == "converged" and found.num_evals < 40
    assert_close(found.nodes, hyperbolic(k, torch.linspace(0, 1, 17)), rtol=0, atol=1e-2)


def test_lengths_are_flat():
    metric = gaussian(3.0)
    found = geodesic(metric, *FAR, num_points=9)
    assert found.length == pytest.approx(float(length(found.curve)), rel=1e-6)
    assert_close(metric.length(found.path), length(found.path))
    assert_close(length(found.path, metric), length(found.path))
    assert_close(resample(found.path, 5, metric=metric), resample(found.path, 5))
    hops = randn(3, 4, 3)
    assert_close(metric.hop_lengths(hops), (hops[:, 1:] - hops[:, :-1]).norm(dim=2))
    assert_close(metric.as_matrix(hops[0]), torch.eye(3, dtype=torch.float64).expand(4, 3, 3))


def test_first_velocities_exist_and_an_exponential_map_does_not():
    k = 2.0
    velocity = logarithm_map(gaussian(k), *FAR, num_points=65)
    expected = k * (FAR[1] - math.cosh(k) * FAR[0]) / math.sinh(k)
    assert_close(velocity, expected, rtol=2e-3, atol=2e-3)
    with pytest.raises(ValueError, match="LikelyMetric has no exponential map"):
        exponential_map(gaussian(k), FAR[0], velocity)


@pytest.mark.parametrize("shared", [False, True])
def test_the_network_runs_forward_only(shared):
    def denoise(x):
        assert not torch.is_grad_enabled() and not x.requires_grad
        return MIXTURE.denoise(x)

    score = DenoiserScore(denoise, MIXTURE.sigma)
    metric = LikelyMetric(SharedNoiseScore(score, randn(2, 4, seed=3)) if shared else score)
    ends = randn(2, 3, 4, seed=4)
    found = geodesics(metric, *ends, num_points=5, init=["lerp", "slerp"], max_evals=10)
    assert all(one.iterates[-1][1] < one.iterates[0][1] for one in found)
    path = found[0].path.clone().requires_grad_()
    metric.energy(path).sum().backward()
    assert path.grad.isfinite().all()
    metric.length(path)
    logarithm_map(metric, *ends[:, 0], num_points=5, max_evals=5)


def test_an_evaluation_is_one_batch_of_all_paths():
    score = DiffusionScore(
        prompted_score_unet(), DDIMScheduler(), 300, encoder_hidden_states=embeddings(3)
    )
    sizes: list[int] = []
    score.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    ends = randn(2, 2, 2, 8, 8, seed=1)
    found = geodesics(LikelyMetric(score), *ends, num_points=5, max_evals=3)
    assert [one.num_evals for one in found] == [3, 3]
    # energies, and those on finer samplings, whose chords become short against the noise
    assert sizes == [2 * 9] * 3 + [2 * 17, 2 * 33]


def test_paths_stay_near_a_circle():
    """Noisy data of a unit circle are densest `sigma^2 / 2` inside it.

    The path lies further inside by the acceleration times `sigma^2 / lam`.
    """
    problem = circle(32, shift=1.0)
    found = geodesic(LikelyMetric(problem.score), problem.x0, problem.x1, num_points=25)
    truth = problem.geodesic(torch.linspace(0, 1, 25))
    assert float((found.path - truth).square().sum(1).mean().sqrt()) < 0.015
    offset = problem.score.sigma**2 * (0.5 + problem.length**2 / 10)
    assert float(problem.distance(found.path)[8:17].mean()) == pytest.approx(offset, rel=0.15)
    assert found.on_data and found.num_evals <= 16


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: LikelyMetric(MIXTURE, lam=-1), "`lam` must not be negative, but got -1"),
        (lambda: LikelyMetric(MIXTURE, lam=math.nan), "`lam` must be a finite number"),
        (lambda: LikelyMetric(None), "`score` must be a ScoreModel, but got NoneType"),
    ],
)
def test_uses_that_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()
