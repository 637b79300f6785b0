"""Rounding errors of points, embeddings and networks that hide the steps of a path."""

import pytest
import torch
from torch.testing import assert_close

from riemannian_diffusion import (
    EuclideanMetric,
    GaussianMixtureScore,
    LikelyMetric,
    PullbackMetric,
    ScoreJacobianMetric,
    SteinScoreMetric,
    TangentNormalMetric,
    frechet_mean,
    geodesic,
    lerp,
    logarithm_map,
)

METRICS = {
    "tangent_normal": TangentNormalMetric,
    "score_jacobian": lambda score: ScoreJacobianMetric(score, ridge=0.01),
    "stein": SteinScoreMetric,
    "likely": LikelyMetric,
    "euclidean": lambda score: EuclideanMetric(),
}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


def circle_at(centre, dtype=torch.float32):
    """512 points of the unit circle about `(centre, centre)`, in counter-clockwise order."""
    angles = torch.arange(512, dtype=torch.float64) * 2 * torch.pi / 512
    return (torch.stack([angles.cos(), angles.sin()], 1) + centre).to(dtype)


def solve(metric, points, **options):
    return geodesic(metric(GaussianMixtureScore(points, 0.1)), points[0], points[163], **options)


@every_metric
def test_points_too_coarse_for_a_path_are_refused(metric):
    far = solve(metric, circle_at(1e6), max_evals=100)
    assert far.status == "rounding" and "wider dtype" in far.message
    assert torch.equal(far.nodes, lerp(far.path[0], far.path[-1], 17))
    made = metric(GaussianMixtureScore(circle_at(1e6), 0.1))
    if isinstance(made, EuclideanMetric):  # every straight step is a geodesic
        assert_close(logarithm_map(made, far.path[0], far.path[-1]), far.path[-1] - far.path[0])
        return
    with pytest.raises(ValueError, match="No geodesic was found: Neighbouring points differ"):
        logarithm_map(made, far.path[0], far.path[-1])


@pytest.mark.parametrize("dtype, centre", [(torch.float32, 1e3), (torch.float64, 1e6)])
def test_points_fine_enough_for_a_path_raise_no_alarm(dtype, centre):
    for metric in METRICS.values():
        near, far = (solve(metric, circle_at(c, dtype), max_evals=40) for c in (0.0, centre))
        assert far.status != "rounding"
        assert_close(far.path - centre, near.path, rtol=0, atol=0.02)


def test_a_coordinate_that_never_changes_raises_no_alarm():
    flat = circle_at(0.0)
    raised = torch.cat([flat, torch.full((512, 1), 1e7)], 1)
    found, expected = (solve(TangentNormalMetric, points) for points in (raised, flat))
    assert found.status == expected.status == "converged"
    assert_close(found.path[:, :2], expected.path, rtol=0, atol=1e-3)


def test_an_embedding_far_from_the_origin_is_coarse_as_well():
    class Raised(PullbackMetric):
        def embed(self, x):
            return torch.cat([x, x.square().sum(1, keepdim=True) + 1e7], 1)

    x0, x1 = torch.tensor([0.0, 3.0]), torch.tensor([3.0, 0.0])
    assert geodesic(Raised(), x0, x1).status == "rounding"
    assert geodesic(Raised(), x0.double(), x1.double()).status == "converged"


@every_metric
@pytest.mark.parametrize("apart", [1e-7, 1e-6, 1e-5, 1e-4])
def test_logarithms_of_points_that_nearly_agree(metric, apart):
    if metric is LikelyMetric:
        pytest.skip("its paths leave the data even between equal points")
    points = circle_at(0.0)
    moved = points[0] + torch.tensor([0.0, apart])
    found = logarithm_map(metric(GaussianMixtureScore(points, 0.1)), points[0], moved)
    assert_close(found, moved - points[0], rtol=0, atol=0.01 * apart)


def test_a_mean_may_lie_on_one_of_its_points_in_float32():
    points = circle_at(0.0)
    metric = TangentNormalMetric(GaussianMixtureScore(points, 0.1))
    found = frechet_mean(metric, points[[64, 80]], torch.tensor([1.0, 0.0]))
    assert_close(found, points[64], rtol=0, atol=1e-5)


@pytest.mark.parametrize("metric", list(METRICS.values())[:3], ids=list(METRICS)[:3])
@pytest.mark.parametrize("centre", [0.0, 1e4, 1e5])
@pytest.mark.parametrize("apart", [1e-6, 1e-5, 1e-4, 1e-3, 2.0])
def test_rounding_errors_are_no_change_of_the_energy(metric, centre, apart):
    points = circle_at(centre)
    angle = torch.tensor(apart, dtype=torch.float64)
    x1 = (torch.stack([angle.cos(), angle.sin()]) + centre).float()
    found = geodesic(metric(GaussianMixtureScore(points, 0.1)), points[0], x1, max_evals=40)
    assert abs(found.energy_change) <= 0.05


@pytest.mark.parametrize("num", [1, 3])
def test_the_mean_of_equal_points_is_that_point(num, recwarn):
    points = circle_at(0.0)
    mean = frechet_mean(
        TangentNormalMetric(GaussianMixtureScore(points, 0.1)), points[:1].expand(num, 2)
    )
    assert_close(mean, points[0], rtol=0, atol=1e-6)
    assert not [one for one in recwarn if issubclass(one.category, UserWarning)]
