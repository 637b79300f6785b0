"""Frames evenly spaced in perceived change: what re-timing does to a morph, and what it costs.

    python benchmarks/retiming.py [--pairs 6] [--device cpu]

The shipped model morphs held-out pairs of scenes with 17 frames. PPL is the sum of a distance
between neighbouring frames, PDV is its variance, as in the protocol `diffmorpher17`. That protocol
uses LPIPS, whose networks are not part of this repository. The distances here are the root mean
square (`rmse`) and 1 minus the structural similarity (`ssim`). Each of them re-times the morph, and
both measure the result, so that no row is judged only by the distance that made it. There is one
row per path and pair of distances: the ratios of PDV, PPL and the largest step after re-timing to
those before, as geometric means over the pairs, the worst pair's PDV and PPL, and the rounds of
re-timing.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import frame
import torch
from torch import Tensor

from riemannian_diffusion import demo
from riemannian_diffusion.evaluation import (
    adjacent_distances,
    largest_step,
    pdv_variance,
    ppl,
    rmse,
    ssim,
)
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

HELD_OUT_SEED = 2000  # the shipped model was trained on scenes drawn from seed 0
METRICS = ("tangent_normal", "slerp")


def unlikeness(x: Tensor, y: Tensor) -> Tensor:
    """1 minus the structural similarity of each image of `x` to that of `y`."""
    return 1 - ssim(x, y)


DISTANCES = {"rmse": rmse, "ssim": unlikeness}


def pairs(num: int, seed: int) -> list[tuple[list[Tensor], list[str]]]:
    """Images and captions of pairs of scenes of one kind."""
    factors = demo.random_factors(2 * num, torch.Generator().manual_seed(HELD_OUT_SEED + seed))
    kinds = [demo.KINDS[i % len(demo.KINDS)] for i in range(num)]
    hue = demo.FACTORS.index("hue")
    return [
        (
            list(demo.render(kind, two)),
            [demo.caption(kind, float(one[hue])) for one in two],
        )
        for kind, two in zip(kinds, factors.view(num, 2, -1), strict=True)
    ]


def main(argv: list[str] | None = None) -> list[dict]:
    """Re-time all pairs; return the rows."""
    parser = frame.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=50)
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Ratios of every path, re-timed by and measured by every distance."""
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path()).to(args.device)
    rows: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for images, prompts in pairs(args.pairs, args.seed):
        for metric in METRICS:
            options = {"metric": metric, "output_type": "pt", "num_inference_steps": args.steps}
            plain = pipe(images, prompts, **options).frames
            for name, distance in DISTANCES.items():
                rounds = []

                def counted(x, y, distance=distance, rounds=rounds):
                    rounds.append(1)
                    return distance(x, y)

                again = pipe(images, prompts, retime=counted, **options).frames
                for other in DISTANCES:
                    before, after = (
                        adjacent_distances(frames, DISTANCES[other]) for frames in (plain, again)
                    )
                    row = {
                        "PDV": float(pdv_variance(after) / pdv_variance(before)),
                        "PPL": float(ppl(after) / ppl(before)),
                        "largest step": float(largest_step(again) / largest_step(plain)),
                        # each round measures the changes over one step and over two
                        "rounds": len(rounds) / 2,
                    }
                    rows.setdefault((metric, name, other), []).append(row)
    for (metric, name, other), found in rows.items():
        mean = {n: math.exp(sum(math.log(r[n]) for r in found) / len(found)) for n in found[0]}
        worst = {f"worst {n}": max(r[n] for r in found) for n in ("PDV", "PPL")}
        yield {"path": metric, "re-timed by": name, "measured by": other} | mean | worst


if __name__ == "__main__":
    main()
