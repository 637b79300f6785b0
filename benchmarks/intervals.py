"""How often confidence intervals cover the expected value, and how wide they are.

    python benchmarks/intervals.py [--runs 200] [--only means|sets]

For the rows "mean", n values are drawn, and a 95 % interval of their mean is formed. For the rows
"fid" and "kid", n sequences of Gaussian features are drawn, with two frames and two inputs each,
and an interval of FID or KID over the sequences is formed. The columns are:

    coverage   share of intervals that cover the expected value; for FID and KID, this value is the
               mean over many draws of n sequences
    low, high  shares of intervals that lie above and below the expected value
    width      width over the width of an interval from the true standard deviation with the same
               quantile (Student's t, or the normal quantile for bootstraps)

The method "new" is `mean_interval` or `jackknife_interval`. The method "percentile" resamples with
replacement and centres the percentiles on the value. The method "student" is the plain t interval,
"bca" is the bias-corrected and accelerated bootstrap of scipy, and "jackknife" is the plain
jackknife, without the correction for pairs of sequences.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import frame
import scipy.stats
import torch
from torch import Tensor

from riemannian_diffusion.evaluation import jackknife_interval, kernel_distance, mean_interval
from riemannian_diffusion.evaluation.distributions import frechet_statistic, kernel_statistic

CONFIDENCE = 0.95
NUM_RESAMPLES = 100  # for each bootstrap
NUM_DRAWS = 1000  # for the expected value and the true standard deviation of FID and KID

Interval = tuple[float, float]


@dataclass(frozen=True)
class Case:
    """A population of sequences.

    Attributes:
        shift: Mean of every feature of the frames; the inputs have mean 0.
        scale: Standard deviation of the frames; the standard deviation of the inputs is 1.
        link: Correlation of a frame with the mean of the inputs of its sequence.
        num_features: Number of features.
    """

    shift: float = 0.0
    scale: float = 1.0
    link: float = 0.0
    num_features: int = 16

    def draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features of frames `(1, num, 2, d)` and of inputs `(num, 2, d)`."""
        frames, inputs = torch.randn(
            2, num, 2, self.num_features, generator=generator, dtype=torch.float64
        )
        centre = inputs.mean(1, keepdim=True) * math.sqrt(2)
        frames = self.link * centre + math.sqrt(1 - self.link**2) * frames
        return (self.scale * frames + self.shift)[None], inputs


CASES = {
    "one distribution": Case(),
    "shifted": Case(shift=0.5),
    "far apart": Case(shift=1.5),
    "wider": Case(shift=0.3, scale=1.5),
    "linked to inputs": Case(shift=0.5, link=0.7),
    "128 features": Case(shift=0.2, link=0.7, num_features=128),
}


def _normal(num: int, generator: torch.Generator) -> Tensor:
    return torch.randn(num, generator=generator, dtype=torch.float64)


def _lognormal(num: int, generator: torch.Generator, sigma: float = 1.0) -> Tensor:
    return (sigma * _normal(num, generator)).exp()


POPULATIONS: dict[str, tuple[Callable[[int, torch.Generator], Tensor], float, float]] = {
    # draw, mean, standard deviation
    "normal": (_normal, 0.0, 1.0),
    "lognormal, sigma 0.5": (
        partial(_lognormal, sigma=0.5),
        math.exp(0.125),
        math.sqrt((math.exp(0.25) - 1) * math.exp(0.25)),
    ),
    "exponential": (
        lambda num, generator: -torch.rand(num, generator=generator, dtype=torch.float64).log(),
        1.0,
        1.0,
    ),
    "lognormal, sigma 1": (_lognormal, math.exp(0.5), math.sqrt((math.e - 1) * math.e)),
}


def percentile_interval(
    statistic: Callable[[Tensor], Tensor], num: int, generator: torch.Generator
) -> Interval:
    """An interval from percentiles of resamples with replacement, centred on the value."""
    value = float(statistic(torch.arange(num)))
    resampled = torch.stack(
        [statistic(torch.randint(num, (num,), generator=generator)) for _ in range(NUM_RESAMPLES)]
    )
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(resampled.quantile(share) - resampled.mean()) for share in (tail, 1 - tail))
    return value + low, value + high


def plain_jackknife_interval(statistic: Callable[[Tensor], Tensor], num: int) -> Interval:
    """Student's t interval with the jackknife's variance, without any correction."""
    everything = torch.arange(num)
    ones = torch.stack([statistic(everything[everything != i]) for i in range(num)])
    half = _quantile(num) * math.sqrt(float(ones.var(correction=0)) * (num - 1))
    value = float(statistic(everything))
    return value - half, value + half


