"""Exponential and logarithm maps, transport and means, compared with exact solutions."""

import math
import warnings

import pytest
import torch
from diffusers import DDIMScheduler
from exact import HalfPlane
from models import prompted_score_unet, randn, vector
from problems import circle
from scipy.integrate import solve_ivp
from torch.testing import assert_close
from uses import INF, MEANS, NAN_, PATH, PLAIN, P, Q

from riemannian_diffusion import (
    DiffusionScore,
    EuclideanMetric,
    GaussianMixtureScore,
    LikelyMetric,
    Metric,
    PullbackMetric,
    ScoreJacobianMetric,
    ScoreModel,
    SteinScoreMetric,
    TangentNormalMetric,
    exponential_map,
    frechet_mean,
    geodesic,
    logarithm_map,
    parallel_transport,
)
from riemannian_diffusion.score import Where

HALF_TURN = math.pi


class Sphere(PullbackMetric):
    """A sphere in latitude and longitude."""

    def __init__(self, radius=1.0):
        self.radius = radius

    def embed(self, x):
        latitude, longitude = x[:, 0], x[:, 1]
        flat = latitude.cos()
        parts = [flat * longitude.cos(), flat * longitude.sin(), latitude.sin()]
        return self.radius * torch.stack(parts, 1)


class Swirl(ScoreModel):
    """A score that is not a gradient: its Jacobian is not symmetric."""

    alpha, sigma = 1.0, 1.0

    def __call__(self, x):
        turned = torch.stack([-x[:, 1] + x[:, 2] ** 2, x[:, 0], x[:, 0] * x[:, 1]], 1)
        return 0.5 * turned - x


MIXTURE = GaussianMixtureScore(randn(20, 3), 0.7)
METRICS = {
    "tangent normal": TangentNormalMetric(MIXTURE, normal_weight=4.0),
    "score Jacobian": ScoreJacobianMetric(MIXTURE, ridge=0.1),
    "Stein, symmetric": SteinScoreMetric(MIXTURE, lam=5.0),
    "Stein, asymmetric": SteinScoreMetric(Swirl(), lam=3.0),
    "Stein, normalised": SteinScoreMetric(Swirl(), lam=3.0, normalize=True),
    "Euclidean": EuclideanMetric(),
}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
X, V = vector(0.3, 0.2, -0.1), vector(0.5, 0.4, 0.3)


def speeds(metric, path):
    """The energy that the integrator conserves: of chords for a pullback, else at midpoints."""
    return (2 * metric.energy(path) * (len(path) - 1)).sqrt()


def great_circle(radius, x, v, u):
    """Points of the great circle from a point along a tangent, at times u."""
    angle = v.norm() / radius * u[:, None]
    return angle.cos() * x + radius * angle.sin() * v / v.norm()


@pytest.mark.parametrize("radius", [1.0, 2.5])
def test_half_a_turn_of_a_sphere(radius):
    """The error is of second order in the step, and the speed does not drift."""
    metric, x, v = Sphere(radius), vector(0.3, 0.1), vector(1.0, 1.2)
    v = 0.95 * HALF_TURN * radius * v / metric.norm(x[None], v[None])
    pushed = metric.embed_jvp(x[None], v[None])[0]
    errors = []
    for num_steps in (32, 64):
        path = exponential_map(metric, x, v, num_steps=num_steps)
        assert len(path) == num_steps + 1 and torch.equal(path[0], x)
        u = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
        true = great_circle(radius, metric.embed(x[None])[0], pushed, u)
        errors.append(float((metric.embed(path) - true).norm(dim=1).max()) / radius)
        chords = (metric.embed(path[1:]) - metric.embed(path[:-1])).norm(dim=1)
        assert float(chords.max() / chords.min()) < 1 + 1e-4
    assert errors[0] < 6e-3 and errors[1] < 0.3 * errors[0]


