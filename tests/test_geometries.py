"""Geometries that only the benchmark has, against closed forms, and the table's own machinery."""

from __future__ import annotations

import geometries
import pytest
import torch
from geometries_others import (
    DensityMetric,
    FisherRaoMetric,
    MixtureMetric,
    cog,
    force_matching,
    log_density_along,
    misfit,
)
from methods import Count, Counting
from models import randn
from torch.testing import assert_close

from riemannian_diffusion import GaussianMixtureScore, geodesic, lerp, slerp

SIGMA, STD = 0.5, 0.8
VARIANCE = SIGMA**2 + STD**2
PATH = randn(6, 3)


@pytest.fixture
def bell():
    """One Gaussian: its score is `(m - x) / VARIANCE`."""
    return GaussianMixtureScore(torch.ones(1, 3).double(), SIGMA, std=STD)


@pytest.fixture
def mixture():
    return GaussianMixtureScore(randn(5, 3, seed=1), SIGMA, std=0.1)


def squares(path):
    """`N |dx|^2` of each segment."""
    return (len(path) - 1) * (path[1:] - path[:-1]).square().sum(1)


def test_mixture_energy_of_a_gaussian(bell):
    start = lerp(PATH[0], PATH[-1], 9)
    metric = MixtureMetric(bell, start, weight=0.3)
    assert_close(metric.energy(start).sum(), torch.tensor(0.5).double())  # both terms are 1/2

    def terms(path):
        size = (path - 1).square().sum(1) / VARIANCE**2
        return squares(path) / VARIANCE**2, squares(path) * (size[1:] + size[:-1]) / 2

    (turned, sized), (t_h, t_s) = terms(PATH), (part.sum() for part in terms(start))
    assert_close(metric.energy(PATH), 0.5 * (0.7 * turned / t_h + 0.3 * sized / t_s))


def test_fisher_rao_energy_of_a_gaussian(bell):
    share = STD**2 / VARIANCE  # the denoiser's Jacobian
    assert_close(FisherRaoMetric(bell).energy(PATH), 0.5 * share / SIGMA**2 * squares(PATH))


@pytest.mark.parametrize("kind", ["mixture", "fisher_rao"])
def test_energies_of_short_steps_are_inner_products(mixture, kind):
    start = lerp(PATH[0], PATH[-1], 9)
    metric = MixtureMetric(mixture, start) if kind == "mixture" else FisherRaoMetric(mixture)
    x, v = PATH[:1], 1e-3 * randn(1, 3, seed=2)
    energy = metric.energy(torch.cat([x - v / 2, x + v / 2]))
    assert_close(energy, metric.inner(x, v, v) / 2, rtol=1e-5, atol=0)
    jacobian = torch.autograd.functional.jacobian(lambda p: mixture(p[None])[0], x[0])
    if kind == "fisher_rao":
        dense = torch.eye(3).double() / SIGMA**2 + jacobian
    else:
        w, (t_h, t_s) = metric.weight, metric.totals
        size = mixture(x).square().sum()
        dense = (1 - w) * jacobian.T @ jacobian / t_h + w * size * torch.eye(3).double() / t_s
    assert_close(metric.as_matrix(x)[0], dense)


def test_density_along_a_path_has_the_score_as_its_gradient(bell):
    """The trapezoidal rule is exact for a Gaussian, whose log-density is quadratic."""
    path = PATH.clone().requires_grad_()
    found, weights = log_density_along(bell, path), randn(6, seed=3)
    true = bell.log_prob(path)
    assert_close(found, true - true[0].detach())
    ours, theirs = (
        torch.autograd.grad((weights * values).sum(), path)[0] for values in (found, true)
    )
    assert_close(ours, theirs)


def test_density_energy_and_its_gradient(bell):
    def closed_form(path):
        density = bell.log_prob(path) - bell.log_prob(path[:1]).detach()
        return 0.5 * torch.exp(-0.4 * (density[1:] + density[:-1])) * squares(path)

    path = PATH.clone().requires_grad_()
    count = Count()
    metric = DensityMetric(Counting(bell, count), exponent=0.4)
    (answer,) = metric.energies([PATH], differentiate=True)
    (gradient,) = torch.autograd.grad(closed_form(path).sum(), path)
    assert_close(answer.segments, closed_form(PATH))
    assert_close(answer.gradient[1:-1], gradient[1:-1])
    assert not answer.gradient[[0, -1]].any()
    assert count == Count(points=6, with_gradient=0)


