"""Events of stages, and listeners that stop a stage at any network call."""

from __future__ import annotations

import pytest
import torch
from models import FAST, INVERT, SOLVE, counting, make, seeded, waves

from riemannian_diffusion import Event
from riemannian_diffusion.events import network_called, run


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def pipe():
    return make("sd")


@pytest.fixture(scope="module")
def images():
    return list(waves(3))


@pytest.fixture(scope="module")
def path(pipe, images):
    """A sampled path, on which every further stage has work to do."""
    keys = pipe.invert(images[:2], ["a", "b"], **INVERT)
    return pipe.sample(pipe.solve(keys, "lerp", num_frames=5))


STAGES = {
    "invert": lambda pipe, path, images, tell: pipe.invert(images, on_event=tell, **INVERT),
    "invert clean": lambda pipe, path, images, tell: pipe.invert(
        images, space="clean", on_event=tell, **INVERT
    ),
    "solve": lambda pipe, path, images, tell: pipe.solve(path.keys, on_event=tell, **SOLVE),
    "solve Jacobian": lambda pipe, path, images, tell: pipe.solve(
        path.keys, "score_jacobian", on_event=tell, **SOLVE
    ),
    "solve from images": lambda pipe, path, images, tell: pipe.solve(
        path.keys, init=images, on_event=tell, **SOLVE
    ),
    "sample": lambda pipe, path, images, tell: pipe.sample(path, on_event=tell),
    "retime": lambda pipe, path, images, tell: pipe.retime(path, "rmse", on_event=tell),
    "extend": lambda pipe, path, images, tell: pipe.extend(path, 0.5, on_event=tell),
    "transport": lambda pipe, path, images, tell: pipe.transport(
        path, images[2], "c", on_event=tell
    ),
    "render": lambda pipe, path, images, tell: pipe.render(path, on_event=tell),
    "call": lambda pipe, path, images, tell: pipe(images, on_event=tell, **FAST),
}
NAMES = {
    "invert": ["encode", "invert"],
    "invert clean": ["encode"],
    "solve": ["solve"],
    "solve Jacobian": ["solve"],
    "solve from images": ["solve"],
    "sample": ["sample"],
    "retime": ["retime", "decode", "retime", "sample", "decode"],
    "extend": ["extend"],
    "transport": ["encode", "invert", "solve", "sample", "transport"],
    "render": ["decode"],
    "call": ["encode", "invert", "solve", "sample", "decode"],
}


