"""Single stages of a morph: condition, invert, solve and sample."""

from __future__ import annotations

import copy
import doctest
import importlib
import inspect
import math
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from models import (
    FAST,
    INVERT,
    KINDS,
    PROMPTED,
    SOLVE,
    counting,
    make,
    morph,
    seeded,
    to_pil,
    with_lora,
)
from PIL import Image
from torch.testing import assert_close

from riemannian_diffusion import (
    DiffusionScore,
    EuclideanMetric,
    PathLBFGS,
    TangentNormalMetric,
    Where,
    demo,
    invert,
    lerp,
    slerp,
    split,
)
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline, MorphPath, RoadmapStart
from riemannian_diffusion.pipelines.curves import METRICS
from riemannian_diffusion.pipelines.starts import clean_roadmap

NAN, INF = math.nan, math.inf
STAGES = {
    "conditioning": ("condition",),
    "morph_stages": ("invert", "solve", "sample"),
    "further_stages": ("retime", "extend", "transport", "render"),
}


@pytest.fixture(scope="module")
def pipe():
    return make("sd")


@pytest.fixture(scope="module")
def keys(pipe):
    return pipe.invert([A, B], **INVERT)


A, B = torch.full((3, 16, 16), 0.2), torch.linspace(0, 1, 768).view(3, 16, 16)


@pytest.mark.parametrize("stage", [name for names in STAGES.values() for name in names])
def test_the_example_of_a_stage_runs(stage):
    file = next(file for file, names in STAGES.items() if stage in names)
    module = importlib.import_module(f"riemannian_diffusion.pipelines.{file}")
    method = getattr(GeodesicInterpolationPipeline, stage)
    tests = doctest.DocTestFinder().find(inspect.unwrap(method), stage, module, globs={})
    (test,) = [one for one in tests if one.examples]
    found = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert found.attempted > 1 and found.failed == 0


# ------------------------------------------------------------------------------ kept objects


@pytest.mark.parametrize("kind", KINDS)
def test_a_kept_score_gives_the_same_values_after_another_call(kind, keyframes):
    """The values also stay the same after the pipeline has lost its networks."""
    pipe, kept = make(kind), []

    def metric(score):
        kept.append(score)
        return TangentNormalMetric(score)

    prompted = kind in PROMPTED
    options = FAST | {"output_type": "latent", "max_evals": 1}
    first = options | ({"guidance_scale": 2.0, "negative_prompt": "c"} if prompted else {})
    found = pipe(keyframes[:2], ["a", "b"] if prompted else "", metric=metric, **first)
    (score,), x = kept, found.latents
    where = Where([0.0, 0.3, 0.6, 1.0])
    with torch.no_grad():
        expected = score(x, where)
        pipe(keyframes[1:], "z" if prompted else "", guidance_scale=1.0, **options)
        assert torch.equal(score(x, where), expected)
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module):
                setattr(pipe, name, None)
        assert torch.equal(score(x, where), expected)


def test_a_kept_score_keeps_the_arguments_of_its_attention(keyframes):
    pipe, kept, values = with_lora(make("sd")), [], []

    def metric(score):
        kept.append(score)
        return EuclideanMetric()

    x = None
    for scale in (0.5, 0.0):
        conditions = pipe.condition("a", cross_attention_kwargs={"scale": scale})
        keys = pipe.invert(keyframes[:2], conditions=conditions, **INVERT)
        pipe.solve(keys, metric, **SOLVE)
        x = keys.points if x is None else x
        with torch.no_grad():
            values.append(kept[-1](x))
    with torch.no_grad():
        assert torch.equal(kept[0](x), values[0])
    assert not torch.allclose(values[0], values[1], atol=1e-4)


# -------------------------------------------------------------------------------------- invert


def test_keyframes_hold_what_a_path_needs(tiny_pipe, keyframes):
    keys = tiny_pipe.invert(keyframes, ["a", "b", "c"], **INVERT)
    assert torch.equal(keys.pixels, keyframes) and len(keys) == 3 and keys.num_gaps == 2
    assert torch.equal(keys.clean, tiny_pipe.encode(keyframes))
    hidden = tiny_pipe.encode_prompt(["a", "b", "c"], "cpu", 1, False)[0]
    schedule = keys.levels.schedule

    def level(t):
        return DiffusionScore(tiny_pipe.unet, tiny_pipe.scheduler, t, encoder_hidden_states=hidden)

    options = {"final_abar": schedule.final_abar, "tol": 1e-3}
    where = Where([0.0, 0.5, 1.0])
    with torch.no_grad():
        expected = invert(level, keys.clean, schedule.timesteps, where=where, **options)
    torch.testing.assert_close(keys.points, expected, atol=1e-5, rtol=1e-5)


