"""Independent checks of the scores, distances and geodesics of the benchmark's manifolds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models import randn
from problems import (
    NUM_RANDOM,
    HypersphereScore,
    all_problems,
    benchmark_problems,
    hypersphere,
)
from scipy import integrate, special
from torch.testing import assert_close

from riemannian_diffusion import GaussianMixtureScore, length

PROBLEMS = [*all_problems(), *benchmark_problems()]
SPARSE = tuple(f"{k}-sphere" for k in range(3, 11))
DENSE = [problem for problem in PROBLEMS if not problem.name.startswith(SPARSE)]
each = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)


@each
def test_the_geodesic_lies_on_the_manifold(problem):
    """It lies on the manifold, has the stated length, and has constant speed."""
    path = problem.geodesic(torch.linspace(0, 1, 2001))
    assert float(problem.distance(path).max()) < 1e-3
    assert float(length(path)) == pytest.approx(problem.length, rel=1e-5)
    steps = (path[1:] - path[:-1]).norm(dim=1)
    assert float(steps.std() / steps.mean()) < 1e-3
    assert_close(path[[0, -1]], torch.stack([problem.x0, problem.x1]))


@pytest.mark.parametrize("problem", DENSE, ids=lambda p: p.name)
def test_no_path_along_the_points_is_shorter(problem):
    """The shortest path along points, with hops of at most 0.3, is not much shorter.

    Not on spheres of more than 2 dimensions, where 4,000 points are too sparse.
    """
    from scipy.sparse.csgraph import dijkstra

    points = torch.cat([problem.x0[None], problem.x1[None], problem.points])
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    apart = torch.where(apart <= 0.3, apart, torch.zeros(()).double()).numpy()
    shortest = float(dijkstra(apart, indices=[0])[0, 1])
    assert 0.98 * problem.length < shortest < 1.06 * problem.length


@each
def test_the_score_is_that_of_the_points(problem):
    """Near the manifold the score points back to it, from as far away as sigma.

    Denoising a point on a k-sphere takes it inside, by about `k sigma^2 / 2`: its neighbours are.
    """
    path = problem.geodesic(torch.linspace(0.2, 0.8, 5))
    assert float(problem.distance(problem.score.denoise(path)).max()) < 0.055
    noisy = path + 0.1 * randn(*path.shape)
    back = problem.distance(problem.score.denoise(noisy))
    if path.shape[1] > 2:
        assert float(back.mean()) < 0.3 * float(problem.distance(noisy).mean())


@pytest.mark.parametrize("k", [1, 2, 5, 10])
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.1), (0.6, 0.8), (0.1, 0.995)])
def test_hypersphere_score_against_scipy(k, alpha, sigma):
    problem = hypersphere(k, 12)
    score = problem.level(alpha, sigma)
    x = alpha * problem.points[:6] * torch.linspace(0.3, 1.5, 6)[:, None].double()
    x = x + sigma * randn(*x.shape, seed=1)
    kappa = alpha * ((x - alpha * score.centre) @ score.basis).norm(dim=1) / sigma**2
    order = (k - 1) / 2
    ratio = special.ive(order + 1, kappa.numpy()) / special.ive(order, kappa.numpy())
    assert_close(score._ratio(kappa[:, None] * sigma**2 / alpha)[:, 0], torch.from_numpy(ratio))

    step = 1e-5
    for axis in (0, 5):  # the score is the gradient of the log-density
        shift = torch.zeros(12, dtype=torch.float64)
        shift[axis] = step
        slope = (score.log_prob(x + shift) - score.log_prob(x - shift)) / (2 * step)
        assert_close(score(x)[:, axis], slope, rtol=1e-5, atol=1e-4)


def test_hypersphere_is_the_limit_of_a_mixture():
    problem = hypersphere(1, 5)
    t = torch.arange(4000, dtype=torch.float64)[:, None] * (2 * math.pi / 4000)
    score = problem.level(0.9, 0.3)
    assert isinstance(score, HypersphereScore)
    circle = torch.cat([t.cos(), t.sin()], 1) @ score.basis.T + score.centre
    mixture = GaussianMixtureScore(circle, 0.3, alpha=0.9)
    x = randn(7, 5)
    v = randn(7, 5, seed=1)
    assert_close(score(x), mixture(x), rtol=1e-8, atol=1e-8)
    assert_close(score.log_prob(x), mixture.log_prob(x), rtol=1e-8, atol=1e-8)
    assert_close(score.jvp(x, v), mixture.jvp(x, v), rtol=1e-7, atol=1e-7)


def test_swiss_roll_arc_length():
    problem = next(p for p in PROBLEMS if p.name.startswith("swiss"))
    roll, _ = integrate.quad(lambda t: 0.1 * np.hypot(t, 1), 1.5 * np.pi, 4.5 * np.pi)
    assert problem.length == pytest.approx(math.hypot(0.6 * roll, 0.6), rel=1e-9)


def test_random_samples_are_uniform_on_their_manifolds():
    """They lie on the manifold, and their mean is that of its measure, within 5 standard errors."""
    drawn = list(benchmark_problems(seed=3))
    again = list(benchmark_problems(seed=3))
    for problem, same, lattice in zip(drawn, again, benchmark_problems(), strict=True):
        assert problem.name == lattice.name and problem.weights is None
        assert problem.points.shape[0] == NUM_RANDOM
        assert torch.equal(problem.points, same.points)
        assert float(problem.distance(problem.points).max()) < 1e-3
        assert isinstance(problem.score, GaussianMixtureScore)
        weights = torch.ones(len(lattice.points)) if lattice.weights is None else lattice.weights
        share = (weights / weights.sum()).double()
        centre = share @ lattice.points
        if isinstance(lattice.score, HypersphereScore):
            centre = lattice.score.centre
        bound = 5 * problem.points.std(0).norm() / NUM_RANDOM**0.5
        assert float((problem.points.mean(0) - centre).norm()) < bound, problem.name
    other = next(iter(benchmark_problems(seed=4)))
    assert not torch.equal(other.points, drawn[0].points)


def test_random_samples_of_the_uneven_circle_follow_its_density():
    problem = next(p for p in benchmark_problems(seed=0) if p.name.startswith("uneven"))
    inside = (problem.points - problem.plane[:, 0]) @ problem.plane
    mean = float((torch.atan2(inside[:, 1], inside[:, 0]) - 1.2).cos().mean())
    assert mean == pytest.approx(special.i1(1.5) / special.i0(1.5), abs=0.05)
