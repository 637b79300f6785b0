"""What a geodesic says of itself, compared with what is true."""

import json
from dataclasses import replace

import claims
import pytest
import torch
from claims import along, arcs, clusters, product_case, rings, sphere_case
from problems import circle, held_out_problems, uneven_circle

from riemannian_diffusion import (
    EuclideanMetric,
    GaussianMixtureScore,
    Geodesic,
    LikelyMetric,
    ScoreJacobianMetric,
    SteinScoreMetric,
    TangentNormalMetric,
    frechet_mean,
    geodesic,
    lerp,
    parallel_transport,
    smooth,
)
from riemannian_diffusion.cli.commands import describe_geodesic
from riemannian_diffusion.files import as_json


@pytest.mark.parametrize(
    "case", [sphere_case(2.9, 0), sphere_case(2.2, 1), product_case(1), product_case(3)]
)
def test_converged_means_near_the_geodesic(case):
    row = claims.convergence(case)
    assert row["status"] == "converged" and row["on data"]
    assert 0 <= row["excess"] <= 0.005 and row["error"] <= 0.01


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("number", [0, 1, 5])
def test_paths_are_evenly_paced_and_their_length_is_that_along_the_manifold(number, seed):
    problem = list(held_out_problems(seed))[number]
    row = claims.pace(problem)
    assert row["error"] <= 0.01
    assert abs(row["length"] - 1) <= 0.03
    # scattered data lengthen tangents in the metric, and evenly spaced data do not
    assert (row["metric length"] > 1.03) == (seed is not None)


@pytest.mark.parametrize(
    "case",
    [
        rings(0.6, n=5),
        rings(4.0, n=5),
        clusters(1.5, seed=3),
        clusters(0.8, seed=0, spread=0.0),
        arcs(0.7, seed=1),
    ],
    ids=lambda case: case.name,
)
def test_a_leap_is_reported(case):
    found = case.solve(max_evals=60)
    assert found.on_data is False
    assert "leaves the data" in found.message


@pytest.mark.parametrize(
    "metric", [TangentNormalMetric, ScoreJacobianMetric, SteinScoreMetric, EuclideanMetric]
)
def test_every_metric_that_reads_a_score_tells_data_from_gaps(metric):
    correct, leap = along(circle(8, shift=1.0)), rings(1.0, n=5)
    expected = (True, False) if metric is not EuclideanMetric else (None, None)
    for case, on_data in zip((correct, leap), expected, strict=True):
        made = EuclideanMetric() if metric is EuclideanMetric else metric(case.score)
        options = {"num_points": 25, "init": case.start, "max_evals": 1}
        found = geodesic(made, case.x0, case.x1, **options)
        assert found.on_data is on_data
        assert ("leaves the data" in found.message) is (on_data is False)


@pytest.mark.parametrize("sigma", [0.1, 0.0125])
def test_correct_paths_raise_no_alarm(sigma):
    for problem in (circle(32, shift=1.0, num=1600), uneven_circle(8, num=1600)):
        assert along(problem, sigma).solve().on_data


@pytest.mark.parametrize("apart", [0.0, 1e-8, 1e-6, 1e-5, 1e-3])
def test_rounding_errors_between_equal_points_raise_no_alarm(apart):
    case = along(circle(32, shift=1.0, num=1600), 0.1)
    x0 = case.x0.float()
    x1 = x0 + apart * (case.x1.float() - x0)
    for metric in (TangentNormalMetric(case.score), SteinScoreMetric(case.score)):
        found = geodesic(metric, x0, x1, max_evals=40)
        assert found.on_data
        assert apart or found.energy_change == 0


class Broken(GaussianMixtureScore):
    """A score that is NaN beyond a line."""

    def __call__(self, x, where=None):
        return super().__call__(x) + torch.where(x[:, :1] > 0.5, torch.nan, 0.0)


@pytest.mark.parametrize("metric", [TangentNormalMetric, SteinScoreMetric, LikelyMetric])
def test_a_score_that_is_not_finite_says_nothing_about_the_data(metric):
    means = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    found = geodesic(metric(Broken(means, 0.3)), means[0], torch.tensor([1.0, 0.0]), max_evals=5)
    assert found.status == "nonfinite" and found.on_data is None
    assert "data" not in found.message and "Check the inputs" in found.message
    report = json.loads(as_json(describe_geodesic(found)), parse_constant=pytest.fail)
    assert report["finer_energy"] is report["length"] is report["on_data"] is None


def test_an_energy_that_falls_with_its_sampling_is_called_too_high():
    found = Geodesic(torch.zeros(2, 1), 1.0, energy_change=-0.3)
    assert "The energy is too high: it still changed by 30%" in found.message