def test_images_become_latents_and_back(tiny_pipe, keyframes):
    latents = tiny_pipe.encode(to_pil(keyframes), max_batch_size=2)
    assert latents.shape == (3, 4, 8, 8)
    back = tiny_pipe.decode(latents, max_batch_size=1)
    assert back.shape == keyframes.shape and back.min() >= 0 and back.max() <= 1
    torch.testing.assert_close(back, tiny_pipe.decode(latents), atol=1e-5, rtol=0)
    assert tiny_pipe.encode(keyframes[:1]).shape == (1, 4, 8, 8)


def test_clean_space_inverts_nothing(tiny_pipe, keyframes):
    with counting(tiny_pipe.unet) as counter:
        keys = tiny_pipe.invert(keyframes, space="clean", generator=seeded(), **INVERT)
    assert counter.calls == 0 and torch.equal(keys.points, keys.clean)
    assert torch.equal(keys.noise, torch.randn(keys.clean.shape[1:], generator=seeded()))


# -------------------------------------------------------------------- the number of frames


def test_each_gap_has_its_number_of_frames(tiny_pipe, keyframes):
    keys = tiny_pipe.invert(keyframes, **INVERT)
    path = tiny_pipe.solve(keys, num_frames=[3, 6], max_evals=2)
    assert len(path) == 8 and path.key_indices == [0, 2, 7]
    assert [gap for gap in path.gaps] == [slice(0, 3), slice(2, 8)]
    assert torch.equal(path.points[[0, 2, 7]], keys.points)
    expected = [0, 0.5, 1, 1.2, 1.4, 1.6, 1.8, 2]
    torch.testing.assert_close(path.times, torch.tensor(expected).double())
    assert [len(found.path) for found in path.geodesics] == [3, 6]
    for gap, metric in zip(
        path.gaps, path.geodesics, strict=True
    ):  # points are evenly spaced within each gap
        torch.testing.assert_close(metric.path, path.points[gap])
    called = tiny_pipe(keyframes, num_frames=[3, 6], output_type="latent", **INVERT, max_evals=2)
    assert torch.equal(called.latents, path.points)


def test_keyframes_at_chosen_frames(tiny_pipe, keyframes):
    keys = tiny_pipe.invert(keyframes, frame_numbers=[0, 2, 7], **INVERT)
    path = tiny_pipe.solve(keys, "slerp")
    assert len(path) == 8 and path.key_indices == [0, 2, 7]
    moved = tiny_pipe.solve(keys.placed([0, 4, 5]), "slerp")
    assert moved.key_indices == [0, 4, 5] and keys.frame_numbers == (0, 2, 7)
    assert len(tiny_pipe.solve(keys, "slerp", num_frames=4)) == 7
    assert len(tiny_pipe.solve(tiny_pipe.invert(keyframes, **INVERT), "slerp")) == 33


# ------------------------------------------------------------------------------ where it starts


def started(pipe, keys, init, **options):
    """The nodes of each gap after one evaluation, which are those of the start."""
    path = pipe.solve(keys, "euclidean", init=init, num_frames=4, max_evals=1, **options)
    return [found.nodes for found in path.geodesics]


@pytest.mark.parametrize("space", ["noise", "clean"])
def test_a_solve_starts_from_its_init(tiny_pipe, keyframes, space):
    keys = tiny_pipe.invert(keyframes[:2], space=space, generator=seeded(), **INVERT)
    ends = keys.points
    usual = {"noise": slerp, "clean": lerp}[space](*ends, 4)
    assert torch.equal(started(tiny_pipe, keys, None)[0], usual)
    bent = lerp(*ends, 4) + 0.1
    bent[0], bent[-1] = ends
    close = {"atol": 1e-5, "rtol": 1e-5}
    for init in (bent, lambda x0, x1, num: bent):
        torch.testing.assert_close(_nodes(tiny_pipe, keys, init), bent, **close)
    given = tiny_pipe.solve(keys, "euclidean", init=["slerp", "lerp"], **SOLVE)
    both = [tiny_pipe.solve(keys, "euclidean", init=one, **SOLVE) for one in ("slerp", "lerp")]
    least = min(one.geodesics[0].energy for one in both)
    assert given.geodesics[0].energy == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize("score_mode", [None, "conditional"])
def test_split_reads_each_keyframe_under_its_own_prompt(tiny_pipe, keyframes, score_mode):
    """Guided, through three keyframes: as a curve in a mode, and as a start as sampling reads."""
    options = {"guidance_scale": 2.0, "max_batch_size": 1, **INVERT}
    keys = tiny_pipe.invert(keyframes, ["a", "b", "c"], "d", **options)
    timestep, mode = keys.levels.schedule.timesteps[0], score_mode or "guided"

    def gap(i, mode):
        conditions = keys.levels.conditions.at_knots([i, i + 1])
        score = replace(keys.levels, conditions=conditions)(timestep, mode=mode)
        return split(score, *keys.points[i : i + 2], 4)

    path = tiny_pipe.solve(keys, "split", num_frames=4, score_mode=score_mode)
    assert path.geodesics == (None, None) and torch.equal(path.points[[0, 3, 6]], keys.points)
    for i in (0, 1):
        assert_close(path.points[3 * i : 3 * i + 4], gap(i, mode), rtol=1e-4, atol=1e-4)
    for i, start in enumerate(started(tiny_pipe, keys, "split", score_mode=score_mode)):
        assert_close(start, gap(i, "guided"), rtol=1e-4, atol=1e-4)


