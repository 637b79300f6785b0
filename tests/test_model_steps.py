"""Every model under every condition against its own diffusers pipeline, step by step."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers import (
    ChromaImg2ImgPipeline,
    ChromaInpaintPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
)
from models import EXACT, INVERT, KINDS, make, morph, randn, silent, visited

from riemannian_diffusion import Where
from riemannian_diffusion.pipelines import AutoGeodesicInterpolationPipeline
from riemannian_diffusion.pipelines.preflight import DistilledModelWarning

FLOWS = [kind for kind in KINDS if KINDS[kind][0]._is_flow]
NEGATIVE = {"negative_prompt": "b"}
GUIDANCE = {  # options of our pipeline and of diffusers' own
    "conditional": ({}, {"guidance_scale": 1.0}),
    "guided": ({"guidance_scale": 3.0}, {"guidance_scale": 3.0}),
    "negative": ({"guidance_scale": 3.0} | NEGATIVE, {"guidance_scale": 3.0} | NEGATIVE),
    "same": ({"true_cfg_scale": 3.0} | NEGATIVE, {"guidance_scale": 3.0} | NEGATIVE),
    "none": ({}, {"guidance_scale": 0.0}),
    "true": ({"true_cfg_scale": 2.0} | NEGATIVE, {"true_cfg_scale": 2.0} | NEGATIVE),
    "both": ({"guidance_scale": 3.0, "true_cfg_scale": 2.0} | NEGATIVE,) * 2,
}
STEPS = [
    *[(kind, {}, "conditional") for kind in FLOWS if kind != "zimage"],
    *[(kind, {}, "guided") for kind in FLOWS if kind not in ("flux", "qwen")],
    ("zimage", {}, "none"),  # in its own pipeline, 1 is guidance already
    ("qwen", {}, "true"),
    *[(kind, {}, name) for kind in ("sd3", "chroma", "aura") for name in ("negative", "same")],
    ("sana", {"solver_order": 1}, "guided"),  # whose steps are those of Euler
    ("flux", {}, "true"),
    ("flux", {"guidance_embeds": True}, "guided"),
    ("flux", {"guidance_embeds": True}, "both"),
    ("klein", {"is_distilled": True}, "guided"),
]


@pytest.mark.parametrize(("kind", "parts", "guidance"), STEPS)
@pytest.mark.filterwarnings("ignore:This model was distilled")
def test_each_step_is_that_of_the_models_own_pipeline(kind, parts, guidance, keyframes):
    """Scores at the latents that diffusers' own pipeline visits take the steps that it takes."""
    ours, theirs = make(kind, **parts), silent(KINDS[kind][1](**KINDS[kind][2](**parts)))
    theirs.check_inputs = lambda *_, **__: None  # it would refuse some of our small sizes
    our_options, their_options = GUIDANCE[guidance]
    options = INVERT | {"strength": 1.0, "space": "clean"} | our_options
    keys = ours.invert(keyframes[:2], "a", **options)
    start = randn(*keys.clean[:1].shape, dtype=torch.float32)
    found = visited(kind, theirs, start, num_inference_steps=8, **their_options)
    found = [one.view_as(start) for one in found]
    sigmas, timesteps = theirs.scheduler.sigmas, theirs.scheduler.timesteps.tolist()
    # The first level of diffusers' flows is pure noise; ours is a thousandth below it.
    assert keys.levels.schedule.timesteps[1:] == pytest.approx(timesteps[1:])
    for i, (x, after) in enumerate(zip(found, found[1:], strict=False), start=1):
        score = keys.levels(keys.levels.schedule.timesteps[i])
        velocity = (-score.sigma * score(x) - x) / score.alpha
        step = x + (sigmas[i + 1] - sigmas[i]) * velocity
        torch.testing.assert_close(step, after, atol=1e-5, rtol=1e-5)