@pytest.mark.parametrize("stage", STAGES)
def test_events_come_in_order(pipe, path, images, stage):
    events = []
    STAGES[stage](pipe, path, images, events.append)
    names = [event.stage for event in events]
    changes = [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
    assert changes[: len(NAMES[stage])] == NAMES[stage]
    assert stage == "retime" or changes == NAMES[stage]
    for one, other in zip(events, events[1:], strict=False):
        if one.stage == other.stage and other.calls >= one.calls:
            assert other.done >= one.done and other.total == one.total
            assert other.calls - one.calls <= 1  # at most one network call lies between two events
    for event in events:
        assert event.total is None or 0 <= event.done <= event.total
    unknown = [event for event in events if event.stage in ("solve", "retime")]
    if stage != "transport":  # transport solves "lerp", whose total is known
        assert all(event.total is None for event in unknown)
    last = {event.stage: event for event in events}
    assert all(e.done == e.total for e in last.values() if e.total is not None)


def _count_or_stop(counter: list, stop_at: int | None):
    """A listener that counts network calls over all stages, and stops before one of them."""
    latest = [0]

    def tell(event):
        assert isinstance(event, Event)
        if event.calls > latest[0]:
            counter[0] += 1
        latest[0] = event.calls
        if counter[0] == stop_at:
            raise Stop

    return tell


@pytest.mark.parametrize("stage", STAGES)
def test_a_listener_stops_a_stage_at_any_network_call(pipe, path, images, stage):
    networks = (pipe.unet, pipe.vae.encoder, pipe.vae.decoder)
    recorded = [0]
    with counting(*networks) as counter:
        expected = STAGES[stage](pipe, path, images, _count_or_stop(recorded, None))
    total = counter.calls
    assert recorded[0] == total > 0
    for number in sorted({1, min(2, total), total // 2 + 1, total}):
        recorded = [0]
        with counting(*networks) as counter, pytest.raises(Stop):
            STAGES[stage](pipe, path, images, _count_or_stop(recorded, number))
        assert counter.calls == number - 1
    assert all(parameter.requires_grad for parameter in pipe.unet.parameters())
    again = STAGES[stage](pipe, path, images, lambda event: None)  # the stop has no later effect
    assert _same(again, expected)


def _same(one, other) -> bool:
    for name in ("points", "latents", "frames"):
        if isinstance(getattr(one, name, None), torch.Tensor):
            return torch.equal(getattr(one, name), getattr(other, name))
    return one.frames[1].tobytes() == other.frames[1].tobytes()


@pytest.mark.parametrize("num", [2, 3])
def test_the_energies_of_events_are_those_of_the_geodesic(pipe, images, num):
    keys = pipe.invert(images[:num], **INVERT)
    events = []
    path = pipe.solve(keys, num_frames=4, max_evals=6, on_event=events.append)
    for gap, found in enumerate(path.geodesics):
        mine = [event for event in events if event.iteration and event.gap == gap]
        assert [event.energy for event in mine] == [energy for _, energy in found.iterates]
        assert torch.equal(mine[-1].latents[[0, -1]], keys.points[gap : gap + 2])
    evaluations = sum(found.num_evals for found in path.geodesics)
    assert max(event.done for event in events) == evaluations
    assert len({event.done for event in events}) > 2


def test_events_of_steps_have_their_timestep_and_latents(pipe, images):
    events = []
    keys = pipe.invert(images[:2], on_event=events.append, **INVERT)
    timesteps = keys.levels.schedule.timesteps
    steps = {e.done: e for e in events if e.stage == "invert" and e.done}
    assert [steps[i + 1].timestep for i in range(len(steps))] == timesteps[::-1]
    assert torch.equal(steps[len(steps)].latents, keys.points)
    events.clear()
    path = pipe.sample(pipe.solve(keys, "lerp", num_frames=3), on_event=events.append)
    steps = {e.done: e for e in events if e.done}
    assert [steps[i + 1].timestep for i in range(len(steps))] == timesteps
    assert torch.equal(steps[len(steps)].latents, path.latents)


def test_answers_of_a_listener_and_runs_without_one():
    """A stage is any generator of events, and its listener can send answers."""
    answers = []

    def stage():
        answers.append((yield Event("one")))
        network_called()
        answers.append((yield Event("two")))
        return "done"

    recorded = []

    def tell(event):
        recorded.append((event.stage, event.calls))
        return event.stage

    assert run(stage(), tell) == "done" and answers == ["one", "two"]
    assert recorded == [("one", 0), ("one", 1), ("two", 1)]
    assert run(stage()) == "done"
    network_called()  # outside of stages there is no listener


def test_stages_within_stages_keep_their_listeners():
    recorded = []

    def inner():
        yield Event("inner")
        network_called()

    def outer():
        yield Event("outer")
        run(inner(), lambda event: recorded.append(("inner", event.calls)))
        network_called()

    run(outer(), lambda event: recorded.append(("outer", event.calls)))
    assert recorded == [("outer", 0), ("inner", 0), ("inner", 1), ("outer", 1)]


def test_progress_bars_predict_no_end_of_a_solve(pipe, images, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, iterable=None, total=None):
            self.n, self.total, self.title, self.closed = 0, total, "", False
            bars.append(self)

        def set_description_str(self, title):
            self.title = title

        def set_postfix(self, **values):
            assert set(values) == {"energy", "refresh"}

        def update(self, num):
            assert num >= 0
            self.n += num

        def close(self):
            self.closed = True

    monkeypatch.setattr(pipe, "progress_bar", Bar)
    pipe(images[:2], generator=seeded(), **FAST)
    assert [bar.title for bar in bars] == ["Inverting", "Solving", "Sampling"]
    assert [bar.total for bar in bars] == [4, None, 4] and all(bar.closed for bar in bars)
    assert bars[1].n == 3 and bars[0].n == bars[2].n == 4