def _nodes(pipe, keys, init):
    """The path that a solve evaluates first."""
    seen = []
    options = {"init": init, "num_frames": 4, "max_evals": 1}
    pipe.solve(keys, "euclidean", on_event=seen.append, **options)
    return next(event.latents for event in seen if event.latents is not None)


@pytest.mark.parametrize("space", ["noise", "clean"])
def test_a_solve_may_start_from_images(tiny_pipe, keyframes, space):
    """The images are encoded and inverted under the conditions of their places."""
    frames = torch.stack([torch.lerp(*keyframes[:2], u) ** 2 for u in (0.0, 0.3, 0.6, 1.0)])
    options = {"space": space, **INVERT}
    keys = tiny_pipe.invert(keyframes[:2], "a", generator=seeded(), **options)
    expected = tiny_pipe.invert(frames, "a", **options).points
    expected[0], expected[-1] = keys.points
    for images in (list(frames), [PIL.Image.fromarray(_bytes(one)) for one in frames]):
        found = _nodes(tiny_pipe, keys, images)
        atol = 1e-4 if isinstance(images[0], torch.Tensor) else 0.2
        torch.testing.assert_close(found[1:-1], expected[1:-1], atol=atol, rtol=0)
        assert torch.equal(found[[0, -1]], keys.points)
    thinned = _nodes(tiny_pipe, keys, [*frames, frames[-1]])  # 5 images for 4 frames
    assert thinned.shape == expected.shape
    called = tiny_pipe(
        keyframes[:2], "a", init=list(frames), space=space, generator=seeded(), **FAST
    )
    assert len(called.frames) == 4


def _bytes(image):
    return (image * 255).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("space", ["clean", "noise"])