def test_distilled_models_of_flux_2_ignore_guidance(keyframes):
    """As their own pipeline does; models without that entry in their config are not distilled."""
    pipe = make("klein", is_distilled=True)
    with (
        pytest.warns(DistilledModelWarning),
        pytest.warns(UserWarning, match="`guidance_scale` and `true_cfg_scale` are ignored"),
    ):
        keys = pipe.invert(keyframes[:2], "a", guidance_scale=3.0, **INVERT)
    assert not keys.levels.guides
    base = make("klein")
    base.transformer.register_to_config(_name_or_path="FLUX.2-klein-base-4B")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DistilledModelWarning)
        assert base.invert(keyframes[:2], "a", guidance_scale=3.0, **INVERT).levels.guides


OF_KLEIN = ["Flux2KleinInpaintPipeline"]  # not in diffusers 0.37


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("flux", FluxImg2ImgPipeline),
        ("flux", FluxInpaintPipeline),
        *(("klein", getattr(diffusers, n)) for n in OF_KLEIN if hasattr(diffusers, n)),
        ("chroma", ChromaImg2ImgPipeline),
        ("chroma", ChromaInpaintPipeline),
    ],
)
def test_directories_of_other_pipelines_of_the_same_components(kind, other, tmp_path):
    other(**KINDS[kind][2]()).save_pretrained(tmp_path)
    assert type(AutoGeodesicInterpolationPipeline.from_pretrained(tmp_path)) is KINDS[kind][0]


# --------------------------------------------------------------------------------- conditions

TEXTS = {"prompt_2": "c", "prompt_3": "d", "max_sequence_length": 9, "clip_skip": 1}
PLACES = {  # conditions in the order in which `encode_prompt` returns their positive values
    "sd": {"encoder_hidden_states": 0},
    "xl": {"encoder_hidden_states": 0, "text_embeds": 2},
    "sd3": {"encoder_hidden_states": 0, "pooled_projections": 2},
    "flux": {"encoder_hidden_states": 0, "pooled_projections": 1},
    "chroma": {"encoder_hidden_states": 0, "attention_mask": 2},
    **dict.fromkeys(("flux2", "klein", "aura"), {"encoder_hidden_states": 0}),
}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("name", TEXTS)
def test_arguments_of_encode_prompt(kind, name):
    pipe, options = make(kind), {name: TEXTS[name]}
    known = inspect.signature(pipe.encode_prompt).parameters
    if name not in known:
        with pytest.raises(ValueError, match=f"takes no `{name}`"):
            pipe.condition("a", **options)
        return
    usual, found = (pipe.condition("a", **given).positive for given in ({}, options))
    given = {"prompt": ["a"], "device": "cpu", "num_images_per_prompt": 1}
    given |= {"do_classifier_free_guidance": False, "prompt_2": None, "prompt_3": None} | options
    if kind == "sd" and name == "clip_skip":
        expected = _skipping(pipe)
    else:
        with torch.no_grad():
            expected = pipe.encode_prompt(**{n: v for n, v in given.items() if n in known})
    for condition, place in PLACES[kind].items():
        torch.testing.assert_close(found[condition].values[0], expected[place])
    before, after = (part["encoder_hidden_states"].values for part in (usual, found))
    changed = before.shape != after.shape or not torch.allclose(before, after, atol=1e-3)
    assert changed


@torch.no_grad()
def _skipping(pipe):
    """The embeddings of "a" before the last layer of CLIP; diffusers' own fail here."""
    ids = pipe.tokenizer(["a"], padding="max_length", return_tensors="pt").input_ids
    states = pipe.text_encoder(ids, output_hidden_states=True).hidden_states
    norms = [m for n, m in pipe.text_encoder.named_modules() if n.endswith("final_layer_norm")]
    return (norms[-1](states[-2]),)


@pytest.mark.parametrize("negative", [{}, {"negative_prompt_2": "f", "negative_prompt_3": "g"}])
@torch.no_grad()
def test_negative_prompts_of_further_text_encoders(negative):
    pipe = make("sd3")
    found = pipe.condition("a", "b", prompt_2="c", prompt_3="d", **negative)
    texts = [[text] for text in "acd"]
    encoded = pipe.encode_prompt(*texts, negative_prompt=["b"], **negative)
    for side, first in ((found.positive, 0), (found.negative, 1)):
        hidden, pooled = side["encoder_hidden_states"], side["pooled_projections"]
        torch.testing.assert_close(hidden.values[0], encoded[first])
        torch.testing.assert_close(pooled.values[0], encoded[first + 2])


