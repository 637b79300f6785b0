"""Extrapolation and analogies on spheres, and bad input."""

import math

import pytest
import torch
from exact import to_sphere
from models import randn
from problems import HypersphereScore, circle
from torch.testing import assert_close
from uses import MODEL, NAN_, PATH, Q

from riemannian_diffusion import (
    GaussianMixtureScore,
    SharedNoiseScore,
    analogy,
    extrapolate,
    length,
    slerp,
)


@pytest.mark.parametrize("num_points", [9, 17, 33])
def test_extrapolation_follows_the_great_circle(num_points):
    """The error is of second order: half the step gives a quarter of the error."""
    a, b = torch.linalg.qr(randn(50, 2))[0].T

    def at(angles):
        return angles.cos()[:, None] * a + angles.sin()[:, None] * b

    path = at(torch.linspace(0, 1.0, num_points, dtype=torch.float64))
    distance = math.pi / 2
    longer = extrapolate(path, distance, project=to_sphere)
    assert torch.equal(longer[:num_points], path)
    step = 1.0 / (num_points - 1)
    num_steps = round(distance / step)
    assert len(longer) == num_points + num_steps
    steps = (longer[num_points:] - longer[num_points - 1 : -1]).norm(dim=1)
    assert_close(steps, torch.full_like(steps, distance / num_steps), rtol=0.011, atol=0)
    turned = torch.atan2(longer @ b, longer @ a)
    off = (longer - at(turned)).norm(dim=1)
    assert float(off.max()) < 1e-12  # it stays on the great circle
    assert abs(float(turned[-1]) % (2 * math.pi) - 1 - distance) < 0.01 * distance


def test_ninety_degrees_beyond_a_path_on_a_circle():
    problem = circle(8, angle=1.0)
    path = problem.geodesic(torch.linspace(0, 1, 17))
    longer = extrapolate(path, math.pi / 2, project=problem.score.denoise)
    assert float(problem.distance(longer).max()) < 0.02
    true = problem.geodesic(torch.linspace(0, 1 + math.pi / 2, len(longer)))
    assert float((longer - true).norm(dim=1).max()) < 0.02


def test_extrapolation_ends_where_the_data_end():
    """The data are an arc of 1.6 radians, and a circle whose far side has no score."""
    problem = circle(8, angle=1.0)
    level = problem.score
    arc = problem.geodesic(torch.linspace(0, 1.6, 400))
    path = problem.geodesic(torch.linspace(0, 1, 17))
    denoise = GaussianMixtureScore(arc, level.sigma).denoise
    found = extrapolate(path, 2.0, project=denoise)
    on = len(found) - len(path)
    assert 1.4 < 1 + on / 16 < 1.75
    assert len(extrapolate(path, 2.0, project=denoise, max_residual=math.inf)) == 17 + 32
    assert len(extrapolate(path, 2.0, project=level.denoise)) == 17 + 32

    def leaving(x):  # beyond 1.2 radians this projection does not find the circle
        turned = torch.atan2((x - path[0]) @ side, x @ path[0])
        return torch.where(turned[:, None] > 1.2, 1.5 * to_sphere(x), to_sphere(x))

    side = problem.geodesic(torch.tensor([math.pi / 2]))[0]
    found = extrapolate(path, 2.0, project=leaving)
    assert 17 <= len(found) < 17 + 8


def test_a_score_under_a_shared_noise_projects_by_its_denoiser():
    problem = circle(4, angle=1.0)
    level = GaussianMixtureScore(problem.score.means, 0.1)
    noise = randn(3, 4)
    score = SharedNoiseScore(level, noise)
    path = problem.geodesic(torch.linspace(0, 1, 17))
    found = extrapolate(path, 1.0, project=score.denoise)
    assert len(found) == 33
    assert float(problem.distance(found).max()) < 0.02


def test_extrapolation_takes_at_least_one_step():
    path = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    longer = extrapolate(path, 0.25, project=lambda x: x)
    assert_close(longer, torch.tensor([[0, 0], [1, 0], [1.25, 0]], dtype=torch.float64))


def test_steps_keep_their_length_if_a_projection_shortens_them():
    """The projection moves points back by a tenth of a step; steps keep their length."""
    path = torch.tensor([[0.0, 1.0], [0.1, 1.0]], dtype=torch.float64)

    def hold_back(x):
        ahead = x - torch.tensor([[0.0, 1.0]], dtype=x.dtype)
        return x - 0.01 * ahead / ahead.norm().clamp(min=1e-30)

    longer = extrapolate(path, 0.5, project=hold_back)
    assert float(length(longer[1:])) == pytest.approx(0.5, rel=0.011)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": torch.zeros(1, 3)}, r"at least 2, but it is \(1, 3\)"),
        ({"path": torch.zeros(3)}, r"at least 2, but it is \(3,\)"),
        ({"path": torch.full((3, 2), math.nan)}, "has NaN or infinite ones"),
        ({"path": torch.zeros(3, 2)}, "`path` must have a length, but its mean step is 0.0 long"),
        ({"path": torch.tensor([[0.0], [1], [1]])}, "last two points of `path` are equal"),
        ({"distance": 0}, "`distance` must be positive and finite, but got 0"),
        ({"distance": math.inf}, "`distance` must be positive and finite, but got inf"),
        ({"max_residual": 0}, "`max_residual` must be positive, but got 0"),
        ({"project": None}, "`project` must be a function, but got NoneType"),
    ],
)
def test_bad_input(arguments, message):
    good = {"path": slerp(torch.tensor([1.0, 0]), torch.tensor([0, 1.0]), 3), "distance": 1.0}
    options = {"project": to_sphere} | good | arguments
    with pytest.raises(ValueError, match=message):
        extrapolate(**options)


