"""The comparison of the default with published recipes, at reduced size."""

from __future__ import annotations

import frame
import peers
import pytest
import torch
from methods import RECIPE, Count, count_passes
from problems import helix, trefoil
from tables import select
from torch import nn

from riemannian_diffusion import EuclideanMetric, PullbackMetric


class Square(PullbackMetric):
    """The pullback of `x -> x^2`."""

    def embed(self, x):
        """Points `(K, 1) -> (K, 1)`."""
        return x.square()


def test_passes_count_a_point_with_gradient_as_2_1():
    network = nn.Linear(3, 3)
    count = count_passes(network)
    network(torch.zeros(4, 3))
    network(torch.zeros(5, 3, requires_grad=True))
    with torch.no_grad():
        network(torch.zeros(6, 3, requires_grad=True))  # nothing is differentiated here
    assert (count.points, count.with_gradient) == (15, 5)
    assert count.passes == pytest.approx(10 + 5 * 2.1)
    count.reset()
    assert count.passes == Count().passes == 0


def test_the_energy_sees_what_lies_between_the_points():
    """From -1 to 1 the map turns back, so one chord has no energy and the path has 4 / 2 * 2."""
    path = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    assert float(Square().energy(path).sum()) == 0
    exact = 8 / 3  # 1/2 int (d/du (2 u - 1)^2)^2 du
    assert peers.energy_of(Square(), path) == pytest.approx(exact, rel=0.01)
    assert peers.energy_of(EuclideanMetric(), path) == pytest.approx(2.0)


@pytest.mark.parametrize("make", [helix, trefoil])
def test_the_ends_of_new_curves_are_2_2_apart(make):
    assert make().length == pytest.approx(2.2, rel=1e-3)


def test_kept_rows_are_not_made_again(tmp_path):
    made = []
    for _ in range(2):
        assert frame.kept(tmp_path / "a" / "row.json", lambda: made.append(0) or [1, 2]) == [1, 2]
    assert made == [0] and frame.kept(None, lambda: 3) == 3


@pytest.mark.slow
def test_our_default_beats_the_recipes_in_clean_space(tmp_path):
    """And the recipe leaps, as public code does."""
    assert RECIPE["max_evals"] == 500
    options = ["--only", "manifolds", "--manifolds", "helix", "2-sphere in R^10"]
    rows = peers.main([*options, "--work", str(tmp_path)])
    for manifold in ("helix", "2-sphere in R^10"):
        clean = {row["method"]: row for row in select(rows, manifold=manifold, space="clean")}
        ours = clean.pop("ours")
        assert ours["error"] < 0.01 and ours["largest step"] < 1.05
        assert all(row["error"] > 20 * ours["error"] for row in clean.values())
        assert all(row["passes"] > 4 * ours["passes"] for row in clean.values())
        assert all(row["energy / ours"] > 2 for row in clean.values())
    checks = [row for row in rows if "public" in row]
    assert len(checks) == 2 and all(0.5 < row["error / public"] < 2 for row in checks)
    again = peers.main([*options, "--work", str(tmp_path)])
    assert again == rows
