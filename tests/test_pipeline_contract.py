"""What diffusers' `PipelineTesterMixin` asks of a pipeline, of every kind of model."""

from __future__ import annotations

import inspect
from functools import cache, partial
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    PyramidAttentionBroadcastConfig,
)
from diffusers.hooks import apply_pyramid_attention_broadcast
from models import KINDS, PROMPTED, make, silent, to_pil, waves

from riemannian_diffusion import DiffusionScore
from riemannian_diffusion.pipelines import AutoGeodesicInterpolationPipeline
from riemannian_diffusion.pipelines.known import WORKS

INVERT = {"num_inference_steps": 4, "strength": 0.5}
FAST = INVERT | {"num_frames": 3, "metric": "lerp"}
COMMUNITY = Path(__file__).parent.parent / "examples" / "community"
KEYFRAMES = waves(3)

pytestmark = pytest.mark.filterwarnings(
    "ignore::riemannian_diffusion.pipelines.quality.ImageWarning"
)


def texts(kind):
    return ["a", "zebra"] if kind in PROMPTED else ""


def frames(pipe, kind, image=KEYFRAMES[:2], prompt=None, **options):
    options = FAST | {"output_type": "pt"} | options
    if "conditions" not in options:
        options["prompt"] = texts(kind) if prompt is None else prompt
    return pipe(image, **options).frames


@cache
def expected(kind):
    """The frames of a kind of model. Everything below that changes nothing must return them."""
    return frames(make(kind), kind)


def check(pipe, kind, *, atol=1e-5, **options):
    found = frames(silent(pipe), kind, **options)
    torch.testing.assert_close(found, expected(kind), atol=atol, rtol=0)


def modules(pipe):
    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


every_kind = pytest.mark.parametrize("kind", KINDS)


# ----------------------------------------------------------------------------------- calls


@every_kind
def test_the_signature_has_the_usual_names(kind):
    pipe = KINDS[kind][0]
    usual = {"prompt", "image", "strength", "num_inference_steps", "guidance_scale", "generator"}
    usual |= {"negative_prompt", "output_type", "return_dict", "callback_on_step_end"}
    assert usual <= set(inspect.signature(pipe.__call__).parameters)
    usual = {"prompt_embeds", "negative_prompt_embeds", "cross_attention_kwargs"}
    usual |= {"ip_adapter_image", "ip_adapter_image_embeds", "do_classifier_free_guidance"}
    assert usual <= set(inspect.signature(pipe.condition).parameters)


@every_kind
def test_components_are_those_of_init(kind):
    given = KINDS[kind][2]()
    pipe = KINDS[kind][0](**given)
    parts = {n: part for n, part in given.items() if not isinstance(part, (bool, dict))}
    assert set(parts) == set(pipe.components) - (set(pipe._optional_components) - set(parts))
    assert all(pipe.components[n] is part for n, part in parts.items() if n != "scheduler")


@every_kind
def test_batches_are_stacked_single_morphs(kind):
    a, b, c = KEYFRAMES
    pipe, pairs = make(kind), [[a, b], [c, a], [b, c]]
    prompts = [["a", "b"], ["zebra", "a"], ["b", "b b"]] if kind in PROMPTED else ""
    for size in (1, 3):
        out = pipe(
            pairs[:size], prompts and prompts[:size], return_dict=False, output_type="np", **FAST
        )
        assert out[0].shape == (size, 3, 16, 16, 3)
    for i, pair in enumerate(pairs):
        single = frames(pipe, kind, pair, prompts and prompts[i], output_type="np")
        np.testing.assert_allclose(out[0][i], single, atol=1e-4, rtol=0)


@every_kind
def test_inputs_and_outputs_of_all_types_are_equal(kind):
    pipe = make(kind)
    found = {one: frames(pipe, kind, output_type=one) for one in ("pt", "np", "pil")}
    np.testing.assert_array_equal(found["np"], found["pt"].permute(0, 2, 3, 1).numpy())
    bytes_ = np.stack([np.asarray(frame) for frame in found["pil"]])
    assert np.abs(bytes_ / 255 - found["np"]).max() <= 0.5 / 255 + 1e-6
    images = to_pil(KEYFRAMES[:2])
    array = np.stack([np.asarray(image) for image in images]).astype(np.float32) / 255
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    base = frames(pipe, kind, images)
    for image in (array, tensor, list(array), list(tensor)):
        torch.testing.assert_close(frames(pipe, kind, image), base, atol=1e-5, rtol=0)
    output, entries = (pipe(images, return_dict=one, **FAST) for one in (True, False))
    assert len(entries) == len(output.keys()) or list(output)[0] == "frames"
    for one, other in zip(output.frames, entries[0], strict=True):
        assert one.tobytes() == other.tobytes()


