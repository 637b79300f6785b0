from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from models import FAST

from riemannian_diffusion import (
    DiffusionScore,
    EuclideanMetric,
    TangentNormalMetric,
    analogy,
    extrapolate,
    invert,
    length,
    slerp,
)
from riemannian_diffusion.baselines import density_geodesic, nao, noise_diffusion
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
from riemannian_diffusion.pipelines.starts import clean_roadmap


def test_frames_in_every_output_type(tiny_pipe, keyframes):
    out = {
        t: tiny_pipe(keyframes[:2], output_type=t, **FAST) for t in ("pil", "np", "pt", "latent")
    }
    assert [f.size for f in out["pil"].frames] == [(16, 16)] * 4
    assert out["np"].frames.shape == (4, 16, 16, 3)
    assert out["pt"].frames.shape == (4, 3, 16, 16)
    assert out["latent"].frames.shape == out["latent"].latents.shape == (4, 4, 8, 8)
    assert 0 <= out["pt"].frames.min() and out["pt"].frames.max() <= 1
    np.testing.assert_allclose(out["np"].frames, out["pt"].frames.permute(0, 2, 3, 1), atol=1e-6)
    np.testing.assert_allclose(
        np.stack([np.asarray(f) for f in out["pil"].frames]), out["np"].frames * 255, atol=0.51
    )
    assert len(out["pt"].geodesics) == 1 and len(out["pt"].reconstruction_error) == 2


def test_kinds_of_images_mean_the_same(tiny_pipe, keyframes):
    pixels = (keyframes[:2] * 255).round().byte()
    arrays = [p.permute(1, 2, 0).numpy() for p in pixels]
    kinds = [
        pixels,
        list(pixels),
        arrays,
        [a.astype(np.float32) / 255 for a in arrays],
        [PIL.Image.fromarray(a) for a in arrays],
        [p[None].float() / 255 for p in pixels],
    ]
    frames = [tiny_pipe(k, output_type="pt", **FAST).frames for k in kinds]
    for other in frames[1:]:
        torch.testing.assert_close(other, frames[0], atol=1e-5, rtol=0)


def test_tuple_has_the_entries_of_the_output(tiny_pipe, keyframes):
    named = tiny_pipe(keyframes[:2], output_type="pt", **FAST)
    entries = tiny_pipe(keyframes[:2], output_type="pt", return_dict=False, **FAST)
    assert len(entries) == 5
    assert torch.equal(entries[0], named.frames) and torch.equal(entries[2], named.latents)
    assert entries[3] == named.reconstruction_error and entries[4] is None


def test_batch_equals_single_morphs(tiny_pipe, keyframes):
    pairs = [[keyframes[0], keyframes[1]], [keyframes[1], keyframes[2], keyframes[0]]]
    texts = ["a", ["b", "c", "d"]]
    batch = tiny_pipe(pairs, texts, output_type="pt", **FAST)
    for i, (pair, text) in enumerate(zip(pairs, texts, strict=True)):
        single = tiny_pipe(pair, text, output_type="pt", **FAST)
        torch.testing.assert_close(batch.frames[i], single.frames, atol=1e-4, rtol=0)
        assert batch.reconstruction_error[i] == pytest.approx(single.reconstruction_error)
    assert [len(g) for g in batch.geodesics] == [1, 2]


def test_keyframes_are_frames(tiny_pipe, keyframes):
    out = tiny_pipe(
        keyframes, ["a", "b", "c"], output_type="latent", fixed_point_iterations=8, **FAST
    )
    assert len(out.frames) == 7
    clean = tiny_pipe.vae.encode(2 * keyframes - 1).latent_dist.mode()
    clean = clean * tiny_pipe.vae.config.scaling_factor
    torch.testing.assert_close(out.frames[::3], clean, atol=1e-3, rtol=0)
    expected = (out.frames[::3] - clean).square().flatten(1).mean(1)
    assert out.reconstruction_error == pytest.approx(expected.tolist(), rel=1e-3)
    pasted = tiny_pipe(keyframes, output_type="pt", paste_endpoints=True, **FAST)
    raw = tiny_pipe(keyframes, output_type="pt", **FAST)
    assert torch.equal(pasted.frames[::3], keyframes)
    assert torch.equal(pasted.frames[1], raw.frames[1])
    assert pasted.reconstruction_error == raw.reconstruction_error
    expected = (raw.frames[::3] - keyframes).square().flatten(1).mean(1)
    assert raw.reconstruction_error == pytest.approx(expected.tolist(), rel=1e-4)


