"""The published interpolations, compared with results by hand or by scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from models import embeddings, prompted_score_unet, randn
from scipy import interpolate, optimize, stats
from torch import Tensor
from torch.testing import assert_close
from uses import P, Q, levels

from riemannian_diffusion import (
    DenoiserScore,
    DiffusionScore,
    GaussianMixtureScore,
    ScoreModel,
    SharedNoiseScore,
    lerp,
    slerp,
)
from riemannian_diffusion.baselines import (
    chi_log_density,
    density_geodesic,
    nao,
    natural_spline,
    noise_diffusion,
    split,
)


@pytest.mark.parametrize("dim", [1, 2, 7, 16384])
def test_chi_log_density(dim):
    norms = torch.linspace(0.5, 2, 9, dtype=torch.float64) * dim**0.5
    expected = stats.chi.logpdf(norms.numpy(), dim)
    assert_close(chi_log_density(norms, dim), torch.from_numpy(expected), rtol=1e-9, atol=1e-8)


def nao_objective(path: np.ndarray, gap_weight: float) -> float:
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    norms = np.linalg.norm((path[1:] + path[:-1]) / 2, axis=1)
    longest = 2 * np.linalg.norm(path[-1] - path[0]) / len(steps)
    over = np.maximum(steps - longest, 0)
    return float((-steps * stats.chi.logpdf(norms, path.shape[1]) + gap_weight * over).sum())


def test_nao_by_hand():
    """Three points in the plane, mirror images: the middle one lies on the diagonal, at c (1, 1).

    Each step has length `hypot(2 - c, c)` and its midpoint the norm `hypot(2 + c, c) / 2`.
    """
    x0, x1 = torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)

    def objective(c: float) -> float:
        norm = math.hypot(2 + c, c) / 2
        return -2 * math.hypot(2 - c, c) * (math.log(norm) - norm**2 / 2)

    c = optimize.minimize_scalar(objective, bounds=(0, 2), method="bounded").x
    path = nao(x0, x1, 3, tol=0, max_steps=3000)
    assert abs(c - 1) > 0.05  # the straight line has c = 1
    assert_close(path[1], torch.full((2,), c, dtype=torch.float64), rtol=0, atol=1e-3)
    assert torch.equal(path[0], x0) and torch.equal(path[-1], x1)


@pytest.mark.parametrize("gap_weight", [0.0, 5.0])
def test_nao_against_scipy(gap_weight):
    x0, x1 = torch.tensor([[2.5, 0.1, 0.0], [-0.2, 2.0, 1.0]], dtype=torch.float64)
    start = lerp(x0, x1, 5).numpy()

    def objective(inner: np.ndarray) -> float:
        whole = np.concatenate([start[:1], inner.reshape(3, 3), start[-1:]])
        return nao_objective(whole, gap_weight)

    best = optimize.minimize(objective, start[1:-1].ravel(), method="Powell").fun
    found = nao(x0, x1, 5, gap_weight=gap_weight, tol=0, max_steps=4000).numpy()
    assert nao_objective(found, gap_weight) <= best + 1e-3 < nao_objective(start, gap_weight)


def test_nao_brings_norms_back_to_those_of_noise():
    x0, x1 = randn(4, 32, 32, seed=0), randn(4, 32, 32, seed=1)
    norms = nao(x0, x1, 9).flatten(1).norm(dim=1) / 64
    assert lerp(x0, x1, 9).flatten(1).norm(dim=1).min() / 64 < 0.75
    assert 0.97 < norms.min() and norms.max() < 1.03


def test_nao_stops_when_points_no_longer_move():
    x0, x1 = randn(8, seed=0), randn(8, seed=1)
    assert torch.equal(nao(x0, x1, 5, tol=1e9, max_steps=12), nao(x0, x1, 5, tol=1e9))
    assert not torch.equal(nao(x0, x1, 5, tol=0, max_steps=12), nao(x0, x1, 5, tol=0, max_steps=13))
    assert torch.equal(nao(x0, x1, 2), torch.stack([x0, x1]))


def test_noise_diffusion_by_hand():
    """At u = 1/2: 0.70711 (2 - 1) + 0.8 (0.6 - 0.70711) (1 + 0.5) = 0.57857; 3 is clipped to 2."""
    x0, x1, clean0, clean1 = torch.tensor([[3.0], [-1.0], [1.0], [0.5]], dtype=torch.float64)
    path = noise_diffusion(x0, x1, 3, clean0=clean0, clean1=clean1, alpha=0.8)
    expected = torch.tensor([[2 + 0.8 * 0.2], [0.578579], [-1 + 0.8 * 0.2 * 0.5]])
    assert_close(path, expected.double(), rtol=0, atol=1e-6)


def test_noise_diffusion_keeps_the_variance_of_noise():
    """With g = 0.6 and independent noises the sum of squares of all weights of noise is 1."""
    zero = torch.zeros(100_000, dtype=torch.float64)
    path = noise_diffusion(
        randn(100_000, seed=0),
        randn(100_000, seed=1),
        5,
        clean0=zero,
        clean1=zero,
        alpha=1e-6,
        clip=100.0,
        noise_weight=0.6,
        generator=torch.Generator().manual_seed(2),
    )
    assert_close(path.std(1), torch.ones(5, dtype=torch.float64), rtol=0, atol=0.01)
    shared = path - noise_diffusion(
        randn(100_000, seed=0), randn(100_000, seed=1), 5, clean0=zero, clean1=zero, alpha=1e-6,
        clip=100.0, noise_weight=0.6, generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert_close(shared, shared[:1].expand_as(shared))  # all points share one noise


def gaussian(mean: list[float], sigma: float = 1.0) -> GaussianMixtureScore:
    return GaussianMixtureScore(torch.tensor([mean], dtype=torch.float64), sigma)


def test_density_geodesic_by_hand():
    """A quarter circle about z, and a Gaussian at z = 2 of variance 1.

    The middle is (1, 1, 0) / sqrt 2; the curve bends towards the origin alone, which the sphere
    takes away, and of sigma score / 2 = (-x, -y, 2) / 2 the part across is (0, 0, 1). One step of
    0.1, then back to the sphere.
    """
    x0, x1 = torch.eye(3, dtype=torch.float64)[:2]
    path = density_geodesic(
        lambda t: gaussian([0, 0, 2]), 0, x0, x1, 3, spread=0, num_stages=1, steps_per_stage=1
    )
    middle = torch.tensor([0.5**0.5, 0.5**0.5, 0.1], dtype=torch.float64)
    assert_close(path[1], middle / 1.01**0.5)
    assert torch.equal(path[0], x0) and torch.equal(path[-1], x1)


def test_natural_spline():
    knots, u = randn(6, 2), torch.linspace(0, 1, 41, dtype=torch.float64)
    expected = interpolate.CubicSpline(np.linspace(0, 1, 6), knots.numpy(), bc_type="natural")
    for order, matrix in enumerate(natural_spline(6, u)):
        derivative = torch.from_numpy(expected(u.numpy(), order))
        assert_close(matrix @ knots, derivative, rtol=1e-10, atol=1e-9)


def test_density_geodesic_is_stationary():
    """`d + a / (|v|^2 e)` vanishes across the path on the sphere; v and a by scipy."""
    score, exponent = gaussian([0, 0, 1.0], 0.8), 0.5
    x0, x1 = torch.eye(3, dtype=torch.float64)[:2]
    path = density_geodesic(
        lambda t: score, 0, x0, x1, 9, exponent=exponent, spread=0, num_stages=3, lr=0.05
    )
    u = np.linspace(0, 1, 9)
    spline = interpolate.CubicSpline(u, path.numpy(), bc_type="natural")
    v, a = (torch.from_numpy(spline(u[1:-1], order)) for order in (1, 2))
    points, density = path[1:-1], 0.5 * score.sigma * score(path[1:-1])
    normal = torch.linalg.cross(points, v)  # of the sphere, across the path
    normal = normal / normal.norm(dim=1, keepdim=True)
    uphill = (density * normal).sum(1)
    balance = uphill + (a * normal).sum(1) / v.square().sum(1) / exponent
    assert path[4, 2] > 0.1 and uphill.abs().min() > 0.4
    assert balance.abs().max() < 0.1 * uphill.abs().min()


class Recorder(ScoreModel):
    """A level that records the points at which it is evaluated."""

    def __init__(self, alpha: float, seen: list):
        self.alpha, self.sigma, self.seen = alpha, (1 - alpha**2) ** 0.5, seen

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.append((self, x))
        return x * 0


def test_density_geodesic_renoises_to_levels_nearby():
    seen, asked = [], []

    def levels(timestep: int) -> ScoreModel:
        asked.append(timestep)
        return Recorder(math.cos(timestep / 1000), seen)

    x0, x1 = randn(20_000, seed=0), randn(20_000, seed=1)
    options = {"num_stages": 1, "steps_per_stage": 1, "spread": 50}
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        density_geodesic(levels, 600, x0, x1, 3, generator=generator, **options)
    there = asked[1::2]
    assert asked[::2] == [600] * 40 and all(550 <= t <= 650 for t in there)
    assert min(there) < 570 and max(there) > 630
    here = Recorder(math.cos(0.6), [])
    for level, x in seen:
        scale = level.alpha / here.alpha
        spread = level.sigma - scale * here.sigma
        rest = (x[0] - scale * x0 * (x0.norm() + x1.norm()) / 2 / x0.norm()).std()
        assert float(rest) == pytest.approx(abs(spread), rel=0.05, abs=1e-9)


def test_a_straighter_path_where_the_exponent_is_small():
    score = gaussian([0, 0, 2])
    x0, x1 = torch.eye(3, dtype=torch.float64)[:2]
    heights = [
        float(density_geodesic(lambda t: score, 0, x0, x1, 17, exponent=e, spread=0, lr=0.01)[8, 2])
        for e in (1.0, 0.1, 0.002)
    ]
    assert heights[0] > heights[1] > heights[2] > 0


@pytest.mark.parametrize("std", [0.0, 0.7])
def test_split_of_a_gaussian_in_closed_form(std):
    """Estimates of a Gaussian are linear: noise is `share` of the way to its mean."""
    mean, alpha, sigma = randn(1, 5, seed=3), 0.8, 0.6
    score = GaussianMixtureScore(mean, sigma, std=std, alpha=alpha)
    x0, x1 = randn(2, 5, seed=4)
    share, centre = sigma**2 / (sigma**2 + (alpha * std) ** 2), alpha * mean[0]
    a, b = x0 - centre, x1 - centre
    angle = torch.arccos(torch.dot(a, b) / (a.norm() * b.norm()))
    u = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
    arc = (torch.sin((1 - u) * angle) * a / a.norm() + torch.sin(u * angle) * b / b.norm()) * (
        torch.lerp(a.norm(), b.norm(), u) / torch.sin(angle)
    )
    expected = centre + (1 - share) * torch.lerp(a, b, u) + share * arc
    assert_close(split(score, x0, x1, 9), expected, rtol=1e-12, atol=1e-12)


def test_split_evaluates_each_end_under_its_own_prompt():
    """The prompts of pair 1 stand at the ends of its path; levels are those of a flow."""
    prompts, flow = embeddings(2, 2), FlowMatchEulerDiscreteScheduler()
    model, ends = prompted_score_unet(), randn(2, 2, 8, 8, seed=1)

    def score(hidden):
        return DiffusionScore(model, flow, 600, encoder_hidden_states=hidden)

    path = split(score(prompts), *ends, 5, pair=1)
    parts = [score(prompts[1, i : i + 1]) for i in (0, 1)]
    noises = [-0.6 * part(x[None])[0] for part, x in zip(parts, ends, strict=True)]
    cleans = [(x - 0.6 * eps) / 0.4 for x, eps in zip(ends, noises, strict=True)]
    assert_close(path, 0.4 * lerp(*cleans, 5) + 0.6 * slerp(*noises, 5), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_split_keeps_its_ends_and_their_dtype(dtype):
    x0, x1 = randn(2, 3, 4).to(dtype)
    path = split(GaussianMixtureScore(randn(4, 3, 4, seed=2), 0.5), x0, x1, 4)
    assert path.dtype == dtype and path.isfinite().all() and not path.requires_grad
    assert torch.equal(path[0], x0) and torch.equal(path[-1], x1)


def test_split_is_straight_where_the_noise_does_not_turn():
    x0, x1 = randn(2, 5, seed=4)
    point = GaussianMixtureScore(x0[None], 0.5)  # the noise of x0 is 0
    assert_close(split(point, x0, x1, 5), lerp(x0, x1, 5))
    assert_close(split(point, x0 + x1, x0 + 3 * x1, 5), lerp(x0 + x1, x0 + 3 * x1, 5))


def test_split_under_a_shared_noise_is_that_of_the_noisy_points():
    score, noise = GaussianMixtureScore(randn(4, 5), 0.6, alpha=0.8), randn(5, seed=1)
    ends = randn(2, 5, seed=2)
    noisy = split(score, *(0.8 * ends + 0.6 * noise), 7)
    path = split(SharedNoiseScore(score, noise), *ends, 7)
    assert_close(path, (noisy - 0.6 * noise) / 0.8, rtol=1e-9, atol=1e-9)


POINT = torch.zeros(3)
BAD = [
    (
        lambda: split(GaussianMixtureScore(POINT[None], 1.0), POINT + 1, POINT - 1, 3),
        "split: the noise estimates of `x0` and `x1` are opposite",
    ),
    (
        lambda: split(DenoiserScore(lambda x: x / 0, 1.0), POINT, POINT, 3),
        "split: `score` must be finite at `x0` and `x1`",
    ),
    (lambda: split(GaussianMixtureScore(POINT[None], 1.0), POINT, P[:2], 3), "must have one shape"),
    (lambda: split(None, POINT, POINT, 3), "`score` must be a ScoreModel, but got NoneType"),
    (lambda: nao(POINT, torch.ones(4), 3), r"must have one shape"),
    (lambda: nao(POINT, POINT, 1), r"`num_points` must be a whole number of at least 2, but got 1"),
    (lambda: nao(POINT, POINT, 3, gap_weight=-1), r"`gap_weight` must not be negative, but got -1"),
    (
        lambda: nao(POINT, POINT, 3, max_steps=0),
        r"`max_steps` must be a whole number of at least 1, but got 0",
    ),
    (
        lambda: noise_diffusion(POINT, POINT, 3, clean0=POINT, clean1=POINT[:2], alpha=0.5),
        r"`clean1` must have one shape, but got \[\(2,\), \(3,\)\]",
    ),
    (
        lambda: noise_diffusion(POINT, POINT, 3, clean0=POINT, clean1=POINT, alpha=0.0),
        r"`alpha` must be in \(0, 1\].* got 0.0, 2.0 and 0.0",
    ),
    (
        lambda: density_geodesic(lambda t: None, 0, POINT, POINT, 3, num_stages=0),
        r"`num_stages` must be a whole number of at least 1, but got 0",
    ),
    (
        lambda: density_geodesic(lambda t: None, 0, POINT, POINT, 3, exponent=0.0),
        r"`exponent` must be positive .* got 0.0 and 100",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[m[:30] for _, m in BAD])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


USES = [
    (lambda: nao(P, Q, 3, max_steps=1.5), "`max_steps` must be a whole number .* got 1.5"),
    (
        lambda: noise_diffusion(P, Q, 3, clean0=None, clean1=Q, alpha=0.5),
        "`clean0` must be .* but got NoneType",
    ),
    (lambda: density_geodesic(levels, 1, P, Q, 3, exponent="x"), "`exponent` must be a finite"),
]


@pytest.mark.parametrize(("use", "message"), USES)
def test_uses_that_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()