def test_energies_are_settled_or_called_too_low():
    for sigma in (0.1, 0.025):
        row = claims.energies(along(circle(32, shift=1.0, num=1600), sigma))
        assert row["stated"] == pytest.approx(1, abs=0.02)
    for gap in (1.0, 2.0):
        case = rings(gap, n=5)
        row, found = claims.energies(case), case.solve(max_evals=100)
        settled = abs(row["stated change"]) <= 0.05
        assert settled == ("too low" not in found.message)
        assert row["optimised"] < row["stated"] <= 1.01
        assert row["stated"] >= 0.95 or not settled


@pytest.mark.parametrize("radius, sigma, num_points", [(1, 0.02, 5), (3, 0.05, 5), (10, 0.05, 9)])
def test_energies_between_far_points_are_settled_or_called_too_low(radius, sigma, num_points):
    """A few chords that are all long against the noise miss the same energy."""
    generator = torch.Generator().manual_seed(1)
    angles = 2 * torch.pi * torch.rand(4000, generator=generator, dtype=torch.float64)
    points = radius * torch.stack([angles.cos(), angles.sin()], 1)
    path = torch.linspace(0.6, 2.8, num_points, dtype=torch.float64)
    path = radius * torch.stack([path.cos(), path.sin()], 1)
    metric = TangentNormalMetric(GaussianMixtureScore(points, sigma))
    found = geodesic(metric, path[0], path[-1], num_points=num_points, init=path, max_evals=60)
    with torch.no_grad():
        true = float(metric.energy(smooth(found.nodes, 400)).sum())
    assert found.energy >= 0.95 * true or "too low" in found.message


@pytest.mark.parametrize("metric", [TangentNormalMetric, SteinScoreMetric, LikelyMetric])
@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("gap", [0.0, 0.5, 0.8])
def test_points_far_apart_hide_no_leap(gap, curved, metric):
    """The points are 25 standard deviations of the noise apart, and the gap 0, 5 or 8."""
    case = claims.line(gap, num_points=17, curved=curved)
    found = replace(case, metric=metric).solve(max_evals=1)
    assert found.on_data is (gap == 0)


@pytest.mark.parametrize("metric", [TangentNormalMetric, SteinScoreMetric, ScoreJacobianMetric])
def test_a_solve_ends_where_rounding_of_the_points_hides_the_energy(metric):
    """Far from the origin, the points of float32 resolve the energy less than the dtype does."""
    angles = torch.arange(400, dtype=torch.float64) * 2 * torch.pi / 400
    points = torch.stack([angles.cos(), angles.sin(), angles.new_zeros(400)], 1)
    for centre in (1e4, 1e5):
        far = (points + torch.tensor([0.0, 0.0, centre])).float()
        far = far @ torch.linalg.qr(torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 10]]))[0]
        found = geodesic(
            metric(GaussianMixtureScore(far, 0.1)), far[0], far[140], num_points=25, max_evals=300
        )
        assert found.num_evals <= 100


def test_a_solve_ends_where_its_dtype_cannot_resolve_the_energy():
    case = sphere_case(2.2, 0)
    x0, x1 = case.x0.float(), case.x1.float()
    options = {"num_points": 25, "rtol": 0.0, "max_evals": 400}
    found = geodesic(TangentNormalMetric(case.score), x0, x1, **options)
    assert found.status == "converged"
    lowest = min(energy for _, energy in found.iterates)
    reached = next(num for num, energy in found.iterates if energy <= lowest * (1 + 1e-6))
    assert found.num_evals <= reached + 24  # two line searches that find no descent


def test_a_path_between_equal_points_has_no_departure():
    case = along(circle(8, shift=1.0))
    found = geodesic(TangentNormalMetric(case.score), case.x0, case.x0, num_points=5)
    assert found.on_data and torch.equal(found.path, lerp(case.x0, case.x0, 5))


@pytest.mark.parametrize("seed", [0, 1])
def test_means_and_transport_keep_lengths_between_scattered_data(seed):
    problem = circle(5, shift=1.0, seed=seed)
    metric = TangentNormalMetric(problem.score)
    weights, u = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.0, 0.45, 1.0]).double()
    points = problem.geodesic(u)
    mean = frechet_mean(metric, points, weights, init=points[1], num_quadrature=3)
    assert float((mean - problem.geodesic((weights @ u)[None])[0]).norm()) <= 0.01

    def tangent(u):
        first, second = problem.geodesic(torch.tensor([u - 1e-5, u + 1e-5]).double())
        return (second - first) / (second - first).norm()

    path = problem.geodesic(torch.linspace(0, 1, 25).double())
    for made in (metric, SteinScoreMetric(problem.score)):
        moved = parallel_transport(made, path, tangent(0.0))
        assert float((moved[-1] - tangent(1.0)).norm()) <= 0.01


@pytest.mark.parametrize("problem", claims.start_cases(), ids=lambda problem: problem.name)
def test_the_default_start_does_not_depend_on_the_origin(problem):
    assert claims.starting(problem)["default"] == pytest.approx(1, abs=0.03)
