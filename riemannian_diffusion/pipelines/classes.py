"""Classes as conditions: weights of labels, which can be interpolated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from riemannian_diffusion.arguments import check_whole
from riemannian_diffusion.pipelines.prompts import Encoded, TextRequest

CLASSES = "class_labels"

Label = int | str


@dataclass(frozen=True)
class MixedLabels:
    """Labels that stand for mixtures of classes in a call of a network.

    Wherever the network looks labels up in a table of embeddings, it finds the weighted mean of the
    table's rows. The network is not changed, so that calls in several threads do not meet.

    Attributes:
        weights: The weight of each class at each point, `(K, num_classes)`.
    """

    weights: Tensor

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Tensor:
        """The weighted mean of the rows of a table."""
        if function is not F.embedding:
            raise TypeError(f"Labels of classes can be looked up in a table alone, not {function}.")
        labels, table = args[:2]
        return labels.weights.to(table) @ table


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
    numbers = []
    for one in given:
        if isinstance(one, str):
            if one not in (names or {}):
                known = f"the {len(names)} names in `pipe.labels`" if names else "numbers alone"
                raise ValueError(f"`class_labels` has {one!r}, but this model has {known}.")
            one = (names or {})[one]
        check_whole(0, class_labels=one)
        if num_classes is not None and one >= num_classes:
            raise ValueError(
                f"`class_labels` must be in [0, {num_classes - 1}] for this model, but got {one}."
            )
        numbers.append(one)
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
