"""Labels of classes that can be interpolated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor


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
