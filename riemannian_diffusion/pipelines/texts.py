"""Warnings about prompts that a model does not read, or not wholly."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from typing import Any

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4")
NO_LIMIT = 10**9  # transformers' tokenizers without a limit have about 10^30


class TextWarning(UserWarning):
    """A prompt has no effect, or its end has none."""


def warn_of_texts(pipe: Any, texts: Iterable[str], max_sequence_length: int | None = None) -> None:
    """Warn of prompts that are truncated.

    Args:
        pipe: A pipeline.
        texts: Prompts and negative prompts.
        max_sequence_length: That of `condition`, or None.

    Warns:
        TextWarning: Once for each prompt that a text encoder does not read to its end.
    """
    for text in truncation_warnings(pipe, texts, max_sequence_length):
        warnings.warn(text, TextWarning, stacklevel=4)


def truncation_warnings(
    pipe: Any, texts: Iterable[str], max_sequence_length: int | None = None
) -> list[str]:
    """A sentence for each prompt that a text encoder does not read to its end.

    Args:
        pipe: A pipeline with any number of tokenizers.
        texts: Prompts.
        max_sequence_length: Number of tokens to which encoders other than CLIP cut a prompt; None
            takes the default of the pipeline's `encode_prompt`.

    Returns:
        Sentences that name the prompt, the numbers of tokens and the text that is left out.
    """
    named = [(name, getattr(pipe, name, None)) for name in TOKENIZERS]
    readers = [  # a processor of texts and images holds a tokenizer of texts
        (name, getattr(one, "tokenizer", one)) for name, one in named if one is not None
    ]
    found = []
    for text in dict.fromkeys(texts):
        cuts = {}
        for name, tokenizer in readers:
            limit = _limit(pipe, tokenizer, max_sequence_length)
            cut = _left_out(pipe, tokenizer, text, limit)
            if cut is not None:
                cuts[name.replace("tokenizer", "text_encoder")] = (limit, cut)
        if cuts:
            which = " and ".join(f"{n} (to {limit} tokens)" for n, (limit, _) in cuts.items())
            cut = max((cut for _, cut in cuts.values()), key=len)
            rest = "is not read" if len(cuts) == len(readers) else "is read by the others alone"
            found.append(
                f"The prompt {_short(text)!r} is truncated for {which}: its end, {_short(cut)!r}, "
                f"{rest}. Shorten the prompt."
            )
    return found


def warn_of_negative(
    pipe: Any, negative_prompt: str, guidance_scale: float, true_cfg_scale: float
) -> None:
    """Warn of a negative prompt that no guidance uses.

    Args:
        pipe: A pipeline.
        negative_prompt: The negative prompt, or an empty string.
        guidance_scale: That of `invert`.
        true_cfg_scale: That of `invert`.

    Warns:
        TextWarning: If it has no effect.
    """
    text = negative_warning(pipe, negative_prompt, guidance_scale, true_cfg_scale)
    if text is not None:
        warnings.warn(text, TextWarning, stacklevel=3)


def negative_warning(
    pipe: Any, negative_prompt: str, guidance_scale: float, true_cfg_scale: float = 1.0
) -> str | None:
    """A sentence about a negative prompt that no guidance uses, or None; see `warn_of_negative`."""
    embedded = pipe._embeds_guidance
    if not negative_prompt or true_cfg_scale > 1 or (guidance_scale > 1 and not embedded):
        return None
    return (
        "`negative_prompt` has no effect without guidance: raise "
        f"`{'true_cfg_scale' if embedded else 'guidance_scale'}` above 1. Without guidance, only "
        "metrics that read the difference of prompts, such as density, use it."
    )


def _limit(pipe: Any, tokenizer: Any, max_sequence_length: int | None) -> int:
    """The number of tokens to which a pipeline cuts a prompt for one of its tokenizers."""
    own = int(min(tokenizer.model_max_length, NO_LIMIT))
    if "CLIP" in type(tokenizer).__name__:
        return own
    known = inspect.signature(pipe.encode_prompt).parameters.get("max_sequence_length")
    if max_sequence_length is not None:
        return max_sequence_length
    return own if known is None or not isinstance(known.default, int) else known.default


def _left_out(pipe: Any, tokenizer: Any, text: str, limit: int) -> str | None:
    """The end of a text beyond a number of tokens, or None."""
    convert = getattr(pipe, "maybe_convert_prompt", None)  # textual inversion lengthens prompts
    if convert is not None:
        text = convert(text, tokenizer)
    tokens = list(tokenizer(text, truncation=False, verbose=False).input_ids)
    if len(tokens) <= limit:
        return None
    ends = tokens[-1] in tokenizer.all_special_ids  # the mark of the end is kept
    cut = tokens[limit - 1 : -1] if ends else tokens[limit:]
    return tokenizer.decode(cut).strip()


def _short(text: str, most: int = 60) -> str:
    """A text, shortened in its middle."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
