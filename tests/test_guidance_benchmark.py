"""The comparison of guided samples: closed-form curves, the rules, and the published figures."""

from __future__ import annotations

import math

import guidance
import pytest
import torch
from models import randn
from tables import MIXTURES, results, select

import riemannian_diffusion.guidance as package
from riemannian_diffusion import GaussianMixtureScore

# Plain guidance of the shipped model: the probability falls again at high weights.
FOLDED = [(0.854, 0.0383), (0.988, 0.0353), (0.994, 0.0373), (0.988, 0.0502), (0.974, 0.0702)]
WEIGHTS = [1 + i / 10 for i in range(291)]


def saturating(power: float) -> list[tuple[float, float]]:
    """Probability 1 - 1 / w and distance w^power, for weights from 1 to 30."""
    return [(1 - 1 / w, w**power) for w in WEIGHTS]


@pytest.mark.parametrize("curve", [FOLDED, saturating(2), saturating(-1)])
def test_a_curve_over_itself_is_one(curve):
    found = guidance.at_equal_probability(curve, curve)
    assert [found[key] for key in ("mean", "worst", "last")] == pytest.approx([1, 1, 1], abs=1e-12)


def test_more_weights_do_not_make_a_method_better():
    found = guidance.at_equal_probability([*FOLDED, (0.9, 0.12)], FOLDED)
    assert found["mean"] == pytest.approx(1) and found["worst"] == pytest.approx(1)


def test_points_above_the_envelope_do_not_count():
    worse = [*FOLDED[:3], (0.988, 10.0)]
    for found in (
        guidance.at_equal_probability(worse, FOLDED),
        guidance.at_equal_probability(FOLDED, worse),
    ):
        assert found["mean"] == pytest.approx(1) and found["worst"] == pytest.approx(1)


def test_ratios_of_closed_form_envelopes():
    # Distances w and w^2 at the probability p = 1 - 1 / w: their ratio is 1 - p.
    found = guidance.at_equal_probability(saturating(1), saturating(2))
    stop = 1 - 1 / 30 - guidance.TOLERANCE
    assert (found["from"], found["to"]) == pytest.approx((0, stop))
    mean = math.exp((-(1 - stop) * math.log(1 - stop) - stop) / stop)  # of log(1 - p)
    assert found["mean"] == pytest.approx(mean, rel=0.01)
    assert (found["worst"], found["last"]) == pytest.approx((1, 1 - stop), rel=0.01)


def test_a_distance_that_falls_with_guidance_has_a_flat_envelope():
    # The best distance of each curve is at its last weight: 1 / 30 and 1 / 900.
    found = guidance.at_equal_probability(saturating(-1), saturating(-2))
    assert found["mean"] == pytest.approx(30) and found["last"] == pytest.approx(30)


def test_curves_are_compared_where_both_reach():
    low, high = [(0.2, 1.0), (0.6, 3.0)], [(0.4, 2.0), (0.9, 7.0)]
    for curve, other in ((low, high), (high, low)):
        found = guidance.at_equal_probability(curve, other)
        assert (found["from"], found["to"]) == pytest.approx((0.4, 0.6 - guidance.TOLERANCE))
        assert found["reach"] == curve[-1][0]
    apart = guidance.at_equal_probability(low, [(0.7, 1.0), (0.8, 2.0)])
    assert math.isnan(apart["mean"]) and math.isnan(apart["worst"]) and apart["reach"] == 0.6


def test_the_envelope_is_straight_between_weights_and_infinite_beyond_reach():
    curve = [(0.5, 2.0), (0.7, 4.0), (0.6, 1.0)]
    found = [guidance.least_distance(curve, p) for p in (0.4, 0.6, 0.65, 0.7, 0.71)]
    assert found == pytest.approx([1, 1, 2.5, 4, math.inf])


def test_equal_weight_and_equal_probability_can_disagree():
    # The damped method moves along the same curve at half the pace.
    def point(w):
        return 1 - 1 / w, 1 + w

    weights = [1.0, 2.0, 3.0, 5.0, 9.0]
    plain, damped = ([point(1 + (w - 1) * pace) for w in weights] for pace in (1.0, 0.5))
    fine = [point(w) for w in WEIGHTS]
    assert guidance.at_equal_probability(fine[:100], fine)["mean"] == pytest.approx(1)
    found = guidance.at_equal_weight(weights, damped, plain)
    ratios = [(2.5 / 3), (3 / 4), (4 / 6), (6 / 10)]
    assert found["mean"] == pytest.approx(math.prod(ratios) ** 0.25)
    assert found["worst"] == pytest.approx(2.5 / 3) and found["change"] < -0.05


def _scores():
    means = randn(5, 3)
    weights = [[5.0, 1, 1, 2, 1], [1.0, 1, 1, 1, 1]]
    return [
        GaussianMixtureScore(means, 0.5, alpha=0.8, weights=torch.tensor(w).double())
        for w in weights
    ]


@pytest.mark.parametrize("name", [name for name in guidance.METHODS if name != "mog"])
def test_every_rule_but_one_is_the_conditional_score_at_weight_1(name):
    conditional, unconditional = _scores()
    x = randn(4, 3, seed=1)
    found = guidance.METHODS[name](conditional, unconditional, x, 1.0)
    torch.testing.assert_close(found, conditional(x))


