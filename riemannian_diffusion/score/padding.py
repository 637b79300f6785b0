"""Prompts of different lengths, padded to one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch.nn.functional as F

if TYPE_CHECKING:
    from riemannian_diffusion.score.conditions import Condition


def padded(parts: Sequence[Mapping[str, Condition]], what: str) -> list[dict[str, Condition]]:
    """Conditions with zeros after their tokens, up to the largest number of tokens.

    Args:
        parts: The conditions of each group by name.
        what: What has these conditions, in error messages.

    Raises:
        ValueError: If numbers of tokens differ and no mask says which of them count.
    """
    found = [dict(part) for part in parts]
    for name in parts[0]:
        mine = [part[name] for part in parts if name in part and _has_tokens(part[name])]
        lengths = [condition.values.shape[2] for condition in mine]
        if len(mine) < len(parts) or len(set(lengths)) == 1:
            continue
        if any(not is_masked(one, part) for one, part in zip(mine, parts, strict=True)):
            raise ValueError(
                f"{what} must have prompts of one number of tokens, but `{name}` has "
                f"{' and '.join(map(str, sorted(set(lengths))))}, and this model has no mask for "
                "padding: encode all prompts with one `max_sequence_length`."
            )
        for part, condition in zip(found, mine, strict=True):
            missing = max(lengths) - condition.values.shape[2]
            sizes = [0, 0] * (condition.values.ndim - 3) + [0, missing]
            part[name] = replace(condition, values=F.pad(condition.values, sizes))
    return found


def is_masked(condition: Condition, named: Mapping[str, Condition]) -> bool:
    """Whether a mask says which of the condition's tokens count."""
    masks = [c for c in named.values() if c.kind == "mask" and _has_tokens(c)]
    return _has_tokens(condition) and any(
        mask.values.shape[2] == condition.values.shape[2] for mask in masks
    )


def _has_tokens(condition: Condition) -> bool:
    """Whether the values may be `(B, P, L, *shape)` of L tokens, or their mask `(B, P, L)`."""
    rank = condition.values.ndim
    return rank == 3 if condition.kind == "mask" else condition.kind == "interpolated" and rank > 3
