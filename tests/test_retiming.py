"""Points moved along a path until what they show changes evenly, against known changes."""

import pytest
import torch

from riemannian_diffusion.measures import rmse
from riemannian_diffusion.pipelines.retiming import MAX_ROUNDS, retimed

SHOWN = {"cube": lambda u: u**3, "steep": lambda u: torch.sigmoid(30 * (u - 0.5)) - u / 100}
DISTANCES = {
    "length": lambda x, y: (x - y).abs().flatten(1).sum(1),
    "square": lambda x, y: (x - y).square().flatten(1).sum(1),
    "root": lambda x, y: rmse(x[..., None, None], y[..., None, None]),
}


def _run(path, show, distance, num_frames):
    rounds = []

    def carry(points, places):
        rounds.append(places)
        return 2 * points

    def shown(latents):
        return show(latents / 2)

    found, latents = retimed(path, carry, shown, distance, num_frames, lambda: False)
    assert torch.equal(latents, 2 * found)
    return found, rounds


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("distance", DISTANCES)
def test_changes_become_even_whatever_the_power_of_the_distance(shown, distance):
    path = torch.linspace(0, 1, 17, dtype=torch.float64)[:, None]
    show, measure = SHOWN[shown], DISTANCES[distance]
    found, rounds = _run(path, show, measure, 17)
    changes = measure(show(found)[:-1], show(found)[1:])
    assert float(changes.std(correction=0) / changes.mean()) < 0.05 and len(rounds) <= 5
    assert torch.equal(found[[0, -1]], path[[0, -1]]) and (found.diff(dim=0) > 0).all()


def test_keyframes_stay_where_they_are():
    path = torch.tensor([0.0, 0.1, 0.5, 0.6, 3.0], dtype=torch.float64)[:, None]
    found, _ = _run(path, lambda x: x, DISTANCES["length"], 3)
    torch.testing.assert_close(found[:, 0], torch.tensor([0, 0.25, 0.5, 1.75, 3.0]).double())


def test_a_leap_cannot_be_divided():
    path = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
    found, rounds = _run(path, lambda x: (x > 0.4).double(), DISTANCES["length"], 9)
    assert found.isfinite().all() and len(rounds) == MAX_ROUNDS


def test_what_does_not_change_is_left():
    path = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    found, rounds = _run(path, torch.zeros_like, DISTANCES["length"], 5)
    assert torch.equal(found, path) and len(rounds) == 1


def test_two_frames_are_two_keyframes():
    path = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)[:, None]
    found, _ = _run(path, lambda x: x, DISTANCES["square"], 2)
    assert torch.equal(found, path)