# ------------------------------------------------------------------------------------- analogies


def _on_sphere(*points):  # points in a random 3-space of R^20, and the score of its unit sphere
    basis = torch.linalg.qr(randn(20, 3))[0]
    ends = [to_sphere(torch.tensor(point, dtype=torch.float64)) @ basis.T for point in points]
    return HypersphereScore(basis, torch.zeros(20, dtype=torch.float64), 0.03), ends


def _rotated(points, a, b):
    """The image of a point under the rotation in the plane of a and b that takes a to b."""
    turn = torch.outer(b, a) - torch.outer(a, b)
    turned = points + points @ turn.T + points @ (turn @ turn).T / (1 + a @ b)
    return turned


def test_on_a_sphere_a_change_is_rotated():
    score, (a, b, c) = _on_sphere([1.0, 0, 0], [0.6, 0.64, 0.48], [0.2, -0.3, 0.93])
    path, bridge = slerp(a, b, 33), slerp(a, c, 33)
    expected = _rotated(path, a, c)
    found = analogy(score, path, c, bridge=bridge)
    assert torch.equal(found[0], c)
    assert float((found - expected).norm(dim=1).max()) < 5e-3
    # Without a bridge, transport over the chord turns the steps, as the sphere does.
    across = analogy(score, path, c)
    assert float((across - expected).norm(dim=1).max()) > 0.1
    assert float((across.norm(dim=1) - 1).abs().max()) < 2e-3


@pytest.mark.parametrize("num_points", [3, 9])
def test_a_transported_change_keeps_its_length(num_points):
    score, (a, b, c) = _on_sphere([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0])
    found = analogy(score, slerp(a, b, num_points), c, bridge=slerp(a, c, 33))
    angle = torch.acos((found[-1] @ c).clamp(-1, 1)).rad2deg()
    assert float(angle) == pytest.approx(90, abs=2.5)


def test_a_change_transported_to_its_own_start_stays_the_same():
    score, (a, b) = _on_sphere([1.0, 0, 0], [0.6, 0.64, 0.48])
    path = slerp(a, b, 33)
    for bridge in (None, torch.stack([a, a])):
        assert float((analogy(score, path, a, bridge=bridge) - path).norm(dim=1).max()) < 2e-3


def test_analogies_in_flat_space_are_differences():
    data = torch.zeros(1, 3, dtype=torch.float64)
    flat = GaussianMixtureScore(data, 1e-3, std=1e3)  # every direction is tangent
    path, start = torch.randn(2, 5, 3, dtype=torch.float64).unbind()[0], data[0] + 2.0
    found = analogy(flat, path, start)
    assert_close(found, start + path - path[0], atol=1e-8, rtol=0)
    kept = path.clone()
    assert_close(
        analogy(flat, path, start, project=lambda x: 0 * x)[1:], torch.zeros(4, 3).double()
    )
    assert torch.equal(path, kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": torch.ones(1, 2)}, r"`path` must be finite points .* at least 2, .*\(1, 2\)"),
        ({"bridge": torch.full((3, 2), math.nan)}, "`bridge` must be .* has NaN or infinite ones"),
        ({"start": torch.zeros(3)}, r"`start` must be a finite point \(2,\), but it is \(3,\)"),
        ({"bridge": torch.ones(3, 2)}, "must lead from the first point of `path` to `start`"),
    ],
)
def test_bad_analogies(options, message):
    score = GaussianMixtureScore(torch.zeros(1, 2), 1.0)
    good = {"path": torch.zeros(3, 2), "start": torch.ones(2)}
    with pytest.raises(ValueError, match=message):
        analogy(score, **good | options)


USES = [
    (
        lambda: extrapolate(PATH, "x", project=MODEL.denoise),
        "`distance` must be positive and .* got x",
    ),
    (lambda: extrapolate(PATH, 1.0, project=3), "`project` must be a function"),
    (
        lambda: extrapolate(PATH, 1.0, project=lambda x: x * NAN_),
        r"`project` must return finite points \(1, 3\)",
    ),
    (
        lambda: extrapolate(PATH, 1.0, project=MODEL.denoise, max_residual=NAN_),
        "`max_residual` must be a finite",
    ),
    (lambda: analogy(3, PATH, Q), "`score` must be a ScoreModel, but got int"),
    (lambda: analogy(MODEL, PATH, None), "`start` must be .* but got NoneType"),
    (lambda: analogy(MODEL, PATH, Q, bridge=3), "`bridge` must be .* but got int"),
]


@pytest.mark.parametrize(("use", "message"), USES)
def test_uses_that_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()