def test_fixed_point_iterations_reconstruct(tiny_pipe, keyframes):
    errors = []
    for iterations in (0, 1, 3, 6):
        out = tiny_pipe(
            keyframes[:2],
            metric="slerp",
            output_type="latent",
            fixed_point_iterations=iterations,
            num_frames=2,
            num_inference_steps=10,
        )
        errors.append(max(out.reconstruction_error))
    assert errors[1] < errors[0] / 10 and errors[2] < errors[1] / 10 and errors[3] < 1e-8


def test_guidance_reconstructs_too(tiny_pipe, keyframes):
    options = {"guidance_scale": 3.0, "negative_prompt": "c", "fixed_point_iterations": 8}
    out = tiny_pipe(keyframes[:2], ["a", "b"], output_type="latent", **options, **FAST)
    assert max(out.reconstruction_error) < 1e-8
    plain = tiny_pipe(keyframes[:2], ["a", "b"], output_type="latent", **FAST)
    assert not torch.allclose(out.latents[0], plain.latents[0], atol=1e-4)
    options["guidance_damping"] = 0.5
    manifold = tiny_pipe(keyframes[:2], ["a", "b"], output_type="latent", **options, **FAST)
    assert max(manifold.reconstruction_error) < 1e-8
    assert not torch.allclose(out.latents[0], manifold.latents[0], atol=1e-4)


def test_clean_space_has_exact_ends_and_one_noise(tiny_pipe, keyframes):
    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        options = {"space": "clean", "output_type": "latent", "generator": generator}
        return tiny_pipe(keyframes[:2], **options, **FAST)

    first, again, other = run(0), run(0), run(1)
    clean = tiny_pipe.vae.encode(2 * keyframes[:2] - 1).latent_dist.mode()
    clean = clean * tiny_pipe.vae.config.scaling_factor
    torch.testing.assert_close(first.latents[[0, -1]], clean, atol=1e-6, rtol=0)
    assert torch.equal(first.latents, again.latents)
    assert not torch.equal(first.latents, other.latents)


def test_curves_are_no_geodesics(tiny_pipe, keyframes):
    out = tiny_pipe(keyframes[:2], metric="slerp", output_type="latent", **FAST)
    assert out.geodesics == [None]
    assert torch.equal(out.latents, slerp(out.latents[0], out.latents[-1], 4))


@pytest.mark.parametrize("name", ["nao", "noise_diffusion", "density"])
def test_baselines_by_name(tiny_pipe, keyframes, name):
    options = {"prompt": ["a", "b"], "negative_prompt": "c", "output_type": "latent"} | FAST
    runs = {
        metric: tiny_pipe(
            keyframes[:2], metric=metric, generator=torch.Generator().manual_seed(0), **options
        )
        for metric in ("slerp", name)
    }
    assert runs[name].geodesics == [None]
    x0, x1 = runs["slerp"].latents[[0, -1]]
    clean0, clean1 = 4 * tiny_pipe.vae.encode(2 * keyframes[:2] - 1).latent_dist.mode()
    level = DDIMScheduler.from_config(tiny_pipe.scheduler.config)
    level.set_timesteps(8)
    timestep = int(level.timesteps[4])
    alpha = float(level.alphas_cumprod[timestep]) ** 0.5

    def encode(texts):
        return tiny_pipe.encode_prompt(texts, "cpu", 1, False)[0]

    def score(timestep):
        hidden = {
            "encoder_hidden_states": encode(["a", "b"]),
            "negative_hidden_states": encode(["c"]),
        }
        return DiffusionScore(tiny_pipe.unet, level, timestep, mode="difference", **hidden)

    expected = {
        "nao": lambda: nao(x0, x1, 4),
        "noise_diffusion": lambda: noise_diffusion(
            x0, x1, 4, clean0=clean0, clean1=clean1, alpha=alpha
        ),
        "density": lambda: density_geodesic(
            score, timestep, x0, x1, 4, generator=torch.Generator().manual_seed(0)
        ),
    }[name]()
    torch.testing.assert_close(runs[name].latents, expected, atol=1e-4, rtol=0)