def test_a_solve_may_start_from_a_roadmap(tiny_pipe, keyframes, space):
    """The start is the roadmap between the clean latents, inverted in noise space."""
    options = INVERT | {"space": space}
    keys = tiny_pipe.invert(keyframes[:2], ["a", "b"], generator=seeded(3), **options)
    start = RoadmapStart(max_samples=60)
    (first,), (again,) = (started(tiny_pipe, keys, start, generator=seeded(4)) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(first[[0, -1]], keys.points)

    hidden = tiny_pipe.encode_prompt(["a", "b"], "cpu", 1, False)[0]
    scheduler = copy.deepcopy(tiny_pipe.scheduler)

    def level(hidden):
        return lambda t: DiffusionScore(tiny_pipe.unet, scheduler, t, encoder_hidden_states=hidden)

    final_abar = float(scheduler.final_alpha_cumprod)
    with torch.no_grad():
        found = clean_roadmap(
            level(hidden.mean(0, keepdim=True)),
            lambda noise: int(((1 / scheduler.alphas_cumprod - 1).sqrt() - noise).abs().argmin()),
            *keys.clean,
            final_abar=final_abar,
            max_samples=60,
            generator=seeded(4),
        )
        expected = found(*keys.clean, 4)
        if space == "noise":
            expected = invert(
                level(hidden),
                expected,
                keys.levels.schedule.timesteps,
                final_abar=final_abar,
                tol=1e-3,
                where=Where.even(4),
            )
    assert len(found.samples) == 60
    torch.testing.assert_close(first[1:-1], expected[1:-1], atol=1e-3, rtol=0)
    named = tiny_pipe(keyframes[:2], init=["slerp", RoadmapStart(20)], generator=seeded(), **FAST)
    assert len(named.frames) == 4


# ------------------------------------------------------------------------------------- metrics


def test_a_metric_factory_sees_the_score_of_the_level(tiny_pipe, keyframes):
    seen = []

    def metric(score):
        seen.append(score)
        return TangentNormalMetric(score, normal_weight=7.0)

    options = {"num_inference_steps": 50, "strength": 0.6, "metric": metric, **SOLVE}
    out = morph(tiny_pipe, keyframes[:2], ["a", "b"], score_mode="difference", **options)
    (score,) = seen
    assert score.level.timestep == 581 and score.mode == "difference"
    assert score.conditions.num_knots == 2
    assert score.conditions.negative["encoder_hidden_states"].num_knots == 1
    assert out.geodesics[0].num_evals == 3 and out.path.metric == "metric"


def test_metrics_may_be_several_from_coarse_to_fine(tiny_pipe, keys):
    path = tiny_pipe.solve(
        keys, lambda score: [EuclideanMetric(), TangentNormalMetric(score)], **SOLVE
    )
    alone = tiny_pipe.solve(keys, TangentNormalMetric, **SOLVE)
    assert path.geodesics[0].status == "max_evals" and path.points.isfinite().all()
    assert path.geodesics[0].lower_bound == pytest.approx(alone.geodesics[0].lower_bound)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("space", ["noise", "clean"])
def test_named_metrics_lower_their_energy(pipe, metric, space):
    keys = pipe.invert([A, B], space=space, generator=seeded(), **INVERT)
    path = pipe.solve(keys, metric, num_frames=5, max_evals=5)
    (found,) = path.geodesics
    energies = [energy for _, energy in found.iterates]
    assert path.metric == metric and path.points.isfinite().all()
    assert energies[-1] <= energies[0] and found.lower_bound <= found.energy * (1 + 1e-4)


def test_an_unknown_lower_bound_is_saved_and_loaded(pipe, keys, tmp_path):
    path = pipe.solve(keys, "likely", **SOLVE)
    path.save(tmp_path / "path.safetensors")
    loaded = MorphPath.load(tmp_path / "path.safetensors")
    (found,), (expected,) = loaded.geodesics, path.geodesics
    assert found.lower_bound == -INF and found.energy == expected.energy
    assert torch.equal(found.arc, expected.arc)


# ------------------------------------------------------------------------------- side by side


@pytest.mark.parametrize("space", ["noise", "clean"])
def test_keyframes_are_solved_side_by_side_as_if_alone(tiny_pipe, keyframes, space):
    a, b, c = keyframes
    options = {"space": space, "guidance_scale": 2.0, "max_batch_size": None, **INVERT}
    given = [([a, b], ["a", "b"]), ([b, c, a], "c")]
    several = [
        tiny_pipe.invert(*one, "d", generator=seeded(i), **options) for i, one in enumerate(given)
    ]
    with counting(tiny_pipe.unet) as together:
        found = tiny_pipe.solve(several, num_frames=4, max_evals=3)
    with counting(tiny_pipe.unet) as one_by_one:
        alone = [tiny_pipe.solve(one, num_frames=4, max_evals=3) for one in several]
    assert together.calls <= 0.6 * one_by_one.calls
    for one, other in zip(found, alone, strict=True):
        torch.testing.assert_close(one.points, other.points, atol=1e-4, rtol=1e-4)
        energies = [[g.energy for g in path.geodesics] for path in (one, other)]
        assert energies[0] == pytest.approx(energies[1], rel=1e-4)


def test_keyframes_of_different_levels_are_solved_side_by_side(tiny_pipe, keyframes):
    several = [
        tiny_pipe.invert(keyframes[:2], num_inference_steps=8, strength=strength)
        for strength in (0.25, 0.5)
    ]
    found = tiny_pipe.solve(several, **SOLVE)
    for one, keys in zip(found, several, strict=True):
        torch.testing.assert_close(
            one.points, tiny_pipe.solve(keys, **SOLVE).points, atol=1e-4, rtol=1e-4
        )


def test_a_solve_resumes_from_its_checkpoint(tiny_pipe, keyframes, tmp_path):
    keys = tiny_pipe.invert(keyframes, ["a", "b", "c"], **INVERT)
    options = {"num_frames": 4, "max_evals": 8, "rtol": 0.0}
    expected = tiny_pipe.solve(keys, **options)
    file = tmp_path / "solve.safetensors"

    class Stop(Exception):
        pass

    def stop(event):
        if event.done >= 9:
            raise Stop

    with pytest.raises(Stop):
        tiny_pipe.solve(keys, checkpoint=file, on_event=stop, **options)
    with counting(tiny_pipe.unet) as counter:
        found = tiny_pipe.solve(keys, checkpoint=file, **options)
    with counting(tiny_pipe.unet) as again:
        tiny_pipe.solve(keys, **options)
    assert torch.equal(found.points, expected.points) and counter.calls < again.calls
    assert [g.iterates for g in found.geodesics] == [g.iterates for g in expected.geodesics]


def test_paths_are_sampled_side_by_side_as_if_alone(tiny_pipe, keyframes):
    """Paths of one and of other keyframes; those of other levels are a batch of their own."""
    options = {"guidance_scale": 2.0, "max_batch_size": None, **INVERT}
    one = tiny_pipe.invert(keyframes[:2], ["a", "b"], "d", **options)
    other = tiny_pipe.invert(keyframes[1:], ["c", "d"], "e", **options)
    deep = tiny_pipe.invert(keyframes[:2], "a", "d", **options | {"strength": 1.0})
    clean = tiny_pipe.invert(keyframes[:2], space="clean", **INVERT)
    paths = [
        tiny_pipe.solve(keys, curve, num_frames=num)
        for keys, curve, num in [
            *((one, "slerp", 3), (deep, "slerp", 3), (one, "lerp", 4), (other, "slerp", 5)),
            (clean, "lerp", 3),
        ]
    ]
    with counting(tiny_pipe.unet) as together:
        found = tiny_pipe.sample(paths)
    with counting(tiny_pipe.unet) as one_by_one:
        alone = [tiny_pipe.sample(path) for path in paths]
    steps, deeper = (len(keys.levels.schedule.levels) for keys in (one, deep))
    assert together.calls == 2 * (steps + deeper)  # with and without the prompt
    assert one_by_one.calls == 2 * (3 * steps + deeper)
    assert together.points == one_by_one.points
    for a, b in zip(found, alone, strict=True):
        assert_close(a.latents, b.latents, atol=1e-4, rtol=1e-4)
    seen = []
    called = tiny_pipe.sample(
        paths, callback_on_step_end=lambda pipe, i, t, given: seen.append(len(given["latents"]))
    )
    assert seen == [len(path) for path in paths[:4] for _ in path.keys.levels.schedule.levels]
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(called, alone, strict=True))


