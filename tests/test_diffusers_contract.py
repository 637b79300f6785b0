"""What diffusers' own tests ask of every Stable Diffusion pipeline with images."""

from __future__ import annotations

from dataclasses import replace

import accelerate
import numpy as np
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback, SDXLCFGCutoffCallback
from models import (
    FAST,
    INVERT,
    morph,
    randn,
    seeded,
    silent,
    stable_diffusion,
    stable_diffusion_xl,
    with_ip_adapter,
    with_lora,
)
from peft import get_peft_model_state_dict

from riemannian_diffusion import ddim_step
from riemannian_diffusion.pipelines import (
    GeodesicInterpolationPipeline,
    GeodesicInterpolationXLPipeline,
)
from riemannian_diffusion.pipelines.callbacks import Interrupted
from riemannian_diffusion.pipelines.quality import ImageWarning

OPTIONS = FAST | {"output_type": "np", "metric": "lerp"}


def make(kind=GeodesicInterpolationPipeline, **components):
    made = stable_diffusion_xl if "XL" in kind.__name__ else stable_diffusion
    return silent(kind(**made() | components))


@pytest.fixture(params=[GeodesicInterpolationPipeline, GeodesicInterpolationXLPipeline])
def pipe(request):
    return make(request.param)


def frames(pipe, keyframes, prompt=("a", "b"), **options):
    return morph(pipe, keyframes[:2], list(prompt), **OPTIONS | options).frames


def assert_close(found, expected, atol=1e-4):
    np.testing.assert_allclose(found, expected, atol=atol, rtol=0)


def test_a_safety_checker_flags_frames(keyframes):
    class Checker(torch.nn.Module):
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, images, clip_input):
            return images, [i % 2 == 1 for i in range(len(images))]

    class Extractor:
        def __call__(self, images, return_tensors):
            pixels = torch.zeros(len(images), 3, 4, 4)
            return type("Batch", (), {"pixel_values": pixels, "to": lambda self, d: self})()

    pipe = make()
    before = pipe(keyframes[:2], "a", **OPTIONS | {"output_type": "pt"})
    pipe.safety_checker, pipe.feature_extractor = Checker(), Extractor()
    with pytest.warns(ImageWarning, match="2 and 4 of 4"):
        out = pipe(keyframes[:2], "a", **OPTIONS | {"output_type": "pt"})
    assert out.nsfw_content_detected == [False, True, False, True]
    assert not out.frames[[1, 3]].any()  # black, as in diffusers
    assert torch.equal(out.frames[[0, 2]], before.frames[[0, 2]])
    # the last keyframe's error is that of its frame, not that of the black one
    assert out.reconstruction_error == before.reconstruction_error
    assert "2 and 4 of 4" in out.warnings[-1]


