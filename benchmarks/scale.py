"""How the cost of geodesics grows with points, pairs and size of the images.

    python benchmarks/scale.py [--device cuda] [--points 5 9 17 33 65] [--pairs 1 4 16]
        [--sizes 8 16 32 64] [--rate 200] [--price 3]

Four tables:

    points      seconds of an evaluation (3 sub-chords per segment), in all and per point, of the
                shipped model
    pairs       seconds of P solves one after the other over those of one call of `geodesics`, 5
                evaluations each: for the exact score of a circle (400 points in R^32), where
                overhead is all there is, and for the shipped model (on a CPU with max_batch_size=8)
    size        seconds of an evaluation of 5 points over the side of the latents
    on paper    10,000 pairs on 8 GPUs: the network passes that the pipeline spends at its defaults
                on the shipped pair, times the TFLOP of one pass of Stable Diffusion 1.5 at 512 x
                512, at --rate TFLOP/s sustained per GPU (an assumption) and --price per GPU hour
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial

import torch
from architectures import SD15, score_of
from cost import evaluation, least_seconds
from diffusers import UNet2DConditionModel
from machine import describe
from PIL import Image
from problems import circle
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from riemannian_diffusion import (
    Geodesic,
    Metric,
    TangentNormalMetric,
    demo,
    geodesic,
    geodesics,
    refine,
    slerp,
)
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

NUM_QUADRATURE = 3
NUM_PAIRS, NUM_GPUS = 10_000, 8


def of_points(nums: list[int], device: str) -> dict[int, float]:
    """Print and return the seconds of an evaluation for each number of points."""
    score, shape = score_of("shipped", device=device, max_batch_size=8)
    generator = torch.Generator().manual_seed(0)
    ends = torch.randn(2, *shape, generator=generator).to(device)
    print(f"\nshipped model, max_batch_size=8\n{'points':>8s}{'s':>10s}{'s / point':>12s}")
    seconds = {}
    for num in nums:
        path = refine(slerp(*ends, num), NUM_QUADRATURE)
        seconds[num] = least_seconds(evaluation(TangentNormalMetric(score), path), 3, device)
        print(f"{num:8d}{seconds[num]:10.3f}{seconds[num] / len(path):12.4f}", flush=True)
    return seconds


def one_by_one(metric: Metric, x0: Tensor, x1: Tensor, **options) -> list[Geodesic]:
    """What `geodesics` returns."""
    return [geodesic(metric, *ends, **options) for ends in zip(x0, x1, strict=True)]


def of_pairs(name: str, metric: Metric, ends: Callable, nums: list[int], device: str) -> dict:
    """Print and return the ratio of time one after the other to time side by side."""
    options = {"num_points": 9, "rtol": 0.0, "max_evals": 5}
    print(f"\n{name}\n{'pairs':>8s}{'one by one':>12s}{'together':>10s}{'ratio':>8s}")
    ratios = {}
    for num in nums:
        x0, x1 = ends(num)
        apart = least_seconds(partial(one_by_one, metric, x0, x1, **options), 2, device)
        together = least_seconds(partial(geodesics, metric, x0, x1, **options), 2, device)
        ratios[num] = apart / together
        print(f"{num:8d}{apart:12.3f}{together:10.3f}{ratios[num]:8.2f}", flush=True)
    return ratios


def of_sizes(sides: list[int], device: str) -> dict[int, float]:
    """Print and return the seconds of an evaluation for each side of the latents."""
    print(f"\nshipped model, 5 points\n{'side':>8s}{'s':>10s}{'us / value':>12s}")
    seconds = {}
    for side in sides:
        score, shape = score_of("shipped", device=device, max_batch_size=8, size=side)
        generator = torch.Generator().manual_seed(0)
        ends = torch.randn(2, *shape, generator=generator).to(device)
        path = refine(slerp(*ends, 5), NUM_QUADRATURE)
        seconds[side] = least_seconds(evaluation(TangentNormalMetric(score), path), 3, device)
        each = 1e6 * seconds[side] / (len(path) * side**2 * shape[0])
        print(f"{side:8d}{seconds[side]:10.3f}{each:12.2f}", flush=True)
    return seconds


def passes_of_a_pair() -> dict[str, int]:
    """Network passes, and reverse passes, of the pipeline's defaults for the shipped pair."""
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
    pipe.set_progress_bar_config(disable=True)
    passes = {"forward": 0, "reverse": 0}

    def count(_, inputs) -> None:
        passes["forward"] += len(inputs[0])
        passes["reverse"] += len(inputs[0]) * inputs[0].requires_grad

    pipe.unet.register_forward_pre_hook(count)
    pipe([Image.open(path).convert("RGB") for path in demo.endpoint_paths()])
    return passes


def tera_per_pass() -> float:
    """TFLOP of Stable Diffusion 1.5's network for one latent of 4 x 64 x 64, not computed."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
        inputs = torch.zeros(1, 4, 64, 64), torch.tensor(1), torch.zeros(1, 77, 768)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(*inputs)
    return counter.get_total_flops() / 1e12


def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Print the tables; returns them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--points", type=int, nargs="+", default=[5, 9, 17, 33, 65])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--rate", type=float, default=200.0, help="TFLOP/s sustained per GPU")
    parser.add_argument("--price", type=float, default=3.0, help="of a GPU hour")
    args = parser.parse_args(argv)
    print(describe(args.device))
    tables = {"points": of_points(args.points, args.device)}

    problem = circle(32)
    angles = torch.linspace(0.5, 1, max(args.pairs), dtype=torch.float64)
    far = problem.geodesic(angles)
    tables["pairs of a circle"] = of_pairs(
        "exact score of a circle",
        TangentNormalMetric(problem.score),
        lambda num: (problem.x0.expand(num, -1), far[:num]),
        args.pairs,
        "cpu",
    )
    chunk = 8 if args.device == "cpu" else None
    score, shape = score_of("shipped", device=args.device, max_batch_size=chunk)
    generator = torch.Generator().manual_seed(0)
    tables["pairs"] = of_pairs(
        "shipped model",
        TangentNormalMetric(score),
        lambda num: torch.randn(2, num, *shape, generator=generator).to(args.device),
        args.pairs,
        args.device,
    )
    tables["sizes"] = of_sizes(args.sizes, args.device)

    passes, tera = passes_of_a_pair(), tera_per_pass()
    work = tera * (passes["forward"] + passes["reverse"])  # frozen weights: a reverse pass is one
    hours = NUM_PAIRS * work / args.rate / 3600
    print(f"\non paper\n{passes['forward']} forward and {passes['reverse']} reverse passes a pair")
    print(f"{tera:.3f} TFLOP a pass, {work:.0f} TFLOP a pair")
    print(f"{NUM_PAIRS} pairs at {args.rate:g} TFLOP/s: {hours:.0f} GPU hours", end="")
    print(f", {hours / NUM_GPUS:.1f} h on {NUM_GPUS} GPUs, {math.ceil(hours * args.price)} in all")
    tables["on paper"] = {**passes, "tera": tera, "hours": hours}
    return tables


if __name__ == "__main__":
    main()
