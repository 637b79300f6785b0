"""Solves that begin on coarse curves, and the smooth curves that they move."""

import pytest
import torch
from models import randn
from problems import benchmark_problems
from torch.testing import assert_close

from riemannian_diffusion import (
    PathLBFGS,
    TangentNormalMetric,
    geodesic,
    lerp,
    slerp,
    smooth,
)
from riemannian_diffusion.geodesics import solving
from riemannian_diffusion.geodesics.coarse import numbers_of_points, prolonged, with_points
from riemannian_diffusion.geodesics.problem import Problem

PROBLEMS = {problem.name: problem for problem in benchmark_problems()}
DIRECT = PathLBFGS(coarse_first=False)


class Counting(TangentNormalMetric):
    """The metric, which counts the points that it evaluates."""

    count = 0

    def embed(self, x, where=None):
        self.count += len(x)
        return super().embed(x, where)


def solved(name, **options):
    problem = PROBLEMS[name]
    metric = Counting(problem.score)
    return geodesic(metric, problem.x0, problem.x1, **options), metric.count


@pytest.mark.parametrize("name", ["circle in R^32", "flat torus in R^6", "10-sphere in R^100"])
def test_coarse_curves_take_fewer_points_to_the_same_geodesic(name):
    found, points = solved(name)
    expected, direct = solved(name, solver=DIRECT)
    assert found.status == expected.status == "converged"
    assert points < 0.7 * direct
    assert found.energy == pytest.approx(expected.energy, rel=2e-3)
    assert_close(found.path, expected.path, rtol=0, atol=0.01)


def test_a_coarse_curve_that_leaves_the_data_is_given_up():
    found, _ = solved("two moons", num_points=25)
    expected, _ = solved("two moons", num_points=25, solver=DIRECT)
    assert found.on_data and expected.on_data
    assert found.num_evals > expected.num_evals
    assert found.energy == pytest.approx(expected.energy, rel=1e-3)


def test_a_given_path_is_where_the_solve_starts():
    problem = PROBLEMS["circle in R^32"]
    start = lerp(problem.x0, problem.x1, 17)
    for init, options, same in (
        (start, {}, True),
        ("lerp", {"max_evals": 39}, True),
        ("lerp", {"solver": DIRECT}, True),
        ("lerp", {}, False),
    ):
        asked = []

        class Asked(TangentNormalMetric):
            def embed(self, x, where=None):
                asked.append(len(x))  # noqa: B023
                return super().embed(x, where)

        problems = [Problem.between(problem.x0, problem.x1, num_points=17, init=init)]
        first = next(solving(Asked(problem.score), problems, **options))
        assert_close(first.path, start, rtol=0, atol=1e-6)
        assert asked == [2, 31 if same else 7]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (lerp(randn(3), randn(3, seed=1), 17), [5, 9, 17]),
        (slerp(randn(64), randn(64, seed=1), 17), [5, 9, 17]),
        (lerp(randn(3), randn(3, seed=1), 65), [5, 9, 17, 33, 65]),
        (lerp(randn(3), randn(3, seed=1), 8), [5, 8]),
        (lerp(randn(3), randn(3, seed=1), 7), [7]),
        (lerp(randn(3), randn(3, seed=1), 2), [2]),
        (randn(17, 3), [17]),
    ],
)
def test_the_numbers_of_points_of_coarse_curves(start, expected):
    assert numbers_of_points(start) == expected


def test_a_smooth_curve_goes_through_its_points_and_is_exact_for_parabolas():
    u = torch.linspace(0, 4, 5, dtype=torch.float64)[:, None]
    fine = torch.linspace(0, 4, 25, dtype=torch.float64)[:, None]

    def parabola(t):
        return torch.cat([3 - t + t**2, 2 * t, 0.5 * t**2], 1)

    assert_close(smooth(parabola(u), 6), parabola(fine))
    path = randn(6, 2, 3, dtype=torch.float64)
    assert torch.equal(smooth(path, 4)[::4], path)
    assert torch.equal(smooth(path, 1), path)
    ends = path[:2]
    assert_close(smooth(ends, 4), lerp(ends[0], ends[1], 5))


def test_a_smooth_curve_is_linear_in_its_points():
    a, b = randn(7, 3, dtype=torch.float64), randn(7, 3, seed=1, dtype=torch.float64)
    assert_close(smooth(2 * a - b, 3), 2 * smooth(a, 3) - smooth(b, 3))
    assert_close(
        prolonged(a[1:-1], 13), with_points(torch.cat([0 * a[:1], a[1:-1], 0 * a[:1]]), 13)[1:-1]
    )