@pytest.mark.parametrize("way", ["model", "sequential", "group"])
def test_hooks_of_offloading_are_called(pipe, keyframes, way):
    """As `enable_*_offload` sets them, with the CPU for the accelerator."""
    expected = frames(pipe, keyframes, metric="tangent_normal")
    cpu, hook = torch.device("cpu"), None
    if way == "group":
        pipe.enable_group_offload(onload_device=cpu, offload_type="leaf_level")
    for module in (c for c in pipe.components.values() if isinstance(c, torch.nn.Module)):
        if way == "model":
            _, hook = accelerate.cpu_offload_with_hook(module, cpu, prev_module_hook=hook)
        elif way == "sequential":
            accelerate.cpu_offload(module, cpu, offload_buffers=len(module._parameters) > 0)
    if way == "sequential":
        assert next(pipe.unet.parameters()).device.type == "meta"
    assert_close(frames(pipe, keyframes, metric="tangent_normal"), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading needs a GPU")
@pytest.mark.parametrize("way", ["model", "sequential", "group"])
def test_offloading_from_a_gpu(pipe, keyframes, way):
    expected = frames(pipe, keyframes)
    switch = {
        "model": pipe.enable_model_cpu_offload,
        "sequential": pipe.enable_sequential_cpu_offload,
        "group": lambda: pipe.enable_group_offload(torch.device("cuda")),
    }
    switch[way]()
    assert_close(frames(pipe, keyframes), expected, atol=1e-2)


def test_encode_prompt_alone(pipe, keyframes):
    """Text encoders make embeddings without the rest, and the rest morphs without them."""
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    texts = {name: None for name in ("unet", "vae")}
    encoded = make(type(pipe), **texts).encode_prompt(["a", "b"], **options)
    names = ["prompt_embeds", "negative_prompt_embeds"]
    names += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    given = dict(zip(names, encoded, strict=False))
    without = {name: None for name in pipe.components if "text_enc" in name or "tokenizer" in name}
    rest = make(type(pipe), **without)
    options = OPTIONS | {"guidance_scale": 2.0}
    found = morph(rest, keyframes[:2], **given, **options).frames
    assert_close(found, pipe(keyframes[:2], ["a", "b"], **options).frames)


def test_loras(pipe, keyframes, tmp_path):
    bare = frames(pipe, keyframes)
    trained = with_lora(make(type(pipe)))
    state = get_peft_model_state_dict(trained.unet)
    type(pipe).save_lora_weights(tmp_path, unet_lora_layers=state)
    pipe.load_lora_weights(tmp_path)
    full = frames(pipe, keyframes)
    assert np.abs(full - bare).max() > 1e-3
    assert_close(full, frames(trained, keyframes))
    assert_close(frames(pipe, keyframes, cross_attention_kwargs={"scale": 0.0}), bare)
    pipe.unload_lora_weights()
    assert_close(frames(pipe, keyframes), bare)


def test_textual_inversion(keyframes):
    pipe = make()
    vector = torch.randn(16, generator=torch.manual_seed(0))
    pipe.load_textual_inversion({"<thing>": vector[None]})
    token = pipe.tokenizer.convert_tokens_to_ids("<thing>")
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[token], vector)
    other = frames(pipe, keyframes, prompt=("<thing>", "a"))
    assert np.abs(other - frames(pipe, keyframes, prompt=("a", "a"))).max() > 1e-5


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_ip_adapter_embeddings_follow_the_path(pipe, keyframes, guidance):
    bare = frames(pipe, keyframes, guidance_scale=guidance)
    with_ip_adapter(pipe)
    a, b = randn(2, 1, 6, dtype=torch.float32).unbind()  # (1, D) each
    seen = []

    def look(module, args, kwargs):
        seen.append(kwargs["added_cond_kwargs"]["image_embeds"][0])

    def run(*embeddings):
        embeds = torch.stack(embeddings)  # (P, 1, D)
        embeds = torch.cat([torch.zeros_like(embeds), embeds])
        options = {"guidance_scale": guidance, "ip_adapter_image_embeds": [embeds]}
        return frames(pipe, keyframes, **options)

    hook = pipe.unet.register_forward_pre_hook(look, with_kwargs=True)
    found = run(a, b)
    hook.remove()
    assert np.abs(found - bare).max() > 1e-4
    path = [one for one in seen if len(one) == 4 and one.abs().max() > 0][-1]
    shares = torch.linspace(0, 1, 4).view(4, 1, 1)
    torch.testing.assert_close(path, torch.lerp(a[None], b[None], shares))
    assert_close(run(a), run(a, a))


def test_ip_adapter_embeddings_without_negative_ones(pipe, keyframes):
    with_ip_adapter(pipe)
    embeds = randn(2, 1, 6, dtype=torch.float32)
    both = pipe.condition("a", ip_adapter_image_embeds=[torch.cat([0 * embeds, embeds])])
    options = {"ip_adapter_image_embeds": [embeds], "do_classifier_free_guidance": False}
    alone = pipe.condition("a", **options)
    found, expected = (
        pipe.invert(keyframes[:2], conditions=one, **INVERT).points for one in (alone, both)
    )
    assert torch.equal(found, expected) and alone.negative is None


