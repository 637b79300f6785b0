"""The main results of the benchmarks, tested as inequalities at reduced size."""

from __future__ import annotations

import math
from pathlib import Path

import adaptation
import analogies
import batch
import cost
import earlier
import geometries
import growth
import memory
import precision
import pytest
import retiming
import scale
import scenes
import solvers
from tables import select

pytestmark = pytest.mark.slow
LATTICE = ["--scores", "exact", "--samples", "lattice"]
DEFAULT = "both starts, then finer"


def one(rows, **where):
    """The only row with these values."""
    (row,) = select(rows, **where)
    return row


def by_method(rows, **where):
    """The rows of all methods with these values."""
    return {row["method"]: row for row in select(rows, **where)}


def by_geometry(rows, manifold):
    """The measures of all geometries on a manifold."""
    found = (row for row in rows if row["manifold"] == manifold and "status" in row)
    return {(row["geometry"], row["space"]): row for row in found}


def test_only_a_roadmap_finds_the_geodesic_if_a_straight_start_leaps():
    names = ["C-shape", "swiss roll in R^20"]
    rows = geometries.main([*LATTICE, "--manifolds", *names])
    for name in names:
        found = by_geometry(rows, name)
        del found["roadmap", "clean"], found["both starts, then finer", "clean"]
        best = found.pop(("relax", "clean"))
        assert len(found) > 15 and all(r["error"] > 10 * best["error"] for r in found.values())
        assert best["dist"] < 0.01 and best["jump"] < 1.2 and best["points"] < 30_000
        assert found["slerp", "noise"]["jump"] > 2 * best["jump"]


def test_on_smooth_manifolds_the_metric_is_enough():
    names = ["circle in R^32", "uneven circle in R^8", "flat torus in R^6", "3-sphere in R^100"]
    options = ["--geometries", "straight line", "tangent-normal", "Fisher-Rao"]
    rows = geometries.main([*LATTICE, "--manifolds", *names, *options])
    for name in names:
        found = by_geometry(rows, name)
        clean = found["tangent-normal", "clean"]
        assert clean["own pace"] < 0.01 and clean["jump"] < 1.05
        assert clean["dist"] < 0.01 and abs(clean["len"] - 1) < 0.01
        assert found["straight line", "clean"]["error"] > 20 * clean["error"]
        assert found["Fisher-Rao", "clean"]["error"] > 20 * clean["error"]


def test_relaxed_paths_are_best_on_curves_that_were_set_aside():
    """On every curve that is evenly sampled, with fewer points of the network and no gradient."""
    options = ["--held-out", "--scores", "exact", "--samples", "lattice"]
    rows = geometries.main([*options, "--geometries", "both starts, then finer", "relax"])
    rows = [row for row in rows if "status" in row]
    found = {(row["manifold"], row["geometry"]): row for row in rows}
    assert len(found) == 12
    for manifold in {manifold for manifold, _ in found}:
        solved, relaxed = (found[manifold, n] for n in ("both starts, then finer", "relax"))
        assert relaxed["error"] < min(solved["error"], 0.005)
        assert relaxed["points"] < solved["points"] and relaxed["with gradient"] == 0
        assert relaxed["jump"] < 1.01


def test_a_learned_score_finds_the_geodesic_too(tmp_path):
    pytest.importorskip("matplotlib")
    options = ["--scores", "learned", "--samples", "0", "--manifolds", "C-shape"]
    options += ["--geometries", "slerp", DEFAULT, "--figures", str(tmp_path)]
    found = by_geometry(geometries.main(options), "C-shape")
    best = found[DEFAULT, "clean"]
    assert best["error"] < 0.1 * found["slerp", "noise"]["error"] and best["dist"] < 0.1
    assert (tmp_path / "C-shape.png").stat().st_size > 5000


def test_scenes():
    rows = scenes.main(["--pairs", "6", "--methods", "slerp", "tangent_normal"])
    means = by_method(rows, pair="mean")
    slerp, default = means["slerp"], means["tangent_normal"]
    assert default["jump"] < 0.5 * slerp["jump"] and default["error"] < 0.7 * slerp["error"]


