"""Prompts of different lengths, for models whose embeddings have masks."""

from __future__ import annotations

import models_flowb
import pytest
import torch
import torch.nn.functional as F
from models import EXACT, FAST, INVERT, SOLVE, make, morph, randn, silent
from torch.testing import assert_close

from riemannian_diffusion import Where
from riemannian_diffusion.pipelines import Keyframes

SHORT, LONG = "a", "a zebra, a horse and a very old donkey on a lawn"
WAYS = pytest.mark.parametrize("kind", models_flowb.KINDS)


@WAYS
def test_each_keyframe_has_the_tokens_of_its_own_prompt(kind, keyframes):
    pipe = make(kind)
    keys = pipe.invert(keyframes[:2], [SHORT, LONG], **INVERT)
    for i, text in enumerate([SHORT, LONG]):
        alone = pipe.invert(keyframes[i : i + 1].expand(2, -1, -1, -1), text, **INVERT)
        assert_close(keys.points[i], alone.points[0], atol=1e-5, rtol=0)
    found = morph(pipe, keyframes[:2], [SHORT, LONG], LONG, guidance_scale=2.0, **EXACT)
    assert max(found.reconstruction_error) < 1e-4 and found.frames.isfinite().all()


@WAYS
def test_chunks_are_the_whole_batch(kind, keyframes):
    """Batches mix prompts of different lengths; chunks of one point do not."""
    pipe = make(kind)
    whole, chunked = (
        pipe.invert(keyframes[:2], [SHORT, LONG], max_batch_size=size, **INVERT).levels
        for size in (None, 1)
    )
    x, where = randn(4, 4, 8, 8, dtype=torch.float32), Where.even(4)
    scores = [levels(levels.schedule.timesteps[0])(x, where) for levels in (whole, chunked)]
    assert_close(*scores, atol=1e-4, rtol=1e-4)


@WAYS
def test_saved_keyframes_keep_their_masks(kind, keyframes, tmp_path):
    pipe = make(kind)
    keys = pipe.invert(keyframes[:2], [SHORT, LONG], LONG, guidance_scale=2.0, **INVERT)
    keys.save(tmp_path / "keys.safetensors")
    loaded = Keyframes.load(tmp_path / "keys.safetensors")
    assert torch.equal(pipe.solve(loaded, **SOLVE).points, pipe.solve(keys, **SOLVE).points)


@WAYS
def test_images_of_latents_are_those_of_the_models_own_pipeline(kind):
    """The scale of latents of this kind's autoencoder."""
    ours, theirs = make(kind), silent(models_flowb.KINDS[kind][1](**models_flowb.KINDS[kind][2]()))
    side = 8 * theirs.vae_scale_factor
    options = {"height": side, "width": side, "num_inference_steps": 1}
    packed = hasattr(theirs, "_pack_latents")
    start = randn(1, 4, 8, 8, dtype=torch.float32)
    start = theirs._pack_latents(start, 1, 4, 8, 8) if packed else start
    latents, image = (
        theirs(SHORT, latents=start, output_type=output, **options).images for output in OUTPUTS
    )
    if packed:
        latents = theirs._unpack_latents(latents, side, side, theirs.vae_scale_factor)[:, :, 0]
    assert_close(ours.decode(latents), image, atol=1e-5, rtol=0)
    assert_close(ours._normalise(ours._denormalise(latents)), latents)


OUTPUTS = ("latent", "pt")


@WAYS
def test_solved_side_by_side(kind, keyframes):
    """Keyframes of separate calls, whose prompts have different numbers of tokens."""
    pipe = make(kind)
    a, b, c = keyframes
    sets = []
    for pair, texts, negative in (([a, b], [SHORT, "b"], "b"), ([c, a], [LONG, SHORT], LONG)):
        sets.append(pipe.invert(pair, texts, negative, guidance_scale=2.0, **INVERT))
    assert sets[0].levels.conditions.outline == sets[1].levels.conditions.outline
    for path, keys in zip(pipe.solve(sets, **SOLVE), sets, strict=True):
        assert_close(path.points, pipe.solve(keys, **SOLVE).points, atol=1e-4, rtol=0)