@pytest.mark.parametrize("options", [{"space": "clean"}, {"space": "noise"}])
def test_the_same_seed_gives_the_same_frames(pipe, keyframes, options):
    runs = [
        frames(
            *(pipe, keyframes),
            metric="tangent_normal",
            generator=seeded(4),
            max_batch_size=size,
            **options,
        )
        for size in (8, 8, 3)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert_close(runs[2], runs[0])


def test_interruption_stops_sampling(pipe, keyframes):
    steps = []

    def stop(pipe, step, timestep, tensors):
        assert set(tensors) == {"latents"}
        steps.append(step)
        pipe._interrupt = step == 1

    frames(pipe, keyframes, callback_on_step_end=stop)
    assert steps == [0, 1]


def test_half_precision_is_near_and_saved_as_it_is(pipe, keyframes, tmp_path):
    expected = frames(pipe, keyframes)
    half = pipe.to(torch.float16)
    found = frames(half, keyframes)
    assert_close(found, expected, atol=2e-2)
    half.save_pretrained(tmp_path, variant="fp16", safe_serialization=True)
    loaded = type(pipe).from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.unet.dtype == torch.float16
    assert_close(frames(loaded, keyframes), found)


CUTOFFS = {
    GeodesicInterpolationPipeline: SDCFGCutoffCallback,
    GeodesicInterpolationXLPipeline: SDXLCFGCutoffCallback,
}


def test_callbacks_of_diffusers_end_guidance(pipe, keyframes):
    """Guidance that ends after step k gives the levels that a guidance of 0 has from there on."""
    keys = pipe.invert(keyframes[:2], ["a", "b"], "c", guidance_scale=3.0, **INVERT)
    path = pipe.solve(keys, "slerp", num_frames=3)
    callback = CUTOFFS[type(pipe)](cutoff_step_ratio=None, cutoff_step_index=1)
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append((pipe.guidance_scale, pipe.num_timesteps))
        return callback(pipe, step, timestep, tensors)

    look.tensor_inputs = callback.tensor_inputs
    found = pipe.sample(path, callback_on_step_end=look).latents
    assert seen == [(3.0, 4), (3.0, 4), (0.0, 4), (0.0, 4)]
    levels, where = keys.levels, path.where
    points, timesteps = path.points, levels.schedule.timesteps
    for i, timestep in enumerate(timesteps):
        score = (levels if i < 2 else replace(levels, guidance_scale=0.0))(timestep)
        noise = -score.sigma * score(points, where)
        last = i + 1 == len(timesteps)
        target = levels.schedule.final_abar if last else levels(timesteps[i + 1]).alpha ** 2
        points = ddim_step(points, noise, score.alpha**2, target)
    torch.testing.assert_close(found, points, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, pipe.sample(path).latents, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_embeds": torch.zeros(1)}, "has changed 'prompt_embeds'"),
        (3, 'must return a dict, whose "latents"'),
    ],
)
def test_changes_of_callbacks_that_are_refused(keyframes, change, message):
    def callback(pipe, step, timestep, tensors):
        return change

    callback.tensor_inputs = ["prompt_embeds"]
    with pytest.raises(ValueError, match=message):
        frames(make(), keyframes, callback_on_step_end=callback)
    callback.tensor_inputs = ["control_image"]
    with pytest.raises(ValueError, match="'control_image', which .* does not have"):
        frames(make(), keyframes, callback_on_step_end=callback)


@pytest.mark.parametrize("stage", ["invert", "solve"])
def test_interruption_stops_every_stage(keyframes, stage):
    pipe = make()

    def stop(event):
        pipe._interrupt = event.stage == stage

    with pytest.raises(Interrupted, match=f"has stopped the stage '{stage}'"):
        pipe(keyframes[:2], **OPTIONS | {"metric": "tangent_normal"}, on_event=stop)
    pipe(keyframes[:2], **OPTIONS)  # works again


IP_ADAPTERS = [
    ([torch.zeros(3, 1, 6)], r"as many negative ones before the positive ones, but got \[3\]"),
    ([torch.zeros(6, 1, 6)], "there are 3 for 2 keyframes"),
    ([None], r"`ip_adapter_image_embeds\[0\]` must be a floating-point tensor"),
    (torch.zeros(2, 1, 6), "`ip_adapter_image_embeds` must be a Sequence, but got Tensor"),
]


@pytest.mark.parametrize(("given", "message"), IP_ADAPTERS)
def test_ip_adapter_embeddings_that_are_refused(keyframes, given, message):
    pipe = with_ip_adapter(make())
    with pytest.raises(ValueError, match=message):
        frames(pipe, keyframes, prompt=("a",), ip_adapter_image_embeds=given)