@every_kind
def test_progress_bars_end_and_can_be_silenced(kind, capsys):
    pipe = make(kind)
    conditions = pipe.condition(texts(kind))  # tokenizers and processors have words of their own
    capsys.readouterr()
    frames(pipe, kind, conditions=conditions)
    assert capsys.readouterr() == ("", "")
    pipe.set_progress_bar_config(disable=False)
    frames(pipe, kind, conditions=conditions)
    shown = capsys.readouterr().err
    assert "Sampling" in shown and "2/2" in shown.split("Sampling")[-1]


@every_kind
def test_callbacks_change_latents_and_guidance(kind):
    pipe, scales = make(kind), []
    options = {"class_labels": [1, 2]} if kind == "dit" else {}
    conditions = pipe.condition(texts(kind), "b" if kind in PROMPTED else "", **options)
    guided = {"guidance_scale": 1.5, "conditions": conditions}

    def erase(pipe, step, timestep, tensors):
        assert set(tensors) <= set(pipe._callback_tensor_inputs)
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else tensors

    def raise_guidance(pipe, step, timestep, tensors):
        scales.append(pipe.guidance_scale)
        assert pipe.do_classifier_free_guidance == (pipe.guidance_scale > 1)
        assert pipe.num_timesteps == 2
        pipe._guidance_scale += 50
        return tensors

    latent = {"output_type": "latent", "conditions": conditions}
    assert not frames(pipe, kind, callback_on_step_end=erase, **latent).any()
    if kind in ("pixels", "flux2"):
        with pytest.raises(ValueError, match="guidance"):
            frames(pipe, kind, callback_on_step_end=raise_guidance, **guided)
        return
    plain = frames(pipe, kind, **guided)
    other = frames(pipe, kind, callback_on_step_end=raise_guidance, **guided)
    assert scales == [1.5, 51.5] and float((plain - other).abs().max()) > 1e-6
    scales.clear()
    torch.testing.assert_close(frames(pipe, kind, **guided), plain)  # nothing stays behind


# ------------------------------------------------------------------------------- saving and loading


@every_kind
def test_saved_and_loaded_with_variants(kind, tmp_path):
    pipe = make(kind)
    ours = type(pipe)
    pipe.save_pretrained(tmp_path / "plain")
    check(ours.from_pretrained(tmp_path / "plain"), kind)
    pipe.save_pretrained(tmp_path / "fp16", variant="fp16")
    check(ours.from_pretrained(tmp_path / "fp16", variant="fp16"), kind)
    name = "unet" if "unet" in pipe.components else "transformer"  # a variant of this alone
    with torch.no_grad():
        for parameter in pipe.network.parameters():
            parameter.add_(0.01)
    pipe.network.save_pretrained(tmp_path / "plain" / name, variant="fp16")
    mixed = silent(ours.from_pretrained(tmp_path / "plain", variant="fp16"))
    torch.testing.assert_close(frames(mixed, kind), frames(pipe, kind), atol=1e-5, rtol=0)


@every_kind
def test_optional_components_stay_none(kind, tmp_path):
    pipe = make(kind)
    conditions = pipe.condition(texts(kind))
    for name in pipe._optional_components:
        pipe.register_modules(**{name: None})
    pipe.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path)
    assert all(getattr(loaded, name) is None for name in pipe._optional_components)
    check(loaded, kind, conditions=conditions)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_kind
def test_half_precision_is_near_and_saved_as_it_is(kind, dtype, tmp_path):
    half = make(kind).to(dtype)
    found = frames(half, kind)
    assert found.dtype == torch.float32
    error = float((found - expected(kind)).square().mean().sqrt())
    assert error < {torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]
    half.save_pretrained(tmp_path, variant="half")
    loaded = type(half).from_pretrained(tmp_path, variant="half", torch_dtype=dtype)
    for one, other in zip(modules(half), modules(loaded), strict=True):
        states = one.state_dict(), other.state_dict()  # loading keeps a few weights in float32
        assert all(torch.equal(states[0][name], states[1][name].to(dtype)) for name in states[0])