def test_noise_diffusion_keeps_what_it_makes_of_every_keyframe(tiny_pipe, keyframes):
    """Its ends are no keyframes, and its first frame is no exception."""
    out = tiny_pipe(keyframes, metric="noise_diffusion", output_type="latent", **FAST)
    assert len(out.frames) == 7 and min(out.reconstruction_error) > 1e-4


@pytest.mark.parametrize("space", ["clean", "noise"])
def test_a_solve_may_start_on_a_roadmap(tiny_pipe, keyframes, space):
    """With one evaluation the path is the start: the roadmap, inverted in noise space."""
    options = FAST | {"max_evals": 1, "output_type": "latent", "space": space}

    def run(**more):
        generator = torch.Generator().manual_seed(3)
        return tiny_pipe(keyframes[:2], ["a", "b"], generator=generator, **options | more)

    out = run(init="roadmap", max_samples=60)
    again = run(init="roadmap", max_samples=60)
    assert torch.equal(out.latents, again.latents)
    assert torch.equal(out.latents[[0, -1]], run().latents[[0, -1]])

    hidden = tiny_pipe.encode_prompt(["a", "b"], "cpu", 1, False)[0]
    clean = 4 * tiny_pipe.vae.encode(2 * keyframes[:2] - 1).latent_dist.mode()
    scheduler = DDIMScheduler.from_config(tiny_pipe.scheduler.config)
    generator = torch.Generator().manual_seed(3)
    if space == "clean":
        torch.randn(clean.shape[1:], generator=generator)  # the shared noise comes first
    final_abar = float(scheduler.final_alpha_cumprod)
    with torch.no_grad():
        found = clean_roadmap(
            lambda t: DiffusionScore(
                tiny_pipe.unet, scheduler, t, encoder_hidden_states=hidden.mean(0, keepdim=True)
            ),
            lambda noise: int(((1 / scheduler.alphas_cumprod - 1).sqrt() - noise).abs().argmin()),
            *clean,
            final_abar=final_abar,
            max_samples=60,
            generator=generator,
        )
        expected = found(*clean, 4)
        if space == "noise":
            scheduler.set_timesteps(8)
            expected = invert(
                lambda t: DiffusionScore(
                    tiny_pipe.unet, scheduler, t, encoder_hidden_states=hidden
                ),
                expected,
                scheduler.timesteps[-4:].tolist(),
                final_abar=final_abar,
                fixed_point_iterations=5,
            )
    both = run(init=["slerp", "roadmap"], max_samples=60, max_evals=2)
    energies = [run(init="slerp").geodesics[0].energy, out.geodesics[0].energy]
    assert both.geodesics[0].energy == min(energies)
    assert len(found.samples) == 60
    torch.testing.assert_close(out.latents[1:-1], expected[1:-1], atol=1e-3, rtol=0)


def test_morphs_go_on_beyond_the_last_keyframe(tiny_pipe, keyframes):
    options = FAST | {"output_type": "latent", "metric": "lerp", "space": "clean"}
    short = tiny_pipe(keyframes, ["a", "b", "c"], **options)
    longer = tiny_pipe(keyframes, ["a", "b", "c"], extrapolate=0.7, **options)
    num = len(short.frames)
    assert num == 7 and torch.equal(longer.frames[:num], short.frames)
    assert torch.equal(longer.latents, short.latents)
    assert longer.reconstruction_error == short.reconstruction_error
    hidden = tiny_pipe.encode_prompt(["c"], "cpu", 1, False)[0]
    scheduler = DDIMScheduler.from_config(tiny_pipe.scheduler.config)
    noises = (1 / scheduler.alphas_cumprod - 1).sqrt()
    timestep = int((noises - 0.25).abs().argmin())
    score = DiffusionScore(tiny_pipe.unet, scheduler, timestep, encoder_hidden_states=hidden)
    gap = short.frames[-4:]
    expected = extrapolate(
        EuclideanMetric(),
        gap,
        0.7 * float(length(gap)),
        project=lambda x: score.denoise(score.alpha * x) / score.alpha,
    )
    torch.testing.assert_close(longer.frames[num - 4 :], expected, atol=1e-5, rtol=1e-4)
    same = tiny_pipe([keyframes[0]] * 2, extrapolate=1.0, **options)
    assert len(same.frames) == 4  # no direction to go on in


