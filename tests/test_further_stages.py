"""The stages that follow a path: retime, extend, transport and render."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from models import FAST, INVERT, KINDS, PROMPTED, SOLVE, counting, make, seeded

from riemannian_diffusion import (
    DiffusionScore,
    TangentNormalMetric,
    analogy,
    extrapolate,
    length,
    lerp,
)
from riemannian_diffusion.measures import rmse
from riemannian_diffusion.pipelines.stages import replaced_times

NAN = math.nan


def timestep_of(pipe, noise: float) -> int:
    """The timestep whose noise, in units of the clean data, is nearest."""
    return int(((1 / pipe.scheduler.alphas_cumprod - 1).sqrt() - noise).abs().argmin())


def score_of(pipe, noise: float, prompt: str) -> DiffusionScore:
    hidden = pipe.encode_prompt([prompt], "cpu", 1, False)[0]
    timestep = timestep_of(pipe, noise)
    return DiffusionScore(pipe.unet, pipe.scheduler, timestep, encoder_hidden_states=hidden)


@pytest.fixture(scope="module")
def pipe():
    return make("sd")


@pytest.fixture
def morph(pipe, keyframes):
    """A path through three keyframes in clean space, sampled."""
    options = {"space": "clean", "generator": seeded(), **INVERT}
    keys = pipe.invert(keyframes, ["a", "b", "c"], **options)
    return uneven(pipe, pipe.solve(keys, "lerp", num_frames=4))


@pytest.fixture
def pair(pipe, keyframes):
    """A path through two keyframes in noise space, sampled."""
    keys = pipe.invert(keyframes[:2], ["a", "b"], **INVERT)
    return uneven(pipe, pipe.solve(keys, "lerp", num_frames=5))


def uneven(pipe, path):
    """The same path with its points drawn towards the start of each gap, sampled."""
    whole = path.times.floor()
    return pipe.sample(replaced_times(path, whole + (path.times - whole) ** 2))


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_does_them_all(kind, keyframes):
    pipe, prompt = make(kind), "a" if kind in PROMPTED else ""
    keys = pipe.invert(keyframes[:2], prompt, **INVERT)
    path = pipe.sample(pipe.solve(keys, **SOLVE))
    for one in (
        pipe.retime(path, "rmse"),
        pipe.extend(path, 0.5),
        pipe.transport(path, keyframes[2], max_evals=2),
    ):
        out = pipe.render(one, output_type="latent")
        assert out.frames.isfinite().all() and len(out.frames) >= 4


# -------------------------------------------------------------------------------------- retime


def spread(pipe, path) -> float:
    """How uneven the changes of a path are, in the most uneven gap."""
    frames = pipe.render(path, output_type="pt").frames
    found = [rmse(frames[gap][:-1], frames[gap][1:]) for gap in path.gaps]
    return max(float(changes.std(correction=0) / changes.mean()) for changes in found)


def test_retiming_evens_the_changes_and_keeps_keyframes(pipe, pair, morph):
    for path in (pair, morph):
        found = pipe.retime(path, "rmse")
        assert spread(pipe, found) < 0.05 < spread(pipe, path)
        assert torch.equal(found.points[found.key_indices], path.keys.points)
        assert found.key_indices == path.key_indices and (found.times.diff() > 0).all()
        assert torch.equal(found.latents, pipe.sample(found).latents)


def test_what_retiming_costs(pipe, pair):
    """The first round shows what was sampled; each later one samples the whole path again."""
    rounds, steps = [], len(pair.keys.levels.schedule.levels)

    def listen(event):
        if event.stage == "retime" and event.done not in rounds:
            rounds.append(event.done)

    with counting(pipe.unet) as counter:
        pipe.retime(pair, "rmse", on_event=listen)
    assert counter.points == (len(rounds) - 1) * len(pair) * steps > 0
    with counting(pipe.unet) as counter:
        kept = pipe.retime(pair, lambda x, y: torch.ones(len(x)))
    assert counter.points == 0 and torch.equal(kept.times, pair.times)


def test_an_interrupted_retiming_keeps_the_last_whole_round(pipe, pair):
    steps = []

    def stop(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = step == 1

    found = pipe.retime(pair, "rmse", callback_on_step_end=stop)
    assert steps == [0, 1]  # the first round needs no sampling
    assert torch.equal(found.times, pair.times) and torch.equal(found.latents, pair.latents)


# -------------------------------------------------------------------------------------- extend


def test_an_extension_goes_on_beyond_the_last_keyframe(pipe, morph, keyframes):
    longer = pipe.extend(morph, 0.7)
    assert torch.equal(longer.latents, morph.latents) and torch.equal(longer.points, morph.points)
    short, out = (pipe.render(one, output_type="latent") for one in (morph, longer))
    assert torch.equal(out.frames[:7], short.frames)
    assert out.reconstruction_error == short.reconstruction_error
    score, gap = score_of(pipe, 0.25, "c"), morph.latents[-4:]
    expected = extrapolate(
        gap,
        0.7 * float(length(gap)),
        project=lambda x: score.denoise(score.alpha * x) / score.alpha,
    )
    torch.testing.assert_close(out.frames[3:], expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(pipe.extend(morph, 0).shown, morph.shown)
    keys = pipe.invert([keyframes[0]] * 2, space="clean", **INVERT)
    still = pipe.sample(pipe.solve(keys, "lerp", num_frames=4))
    assert len(pipe.extend(still, 1.0).shown) == 4  # there is no direction to go on in


def test_an_extension_costs_a_tenth_of_the_morph(pipe, keyframes):
    with counting(pipe.unet) as whole:
        keys = pipe.invert(keyframes[:2], num_inference_steps=20)
        path = pipe.sample(pipe.solve(keys, num_frames=9, max_evals=10))
    with counting(pipe.unet) as more:
        assert len(pipe.extend(path, 0.5).shown) >= len(path)
    assert 0 < more.points <= 0.1 * whole.points


# ----------------------------------------------------------------------------------- transport


def test_a_change_is_transported_to_a_third_image(pipe, keyframes):
    a, b, c = keyframes
    options = {"space": "clean", "generator": seeded(), **INVERT}
    keys = pipe.invert([a, b], ["a", "b"], **options)
    path = pipe.sample(pipe.solve(keys, "lerp", num_frames=4))
    found = pipe.transport(path, c, "c")
    both = lerp(*keys.clean[[1, 0]], 4), lerp(keys.clean[0], pipe.encode(c[None])[0], 4)
    torch.testing.assert_close(found.points, torch.cat([both[0], both[1][1:]]))
    assert len(found.geodesics) == 2 and len(found.keys) == 3
    torch.testing.assert_close(found.times, torch.linspace(0, 2, 7, dtype=torch.float64))
    score = score_of(pipe, 0.5, "c")
    change, bridge = score.alpha * path.latents, score.alpha * both[1]
    expected = analogy(score, change, bridge[-1], bridge=bridge) / score.alpha
    torch.testing.assert_close(found.transported, expected, atol=1e-4, rtol=1e-4)

    out = pipe.render(found, output_type="pt", paste_endpoints=True)
    torch.testing.assert_close(out.frames[0], c, atol=1e-6, rtol=0)
    assert len(out.frames) == 4 and len(out.reconstruction_error) == 3
    torch.testing.assert_close(pipe.render(found, output_type="pt").frames[1:], out.frames[1:])


@pytest.mark.parametrize("guidance", [1.0, pytest.param(2.0, marks=pytest.mark.slow)])
def test_the_third_image_has_conditions_of_its_own(pipe, keyframes, guidance):
    a, b, c = keyframes
    options = {"guidance_scale": guidance, **INVERT}
    keys = pipe.invert([a, b], ["a", "b"], "d", **options)
    path = pipe.sample(pipe.solve(keys, "lerp", num_frames=4))
    by_prompt = pipe.transport(path, c, "c")
    given = pipe.transport(path, c, conditions=pipe.condition("c", "d"))
    assert torch.equal(by_prompt.shown, given.shown)
    expected = pipe.invert([b, a, c], ["b", "a", "c"], "d", **options)
    torch.testing.assert_close(by_prompt.keys.points, expected.points, atol=1e-4, rtol=1e-4)
    found = by_prompt.keys.levels.conditions.positive["encoder_hidden_states"].values
    hidden = expected.levels.conditions.positive["encoder_hidden_states"].values
    torch.testing.assert_close(found, hidden, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(pipe.transport(path, c, "z").shown, given.shown, atol=1e-4)
    same = pipe.invert([a, b], "a", **INVERT)  # a prompt that the keyframes share is that of C
    shared = pipe.sample(pipe.solve(same, "lerp", num_frames=4))
    found, expected = (pipe.transport(shared, c, prompt) for prompt in (None, "a"))
    torch.testing.assert_close(found.shown, expected.shown, atol=1e-5, rtol=1e-5)


def test_the_metric_of_the_path_is_that_of_the_bridge(pipe, keyframes):
    keys = pipe.invert(keyframes[:2], "a", **INVERT)
    path = pipe.sample(pipe.solve(keys, **SOLVE))
    found = pipe.transport(path, keyframes[2], max_evals=3)
    three = pipe.invert(keyframes[[1, 0, 2]], "a", **INVERT)
    expected = pipe.solve(three, **SOLVE)
    assert [g.num_evals for g in found.geodesics] == [3, 3]
    torch.testing.assert_close(found.points[3:], expected.points[3:], atol=1e-3, rtol=1e-3)
    flat = pipe.transport(path, keyframes[2], metric="euclidean", max_evals=3)
    assert flat.metric == "euclidean"
    own = pipe.transport(path, keyframes[2], metric=TangentNormalMetric, max_evals=3)
    torch.testing.assert_close(own.points, found.points)


def test_an_extension_ends_with_the_latents_that_it_continues(pipe, pair):
    longer = pipe.extend(pair, 0.5)
    assert longer.beyond is not None
    for change in (pipe.sample, lambda path: pipe.retime(path, "rmse")):
        assert change(longer).beyond is None
    again = pipe.extend(pipe.sample(longer), 0.5)
    torch.testing.assert_close(again.beyond, longer.beyond)


def test_an_interrupted_transport_is_its_morph(pipe, pair, keyframes):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True

    found = pipe.transport(pair, keyframes[2], "c", callback_on_step_end=stop)
    assert found.transported is None and len(pipe.render(found).frames) == 9


# -------------------------------------------------------------------------------------- render


def test_a_path_is_rendered_in_every_type(pipe, pair, keyframes):
    out = {kind: pipe.render(pair, output_type=kind) for kind in ("pil", "np", "pt", "latent")}
    assert [image.size for image in out["pil"].frames] == [(16, 16)] * 5
    assert out["np"].frames.shape == (5, 16, 16, 3)
    assert torch.equal(out["latent"].frames, pair.latents)
    np.testing.assert_allclose(out["np"].frames, out["pt"].frames.permute(0, 2, 3, 1), atol=1e-6)
    assert out["pt"].path is not None and torch.equal(out["pt"].latents, pair.points)
    pasted = pipe.render(pair, output_type="pt", paste_endpoints=True)
    assert torch.equal(pasted.frames[[0, -1]], keyframes[:2])
    assert torch.equal(pasted.frames[1:-1], out["pt"].frames[1:-1])
    several = pipe.render([pair, pair], output_type="pt")
    assert torch.equal(several.frames[1], out["pt"].frames) and len(several.path) == 2


def test_interpolated_attention_and_matched_noise(pipe, pair):
    """What DiffMorpher does while it samples; the keyframes are not touched by it."""
    solved = pipe.solve(pair.keys, "lerp", num_frames=5)
    plain = pipe.sample(solved).latents
    for options in ({"adain": True}, {"attention_interpolation": 0.5}):
        found = pipe.sample(solved, **options)
        torch.testing.assert_close(found.latents[[0, -1]], plain[[0, -1]], atol=1e-4, rtol=0)
        assert not torch.allclose(found.latents, plain, atol=1e-4)
    assert found.attention_interpolation == 0.5


# ----------------------------------------------------------------------------------- refusals

PAIRS = r"`distance` must give \(4,\) finite values of at least 0 for 4 pairs of frames"
C = torch.zeros(3, 16, 16)

REFUSED = [
    ("retime", {"distance": ""}, "`distance` must be 'lpips', 'rmse' or a function.* got ''"),
    ("retime", {"distance": None}, "`distance` must be 'lpips', 'rmse' or .* got None"),
    ("retime", {"distance": lambda x, y: torch.zeros(3, 3)}, PAIRS),
    ("retime", {"distance": lambda x, y: torch.full((len(x),), NAN)}, PAIRS),
    ("retime", {"distance": lambda x, y: -torch.ones(len(x))}, PAIRS),
    ("retime", {"distance": lambda x, y: None}, PAIRS + ", but gave NoneType"),
    ("retime", {"max_batch_size": 0}, "`max_batch_size` must be a whole number of at least 1"),
    ("retime", {"callback_on_step_end": 3}, "`callback_on_step_end` must be a function"),
    ("extend", {"share": -0.5}, "`share` must not be negative, but got -0.5"),
    ("extend", {"share": NAN}, "`share` must be a finite number, but got nan"),
    ("transport", {"image": None}, "Image 0 must be .* but got NoneType"),
    ("transport", {"image": C[:, :8]}, r"`image` must have the keyframes' size, but is \(3, 8,"),
    ("transport", {"prompt": None}, "have prompts of their own: give the `prompt` of `image`"),
    ("transport", {"prompt": ["a"]}, "`prompt` must be a str, but got list"),
    ("transport", {"conditions": 3, "prompt": None}, "`conditions` must be a Conditions"),
    ("transport", {"metric": "geodesic"}, "`metric` must be one of .* but got 'geodesic'"),
    ("transport", {"max_evals": 0}, "`max_evals` must be a whole number of at least 1"),
    ("transport", {"callback_on_step_end": 3}, "`callback_on_step_end` must be a function"),
    ("render", {"output_type": "gif"}, "`output_type` must be one of .*, but got 'gif'"),
    ("render", {"output_type": None}, "`output_type` must be one of .* but got None"),
    ("render", {"max_batch_size": 0}, "`max_batch_size` must be a whole number of at least 1"),
]
GIVEN = {"extend": {"share": 0.5}, "transport": {"image": C, "prompt": "c"}}


@pytest.mark.parametrize(("stage", "arguments", "message"), REFUSED)
def test_stages_that_are_refused(pipe, pair, stage, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(pipe, stage)(pair, **GIVEN.get(stage, {}) | arguments)


def test_prompt_and_conditions_of_the_third_image_exclude_each_other(pipe, pair):
    with pytest.raises(ValueError, match="Give `prompt` or `conditions`, not both"):
        pipe.transport(pair, C, "c", conditions=pipe.condition("c"))
    several = pipe.condition(["c", "d"])
    with pytest.raises(ValueError, match="`conditions` must be those of one image, but .* for 2"):
        pipe.transport(pair, C, conditions=several)


def test_paths_that_do_not_fit_a_stage(pipe, pair, morph, keyframes):
    solved = pipe.solve(pair.keys, "lerp", num_frames=3)
    for use in (
        lambda: pipe.extend(solved, 0.5),
        lambda: pipe.transport(solved, keyframes[2], "c"),
        lambda: pipe.render(solved),
    ):
        with pytest.raises(ValueError, match=r"no clean latents yet: call `pipe.sample\(path\)"):
            use()
    with pytest.raises(ValueError, match="one keyframe to another, but has 3 keyframes"):
        pipe.transport(morph, keyframes[2], "c")
    moved = pipe.transport(pair, keyframes[2], "c")
    for use in (
        lambda: pipe.sample(moved),
        lambda: pipe.retime(moved, "rmse"),
        lambda: pipe.extend(moved, 0.5),
        lambda: pipe.transport(moved, keyframes[2], "c"),
    ):
        with pytest.raises(ValueError, match="transported path can be rendered and saved"):
            use()
    for options in ({"adain": True}, {"attention_interpolation": 0.5}):
        with pytest.raises(ValueError, match="options of sampling.*space='clean' is not sampled"):
            pipe.sample(pipe.solve(morph.keys, "lerp", num_frames=3), **options)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_transformers_have_no_blocks_that_sample_up(kind, keyframes):
    pipe = make(kind)
    path = pipe.solve(pipe.invert(keyframes[:2], "a", **INVERT), "lerp", num_frames=3)
    with pytest.raises(ValueError, match="no self-attention below blocks='up_blocks'"):
        pipe.sample(path, attention_interpolation=0.5)


def test_retiming_a_path_that_was_not_sampled_samples_it(pipe, pair):
    solved = replace(pair, latents=None)
    found, expected = (pipe.retime(one, "rmse") for one in (solved, pair))
    assert torch.equal(found.latents, expected.latents)


def test_images_of_any_kind_are_transported_to(pipe, pair):
    array = (C + 0.25).permute(1, 2, 0).numpy()
    image = PIL.Image.fromarray((array * 255).astype(np.uint8))
    found = [pipe.transport(pair, one, "c").shown for one in (array, C + 0.25, image)]
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[2], found[0], atol=0.1, rtol=0)
    assert len(pipe([pair.keys.pixels[0], image], num_frames=2, **_without(FAST)).frames) == 2


def _without(options):
    return {name: value for name, value in options.items() if name != "num_frames"}
