"""Roadmaps: cheapest paths compared with brute force, and minima that a straight start misses."""

import math
from functools import partial

import pytest
import torch
from problems import circle
from torch.testing import assert_close
from uses import NAN_, P, Q, same

from riemannian_diffusion import (
    EuclideanMetric,
    GaussianMixtureScore,
    TangentNormalMetric,
    geodesic,
    length,
    lerp,
    resample,
    roadmap,
    sdedit,
)


def spiral(turns):  # (K,) -> (K, 2): neighbouring turns have distance 1
    angle = 2 * math.pi * turns
    return (1 + turns)[:, None] * torch.stack([angle.cos(), angle.sin()], 1)


SPIRAL = spiral(torch.linspace(0, 2, 1500, dtype=torch.float64))


def spiral_levels(timestep):
    """Twenty levels whose `tau = sigma / alpha` rises evenly to 2."""
    alpha = 1 / math.hypot(1, timestep / 10)
    return GaussianMixtureScore(SPIRAL, timestep / 10 * alpha, alpha=alpha)


def spiral_draws(seed=0, tops=(3, 6, 12)):
    generator = torch.Generator().manual_seed(seed)
    return [
        partial(sdedit, spiral_levels, timesteps=range(1, top + 1), generator=generator)
        for top in tops
    ]


def to_spiral(x):
    return torch.cdist(x, SPIRAL).min(1)


def test_a_roadmap_goes_around_where_the_straight_line_leaps():
    x0, x1 = spiral(
        torch.tensor([0.5, 1.5], dtype=torch.float64)
    )  # the distance is 1, but a whole turn lies between
    generator = torch.Generator().manual_seed(0)
    found = roadmap(spiral_draws(), x0, x1, batch_size=32, generator=generator)
    assert torch.equal(found.path[0], x0) and torch.equal(found.path[-1], x1)
    hops = found.path.diff(dim=0).norm(dim=1)
    assert float(hops.max() / (x1 - x0).norm()) == pytest.approx(found.longest_hop)
    assert found.longest_hop <= 0.25
    start = found(x0, x1, 65)
    distance, index = to_spiral(start)
    assert distance.max() < 0.1
    assert (index.diff() > 0).all() and (index.diff() < 50).all()  # a 65th of 750

    metric = TangentNormalMetric(GaussianMixtureScore(SPIRAL, 0.1))
    around = geodesic(metric, x0, x1, num_points=65, init=found)
    straight = geodesic(metric, x0, x1, num_points=65, init="lerp")
    assert around.status == "converged"
    assert to_spiral(around.path)[0].max() < 0.03
    assert to_spiral(straight.path)[0].max() > 0.2
    assert length(around.path) > 6 * length(straight.path)


def test_a_metric_finds_hops_off_the_manifold():
    """Samples between two turns shorten the hops across. Only the metric finds that they leap."""
    x0, x1 = spiral(torch.tensor([0.5, 1.5], dtype=torch.float64))
    bridge = lerp(x0, x1, 7)[1:-1]

    def run(metric):
        generator = torch.Generator().manual_seed(0)
        once = [bridge]

        def with_bridge(centres):  # later calls return the centres themselves
            return torch.cat([*(once.pop() for _ in once[:]), centres])[: len(centres)]

        draws = [*spiral_draws(), with_bridge]
        found = roadmap(draws, x0, x1, metric=metric, batch_size=32, generator=generator)
        return found, float(to_spiral(found(x0, x1, 65))[0].max())

    fooled, far = run(None)
    assert far > 0.4 and len(fooled.path) <= 8 and fooled.longest_hop < 0.25
    asked = []

    class Asked(TangentNormalMetric):
        def embed(self, x):
            asked.append(len(x))
            return super().embed(x)

    found, far = run(Asked(GaussianMixtureScore(SPIRAL, 0.1)))
    assert far < 0.1 and found.longest_hop < 0.25
    assert float(length(found.path)) > 6
    hops = found.path.diff(dim=0).norm(dim=1)  # the lengths of hops on the manifold
    assert float(hops.max() / (x1 - x0).norm()) == pytest.approx(found.longest_hop)
    assert sum(asked) < 3 * len(found.samples)  # each sample has 8 links, of which few are measured


def test_leaps_are_longer_hops():
    """If there is no other path, the hop that leaps is reported as the longest."""
    x0, x1 = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    line = torch.linspace(-1, 1, 9, dtype=torch.float64)[1:-1, None] * torch.tensor([1.0, 0.0])

    class Walled(EuclideanMetric):
        """A metric in which lengths are ten times as large between x = 0.45 and 0.75."""

        def energy(self, path):
            middles = (path[1:] + path[:-1])[:, 0] / 2
            wall = (middles > 0.45) & (middles < 0.75)
            return torch.where(wall, 100.0, 1.0) * super().energy(path)

    options = {"batch_size": 7, "max_samples": 7, "num_neighbors": 2}
    found = roadmap([lambda c: line], x0, x1, metric=Walled(), **options)
    assert found.longest_hop == pytest.approx(10 / 8)
    assert roadmap([lambda c: line], x0, x1, **options).longest_hop == pytest.approx(1 / 8)


def test_the_path_is_the_cheapest():
    """If all points are linked, costs equal Fermat distances by Floyd and Warshall's recursion."""
    generator = torch.Generator().manual_seed(0)
    cloud = torch.rand(30, 3, generator=generator, dtype=torch.float64)
    x0, x1 = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    options = {"max_samples": 30, "batch_size": 30, "num_neighbors": 40, "max_hop": 1e-6}
    found = roadmap([lambda centres: cloud], x0, x1, power=2.5, **options)
    assert torch.equal(found.samples, cloud)
    points = torch.cat([x0[None], x1[None], cloud])
    costs = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") ** 2.5
    best = costs.clone()
    for k in range(len(points)):
        best = torch.minimum(best, best[:, k, None] + best[k])
    assert_close((found.path.diff(dim=0).norm(dim=1) ** 2.5).sum(), best[0, 1])
    assert len(found.path) > 3