@pytest.mark.slow
def test_four_metrics_from_one_inversion(shipped_pipe):
    """Four metrics through stages save three of the inversions of four calls."""
    images = [Image.open(path) for path in demo.endpoint_paths()]
    metrics = ("tangent_normal", "score_jacobian", "stein", "euclidean")
    invert, solve = {"num_inference_steps": 20}, {"num_frames": 5, "max_evals": 5}
    with counting(shipped_pipe.unet) as inversion:
        keys = shipped_pipe.invert(images, **invert)
    with counting(shipped_pipe.unet) as stages:
        solved = [shipped_pipe.solve(keys, one, **solve) for one in metrics]
        paths = [shipped_pipe.sample(path) for path in solved]
    with counting(shipped_pipe.unet) as together:
        shipped_pipe.sample(solved)
    with counting(shipped_pipe.unet) as last:
        shipped_pipe.sample(solved[-1])
    assert together.points == 4 * last.points and together.calls < 4 * last.calls
    with counting(shipped_pipe.unet) as calls:
        found = [
            shipped_pipe(images, metric=one, output_type="latent", **invert, **solve)
            for one in metrics
        ]
    assert all(torch.equal(p.latents, out.frames) for p, out in zip(paths, found, strict=True))
    assert calls.points == stages.points + 4 * inversion.points > stages.points


# --------------------------------------------------------------------------------- refusals

ARRAY = B.permute(1, 2, 0).numpy()
WIDE = torch.zeros(1, 12, 16)

IMAGES = [
    ([A], "at least 2 images, but got 1"),
    ([], "A morph needs at least 2 images, but got 0"),
    (A, r"channels-first shape is \(16, 16\)"),
    ([A, None], "Image 1 must be a PIL image, an array or a tensor, but got NoneType"),
    (["a.png", "b.png"], "Image 0 must be a PIL image, an array or a tensor, but got str"),
    ([A, B[:, :12]], r"one size, but got \(height, width\) \[\(16, 16\), \(12, 16\)\]"),
    ([A[:, :15, :15], B[:, :15, :15]], r"multiples of 2, but got \(15, 15\)"),
    ([A, B * NAN], "Image 1 has NaN or infinite values"),
    ([A * INF, B], "Image 0 has NaN or infinite values"),
    ([2 * A - 1, B], r"values in \[0, 1\] .* they span \[-0.6, -0.6\]"),
    ([A[:1], B[:1]], r"channels-first shape is \(1, 16, 16\)"),
    ([torch.zeros(4, 16, 16)] * 2, r"channels-first shape is \(4, 16, 16\)"),
    (ARRAY, r"one array of shape \(16, 16, 3\)"),
    ([ARRAY.astype(object)] * 2, "Image 0 must hold real numbers, but got object"),
    ([ARRAY.astype(str)] * 2, "Image 0 must hold real numbers, but got <U"),
    ([A, B.to(torch.complex64)], "Image 1 must hold real numbers.*torch.complex64"),
    ([A[:, :0], B[:, :0]], r"Image 0 has no pixels.*\(3, 0, 16\)"),
    ([PIL.Image.new("RGB", (0, 16))] * 2, r"Image 0 has no pixels.*\(3, 16, 0\)"),
    ([ARRAY * 1.3 + 0.5] * 2, r"values in \[0, 1\] \(or up to 255 or 65535\)"),
    ([(ARRAY * 255).astype(np.int16) - 9] * 2, "values from 0 to 65535, but they span"),
    ([[A, B], [A, B]], "Image 0 must be a PIL image.*but got list"),
]


@pytest.mark.parametrize(("image", "message"), IMAGES, ids=[one[1] for one in IMAGES])
def test_images_that_are_refused(pipe, image, message):
    with pytest.raises(ValueError, match=message):
        pipe.invert(image, **INVERT)