def test_an_analogy_is_carried_among_the_clean_latents(tiny_pipe, keyframes):
    options = FAST | {"output_type": "latent", "metric": "lerp", "space": "clean"}
    a, b, c = keyframes
    found = tiny_pipe([a, b], ["a", "b", "c"], analogy=c, **options)
    both = tiny_pipe([b, a, c], ["b", "a", "c"], **options)
    assert torch.equal(found.latents, both.latents) and len(found.geodesics) == 2
    assert found.reconstruction_error == both.reconstruction_error
    hidden = tiny_pipe.encode_prompt(["c"], "cpu", 1, False)[0]
    scheduler = DDIMScheduler.from_config(tiny_pipe.scheduler.config)
    timestep = int(((1 / scheduler.alphas_cumprod - 1).sqrt() - 0.5).abs().argmin())
    score = DiffusionScore(tiny_pipe.unet, scheduler, timestep, encoder_hidden_states=hidden)
    path, way = both.frames[:4].flip(0), both.frames[3:]
    expected = score.alpha * torch.stack([path[0], way[-1]])
    expected = analogy(score, score.alpha * path, expected[1], way=score.alpha * way) / score.alpha
    assert len(found.frames) == 4
    torch.testing.assert_close(found.frames, expected, atol=1e-5, rtol=1e-4)

    options["output_type"] = "pt"
    pasted = tiny_pipe([[a, b], [b, a]], analogy=[c, c], paste_endpoints=True, **options)
    single = tiny_pipe([b, a], analogy=c, **options)
    torch.testing.assert_close(pasted.frames[1][1:], single.frames[1:], atol=1e-5, rtol=0)
    assert pasted.reconstruction_error[1] == pytest.approx(single.reconstruction_error, rel=1e-4)
    torch.testing.assert_close(pasted.frames[0][0], c, atol=1e-6, rtol=0)


def test_an_interrupted_analogy_is_its_morph(tiny_pipe, keyframes):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True

    options = FAST | {"output_type": "latent", "metric": "lerp", "callback_on_step_end": stop}
    found = tiny_pipe(keyframes[:2], analogy=keyframes[2], **options)
    assert len(found.frames) == 7


def test_metric_factory_sees_the_score_of_the_level(tiny_pipe, keyframes):
    seen = []

    def metric(score):
        seen.append(score)
        return TangentNormalMetric(score, normal_weight=7.0)

    options = dict(FAST, num_inference_steps=50, strength=0.6)
    out = tiny_pipe(keyframes[:2], ["a", "b"], metric=metric, score_mode="difference", **options)
    (score,) = seen
    assert score.timestep == 581 and score.mode == "difference"
    assert score.encoder_hidden_states.shape[0] == 2 and score.negative_hidden_states.shape[0] == 1
    assert out.geodesics[0].num_evals == 3


def test_named_metrics_run(tiny_pipe, keyframes):
    for metric in ("tangent_normal", "score_jacobian", "stein", "euclidean", "lerp"):
        out = tiny_pipe(keyframes[:2], metric=metric, output_type="pt", **FAST)
        assert out.frames.isfinite().all()


