"""Effect and cost of re-timing, which makes the changes between neighbouring frames equal.

    python benchmarks/retiming.py [--pairs 6] [--device cpu]

The shipped model morphs held-out pairs of scenes with 17 frames. PPL is the sum of a distance
between neighbouring frames, and PDV is its variance, as in the protocol `diffmorpher17`. That
protocol uses LPIPS, whose networks are not part of this repository. The distances here are the root
mean square difference (`rmse`) and 1 minus the structural similarity (`ssim`). Each distance
re-times the morph, and both distances measure the result, so that no result is judged only by the
distance that made it. There is one row for each path, each distance that re-times and each distance
that measures:

    PDV, PPL, largest step  value after re-timing over the value before, as a geometric mean over
                            the pairs of scenes
    rounds                  rounds of re-timing, as a geometric mean
    worst PDV, worst PPL    largest ratio of all pairs of scenes
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
    """Rows for every path, distance that re-times and distance that measures."""
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path()).to(args.device)
    rows: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for images, prompts in pairs(args.pairs, args.seed):
        keys = pipe.invert(images, prompts, num_inference_steps=args.steps)
        for metric in METRICS:
            path = pipe.sample(pipe.solve(keys, metric))
            plain = pipe.render(path, output_type="pt").frames
            for name, distance in DISTANCES.items():
                rounds = []

                def counted(x, y, distance=distance, rounds=rounds):
                    rounds.append(1)
                    return distance(x, y)

                retimed = pipe.retime(path, counted)
                again = pipe.render(retimed, output_type="pt").frames
                for other in DISTANCES:
                    before, after = (
                        adjacent_distances(frames, DISTANCES[other]) for frames in (plain, again)
                    )
                    row = {
                        "PDV": float(pdv_variance(after) / pdv_variance(before)),
                        "PPL": float(ppl(after) / ppl(before)),
                        "largest step": float(largest_step(again) / largest_step(plain)),
                        # a round measures two distances: over one step and over two steps
                        "rounds": len(rounds) / 2,
                    }
                    rows.setdefault((metric, name, other), []).append(row)
    for (metric, name, other), found in rows.items():
        mean = {n: math.exp(sum(math.log(r[n]) for r in found) / len(found)) for n in found[0]}
        worst = {f"worst {n}": max(r[n] for r in found) for n in ("PDV", "PPL")}
        yield {"path": metric, "re-timed by": name, "measured by": other} | mean | worst


if __name__ == "__main__":
    main()
