"""Calls of a pipeline, from images to frames."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import PIL.Image
import pytest
import torch
from models import EXACT, FAST, KINDS, PROMPTED, counting, make, morph, seeded

from riemannian_diffusion import DiffusionScore, slerp
from riemannian_diffusion.baselines import density_geodesic, nao, noise_diffusion


@pytest.fixture(scope="module")
def pipe():
    return make("sd")


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_has_at_most_20_arguments(kind):
    assert (
        len(inspect.signature(KINDS[kind][0].__call__).parameters) - 1 <= 20
    )  # `self` does not count


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


def test_kinds_of_images_give_the_same_frames(tiny_pipe, keyframes):
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
    assert len(entries) == 8
    assert torch.equal(entries[0], named.frames) and torch.equal(entries[2], named.latents)
    assert torch.equal(entries[5].points, named.path.points)
    assert entries[3] == named.reconstruction_error and entries[4] is None
    assert entries[6:] == (named.autoencoder_error, named.warnings)


def test_batch_equals_single_morphs(tiny_pipe, keyframes):
    pairs = [[keyframes[0], keyframes[1]], [keyframes[1], keyframes[2], keyframes[0]]]
    texts = ["a", ["b", "c", "d"]]
    batch = tiny_pipe(pairs, texts, output_type="pt", **FAST)
    for i, (pair, text) in enumerate(zip(pairs, texts, strict=True)):
        single = tiny_pipe(pair, text, output_type="pt", **FAST)
        torch.testing.assert_close(batch.frames[i], single.frames, atol=1e-4, rtol=0)
        assert batch.reconstruction_error[i] == pytest.approx(single.reconstruction_error)
    assert [len(g) for g in batch.geodesics] == [1, 2]


@pytest.mark.parametrize("space", ["noise", "clean"])
def test_morphs_are_inverted_in_one_batch_as_if_alone(tiny_pipe, keyframes, space):
    """Morphs of two sizes are two batches; prompts belong to a keyframe or to all."""
    a, b, c = keyframes
    narrow = [image[..., :8] for image in (c, a)]
    morphs, texts = [[a, b], [b, c], narrow], [["x", "y"], ["y", "z"], "x"]
    events = []
    options = FAST | {"space": space, "guidance_scale": 2.0}
    seeds = [seeded(i) for i in range(3)]
    batch = tiny_pipe(morphs, texts, generator=seeds, on_event=events.append, **options)
    inverted = {len(e.latents) for e in events if e.stage == "invert"}
    assert inverted == ({2, 4} if space == "noise" else set())
    for i, path in enumerate(batch.path):
        keys, alone = (
            path.keys,
            tiny_pipe.invert(
                morphs[i],
                texts[i],
                space=space,
                strength=options["strength"],
                num_inference_steps=options["num_inference_steps"],
                guidance_scale=2.0,
                generator=seeded(i),
            ),
        )
        assert keys.pixels.equal(alone.pixels)
        for name in ("clean", "points", "autoencoder_error"):
            one, other = getattr(keys, name), getattr(alone, name)
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        assert (keys.noise is None) == (space == "noise")
        assert space == "noise" or keys.noise.equal(alone.noise)


def test_batches_are_given_as_in_diffusers(tiny_pipe, keyframes):
    """A tensor of morphs, and lists of prompts, negative prompts and generators."""
    a, b, c = keyframes
    options = FAST | {"output_type": "pt", "space": "clean", "guidance_scale": 2.0}
    batch = tiny_pipe(
        torch.stack([torch.stack([a, b]), torch.stack([c, a])]),
        ["x", "y"],
        negative_prompt=["p", "q"],
        generator=[seeded(1), seeded(2)],
        **options,
    )
    assert batch.frames.shape[0] == 2
    for i, (pair, text, negative) in enumerate((((a, b), "x", "p"), ((c, a), "y", "q"))):
        single = tiny_pipe(pair, text, negative_prompt=negative, generator=seeded(i + 1), **options)
        torch.testing.assert_close(batch.frames[i], single.frames, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="`generator` is for 3 morphs, but `image` has 2"):
        tiny_pipe([[a, b], [c, a]], generator=[seeded()] * 3, **options)


def test_keyframes_are_frames(tiny_pipe, keyframes):
    out = morph(tiny_pipe, keyframes, ["a", "b", "c"], **EXACT)
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
        options = {"fixed_point_iterations": iterations, "num_inference_steps": 10}
        out = morph(tiny_pipe, keyframes[:2], metric="slerp", num_frames=2, **options)
        errors.append(max(out.reconstruction_error))
    assert errors[1] < errors[0] / 10 and errors[2] < errors[1] / 10 and errors[3] < 1e-8


def test_guidance_reconstructs_too(tiny_pipe, keyframes):
    given = (keyframes[:2], ["a", "b"], "c")
    out = morph(tiny_pipe, *given, guidance_scale=3.0, **EXACT)
    assert max(out.reconstruction_error) < 1e-8
    plain = morph(tiny_pipe, *given, **EXACT)
    assert not torch.allclose(out.latents[0], plain.latents[0], atol=1e-4)
    manifold = morph(tiny_pipe, *given, guidance_scale=3.0, guidance_damping=0.5, **EXACT)
    assert max(manifold.reconstruction_error) < 1e-8
    assert not torch.allclose(out.latents[0], manifold.latents[0], atol=1e-4)


def test_clean_space_has_exact_ends_and_one_noise(tiny_pipe, keyframes):
    def run(seed):
        options = {"space": "clean", "output_type": "latent", "generator": seeded(seed)}
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
        metric: tiny_pipe(keyframes[:2], metric=metric, generator=seeded(), **options)
        for metric in ("slerp", name)
    }
    assert runs[name].geodesics == [None]
    x0, x1 = runs["slerp"].latents[[0, -1]]
    clean0, clean1 = 4 * tiny_pipe.vae.encode(2 * keyframes[:2] - 1).latent_dist.mode()
    level = copy.deepcopy(tiny_pipe.scheduler)
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
        "density": lambda: density_geodesic(score, timestep, x0, x1, 4, generator=seeded()),
    }[name]()
    torch.testing.assert_close(runs[name].latents, expected, atol=1e-4, rtol=0)


def test_noise_diffusion_changes_every_keyframe(tiny_pipe, keyframes):
    """Its ends are not the keyframes, not even the first one."""
    out = tiny_pipe(keyframes, metric="noise_diffusion", output_type="latent", **FAST)
    assert len(out.frames) == 7 and min(out.reconstruction_error) > 1e-4


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


def test_a_call_does_not_change_the_model(tiny_pipe, keyframes):
    processors = dict(tiny_pipe.unet.attn_processors)
    tiny_pipe(keyframes[:2], **FAST)
    assert all(tiny_pipe.unet.attn_processors[k] is v for k, v in processors.items())
    for parameter in tiny_pipe.unet.parameters():
        assert parameter.requires_grad and parameter.grad is None


@pytest.mark.parametrize("size", [1, 3, None])
def test_chunks_do_not_change_the_frames(tiny_pipe, keyframes, size):
    options = FAST | {"output_type": "pt"}
    expected = tiny_pipe(keyframes[:2], ["a", "b"], **options).frames
    found = tiny_pipe(keyframes[:2], ["a", "b"], max_batch_size=size, **options).frames
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", ["noise", "clean"])
def test_the_call_equals_its_stages(kind, space, keyframes):
    pipe, prompt = make(kind), ["a", "b"] if kind in PROMPTED else ""
    options = {"space": space, "generator": seeded(), **FAST}
    expected = pipe(keyframes[:2], prompt, output_type="pt", **options)
    options |= {"output_type": "pt", "generator": seeded()}
    found = morph(pipe, keyframes[:2], prompt, **options)
    assert torch.equal(found.frames, expected.frames)
    assert torch.equal(found.latents, expected.latents)
    assert found.reconstruction_error == expected.reconstruction_error


def test_conditions_take_the_place_of_prompts(tiny_pipe, keyframes):
    a, b, c = keyframes
    options = FAST | {"output_type": "pt", "guidance_scale": 2.0}
    expected = tiny_pipe([[a, b], [c, a]], [["a", "b"], "c"], negative_prompt="d", **options)
    each = [tiny_pipe.condition(["a", "b"], "d"), tiny_pipe.condition("c", "d")]
    found = tiny_pipe([[a, b], [c, a]], conditions=each, **options)
    for one, other in zip(found.frames, expected.frames, strict=True):
        assert torch.equal(one, other)
    single = tiny_pipe([a, b], conditions=each[0], **options)
    torch.testing.assert_close(single.frames, found.frames[0], atol=1e-4, rtol=0)


A, B = torch.full((3, 16, 16), 0.2), torch.linspace(0, 1, 768).view(3, 16, 16)
SEVERAL = "`image` must be two or more images, but got "
REFUSED = [  # arguments that only the call has, and one argument of each stage
    ({"image": [[A, B], A]}, "Image 0 must be a PIL image.*but got list"),
    ({"image": [[], []]}, "A morph needs at least 2 images, but got 0"),
    ({"image": None}, SEVERAL + "NoneType"),
    ({"image": {"a": A, "b": B}}, SEVERAL + "dict"),
    ({"image": "a.png"}, SEVERAL + "str"),
    ({"image": (image for image in (A, B))}, SEVERAL + "generator"),
    ({"image": PIL.Image.new("RGB", (16, 16))}, SEVERAL + "Image"),
    ({"image": torch.tensor(1.0)}, SEVERAL + "Tensor"),
    ({"prompt": 3}, "`prompt` must be one or more strings, but got int"),
    ({"prompt": b"a"}, "`prompt` must be one or more strings, but got bytes"),
    ({"prompt": ["a", None]}, r"`prompt` must consist of strings, but got \['a', None\]"),
    ({"prompt": [["a"], ["b"]]}, r"consist of strings, but got \[\['a'\], \['b'\]\]"),
    ({"prompt": []}, "got 0 prompts for 2 images"),
    ({"prompt": ["a", "b", "c"]}, "got 3 prompts for 2 images"),
    ({"image": [[A, B]] * 2, "prompt": ["a", None]}, r"consist of strings, but got \[None\]"),
    ({"image": [[A, B]] * 2, "prompt": [["a"]] * 3}, "`prompt` is for 3 morphs, but `image` has 2"),
    ({"negative_prompt": 3}, "`negative_prompt` must be a str, but got int"),
    ({"num_frames": 1}, "`num_frames` must be a whole number of at least 2, but got 1"),
    ({"num_frames": [4, 4]}, "`num_frames` must be one number or one for each of 1 gaps.* got 2"),
    ({"metric": "geodesic"}, "`metric` must be one of tangent_normal, .*, but got 'geodesic'"),
    ({"metric": "nao", "space": "clean"}, "metric='nao' needs space='noise', but got 'clean'"),
    ({"space": "latent"}, "`space` must be one of .*, but got 'latent'"),
    ({"strength": 0.05}, "`strength` 0.05 of `num_inference_steps` 4 leaves no step"),
    ({"guidance_scale": -1}, "`guidance_scale` must not be negative, but got -1"),
    ({"guidance_scale": "a"}, "`guidance_scale` must be a finite number, but got 'a'"),
    ({"num_inference_steps": 5000}, "`num_inference_steps` must be at most 1000"),
    ({"on_event": 3}, "`on_event` must be a function, but got int"),
    ({"metric": lambda: 3}, r"`metric` must be a function of \(score\), but it is one of \(\)"),
    ({"init": torch.zeros(3, 4, 9, 8)}, r"`init` must be \(3, C, h, w\), but got \(3, 4, 9, 8\)"),
    ({"init": torch.zeros(2, 4, 8, 8)}, r"`init` must be \(3, C, h, w\), but got \(2, 4, 8, 8\)"),
    ({"init": torch.full((3, 4, 8, 8), torch.nan)}, "`init` must be finite"),
    ({"init": [A]}, "The images of `init` do not fit. A morph needs at least 2 images, but got 1"),
    ({"init": [A[:, :8], B[:, :8]]}, "images of `init` must have the keyframes' size"),
    ({"image": [A, B, A], "init": [A, B]}, "`init` takes images for two keyframes only"),
    ({"init": lambda a: a}, r"`init` must be a function of \(x0, x1, num_points\), but .* \(a\)"),
    ({"init": "graph"}, "`init` must be one of .*roadmap.*, but got 'graph'"),
    (
        {"fixed_point_iterations": -1},
        "`fixed_point_iterations` must be a whole number of at least 0",
    ),
    ({"max_evals": 0}, "`max_evals` must be a whole number of at least 1, but got 0"),
    ({"max_batch_size": 0}, "`max_batch_size` must be a whole number of at least 1, but got 0"),
    ({"generator": 3}, "`generator` must be a Generator, but got int"),
    ({"output_type": "gif"}, "`output_type` must be one of .*, but got 'gif'"),
    ({"conditions": 3}, "`conditions` must be a Sequence, but got int"),
    ({"conditions": ["a"]}, "`conditions` must be what `condition` returned, .* 1 of"),
    ({"callback_on_step_end": 3}, "`callback_on_step_end` must be a function, but got int"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_a_call_is_refused_before_any_work(pipe, arguments, message):
    def work(event):
        raise AssertionError(f"{event.stage} began")

    options = FAST | {"num_frames": 3, "num_inference_steps": 4, "metric": "lerp"}
    networks = pipe.unet, pipe.vae.encoder, pipe.text_encoder
    with counting(*networks) as counter, pytest.raises(ValueError, match=message):
        pipe(**{"image": [A, B], "on_event": work, **options, **arguments})
    assert counter.calls == 0


def test_a_metric_without_its_prompts_is_refused_before_the_inversion(pipe):
    message = "reads the difference of `prompt` and `negative_prompt`"
    networks = pipe.unet, pipe.vae.encoder
    with counting(*networks) as counter, pytest.raises(ValueError, match=message):
        pipe([A, B], **FAST | {"metric": "density"})
    assert counter.calls == 0