def test_callback_changes_latents_and_interrupts(tiny_pipe, keyframes):
    seen = []

    def count(pipe, step, timestep, tensors):
        seen.append((step, timestep, tensors["latents"].shape))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else {}

    out = tiny_pipe(keyframes[:2], output_type="latent", callback_on_step_end=count, **FAST)
    assert [s[0] for s in seen] == [0, 1, 2, 3]
    assert [s[1] for s in seen] == sorted((s[1] for s in seen), reverse=True)
    assert not out.frames.any()

    def stop(pipe, step, timestep, tensors):
        seen.append(step)
        pipe._interrupt = step == 1

    seen.clear()
    tiny_pipe(keyframes[:2], callback_on_step_end=stop, **FAST)
    assert seen == [0, 1]


def test_save_load_and_from_pipe(tiny_pipe, keyframes, tmp_path):
    expected = tiny_pipe(keyframes[:2], output_type="pt", **FAST).frames
    tiny_pipe.save_pretrained(tmp_path)
    loaded = GeodesicInterpolationPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(
        loaded(keyframes[:2], output_type="pt", **FAST).frames, expected, atol=1e-5, rtol=0
    )
    plain = StableDiffusionPipeline.from_pipe(loaded)
    back = GeodesicInterpolationPipeline.from_pipe(plain)
    back.set_progress_bar_config(disable=True)
    torch.testing.assert_close(
        back(keyframes[:2], output_type="pt", **FAST).frames, expected, atol=1e-5, rtol=0
    )


def test_other_schedulers_are_converted_and_kept(tiny_pipe, keyframes):
    expected = tiny_pipe(keyframes[:2], output_type="pt", **FAST).frames
    pndm = PNDMScheduler.from_config(tiny_pipe.scheduler.config)
    tiny_pipe.scheduler = pndm
    torch.testing.assert_close(
        tiny_pipe(keyframes[:2], output_type="pt", **FAST).frames, expected, atol=1e-5, rtol=0
    )
    assert tiny_pipe.scheduler is pndm


def test_model_is_left_as_found(tiny_pipe, keyframes):
    processors = dict(tiny_pipe.unet.attn_processors)
    tiny_pipe(keyframes[:2], **FAST)
    assert all(tiny_pipe.unet.attn_processors[k] is v for k, v in processors.items())
    for parameter in tiny_pipe.unet.parameters():
        assert parameter.requires_grad and parameter.grad is None


def test_chunks_change_nothing(tiny_pipe, keyframes):
    runs = [
        tiny_pipe(keyframes[:2], ["a", "b"], output_type="pt", max_batch_size=size, **FAST).frames
        for size in (1, 3, None)
    ]
    for other in runs[1:]:
        torch.testing.assert_close(other, runs[0], atol=1e-4, rtol=0)


