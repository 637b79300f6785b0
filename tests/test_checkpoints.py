"""Solves that go on where they were interrupted, and geodesics as files."""

import math
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from models import randn, vector
from problems import circle
from safetensors import safe_open
from safetensors.torch import save_file
from torch.testing import assert_close

from riemannian_diffusion import (
    Adam,
    EuclideanMetric,
    GaussianMixtureScore,
    Geodesic,
    PathLBFGS,
    Solver,
    SteinScoreMetric,
    TangentNormalMetric,
    geodesic,
    geodesics,
    length,
    lerp,
    slerp,
)
from riemannian_diffusion.geodesics import Iteration, Problem, solving


class Descent(Solver):
    """Gradient descent: a solver from outside the package that gives no state."""

    def iterate(self, points, flat_energy, max_evals):
        while True:
            energy, gradient = yield points
            yield Iteration(points, energy)
            points = points - 1e-4 * gradient


CIRCLE = circle(6, angle=2.0)


def metrics():
    coarse = GaussianMixtureScore(CIRCLE.score.means, 0.3)
    return [TangentNormalMetric(coarse), TangentNormalMetric(CIRCLE.score)]


def ends():
    u = torch.tensor([0.0, 0.1, 0.2])
    return CIRCLE.geodesic(u), CIRCLE.geodesic(u + torch.tensor([1.0, 0.5, 0.02]))


CASES = {
    "L-BFGS": {"metric": metrics()[1], "solver": PathLBFGS(), "max_evals": 25},
    "plain L-BFGS": {"metric": metrics()[1], "solver": PathLBFGS(3, False), "max_evals": 15},
    "Adam": {"metric": metrics()[1], "solver": Adam(1e-2, 1e-3), "max_evals": 9},
    "no state": {"metric": metrics()[1], "solver": Descent(), "max_evals": 8},
    "metrics and starts": {"metric": metrics(), "init": ["lerp", "slerp"], "max_evals": 40},
    "no pullback": {"metric": SteinScoreMetric(CIRCLE.score), "max_evals": 9},
    "coarse curves": {"metric": metrics()[1], "num_points": 17, "max_evals": 80},
    "numbers of points": {"metric": metrics()[1], "num_points": [5, 2, 9], "max_evals": 12},
}


class Interrupted(Exception):
    pass


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.path, other.path) and torch.equal(one.arc, other.arc)
        assert torch.equal(one.curve, other.curve)
        assert one.to_tensors()[1] == other.to_tensors()[1]


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_interrupted_at_every_iteration_it_ends_on_the_same_paths(options, tmp_path):
    options = {"num_points": 7} | options
    metric = options.pop("metric")
    expected = geodesics(metric, *ends(), **options)
    file, resumed, seen = tmp_path / "solve.safetensors", 0, []

    def interrupt(iterate):
        seen.append((iterate.pair, iterate.num_evals, iterate.energy))
        raise Interrupted

    while True:
        try:
            found = geodesics(metric, *ends(), callback=interrupt, checkpoint=file, **options)
            break
        except Interrupted:
            resumed += 1
            assert resumed < 500
    assert resumed > 5
    assert_same(found, expected)
    assert_same(geodesics(metric, *ends(), checkpoint=file, **options), expected)  # no more to do
    assert len(set(seen)) == len(seen)  # no iteration twice
    assert [path.name for path in tmp_path.iterdir()] == ["solve.safetensors"]


def test_a_finished_checkpoint_costs_no_evaluation(tmp_path):
    calls = []

    class Counting(TangentNormalMetric):
        def embed(self, x, where=None):
            calls.append(len(x))
            return super().embed(x, where)

    file, metric = tmp_path / "solve", Counting(CIRCLE.score)
    options = {"num_points": 5, "max_evals": 6, "checkpoint": file}
    first = geodesic(metric, CIRCLE.x0, CIRCLE.x1, **options)
    calls.clear()
    assert_same([geodesic(metric, CIRCLE.x0, CIRCLE.x1, **options)], [first])
    assert calls == []


