"""Going on beyond a path: great circles of spheres, and bad input."""

import math

import pytest
import torch
from problems import circle
from torch.testing import assert_close

from riemannian_diffusion import (
    EuclideanMetric,
    GaussianMixtureScore,
    SharedNoiseScore,
    TangentNormalMetric,
    extrapolate,
    length,
    slerp,
)


def to_sphere(x):
    return x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("num_points", [9, 17, 33])
def test_goes_on_along_the_great_circle(num_points):
    """To second order in the step: half the step, a quarter of the error."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.linalg.qr(torch.randn(50, 2, generator=generator, dtype=torch.float64))[0].T

    def at(angles):
        return angles.cos()[:, None] * a + angles.sin()[:, None] * b

    path = at(torch.linspace(0, 1.0, num_points, dtype=torch.float64))
    distance = math.pi / 2
    longer = extrapolate(EuclideanMetric(), path, distance, project=to_sphere)
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


def test_ninety_degrees_more_of_a_circle_by_its_score():
    problem = circle(8, angle=1.0)
    path = problem.geodesic(torch.linspace(0, 1, 17))
    longer = extrapolate(TangentNormalMetric(problem.score), path, math.pi / 2)
    assert float(problem.distance(longer).max()) < 0.02
    true = problem.geodesic(torch.linspace(0, 1 + math.pi / 2, len(longer)))
    assert float((longer - true).norm(dim=1).max()) < 0.02


def test_it_ends_where_the_data_end():
    """On an arc of 1.6 radians, and on a circle with nothing around the far side."""
    problem = circle(8, angle=1.0)
    level = problem.score
    arc = problem.geodesic(torch.linspace(0, 1.6, 400))
    path = problem.geodesic(torch.linspace(0, 1, 17))
    metric = TangentNormalMetric(GaussianMixtureScore(arc, level.sigma))
    found = extrapolate(metric, path, 2.0)
    on = len(found) - len(path)
    assert 1.4 < 1 + on / 16 < 1.75
    assert len(extrapolate(metric, path, 2.0, max_residual=math.inf)) == 17 + 32
    assert len(extrapolate(TangentNormalMetric(level), path, 2.0)) == 17 + 32

    def leaving(x):  # beyond 1.2 radians it no longer knows where the circle is
        turned = torch.atan2((x - path[0]) @ side, x @ path[0])
        return torch.where(turned[:, None] > 1.2, 1.5 * to_sphere(x), to_sphere(x))

    side = problem.geodesic(torch.tensor([math.pi / 2]))[0]
    found = extrapolate(metric, path, 2.0, project=leaving)
    assert 17 <= len(found) < 17 + 8


def test_the_metric_s_own_denoiser_is_used():
    problem = circle(4, angle=1.0)
    level = GaussianMixtureScore(problem.score.means, 0.1)
    noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    score = SharedNoiseScore(level, noise)
    path = problem.geodesic(torch.linspace(0, 1, 17))
    found = extrapolate(TangentNormalMetric(score), path, 1.0)
    assert torch.equal(found, extrapolate(EuclideanMetric(), path, 1.0, project=score.denoise))
    assert float(problem.distance(found).max()) < 0.02


def test_at_least_one_step_of_the_asked_length():
    path = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    longer = extrapolate(EuclideanMetric(), path, 0.25, project=lambda x: x)
    assert_close(longer, torch.tensor([[0, 0], [1, 0], [1.25, 0]], dtype=torch.float64))


def test_a_projection_that_holds_back_is_overcome():
    """Points are drawn back by a tenth of a step: steps are still as long as asked."""
    path = torch.tensor([[0.0, 1.0], [0.1, 1.0]], dtype=torch.float64)

    def hold_back(x):
        ahead = x - torch.tensor([[0.0, 1.0]], dtype=x.dtype)
        return x - 0.01 * ahead / ahead.norm()

    longer = extrapolate(EuclideanMetric(), path, 0.5, project=hold_back)
    assert float(length(longer[1:])) == pytest.approx(0.5, rel=0.011)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": torch.zeros(1, 3)}, r"at least 2, but it is \(1, 3\)"),
        ({"path": torch.zeros(3)}, r"at least 2, but it is \(3,\)"),
        ({"path": torch.full((3, 2), math.nan)}, "with NaN or infinite values"),
        ({"path": torch.zeros(3, 2)}, "`path` must have a length, but its mean step is 0.0 long"),
        ({"path": torch.tensor([[0.0], [1], [1]])}, "last two points of `path` are the same"),
        ({"distance": 0}, "`distance` must be positive and finite, but got 0"),
        ({"distance": math.inf}, "`distance` must be positive and finite, but got inf"),
        ({"max_residual": 0}, "`max_residual` must be positive, but got 0"),
        ({"project": None}, "EuclideanMetric has no score to denoise with: give `project`"),
    ],
)
def test_bad_input(arguments, message):
    good = {"path": slerp(torch.tensor([1.0, 0]), torch.tensor([0, 1.0]), 3), "distance": 1.0}
    options = {"metric": EuclideanMetric(), "project": to_sphere} | good | arguments
    with pytest.raises(ValueError, match=message):
        extrapolate(**options)
