"""Prompts and embeddings, from the arguments of `condition` to a family's text encoders."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from riemannian_diffusion.arguments import check_kind, check_points, check_whole
from riemannian_diffusion.score import Condition

Named = dict[str, Condition]
Encoded = tuple[Named, Named | None]

WIDTHS = ("caption_channels", "cap_feat_dim", "joint_attention_dim", "cross_attention_dim")
"""Names under which a network's config states the width of prompt embeddings; the first counts."""

MASK = "encoder_attention_mask"
"""Name under which networks take the mask of prompt embeddings: 1 for a token, 0 for padding."""


@dataclass(frozen=True)
class TextRequest:
    """What `condition` asks of a family's text encoders.

    Attributes:
        prompts: One prompt for all keyframes or one for each; None if embeddings are given.
        negatives: As many copies of the negative prompt; None if it is empty or given.
        guided: Whether negative conditions are wanted.
        embeddings: Given embeddings and masks, by the name of their argument, one per prompt.
        options: Further arguments of the family's `encode_prompt`, such as `clip_skip`.
    """

    prompts: list[str] | None
    negatives: list[str] | None
    guided: bool
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def side(self, negative: bool) -> TextRequest:
        """The positive or the negative half, for families that encode one text at a time."""
        prefix = "negative_"
        if not negative:
            texts = self.prompts
            given = {n: v for n, v in self.embeddings.items() if not n.startswith(prefix)}
            options = {n: v for n, v in self.options.items() if not n.startswith(prefix)}
        else:
            names = ("prompt_2", "prompt_3")
            texts = self.negatives
            given = {
                n.removeprefix(prefix): v
                for n, v in self.embeddings.items()
                if n.startswith(prefix)
            }
            options = {n: v for n, v in self.options.items() if n not in names}
            options = {n.removeprefix(prefix): v for n, v in options.items()}
        if texts is None and not given:
            texts = [""]
        return TextRequest(texts, None, False, given, options)


def encode(pipe: Any, request: TextRequest) -> tuple[Any, ...]:
    """What a pipeline's own `encode_prompt` returns for a request."""
    arguments = {
        "prompt": request.prompts,
        "negative_prompt": request.negatives,
        "do_classifier_free_guidance": request.guided,
        "num_images_per_prompt": 1,
        "device": pipe.device_of_work,
    }
    known = inspect.signature(pipe.encode_prompt).parameters
    arguments = {name: value for name, value in arguments.items() if name in known}
    further = {name: None for name in ("prompt_2", "prompt_3") if name in known}
    embeddings = dict(request.embeddings)
    for name in ("prompt_embeds_mask", "negative_prompt_embeds_mask"):  # some families' names
        ours = name.replace("embeds", "attention")
        if name in known and ours in embeddings:
            embeddings[name] = embeddings.pop(ours)
    return pipe.encode_prompt(**{**arguments, **further, **embeddings, **request.options})


