"""Parts of a pipeline that are absent or do not work, and callbacks that break the latents."""

from __future__ import annotations

import diffusers
import pytest
import torch
from models import FAST, INVERT, make, waves

MORPH = FAST | {"num_frames": 3, "metric": "lerp"}


@pytest.mark.parametrize("name", ["unet", "vae", "scheduler", "text_encoder", "tokenizer"])
def test_an_absent_part_is_named(name, tmp_path):
    pipe = make("sd")
    conditions = pipe.condition("a")
    path = pipe.sample(pipe.solve(pipe.invert(waves(2), "a", **INVERT), "lerp", num_frames=3))
    path.save(tmp_path / "path.safetensors")
    setattr(pipe, name, None)
    stages = {
        "call": lambda: pipe(waves(2), "a", **MORPH),
        "invert": lambda: pipe.invert(waves(2), "a", **INVERT),
        "condition": lambda: pipe.condition("a"),
    }
    if name in ("text_encoder", "tokenizer"):
        embeds = conditions.positive["encoder_hidden_states"].values[0]
        pipe.condition(prompt_embeds=embeds, do_classifier_free_guidance=False)
    else:
        stages["save"] = lambda: pipe.save_pretrained(tmp_path / "model")
        stages["encode"] = lambda: pipe.encode(waves(2))
        stages["load"] = lambda: pipe.sample(type(path).load(tmp_path / "path.safetensors"))
    for stage in stages.values():
        with pytest.raises(ValueError, match=f"`pipe.{name}` is None"):
            stage()


def returned(pipe, step, timestep, tensors):
    return {"latents": tensors["latents"] / 0 * 0}


def in_place(pipe, step, timestep, tensors):
    tensors["latents"].fill_(torch.inf)
    return {}


@pytest.mark.parametrize("callback", [returned, in_place])
def test_a_callback_that_breaks_the_latents_is_named(callback):
    pipe = make("sd")
    with pytest.raises(ValueError, match="`callback_on_step_end` made NaN or infinite latents"):
        pipe(waves(2), "a", callback_on_step_end=callback, **MORPH)


def test_weights_that_break_the_latents_are_not_blamed_on_a_callback():
    pipe = make("sd")
    path = pipe.solve(pipe.invert(waves(2), "a", **INVERT), "lerp", num_frames=3)
    next(pipe.unet.parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="the model's weights are broken"):
        pipe.sample(path, callback_on_step_end=lambda *args: {})


@pytest.mark.parametrize("depth", [2, 4])
def test_tiles_of_a_tiny_autoencoder_work_or_are_refused(depth):
    """diffusers computes the size of these tiles for 8 pixels along a latent."""
    numbers = {"encoder_block_out_channels": (8,) * depth, "num_encoder_blocks": (1,) * depth}
    numbers |= {name.replace("en", "de", 1): value for name, value in numbers.items()}
    pipe = make("sd")
    pipe.vae = diffusers.AutoencoderTiny(**numbers).eval()
    whole = pipe.encode(waves(2))
    assert whole.shape[-1] == 16 // 2 ** (depth - 1)
    pipe.vae.enable_tiling()
    if depth == 4:
        torch.testing.assert_close(pipe.encode(waves(2)), whole)
        return
    for stage in (lambda: pipe.encode(waves(2)), lambda: pipe.decode(whole)):
        with pytest.raises(ValueError, match="AutoencoderTiny .* has 2: call `pipe.vae.disable"):
            stage()