@WAYS
def test_transport_to_a_longer_prompt(kind, keyframes):
    """It is that with embeddings that were padded to one length beforehand."""
    pipe, texts = make(kind), [SHORT, "b", LONG]
    given = []
    for text in texts:
        positive = pipe.condition(text, do_classifier_free_guidance=False).positive
        given.append([positive[name].values[0] for name in ENCODED])
    longest = max(mask.shape[1] for _, mask in given)
    for one in given:
        missing = longest - one[1].shape[1]
        one[:] = F.pad(one[0], (0, 0, 0, missing)), F.pad(one[1], (0, missing))

    def condition(*numbers):
        chosen = [torch.cat([given[i][n] for i in numbers]) for n in (0, 1)]
        return pipe.condition(prompt_embeds=chosen[0], prompt_attention_mask=chosen[1])

    def moved(options, further):
        path = pipe.sample(pipe.solve(pipe.invert(keyframes[:2], **options, **INVERT), **SOLVE))
        return pipe.transport(path, keyframes[2], **further, max_evals=2).transported

    found = moved({"prompt": texts[:2]}, {"prompt": LONG})
    expected = moved({"conditions": condition(0, 1)}, {"conditions": condition(2)})
    assert_close(found, expected, atol=1e-4, rtol=0)


ENCODED = ("encoder_hidden_states", "encoder_attention_mask")


def test_embeddings_without_masks_are_not_padded(keyframes):
    pipe = make("flux")
    conditions = pipe.condition([SHORT, "b"], max_sequence_length=6)
    path = pipe.sample(
        pipe.solve(pipe.invert(keyframes[:2], conditions=conditions, **INVERT), **SOLVE)
    )
    with pytest.raises(ValueError, match="prompts of one number of tokens, but `encoder_hidden_st"):
        pipe.transport(path, keyframes[2], LONG)


@WAYS
def test_masks_and_embeddings_belong_together(kind):
    pipe = make(kind)
    found = pipe.condition([SHORT, LONG], max_sequence_length=6).positive
    assert found["encoder_hidden_states"].values.shape[2] <= 6
    hidden, mask = (found[name].values[0] for name in ENCODED)
    with pytest.raises(ValueError, match="needs `prompt_attention_mask` with `prompt_embeds`"):
        pipe.condition(prompt_embeds=hidden)
    with pytest.raises(ValueError, match="must leave at least one token of each prompt"):
        pipe.condition(prompt_embeds=hidden, prompt_attention_mask=torch.zeros_like(mask))
    with pytest.raises(ValueError, match="takes no `class_labels`"):
        pipe.condition(SHORT, class_labels=1)


def test_the_system_prompt_of_lumina_stands_before_prompts_alone():
    pipe = make("lumina2")
    before = pipe.condition(SHORT, "b")
    pipe.system_prompt = "user"
    after = pipe.condition(SHORT, "b")
    lengths = [c.positive["encoder_attention_mask"].values.sum() for c in (before, after)]
    assert lengths[0] > lengths[1] + 10
    for name in ENCODED:
        assert torch.equal(before.negative[name].values, after.negative[name].values)


@WAYS
def test_damping_is_for_linear_guidance(kind, keyframes):
    with pytest.raises(ValueError, match="has another rule of guidance: leave `guidance_damping`"):
        morph(make(kind), keyframes[:2], SHORT, guidance_scale=2.0, guidance_damping=0.5, **FAST)


@pytest.mark.parametrize(
    "kind, field, value",
    [
        ("qwen", "guidance_embeds", True),
        ("qwen", "use_additional_t_cond", True),
        ("zimage", "siglip_feat_dim", 8),
    ],
)
def test_inputs_that_are_not_given(kind, field, value):
    pipe = make(kind)
    pipe.transformer.register_to_config(**{field: value})
    with pytest.raises(ValueError, match=f"`{field}`.* which Geodesic.* does not give"):
        pipe.condition(SHORT)
