"""Every metric compared with the dense matrix of its definition, in float64."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from models import randn
from torch.testing import assert_close
from uses import BENT, INF, MODEL

from riemannian_diffusion import (
    EuclideanMetric,
    GaussianMixtureScore,
    Metric,
    PullbackMetric,
    ScoreJacobianMetric,
    SharedNoiseScore,
    SteinScoreMetric,
    TangentNormalMetric,
    geodesic,
)

D = 5
SIGMA, STD, ALPHA = 0.7, 0.3, 0.8


MEANS, WEIGHTS, NOISES = randn(7, D, seed=1), randn(7, seed=2).abs(), randn(2, D, seed=3)


def log_density(z):
    """The log-density of one point at the level, up to a constant."""
    variance = SIGMA**2 + (ALPHA * STD) ** 2
    logits = WEIGHTS.log() - (z - ALPHA * MEANS).square().sum(1) / (2 * variance)
    return logits.logsumexp(0)


def reference(x, noises=None):
    """Score and its Jacobian at every noise, and sigma: [(s (K, d), J (K, d, d))], float."""
    factor, sigma = (1.0, SIGMA) if noises is None else (ALPHA, SIGMA / ALPHA)
    levels = [x] if noises is None else [ALPHA * x + SIGMA * noise for noise in noises]
    out = []
    for level in levels:
        s = torch.func.vmap(torch.func.grad(log_density))(level)
        j = torch.func.vmap(torch.func.hessian(log_density))(level)
        out.append((factor * s, factor**2 * j))
    return out, sigma


def stein(s, j, sigma, lam, normalize=False):
    unit = sigma**2 / D if normalize else 1.0
    return torch.eye(D, dtype=s.dtype) + lam * unit * s[:, :, None] * s[:, None]


def jacobian(s, j, sigma, ridge=0.0):
    return sigma**4 * j.mT @ j + ridge * torch.eye(D, dtype=s.dtype)


def tangent_normal(s, j, sigma, normal, tangent):
    residual = -(sigma**2) * j
    denoised = torch.eye(D, dtype=s.dtype) - residual
    return normal * residual.mT @ residual + tangent * denoised.mT @ denoised


@dataclass
class Case:
    metric: type
    options: dict[str, Any]
    dense: Any  # (s, J, sigma) -> (K, d, d)
    noises: Any = None

    def make(self, shape=(D,)) -> Metric:
        if self.metric is EuclideanMetric:
            return EuclideanMetric()
        score = GaussianMixtureScore(
            MEANS.view(-1, *shape), SIGMA, std=STD, weights=WEIGHTS, alpha=ALPHA
        )
        if self.noises is not None:
            score = SharedNoiseScore(score, self.noises.view(-1, *shape))
        return self.metric(score, **self.options)

    def matrix(self, x) -> torch.Tensor:
        parts, sigma = reference(x, self.noises)
        return torch.stack([self.dense(s, j, sigma) for s, j in parts]).mean(0)


CASES = {
    "euclidean": Case(
        EuclideanMetric, {}, lambda s, j, sigma: torch.eye(D, dtype=s.dtype).expand_as(j)
    ),
    "stein": Case(SteinScoreMetric, {}, lambda *a: stein(*a, lam=1000.0)),
    "stein, full gradient": Case(
        SteinScoreMetric, {"lam": 3.0, "detach_score": False}, lambda *a: stein(*a, lam=3.0)
    ),
    "stein, normalised": Case(
        SteinScoreMetric,
        {"lam": 30.0, "normalize": True},
        lambda *a: stein(*a, lam=30.0, normalize=True),
    ),
    "stein, normalised, full gradient": Case(
        SteinScoreMetric,
        {"lam": 30.0, "normalize": True, "detach_score": False},
        lambda *a: stein(*a, lam=30.0, normalize=True),
    ),
    "jacobian": Case(ScoreJacobianMetric, {}, jacobian),
    "jacobian, ridge": Case(
        ScoreJacobianMetric, {"ridge": 0.2}, lambda *a: jacobian(*a, ridge=0.2)
    ),
    "tangent normal": Case(
        TangentNormalMetric, {}, lambda *a: tangent_normal(*a, normal=100.0, tangent=1.0)
    ),
    "tangent normal, weights": Case(
        TangentNormalMetric,
        {"normal_weight": 0.5, "tangent_weight": 4.0},
        lambda *a: tangent_normal(*a, normal=0.5, tangent=4.0),
    ),
    "tangent normal, no tangent": Case(
        TangentNormalMetric,
        {"tangent_weight": 0.0},
        lambda *a: tangent_normal(*a, normal=100.0, tangent=0.0),
    ),
}
CASES |= {
    f"{name}, two noises": Case(case.metric, case.options, case.dense, NOISES)
    for name, case in CASES.items()
    if case.metric is not EuclideanMetric
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
pullbacks = {name: case for name, case in CASES.items() if case.metric is not SteinScoreMetric}
every_pullback = pytest.mark.parametrize("case", pullbacks.values(), ids=pullbacks.keys())
steins = {name: case for name, case in CASES.items() if case.metric is SteinScoreMetric}
every_stein = pytest.mark.parametrize("case", steins.values(), ids=steins.keys())


def bilinear(u, matrix, v):
    return torch.einsum("ki,kij,kj->k", u, matrix, v)


X, U, V = randn(6, D, seed=4), randn(6, D, seed=5), randn(6, D, seed=6)


@every_case
def test_inner_is_the_dense_formula(case):
    metric, expected = case.make(), case.matrix(X)
    assert_close(metric.as_matrix(X), expected, rtol=1e-10, atol=1e-10)
    assert_close(metric.inner(X, U, V), bilinear(U, expected, V), rtol=1e-10, atol=1e-10)
    inner = bilinear(U, metric.as_matrix(X), V)
    assert_close(metric.inner(X, U, V), inner, rtol=1e-10, atol=1e-10)


@every_case
def test_metrics_are_symmetric_and_positive_semidefinite(case):
    metric = case.make()
    matrix = metric.as_matrix(X)
    assert_close(matrix, matrix.mT, rtol=1e-12, atol=1e-12)
    assert_close(metric.inner(X, U, V), metric.inner(X, V, U), rtol=1e-12, atol=1e-12)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert (eigenvalues[:, 0] >= -1e-12 * eigenvalues[:, -1]).all()


@every_case
def test_norm(case):
    expected = bilinear(U, case.matrix(X), U).sqrt()
    assert_close(case.make().norm(X, U), expected, rtol=1e-10, atol=1e-10)
    assert_close(case.make().norm(X, -3 * U), 3 * expected, rtol=1e-10, atol=1e-10)


@every_case
def test_points_of_any_shape(case):
    flat, wide = case.make(), case.make((1, D, 1))
    x, u, v = (a.view(6, 1, D, 1) for a in (X, U, V))
    assert_close(wide.inner(x, u, v), flat.inner(X, U, V), rtol=1e-10, atol=1e-10)
    assert_close(wide.as_matrix(x), flat.as_matrix(X), rtol=1e-10, atol=1e-10)
    assert_close(wide.energy(x), flat.energy(X), rtol=1e-10, atol=1e-10)
    if case.metric is SteinScoreMetric:
        assert_close(wide.sharp(x, v).view(6, D), flat.sharp(X, V), rtol=1e-10, atol=1e-10)


@every_pullback
def test_inner_is_that_of_the_embedding(case):
    """The closed-form push-forwards equal autograd through `embed`."""
    metric = case.make()
    matrices = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda p: metric.embed(p[None]).flatten(), point)
            for point in X
        ]
    )
    assert_close(matrices.mT @ matrices, metric.as_matrix(X), rtol=1e-10, atol=1e-10)
    assert_close(
        metric.embed_jvp(X, U).flatten(1),
        (matrices @ U[..., None]).squeeze(-1),
        rtol=1e-10,
        atol=1e-10,
    )


@every_stein
def test_inverse(case):
    metric, matrix = case.make(), case.matrix(X)
    expected = torch.linalg.solve(matrix, V)
    assert_close(metric.sharp(X, V), expected, rtol=1e-8, atol=1e-9)
    product = (matrix @ V[..., None]).squeeze(-1)
    assert_close(metric.sharp(X, product), V, rtol=1e-8, atol=1e-8)


# ----------------------------------------------------------------------------------------- energy


def curve(t):
    """A smooth curve that is neither straight nor of constant speed, and its velocity."""
    rates = torch.arange(1, D + 1, dtype=torch.float64) * 0.6
    t = t[:, None]
    return (rates * t).sin() + 0.5 * t**2, rates * (rates * t).cos() + t


@pytest.fixture(scope="module")
def exact_energies():
    """The energy of the curve for every case, by the dense metric and Gauss-Legendre quadrature."""
    nodes, weights = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(60))
    x, velocity = curve((nodes + 1) / 2)
    return {
        name: float((0.25 * weights * bilinear(velocity, case.matrix(x), velocity)).sum())
        for name, case in CASES.items()
    }


@pytest.mark.parametrize("rule", ["energy", "midpoints"])
@pytest.mark.parametrize("name", CASES)
def test_energy_converges_to_that_of_the_curve(name, rule, exact_energies):
    """Chords of the embedding and products at midpoints have one limit, at second order."""
    metric, errors = CASES[name].make(), []
    for num_segments in (128, 256, 512):
        path, _ = curve(torch.linspace(0, 1, num_segments + 1, dtype=torch.float64))
        energies = metric.energy(path) if rule == "energy" else Metric.energy(metric, path)
        assert energies.shape == (num_segments,)
        errors.append(float(energies.sum()) / exact_energies[name] - 1)
    assert abs(errors[-1]) < 3e-4
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.02)


@every_case
def test_energy_backwards_is_the_same(case):
    metric = case.make()
    assert_close(metric.energy(X.flip(0)), metric.energy(X).flip(0), rtol=1e-12, atol=1e-12)


@every_case
def test_squared_length_is_at_most_twice_the_energy(case):
    metric = case.make()
    for path in (X, curve(torch.linspace(0, 1, 9, dtype=torch.float64))[0]):
        segments = (2 * metric.energy(path) / (len(path) - 1)).sqrt()
        assert_close(metric.length(path), segments.sum(), rtol=1e-12, atol=0)
        assert metric.length(path) ** 2 <= 2 * metric.energy(path).sum() * (1 + 1e-12)
    line = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None] * U[0]
    if case.metric is EuclideanMetric:  # the speed is constant, so both are equal
        assert_close(metric.length(line) ** 2, 2 * metric.energy(line).sum())


@every_pullback
@pytest.mark.parametrize("num_points", [2, 3, 20])
def test_lower_bound(case, num_points):
    metric = case.make()
    assert isinstance(metric, PullbackMetric)
    for seed in range(10):
        path = randn(num_points, D, seed=20 + seed)
        bound = metric.lower_bound(path[0], path[-1])
        ends = metric.embed(path)[[0, -1]]
        assert_close(bound, 0.5 * (ends[1] - ends[0]).square().sum(), rtol=1e-12, atol=0)
        energy = metric.energy(path).sum()
        assert bound <= energy * (1 + 1e-12)
        assert num_points > 2 or energy == bound


detached = [name for name, case in steins.items() if case.options.get("detach_score", True)]


@pytest.mark.parametrize("name", [name for name in CASES if name not in detached])
def test_gradient_of_the_energy(name):
    """The gradient equals finite differences, except with a detached score."""
    metric = CASES[name].make()
    path = X[:4].clone().requires_grad_()
    assert torch.autograd.gradcheck(metric.energy, path, atol=1e-5, rtol=1e-5)
    assert torch.autograd.gradcheck(lambda p: Metric.energy(metric, p), path, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", detached)
def test_a_detached_score_is_a_constant_field(name):
    """In the published gradient, G(midpoint) does not change with the points."""
    case = CASES[name]
    metric = case.make()
    path = X.clone().requires_grad_()
    (actual,) = torch.autograd.grad(metric.energy(path).sum(), path)
    step, middle = X[1:] - X[:-1], (X[1:] + X[:-1]) / 2
    pull = 5 * (case.matrix(middle) @ step[..., None]).squeeze(-1)  # (K - 1) G dx
    expected = torch.zeros_like(X)
    expected[1:] += pull
    expected[:-1] -= pull
    assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    full = SteinScoreMetric(metric.score, **{**case.options, "detach_score": False})
    assert_close(full.energy(X), metric.energy(X), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(full.energy(path).sum(), path)
    assert (gradient - expected).norm() > 0.1 * expected.norm()


def test_stein_weight_zero_is_flat():
    metric = SteinScoreMetric(GaussianMixtureScore(MEANS, SIGMA), lam=0.0)
    assert_close(metric.as_matrix(X), torch.eye(D, dtype=X.dtype).expand(6, D, D))
    assert_close(metric.energy(X), EuclideanMetric().energy(X))


def test_normalised_score_has_unit_size_at_noise():
    """For pure noise |sigma s|^2 / d is 1 on average."""
    sigma = 3.0
    score = GaussianMixtureScore(torch.zeros(1, 1000, dtype=torch.float64), sigma)
    x = sigma * randn(20, 1000)
    metric = SteinScoreMetric(score, lam=8.0, normalize=True)
    s = torch.nn.functional.normalize(score(x), dim=1)
    assert float(metric.inner(x, s, s).mean()) == pytest.approx(9.0, rel=0.05)


@pytest.mark.parametrize(
    "metric, options, message",
    [
        (SteinScoreMetric, {"lam": -1.0}, "`lam` must not be negative, but got -1.0"),
        (SteinScoreMetric, {"lam": float("nan")}, "`lam` must be a finite number, but got nan"),
        (ScoreJacobianMetric, {"ridge": -0.1}, "`ridge` must not be negative, but got -0.1"),
        (ScoreJacobianMetric, {"ridge": float("nan")}, "`ridge` must be a finite number"),
        (TangentNormalMetric, {"normal_weight": -2}, "`normal_weight` must not be .* got -2"),
        (TangentNormalMetric, {"tangent_weight": -1}, "`tangent_weight` must not be .* got -1"),
        (
            TangentNormalMetric,
            {"tangent_weight": float("nan")},
            "must be a finite number",
        ),
    ],
)
def test_bad_weights(metric, options, message):
    with pytest.raises(ValueError, match=message):
        metric(GaussianMixtureScore(MEANS, SIGMA), **options)


USES = [
    (lambda: SteinScoreMetric(3), "`score` must be a ScoreModel, but got int"),
    (lambda: SteinScoreMetric(MODEL, lam=INF), "`lam` must be a finite number, but got inf"),
    (lambda: ScoreJacobianMetric(BENT), "`score` must be a ScoreModel, but got Tangent"),
    (
        lambda: TangentNormalMetric(MODEL, normal_weight="x"),
        "`normal_weight` must be a finite",
    ),
]


@pytest.mark.parametrize(("use", "message"), USES)
def test_uses_that_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()


def embedding(function):
    """A metric that is pulled back by a function of the points alone."""
    return type("Mine", (PullbackMetric,), {"embed": lambda self, x: function(x)})()


def product(function):
    """A metric whose inner product is a function of points and two tangents."""
    return type("Mine", (Metric,), {"inner": lambda self, x, u, v: function(x, u, v)})()


ROWS, NUMBERS = (
    "`embed` of Mine must give a row for each of",
    "`inner` of Mine must give one number",
)
RETURNED = [
    (embedding(lambda x: x[:, 0]), ROWS),
    (embedding(lambda x: x.sum()), ROWS),
    (embedding(lambda x: x[:1]), ROWS),
    (embedding(lambda x: None), ROWS + r".* but gave NoneType"),
    (embedding(lambda x: x.detach()), "`embed` of Mine must be differentiable in the points"),
    (embedding(lambda x: 3), ROWS + ".* but gave int"),
    (product(lambda x, u, v: u * v), NUMBERS + r".* but gave \(\d+, 3\)"),
    (product(lambda x, u, v: (u * v).sum(1, keepdim=True)), NUMBERS + r".* but gave \(\d+, 1\)"),
    (product(lambda x, u, v: (u * v).sum()), NUMBERS + r".* but gave \(\)"),
    (product(lambda x, u, v: None), NUMBERS + ".* but gave NoneType"),
    (
        product(lambda x, u, v: (u * v).sum(1).detach()),
        "`inner` of Mine must be differentiable in the tangents",
    ),
]


@pytest.mark.parametrize(("metric", "message"), RETURNED)
def test_what_a_metric_of_ones_own_returns_is_checked(metric, message):
    x0, x1 = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.5])
    with pytest.raises(ValueError, match=message):
        geodesic(metric, x0, x1, num_points=5)
    with pytest.raises(ValueError, match=message):
        metric.flat(x0[None].repeat(2, 1) + torch.tensor([[0.0], [1.0]]), torch.ones(2, 3))


@pytest.mark.parametrize(
    "metric",
    [
        embedding(lambda x: torch.zeros(len(x), 2)),
        embedding(lambda x: torch.ones(len(x), 4, 2)),
        product(lambda x, u, v: torch.zeros(len(x))),
    ],
)
def test_a_constant_embedding_is_the_zero_metric(metric):
    x, v = randn(4, 3), randn(4, 3, seed=1)
    zeros = torch.zeros(4, dtype=x.dtype)
    assert_close(metric.norm(x, v), zeros, check_dtype=False)
    assert_close(metric.flat(x, v), torch.zeros_like(v))
    assert_close(metric.force(x, v), torch.zeros_like(x))
    (found,) = metric.energies([x], differentiate=True)
    assert_close(found.segments, zeros[1:], check_dtype=False)
    assert_close(found.gradient, torch.zeros_like(x))
    assert geodesic(metric, x[0], x[1], num_points=5).energy == 0


def test_points_that_require_gradients_are_embedded_without_them():
    score = GaussianMixtureScore(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), 0.3)
    x = torch.randn(3, 2, requires_grad=True)
    for guard in (torch.no_grad(), torch.inference_mode()):
        with guard:
            for metric in (TangentNormalMetric(score), ScoreJacobianMetric(score)):
                assert metric.embed(x).shape[0] == 3
                assert metric.inner(x, x, x).shape == (3,)