def student_interval(values: Tensor) -> Interval:
    """Student's t interval of a mean."""
    half = _quantile(len(values)) * float(values.std()) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def bca_interval(values: Tensor, seed: int) -> Interval:
    """Bias-corrected and accelerated bootstrap interval of a mean."""
    found = scipy.stats.bootstrap(
        (values.numpy(),),
        lambda x, axis: x.mean(axis),
        n_resamples=NUM_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=seed,
    ).confidence_interval
    return float(found.low), float(found.high)


def _quantile(num: int) -> float:
    return float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, num - 1))


def summary(intervals: list[Interval], expected: float, half_width: float) -> dict[str, float]:
    """Coverage, shares of misses on both sides, and mean width over twice `half_width`."""
    num = len(intervals)
    above = sum(low > expected for low, _ in intervals) / num
    below = sum(high < expected for _, high in intervals) / num
    width = sum(high - low for low, high in intervals) / num
    return {
        "coverage": 1 - above - below,
        "low": above,
        "high": below,
        "width": width / (2 * half_width),
    }


def means(num_runs: int, seed: int) -> Iterator[dict]:
    """One row per population, number of values and method."""
    normal = float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2))
    for population, (draw, expected, deviation) in POPULATIONS.items():
        for num in (3, 5, 10, 30):
            generator = torch.Generator().manual_seed(seed)
            samples = [draw(num, generator) for _ in range(num_runs)]
            found = {
                "percentile": [
                    percentile_interval(lambda index, x=x: x[index].mean(), num, generator)
                    for x in samples
                ],
                "bca": [bca_interval(x, seed) for x in samples],
                "student": [student_interval(x) for x in samples],
                "new": [mean_interval(x, confidence=CONFIDENCE) for x in samples],
            }
            for method, intervals in found.items():
                quantile = normal if method in ("percentile", "bca") else _quantile(num)
                half = quantile * deviation / math.sqrt(num)
                row = {"measure": "mean", "population": population, "n": num, "method": method}
                yield row | summary(intervals, expected, half)


def sets(num_runs: int, seed: int, cases=tuple(CASES), nums=(5, 10, 30)) -> Iterator[dict]:
    """One row per distance, population, number of sequences and method."""
    normal = float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2))
    for measure, build in (("fid", frechet_statistic), ("kid", kernel_statistic)):
        for name in cases:
            for num in nums:
                generator = torch.Generator().manual_seed(seed)
                draw = partial(CASES[name].draw, num, generator)
                everything = torch.arange(num)
                values = torch.stack([build(*draw())(everything) for _ in range(NUM_DRAWS)])
                found: dict[str, list[Interval]] = {"percentile": [], "jackknife": [], "new": []}
                for _ in range(num_runs):
                    frames, inputs = draw()
                    statistic = build(frames, inputs)
                    # KID leaves out the pair of an image with itself, and so also with its copies
                    copied = statistic if measure == "fid" else _kid_of_copies(frames[0], inputs)
                    found["percentile"].append(percentile_interval(copied, num, generator))
                    found["jackknife"].append(plain_jackknife_interval(statistic, num))
                    found["new"].append(jackknife_interval(statistic, num, confidence=CONFIDENCE))
                for method, intervals in found.items():
                    quantile = normal if method == "percentile" else _quantile(num)
                    half = quantile * float(values.std())
                    row = {"measure": measure, "population": name, "n": num, "method": method}
                    yield row | summary(intervals, float(values.mean()), half)


def _kid_of_copies(frames: Tensor, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda index: kernel_distance(frames[index].flatten(0, 1), inputs[index].flatten(0, 1))


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Rows of means, then rows of FID and KID."""
    if args.only != "sets":
        yield from means(args.runs, args.seed)
    if args.only != "means":
        yield from sets(args.runs, args.seed)


def main(argv: list[str] | None = None) -> list[dict]:
    """Simulate all intervals; return the rows."""
    parser = frame.parser(__doc__, cpu_only=True)
    parser.add_argument("--runs", type=int, default=200, help="intervals per row (default: 200)")
    parser.add_argument(
        "--only",
        choices=("means", "sets"),
        help="measure only rows of means, or only rows of FID and KID",
    )
    return frame.run(measure, parser, argv)


if __name__ == "__main__":
    main()