def test_precision():
    rows = precision.main(["--points", "5", "--dtypes", "float32", "bfloat16", "float16"])
    wide, half, brain = (one(rows, network=name) for name in ("float32", "float16", "bfloat16"))
    assert wide["chords"] < 1e-4 and abs(wide["solved"]) < 1e-3
    assert half["chords"] < 0.02 and half["across"] < 1 and abs(half["solved"]) < 5e-3
    assert half["chords"] < 0.3 * brain["chords"]


def test_memory_does_not_grow_with_the_points_in_batches_of_one():
    options = ["--points", "5", "17", "--max-batch-sizes", "0", "1", "--size", "32"]
    rows = memory.main(options)

    def ratio(size):
        few, many = (one(rows, max_batch_size=size, points=num)["GiB"] for num in (5, 17))
        return many / few

    assert ratio(0) > 2 and ratio(1) < 1.5


def test_cost_in_operations():
    """Chords take a forward and a backward pass; products take several times as much."""
    rows = cost.main(["--repeats", "1", "--points", "3"])
    work = {row["row"]: row["work"] for row in rows}
    assert work["forward"] == 1
    assert 1.5 < work["energy, gradient"] < 2.5
    assert 1 < work["in chunks of 1"] - work["energy, gradient"] + 0.5 < 2  # one more forward pass
    assert work["forward-mode energy"] > 2 * work["energy, gradient"]


def test_evaluations_are_constant_and_memory_is_linear():
    rows = growth.main(["--points", "17", "129", "--pairs", "4", "16", "--max-evals", "200"])
    few, many = (row for row in rows if "points" in row)
    coarse = 3  # 129 points have three more coarse curves than 17, each with its first evaluation
    assert many["evals"] <= few["evals"] + coarse and many["plain evals"] > 3 * few["plain evals"]
    assert many["KiB each"] < 1.1 * few["KiB each"]
    few, many = (row for row in rows if "pairs" in row)
    assert few["converged"] == 4 and many["converged"] == 16
    assert many["most evals"] <= few["most evals"] + 2 and many["KiB each"] < 1.1 * few["KiB each"]


def test_side_by_side():
    rows = scale.main(["--points", "3", "--pairs", "1", "2", "--sizes", "8", "16"])
    assert len(select(rows, pairs=2)) == 2


def test_a_batch_is_measured_and_estimated():
    short = ["frames", "3", "steps", "4", "max-evals", "2"]
    command = ["--pairs", "2", "--metrics", "slerp", "tangent_normal", "--options", *short]
    overhead, passes, estimate = batch.main([*command, "--seconds-per-pass", "0.01"])
    assert 0 < overhead["network"] < overhead["seconds"] and overhead["CPU overhead"] > 0
    assert passes["forward"] > passes["reverse"] > 0 and passes["reverse over forward"] > 0
    points = passes["forward"] + passes["reverse over forward"] * passes["reverse"]
    assert math.isclose(estimate["seconds per pair"], 0.01 * points)


def test_the_papers_recipe_takes_ten_times_the_evaluations():
    published = select(solvers.main([]), rate=1e-3)
    assert all(row["ratio of evals"] > 10 for row in published) and len(published) == 5


def test_a_version_compared_with_itself():
    here = Path(__file__).parents[1]
    row, mean = earlier.main(["--earlier", str(here), "--pairs", "tuning 3"])
    assert row["passes"] == row["earlier passes"] == mean["passes"]
    assert row["curve"] == row["frames"] == 0 and row["step"] == row["earlier step"]


def test_analogies():
    rows = select(analogies.main(["--num", "3"]), **{"mean over": "all"})
    errors = {name: row["error"] for name, row in by_method(rows).items()}
    assert errors["coded"] < 0.02 and errors["pipeline"] < 0.8 * errors["C"]


def test_retiming_makes_changes_even():
    rows = retiming.main(["--pairs", "1", "--steps", "20"])
    assert len(rows) == 8
    for row in rows:
        assert row["worst PDV"] < 0.2 and row["worst PPL"] < 1.05, row


def test_fitting_lowers_the_error_of_the_usual_inversion():
    options = ["--pairs", "1", "--steps", "10", "--embedding-steps", "30", "--lora-steps", "40"]
    rows = adaptation.main(options)
    where = {"guidance": 1.0, "target": "decoded", "strength": 1.0, "iterations": 0}
    plain, both = (one(rows, variant=name, **where)["error"] for name in ("plain", "both"))
    assert both < plain