def test_half_circles_of_the_hyperbolic_plane():
    """A custom metric that defines only `inner`."""
    x, v = vector(0.0, 1.0), vector(1.0, 0.0)
    path = exponential_map(HalfPlane(), x, v, num_steps=64)
    u = torch.linspace(0, 1, 65, dtype=torch.float64)
    assert_close(path, torch.stack([u.tanh(), 1 / u.cosh()], 1), rtol=0, atol=1e-4)


def stein_acceleration(metric, x, v):
    """`G a = lam [(s.v)(J^T v - J v) - s (v.J v)]`, solved densely."""
    score, lam = metric.score, metric.lam
    if metric.normalize:
        lam = lam * score.sigma**2 / len(x)
    s, along = score(x[None])[0], score.jvp(x[None], v[None])[0]
    back = score.vjp(x[None], v[None])[0]
    right = lam * ((s @ v) * (back - along) - s * (v @ along))
    return torch.linalg.solve(torch.eye(len(x)) + lam * torch.outer(s, s), right)


def christoffel_acceleration(metric, x, v):
    """`-Gamma(v, v)` from the dense metric and its derivatives."""
    derivative = torch.autograd.functional.jacobian(lambda y: metric.as_matrix(y[None])[0], x)
    force = 0.5 * torch.einsum("ijk,i,j->k", derivative, v, v)
    force = force - torch.einsum("ijk,j,k->i", derivative, v, v)
    return torch.linalg.solve(metric.as_matrix(x[None])[0], force)


@every_metric
def test_geodesics_equal_those_of_an_independent_integrator(metric):
    stein = isinstance(metric, SteinScoreMetric)
    acceleration = stein_acceleration if stein else christoffel_acceleration

    def right_hand_side(_, state):
        x, v = torch.from_numpy(state).split(3)
        return torch.cat([v, acceleration(metric, x, v)]).numpy()

    start = torch.cat([X, V]).numpy()
    solved = solve_ivp(right_hand_side, (0, 1), start, method="DOP853", rtol=1e-9, atol=1e-10)
    end = torch.from_numpy(solved.y[:3, -1])
    errors = [
        float((exponential_map(metric, X, V, num_steps=n)[-1] - end).norm() / (end - X).norm())
        for n in (16, 32)
    ]
    assert errors[1] < 1e-3
    assert errors[1] < 0.3 * errors[0] or errors[1] < 1e-8
    found = speeds(metric, exponential_map(metric, X, V, num_steps=32))
    assert float(found.max() / found.min()) < 1.01


@every_metric
def test_the_logarithm_is_the_inverse(metric):
    path = exponential_map(metric, X, V, num_steps=32)
    found = logarithm_map(metric, X, path[-1])
    assert float((found - V).norm()) < 1e-3 * float(V.norm())
    back = exponential_map(metric, X, found, num_steps=32)[-1]
    assert float((back - path[-1]).norm()) < 1e-3 * float((path[-1] - X).norm())


@every_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_in_single_precision(metric, dtype):
    """The maps work in inference mode, too, and half precision is widened."""
    x, v = X.to(dtype), V.to(dtype)
    expected = exponential_map(metric, x.double(), v.double())
    with torch.inference_mode():
        path = exponential_map(metric, x, v)
        back = logarithm_map(metric, path[0], path[-1], rtol=1e-6)
    assert path.dtype == back.dtype == torch.float32
    assert float((path.double() - expected).norm(dim=1).max()) < 1e-3
    assert float((back.double() - v.double()).norm()) < 0.02 * float(v.double().norm())


def test_in_high_dimensions_in_single_precision():
    x, v = 2.5 * randn(16).float(), randn(16, seed=1).float() / 4
    assert_close(exponential_map(EuclideanMetric(), x, v)[-1], x + v, rtol=1e-4, atol=1e-4)


def test_a_metric_that_is_the_same_everywhere():
    class Flat(Metric):
        def inner(self, x, u, v):
            return 2 * (u * v).sum(1)

    assert_close(exponential_map(Flat(), X, V)[-1], X + V)