CONDITION = [
    ({"prompt": None}, "`prompt` must be one or more strings, but got None"),
    ({"prompt": ["a", 1]}, r"`prompt` must be one or more strings, but got \['a', 1\]"),
    ({"prompt": []}, "`prompt` must be one or more strings, but got none"),
    ({"negative_prompt": 3}, "`negative_prompt` must be a str, but got int"),
    ({"negative_prompt": ["a"]}, "`negative_prompt` must be a str, but got list"),
    ({"prompt_embeds": torch.zeros(16)}, r"`prompt_embeds` must be \(1, L, C\) .* got \(16,\)"),
    ({"prompt_embeds": WIDE[:0]}, r"`prompt_embeds` must be \(1, L, C\) .* got \(0, 12, 16\)"),
    ({"prompt_embeds": WIDE[..., :8]}, "`prompt_embeds` must be 16 wide for this model"),
    ({"prompt_embeds": WIDE * NAN}, "`prompt_embeds` must be .* has NaN or infinite ones"),
    ({"prompt_embeds": WIDE.long()}, "`prompt_embeds` must be .* but got torch.int64"),
    ({"prompt_embeds": WIDE.numpy()}, "`prompt_embeds` must be .* but got ndarray"),
    ({"prompt_embeds": WIDE, "prompt": "a"}, "`prompt` or `prompt_embeds`, but not both"),
    (
        {"negative_prompt_embeds": WIDE, "negative_prompt": "a"},
        "`negative_prompt` or `negative_prompt_embeds`, but not both",
    ),
    (
        {"negative_prompt_embeds": torch.cat([WIDE, WIDE + 1])},
        "must be the same for all keyframes, but got 2",
    ),
    ({"pooled_prompt_embeds": WIDE[0]}, "This model takes no `pooled_prompt_embeds`"),
    ({"ip_adapter_image_embeds": [WIDE]}, "need an IP-Adapter: call `load_ip_adapter`"),
    ({"ip_adapter_image": PIL.Image.new("RGB", (16, 16))}, "need an IP-Adapter"),
    ({"adaptation": 3}, "`adaptation` must be a Adaptation, but got int"),
    ({"cross_attention_kwargs": 3}, "`cross_attention_kwargs` must be a dict, but got int"),
]