SIZES = {"original_size": (24, 32), "crops_coords_top_left": (3, 5), "target_size": (20, 28)}


@pytest.mark.parametrize("names", [[], *[[name] for name in SIZES], list(SIZES)])
def test_sizes_of_xl_are_those_of_its_own_pipeline(names, keyframes):
    ours, theirs = make("xl"), silent(KINDS["xl"][1](**KINDS["xl"][2]()))
    seen = {"ours": [], "theirs": []}
    for name, pipe in (("ours", ours), ("theirs", theirs)):
        pipe.unet.register_forward_pre_hook(
            lambda module, args, kwargs, to=seen[name]: to.append(
                kwargs["added_cond_kwargs"]["time_ids"]
            ),
            with_kwargs=True,
        )
    sizes = {name: SIZES[name] for name in names}
    conditions = ours.condition("a", "b", **sizes)
    keys = ours.invert(keyframes[:2], conditions=conditions, guidance_scale=3.0, **INVERT)
    x = keys.points[:1]
    timestep = keys.levels.schedule.timesteps[0]
    score = keys.levels(timestep)
    (before,) = visited(
        *("xl", theirs, x),
        **NEGATIVE | sizes | {"num_inference_steps": 1, "guidance_scale": 3.0},
    )
    assert before.isfinite().all() and score(x).isfinite().all()
    rows = {n: {tuple(row.tolist()) for row in torch.cat(ids)} for n, ids in seen.items()}
    assert rows["ours"] == rows["theirs"] and len(rows["ours"]) == 1


@pytest.mark.parametrize(
    ("kind", "dtype"), [("chroma", torch.bool), ("aura", torch.bool), ("aura", torch.int64)]
)
def test_masks_hide_padding(kind, dtype, keyframes):
    """What stands in padded places of given embeddings does not matter, also to derivatives."""
    pipe, hidden = make(kind), randn(2, 6, 32, dtype=torch.float32)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]], dtype=dtype)
    given = {"prompt_attention_mask": mask, "do_classifier_free_guidance": False}
    where, found = Where([0.5]), []
    for padding in (0.0, 7.0):
        padded = torch.where(torch.arange(6)[:, None] < 4, hidden, padding)
        conditions = pipe.condition(prompt_embeds=padded, **given)
        keys = pipe.invert(keyframes[:2], conditions=conditions, **INVERT)
        score = keys.levels(keys.levels.schedule.timesteps[0])
        x, v, w = randn(3, 1, *keys.clean.shape[1:], dtype=torch.float32).unbind()
        forward, reverse = score.jvp(x, v, where), score.vjp(x, w, where)
        assert torch.allclose((forward * w).sum(), (reverse * v).sum(), atol=1e-3, rtol=1e-3)
        found.append((score(x, where), forward, reverse))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["chroma", "aura"])
def test_masks_are_taken_as_encode_prompt_gives_them(kind):
    pipe = make(kind)
    names = ("prompt_embeds", "prompt_attention_mask")
    found = pipe.encode_prompt(["a", "zebra"], ["b", "b"])
    places = (0, 2, 3, 5) if kind == "chroma" else (0, 1, 2, 3)
    values = [found[i] for i in places]
    given = dict(zip((*names, *(f"negative_{name}" for name in names)), values, strict=True))
    expected, made = pipe.condition(["a", "zebra"], "b"), pipe.condition(**given)
    for side in ("positive", "negative"):
        wanted, got = getattr(expected, side), getattr(made, side)
        assert {n: c.kind for n, c in wanted.items()} == {n: c.kind for n, c in got.items()}
        for name, condition in wanted.items():
            torch.testing.assert_close(condition.values, got[name].values)