def encode_masked(
    pipe: Any, request: TextRequest, defaults: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Embeddings and their mask, of pipelines whose `encode_prompt` returns these two first.

    Args:
        pipe: The pipeline.
        request: One half of a request.
        defaults: Arguments of `encode_prompt` where the request has none.

    Returns:
        As `masked`.
    """
    options = {**defaults, **request.options}
    return masked(*encode(pipe, replace(request, options=options))[:2])


def masked(hidden: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Embeddings and their mask, by the names of conditions.

    Args:
        hidden: Embeddings `(P, L, C)`.
        mask: `(P, L)`, 1 for a token and 0 for padding; None if there is no padding.

    Returns:
        `encoder_hidden_states` `(P, L, C)`, zero where there is padding, so that a token which only
        one of two prompts has is interpolated with zero; and `encoder_attention_mask` `(P, L)`,
        boolean.
    """
    if mask is None:
        mask = torch.ones(hidden.shape[:2])
    mask = mask.to(hidden.device).bool()
    return {"encoder_hidden_states": hidden.masked_fill(~mask[..., None], 0), MASK: mask}


def padded(embeddings: Mapping[str, Any]) -> dict[str, Any]:
    """Embeddings where lists of `(L, C)`, each of another length, have become one and its mask.

    Args:
        embeddings: What is given to `condition` in place of prompts, by name.
    """
    found = dict(embeddings)
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        given = embeddings.get(name)
        if not isinstance(given, (list, tuple)):
            continue
        check_points(**{f"{name}[{i}]": one for i, one in enumerate(given)})
        if len({one.shape[1:] for one in given}) != 1 or given[0].ndim != 2:
            shapes = [tuple(one.shape) for one in given]
            raise ValueError(f"`{name}` must be a list of (L, C) of one width, but got {shapes}.")
        kept = [torch.ones(len(one), dtype=torch.bool) for one in given]
        found[name] = pad_sequence(list(given), True)
        found[name.replace("embeds", "attention_mask")] = pad_sequence(kept, True)
    return found


def defaults_of(function: Callable, *names: str) -> dict[str, Any]:
    """The default values of a function's arguments."""
    parameters = inspect.signature(function).parameters
    return {name: parameters[name].default for name in names}


def conditions_of(
    positive: Mapping[str, Tensor],
    negative: Mapping[str, Tensor] | None = None,
    *,
    masks: Sequence[str] = (),
) -> Encoded:
    """Conditions of encoded prompts.

    Args:
        positive: Embeddings `(P, L, C)`, masks `(P, L)` and pooled embeddings `(P, C)` by the name
            under which the network's prediction takes them.
        negative: The same for the negative prompt; None if none is wanted.
        masks: The names of masks. They are combined along a path and never interpolated.
    """

    def named(values: Mapping[str, Tensor]) -> Named:
        return {
            name: Condition.of(value, "mask" if name in masks else "interpolated")
            for name, value in values.items()
        }

    return named(positive), None if negative is None else named(negative)


# ------------------------------------------------------------------------------------------ checks


def read_options(
    pipe: Any,
    num: int,
    texts: Mapping[str, str | Sequence[str] | None],
    numbers: Mapping[str, int | None],
    scale: float | None,
) -> dict[str, Any]:
    """Further arguments of `encode_prompt`, checked against what the family takes.

    Args:
        pipe: The pipeline.
        num: The number of prompts.
        texts: Prompts for the second and third text encoder, by the name of their argument.
        numbers: `clip_skip` and `max_sequence_length`.
        scale: The scale of LoRAs in the text encoders, or None.

    Raises:
        ValueError: If the family does not take an argument, or it has a wrong kind.
    """
    known = _parameters(pipe)
    found: dict[str, Any] = {}
    for name, value in (*texts.items(), *numbers.items()):
        if value is None:
            continue
        if name.removeprefix("negative_") not in known:
            raise ValueError(
                f"{type(pipe).__name__} takes no `{name}`: its model has no use for it."
            )
        found[name] = value
    for name in texts.keys() & found.keys():
        values = [found[name]] if isinstance(found[name], str) else found[name]
        check_kind(Sequence, **{name: values})
        if not all(isinstance(one, str) for one in values) or len(values) not in (1, num):
            raise ValueError(
                f"`{name}` must be one string or one for each of the {num} prompts, but got "
                f"{found[name]!r}."
            )
        found[name] = list(values) if len(values) == num else list(values) * num
    if "clip_skip" in found:
        check_whole(0, clip_skip=found["clip_skip"])
    if "max_sequence_length" in found:
        check_whole(1, max_sequence_length=found["max_sequence_length"])
    if scale is not None and "lora_scale" in known:
        found["lora_scale"] = scale
    return found


def _parameters(pipe: Any) -> Mapping[str, Any]:
    encoder = getattr(pipe, "encode_prompt", None)
    return {} if encoder is None else inspect.signature(encoder).parameters


def text_width(network: Any) -> int | None:
    """The width of the prompt embeddings that a network takes, or None if its config has none."""
    found = next((network.config[name] for name in WIDTHS if network.config.get(name)), None)
    return found if isinstance(found, int) else None


def check_embeddings(pipe: Any, embeddings: Mapping[str, Tensor]) -> None:
    """Check embeddings that are given in place of texts.

    Args:
        pipe: The pipeline.
        embeddings: Those given, by name.

    Raises:
        ValueError: If one has another shape than the network takes, or lacks its counterpart.
    """
    check_points(**{n: v for n, v in embeddings.items() if not n.endswith("mask")})
    known = _parameters(pipe)
    pooled = "pooled_prompt_embeds" in known
    names = {"prompt_attention_mask", "prompt_embeds_mask"}
    with_mask = pipe._masks_texts or not names.isdisjoint(known)
    width = text_width(pipe.network)
    for prefix in ("", "negative_"):
        name, other = f"{prefix}prompt_embeds", f"{prefix}pooled_prompt_embeds"
        mask = f"{prefix}prompt_attention_mask"
        for partner, wanted in ((other, pooled), (mask, with_mask)):
            if (partner in embeddings) != (wanted and name in embeddings):
                need = f"needs `{partner}` with `{name}`" if wanted else f"takes no `{partner}`"
                raise ValueError(f"This model {need}, but got {sorted(embeddings)}.")
        for key, rank in ((name, 3), (other, 2), (mask, 2)):
            one = embeddings.get(key)
            if one is not None:
                check_kind(Tensor, **{key: one})  # masks may be of any dtype
            if one is not None and (one.ndim != rank or one.numel() == 0):
                last = "L" if key == mask else "C"
                shape = "(1, L, C) or (P, L, C)" if rank == 3 else f"(1, {last}) or (P, {last})"
                raise ValueError(f"`{key}` must be {shape}, but got {tuple(one.shape)}.")
        one, flags = embeddings.get(name), embeddings.get(mask)
        if one is None:
            continue
        repeated = pipe._repeats_masks and flags is not None and flags.shape == one.flatten(1).shape
        if flags is not None and flags.shape != one.shape[:2] and not repeated:
            raise ValueError(
                f"`{mask}` must be {tuple(one.shape[:2])} as `{name}` is {tuple(one.shape)}, but "
                f"got {tuple(flags.shape)}."
            )
        if flags is not None and not flags.bool().any(1).all():
            raise ValueError(f"`{mask}` must leave at least one token of each prompt, but got 0.")
        if prefix and not torch.equal(one, one[:1].expand_as(one)):
            raise ValueError(f"`{name}` must be the same for all keyframes, but got {len(one)}.")
        if width is not None and one.shape[2] != width:
            raise ValueError(
                f"`{name}` must be {width} wide for this model, but got {tuple(one.shape)}."
            )


def given_prompts(prompt: str | Sequence[str]) -> Sequence[str]:
    """One prompt or several, as a list.

    Raises:
        ValueError: If there is none, or one is no string.
    """
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not (isinstance(texts, (list, tuple)) and all(isinstance(t, str) for t in texts)):
        raise ValueError(f"`prompt` must be one or more strings, but got {prompt!r}.")
    if not texts:
        raise ValueError("`prompt` must be one or more strings, but got none.")
    return texts


def given_texts(
    texts: Sequence[str], negative_prompt: str, embeddings: Mapping[str, Tensor]
) -> tuple[list[str] | None, list[str] | None]:
    """Prompts and negative prompts, or None where embeddings or nothing take their place.

    Each family's `encode_prompt` knows what stands for an empty prompt: zeros or an empty text.

    Raises:
        ValueError: If there are both.
    """
    embeds = embeddings.get("prompt_embeds")
    if embeds is not None and any(texts):
        raise ValueError("Give `prompt` or `prompt_embeds`, but not both.")
    if negative_prompt and "negative_prompt_embeds" in embeddings:
        raise ValueError("Give `negative_prompt` or `negative_prompt_embeds`, but not both.")
    num = len(texts) if embeds is None else len(embeds)
    positive = list(texts) if embeds is None else None
    return positive, [negative_prompt] * num if negative_prompt else None
