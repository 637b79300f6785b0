"""Classes in place of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_whole
from riemannian_diffusion.pipelines.prompts import Encoded, TextRequest

CLASSES = "class_labels"

Label = int | str


def label_numbers(
    labels: Label | Sequence[Label],
    num_classes: int | None,
    names: Mapping[str, int] | None = None,
) -> Tensor:
    """The numbers of given labels.

    Args:
        labels: One label or several, as numbers or names.
        num_classes: The number of classes; None for no limit.
        names: The number of each named class.

    Returns:
        The numbers, `(P,)`, int64.

    Raises:
        ValueError: If there is no label, or one is no class.
    """
    given = labels if isinstance(labels, (list, tuple)) else [labels]
    if not given:
        raise ValueError("`class_labels` must be one or more classes, but got none.")
    names = names or {}
    for one in given:
        if isinstance(one, str) and one not in names:
            known = f"the {len(names)} names in `pipe.labels`" if names else "numbers alone"
            raise ValueError(f"`class_labels` has {one!r}, but this model has {known}.")
    numbers: list[Any] = [names[one] if isinstance(one, str) else one for one in given]
    for number in numbers:
        check_whole(0, class_labels=number)
        if num_classes is not None and number >= num_classes:
            raise ValueError(
                f"`class_labels` must be in [0, {num_classes - 1}] for this model, but got "
                f"{number}."
            )
    return torch.tensor(numbers)


def no_texts(pipe: Any, request: TextRequest) -> Encoded:
    """The conditions of a model without texts: none.

    Raises:
        ValueError: If there are texts.
    """
    if any(request.prompts or []) or request.negatives or request.embeddings:
        raise ValueError(
            f"{type(pipe).__name__} takes no `prompt`, no `negative_prompt` and no embeddings, but "
            f"got {request.prompts} and {request.negatives}."
        )
    return {}, None