CHANGES = {
    "ends": {"x1": CIRCLE.x0 + 0.1},
    "starts": {"init": "slerp"},
    "number of starts": {"init": ["lerp", "slerp"]},
    "metric": {"metric": TangentNormalMetric(CIRCLE.score, normal_weight=50)},
    "num_quadrature": {"num_quadrature": 3},
    "solver": {"solver": PathLBFGS(5)},
    "rtol": {"rtol": 1e-2},
    "max_evals": {"max_evals": 3},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_checkpoint_of_another_problem_is_refused(name, tmp_path):
    problem = {"metric": TangentNormalMetric(CIRCLE.score), "x0": CIRCLE.x0, "x1": CIRCLE.x1}
    options = problem | {"num_points": 5, "max_evals": 4, "checkpoint": tmp_path / "solve"}
    geodesic(**options)
    before = (tmp_path / "solve").read_bytes()
    with pytest.raises(ValueError, match=f"belongs to another problem: its .*{name}"):
        geodesic(**options | CHANGES[name])
    assert (tmp_path / "solve").read_bytes() == before


def test_what_is_no_checkpoint_is_refused(tmp_path):
    file = tmp_path / "solve"
    file.write_text("no tensors")
    with pytest.raises(ValueError, match="is no checkpoint of a solve: give another path"):
        geodesic(EuclideanMetric(), CIRCLE.x0, CIRCLE.x1, checkpoint=file)
    assert file.read_text() == "no tensors"
    options = {"max_evals": 2, "checkpoint": file}
    file.unlink()
    geodesic(EuclideanMetric(), CIRCLE.x0, CIRCLE.x1, **options)
    with safe_open(file, "pt") as old:
        tensors = {name: old.get_tensor(name) for name in old.keys()}  # noqa: SIM118
        metadata = {k: v for k, v in old.metadata().items() if k != "format"}
    save_file(tensors, file, metadata)
    with pytest.raises(ValueError, match="was written by another version"):
        geodesic(EuclideanMetric(), CIRCLE.x0, CIRCLE.x1, **options)


SCRIPT = """
import sys, time
import torch
from problems import circle
from riemannian_diffusion import TangentNormalMetric, geodesics

class Slow(TangentNormalMetric):
    def embed(self, x, where=None):
        time.sleep(0.02)
        return super().embed(x, where)

problem = circle(6, angle=2.0)
u = torch.tensor([0.0, 0.1])
x0, x1 = problem.geodesic(u), problem.geodesic(u + torch.tensor([1.0, 0.5]))
print("ready", flush=True)
found = geodesics(Slow(problem.score), x0, x1, max_evals=40, rtol=1e-8, checkpoint=sys.argv[1])
torch.save([(one.path, one.arc, one.energy) for one in found], sys.argv[2])
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_on_the_same_paths(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def start(checkpoint, output):
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(checkpoint), str(output)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    assert start(tmp_path / "whole", tmp_path / "expected").wait() == 0
    rng, kills = random.Random(0), 0
    for _ in range(200):
        process = start(tmp_path / "solve", tmp_path / "found")
        process.stdout.readline()
        time.sleep(rng.uniform(0.05, 0.4))
        if kills < 10 and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        if process.wait() == 0:
            break
    assert kills >= 5
    expected, found = torch.load(tmp_path / "expected"), torch.load(tmp_path / "found")
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
        assert one[2] == other[2]


# ------------------------------------------------------------------------- problems, step by step


def test_problems_are_solved_step_by_step():
    metric, problems = metrics()[1], []
    for pair, (x0, x1, num) in enumerate(zip(*ends(), (4, 6, 5), strict=True)):
        problems.append(Problem.between(x0, x1, num_points=num, init=["lerp", "slerp"], pair=pair))
    seen, steps = [], solving(metric, problems, max_evals=12)
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            found = end.value
            break
    for i, one in enumerate(found):
        mine = [iterate for iterate in seen if iterate.pair == i]
        assert [m.num_evals for m in mine if not m.iteration] == list(range(1, one.num_evals + 1))
        records = [(m.num_evals, m.energy) for m in mine if m.iteration]
        assert set(one.iterates) <= set(records)
        assert all(len(m.path) == len(one.path) for m in mine)
        options = {"num_points": len(one.path), "init": ["lerp", "slerp"], "max_evals": 12}
        alone = geodesic(metric, problems[i].x0, problems[i].x1, **options)
        assert_close(one.path, alone.path, rtol=1e-9, atol=1e-9)


def test_each_pair_may_have_its_own_number_of_points():
    x0, x1 = ends()
    found = geodesics(EuclideanMetric(), x0, x1, num_points=[3, 9, 2])
    assert [len(one.path) for one in found] == [3, 9, 2]


def test_ends_with_the_index_of_one_pair_are_kept_apart():
    x0, x1 = ends()
    problems = [Problem.between(a, b, num_points=5) for a, b in zip(x0, x1, strict=True)]
    found = _drain(solving(metrics()[1], problems, max_evals=10))
    expected = geodesics(metrics()[1], x0, x1, num_points=5, max_evals=10)
    for one, other in zip(found, expected, strict=True):
        assert_close(one.path, other.path, rtol=1e-9, atol=1e-9)


def _drain(steps):
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Problem(randn(3), randn(4), [randn(2, 3)]), "points of one shape"),
        (lambda: Problem(randn(3), randn(3), []), "at least one start"),
        (lambda: Problem(randn(3), randn(3), [randn(5, 4)]), r"`init` must be at least 2 points"),
        (lambda: Problem(randn(3), randn(3), [randn(1, 3)]), r"`init` must be at least 2 points"),
        (lambda: Problem(randn(3), randn(3), [randn(2, 3)], -1), "`pair` must be a whole number"),
    ],
)
def test_bad_problems(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --------------------------------------------------------------------------- geodesics by hand


def test_a_geodesic_from_its_path_alone():
    path = slerp(randn(3), randn(3, seed=1), 9)
    found = Geodesic(path, energy=2.0)
    assert found.status == "converged" and found.iterates == () and found.lower_bound == 0
    assert found.length == pytest.approx(float(length(path)))
    points = found(torch.linspace(0, 1, 5))
    assert torch.equal(points[0], path[0]) and torch.equal(points[-1], path[-1])
    assert math.isnan(Geodesic(path, energy=math.nan).length)
    curve, arc = lerp(path[0], path[-1], 3), vector(0.0, 3.0, 4.0)
    paced = Geodesic(path, 1.0, 0.5, 7, "max_evals", [[1, 2.0]], curve, arc)
    assert_close(paced(0.375), (curve[0] + curve[1]) / 2)
    assert paced.length == 4 and paced.iterates == ((1, 2.0),) and "raise it" in paced.message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_geodesics_come_back_from_files_bit_for_bit(dtype, tmp_path):
    import json

    from safetensors.torch import load_file, save_file

    solved = geodesic(
        metrics()[1], CIRCLE.x0.to(dtype), CIRCLE.x1.to(dtype), num_points=5, max_evals=5
    )
    for one in (solved, Geodesic(solved.path, energy=math.inf, status="nonfinite")):
        tensors, values = one.to_tensors()
        save_file(tensors, tmp_path / "one.safetensors")
        back = Geodesic.from_tensors(
            load_file(tmp_path / "one.safetensors"), json.loads(json.dumps(values))
        )
        assert_same([back], [one])
        assert torch.equal(back([0.2, 0.7]), one([0.2, 0.7]))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"path": randn(3)}, r"`path` must be at least 2 points \(K, \*shape\), but got \(3,\)"),
        ({"path": randn(1, 3)}, "`path` must be at least 2 points"),
        ({"status": "done"}, "`status` must be one of .* but got 'done'"),
        ({"arc": vector(0, 1)}, "`arc` is the length along `curve`: give both"),
        ({"curve": randn(4, 3), "arc": vector(0, 1)}, r"`curve` must be \(N, \*shape\) and `arc`"),
        ({"curve": randn(4, 2)}, r"`curve` must be \(N, \*shape\)"),
    ],
)
def test_bad_geodesics(fields, message):
    with pytest.raises(ValueError, match=message):
        Geodesic(**{"path": randn(2, 3), "energy": 1.0} | fields)