@every_kind
def test_dtypes_and_devices_reach_every_component(kind):
    pipe = make(kind)
    pipe.to("cpu", torch.float64)
    assert all(p.dtype == torch.float64 for m in modules(pipe) for p in m.parameters())
    pipe.to("meta")
    assert all(p.device.type == "meta" for m in modules(pipe) for p in m.parameters())


@every_kind
def test_from_pipe_both_ways(kind):
    """Also from and to pipelines of other tasks; those that need more components say so."""
    ours = KINDS[kind][0]
    pipe = make(kind)
    done = 0
    for name in WORKS[ours.__name__]:
        theirs = getattr(diffusers, name, None)
        if theirs is None:  # in older versions
            continue
        arguments = inspect.signature(theirs.__init__).parameters.values()
        needed = {one.name for one in arguments if one.default is one.empty} - {"self"}
        if needed - set(pipe.components):
            continue
        again = ours.from_pipe(theirs.from_pipe(pipe))
        kept = {n: part for n, part in pipe.components.items() if n != "scheduler"}
        assert all(again.components[n] is part for n, part in kept.items())
        done += 1
    assert done
    check(again, kind)


@every_kind
def test_a_saved_model_loads_by_the_classes_of_diffusers(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    pipe, folder = make(kind), tmp_path / "model"
    pipe.save_pretrained(folder)
    if kind not in ("dit", "pixels"):  # those put other schedulers in place
        check(type(pipe).from_pipe(KINDS[kind][1].from_pretrained(folder)), kind)
    name = type(pipe).__name__.removesuffix("Pipeline")
    [file] = [one for one in COMMUNITY.iterdir() if f"class {name}(" in one.read_text()]
    options = {"custom_pipeline": str(file), "trust_remote_code": True}
    loaded = DiffusionPipeline.from_pretrained(folder, **options)
    check(loaded, kind)
    loaded.save_pretrained(tmp_path / "again")
    check(AutoGeodesicInterpolationPipeline.from_pretrained(tmp_path / "again"), kind)


# -------------------------------------------------------------------------------------- text alone

PLACES = {
    "flux": ("prompt_embeds", "pooled_prompt_embeds"),
    "flux2": ("prompt_embeds",),
    "klein": ("prompt_embeds",),
    "chroma": ("prompt_embeds", "", "prompt_attention_mask"),
    **dict.fromkeys(("xl", "sd3"), ("prompt_embeds", "", "pooled_prompt_embeds")),
    "sd": ("prompt_embeds",),
    "zimage": ("prompt_embeds",),
}
"""What `encode_prompt` returns for prompts; a mask comes second where it says nothing else."""


@pytest.mark.parametrize("kind", PROMPTED)
def test_text_encoders_and_the_rest_work_without_each_other(kind):
    given = KINDS[kind][2]()
    words = ("text_enc", "tokenizer", "scheduler")
    alone = {n: part if n.startswith(words) else None for n, part in given.items()}
    options = {"prompt": texts(kind), "device": "cpu", "num_images_per_prompt": 1}
    options |= {"do_classifier_free_guidance": False, "prompt_2": None, "prompt_3": None}
    encoder = KINDS[kind][0](**alone)
    known = inspect.signature(encoder.encode_prompt).parameters
    usual = inspect.signature(KINDS[kind][1].__call__).parameters
    defaults = {n: usual[n].default for n in known if n in usual and "prompt" not in n}
    options = defaults | options
    encoded = encoder.encode_prompt(**{n: v for n, v in options.items() if n in known})
    names = PLACES.get(kind, ("prompt_embeds", "prompt_attention_mask"))
    found = {n: value for n, value in zip(names, encoded, strict=False) if n}
    rest = {n: None if n.startswith(words[:2]) else part for n, part in given.items()}
    pipe = KINDS[kind][0](**rest)
    conditions = pipe.condition(**found, do_classifier_free_guidance=False)
    check(pipe, kind, conditions=conditions)


# ---------------------------------------------------------------------------- switches of networks


@every_kind
@pytest.mark.parametrize("switch", ["attention", "slicing", "tiling", "fused", "offload", "blocks"])
def test_switches_change_nothing(kind, switch):
    pipe = make(kind)
    if switch == "attention":
        pipe.enable_attention_slicing("max")
    elif switch == "fused":
        target = pipe if hasattr(pipe, "fuse_qkv_projections") else pipe.network
        if not hasattr(target, "fuse_qkv_projections"):
            pytest.skip("this network has none")
        target.fuse_qkv_projections()
    elif switch in ("offload", "blocks"):
        if not all(getattr(m, "_supports_group_offloading", True) for m in modules(pipe)):
            pytest.skip("diffusers refuses this network")
        options = {"offload_type": "leaf_level"}
        if switch == "blocks":
            options = {"offload_type": "block_level", "num_blocks_per_group": 1}
        pipe.enable_group_offload(onload_device=torch.device("cpu"), **options)
    else:
        vae = getattr(pipe, "vae", None)
        if not hasattr(vae, f"enable_{switch}"):
            pytest.skip("this model has none")
        getattr(vae, f"enable_{switch}")()
    check(pipe, kind, atol=1e-4)


@every_kind
def test_layerwise_casting(kind):
    pipe = make(kind)
    pipe.network.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert float((frames(pipe, kind) - expected(kind)).square().mean().sqrt()) < 0.1


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_freeu_is_another_score_and_can_be_taken_back(kind):
    pipe, options = make(kind), {"metric": "tangent_normal", "max_evals": 2}
    plain = frames(pipe, kind, **options)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert float((frames(pipe, kind, **options) - plain).abs().max()) > 1e-5
    pipe.disable_freeu()
    torch.testing.assert_close(frames(pipe, kind, **options), plain)


CACHES = [one for one in dir(diffusers) if one.endswith(("CacheConfig", "BroadcastConfig"))]
SKIPS = {"spatial_attention_block_skip_range": 2, "current_timestep_callback": lambda: 500}
OPTIONS = {
    "PyramidAttentionBroadcastConfig": SKIPS,
    "FasterCacheConfig": SKIPS | {"tensor_format": "BCHW"},
    "MagCacheConfig": {"num_inference_steps": 4, "calibrate": True},
}


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("kind", ["flux", "flux2", "klein", "chroma", "qwen"])
def test_caches_are_refused_before_the_work(kind, name, monkeypatch):
    pipe = make(kind)
    path = pipe.solve(pipe.invert(KEYFRAMES[:2], **INVERT), "lerp", num_frames=3)
    try:
        pipe.transformer.enable_cache(getattr(diffusers, name)(**OPTIONS.get(name, {})))
    except Exception as error:  # a cache that does not know the network
        pytest.skip(f"diffusers: {error}")
    with monkeypatch.context() as patch:  # caches are also told without their config
        patch.setattr(pipe.transformer, "_cache_config", None)
        with pytest.raises(ValueError, match="has a cache"):
            pipe.condition()
    for work in (pipe.condition, lambda: frames(pipe, kind), lambda: pipe.sample(path)):
        with pytest.raises(ValueError, match=name):
            work()
    pipe.transformer.disable_cache()
    check(pipe, kind)


def test_caches_without_a_config_are_refused():
    """Caches of networks that have no `enable_cache`, and in scores without a pipeline."""
    pipe = make("sd")
    config = PyramidAttentionBroadcastConfig(
        cross_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    apply_pyramid_attention_broadcast(pipe.unet, config)
    given = {"encoder_hidden_states": torch.zeros(1, 2, 16)}
    score = partial(DiffusionScore, pipe.unet, pipe.scheduler, 9, **given)
    for work in (score, lambda: frames(pipe, "sd")):
        with pytest.raises(ValueError, match="has a cache .*PyramidAttentionBroadcastHook"):
            work()


def test_lists_of_embeddings_that_are_refused():
    pipe = make("zimage")
    for given, message in (
        ([torch.zeros(2, 8), torch.zeros(3, 9)], r"must be a list of \(L, C\) of one width"),
        ([torch.zeros(2)], r"must be a list of \(L, C\) of one width"),
        ([torch.zeros(2, 8), None], r"`prompt_embeds\[1\]` must be a floating-point tensor"),
        ([], "must be a list"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.condition(prompt_embeds=given)
    given = [torch.zeros(2, 8), torch.zeros(2, 8)]
    with pytest.raises(ValueError, match="`prompt_embeds` must be a floating-point tensor"):
        make("sd").condition(prompt_embeds=given)  # its prompts have one length