def test_projected_guidance_is_across_its_direction():
    conditional, unconditional = _scores()
    x = randn(4, 3, seed=1)
    difference = conditional(x) - unconditional(x)
    for name, direction in (("apg", conditional.denoise(x)), ("apg eps", conditional(x))):
        added = guidance.METHODS[name](conditional, unconditional, x, 4.0) - conditional(x)
        assert (added * direction).sum(1).abs().max() < 1e-10
        removed = 3 * difference - added
        cosine = torch.cosine_similarity(removed, direction, dim=1).abs()
        torch.testing.assert_close(cosine, torch.ones(4).double())


def test_tangential_damping_removes_the_second_singular_vector():
    conditional, unconditional = _scores()
    x, w = randn(4, 3, seed=1), 4.0
    found = guidance.METHODS["tcfg"](conditional, unconditional, x, w)
    for i in range(4):
        rows = torch.stack([unconditional(x)[i], conditional(x)[i]])
        second = torch.linalg.svd(rows, full_matrices=False).Vh[1]
        own, other = rows[1], rows[0] - (rows[0] @ second) * second
        torch.testing.assert_close(found[i], other + w * (own - other))


def test_manifold_optimal_guidance_weighs_the_parts_along_and_across_the_score():
    conditional, unconditional = _scores()
    x = randn(4, 3, seed=1)
    score, difference = unconditional(x), conditional(x) - unconditional(x)
    added = guidance.METHODS["mog"](conditional, unconditional, x, 4.0) - score
    unit = torch.nn.functional.normalize(score, dim=1)
    along = (difference * unit).sum(1, keepdim=True) * unit
    torch.testing.assert_close(added, 4 * along + 0.8 * (difference - along))


@pytest.fixture(scope="module")
def small():
    """Rows of the mixtures at reduced size."""
    options = ["--methods", "plain", "half", "apg", "--samples", "30", "--steps", "6"]
    return guidance.main(options)


def test_all_methods_have_the_same_weights(small):
    for method in ("plain", "half", "apg"):
        weights = {row["weight"] for row in small if row["method"] == method and "weight" in row}
        assert weights == set(guidance.WEIGHTS)


def check_baseline(rows):
    """Plain guidance over itself is 1 in both comparisons."""
    probability = select(rows, method="plain", at="probability")
    weight = select(rows, method="plain", at="weight")
    assert len(probability) == len(weight) == len({row["problem"] for row in rows})
    for row in probability:
        assert [row[key] for key in ("mean", "worst", "last")] == pytest.approx([1, 1, 1])
    for row in weight:
        assert [row[key] for key in ("mean", "worst", "change")] == pytest.approx([1, 1, 0])


def test_the_baseline_is_one_over_itself_in_every_problem(small):
    check_baseline(small)


@pytest.mark.parametrize("file", ["guidance_mixtures", "guidance_demo_compared"])
def test_the_baseline_is_one_over_itself_in_the_published_tables(file):
    rows = results(file)
    check_baseline(rows)
    curves = {}
    for row in rows:
        if row.get("weight") is not None:  # not the data
            curves.setdefault((row["problem"], row["method"]), []).append(row["weight"])
    assert len({tuple(weights) for weights in curves.values()}) == 1


def test_the_documentation_states_the_published_figures():
    rows = select(results("guidance_mixtures"), method="half")
    at = {
        at: {row["problem"]: row for row in select(rows, at=at)} for at in ("probability", "weight")
    }
    thin = [name for name in MIXTURES if name.endswith("0.01")]
    spread = [name for name in MIXTURES if name not in thin]
    farther = sorted(at["probability"][name]["mean"] for name in thin)
    about_equal = [at["probability"][name]["mean"] for name in spread]
    nearer = [1 - at["weight"][name]["mean"] for name in spread]
    worst = max(row["worst"] for row in at["weight"].values())
    (shipped,) = select(results("guidance_demo_compared"), method="half", at="probability")
    text = " ".join(package.__doc__.split())
    for figure in (
        f"{100 * min(nearer):.0f} to {100 * max(nearer):.0f} % nearer",
        f"up to {worst:.2f} times farther",
        f"{min(about_equal):.2f} to {max(about_equal):.2f} where data spread",
        f"{shipped['mean']:.2f} on the shipped model",
        f"{farther[0]:.2f} and {farther[1]:.2f} on thin manifolds",
    ):
        assert figure in text, figure


def test_curves_of_an_earlier_run_are_compared_again(small, tmp_path):
    out = tmp_path / "small.json"
    out.write_text(guidance.frame.as_json({"rows": small}))
    again = guidance.main(["--curves", str(out)])
    assert select(again, at="probability") == select(small, at="probability")
    uneven = [row for row in small if row.get("weight") != 3.0 or row["method"] != "half"]
    out.write_text(guidance.frame.as_json({"rows": uneven}))
    with pytest.raises(ValueError, match="--curves.*different weights"):
        guidance.main(["--curves", str(out)])


@pytest.mark.slow
def test_damping_keeps_thick_data_at_equal_weight_and_costs_nothing_at_equal_probability():
    rows = guidance.main(["--methods", "plain", "manifold", "half", "--samples", "100"])
    rows = select(rows, problem="concentric circles, spread 0.06")
    for name in ("manifold", "half"):
        (probability,) = select(rows, method=name, at="probability")
        (weight,) = select(rows, method=name, at="weight")
        assert probability["worst"] < 1.02 and weight["mean"] < 0.95, name
        assert weight["change"] < 0, name
