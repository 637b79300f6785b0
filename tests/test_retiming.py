"""Points are moved along a path until the changes between their frames are equal."""

import pytest
import torch

from riemannian_diffusion.events import run
from riemannian_diffusion.measures import rmse
from riemannian_diffusion.pipelines.retiming import MAX_ROUNDS, retiming

SHOWN = {"cube": lambda u: u**3, "steep": lambda u: torch.sigmoid(30 * (u - 0.5)) - u / 100}
DISTANCES = {
    "length": lambda x, y: (x - y).abs().flatten(1).sum(1),
    "square": lambda x, y: (x - y).square().flatten(1).sum(1),
    "root": lambda x, y: rmse(x[..., None, None], y[..., None, None]),
}


def retimed(times, show, distance, num_per_gap):
    """The best times, and the times of every round. `show` gives the frames at some times."""
    rounds = []

    def shown(times):
        rounds.append(times)
        yield from ()
        return times, show(times[:, None]), True

    return run(retiming(times, num_per_gap, shown, distance)), rounds


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("distance", DISTANCES)
def test_changes_become_equal_for_any_power_of_the_distance(shown, distance):
    times = torch.linspace(0, 1, 17, dtype=torch.float64)
    show, measure = SHOWN[shown], DISTANCES[distance]
    found, rounds = retimed(times, show, measure, [17])
    frames = show(found[:, None])
    changes = measure(frames[:-1], frames[1:])
    assert float(changes.std(correction=0) / changes.mean()) < 0.05 and len(rounds) <= 5
    assert torch.equal(found[[0, -1]], times[[0, -1]]) and (found.diff() > 0).all()


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


def test_gaps_without_inner_frames_keep_their_times():
    times = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    found, _ = retimed(times, lambda x: x, DISTANCES["square"], [2, 2])
    assert torch.equal(found, times)