BAD = [
    ({"image": 0}, r"at least 2 images, but got 1"),
    ({"image": "single"}, r"`image` must be two or more images, but got Image"),
    ({"image": "sizes"}, r"one size, but got \(height, width\) \[\(16, 16\), \(12, 16\)\]"),
    ({"image": "factor"}, r"multiples of 2, but got \(15, 15\)"),
    ({"image": "nan"}, r"Image 1 has NaN or infinite values"),
    ({"image": "range"}, r"values in \[0, 1\] .* they span \[-1, 1\]"),
    ({"image": "grey"}, r"channels-first shape is \(1, 16, 16\)"),
    ({"image": "text"}, r"Image 0 must be a PIL image, an array or a tensor, but got str"),
    (
        {"extrapolate": 0.5, "analogy": torch.zeros(3, 16, 16)},
        "`analogy` and `extrapolate` exclude each other",
    ),
    ({"analogy": [torch.zeros(3, 16, 16)] * 3}, "`analogy` has 3 images: `image` must be as many"),
    ({"extrapolate": -0.5}, r"`extrapolate` must not be negative, but got -0.5"),
    ({"prompt": ["a", "b", "c"]}, r"got 3 prompts for 2 images"),
    ({"prompt": [1, 2]}, r"`prompt` must consist of strings"),
    ({"num_frames": 1}, r"`num_frames` must be a whole number of at least 2, but got 1"),
    (
        {"num_inference_steps": 0},
        r"`num_inference_steps` must be a whole number of at least 1, but got 0",
    ),
    ({"strength": 0.0}, r"`strength` must be in \(0, 1\], but got 0.0"),
    ({"strength": 1.1}, r"`strength` must be in \(0, 1\], but got 1.1"),
    ({"strength": 0.05}, r"leaves no step"),
    ({"metric": "geodesic"}, r"`metric` must be one of tangent_normal, .*, but got 'geodesic'"),
    ({"metric": "nao", "space": "clean"}, r"metric='nao' needs space='noise', but got 'clean'"),
    ({"metric": "density", "prompt": "a", "negative_prompt": "a"}, r"but both are 'a'"),
    ({"space": "latent"}, r"`space` must be one of .*, but got 'latent'"),
    (
        {"guidance_damping": 0.5, "guidance_scale": 1.0},
        "`guidance_damping` 0.5 needs a `guidance_scale` above 1, but got 1.0",
    ),
    ({"image": "single", "analogy": torch.zeros(3, 16, 16)}, "two or more images, but got Image"),
    ({"guidance_damping": 2}, r"`guidance_damping` must be in \[0, 1\], but got 2"),
    ({"score_mode": "cfg"}, r"`score_mode` must be one of .*, but got 'cfg'"),
    ({"output_type": "gif"}, r"`output_type` must be one of .*, but got 'gif'"),
    ({"max_batch_size": 0}, r"`max_batch_size` must be a whole number of at least 1, but got 0"),
    ({"max_samples": 0}, r"`max_samples` must be a whole number of at least 1, but got 0"),
    ({"init": ["slerp", "graph"]}, r"`init` must be one of .*'roadmap'.*, but got 'graph'"),
    ({"init": "graph"}, r"`init` must be one of .*'roadmap'.*, but got 'graph'"),
    ({"max_evals": 0}, r"`max_evals` must be a whole number of at least 1, but got 0"),
    (
        {"callback_on_step_end_tensor_inputs": ["noise"]},
        r"must be among \['latents'\], but got \['noise'\]",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[str(b[0]) for b in BAD])
def test_errors(tiny_pipe, keyframes, arguments, message):
    a, b = keyframes[:2]
    images = {
        0: [a],
        "single": PIL.Image.new("RGB", (16, 16)),
        "sizes": [a, b[:, :12]],
        "factor": [a[:, :15, :15], b[:, :15, :15]],
        "nan": [a, b * torch.nan],
        "range": [2 * a.clamp(0, 1) / a.max() - 1, b],
        "grey": [a[:1], b[:1]],
        "text": ["a.png", "b.png"],
    }
    arguments = {**FAST, **arguments}
    arguments["image"] = images.get(arguments.get("image"), [a, b])
    with pytest.raises(ValueError, match=message):
        tiny_pipe(**arguments)


def test_schedulers_that_cannot_be_converted(tiny_pipe, keyframes):
    tiny_pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler .* cannot be converted"):
        tiny_pipe(keyframes[:2], **FAST)
    tiny_pipe.scheduler = DDIMScheduler(beta_schedule="scaled_linear", prediction_type="bad")
    with pytest.raises(ValueError, match="prediction_type='bad'"):
        tiny_pipe(keyframes[:2], **FAST)


def test_interrupted_while_re_timing_the_last_whole_round_stays(tiny_pipe, keyframes):
    steps = []

    def stop(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = len(steps) == 5  # the first step of the second round

    options = FAST | {"output_type": "latent", "metric": "lerp", "extrapolate": 0.5}
    plain = tiny_pipe(keyframes[:2], **options | {"extrapolate": 0.0}).frames
    found = tiny_pipe(keyframes[:2], retime="rmse", callback_on_step_end=stop, **options).frames
    assert steps == [0, 1, 2, 3, 0]
    torch.testing.assert_close(found, plain)  # the first round, and nothing beyond it


def test_differences_of_equal_prompts_are_refused(tiny_pipe, keyframes):
    with pytest.raises(ValueError, match="'score_jacobian' reads the difference of `prompt`"):
        tiny_pipe(keyframes[:2], metric="score_jacobian", score_mode="difference", **FAST)