def test_the_density_geodesic_bends_towards_the_mode(bell):
    x0, x1 = torch.tensor([[0.0, 1, 2], [0, 3, 2]]).double()  # the mode is at x = 1
    straight, bent = (
        geodesic(DensityMetric(bell, exponent=a), x0, x1, num_points=9).path for a in (0.0, 0.5)
    )
    assert_close(straight, lerp(x0, x1, 9), rtol=0, atol=1e-6)
    assert bent[4, 0] > 0.1


def test_cog_keeps_the_variance():
    x0, x1 = randn(100_000), randn(100_000, seed=1)
    path = cog(x0, x1, 5)
    assert_close(path[[0, -1]], torch.stack([x0, x1]))
    assert_close(path.std(1), torch.ones(5).double(), rtol=0, atol=0.01)
    assert_close(path[2], (x0 + x1) / 2**0.5)


def test_misfit_of_a_great_circle_is_that_of_its_force():
    """The second differences of even points on a great circle have no part across the points."""
    x0, x1 = torch.tensor([[2.0, 0, 0], [0, 2, 0]]).double()
    path, up = slerp(x0, x1, 7), torch.tensor([0.0, 0, 3]).double().expand(5, 3)
    assert_close(misfit(path, path[1:-1], 1.0), torch.tensor(0.0).double(), rtol=0, atol=1e-18)
    assert_close(misfit(path, up, 2.0), torch.tensor(36 / 3).double())


def test_force_matching_balances_bend_and_force():
    """Under a small constant force f along z, `z'' = -lam f` to first order."""

    class Lift(Counting):
        def __call__(self, x):
            return super().__call__(x) * 0 + torch.tensor([0.0, 0, 1e-2]).double()

    count = Count()
    score = Lift(GaussianMixtureScore(torch.zeros(1, 3).double(), 1.0), count)
    ends = torch.tensor([[100.0, -0.5, 0], [100.0, 0.5, 0]]).double()  # almost flat at this radius
    path = force_matching(score, *ends, 5, lr=1e-5, num_steps=300)
    u = torch.linspace(0, 1, 5).double()
    assert_close(path[:, 2], 1e-2 * u * (1 - u) / 2, rtol=0.02, atol=1e-6)
    assert count == Count(points=900, with_gradient=0)


OPTIONS = ["--scores", "exact", "--samples", "lattice", "1", "--manifolds", "two moons"]


def test_table_keeps_its_rows_and_sums_them_up(tmp_path, monkeypatch):
    options = [*OPTIONS, "--geometries", "slerp", "tangent-normal", "--work", str(tmp_path)]
    first = geometries.main([*options, "--part", "1/2"])
    assert [row["samples"] for row in first] == ["lattice"] * 3
    second = geometries.main([*options, "--part", "2/2"])
    monkeypatch.setattr(geometries, "row_of", lambda *_: pytest.fail("a kept row was measured"))
    rows = geometries.main(options)
    assert rows[:6] == first + second

    clean = next(r for r in rows if (r["geometry"], r["space"]) == ("tangent-normal", "clean"))
    assert clean["status"] == "converged" and clean["error"] < 0.02
    assert clean["points"] > clean["with gradient"] > 1000
    slerp_row = next(r for r in rows if r["geometry"] == "slerp")
    assert slerp_row["status"] == "formula" and slerp_row["with gradient"] == 0

    side = next(r for r in rows if r["geometry"] == "slerp" and "lattice" in r)
    assert side["lattice"] == slerp_row["error"] != side["random"]
    middle = next(r for r in rows if r["manifold"] == "median" and r["geometry"] == "slerp")
    assert middle["error"] == slerp_row["error"] and (middle["failed"], middle["rows"]) == (0, 1)


def test_rows_that_are_not_finite_count_as_infinite():
    def row(samples, error, status):
        key = {"score": "exact", "geometry": "a", "space": "clean", "manifold": "b"}
        measures = dict.fromkeys(geometries.MEASURES, 1.0)
        return key | {"samples": samples} | measures | {"error": error, "status": status}

    rows = [row("lattice", 0.1, "converged"), row("0", 0.2, "max_evals")]
    rows += [row("1", None, "nonfinite"), row("2", 0.4, "converged")]
    side, lattice, random = geometries.sums_of(rows)
    assert (side["lattice"], side["random"]) == (0.1, None)
    assert (lattice["error"], lattice["failed"]) == (0.1, 0)
    assert (random["error"], random["failed"], random["rows"]) == (0.4, 2, 3)


@pytest.mark.parametrize("text", ["3/2", "0/2", "1", "a/b"])
def test_a_part_that_does_not_exist_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        geometries.main([*OPTIONS, "--part", text])
    assert "--part" in capsys.readouterr().err
