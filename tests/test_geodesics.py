"""Geodesics compared with closed forms, and the guarantees of a solve."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from exact import HalfPlane, hyperbolic_distance
from models import randn, vector
from problems import all_problems, circle
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from uses import BENT, INF, MEANS, NAN_, PLAIN, P, Q

from riemannian_diffusion import (
    Adam,
    EuclideanMetric,
    GaussianMixtureScore,
    Iterate,
    PathLBFGS,
    PullbackMetric,
    ScoreJacobianMetric,
    ScoreModel,
    Solver,
    SteinScoreMetric,
    TangentNormalMetric,
    geodesic,
    geodesics,
    length,
    lerp,
    refine,
    resample,
    slerp,
    speed,
)
from riemannian_diffusion.geodesics import Iteration
from riemannian_diffusion.geodesics.solvers import _strong_wolfe
from riemannian_diffusion.paths import smooth

PROBLEMS = {problem.name: problem for problem in all_problems()}
METRICS = {
    "tangent normal": TangentNormalMetric,
    "score Jacobian": ScoreJacobianMetric,
    "Stein": SteinScoreMetric,
}
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())


def solve(metric, problem, **options):
    return geodesic(metric, problem.x0, problem.x1, **{"init": "lerp"} | options)


@cache
def solved(metric, name):
    """A geodesic with all defaults, from the straight path."""
    problem = PROBLEMS[name]
    return geodesic(metric(problem.score), problem.x0, problem.x1, init="lerp")


def energies(found) -> list[float]:
    """The optimised energy at the start and after every iteration."""
    return [energy for _, energy in found.iterates]


def iterates_of(metric, problem, **options) -> list[Iterate]:
    iterates = []
    solve(metric, problem, callback=iterates.append, **options)
    return iterates


class Ceiling(HalfPlane):
    """The hyperbolic plane with an energy of NaN above y = 1.2."""

    def energy(self, path):
        height = torch.maximum(path[1:, 1], path[:-1, 1])
        return torch.where(height > 1.2, torch.nan, super().energy(path))


LEFT, RIGHT = vector(-1.0, 1.0), vector(2.0, 0.8)
DIRECT = PathLBFGS(coarse_first=False)  # all evaluations are on the path's own nodes


# ---------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("std", [0.0, 0.8])
@pytest.mark.parametrize(
    "metric",
    [
        lambda score: EuclideanMetric(),
        TangentNormalMetric,
        ScoreJacobianMetric,
        lambda score: ScoreJacobianMetric(score, ridge=0.1),
    ],
    ids=["euclidean", "tangent normal", "score Jacobian", "score Jacobian with ridge"],
)
def test_straight_for_a_gaussian(metric, std):
    """The score of a Gaussian has a constant Jacobian, so geodesics are straight."""
    score = GaussianMixtureScore(randn(1, 2, 3), 0.5, std=std, alpha=0.9)
    x0, x1 = randn(2, 3, seed=1), randn(2, 3, seed=2)
    bent = lerp(x0, x1, 9) + torch.linspace(0, math.pi, 9).sin().view(-1, 1, 1) * randn(2, 3)
    found = geodesic(metric(score), x0, x1, num_points=9, init=bent, rtol=1e-9)
    assert_close(found.path, lerp(x0, x1, 9), rtol=0, atol=1e-4)
    assert found.energy == pytest.approx(found.lower_bound, rel=1e-6)
    assert found.status == "converged"


@pytest.mark.parametrize("detach_score", [True, False])
def test_the_stein_metric_of_a_gaussian_is_straight_through_its_mean(detach_score):
    mean, direction = randn(5), randn(5, seed=1)
    score = GaussianMixtureScore(mean[None], 0.7)
    # with a larger weight a path around the mean becomes shorter
    metric = SteinScoreMetric(score, lam=0.05, detach_score=detach_score)
    x0, x1 = mean - direction, mean + 0.6 * direction
    bent = lerp(x0, x1, 9) + 0.1 * torch.linspace(0, math.pi, 9).sin()[:, None] * randn(5, seed=2)
    path = geodesic(metric, x0, x1, num_points=9, init=bent, rtol=1e-10).nodes
    unit = direction / direction.norm()
    along = (path - x0) @ unit
    assert_close(path - x0, along[:, None] * unit, rtol=0, atol=2e-3)
    assert (along[1:] > along[:-1]).all()


def test_the_stein_metric_of_a_gaussian_follows_its_geodesic_equation_elsewhere():
    """`x'' = -lam (x' H x') s / (1 + lam |s|^2)`: a paraboloid's geodesics, not straight."""
    score, lam = GaussianMixtureScore(torch.zeros(1, 2, dtype=torch.float64), 1.0), 4.0
    metric = SteinScoreMetric(score, lam=lam, detach_score=False)
    found = geodesic(metric, vector(-1, 0.5), vector(1, 1), num_points=65, init="lerp", rtol=1e-12)
    path, h = found.nodes, 1 / 64
    velocity = (path[2:] - path[:-2]) / (2 * h)
    acceleration = (path[2:] - 2 * path[1:-1] + path[:-2]) / h**2
    s = -path[1:-1]
    bend = lam * velocity.square().sum(1) / (1 + lam * s.square().sum(1))
    expected = bend[:, None] * s
    assert (acceleration - expected).norm() < 0.02 * expected.norm()