@pytest.mark.parametrize(("arguments", "message"), CONDITION)
def test_conditions_that_are_refused(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe.condition(**arguments)


BAD_INVERT = [
    ({"prompt": ["a", "b", "c"]}, "there are 3 for 2 keyframes"),
    ({"space": None}, "`space` must be one of .* but got None"),
    ({"strength": 0.0}, r"`strength` must be in \(0, 1\], but got 0.0"),
    ({"strength": 1.1}, r"`strength` must be in \(0, 1\], but got 1.1"),
    ({"strength": 0.05}, "`strength` 0.05 of `num_inference_steps` 8 leaves no step"),
    ({"strength": NAN}, "`strength` must be a finite number, but got nan"),
    ({"strength": "x"}, "`strength` must be a finite number, but got 'x'"),
    ({"strength": True}, "`strength` must be a finite number, but got True"),
    ({"num_inference_steps": 0}, "`num_inference_steps` must be a whole .* at least 1, but got 0"),
    ({"num_inference_steps": 1.5}, "`num_inference_steps` must be a whole number.* got 1.5"),
    ({"guidance_scale": INF}, "`guidance_scale` must be a finite number, but got inf"),
    ({"guidance_scale": None}, "`guidance_scale` must be a finite number, but got None"),
    ({"guidance_scale": -1}, "`guidance_scale` must not be negative, but got -1"),
    ({"guidance_scale": "a"}, "`guidance_scale` must be a finite number, but got 'a'"),
    ({"true_cfg_scale": -1}, "`true_cfg_scale` must not be negative, but got -1"),
    ({"num_inference_steps": 5000}, "`num_inference_steps` must be at most 1000"),
    ({"on_event": 3}, "`on_event` must be a function, but got int"),
    ({"on_event": lambda: 3}, r"`on_event` must be a function of \(event\), but it is one of \(\)"),
    ({"guidance_damping": 2}, r"`guidance_damping` must be in \[0, 1\], but got 2"),
    (
        {"guidance_damping": 0.5, "guidance_scale": 1.0},
        "`guidance_damping` 0.5 needs a `guidance_scale` above 1, but got 1.0",
    ),
    ({"conditions": 3}, "`conditions` must be a Conditions, but got int"),
    ({"fixed_point_iterations": -1}, "`fixed_point_iterations` must be .* at least 0, but got -1"),
    ({"fixed_point_iterations": 1.5}, "`fixed_point_iterations` must be .* but got 1.5"),
    ({"frame_numbers": [0]}, r"`frame_numbers` must be 2 rising numbers from 0.* got \[0\]"),
    ({"frame_numbers": 5}, "`frame_numbers` must be a list of whole numbers, but got int"),
    ({"frame_numbers": [1, 2]}, r"rising numbers from 0.* got \[1, 2\]"),
    ({"frame_numbers": [0, 0]}, r"rising numbers from 0.* got \[0, 0\]"),
    ({"frame_numbers": [0, 2.5]}, r"`frame_numbers\[1\]` must be a whole number .* but got 2.5"),
    ({"max_batch_size": 0}, "`max_batch_size` must be a whole number of at least 1, but got 0"),
    ({"max_batch_size": True}, "`max_batch_size` must be a whole number .* but got True"),
    ({"generator": 3}, "`generator` must be a Generator, but got int"),
    ({"generator": [torch.Generator()]}, "`generator` must be a Generator, but got list"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INVERT)
def test_inversions_that_are_refused(pipe, arguments, message):
    networks = pipe.unet, pipe.vae.encoder, pipe.text_encoder
    with counting(*networks) as counter, pytest.raises(ValueError, match=message):
        pipe.invert([A, B], **INVERT | arguments)
    assert counter.calls == 0


def test_conditions_that_do_not_fit(pipe):
    conditions = pipe.condition("a")
    with pytest.raises(ValueError, match="or `conditions`, not both"):
        pipe.invert([A, B], "b", conditions=conditions, **INVERT)
    wider = make("xl").condition("a")
    with pytest.raises(ValueError, match="`conditions` have embeddings of width 32, but .* 16"):
        pipe.invert([A, B], conditions=wider, **INVERT)
    without = pipe.condition("a", do_classifier_free_guidance=False)
    with pytest.raises(ValueError, match="`guidance_scale` 2.0 needs negative conditions"):
        pipe.invert([A, B], conditions=without, guidance_scale=2.0, **INVERT)
    three = pipe.condition(prompt_embeds=WIDE.repeat(3, 1, 1))
    with pytest.raises(ValueError, match="there are 3 for 2 keyframes"):
        pipe.invert([A, B], conditions=three, **INVERT)


def test_embeddings_that_belong_together():
    with pytest.raises(ValueError, match="needs `pooled_prompt_embeds` with `prompt_embeds`"):
        make("xl").condition(prompt_embeds=torch.zeros(1, 12, 32))


BAD_SOLVE = [
    ({"metric": None}, "`metric` must be one of .* but got None"),
    ({"metric": 5}, "`metric` must be one of .* but got 5"),
    ({"metric": ""}, "`metric` must be one of .* but got ''"),
    ({"metric": EuclideanMetric()}, "a function `ScoreModel -> Metric`, but got <"),
    ({"metric": lambda score: 3}, "`metric` must make a Metric of a score, but made int"),
    ({"metric": lambda score: []}, "`metric` must make a Metric of a score"),
    ({"metric": lambda score: 3, "init": [A, B]}, "`metric` must make a Metric of a score"),
    ({"metric": lambda: 3}, r"`metric` must be a function of \(score\), but it is one of \(\)"),
    ({"num_frames": 1}, "`num_frames` must be a whole number of at least 2, but got 1"),
    ({"num_frames": 2.5}, "`num_frames` must be a whole number of at least 2, but got 2.5"),
    ({"num_frames": True}, "whole number of at least 2, but got True"),
    ({"num_frames": "many"}, "`num_frames` must be a whole number.* but got 'many'"),
    ({"num_frames": [1]}, r"`num_frames\[0\]` must be a whole number of at least 2, but got 1"),
    ({"num_frames": []}, "`num_frames` must be one number or one for each of 1 gaps, but got 0"),
    ({"num_frames": [3, 3]}, "one number or one for each of 1 gaps, but got 2"),
    ({"init": torch.zeros(5, 4, 8, 8)}, r"`init` must be \(4, 4, 8, 8\), but got \(5,"),
    ({"init": torch.full((4, 4, 8, 8), NAN)}, "`init` must be finite"),
    ({"init": torch.zeros(4, 4, 9, 8)}, r"`init` must be \(4, 4, 8, 8\), but got \(4, 4, 9, 8\)"),
    ({"init": lambda a: a}, r"`init` must be a function of \(x0, x1, num_points\), but .* \(a\)"),
    ({"init": ["slerp", [A]]}, "The images of `init` do not fit. A morph needs at least 2"),
    ({"checkpoint": 3}, "`checkpoint` must be the path of a file, but got int"),
    ({"checkpoint": "no/folder/x"}, "`checkpoint` no/folder/x cannot be written, for the folder"),
    ({"checkpoint": "."}, "`checkpoint` must be the path of a file, but . is a folder"),
    ({"on_event": 3}, "`on_event` must be a function, but got int"),
    ({"init": []}, "`init` must name at least one start, but got an empty list"),
    ({"init": 5}, "`init` must be one of slerp, lerp, split, roadmap, .* but got 5"),
    ({"init": "graph"}, "`init` must be one of .*roadmap.*, but got 'graph'"),
    ({"init": ["slerp", "graph"]}, "`init` must be one of .*roadmap.*, but got 'graph'"),
    ({"init": lambda *_: 3}, "`init` must return a path, but gave int"),
    ({"metric": "split", "score_mode": "difference"}, "metric='split' needs estimates of the"),
    ({"init": [A]}, "at least 2 images, but got 1"),
    ({"init": [A[:, :8], B[:, :8]]}, r"images of `init` must have the keyframes' size"),
    ({"init": [A, B * NAN]}, "Image 1 has NaN or infinite values"),
    ({"solver": "lbfgs"}, "`solver` must be a Solver, but got str"),
    ({"solver": PathLBFGS}, "`solver` must be a Solver, but got the class PathLBFGS"),
    ({"max_evals": 1.5}, "`max_evals` must be a whole number of at least 1, but got 1.5"),
    ({"rtol": NAN}, "`rtol` must be a finite number, but got nan"),
    ({"rtol": -1}, "`rtol` must not be negative, but got -1"),
    ({"num_quadrature": "3"}, "`num_quadrature` must be a whole number .* but got '3'"),
    ({"score_mode": "cfg"}, "`score_mode` must be one of .*, but got 'cfg'"),
    ({"score_mode": "difference"}, "reads the difference of `prompt` and `negative_prompt`"),
    ({"metric": "density"}, "reads the difference of `prompt` and `negative_prompt`"),
    ({"generator": 3}, "`generator` must be a Generator, but got int"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_SOLVE)
def test_solves_that_are_refused(pipe, keys, arguments, message):
    networks = pipe.unet, pipe.vae.encoder, pipe.text_encoder
    with counting(*networks) as counter, pytest.raises(ValueError, match=message):
        pipe.solve(keys, **SOLVE | arguments)
    assert counter.calls == 0


def test_other_things_than_keyframes_are_refused(pipe, keys, keyframes):
    path = pipe.solve(keys, "lerp", num_frames=2)
    for given in (path, [keys, path], keyframes, 3):
        with pytest.raises(ValueError, match="`keys` must be a Keyframes, but got"):
            pipe.solve(given)
    with pytest.raises(ValueError, match="`keys` must be keyframes or a list of them, but got an"):
        pipe.solve([])
    with pytest.raises(ValueError, match="`path` must be a path or a list of them, but got an"):
        pipe.render([])
    for stage in (pipe.sample, pipe.render, pipe.retime):
        with pytest.raises(ValueError, match="`path` must be a MorphPath, but got Keyframes"):
            stage(keys)
    three = pipe.invert(keyframes, **INVERT)
    with pytest.raises(ValueError, match="`init` takes images for two keyframes only"):
        pipe.solve(three, init=list(keyframes), **SOLVE)
    clean = pipe.invert(keyframes[:2], space="clean", **INVERT)
    for options, message in (
        ({"init": "split"}, "`init` 'split' needs `space` 'noise', but got 'clean'"),
        ({"metric": "split"}, "metric='split' needs space='noise', but got 'clean'"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.solve(clean, **options)
    with pytest.raises(ValueError, match="side by side must be in one space"):
        pipe.solve([keys, clean], **SOLVE)
    with pytest.raises(ValueError, match="`max_samples` must be a whole number of at least 1"):
        RoadmapStart(max_samples=0)


def put(latents):
    """A callback that replaces the latents."""
    return {"callback_on_step_end": lambda *_: {"latents": latents}}


BAD_SAMPLE = [
    ({"attention_interpolation": 1.5}, r"`attention_interpolation` must be in \[0, 1\]"),
    ({"attention_interpolation": NAN}, "`attention_interpolation` must be a finite number"),
    ({"callback_on_step_end": 3}, "`callback_on_step_end` must be a function, but got int"),
    ({"callback_on_step_end": lambda *_: 3}, "`callback_on_step_end` must return a dict.* int"),
    (put(None), '"latents" are .* but gave NoneType'),
    (put(torch.zeros(1, 4, 8, 8)), r'"latents" are \(3, 4, 8, 8\), but gave \(1, 4, 8, 8\)'),
    (put(torch.full((3, 4, 8, 8), NAN)), "`callback_on_step_end` made NaN or infinite latents"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_SAMPLE)
def test_samplings_that_are_refused(pipe, keys, arguments, message):
    path = pipe.solve(keys, "lerp", num_frames=3)
    with pytest.raises(ValueError, match=message):
        pipe.sample(path, **arguments)


def test_weights_that_are_broken(keyframes):
    pipe = make("sd")
    next(pipe.unet.parameters()).data.fill_(NAN)
    with pytest.raises(ValueError, match="Inverting the images gave NaN or infinite values"):
        pipe.invert(keyframes[:2], **INVERT)
    next(pipe.vae.parameters()).data.fill_(NAN)
    with pytest.raises(ValueError, match="Encoding the images gave NaN or infinite values"):
        pipe.invert(keyframes[:2], **INVERT)


def test_speeds_are_those_of_the_gaps(tiny_pipe, keyframes):
    keys = tiny_pipe.invert(keyframes, num_inference_steps=4)
    path = tiny_pipe.solve(keys, "lerp", num_frames=[3, 6])
    distances = (keys.points[1:] - keys.points[:-1]).flatten(1).norm(dim=1)
    expected = (distances / torch.tensor([2.0, 5.0])).tolist()
    assert path.speeds == pytest.approx(expected, rel=1e-5)
