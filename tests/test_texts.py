from __future__ import annotations

import warnings

import pytest
from models import INVERT, PROMPTED, make

from riemannian_diffusion.pipelines.texts import TextWarning, truncation_warnings


def told(call) -> list[str]:
    """The sentences of the text warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in caught if one.category is TextWarning]


@pytest.mark.parametrize("kind", ["sd", "xl", "sd3", "flux"])
def test_exactly_the_text_that_no_encoder_reads_is_named(kind):
    """The tokenizers of these models make one token of each letter; CLIP's 12 hold 10 letters."""
    pipe = make(kind)
    assert not told(lambda: pipe.condition("a" * 10))
    (text,) = told(lambda: pipe.condition(["a" * 10 + "b", "a"]))
    assert "'b'" in text and "text_encoder (to 12 tokens)" in text
    several = {"sd": [], "xl": ["_2"], "sd3": ["_2"], "flux": []}[kind]
    assert all(f"text_encoder{name} (to 12 tokens)" in text for name in several)
    longer = kind in ("sd3", "flux")  # T5 reads on
    assert ("read by the others alone" in text) == longer and ("is not read" in text) == (
        not longer
    )


@pytest.mark.parametrize("kind", PROMPTED)
def test_every_family_tells_of_long_prompts_alone(kind):
    pipe = make(kind)
    assert not told(lambda: pipe.condition("a cat"))
    words = " ".join("abcdefghij"[i % 10] for i in range(3000))
    (text,) = truncation_warnings(pipe, [words])
    assert "is truncated for text_encoder" in text


def test_the_length_for_t5_is_that_of_the_call():
    pipe = make("flux")
    (text,) = told(lambda: pipe.condition("abcdefgh", max_sequence_length=4))
    assert "text_encoder_2 (to 4 tokens)" in text and text.count("to ") == 1
    (text,) = truncation_warnings(pipe, ["ab " * 200])  # 600 letters and spaces, of 512
    assert "text_encoder (to 12 tokens) and text_encoder_2 (to 512 tokens)" in text
    assert "is not read" in text


def test_what_of_prompts_is_cut_off_changes_nothing():
    """The warning is true: prompts that differ beyond the limit have the same embeddings."""
    pipe = make("sd")
    first, second = (
        pipe.condition("a" * 10 + end).positive["encoder_hidden_states"].values for end in "bc"
    )
    assert first.equal(second)


def test_a_negative_prompt_is_told_to_have_no_effect_only_where_it_has_none(keyframes):
    pipe = make("sd")
    for scale, expected in ((1.0, 1), (2.0, 0)):
        texts = told(
            lambda s=scale: pipe.invert(keyframes[:2], "a", "b", guidance_scale=s, **INVERT)
        )
        assert len(texts) == expected and all("`guidance_scale` above 1" in t for t in texts)
    assert not told(lambda: pipe.invert(keyframes[:2], "a", **INVERT))
    guided = make("flux", guidance_embeds=True)
    images = keyframes[:2]
    (text,) = told(lambda: guided.invert(images, "a", "b", guidance_scale=3.5, **INVERT))
    assert "`true_cfg_scale` above 1" in text
    assert not told(lambda: guided.invert(images, "a", "b", true_cfg_scale=3.5, **INVERT))