def test_a_subclass_of_the_stein_metric_keeps_its_methods():
    class Ninefold(SteinScoreMetric):
        def inner(self, x, u, v):
            return 9 * super().inner(x, u, v)

    for detach_score in (True, False):
        metric = Ninefold(MIXTURE, lam=0.0, detach_score=detach_score)
        assert_close(logarithm_map(metric, X, X + V), V, rtol=1e-4, atol=1e-5)


def test_dense_paths_below_the_networks_rounding_are_no_logarithm():
    class Coarse(GaussianMixtureScore):
        rounding = 2**-7

    problem = circle(6, angle=0.3)
    metric = TangentNormalMetric(Coarse(problem.score.means, problem.score.sigma))
    with pytest.raises(ValueError, match="No geodesic was found: Neighbouring points differ"):
        logarithm_map(metric, problem.x0, problem.x1, num_points=129)


def test_the_norm_of_the_logarithm_is_the_length():
    problem = circle(6, angle=1.5)
    metric = TangentNormalMetric(problem.score)
    found = logarithm_map(metric, problem.x0, problem.x1)
    assert float(metric.norm(problem.x0[None], found[None])) == pytest.approx(1.5, rel=5e-3)


def test_logarithms_under_a_path_of_prompts_start_at_its_first():
    """The metric at the start times the velocity is minus the derivative of the path's energy."""
    prompts = 3 * randn(2, 4, 6)
    score = DiffusionScore(
        prompted_score_unet(), DDIMScheduler(), 400, encoder_hidden_states=prompts
    )
    metric = ScoreJacobianMetric(score, ridge=1.0)
    x, y = randn(2, 2, 8, 8, seed=1)
    options = {"num_points": 5, "num_quadrature": 1, "init": "lerp", "rtol": 1e-9}
    path = geodesic(metric, x, y, max_evals=500, **options).nodes
    start = path[0].clone().requires_grad_()
    energy = metric.energy(torch.cat([start[None], path[1:]])).sum()
    (expected,) = torch.autograd.grad(energy, start)
    v = logarithm_map(metric, x, y, **options)
    momentum = metric.flat(x[None], v[None], Where(0.0))[0]
    assert_close(momentum, -expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


# ------------------------------------------------------------------------------------- transport


def test_transport_around_an_octant_turns_by_a_right_angle():
    """The holonomy of a triangle is its area: an octant of the unit sphere has pi / 2."""
    metric = Sphere()
    u = torch.linspace(0, 1, 65, dtype=torch.float64)
    near = math.pi / 2 - 0.02  # the coordinates are singular at the pole

    def leg(start, end):
        return torch.lerp(vector(*start), vector(*end), u[:, None])

    path = torch.cat(
        [
            leg((0, 0), (near, 0)),
            leg((near, 0), (near, math.pi / 2))[1:],
            leg((near, math.pi / 2), (0, math.pi / 2))[1:],
            leg((0, math.pi / 2), (0, 0))[1:],
        ]
    )
    area = math.pi / 2 * math.sin(near)
    moved = parallel_transport(metric, path, vector(1, 0))
    angle = math.atan2(float(moved[-1, 1]), float(moved[-1, 0]))
    assert abs(angle) == pytest.approx(area, abs=2e-3)
    assert_close(metric.norm(path, moved), torch.ones(len(path), dtype=torch.float64))


def test_the_error_of_transport_is_of_second_order():
    """An arrow keeps its angle with a meridian; half the step gives a quarter of the error."""
    errors = []
    for num in (9, 17, 33):
        latitude = torch.linspace(0.2, 1.4, num, dtype=torch.float64)
        path = torch.stack([latitude, torch.zeros_like(latitude)], 1)
        v = vector(0.6, 0.8 / math.cos(0.2))
        moved = parallel_transport(Sphere(), path, v)[-1]
        at_the_end = moved * vector(1, math.cos(1.4))
        errors.append(float((at_the_end - vector(0.6, 0.8)).norm()))
    assert errors[0] < 5e-3 and errors[1] < 0.3 * errors[0] and errors[2] < 0.3 * errors[1]


@pytest.mark.parametrize("num_points", [17, 33])
def test_transport_along_a_geodesic_keeps_its_velocity(num_points):
    metric, x, v = Sphere(), vector(0.3, 0.1), vector(1.0, 1.2)
    path = exponential_map(metric, x, v, num_steps=num_points - 1)
    moved = parallel_transport(metric, path, v)
    pushed = metric.embed_jvp(path, moved)
    end = exponential_map(metric, path[-1], moved[-1] / 100, num_steps=1)[-1]
    before = metric.embed(path[-2:])
    onward = metric.embed(end[None])[0] - before[1]
    back = before[1] - before[0]
    cosine = onward @ back / onward.norm() / back.norm()
    assert float(cosine) > math.cos(1.1 * float(back.norm()) / 2 + 0.01)
    assert_close(pushed.norm(dim=1), pushed[0].norm().expand(num_points))


# ----------------------------------------------------------------------------------------- means


def mean_on_a_sphere(points, weights):
    """Karcher's iteration with the closed forms of logarithm and exponential, in R^3."""
    mean = (weights[:, None] * points).sum(0)
    mean = mean / mean.norm()
    for _ in range(200):
        cosines = (points @ mean).clamp(-1, 1)
        angles = cosines.arccos()
        normals = (points - cosines[:, None] * mean) / angles.sin()[:, None]
        step = (weights[:, None] * angles[:, None] * normals).sum(0)
        mean = step.norm().cos() * mean + torch.sinc(step.norm() / math.pi) * step
    return mean


@pytest.mark.parametrize("weights", [None, (0.6, 0.3, 0.1), (2.0, 0.0, 2.0)])
def test_means_on_a_sphere(weights):
    metric = Sphere()
    points = torch.stack([vector(0.3, 0.1), vector(0.5, 0.8), vector(-0.4, 0.5)])
    given = None if weights is None else vector(*weights)
    used = vector(1, 1, 1) / 3 if weights is None else given / given.sum()
    found = frechet_mean(metric, points, given, rtol=1e-4)
    expected = mean_on_a_sphere(metric.embed(points), used)
    assert_close(metric.embed(found[None])[0], expected, rtol=0, atol=1e-3)


def test_points_closer_than_the_networks_rounding_are_a_straight_step_apart():
    class Coarse(GaussianMixtureScore):
        rounding = 0.01

    metric = TangentNormalMetric(Coarse(MIXTURE.means, 0.7))
    near = X + 1e-5 * V
    assert_close(logarithm_map(metric, X, near), near - X)
    found = frechet_mean(metric, torch.stack([X, X + V]), vector(1, 0))
    assert_close(found, X)


def test_means_in_flat_space_and_on_a_learned_circle():
    points, weights = randn(4, 2, 3), vector(1, 2, 3, 4)
    flat = (weights.view(4, 1, 1) * points).sum(0) / 10
    assert_close(frechet_mean(EuclideanMetric(), points, weights), flat)
    problem = circle(6, angle=1.5)
    metric = TangentNormalMetric(problem.score)
    at = problem.geodesic(torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64))
    found = frechet_mean(metric, at, rtol=1e-3)
    middle = problem.geodesic(torch.tensor([0.4], dtype=torch.float64))[0]
    assert float((found - middle).norm()) < 0.02
    assert float(problem.distance(found[None])) < 0.02