def test_a_metric_that_is_no_pullback():
    """Geodesics of the half-plane are arcs of circles about a point of the boundary."""
    found = geodesic(HalfPlane(), LEFT, RIGHT, num_points=33, init="lerp", rtol=1e-8)
    centre = (RIGHT.square().sum() - LEFT.square().sum()) / (2 * (RIGHT - LEFT)[0])
    radius = (found.path - vector(centre, 0.0)).norm(dim=1)
    assert_close(radius, radius[:1].expand(33), rtol=2e-3, atol=0)
    distance = float(hyperbolic_distance(LEFT, RIGHT))
    assert found.length == pytest.approx(distance, rel=2e-3)
    assert found.energy == pytest.approx(distance**2 / 2, rel=2e-3)
    assert found.lower_bound == 0.0


@every_problem
def test_tangent_normal_geodesics_lie_on_the_manifold(problem):
    found = solved(TangentNormalMetric, problem.name)
    assert found.status == "converged"
    assert float(problem.distance(found.path).mean()) <= 0.01
    assert float(length(found.path)) == pytest.approx(problem.length, rel=0.03)
    pace = speed(found.path)
    assert float(pace.std(correction=0) / pace.mean()) <= 0.2
    assert found.energy == pytest.approx(energies(found)[-1], rel=0.05)
    straight = lerp(problem.x0, problem.x1, 17)
    assert float(problem.distance(straight).mean()) > 0.1


@every_problem
def test_tangent_normal_geodesics_are_the_true_ones(problem):
    """Each point is near its place on the geodesic, not only near the manifold."""
    fractions = torch.linspace(0, 1, 17, dtype=torch.float64)
    points = solved(TangentNormalMetric, problem.name)(fractions)
    assert_close(points, problem.geodesic(fractions), rtol=0, atol=0.03)


@every_problem
@every_metric
def test_the_lower_bound_holds(problem, metric):
    found = solved(metric, problem.name)
    bound = metric(problem.score).lower_bound(problem.x0, problem.x1) if found.lower_bound else 0.0
    assert found.lower_bound == float(bound)
    assert found.lower_bound <= energies(found)[-1]
    assert found.lower_bound <= found.energy
    assert (found.lower_bound > 0) == issubclass(metric, PullbackMetric)


@every_problem
@every_metric
def test_a_solve_lowers_the_energy(problem, metric):
    found, bound = solved(metric, problem.name), metric(problem.score)
    history = energies(found)
    assert history[-1] < 0.1 * history[0]
    one_curve = energies(solve(bound, problem, solver=DIRECT))
    # the line search treats differences below the rounding of float32 as equal
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(one_curve))
    assert history[-1] < 1.01 * one_curve[-1]
    nodes = float(bound.energy(smooth(found.nodes, 2)).sum())
    assert nodes == pytest.approx(history[-1], rel=1e-6)
    factor = (len(found.curve) - 1) // 16
    fine = smooth(found.nodes, factor)
    assert found.energy == pytest.approx(float(bound.energy(fine).sum()), rel=1e-9)
    assert abs(found.energy_change) <= 0.05
    # the path and its length are in flat space
    assert torch.equal(found.curve, smooth(found.nodes, factor))
    assert found.length == pytest.approx(float(length(found.curve)), rel=1e-9)
    assert_close(found.path, resample(found.curve, 17))


@every_problem
@every_metric
def test_evaluations_to_reach_what_adam_reaches_in_500(problem, metric):
    metric, options = metric(problem.score), {"rtol": 0.0}
    goal = min(
        iterate.energy
        for lr in (1e-3, 1e-2)  # the papers' rate, and one that suits these problems better
        for iterate in iterates_of(
            metric, problem, solver=Adam(lr, lr / 10), max_evals=500, **options
        )
    )
    iterates = iterates_of(metric, problem, solver=DIRECT, max_evals=50, **options)
    assert min(iterate.energy for iterate in iterates) <= goal


def test_the_path_returned_is_the_best_one_seen():
    """Steps that are too large end on a bad path."""
    problem = PROBLEMS["circle in R^8"]
    metric = TangentNormalMetric(problem.score)
    found = solve(metric, problem, solver=Adam(0.5, 0.5), max_evals=12)
    history = energies(found)
    assert history[-1] > 2 * min(history)
    energy = float(metric.energy(smooth(found.nodes, 2)).sum())
    assert energy == pytest.approx(min(history), rel=1e-9)


