"""Confidence intervals over sequences, for means and for FID and KID.

All intervals describe the choice of sequences: another set of as many sequences, drawn from the
same population, gives other values. `benchmarks/intervals.py` measures how often the intervals
cover the expected value.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_finite, check_kind, check_points
from riemannian_diffusion.measures.frames import import_extra

MIN_VALUES = 3  # least number for the interval of a mean
MIN_SEQUENCES = 5  # least number for the interval of a distance between sets


def mean_interval(values: Tensor, *, confidence: float = 0.95) -> tuple[float, float]:
    """Compute a confidence interval of the mean of independent values, `(n,) -> (low, high)`.

    This is Student's t interval with Hall's cubic transformation, which corrects for skewness
    (P. Hall, 1992, "On the removal of skewness by transformation", J. R. Stat. Soc. B 54). The
    table shows the share of simulated 95 % intervals that cover the mean
    (`benchmarks/intervals.py`):

    | values | n = 3 | n = 5 | n = 10 | n = 30 |
    | --- | --- | --- | --- | --- |
    | normal | 0.95 | 0.95 | 0.95 | 0.95 |
    | lognormal, sigma 0.5 | 0.92 | 0.94 | 0.95 | 0.94 |
    | exponential | 0.92 | 0.91 | 0.94 | 0.95 |
    | lognormal, sigma 1 | 0.86 | 0.89 | 0.92 | 0.93 |

    Below ten values, the interval covers less than it states if the population is strongly skewed
    or has two peaks. Equal values give an interval without width.
    For three values of a normal population it is about eight standard deviations wide.

    Args:
        values: Values `(n,)`; n is at least `MIN_VALUES`.
        confidence: Probability that the interval covers the expected mean, in (0, 1).

    Returns:
        The lower and the upper end of the interval.

    Raises:
        ImportError: If scipy is missing.
        ValueError: If there are too few values, they are not finite, or `confidence` is out of
            range.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import mean_interval
        >>> low, high = mean_interval(torch.arange(10.0))
        >>> low < 4.5 < high
        True
    """
    check_kind(Tensor, values=values)
    num, values = len(values), values.detach().cpu().double()
    check_points(values=values)
    if values.ndim != 1:
        raise ValueError(f"`values` must be (n,), but got {tuple(values.shape)}.")
    if num < MIN_VALUES:
        raise ValueError(f"`values` must have at least {MIN_VALUES} entries, but got {num}.")
    quantile = _student_quantile(num, confidence) / math.sqrt(num)
    if bool((values == values[0]).all()):
        return float(values[0]), float(values[0])
    mean, deviation = float(values.mean()), float(values.std())
    units = (values - mean) / deviation  # of any scale
    skewness = float(units.pow(3).mean() / units.square().mean().pow(1.5))
    # The interval inverts w + a w^2 + a^2 w^3 / 3 + skewness / (6 n), a = skewness / 3, where w is
    # the studentised mean over sqrt(n); the transformed w has no skewness to first order.
    low, high = (
        mean - deviation * _untransformed(end - skewness / (6 * num), skewness / 3)
        for end in (quantile, -quantile)
    )
    return low, high


def jackknife_interval(
    statistic: Callable[[Tensor], Tensor | float],
    num_sequences: int,
    *,
    num_pairs: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Compute a confidence interval of a distance between sets, such as FID or KID.

    The distance is computed again without each sequence, and without each of several pairs of
    sequences. No sequence is repeated. A bootstrap repeats sequences, so FID and KID compare a
    sequence with its copy. This makes the interval up to three times too wide.

    The variance is the jackknife's, corrected by the interactions of pairs of sequences (B. Efron
    and C. Stein, 1981, "The jackknife estimate of variance", Ann. Stat. 9). The full correction
    is unbiased for a U-statistic of degree two, such as KID. A share of `2 / num_sequences` of the
    correction is left out, because with few sequences intervals would otherwise cover too little.
    Without any correction, intervals are 1.4 times too wide if both sets come from one
    distribution. The end points come from Student's t with `num_sequences - 1` degrees of freedom.
    They are symmetric about the square root of the distance, because the spread of a squared
    distance grows with its value.

    The interval covers the expected distance for the given number of sequences. FID is biased
    upwards in small sets, and the interval does not remove this bias. Simulated 95 % intervals
    cover the expected FID or KID in 90 to 96 % of the draws, and are 0.9 to 1.15 times as wide as
    intervals from the true standard deviation (`benchmarks/intervals.py`: 16 Gaussian features, 5,
    10 and 30 sequences, whose frames are independent). KID intervals cover less if the frames and
    the inputs of a sequence are nearly alike.

    Args:
        statistic: A function that maps indices of sequences, `(m,)`, without repetitions, to a
            finite number.
        num_sequences: Number of sequences, at least `MIN_SEQUENCES`.
        num_pairs: Largest number of pairs of sequences, at least 2. If there are more pairs, random
            pairs are chosen.
        confidence: Probability that the interval covers the expected distance, in (0, 1).
        seed: Seed of the random choice of pairs.

    Returns:
        The lower and the upper end of the interval.

    Raises:
        ImportError: If scipy is missing.
        ValueError: If an argument is out of range, or `statistic` returns no finite number.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion.evaluation import jackknife_interval
        >>> values = torch.arange(10.0)
        >>> low, high = jackknife_interval(lambda kept: values[kept].mean(), 10)
        >>> low < 4.5 < high
        True
    """
    n = num_sequences
    if n < MIN_SEQUENCES:
        raise ValueError(f"`num_sequences` must be at least {MIN_SEQUENCES}, but got {n}.")
    if num_pairs < 2:
        raise ValueError(f"`num_pairs` must be at least 2, but got {num_pairs}.")
    quantile = _student_quantile(n, confidence)
    pairs = torch.triu_indices(n, n, 1).T  # (n (n - 1) / 2, 2)
    if len(pairs) > num_pairs:
        generator = torch.Generator().manual_seed(seed)
        pairs = pairs[torch.randperm(len(pairs), generator=generator)[:num_pairs]]

    def without(left_out: Tensor) -> float:
        kept = torch.ones(n, dtype=torch.bool)
        kept[left_out] = False
        return finite(kept.nonzero().flatten())

    def finite(kept: Tensor) -> float:
        found = float(statistic(kept))
        check_finite(statistic=found)
        return found

    value = finite(torch.arange(n))
    ones = torch.tensor([without(i) for i in torch.arange(n)], dtype=torch.float64)
    twos = torch.tensor([without(pair) for pair in pairs], dtype=torch.float64)
    jackknife = float(ones.var(correction=0)) * (n - 1)
    # Interactions are 0 if the statistic is a mean over sequences.
    interactions = n * value - (n - 1) * ones[pairs].sum(1) + (n - 2) * twos
    excess = float(interactions.var()) * (n - 1) / (2 * n)
    excess *= (n - 2) / n  # a too small variance loses more coverage than a too large one gains
    variance = max(jackknife - excess, jackknife / 2)  # the excess is at most half in expectation
    half = quantile * math.sqrt(variance)
    if half == 0:
        return value, value
    # (sqrt(v) +- half / (2 sqrt(v)))^2 = v +- half + half^2 / (4 v). If v is below `half`, and
    # perhaps 0 or negative, the shift is a quarter of `half`.
    shift = half**2 / (4 * max(value, half))
    return value - half + shift, value + half + shift


def _student_quantile(num: int, confidence: float) -> float:
    """The two-sided quantile of Student's t with `num - 1` degrees of freedom."""
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be in (0, 1), but got {confidence}.")
    return float(import_extra("scipy.stats").t.ppf((1 + confidence) / 2, num - 1))


def _untransformed(value: float, a: float) -> float:
    """The w with `w + a w^2 + a^2 w^3 / 3 = value`."""
    if abs(a) < 1e-8:
        return value
    cube = 1 + 3 * a * value
    return (math.copysign(abs(cube) ** (1 / 3), cube) - 1) / a
