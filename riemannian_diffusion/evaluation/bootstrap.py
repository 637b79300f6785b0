"""Bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def bootstrap_interval(
    statistic: Callable[[Tensor], Tensor | float],
    num_items: int,
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """A confidence interval of a statistic by resampling its items with replacement.

    The percentile interval of the resamples, moved so that their mean is the statistic of the items
    themselves. For a mean that changes next to nothing; for FID and KID, whose resamples hold
    repeated images and are therefore biased, it takes that bias out. The interval speaks of the
    choice of items alone, and with few of them it is too narrow.

    Args:
        statistic: Maps indices `(num_items,)` of the items, which may repeat, to a number.
        num_items: Items, at least 2.
        num_resamples: Resamples, at least 1.
        confidence: Share of the resamples inside, in (0, 1).
        seed: Of the resampling: the same seed gives the same interval.

    Returns:
        Its lower and its upper end.

    Raises:
        ValueError: If an argument is out of range.
    """
    if num_items < 2:
        raise ValueError(f"`num_items` must be at least 2, but got {num_items}.")
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` must be at least 1, but got {num_resamples}.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be in (0, 1), but got {confidence}.")
    generator = torch.Generator().manual_seed(seed)
    value = float(statistic(torch.arange(num_items)))
    resampled = torch.tensor(
        [
            float(statistic(torch.randint(num_items, (num_items,), generator=generator)))
            for _ in range(num_resamples)
        ],
        dtype=torch.float64,
    )
    tail = (1 - confidence) / 2
    low, high = resampled.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return value + float(low - resampled.mean()), value + float(high - resampled.mean())