@pytest.mark.parametrize("first", [1e-3, 0.1, 1.0, 30.0])
def test_line_searches_end_at_strong_wolfe_conditions(first):
    def along(size):
        energy = math.cosh(size - 2) + 0.3 * math.sin(3 * size)
        slope = math.sinh(size - 2) + 0.9 * math.cos(3 * size)
        return energy, slope

    energy0, slope0 = along(0.0)
    search = _strong_wolfe(vector(0)[:, None], vector(1)[:, None], energy0, slope0, first)
    asked = next(search)
    with pytest.raises(StopIteration) as end:
        while True:
            energy, slope = along(float(asked))
            asked = search.send((energy, vector(slope)[:, None]))
    size, energy, gradient = end.value.value
    assert along(size)[0] == energy and float(gradient) == along(size)[1]
    assert energy <= energy0 + 1e-4 * size * slope0
    assert abs(along(size)[1]) <= 0.9 * abs(slope0)


def test_the_number_of_stored_pairs_is_limited(monkeypatch):
    kept, apply = [], PathLBFGS._apply_inverse

    def spy(pairs, *more):
        kept.append(len(pairs))
        return apply(pairs, *more)

    monkeypatch.setattr(PathLBFGS, "_apply_inverse", staticmethod(spy))
    for size in (1, 3):
        kept.clear()
        problem = PROBLEMS["circle in R^8"]
        metric = TangentNormalMetric(problem.score)
        solve(metric, problem, solver=PathLBFGS(history_size=size), rtol=1e-9, max_evals=15)
        assert max(kept) == size


def test_the_inverse_hessian_is_the_bfgs_formula():
    """It equals the dense update, Nocedal and Wright (6.17), from the scaled initial matrix."""
    num, dim = 3, 2
    root = randn(num, num, seed=9)
    initial = root @ root.T + torch.eye(num)
    pairs = []
    for i in range(3):
        moved = randn(num, dim, seed=i)
        change = moved + 0.2 * randn(num, dim, seed=10 + i)
        pairs.append((moved, change, 1 / float((moved * change).sum())))
    dense = torch.kron(initial.contiguous(), torch.eye(dim, dtype=torch.float64))
    moved, change, rho = pairs[-1]
    dense = dense / (rho * change.flatten() @ dense @ change.flatten())
    identity = torch.eye(num * dim, dtype=torch.float64)
    for moved, change, rho in pairs:
        left = identity - rho * torch.outer(moved.flatten(), change.flatten())
        dense = left @ dense @ left.T + rho * torch.outer(moved.flatten(), moved.flatten())
    gradient = randn(num, dim, seed=20)
    actual = PathLBFGS._apply_inverse(pairs, initial.__matmul__, gradient)
    assert_close(actual.flatten(), dense @ gradient.flatten())


def test_evaluations_do_not_grow_with_the_number_of_points():
    problem = PROBLEMS["circle in R^8"]
    metric = TangentNormalMetric(problem.score)
    for num_points in (9, 33, 129):
        found = solve(metric, problem, num_points=num_points)
        assert found.status == "converged"
        assert found.num_evals <= 40
        assert float(length(found.path)) == pytest.approx(problem.length, rel=0.03)


