"""Points are moved along a path until the changes between their frames are equal."""

import pytest
import torch

from riemannian_diffusion import Event
from riemannian_diffusion.events import run
from riemannian_diffusion.measures import rmse
from riemannian_diffusion.paths import points_at
from riemannian_diffusion.pipelines.retiming import MAX_ROUNDS, retiming

SHOWN = {"cube": lambda u: u**3, "steep": lambda u: torch.sigmoid(30 * (u - 0.5)) - u / 100}
DISTANCES = {
    "length": lambda x, y: (x - y).abs().flatten(1).sum(1),
    "square": lambda x, y: (x - y).square().flatten(1).sum(1),
    "root": lambda x, y: rmse(x[..., None, None], y[..., None, None]),
}


def _run(path, show, distance, num_frames):
    """The points after re-timing, and the times of every round."""
    num_gaps = (len(path) - 1) // (num_frames - 1)
    times = torch.linspace(0, num_gaps, len(path), dtype=torch.float64)
    rounds = []

    def at(moved):
        rounds.append(moved)
        points = points_at(path, times, moved / num_gaps)
        yield Event("decode")
        return points, show(points), True

    return run(retiming(times, [num_frames] * num_gaps, at, distance)), rounds


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("distance", DISTANCES)
def test_changes_become_equal_for_any_power_of_the_distance(shown, distance):
    times = torch.linspace(0, 1, 17, dtype=torch.float64)
    show, measure = SHOWN[shown], DISTANCES[distance]
    found, rounds = retimed(times, show, measure, [17])
    frames = show(found[:, None])
    changes = measure(frames[:-1], frames[1:])
    assert float(changes.std(correction=0) / changes.mean()) < 0.05 and len(rounds) <= 5
    torch.testing.assert_close(found[[0, -1]], path[[0, -1]])
    assert (found.diff(dim=0) > 0).all()


def test_keyframes_stay_where_they_are():
    times = torch.tensor([0.0, 0.1, 0.5, 0.6, 3.0], dtype=torch.float64)
    found, _ = retimed(times, lambda x: x, DISTANCES["length"], [3, 3])
    torch.testing.assert_close(found, torch.tensor([0, 0.25, 0.5, 1.75, 3.0]).double())


def test_a_leap_cannot_be_divided():
    times = torch.linspace(0, 1, 9, dtype=torch.float64)
    found, rounds = retimed(times, lambda x: (x > 0.4).double(), DISTANCES["length"], [9])
    assert found.isfinite().all() and len(rounds) == MAX_ROUNDS


def test_frames_that_do_not_change_keep_their_times():
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    found, rounds = retimed(times, torch.zeros_like, DISTANCES["length"], [5])
    assert torch.equal(found, times) and len(rounds) == 1


def test_two_frames_are_two_keyframes():
    path = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)[:, None]
    found, rounds = _run(path, lambda x: x, DISTANCES["square"], 2)
    assert torch.equal(found, path) and len(rounds) == 1


def test_the_round_with_the_most_even_changes_is_kept():
    """Whatever the order in which they come: here the second of several is the best."""
    path = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    spreads, calls = [0.5, 0.1, 0.4, 0.3, 0.2, 0.6, 0.7, 0.8], []

    def distance(x, y):
        if len(x) == 4:  # neighbours; those two steps apart are 3
            calls.append(spreads[len(calls)])
        changes = torch.ones(len(x), dtype=torch.float64)
        return changes + calls[-1] * torch.linspace(-1, 1, len(x))

    found, rounds = _run(path, lambda x: x, distance, 5)
    assert len(rounds) == MAX_ROUNDS
    torch.testing.assert_close(found[:, 0], rounds[1])


def test_a_round_that_is_interrupted_is_dropped():
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    rounds = []

    def at(moved):
        rounds.append(moved)
        yield Event("sample")
        return moved, (moved**3)[:, None], len(rounds) < 3

    found = run(retiming(times, [5], at, DISTANCES["length"]))
    assert len(rounds) <= 3 and found is not rounds[2:3]
    assert any(found is one for one in rounds[:2])
