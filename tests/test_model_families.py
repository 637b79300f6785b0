"""The same morph through every kind of model, each against its own diffusers pipeline."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import accelerate
import models_flowb
import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler, StableDiffusionPipeline
from models import (
    EXACT,
    FAST,
    INVERT,
    KINDS,
    PROMPTED,
    counting,
    make,
    morph,
    randn,
    silent,
    stable_diffusion,
    unconditional,
    visited,
)

from riemannian_diffusion import Where
from riemannian_diffusion.levels import even_sigmas
from riemannian_diffusion.measures import rmse
from riemannian_diffusion.pipelines import (
    AutoGeodesicInterpolationPipeline,
    GeodesicInterpolationPipeline,
)


def prompts(kind):
    return ["a", "b"] if kind in PROMPTED else ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_morph_returns_its_keyframes(kind, keyframes):
    pipe = make(kind)
    out = morph(pipe, keyframes[:2], prompts(kind), **EXACT)
    assert len(out.frames) == 4 and out.frames.isfinite().all()
    assert max(out.reconstruction_error) < 1e-6
    shown = pipe(keyframes[:2], prompts(kind), **FAST)
    assert [frame.size for frame in shown.frames] == [(16, 16)] * 4
    assert 1 <= shown.geodesics[0].num_evals <= 3


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_single_morphs(kind, keyframes):
    pipe = make(kind)
    a, b, c = keyframes
    options = {"output_type": "latent", **FAST}
    texts = prompts(kind) and [prompts(kind)] * 2
    batch = pipe([[a, b], [c, a]], texts, **options)
    for i, pair in enumerate(([a, b], [c, a])):
        single = pipe(pair, prompts(kind), **options)
        torch.testing.assert_close(batch.frames[i], single.frames, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dit"])
def test_sampling_is_that_of_the_models_own_pipeline(kind, keyframes):
    """From the noise that our morph starts on, diffusers' own pipeline finds our clean latents."""
    ours, theirs = make(kind), KINDS[kind][1](**KINDS[kind][2]())
    theirs.set_progress_bar_config(disable=True)
    theirs.check_inputs = lambda *_, **__: None  # it would refuse some of our small sizes
    options = EXACT | {"metric": "slerp", "strength": 1.0, "num_frames": 2}
    options["spacing"] = "scheduler"
    guidance = 1.0 if kind in ("pixels", "flux") else 3.0
    steps = options["num_inference_steps"]
    prompt = prompts(kind)[:1] or ""
    found = morph(ours, [keyframes[0]] * 2, prompt, guidance_scale=guidance, **options)
    start = found.latents[:1]
    if kind == "pixels":
        scheduler = theirs.scheduler
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            noise = theirs.unet(start, t).sample
            start = scheduler.step(noise, t, start, use_clipped_model_output=False).prev_sample
        torch.testing.assert_close(found.frames[:1], start, atol=1e-3, rtol=0)
        return
    guided = {"guidance_scale": guidance}
    if kind == "qwen":
        guided = {"true_cfg_scale": guidance, "negative_prompt": ""}
    if kind == "zimage":
        guided["sigmas"] = even_sigmas(steps)  # not yet the default in diffusers 0.37
    end = visited(kind, theirs, start, num_inference_steps=steps, **guided)[-1]
    # The first level of diffusers' flows is pure noise; ours is a thousandth below it. The random
    # network of Chroma changes most with the timestep.
    atol = {"chroma": 0.1}.get(kind, 5e-3 if ours._is_flow else 1e-3)
    torch.testing.assert_close(found.frames[:1], end.view_as(found.frames[:1]), atol=atol, rtol=0)


@pytest.mark.parametrize("kind", PROMPTED)
def test_prompts_matter_and_guidance_reconstructs(kind, keyframes):
    pipe = make(kind)
    one, other = (morph(pipe, keyframes[:2], text, **EXACT).latents for text in ("a", "zebra"))
    assert not torch.allclose(one, other, atol=1e-6)
    guided = morph(pipe, keyframes[:2], "a", "b", guidance_scale=2.0, **EXACT)
    assert max(guided.reconstruction_error) < 1e-4
    assert not torch.allclose(one, guided.latents, atol=1e-6)


