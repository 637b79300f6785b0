"""Cost of geodesics by the number of points, the number of pairs, and the size of the images.

    python benchmarks/scale.py [--device cuda] [--points 5 9 17 33 65] [--pairs 1 4 16]
        [--sizes 8 16 32 64]

There are three kinds of rows:

    points      seconds of one evaluation of energy and gradient with the shipped model (2
                chords per segment), in total and per point
    pairs       seconds of solves with 5 evaluations each, one after the other and in one call of
                `geodesics`; the exact score of a circle (400 points in R^32) shows the overhead,
                the shipped model shows the cost of a network (on a CPU with max_batch_size=8)
    side        seconds of one evaluation of 5 points, for each side of the latents
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import frame
import torch
from architectures import score_of
from cost import evaluation
from device import least_seconds
from problems import circle
from torch import Tensor

from riemannian_diffusion import (
    Geodesic,
    Metric,
    TangentNormalMetric,
    geodesic,
    geodesics,
    slerp,
    smooth,
)
from riemannian_diffusion.geodesics.progress import NUM_QUADRATURE


def of_points(nums: list[int], device: str, seed: int) -> Iterator[dict]:
    """Seconds of an evaluation for each number of points."""
    score, shape = score_of("shipped", device=device, max_batch_size=8, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randn(2, *shape, generator=generator).to(device)
    for num in nums:
        path = smooth(slerp(*ends, num), NUM_QUADRATURE)
        seconds = least_seconds(evaluation(TangentNormalMetric(score), path), 3, device)
        yield {"points": num, "seconds": seconds, "seconds per point": seconds / len(path)}


def one_by_one(metric: Metric, x0: Tensor, x1: Tensor, **options) -> list[Geodesic]:
    """The geodesics that one call of `geodesics` returns, solved one after the other."""
    return [geodesic(metric, *ends, **options) for ends in zip(x0, x1, strict=True)]


def of_pairs(
    name: str, metric: Metric, ends: Callable, nums: list[int], device: str
) -> Iterator[dict]:
    """Seconds of solves one after the other and side by side."""
    options = {"num_points": 9, "rtol": 0.0, "max_evals": 5}
    for num in nums:
        x0, x1 = ends(num)
        apart = least_seconds(partial(one_by_one, metric, x0, x1, **options), 2, device)
        together = least_seconds(partial(geodesics, metric, x0, x1, **options), 2, device)
        times = {"one by one": apart, "together": together, "ratio": apart / together}
        yield {"score": name, "pairs": num} | times


def of_sizes(sides: list[int], device: str, seed: int) -> Iterator[dict]:
    """Seconds of an evaluation for each side of the latents."""
    options = {"device": device, "max_batch_size": 8, "seed": seed}
    for side in sides:
        score, shape = score_of("shipped", size=side, **options)
        generator = torch.Generator().manual_seed(seed)
        ends = torch.randn(2, *shape, generator=generator).to(device)
        path = smooth(slerp(*ends, 5), NUM_QUADRATURE)
        seconds = least_seconds(evaluation(TangentNormalMetric(score), path), 3, device)
        each = 1e6 * seconds / (len(path) * side**2 * shape[0])
        yield {"side": side, "seconds": seconds, "microseconds per value": each}


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure the times; return the rows."""
    parser = frame.parser(__doc__)
    parser.add_argument("--points", type=int, nargs="+", default=[5, 9, 17, 33, 65])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32, 64])
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Rows of all three kinds."""
    yield from of_points(args.points, args.device, args.seed)

    problem = circle(32)
    angles = torch.linspace(0.5, 1, max(args.pairs), dtype=torch.float64)
    far = problem.geodesic(angles)
    yield from of_pairs(
        "exact score of a circle",
        TangentNormalMetric(problem.score),
        lambda num: (problem.x0.expand(num, -1), far[:num]),
        args.pairs,
        "cpu",
    )
    chunk = 8 if args.device == "cpu" else None
    score, shape = score_of("shipped", device=args.device, max_batch_size=chunk, seed=args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    yield from of_pairs(
        "shipped model",
        TangentNormalMetric(score),
        lambda num: torch.randn(2, num, *shape, generator=generator).to(args.device),
        args.pairs,
        args.device,
    )
    yield from of_sizes(args.sizes, args.device, args.seed)


if __name__ == "__main__":
    main()