class LargestTensor(TorchDispatchMode):
    """Records the largest number of entries of a tensor that an operation returns."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = (one.numel() for one in tree_leaves(out) if isinstance(one, torch.Tensor))
        self.entries = max([self.entries, *sizes])
        return out


def test_tensors_grow_in_proportion_to_the_number_of_points():
    largest = {}
    for num_points in (65, 513):
        with LargestTensor() as largest[num_points]:
            geodesic(BENT, P, Q, num_points=num_points, max_evals=4, rtol=0.0)
    assert largest[513].entries <= 8 * largest[65].entries


def test_points_alone_can_leap_and_the_finer_energy_shows_it():
    """Without sub-chords the energy of the points misses a leap across the circle."""
    problem = PROBLEMS["circle in R^8"]
    leaping = solve(ScoreJacobianMetric(problem.score), problem, num_quadrature=1, rtol=1e-6)
    honest = solve(ScoreJacobianMetric(problem.score), problem)
    assert leaping.energy > 2 * energies(leaping)[-1]
    assert honest.energy < 1.2 * energies(honest)[-1]
    assert honest.energy < leaping.energy


# --------------------------------------------------------------------------- what a solve returns


@every_metric
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_end_points_stay_bit_identical(metric, dtype):
    problem = circle(8)
    x0, x1 = problem.x0.to(dtype), problem.x1.to(dtype)
    found = geodesic(metric(problem.score), x0, x1, max_evals=6)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    assert found.path.dtype == state
    assert torch.equal(found.path[0], x0.to(state)) and torch.equal(found.path[-1], x1.to(state))
    assert torch.equal(found(0.0), found.path[0]) and torch.equal(found(1), found.path[-1])
    assert not found.path.requires_grad


def test_end_points_of_two_dtypes_lose_no_digits():
    x0, x1 = torch.zeros(3), randn(3)
    for found in (geodesic(EuclideanMetric(), x0, x1), geodesic(EuclideanMetric(), x1, x0).path):
        path = found if isinstance(found, torch.Tensor) else found.path.flip(0)
        assert path.dtype == torch.float64
        assert torch.equal(path[0], x1) and torch.equal(path[-1], x0.double())


@every_metric
def test_solves_are_deterministic(metric):
    problem = PROBLEMS["circle in R^8"]
    once, again = solve(metric(problem.score), problem), solve(metric(circle(8).score), problem)
    assert torch.equal(once.path, again.path)
    assert torch.equal(once([0.2, 0.7]), again([0.2, 0.7]))
    assert once.iterates == again.iterates
    assert (once.energy, once.num_evals, once.status) == (
        again.energy,
        again.num_evals,
        again.status,
    )


@every_metric
@pytest.mark.parametrize("solver", [PathLBFGS(), Adam(1e-2, 1e-3)], ids=["L-BFGS", "Adam"])
def test_reversed_end_points_give_the_reversed_path(metric, solver):
    problem = PROBLEMS["circle in R^2"]
    metric, options = metric(problem.score), {"init": "lerp", "solver": solver, "max_evals": 60}
    there = geodesic(metric, problem.x0, problem.x1, **options)
    back = geodesic(metric, problem.x1, problem.x0, **options)
    assert_close(back.path.flip(0), there.path, rtol=0, atol=1e-4)
    assert back.energy == pytest.approx(there.energy, rel=1e-4)


def test_points_of_any_shape():
    problem = PROBLEMS["circle in R^8"]
    flat = solve(TangentNormalMetric(problem.score), problem)
    score = GaussianMixtureScore(problem.score.means.view(-1, 2, 1, 4), 0.1)
    x0, x1 = problem.x0.view(2, 1, 4), problem.x1.view(2, 1, 4)
    found = geodesic(TangentNormalMetric(score), x0, x1, init="lerp")
    assert found.path.shape == (17, 2, 1, 4)
    assert_close(found.path.flatten(1), flat.path, rtol=0, atol=1e-9)
    assert found(0.3).shape == (2, 1, 4)
    assert found([0.3]).shape == (1, 2, 1, 4)


def test_calls_give_points_at_fractions_of_the_metric_length():
    found = geodesic(HalfPlane(), LEFT, RIGHT, num_points=33, init="lerp", rtol=1e-8)
    fractions = vector(0.0, 0.1, 0.25, 0.5, 0.77, 1.0)
    points = found(fractions)
    assert points.shape == (6, 2)
    expected = fractions * hyperbolic_distance(LEFT, RIGHT)
    assert_close(hyperbolic_distance(LEFT, points), expected, rtol=0, atol=2e-3)
    assert torch.equal(points[0], LEFT) and torch.equal(points[-1], RIGHT)
    assert torch.equal(found(0.25), points[2])
    assert torch.equal(found([0.25, 0.5]), points[2:4])


def test_calls_on_a_path_of_uneven_speed():
    """Points are crowded at the start, and the solve may not move them."""
    u = vector(0.0, 0.15, 0.35, 0.7, 1.0)[:, None]
    x0, x1 = randn(3), randn(3, seed=1)
    crowded = geodesic(
        EuclideanMetric(), x0, x1, num_points=5, init=x0 + u * (x1 - x0), max_evals=1
    )
    assert_close(crowded(vector(0.25, 0.6)), x0 + vector(0.25, 0.6)[:, None] * (x1 - x0))


@pytest.mark.parametrize("u", [-0.01, 1.01, [0.5, 2.0], math.nan])
def test_fractions_outside_the_path_are_refused(u):
    found = geodesic(EuclideanMetric(), randn(3), randn(3, seed=1))
    with pytest.raises(ValueError, match=r"`u` must lie in \[0, 1\], but got"):
        found(u)


@pytest.mark.parametrize("num_points", [2, 3])
def test_short_paths(num_points):
    found = geodesic(EuclideanMetric(), LEFT, RIGHT, num_points=num_points)
    assert found.status == "converged"
    assert found.path.shape == (num_points, 2)
    assert found.energy == pytest.approx(0.5 * float((RIGHT - LEFT).square().sum()), rel=1e-2)


@every_metric
def test_equal_end_points(metric):
    problem = PROBLEMS["circle in R^8"]
    found = geodesic(metric(problem.score), problem.x0, problem.x0, num_points=5)
    assert found.status == "converged"
    assert_close(found.path, problem.x0.expand(5, 8), rtol=0, atol=1e-9)
    assert_close(found([0.0, 0.4, 1.0]), problem.x0.expand(3, 8), rtol=0, atol=1e-9)
    assert found.energy < 1e-15  # rows of a matrix product may round differently


class Rounded(ScoreModel):
    """A score that computes in bfloat16, as a network in that dtype does."""

    def __init__(self, score):
        self.score, self.alpha, self.sigma = score, score.alpha, score.sigma

    def __call__(self, x):
        return self.score(x).to(torch.bfloat16).to(x.dtype)


def test_a_score_in_half_precision():
    problem = PROBLEMS["circle in R^8"]
    x0, x1 = problem.x0.float(), problem.x1.float()
    found = geodesic(TangentNormalMetric(Rounded(problem.score)), x0, x1, init="lerp")
    assert found.path.dtype == torch.float32
    assert found.status in ("converged", "max_evals")
    assert float(problem.distance(found.path).mean()) <= 0.02
    assert float(length(found.path)) == pytest.approx(problem.length, rel=0.05)


# -------------------------------------------------------------------------------- how a solve ends


def test_converged_when_the_energy_is_near_its_minimum():
    problem = PROBLEMS["circle in R^8"]
    loose, tight = (
        solve(TangentNormalMetric(problem.score), problem, rtol=rtol) for rtol in (1e-1, 1e-6)
    )
    assert loose.status == tight.status == "converged"
    assert loose.num_evals < tight.num_evals
    assert loose.energy > tight.energy


def test_converged_within_rtol_of_the_lower_bound():
    iterates = []
    found = geodesic(EuclideanMetric(), LEFT, RIGHT, init="lerp", callback=iterates.append)
    assert found.status == "converged"
    assert found.num_evals == len(iterates) == 3  # one on each curve: the start is a minimum


@pytest.mark.parametrize("max_evals", [1, 2, 5])
@pytest.mark.parametrize("solver", [PathLBFGS(), PathLBFGS(precondition=False), Adam()])
def test_evaluations_are_limited(max_evals, solver):
    problem = PROBLEMS["circle in R^8"]
    found = solve(TangentNormalMetric(problem.score), problem, max_evals=max_evals, solver=solver)
    assert (found.status, found.num_evals) == ("max_evals", max_evals)
    assert "raise it" in found.message
    assert found.path.isfinite().all()
    if max_evals == 1:
        assert torch.equal(found.nodes, lerp(problem.x0, problem.x1, 17))


class Failing(PullbackMetric):
    """An energy that is NaN after a number of evaluations."""

    def __init__(self, metric, num_good):
        self.metric, self.num_good, self.num_calls = metric, num_good, 0

    def embed(self, x):
        self.num_calls += x.requires_grad
        return self.metric.embed(x) * (torch.nan if self.num_calls > self.num_good else 1.0)


@pytest.mark.parametrize("solver", [DIRECT, Adam()], ids=["L-BFGS", "Adam"])
@pytest.mark.parametrize("num_good", [1, 4, 7])
def test_non_finite_values_stop_the_solve_at_the_best_path(num_good, solver):
    problem = PROBLEMS["circle in R^8"]
    metric = TangentNormalMetric(problem.score)

    class FailsOnce(Failing):
        def embed(self, x):
            return super().embed(x) if x.requires_grad else self.metric.embed(x)

    found = solve(FailsOnce(metric, num_good), problem, solver=solver)
    assert (found.status, found.num_evals) == ("nonfinite", num_good + 1)
    assert "best finite one" in found.message
    expected = solve(metric, problem, solver=solver, max_evals=num_good)
    if isinstance(solver, PathLBFGS):  # Adam's rates depend on the number of steps to come
        assert torch.equal(found.nodes, expected.nodes)
        assert found.energy == expected.energy
    assert math.isfinite(found.energy)
    assert found.energy <= float(metric.energy(refine(lerp(problem.x0, problem.x1, 17), 6)).sum())


def test_points_are_finite_if_the_model_stops_working():
    problem = PROBLEMS["circle in R^8"]
    metric = TangentNormalMetric(problem.score)
    found = solve(Failing(metric, 4), problem, solver=DIRECT)
    assert found.status == "nonfinite"
    assert torch.equal(found.path, solve(metric, problem, max_evals=4).path)
    assert math.isnan(found.energy) and math.isnan(found.length)
    points = found(torch.linspace(0, 1, 9))  # the fractions are of the flat length
    assert points.isfinite().all()
    assert_close(speed(points), speed(points).mean().expand(8), rtol=0.1, atol=0)


def test_a_model_that_never_works_gives_the_start():
    problem = PROBLEMS["circle in R^8"]
    found = solve(Failing(EuclideanMetric(), -1), problem)
    assert found.status == "nonfinite"
    assert torch.equal(found.nodes, lerp(problem.x0, problem.x1, 17))
    assert found.iterates == ()
    assert found(0.5).isfinite().all()


def test_a_region_without_finite_values():
    """The arc climbs to a height of 1.75; the model ends at 1.2."""
    metric, small_steps = Ceiling(), Adam(0.02, 0.02)
    found = geodesic(metric, LEFT, RIGHT, num_points=17, init="lerp", solver=small_steps)
    assert found.status == "nonfinite"
    assert found.num_evals > 5
    assert found.path.isfinite().all()
    assert float(found.path[:, 1].max()) <= 1.2
    start = HalfPlane().energy(refine(lerp(LEFT, RIGHT, 17), 6)).sum()
    assert found.energy < 0.95 * float(start)


def test_non_finite_values_between_the_points_are_a_status():
    """The optimised points miss a slit that the finer sampling hits."""

    class Slit(EuclideanMetric):
        def embed(self, x):
            inside = (x[:, :1] - 1 / 8).abs() < 0.01
            return torch.where(inside, torch.nan, x)

    found = geodesic(Slit(), vector(0, 0), vector(1, 0), num_points=3, init="lerp")
    assert found.status == "nonfinite"
    assert math.isnan(found.energy)
    assert found([0.0, 0.3, 1.0]).isfinite().all()


# ------------------------------------------------------------------------------ how a solve starts


def starts(x0, x1, num_points, **options):
    iterates = []
    geodesic(
        HalfPlane(), x0, x1, num_points=num_points, callback=iterates.append, max_evals=2, **options
    )
    return iterates[0].path


def test_starts():
    bent = slerp(LEFT, RIGHT, 7) * 1.2
    held = torch.cat([LEFT[None], bent[1:-1], RIGHT[None]])
    assert torch.equal(starts(LEFT, RIGHT, 7), lerp(LEFT, RIGHT, 7))
    assert torch.equal(starts(LEFT, RIGHT, 7, init=None), lerp(LEFT, RIGHT, 7))
    assert torch.equal(starts(LEFT, RIGHT, 7, init="slerp"), slerp(LEFT, RIGHT, 7))
    assert torch.equal(starts(LEFT, RIGHT, 7, init="lerp"), lerp(LEFT, RIGHT, 7))
    assert torch.equal(starts(LEFT, RIGHT, 7, init=bent), held)
    assert_close(starts(LEFT, RIGHT, 7, init=bent.float()), held)
    calls = []

    def start(x0, x1, num_points):
        calls.append((x0, x1, num_points))
        return bent

    assert torch.equal(starts(LEFT, RIGHT, 7, init=start), held)
    ((x0, x1, num_points),) = calls
    assert torch.equal(x0, LEFT) and torch.equal(x1, RIGHT) and num_points == 7


def test_the_start_that_leads_to_the_least_energy_is_kept():
    """The longer arc of a circle is a local minimum."""
    problem = circle(8, angle=2.5)
    metric = TangentNormalMetric(problem.score)
    x0, x1 = problem.geodesic(torch.tensor([0.0, 1.0]))
    angles = torch.linspace(0, 2.5 - 2 * math.pi, 17, dtype=x0.dtype)
    plane = torch.stack([x0, (x1 - math.cos(2.5) * x0) / math.sin(2.5)])
    long = torch.stack([angles.cos(), angles.sin()], 1) @ plane
    around, across = (solve(metric, problem, init=start, max_evals=45) for start in (long, "lerp"))
    assert across.energy < 0.5 * around.energy
    for order in ([long, "lerp"], ("lerp", long)):
        iterates = []
        found = solve(metric, problem, init=order, max_evals=90, callback=iterates.append)
        assert torch.equal(found.nodes, across.nodes)
        assert energies(found) == energies(across)
        counts = [iterate.num_evals for iterate in iterates]
        assert found.num_evals == around.num_evals + across.num_evals
        assert counts == sorted(counts) and counts[-1] == found.num_evals
    assert torch.equal(
        solve(metric, problem, init=[long]).nodes, solve(metric, problem, init=long).nodes
    )


def test_a_start_without_finite_energy_loses():
    class Wall(EuclideanMetric):
        def energy(self, path):
            above = path[1:, 1] > 0.5
            return super().energy(path) + torch.where(above, math.nan, 0.0)

    high = lerp(LEFT, RIGHT, 5) + vector(0, 1) * torch.tensor([0, 1, 1, 1, 0.0])[:, None]
    for order in ([high, "lerp"], ["lerp", high]):
        found = geodesic(Wall(), vector(-1, 0), vector(1, 0), num_points=5, init=order)
        assert found.status == "converged" and found.energy == pytest.approx(2.0)


def test_each_metric_of_a_sequence_starts_from_the_last_path():
    problem = PROBLEMS["circle in R^8"]
    levels = [
        TangentNormalMetric(GaussianMixtureScore(problem.score.means, sigma))
        for sigma in (0.4, 0.2, 0.1)
    ]
    iterates = []
    found = solve(levels, problem, max_evals=90, callback=iterates.append)
    path, spent, paths = "lerp", 0, []
    for i, metric in enumerate(levels):
        stage = solve(metric, problem, init=path, max_evals=(90 - spent) // (3 - i))
        path, spent = stage.nodes, spent + stage.num_evals
        paths.append(path)
    assert torch.equal(found.nodes, path)
    assert found.num_evals == iterates[-1].num_evals == spent <= 90
    assert energies(found) == energies(stage)
    assert (found.energy, found.lower_bound) == (stage.energy, stage.lower_bound)
    assert found.status == "converged"
    counts = [iterate.num_evals for iterate in iterates]
    assert counts == sorted(counts)
    for path in paths[:-1]:
        assert any(torch.equal(iterate.path, path) for iterate in iterates)


def test_continuation_finds_what_one_level_misses():
    """The end points are almost opposite, and the fine level is flat inside the circle."""
    problem = circle(8, angle=3.1)
    fine = TangentNormalMetric(problem.score)
    levels = [
        *(TangentNormalMetric(GaussianMixtureScore(problem.score.means, s)) for s in (0.5, 0.3)),
        fine,
    ]
    found = solve(levels, problem)
    assert float(problem.distance(found.path).mean()) <= 0.01
    assert found.energy <= solve(fine, problem).energy * 1.05


def test_a_sequence_stops_at_the_first_non_finite_value():
    problem = PROBLEMS["circle in R^8"]
    coarse = TangentNormalMetric(GaussianMixtureScore(problem.score.means, 0.3))
    fine = TangentNormalMetric(problem.score)
    found = solve([coarse, Failing(fine, 0), fine], problem)
    assert found.status == "nonfinite"
    assert torch.equal(found.nodes, solve(coarse, problem, max_evals=66).nodes)


# --------------------------------------------------------------------------- callbacks, arguments


@pytest.mark.parametrize("solver", [PathLBFGS(), Adam(1e-2)], ids=["L-BFGS", "Adam"])
def test_callbacks_see_every_iteration(solver):
    problem, iterates = PROBLEMS["circle in R^8"], []
    metric, options = TangentNormalMetric(problem.score), {"solver": solver, "max_evals": 30}
    found = solve(metric, problem, callback=iterates.append, **options)
    assert [(iterate.num_evals, iterate.energy) for iterate in iterates] == list(found.iterates)
    assert torch.equal(iterates[0].path, lerp(problem.x0, problem.x1, 17))
    counts = [iterate.num_evals for iterate in iterates]
    assert counts == sorted(set(counts))
    assert counts[0] == 1 and counts[-1] <= found.num_evals <= 30
    for iterate in iterates:
        assert iterate.path.shape == (17, 8)
        assert torch.equal(iterate.path[0], problem.x0)
        assert torch.equal(iterate.path[-1], problem.x1)
        energy = float(metric.energy(smooth(iterate.path, 2)).sum())
        assert iterate.energy == pytest.approx(energy, rel=1e-9)
    quiet = solve(metric, problem, **options)
    assert torch.equal(found.path, quiet.path)


def test_a_callback_cannot_change_the_path():
    problem = PROBLEMS["circle in R^8"]
    metric = TangentNormalMetric(problem.score)
    found = solve(metric, problem, callback=lambda iterate: iterate.path.zero_())
    assert torch.equal(found.path, solve(metric, problem).path)


def test_an_exception_from_a_callback_reaches_the_caller():
    def callback(iterate):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        geodesic(HalfPlane(), LEFT, RIGHT, init="lerp", callback=callback)


@pytest.mark.parametrize("solver", [PathLBFGS(), Adam(1e-2)], ids=["L-BFGS", "Adam"])
def test_arguments_are_not_changed(solver):
    problem = circle(8)
    x0, x1 = problem.x0.clone().requires_grad_(), problem.x1.clone().requires_grad_()
    init = lerp(problem.x0, problem.x1, 17).requires_grad_()
    means = problem.score.means.clone()
    metrics = [TangentNormalMetric(problem.score)]
    found = geodesic(metrics, x0, x1, init=init, solver=solver, max_evals=9)
    found.path.zero_()
    assert len(metrics) == 1
    assert torch.equal(x0, problem.x0) and torch.equal(x1, problem.x1)
    assert torch.equal(init, lerp(problem.x0, problem.x1, 17))
    assert torch.equal(problem.score.means, means)
    assert x0.grad is None and init.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_solves_inside_no_grad(mode):
    problem = PROBLEMS["circle in R^8"]
    metric = TangentNormalMetric(problem.score)
    with mode():
        found = solve(metric, problem, max_evals=9)
    assert torch.equal(found.path, solve(metric, problem, max_evals=9).path)


class Descent(Solver):
    """Gradient descent, a solver that is defined outside the package."""

    def iterate(self, points, flat_energy, max_evals):
        while True:
            energy, gradient = yield points
            yield Iteration(points, energy, excess=float(0.1 * gradient.square().sum()))
            points = points - 0.05 * gradient


def test_a_custom_solver():
    bent = lerp(LEFT, RIGHT, 3) + vector(0, 1, 0)[:, None]
    found = geodesic(
        EuclideanMetric(), LEFT, RIGHT, num_points=3, init=bent, solver=Descent(), rtol=1e-4
    )
    assert found.status == "converged"
    assert_close(found.path, lerp(LEFT, RIGHT, 3), rtol=0, atol=0.03)


METRIC = EuclideanMetric()
INVALID = [
    ({"metric": []}, r"`metric` must be a Metric or a sequence of them, but got \[\]"),
    ({"metric": "stein"}, "`metric` must be a Metric .*but got 'stein'"),
    ({"metric": None}, "`metric` must be a Metric .*but got None"),
    ({"metric": [METRIC, 3]}, "`metric` must be a Metric or a sequence of them"),
    ({"x1": torch.zeros(3)}, r"points of one shape, but got \(2,\) and \(3,\)"),
    ({"x0": torch.tensor(0.0), "x1": torch.tensor(1.0)}, r"points of one shape, but got \(\)"),
    ({"x0": vector(math.nan, 0)}, "`x0` must be a floating-point tensor of finite values"),
    ({"x1": vector(math.inf, 0)}, "`x1` must be a floating-point tensor of finite values"),
    ({"x1": torch.ones(2, dtype=torch.long)}, "`x1` must be a floating-point tensor"),
    ({"num_points": 1}, "`num_points` must be a whole number of at least 2, but got 1"),
    ({"num_quadrature": 0}, "`num_quadrature` must be a whole number of at least 1, but got 0"),
    ({"max_evals": 0}, "`max_evals` must be a whole number of at least 1, but got 0"),
    ({"rtol": -1e-3}, "`rtol` must not be negative, but got -0.001"),
    ({"rtol": math.nan}, "`rtol` must be a finite number, but got nan"),
    ({"init": "arc"}, "`init` must be 'slerp', 'lerp', a path or a callable, but got 'arc'"),
    ({"init": []}, "`init` must name at least one start, but got an empty list"),
    ({"init": ["lerp", "arc"]}, "`init` must be 'slerp', .* a callable, but got 'arc'"),
    ({"init": 3}, "`init` must be 'slerp', 'lerp', a path or a callable, but got 3"),
    ({"init": torch.zeros(1, 17, 2)}, r"`init` must be \(17, 2\), but got \(1, 17, 2\)"),
    ({"init": torch.zeros(4, 2)}, r"`init` must be \(17, 2\), but got \(4, 2\)"),
    ({"init": lambda x0, x1, k: lerp(x0, x1, 5)}, r"`init` must be \(17, 2\), but got \(5, 2\)"),
    ({"init": torch.full((17, 2), math.nan)}, "`init` must be finite"),
    ({"x1": -LEFT, "init": "slerp"}, "opposite directions"),
]


@pytest.mark.parametrize("options, message", INVALID)
def test_bad_arguments(options, message):
    arguments = {"metric": METRIC, "x0": LEFT, "x1": RIGHT} | options
    with pytest.raises(ValueError, match=message):
        geodesic(**arguments)


@pytest.mark.parametrize(
    "solver, options, message",
    [
        (
            PathLBFGS,
            {"history_size": 0},
            "`history_size` must be a whole number of at least 1, but got 0",
        ),
        (Adam, {"lr": 0.0}, "`lr` >= `final_lr` > 0 must hold, but got 0.0 and 0.0001"),
        (Adam, {"lr": 1e-4, "final_lr": 1e-3}, "`lr` >= `final_lr` > 0 must hold"),
        (Adam, {"final_lr": 0.0}, "`lr` >= `final_lr` > 0 must hold"),
        (Adam, {"lr": math.nan}, "`lr` must be a finite number, but got nan"),
    ],
)
def test_bad_hyperparameters(solver, options, message):
    with pytest.raises(ValueError, match=message):
        solver(**options)


USES = [
    (lambda: geodesic(3, P, Q), "`metric` must be a Metric or a sequence of them, but got 3"),
    (lambda: geodesic([], P, Q), "`metric` must be a Metric"),
    (lambda: geodesic(PLAIN, [0.0], [1.0]), "`x0` must be a floating-point tensor.* got list"),
    (
        lambda: geodesic(PLAIN, P, Q.numpy()),
        "`x1` must be a floating-point tensor.* got ndarray",
    ),
    (lambda: geodesic(PLAIN, P[:0], Q[:0]), r"points of one shape, but got \(0,\)"),
    (lambda: geodesic(PLAIN, P, Q, num_points=2.5), "`num_points` must be a whole number"),
    (lambda: geodesic(PLAIN, P, Q, max_evals=INF), "`max_evals` must be a whole .* got inf"),
    (lambda: geodesic(PLAIN, P, Q, rtol="x"), "`rtol` must be a finite number, but got 'x'"),
    (
        lambda: geodesic(PLAIN, P, Q, solver=Adam),
        "`solver` must be a Solver, but got the class",
    ),
    (lambda: geodesic(PLAIN, P, Q, callback=3), "`callback` must be a function, but got int"),
    (lambda: geodesic(PLAIN, P, Q, init=lambda *_: None), "`init` must return a path"),
    (lambda: geodesic(BENT, P[:2], Q[:2]), r"`x` must be \(K, 3"),
    (lambda: geodesic(PLAIN, P, Q)("x"), r"`u` must be numbers in \[0, 1\], but got 'x'"),
    (lambda: geodesic(PLAIN, P, Q)(NAN_), r"`u` must lie in \[0, 1\].* got nan"),
    (
        lambda: geodesic(PLAIN, P, Q)(torch.zeros(2, 2)),
        r"`u` must be one number or \(U,\), but got \(2, 2\)",
    ),
    (lambda: geodesics(PLAIN, [P], [Q]), "`x0` must be a floating-point tensor.* got list"),
    (lambda: geodesics(PLAIN, MEANS[:0], MEANS[:0]), r"must be points \(P, \*shape\)"),
    (lambda: PathLBFGS(history_size=1.5), "`history_size` must be a whole number .* got 1.5"),
    (lambda: Adam(lr="x"), "`lr` must be a finite number, but got 'x'"),
]


@pytest.mark.parametrize(("use", "message"), USES)
def test_uses_that_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()
