"""Relaxed paths compared with great circles, straight lines and the denoiser's own fixed points."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from models import prompted_score_unet, randn
from problems import HypersphereScore
from torch.testing import assert_close

from riemannian_diffusion import (
    DiffusionScore,
    GaussianMixtureScore,
    ScoreModel,
    SharedNoiseScore,
    lerp,
    relax,
    resample,
)
from riemannian_diffusion.score import Where


class Forward(ScoreModel):
    """A score that counts its points, and refuses to be differentiated."""

    def __init__(self, score):
        self.score, self.alpha, self.sigma, self.num = score, score.alpha, score.sigma, 0

    def __call__(self, x):
        assert not torch.is_grad_enabled()
        self.num += len(x)
        return self.score(x)

    def jvp(self, x, v):
        raise AssertionError("A relaxation needs forward passes only.")

    vjp = jvp


def sphere(k, n, sigma, alpha=1.0):
    """The score of the unit k-sphere in the first k + 1 axes of R^n."""
    return HypersphereScore(
        torch.eye(n, k + 1).double(), torch.zeros(n).double(), sigma, alpha=alpha
    )


def great_circle(n, num=17, angle=2.0):
    t = torch.linspace(0, angle, num).double()
    return torch.cat([torch.stack([t.cos(), t.sin()], 1), torch.zeros(num, n - 2).double()], 1)


def rms(path, truth):
    return float((path - truth).square().sum(1).mean().sqrt())


def test_one_score_ends_where_the_denoiser_does_not_move_points_across():
    score = Forward(sphere(1, 4, 0.1))
    truth = great_circle(4)
    path = relax(score, lerp(truth[0], truth[-1], 17))
    radius = 1.0
    for _ in range(50):
        radius = float(score.score.denoise(torch.tensor([[radius, 0, 0, 0]]).double())[0, 0])
    assert radius == pytest.approx(1 - 0.1**2 / 2, abs=1e-4)
    assert_close(path[1:-1].norm(dim=1), torch.full((15,), radius).double(), rtol=0, atol=1e-5)
    assert_close(path[1:-1], radius * truth[1:-1], rtol=0, atol=1e-3)
    assert torch.equal(path[[0, -1]], truth[[0, -1]])


@pytest.mark.parametrize("k", [1, 3, 6])
def test_two_scores_find_great_circles_from_detours(k):
    """The errors of one score, k sigma^2 / 2, are gone."""
    truth = great_circle(20)
    u = torch.linspace(0, 1, 17).double()
    start = truth + 0.6 * (3 * math.pi * u).sin()[:, None] * torch.eye(20).double()[k]
    scores = [Forward(sphere(k, 20, sigma)) for sigma in (0.1, 0.05)]
    path = relax(scores, start)
    assert rms(start, truth) > 0.4 and rms(path, truth) < 1e-3
    assert float((path.norm(dim=1) - 1).abs().max()) < 5e-5 * k
    steps = (path[1:] - path[:-1]).norm(dim=1)
    assert float(steps.std() / steps.mean()) < 1e-3
    alone = relax(scores[1], start)
    bias = (1 - alone[1:-1].norm(dim=1)).mean()
    assert float(bias) == pytest.approx(k * 0.05**2 / 2, rel=0.05)


def test_a_path_does_not_drift_to_denser_data():
    """On a plane whose density grows by a factor of 20 across the path."""
    line = torch.linspace(-1.5, 1.5, 61).double()
    points = torch.cartesian_prod(line, line)
    points = torch.cat([points, torch.zeros(len(points), 1).double()], 1)
    score = GaussianMixtureScore(points, 0.1, weights=(3 * points[:, 1]).exp())
    truth = lerp(*torch.tensor([[-1.0, 0, 0], [1, 0, 0]]).double(), 17)
    start = truth + torch.tensor([0, 0.4, 0.2]).double() * (truth[:, :1] ** 2 - 1)
    path = relax(score, start)
    assert rms(path, truth) < 2e-3
    drifting = start
    for _ in range(10):
        drifting = resample(torch.cat([truth[:1], score.denoise(drifting[1:-1]), truth[-1:]]), 17)
    assert float(drifting[8, 1]) > float(start[8, 1]) + 0.15


def test_steps_end_early_and_rtol_decides():
    truth = great_circle(4)
    start, numbers = lerp(truth[0], truth[-1], 17), []
    for rtol in (1e-1, 1e-3, 0):
        score = Forward(sphere(1, 4, 0.1))
        relax(score, start, rtol=rtol)
        numbers.append(score.num)
    assert numbers[0] < numbers[1] < numbers[2]
    score = Forward(sphere(1, 4, 0.1))
    relax(score, start, num_steps=1)
    assert score.num == 15 * 6


def test_points_are_clean_whatever_the_factor_of_the_data():
    """Noise 0.3 / 0.6 of clean points is the same score as a shared noise of 0."""
    scores = [GaussianMixtureScore(randn(9, 2, 3), s, alpha=0.6) for s in (0.3, 0.2)]
    path = randn(7, 2, 3, seed=1)
    shared = [SharedNoiseScore(score, torch.zeros(2, 3).double()) for score in scores]
    assert_close(relax(scores, path), relax(shared, path), rtol=1e-10, atol=1e-10)


def test_every_point_is_read_at_its_place_and_the_dtype_stays():
    prompts = 3 * randn(2, 5, 6, seed=3)
    score = DiffusionScore(
        prompted_score_unet(), DDIMScheduler(), 300, encoder_hidden_states=prompts
    )
    path = randn(5, 2, 8, 8, seed=4)
    assert relax(score, path.float(), num_steps=1).dtype == torch.float32
    seen = []

    class Spy(ScoreModel):
        alpha, sigma = score.alpha, score.sigma

        def __call__(self, x, where=None):
            seen.append(where)
            return score(x, where)

    found = relax(Spy(), path, num_steps=1, pair=2)
    assert found.isfinite().all() and not torch.equal(found, path)
    places = Where.even(5, 2)[1:-1]
    assert all(torch.equal(w.u, places.u) and torch.equal(w.pair, places.pair) for w in seen)


def test_a_path_without_interior_points_stays():
    path = randn(2, 4)
    assert torch.equal(relax([sphere(1, 4, 0.1), sphere(1, 4, 0.05)], path), path)


class Broken(ScoreModel):
    alpha, sigma = 1.0, 0.1

    def __call__(self, x):
        return x * math.nan


SCORE, PATH = sphere(1, 4, 0.1), randn(5, 4)


@pytest.mark.parametrize(
    "use, message",
    [
        (lambda: relax([], PATH), "`score` must be a ScoreModel or several .* empty list"),
        (lambda: relax([SCORE, 3], PATH), "`score` must be a ScoreModel, but got int"),
        (lambda: relax([SCORE, SCORE], PATH), "coarse to fine.* 0.1 and 0.1"),
        (lambda: relax(SCORE, PATH[:1]), r"`path` must be at least 2 points .* got \(1, 4\)"),
        (lambda: relax(SCORE, PATH * math.inf), "`path` must be .* finite values"),
        (lambda: relax(SCORE, PATH, num_steps=0), "`num_steps` must be .* at least 1"),
        (lambda: relax(SCORE, PATH, rtol=-1), "`rtol` must not be negative"),
        (lambda: relax(SCORE, PATH, pair=-1), "`pair` must be .* at least 0"),
        (lambda: relax(Broken(), PATH), "`score` is not finite at a point of the path"),
    ],
)
def test_uses_that_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()