@pytest.mark.parametrize("kind", PROMPTED)
def test_embeddings_take_the_place_of_prompts(kind, keyframes):
    pipe = make(kind)
    expected = morph(pipe, keyframes[:2], ["a", "b"], **FAST).latents
    given = _embeddings(pipe, ["a", "b"])
    torch.testing.assert_close(morph(pipe, keyframes[:2], **given, **FAST).latents, expected)
    three = {name: value[:1].repeat(3, *[1] * (value.ndim - 1)) for name, value in given.items()}
    with pytest.raises(ValueError, match="there are 3 for 2 keyframes"):
        morph(pipe, keyframes[:2], **three, **FAST)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_loaded_and_taken_over(kind, keyframes, tmp_path):
    ours, theirs, _ = KINDS[kind]
    pipe = make(kind)
    options = {"output_type": "pt", **FAST}
    expected = pipe(keyframes[:2], prompts(kind), **options).frames
    theirs.from_pipe(pipe).save_pretrained(tmp_path / "theirs", safe_serialization=True)
    pipe.save_pretrained(tmp_path / "ours", variant="fp16")
    loaded = [
        AutoGeodesicInterpolationPipeline.from_pretrained(tmp_path / "theirs"),
        ours.from_pretrained(tmp_path / "ours", variant="fp16"),
        AutoGeodesicInterpolationPipeline.from_pipe(theirs.from_pipe(pipe)),
        ours.from_pipe(theirs.from_pretrained(tmp_path / "theirs")),
    ]
    for other in loaded:
        assert type(other) is ours
        other.set_progress_bar_config(disable=True)
        found = other(keyframes[:2], prompts(kind), **options).frames
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_models_that_none_fits(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(
        ValueError, match="is a KandinskyPipeline, which cannot be loaded: it has several"
    ):
        AutoGeodesicInterpolationPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_read_the_model_in_both_modes(kind, keyframes):
    """Forward products through every kind of attention are reverse ones, transposed."""
    keys = make(kind).invert(keyframes[:2], prompts(kind), **INVERT)
    score = keys.levels(keys.levels.schedule.timesteps[0])
    x = keys.points
    v, w = (randn(*x.shape, seed=i, dtype=x.dtype) for i in (0, 1))
    where = Where([0.3, 0.6])
    with torch.no_grad():
        forward, reverse = (score.jvp(x, v, where) * w).sum(), (score.vjp(x, w, where) * v).sum()
    torch.testing.assert_close(forward, reverse, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_split_and_likely_need_no_backward_pass(kind, keyframes):
    pipe = make(kind)
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer

    def forward_only(*_):
        assert not torch.is_grad_enabled()

    network.register_forward_hook(forward_only)
    keys = pipe.invert(keyframes[:2], prompts(kind), **INVERT)
    split = pipe.solve(keys, "split", num_frames=4)
    found = pipe.solve(keys, "likely", init="split", num_frames=4, max_evals=8)
    (solved,) = found.geodesics
    assert solved.iterates[-1][1] < solved.iterates[0][1]
    for path in (split, found):
        assert torch.equal(path.points[[0, -1]], keys.points) and path.points.isfinite().all()


def test_sizes_condition_xl(keyframes):
    pipe, seen = make("xl"), []

    def look(module, args, kwargs):
        seen.append(kwargs["added_cond_kwargs"])

    pipe.unet.register_forward_pre_hook(look, with_kwargs=True)
    wide = torch.cat([keyframes[:2], keyframes[:2]], 3)
    pipe([list(wide), list(keyframes[:2])], ["a", "b"], **FAST)
    ids = {tuple(call["time_ids"][0].tolist()) for call in seen}
    assert ids == {(16.0, 32.0, 0.0, 0.0, 16.0, 32.0), (16.0, 16.0, 0.0, 0.0, 16.0, 16.0)}


def test_flux_takes_guidance_as_an_input(keyframes):
    pipe = make("flux", guidance_embeds=True)
    found = []
    calls, explicit = [], FAST | {"fixed_point_iterations": 0}
    for scale in (1.0, 4.0):
        found.append(morph(pipe, keyframes[:2], "a", guidance_scale=scale, **EXACT))
        assert max(found[-1].reconstruction_error) < 1e-6
        with counting(pipe.transformer) as counter:
            morph(pipe, keyframes[:2], "a", guidance_scale=scale, **explicit)
        calls.append(counter.calls)
    assert not torch.allclose(found[0].latents, found[1].latents, atol=1e-6)
    assert calls[0] == calls[1]  # guidance costs nothing


def test_grey_images_of_a_grey_model(keyframes):
    pipe = make("pixels", channels=1)
    greys = keyframes[:2].mean(1, keepdim=True)
    out = pipe(greys, output_type="np", **FAST)
    assert out.frames.shape == (4, 16, 16, 1)
    arrays = [np.asarray(grey[0] * 255).round().astype(np.uint8) for grey in greys]
    shown = pipe([PIL.Image.fromarray(a) for a in arrays], **FAST).frames
    assert shown[0].mode == "L"
    again = pipe(arrays, **FAST).frames
    assert np.array_equal(np.asarray(shown[1]), np.asarray(again[1]))


def test_what_an_unconditional_model_has_not(keyframes):
    pipe = make("pixels")
    for options in ({"prompt": "a"}, {"negative_prompt": "b"}):
        with pytest.raises(ValueError, match="takes no `prompt`, no `negative_prompt` and no emb"):
            pipe(keyframes[:2], **options, **FAST)
    with pytest.raises(ValueError, match="`guidance_scale` 2.0 needs negative conditions"):
        pipe(keyframes[:2], guidance_scale=2.0, **FAST)
    with pytest.raises(ValueError, match="takes no `ip_adapter_image`"):
        pipe.condition(ip_adapter_image=keyframes[0])
    with pytest.raises(ValueError, match="takes no `cross_attention_kwargs`"):
        conditions = pipe.condition(cross_attention_kwargs={"scale": 0.5})
        pipe.invert(keyframes[:2], conditions=conditions, **INVERT)


def test_schedulers_of_ddpm_repositories(keyframes, tmp_path):
    DDPMPipeline(**unconditional()).save_pretrained(tmp_path)
    pipe = silent(AutoGeodesicInterpolationPipeline.from_pretrained(tmp_path))
    assert type(pipe.scheduler) is DDPMScheduler
    assert max(morph(pipe, keyframes[:2], **EXACT).reconstruction_error) < 1e-6


@pytest.mark.parametrize("kind", ["sd3", "flux", "sana", *models_flowb.KINDS])
def test_flows_refuse_curves_of_other_models(kind, keyframes):
    pipe = make(kind)
    for metric in ("nao", "noise_diffusion"):
        with pytest.raises(ValueError, match=f"metric='{metric}' is for models whose squared"):
            pipe(keyframes[:2], "a", metric=metric, **FAST)
    out = pipe(
        *(keyframes[:2], ["a", "b"]),
        negative_prompt="c",
        metric="density",
        output_type="latent",
        **FAST,
    )
    assert out.frames.isfinite().all()


@pytest.mark.skipif(
    not os.environ.get("RIEMANNIAN_DIFFUSION_MNIST"),
    reason="RIEMANNIAN_DIFFUSION_MNIST does not name a directory with MNIST",
)
def test_digits_through_their_own_model():
    """The network of the rotated digits is an unconditional repository like any other."""
    import digits

    images, _ = digits.load_mnist()
    turned = digits.rotate(images[:1].expand(2, -1, -1), torch.tensor([0.0, 0.5]))
    turned = F.pixel_unshuffle(turned, 2)  # its images have 4 channels
    folder = Path(digits.__file__).parent / "assets" / "rotated_mnist"
    pipe = AutoGeodesicInterpolationPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    keys = turned / 2 + 0.5
    options = {"num_inference_steps": 20, "strength": 0.4, "spacing": "scheduler"}
    options |= {"num_frames": 5, "max_evals": 10}
    changes = {}
    for name in ("geodesic", "slerp", "retime"):
        metric = "slerp" if name == "slerp" else "tangent_normal"
        out = morph(pipe, list(keys), output_type="pt", metric=metric, **options)
        if name == "retime":
            out = pipe.render(pipe.retime(out.path, "rmse"), output_type="pt")
        assert max(out.reconstruction_error) < 1e-4
        changes[name] = rmse(out.frames[:-1], out.frames[1:])
    assert changes["geodesic"].max() < 0.95 * changes["slerp"].max()
    assert changes["retime"].std() < 0.5 * changes["geodesic"].std()  # these are even already
    assert changes["retime"].std() < 0.05 * changes["retime"].mean()
    assert changes["retime"].sum() < 1.2 * changes["geodesic"].sum()


def _embeddings(pipe, texts):
    """Embeddings of prompts as `condition` takes them."""
    return _by_argument(pipe, pipe.condition(texts, do_classifier_free_guidance=False).positive)


def _by_argument(pipe, found):
    names = {"encoder_hidden_states": "prompt_embeds", "text_embeds": "pooled_prompt_embeds"}
    names["pooled_projections"] = "pooled_prompt_embeds"
    names["attention_mask"] = names["encoder_attention_mask"] = "prompt_attention_mask"
    given = {names[name]: condition.values[0] for name, condition in found.items()}
    if "prompt_attention_mask" in inspect.signature(pipe.encode_prompt).parameters:
        given.setdefault("prompt_attention_mask", torch.ones(given["prompt_embeds"].shape[:2]))
    return given


@pytest.mark.parametrize("kind", PROMPTED)
def test_one_negative_embedding_serves_all_prompts(kind, keyframes):
    pipe, options = make(kind), FAST | {"metric": "slerp", "guidance_scale": 2.0}
    expected = morph(pipe, keyframes[:2], ["a", "b"], "c", **options).frames
    negative = _by_argument(pipe, pipe.condition("", "c").negative)
    negative = {f"negative_{name}": value for name, value in negative.items()}
    found = morph(pipe, keyframes[:2], ["a", "b"], **negative, **options).frames
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    two = {f"negative_{n}": v for n, v in _embeddings(pipe, ["c", "d"]).items()}
    with pytest.raises(ValueError, match="must be the same for all keyframes, but got 2"):
        morph(pipe, keyframes[:2], ["a", "b"], **two, **options)


def test_flux_encodes_negative_prompts_to_the_length_of_the_prompts(keyframes):
    pipe = make("flux")
    given, negative = (
        dict(zip(("prompt_embeds", "pooled_prompt_embeds"), encoded[:2], strict=True))
        for encoded in (pipe.encode_prompt(text, None, max_sequence_length=6) for text in "ab")
    )
    options = FAST | {"metric": "lerp", "guidance_scale": 2.0, **given}
    found = morph(pipe, keyframes[:2], "", "b", **options).frames
    negative = {f"negative_{name}": value for name, value in negative.items()}
    expected = morph(pipe, keyframes[:2], **negative, **options).frames
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    other = morph(pipe, keyframes[:2], "", "c", **options).frames
    assert not torch.allclose(found, other, atol=1e-5)


def test_guidance_that_is_an_input_is_all_there_is(keyframes):
    pipe = make("flux", guidance_embeds=True)
    with pytest.raises(ValueError, match="nothing to damp"):
        morph(pipe, keyframes[:2], "a", guidance_scale=3.0, guidance_damping=0.5, **FAST)
    with pytest.raises(ValueError, match="mean the same"):
        make("sd").invert(keyframes[:2], "a", guidance_scale=2.0, true_cfg_scale=2.0, **INVERT)


def test_a_community_folder_is_its_pipeline(tmp_path):
    StableDiffusionPipeline(**stable_diffusion()).save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    text = index.read_text().replace(
        '"StableDiffusionPipeline"', '["pipeline", "GeodesicInterpolation"]'
    )
    index.write_text(text)
    pipe = AutoGeodesicInterpolationPipeline.from_pretrained(tmp_path)
    assert type(pipe) is GeodesicInterpolationPipeline


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("sd", "xl")])
@pytest.mark.parametrize("way", ["model", "sequential"])
def test_hooks_of_offloading_are_called(kind, way, keyframes):
    """As `enable_*_offload` sets them, with the CPU for the accelerator."""
    pipe, options = make(kind), FAST | {"output_type": "latent", "metric": "lerp"}
    expected = pipe(keyframes[:2], prompts(kind), **options).frames
    cpu, hook = torch.device("cpu"), None
    for module in (c for c in pipe.components.values() if isinstance(c, torch.nn.Module)):
        if way == "model":
            _, hook = accelerate.cpu_offload_with_hook(module, cpu, prev_module_hook=hook)
        else:
            accelerate.cpu_offload(module, cpu, offload_buffers=len(module._parameters) > 0)
    found = pipe(keyframes[:2], prompts(kind), **options).frames
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
