"""What is special of PixArt, Sana, DiT, and of models of classes in the space of pixels."""

from __future__ import annotations

import inspect

import pytest
import torch
from diffusers import DDPMScheduler, DiTPipeline, SanaPipeline
from diffusers.pipelines.dit import pipeline_dit
from models import EXACT, FAST, INVERT, SOLVE, make, morph, randn, silent
from models_vpfam import class_unet, dit

from riemannian_diffusion import Where
from riemannian_diffusion.pipelines import (
    AutoGeodesicInterpolationPipeline,
    GeodesicInterpolationDiTPipeline,
    GeodesicInterpolationUnconditionalPipeline,
)


def output(pipe, conditions, where, x, **options):
    """The network's prediction at points, as a score has it."""
    keys = pipe.invert(torch.rand(2, 3, 16, 16), conditions=conditions, **INVERT)
    levels = keys.levels
    score = levels(levels.schedule.timesteps[0], **options)
    return score._output(x, where, conditions.positive, x.dtype), score.level.timestep


# ----------------------------------------------------------------------------------- masked prompts


@pytest.mark.parametrize("kind", ["alpha", "sigma", "sana"])
def test_padding_is_masked_and_never_interpolated(kind):
    """A point between two prompts sees the tokens of both, as zeros where a prompt has none."""
    pipe = make(kind)
    found = pipe.condition(["a", "zebra"]).positive
    hidden, mask = (found[name] for name in ("encoder_hidden_states", "encoder_attention_mask"))
    short, long = mask.values[0].sum(1).tolist()
    assert short < long < mask.values.shape[2]
    middle = mask.at(Where([0.3]), 1, "mask")
    assert not middle.is_floating_point() and torch.equal(middle[0], mask.values[0, 1])
    assert not hidden.values[0, 0][mask.values[0, 0] == 0].any()
    own = pipe.condition("a").positive["encoder_hidden_states"].values
    expected = pipe.encode_prompt("a", False, **_instruction(kind))[0]
    seen = mask.values[:, 0].bool()
    torch.testing.assert_close(own[:, 0][seen], expected[seen])


def _instruction(kind):
    name = "complex_human_instruction"
    default = inspect.signature(SanaPipeline.__call__).parameters[name].default
    return {name: default} if kind == "sana" else {}


def test_the_instruction_precedes_prompts_alone():
    pipe = make("sana")
    found = pipe.condition("a", "a")
    name = "encoder_hidden_states"
    hidden, negative = found.positive[name].values, found.negative[name].values
    plain = pipe.encode_prompt("a", False)[0]
    mask = found.negative["encoder_attention_mask"].values[0, 0].bool()
    assert torch.equal(negative[0, 0][mask], plain[0][mask])
    assert not torch.equal(hidden, negative)


def test_sequences_of_prompts_may_differ_in_length(keyframes):
    pipe = make("sigma")
    found = pipe.condition("a", max_sequence_length=9)
    assert found.positive["encoder_hidden_states"].values.shape[2] == 9
    expected = morph(pipe, keyframes[:2], "a", **FAST).latents
    short = morph(pipe, keyframes[:2], "a", max_sequence_length=9, **FAST).latents
    torch.testing.assert_close(short, expected)  # the rest is padding


def test_the_size_conditions_alpha(keyframes):
    pipe, seen = make("alpha"), []

    def look(module, args, kwargs):
        added = kwargs["added_cond_kwargs"]
        seen.append((*added["resolution"][0].tolist(), added["aspect_ratio"][0].item()))

    pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
    wide = torch.cat([keyframes[:2], keyframes[:2]], 3)
    pipe(list(wide), "a", **FAST)
    assert set(seen) == {(16.0, 32.0, 0.5)}


def test_guidance_as_an_input_is_refused_where_there_is_none():
    pipe = make("sana")
    pipe.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(ValueError, match=r"takes guidance as an input \(`guidance_embeds`"):
        pipe.condition("a")


# ------------------------------------------------------------------------------------------ classes


def test_dit_samples_as_its_pipeline(keyframes, monkeypatch):
    """From the noise that our morph starts on, DiTPipeline makes the images that we decode."""
    num = 1000  # the number of the null class in DiTPipeline
    ours, theirs = make("dit", num_classes=num), silent(DiTPipeline(**dit(num)))
    options = EXACT | {"metric": "slerp", "strength": 1.0, "num_frames": 2}
    options["spacing"] = "scheduler"
    given = {"class_labels": 3, "guidance_scale": 3.0, "output_type": "pt"}
    found = morph(ours, [keyframes[0]] * 2, **given, **options)
    start = found.latents[:1]
    monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda **_: start)
    steps = options["num_inference_steps"]
    end = theirs([3], guidance_scale=3.0, num_inference_steps=steps, output_type="pt").images
    torch.testing.assert_close(found.frames[:1], end, atol=1e-4, rtol=0)


def test_classes_are_interpolated_as_embeddings():
    """Between two classes, the network sees the mean of their embeddings in every block."""
    pipe = make("dit")
    x = randn(3, 4, 8, 8, dtype=torch.float32)
    places = [0.0, 0.25, 1.0]
    found, timestep = output(pipe, pipe.condition(class_labels=[1, 4]), Where(places), x)
    for point, u in enumerate(places):
        with torch.no_grad():
            blocks = [
                block.norm1.emb.class_embedder for block in pipe.transformer.transformer_blocks
            ]
            kept = [one.embedding_table.weight[0].clone() for one in blocks]
            for one in blocks:  # class 0 becomes the mixture
                table = one.embedding_table.weight
                table[0] = (1 - u) * table[1] + u * table[4]
            expected = pipe.transformer(
                x[point : point + 1],
                torch.tensor([timestep]),
                class_labels=torch.tensor([0]),
                return_dict=False,
            )[0][:, :4]
            for one, row in zip(blocks, kept, strict=True):
                one.embedding_table.weight[0] = row
        torch.testing.assert_close(found[point : point + 1], expected, atol=1e-5, rtol=1e-5)