@pytest.mark.parametrize("kind", ["flux2", "klein", "chroma", "aura"])
def test_chunks_give_what_a_whole_batch_gives(kind, keyframes):
    """With prompts that change along the path and are shorter than the negative prompt."""
    pipe = make(kind)
    width = pipe.transformer.config.joint_attention_dim
    given = {"prompt_embeds": randn(2, 6, width, dtype=torch.float32)}
    if kind in ("chroma", "aura"):
        given["prompt_attention_mask"] = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    conditions = pipe.condition("", "c", **given)
    options = INVERT | {"conditions": conditions, "true_cfg_scale": 2.0}
    keys = pipe.invert(keyframes[:2], **options)
    where, found = Where([0.0, 0.4, 1.0]), []
    for size in (None, 2):
        levels = replace(keys.levels, max_batch_size=size)
        assert levels.guides
        x = keys.points[[0, 1, 1]].requires_grad_()
        value = levels(levels.schedule.timesteps[0])(x, where)
        found.append((value, *torch.autograd.grad(value.square().sum(), x)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_autoencoders_that_overflow_in_half_precision_run_in_single(keyframes):
    pipe = make("aura").to(torch.float16)
    with pipe._vae_ready():
        assert pipe.vae.dtype == torch.float32
    assert pipe.vae.dtype == torch.float16
    assert pipe.decode(pipe.encode(keyframes)).isfinite().all()


@pytest.mark.parametrize("kind", ["flux2", "klein", "chroma", "aura"])
def test_images_need_not_be_square(kind, keyframes):
    wide = torch.cat([keyframes[:2], keyframes[:2]], 3)
    out = morph(make(kind), wide, ["a", "b"], **EXACT)
    assert out.frames.shape[-1] == 2 * out.frames.shape[-2]
    assert max(out.reconstruction_error) < 1e-5


@pytest.mark.parametrize("kind", ["flux2", "klein"])
def test_latents_of_flux_2_are_normalised_patches(kind, keyframes):
    pipe = make(kind)
    latents = pipe.encode(keyframes)
    with torch.no_grad():
        expected = pipe._encode_vae_image(2 * keyframes - 1, None)
    torch.testing.assert_close(latents, expected)
    plain = pipe.vae.encode(2 * keyframes - 1).latent_dist.mode()
    torch.testing.assert_close(pipe._denormalise(latents), plain, atol=1e-5, rtol=1e-5)


def test_images_larger_than_the_positions_of_aura_flow(keyframes):
    wide = torch.cat([keyframes[:2]] * 3, 3)
    with pytest.raises(ValueError, match=r"at most 32 pixels along each side, but got \(16, 48\)"):
        make("aura").invert(wide, "a", **INVERT)


def test_sana_with_the_solver_of_its_published_versions(keyframes, tmp_path):
    """DPM-Solver++ of second order visits the same levels; a saved model gives the same morph."""
    pipe, first = make("sana", solver_order=2), make("sana", solver_order=1)
    ours, theirs = (one.invert(keyframes[:2], "a", **INVERT) for one in (pipe, first))
    assert ours.levels.schedule.levels == theirs.levels.schedule.levels
    assert torch.equal(ours.points, theirs.points)
    pipe.save_pretrained(tmp_path)
    loaded = silent(AutoGeodesicInterpolationPipeline.from_pretrained(tmp_path))
    assert type(loaded.scheduler).__name__ == "DPMSolverMultistepScheduler"
    again = loaded.sample(loaded.solve(loaded.invert(keyframes[:2], "a", **INVERT), "lerp"))
    expected = pipe.sample(pipe.solve(ours, "lerp"))
    torch.testing.assert_close(again.latents, expected.latents, atol=1e-5, rtol=0)


def test_qwen_image_with_embedded_guidance_is_refused():
    """diffusers' own network refuses it, too: it has no layer for that input."""
    parts = KINDS["qwen"][2]()
    parts["transformer"].register_to_config(guidance_embeds=True)
    with pytest.raises(TypeError, match="positional arguments"):
        silent(KINDS["qwen"][1](**parts))("a", guidance_scale=3.0, num_inference_steps=1)
    with pytest.raises(ValueError, match="takes guidance as an input"):
        silent(KINDS["qwen"][0](**parts)).condition("a")