def test_a_plane_is_crossed_at_once():
    """The search stops early on a manifold that contains the straight line."""
    x0, x1 = torch.zeros(2), torch.tensor([1.0, 0.0])
    asked = []

    def draw(centres):
        asked.append(len(centres))
        u = torch.linspace(0.05, 0.95, len(centres))
        return torch.stack([u, 0 * u], 1)

    found = roadmap([draw], x0, x1, batch_size=10)
    assert asked == [10] and found.longest_hop < 0.11
    assert_close(found(x0, x1, 5), lerp(x0, x1, 5), rtol=0, atol=1e-6)


def test_without_useful_samples_the_path_is_straight():
    x0, x1 = torch.zeros(2), torch.ones(2)
    far = iter(range(1, 1000))
    found = roadmap([lambda c: c + 1e3 * next(far)], x0, x1, max_samples=100, batch_size=30)
    assert found.longest_hop == pytest.approx(1.0) and len(found.path) == 2
    assert len(found.samples) == 100
    assert_close(found(x0, x1, 9), lerp(x0, x1, 9))


def test_roadmaps_are_deterministic_and_keep_their_arguments():
    x0, x1 = circle(2).x0, circle(2).x1
    before = x0.clone(), x1.clone()

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.Generator().manual_seed(seed)
        draws = [lambda c: c + 0.1 * torch.randn(c.shape, generator=noise, dtype=c.dtype)]
        return roadmap(draws, x0, x1, max_samples=200, batch_size=20, generator=generator)

    one, same, other = run(1), run(1), run(2)
    assert torch.equal(one.samples, same.samples) and torch.equal(one.path, same.path)
    assert not torch.equal(one.samples[:20], other.samples[:20])
    assert torch.equal(x0, before[0]) and torch.equal(x1, before[1])


def test_images_and_single_precision():
    x0, x1 = torch.zeros(1, 4, 4), torch.ones(1, 4, 4)
    generator = torch.Generator().manual_seed(0)

    def draw(centres):
        assert centres.shape[1:] == (1, 4, 4) and centres.dtype == torch.float32
        return torch.rand(len(centres), 1, 1, 1, generator=generator).expand(centres.shape)

    found = roadmap([draw, draw], x0, x1, batch_size=25, generator=generator)
    assert_close(found(x0, x1, 6), lerp(x0, x1, 6), rtol=0, atol=1e-6)
    assert_close(resample(found.path, 6), found(x0, x1, 6))


def test_a_roadmap_knows_its_points():
    x0, x1 = torch.zeros(2), torch.ones(2)
    found = roadmap([lambda c: c], x0, x1, max_samples=4, batch_size=4)
    with pytest.raises(ValueError, match="leads between other points"):
        found(x1, x0, 5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"draws": []}, "`draws` must hold at least one function"),
        ({"x1": torch.zeros(2)}, "`x0` and `x1` must be different points of one shape"),
        ({"x1": torch.zeros(3)}, r"but got shapes \(2,\) and \(3,\)"),
        ({"max_samples": 0}, "`max_samples` must be a whole number of at least 1, but got 0"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1, but got 0"),
        ({"num_neighbors": 0}, "`num_neighbors` must be a whole number of at least 1, but got 0"),
        ({"power": 0.5}, "`power` must be at least 1, but got 0.5"),
        ({"max_hop": 0.0}, r"`max_hop` must be in \(0, 1\], but got 0.0"),
        ({"draws": [lambda c: c[:1]]}, "must return finite points of the shape of their argument"),
        ({"draws": [lambda c: c / 0]}, "finite: False"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        roadmap(**{"draws": [lambda c: c], "x0": torch.zeros(2), "x1": torch.ones(2)} | options)


USES = [
    (lambda: roadmap(same, P, Q), "`draws` must be a Sequence, but got function"),
    (lambda: roadmap([3], P, Q), "`draws` must be a function, but got int"),
    (lambda: roadmap([same], P * NAN_, Q), "`x0` must be .* has NaN or infinite ones"),
    (
        lambda: roadmap([same], P, Q, power=NAN_),
        "`power` must be a finite number, but got nan",
    ),
    (lambda: roadmap([same], P, Q, max_samples=1.5), "`max_samples` must be a whole number"),
    (lambda: roadmap([lambda x: None], P, Q), "`draws` must return a tensor"),
    (lambda: roadmap([same], P, Q, metric=3), "`metric` must be a Metric, but got int"),
]


@pytest.mark.parametrize(("use", "message"), USES)
def test_uses_that_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_points_in_half_precision(dtype):
    angles = torch.arange(64, dtype=torch.float64) * 2 * torch.pi / 64
    circle = torch.stack([angles.cos(), angles.sin()], 1).to(dtype)
    generator = torch.Generator().manual_seed(0)

    def draw(x):
        return circle[torch.randint(64, (len(x),), generator=generator)]

    metric = TangentNormalMetric(GaussianMixtureScore(circle.float(), 0.2))
    x0, x1 = circle[0], circle[24]
    found = roadmap([draw], x0, x1, max_samples=192, generator=torch.Generator().manual_seed(1))
    assert found.longest_hop < 0.5 and found(x0, x1, 5).dtype == dtype
    path = geodesic(metric, x0, x1, init=found).path
    assert float((path.norm(dim=1) - 1).abs().max()) < 0.1