def test_a_mean_of_points_far_apart_may_start_on_the_data():
    problem = circle(6, angle=4.0)
    metric = TangentNormalMetric(problem.score)
    at = problem.geodesic(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    near = problem.geodesic(torch.tensor([0.4], dtype=torch.float64))[0]
    found = frechet_mean(metric, at, init=near, rtol=1e-3)
    assert float((found - at[1]).norm()) < 0.02


def test_a_mean_that_does_not_converge_is_reported():
    points = torch.tensor([[0.3, 0.1], [0.5, 0.8], [-0.4, 0.5]], dtype=torch.float64)
    with pytest.warns(UserWarning, match="after `max_steps`=1 a step is still .* give more steps"):
        frechet_mean(Sphere(), points, max_steps=1, rtol=1e-6)


def test_a_mean_that_no_step_improves_is_no_mean():
    problem = circle(2)
    metric = ScoreJacobianMetric(problem.score, ridge=0.01)
    with pytest.warns(UserWarning, match="frechet_mean: .* does not lower the mean squared"):
        frechet_mean(metric, problem.geodesic(torch.tensor([0.0, 0.4, 1.0])))


def test_a_step_that_is_too_long_is_halved():
    """The mean is found even if logarithms are too long."""

    class Overshooting(Sphere):
        def embed_jvp(self, x, v):
            return super().embed_jvp(x, v) / 3**0.5  # so G^-1 p is three times the logarithm

        def embed_vjp(self, x, w):
            return super().embed_vjp(x, w) / 3**0.5

    points = torch.tensor([[0.3, 0.1], [0.5, 0.8], [-0.4, 0.5]], dtype=torch.float64)
    expected = frechet_mean(Sphere(), points, rtol=1e-4)
    found = frechet_mean(Overshooting(), points, rtol=1e-4, max_steps=30)
    assert_close(found, expected, atol=1e-3, rtol=0)


# ------------------------------------------------------------------------------------- bad input


FLAT, NAN = EuclideanMetric(), vector(math.nan, 0)
ONE = vector(1, 2)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: exponential_map(FLAT, ONE, vector(1)), r"of one shape, but they are \(2,\)"),
        (lambda: exponential_map(FLAT, ONE, NAN), "`v` must be .* of finite values"),
        (
            lambda: exponential_map(FLAT, ONE, ONE, num_steps=0),
            "`num_steps` must be a whole number of at least 1",
        ),
        (
            lambda: exponential_map(Sphere(), vector(1.5, 0), vector(3, 9), num_steps=1),
            "step 1 of 1.*give a larger `num_steps` or a shorter `v`",
        ),
        (lambda: logarithm_map(FLAT, ONE, vector(1)), "of one shape"),
        (lambda: logarithm_map(Sphere(math.inf), ONE, ONE + 1), "No geodesic was found"),
        (
            lambda: parallel_transport(HalfPlane(), torch.stack([ONE, ONE]), ONE),
            "needs a PullbackMetric",
        ),
        (lambda: parallel_transport(FLAT, NAN[None], ONE), "`path` must be .* finite values"),
        (lambda: parallel_transport(FLAT, ONE[None], vector(1)), "of one shape"),
        (lambda: frechet_mean(FLAT, NAN[None]), "`points` must be .* finite values"),
        (lambda: frechet_mean(FLAT, ONE[None][:0]), "`points` must be finite"),
        (lambda: frechet_mean(FLAT, ONE[None], vector(-1)), "non-negative and not all 0"),
        (lambda: frechet_mean(FLAT, ONE[None], ONE), r"`weights` must be \(1,\)"),
        (lambda: frechet_mean(FLAT, ONE[None], init=NAN), "`init` must be .* finite values"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


USES = [
    (lambda: exponential_map(3, P, Q), "`metric` must be a Metric, but got int"),
    (
        lambda: exponential_map(PLAIN, P, Q * NAN_),
        "`v` must be .* has NaN or infinite ones",
    ),
    (lambda: exponential_map(PLAIN, P, Q, num_steps=1.5), "`num_steps` must be a whole number"),
    (lambda: exponential_map(PLAIN, P, Q, rtol=-1), "`rtol` must not be negative, but got -1"),
    (lambda: logarithm_map(PLAIN, [0.0], [1.0]), "`x` must be a floating-point tensor"),
    (lambda: logarithm_map(None, P, Q), "`metric` must be a Metric"),
    (
        lambda: parallel_transport(PLAIN, PATH[:0], Q),
        r"`path` must be finite points .* \(0, 3\)",
    ),
    (lambda: parallel_transport(PLAIN, PATH, None), "`v` must be .* but got NoneType"),
    (lambda: frechet_mean(PLAIN, [P, Q]), "`points` must be .* but got list"),
    (lambda: frechet_mean(PLAIN, MEANS, [1.0] * 6), "`weights` must be .* but got list"),
    (
        lambda: frechet_mean(PLAIN, MEANS, torch.full((6,), INF)),
        "`weights` must be .* infinite",
    ),
    (lambda: frechet_mean(PLAIN, MEANS, init="lerp"), "`init` must be .* but got str"),
    (lambda: frechet_mean(PLAIN, MEANS, max_steps=0), "`max_steps` must be a whole number"),
]


@pytest.mark.parametrize(("use", "message"), USES)
def test_uses_that_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()


def test_maps_along_geodesics_that_leap_or_have_not_converged_give_a_warning():
    angles = torch.arange(256, dtype=torch.float64) * 2 * torch.pi / 256
    one = torch.stack([angles.cos(), angles.sin()], 1)
    two = torch.cat([one, one + torch.tensor([4.0, 0.0])])
    metric = TangentNormalMetric(GaussianMixtureScore(two, 0.1))
    with pytest.warns(UserWarning, match="logarithm_map: 1 of 1 .* leaves the data") as caught:
        logarithm_map(metric, two[0], two[384])
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="frechet_mean: .* leaves the data"):
        frechet_mean(metric, two[[0, 384]])
    with pytest.warns(UserWarning, match="logarithm_map: 1 of 1 .* `max_evals`"):
        logarithm_map(metric, two[0], two[60], max_evals=3)
    with pytest.warns(UserWarning, match="frechet_mean: 2 of 2 .* `max_evals`"):
        frechet_mean(metric, two[[0, 30]], max_evals=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_mean(metric, two[[0, 30]])
        logarithm_map(metric, two[0], two[30])


def test_transport_warns_of_vectors_normal_to_the_data():
    problem = circle(6, angle=1.0)
    metric = TangentNormalMetric(problem.score)
    path = problem.geodesic(torch.linspace(0, 1, 17, dtype=torch.float64))
    tangent = path[1] - path[0]
    tangent, normal = tangent / tangent.norm(), path[2] - 2 * path[1] + path[0]
    normal = normal / normal.norm()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = tangent + 0.3 * normal
        moved = parallel_transport(metric, path, given)
        assert not parallel_transport(metric, path, torch.zeros_like(tangent)).any()
    assert_close(moved[-1].norm(), given.norm())
    assert_close(metric.project(path[-1], path[-1], moved[-1]), moved[-1], rtol=0, atol=0.02)
    with pytest.warns(UserWarning, match="normal to the data") as caught:
        parallel_transport(metric, path, normal + 0.1 * tangent)
    assert caught[0].filename == __file__


def test_the_likely_logarithm_is_the_speed_at_the_start_and_not_the_length():
    """Its potential changes the speed along the path, which conserves `|x'|^2 / 2 + lam log p`."""
    problem = circle(6, angle=1.5)
    metric = LikelyMetric(problem.score)
    found = logarithm_map(metric, problem.x0, problem.x1, num_points=65)
    path = geodesic(metric, problem.x0, problem.x1, num_points=65, num_quadrature=1, rtol=1e-9)
    nodes, score = path.nodes, problem.score
    steps = (nodes[1:] - nodes[:-1]).norm(dim=1) * 64
    middle = score.log_prob(nodes[32:33]) - score.log_prob(nodes[:1])
    speed = (found.square().sum() - 2 * metric.lam * middle).sqrt()
    assert float(steps[31:33].mean()) == pytest.approx(float(speed), rel=2e-3)
    assert float(found.norm()) == pytest.approx(float(steps[0]), rel=2e-2)
