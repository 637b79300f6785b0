"""Whatever ends a stage, its error carries what was finished before."""

from __future__ import annotations

import sys

import pytest
import torch
from models import FAST, INVERT, SOLVE, make, seeded, waves

from riemannian_diffusion.pipelines import MorphPath

MORPH = FAST | {"num_frames": 3, "max_evals": 2, "output_type": "latent"}


class Stop(BaseException):
    """An error that no one expects."""


@pytest.fixture(scope="module")
def pipe():
    return make("sd")


def stopping(stage):
    """A listener that ends the given stage at its first event."""

    def tell(event):
        if event.stage == stage:
            raise Stop

    return tell


def stop(*args):
    raise Stop


def missing(pipe, step, timestep, tensors):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("ends", "error"),
    [
        ({"on_event": stopping("sample")}, Stop),
        ({"callback_on_step_end": missing}, KeyboardInterrupt),
        ({"callback_on_step_end": lambda *args: {"latents": "none"}}, ValueError),
        ({"callback_on_step_end": lambda *args: {}["a"]}, KeyError),
    ],
)
def test_a_call_that_ends_in_any_way_gives_the_path(pipe, ends, error):
    images = waves(4)
    expected = pipe(images[:2], generator=seeded(), **MORPH)
    with pytest.raises(error) as caught:
        pipe(images[:2], generator=seeded(), **MORPH, **ends)
    assert torch.equal(pipe.sample(caught.value.path).latents, expected.frames)
    assert torch.equal(caught.value.keys.points, expected.path.keys.points)
    if sys.version_info >= (3, 11):
        assert any("`error.path`" in note for note in caught.value.__notes__)

    with pytest.raises(error) as caught:
        pipe(images.unflatten(0, (2, 2)), generator=seeded(), **MORPH, **ends)
    assert len(caught.value.path) == len(caught.value.keys) == 2
    torch.testing.assert_close(caught.value.path[0].points, expected.path.points)


def test_a_path_that_was_sampled_keeps_its_latents(pipe):
    """Decoding fails for the second of two morphs."""
    images, decoded = waves(4), []

    def tell(event):
        decoded.append(event.stage == "decode" and event.done == 0)
        if sum(decoded) == 2:
            raise Stop

    options = MORPH | {"output_type": "pt"}
    with pytest.raises(Stop) as caught:
        pipe(images.unflatten(0, (2, 2)), on_event=tell, **options)
    shown = pipe.render(caught.value.path, output_type="latent").frames
    expected = pipe(images.unflatten(0, (2, 2)), **MORPH).frames
    torch.testing.assert_close(shown, expected, atol=1e-5, rtol=0)


def test_keyframes_are_not_lost(pipe):
    """The inversion of the second morph, of another size, fails, or the solve of one."""
    images, seen = waves(4), set()
    morphs = [[*images[:2]], [*images[2:, :, :8]]]

    def tell(event):
        if event.stage == "encode" and "invert" in seen:
            raise Stop
        seen.add(event.stage)

    with pytest.raises(Stop) as caught:
        pipe(morphs, on_event=tell, **MORPH)
    keys, rest = caught.value.keys
    assert rest is None
    assert not hasattr(caught.value, "path")
    with pytest.raises(Stop) as caught:
        pipe(images[:2], on_event=stopping("solve"), **MORPH)
    assert torch.equal(caught.value.keys.points, keys.points)


@pytest.mark.parametrize("metric", ["tangent_normal", "split"])
def test_morphs_that_were_solved_before_others_failed(pipe, metric):
    """Morphs of other sizes are solved one after the other."""
    small, large = waves(2), torch.nn.functional.interpolate(waves(2), scale_factor=2)
    options = SOLVE if metric == "tangent_normal" else {}
    several = [pipe.invert(images, "a", **INVERT) for images in (small, large, small.flip(0))]
    expected = pipe.solve(several, metric, **options)
    assert [len(path) for path in expected]

    def tell(event):
        if event.gap == 1:
            raise Stop

    with pytest.raises(Stop) as caught:
        pipe.solve(several, metric, on_event=tell, **options)
    found = caught.value.path
    assert found[1] is None
    for path, whole in zip(found, expected, strict=True):
        assert path is None or torch.equal(path.points, whole.points)
    assert found[0] is not None and (found[2] is not None) == (metric == "tangent_normal")
    assert found[0].metric == metric

    with pytest.raises(Stop) as caught:
        pipe.solve(several[1], metric, on_event=stop, **options)
    assert not hasattr(caught.value, "path")


@pytest.mark.parametrize("stage", ["sample", "transport", "callback"])
def test_the_solve_of_transport_is_not_lost(pipe, stage, tmp_path, monkeypatch):
    images = waves(3)
    keys = pipe.invert(images[:2], ["a", "b"], **INVERT)
    path = pipe.sample(pipe.solve(keys, **SOLVE))
    expected = pipe.transport(path, images[2], "c", max_evals=3)
    ends = {"on_event": stopping(stage)}
    if stage == "callback":
        ends = {"callback_on_step_end": stop}
    with pytest.raises(Stop) as caught:
        pipe.transport(path, images[2], "c", max_evals=3, **ends)
    caught.value.bridge.save(tmp_path / "bridge.safetensors")
    bridge = MorphPath.load(tmp_path / "bridge.safetensors")
    assert (bridge.latents is None) == (stage != "transport")
    with monkeypatch.context() as patch:
        patch.setattr(type(pipe), "solve", None)
        found = pipe.transport(path, images[2], bridge=bridge)
    torch.testing.assert_close(found.transported, expected.transported, atol=1e-5, rtol=0)
    for other in (path, pipe.sample(pipe.solve(keys, "lerp", num_frames=len(path) + 1))):
        with pytest.raises(ValueError, match="`bridge` must lead from the first keyframe"):
            pipe.transport(path, images[2], bridge=other)