def test_classes_through_derivatives_chunks_and_checkpoints(keyframes):
    pipe = make("dit")
    conditions = pipe.condition(class_labels=["tabby", 4])

    def score_of(**options):
        options |= {"conditions": conditions, "guidance_scale": 2.0}
        levels = pipe.invert(keyframes[:2], **options, **INVERT).levels
        return levels(levels.schedule.timesteps[0])

    score = score_of(max_batch_size=None)
    x, v, w = (randn(5, 4, 8, 8, seed=i, dtype=torch.float32) for i in range(3))
    where = Where(torch.linspace(0, 1, 5).tolist())

    def gradient_of():
        points = x.clone().requires_grad_()
        return torch.autograd.grad((score(points, where) * w).sum(), points)[0]

    def products():
        return score.jvp(x, v, where), score.vjp(x, w, where), gradient_of()

    forward, reverse, gradient = whole = products()
    torch.testing.assert_close((forward * w).sum(), (reverse * v).sum(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(gradient, reverse, atol=1e-4, rtol=1e-4)
    score = score_of(max_batch_size=2)
    for one, other in zip(whole, products(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    pipe.transformer.enable_gradient_checkpointing()
    torch.testing.assert_close(gradient_of(), gradient, atol=1e-4, rtol=1e-4)


def test_classes_of_dit_are_refused_by_name(keyframes, tmp_path):
    pipe = make("dit")
    for labels, message in (
        (6, r"must be in \[0, 5\] for this model, but got 6"),
        (-1, "must be a whole number of at least 0"),
        ([], "one or more classes, but got none"),
        ("unicorn", "has 'unicorn', but this model has the 7 names in `pipe.labels`"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.condition(class_labels=labels)
    with pytest.raises(ValueError, match="takes no `prompt`"):
        pipe.condition("a")
    with pytest.raises(ValueError, match="there are 3 for 2 keyframes"):
        morph(pipe, keyframes[:2], class_labels=[1, 2, 3], **FAST)
    wide = torch.cat([keyframes[:2], keyframes[:2]], 3)
    with pytest.raises(ValueError, match="square images alone, but got 16 x 32"):
        pipe(list(wide), **FAST)
    with pytest.raises(ValueError, match="GeodesicInterpolationPipeline takes no `class_labels`"):
        make("sd").condition(class_labels=1)
    pipe.save_pretrained(tmp_path)
    loaded = silent(AutoGeodesicInterpolationPipeline.from_pretrained(tmp_path))
    assert type(loaded) is GeodesicInterpolationDiTPipeline and loaded.labels == pipe.labels


@pytest.mark.parametrize("kind", [None, "timestep"])
def test_a_model_of_pixels_and_classes(kind, keyframes):
    unet = class_unet(class_embed_type=kind, num_class_embeds=4)
    scheduler = DDPMScheduler(beta_end=0.002, clip_sample=False)
    pipe = silent(GeodesicInterpolationUnconditionalPipeline(unet, scheduler))
    conditions = pipe.condition(class_labels=[1, 3])
    x = randn(3, 3, 16, 16, dtype=torch.float32)
    found, timestep = output(pipe, conditions, Where([0.0, 0.5, 1.0]), x)
    with torch.no_grad():
        for point, label in ((0, 1), (2, 3)):
            own = x[point : point + 1]
            expected = unet(own, timestep, class_labels=torch.tensor([label])).sample
            torch.testing.assert_close(found[point : point + 1], expected, atol=1e-5, rtol=1e-5)
    done = morph(pipe, keyframes[:2], class_labels=[1, 3], **EXACT)
    assert max(done.reconstruction_error) < 1e-6
    other = morph(pipe, keyframes[:2], class_labels=2, **EXACT)
    assert not torch.allclose(done.latents, other.latents, atol=1e-6)
    for labels, message in (
        (None, "give `class_labels` to `condition`"),
        ("cat", "has 'cat', but this model has numbers alone"),
        (4, r"must be in \[0, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.condition(class_labels=labels)
    with pytest.raises(ValueError, match="`guidance_scale` 2.0 needs negative conditions"):
        pipe.invert(keyframes[:2], conditions=conditions, guidance_scale=2.0, **INVERT)


def test_what_models_of_pixels_cannot_be_given():
    with pytest.raises(ValueError, match="takes no `class_labels`"):
        make("pixels").condition(class_labels=1)
    unet = class_unet(class_embed_type="identity")
    pipe = silent(GeodesicInterpolationUnconditionalPipeline(unet, DDPMScheduler()))
    with pytest.raises(ValueError, match="embeddings in place of classes"):
        pipe.condition(class_labels=1)


def test_morphs_of_other_classes_are_solved_side_by_side(keyframes):
    pipe = make("dit")
    keys = [
        pipe.invert(keyframes[:2], conditions=pipe.condition(class_labels=labels), **INVERT)
        for labels in ([0, 1], [2, 3])
    ]
    both = pipe.solve(keys, **SOLVE)
    for one, found in zip(keys, both, strict=True):
        alone = pipe.solve(one, **SOLVE)
        torch.testing.assert_close(found.points, alone.points, atol=1e-4, rtol=0)
