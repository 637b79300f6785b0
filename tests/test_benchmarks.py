"""The headlines of the benchmarks, as inequalities at reduced size."""

from __future__ import annotations

import importlib

import pytest

pytestmark = pytest.mark.slow
WAYS = ["--methods", "straight", "slerp", "stein", "score_jacobian", "clean", "both starts"]


@pytest.fixture
def load(monkeypatch):
    from pathlib import Path

    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module


def test_where_a_straight_start_leaps_only_a_roadmap_finds_the_way(load):
    names = ["C-shape", "swiss roll in R^20"]
    table = load("synthetic").main(["--problems", *names, *WAYS])
    for name in names:
        rms = {method: table[name, method]["rms"] for method in WAYS[1:]}
        found = table[name, "both starts"]
        assert all(rms[method] > 10 * rms["both starts"] for method in WAYS[1:-1])
        assert found["worst"] < 0.01 and found["jump"] < 1.2 and found["evals"] < 400
        assert table[name, "slerp"]["jump"] > 2 * found["jump"]


def test_on_smooth_manifolds_the_metric_is_enough(load):
    names = ["circle in R^32", "uneven circle in R^8", "flat torus in R^6", "3-sphere in R^100"]
    table = load("synthetic").main(["--problems", *names, *WAYS])
    for name in names:
        clean, slerp = table[name, "clean"], table[name, "slerp"]
        assert clean["rms"] < 0.3 * slerp["rms"] and clean["jump"] < slerp["jump"]
        assert clean["worst"] < 0.01 and abs(clean["len"] - 1) < 0.01
        assert table[name, "straight"]["rms"] > 20 * clean["rms"]


def test_a_learned_score_finds_the_way_too(load, tmp_path):
    pytest.importorskip("matplotlib")
    options = ["--score", "learned", "--problems", "C-shape", *WAYS, "--figures", str(tmp_path)]
    table = load("synthetic").main(options)
    found = table["C-shape", "both starts"]
    assert found["rms"] < 0.1 * table["C-shape", "slerp"]["rms"] and found["worst"] < 0.1
    assert (tmp_path / "C-shape.png").stat().st_size > 5000


def test_scenes(load):
    means = load("scenes").main(["--pairs", "6", "--methods", "slerp", "tangent_normal"])
    slerp, default = means["slerp"], means["tangent_normal"]
    assert default["jump"] < 0.5 * slerp["jump"] and default["truth"] < 0.7 * slerp["truth"]


def test_precision(load):
    table = load("precision").main(["--points", "5", "--dtypes", "float32", "bfloat16", "float16"])
    wide, half, brain = (table[5, name] for name in ("float32", "float16", "bfloat16"))
    assert wide["chords"] < 1e-4 and abs(wide["solved"]) < 1e-3
    assert half["chords"] < 0.02 and half["across"] < 1 and abs(half["solved"]) < 5e-3
    assert half["chords"] < 0.3 * brain["chords"]


def test_memory_does_not_grow_with_the_points_one_at_a_time(load):
    options = ["--points", "5", "17", "--max-batch-sizes", "0", "1", "--size", "32"]
    cells = load("memory").main(options)
    assert cells[False, 0, 17] > 2 * cells[False, 0, 5]
    assert cells[False, 1, 17] < 1.5 * cells[False, 1, 5]


def test_cost(load):
    ratios = load("cost").main(["--repeats", "1", "--points", "3"])
    labels = {label for *_, label in ratios}
    assert len(ratios) == 7 and {"forward", "energy, gradient", "forward-mode energy"} < labels


def test_side_by_side(load):
    tables = load("scale").main(["--points", "3", "--pairs", "1", "2", "--sizes", "8", "16"])
    assert tables["sizes"][16] > tables["sizes"][8] > 0
    passes = tables["on paper"]
    assert passes["forward"] > 2 * passes["reverse"] > 0 and 0.7 < passes["tera"] < 0.9


def test_the_papers_recipe_takes_ten_times_the_evaluations(load):
    published = load("solvers").main([])[::2]  # every second row is at ten times the rate
    assert all(evals > 10 for evals, *_ in published) and len(published) == 5


def test_guidance_along_the_manifold_keeps_thick_data(load):
    guidance = load("guidance")
    methods = ["--methods", "plain", "rescale", "manifold"]
    curves = guidance.main([*methods, "--samples", "100"])
    name = "concentric circles, spread 0.06"
    plain, rescaled, ours = (curves[name, method] for method in methods[1:])
    assert ours[7][1] < 0.6 * plain[7][1] and ours[7][0] > plain[1][0]
    for other in (plain, rescaled):
        ratios, short = guidance.ratios_at_equal(ours, other, 0.002)
        assert max(ratios) < 1.02 and not short


def test_distances_at_equal_probability(load):
    ratios_at_equal = load("guidance").ratios_at_equal
    other = [(0.5, 1.0), (0.6, 2.0), (0.8, 4.0), (0.9, 9.0)]
    ratios, short = ratios_at_equal([(0.5, 1.0), (0.7, 1.0), (0.8, 3.0)], other, 0.0)
    assert ratios == pytest.approx([0.5, 0.75]) and short == 1
    assert ratios_at_equal(other, other, 0.0) == (pytest.approx([1.0] * 3), 0)


def test_analogies(load):
    means = load("analogies").main(["--num", "3"])
    assert means["coded"] < 0.02 and means["pipeline"] < 0.8 * means["C"]


def test_retiming_makes_changes_even(load):
    for key, row in load("retiming").main(["--pairs", "1", "--steps", "20"]).items():
        assert row["worst pdv"] < 0.2 and row["worst ppl"] < 1.05, key


def test_fitting_brings_the_usual_inversion_nearer(load):
    options = ["--pairs", "1", "--steps", "10", "--embedding-steps", "30", "--lora-steps", "40"]
    errors = load("adaptation").main(options)
    plain, both = (
        float(errors[name, 1.0, (1.0, 0), "decoded"][0].mean()) for name in ("plain", "both")
    )
    assert both < plain
