"""Frames evenly spaced in perceived change: what re-timing does to a morph, and what it costs.

    python benchmarks/retiming.py [--pairs 6] [--device cpu]

Held-out pairs of scenes in the shipped model, 17 frames. PPL is the sum of a distance between
neighbouring frames, PDV its variance, as the protocol `diffmorpher17` takes them of LPIPS, whose
networks are not part of this repository. So distances are `rmse`, and `ssim`, 1 minus the
structural similarity: each serves to re-time, and both measure what comes of it, so that no row is
judged only by what it was made with. Ratios are those of each pair, averaged geometrically.
"""

from __future__ import annotations

import argparse
import math

import torch
from diffusers.utils import logging as diffusers_logging
from machine import describe
from torch import Tensor
from transformers.utils import logging as transformers_logging

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


def pairs(num: int) -> list[tuple[list[Tensor], list[str]]]:
    """Images and captions of pairs of scenes of one kind."""
    factors = demo.random_factors(2 * num, torch.Generator().manual_seed(HELD_OUT_SEED))
    kinds = [demo.KINDS[i % len(demo.KINDS)] for i in range(num)]
    hue = demo.FACTORS.index("hue")
    return [
        (
            list(demo.render(kind, two)),
            [demo.caption(kind, float(one[hue])) for one in two],
        )
        for kind, two in zip(kinds, factors.view(num, 2, -1), strict=True)
    ]


def main(argv: list[str] | None = None) -> dict[tuple[str, str, str], dict[str, float]]:
    """Print the table; returned by metric, what it was re-timed by, and what measures it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
    print(describe(args.device))
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path()).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    rows: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for images, prompts in pairs(args.pairs):
        for metric in METRICS:
            options = {"metric": metric, "output_type": "pt", "num_inference_steps": args.steps}
            plain = pipe(images, prompts, **options).frames
            for name, distance in DISTANCES.items():
                rounds = []

                def counted(x, y, distance=distance, rounds=rounds):
                    rounds.append(1)
                    return distance(x, y)

                again = pipe(images, prompts, retime=counted, **options).frames
                for measure in DISTANCES:
                    before, after = (
                        adjacent_distances(frames, DISTANCES[measure]) for frames in (plain, again)
                    )
                    row = {
                        "pdv": float(pdv_variance(after) / pdv_variance(before)),
                        "ppl": float(ppl(after) / ppl(before)),
                        "step": float(largest_step(again) / largest_step(plain)),
                        "rounds": len(rounds)
                        / 2,  # a round asks for changes over one step and over two
                    }
                    rows.setdefault((metric, name, measure), []).append(row)
    print(f"{args.pairs} pairs, 17 frames, {args.steps} steps; after re-timing over before")
    print(
        "| path | re-timed by | measured by | PDV | worst | PPL | worst | largest step | rounds |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    table = {}
    for key, found in rows.items():
        mean = {n: math.exp(sum(math.log(r[n]) for r in found) / len(found)) for n in found[0]}
        worst = {f"worst {n}": max(r[n] for r in found) for n in ("pdv", "ppl")}
        table[key] = mean | worst
        print(
            f"| {' | '.join(key)} | {mean['pdv']:.3f} | {worst['worst pdv']:.3f} | "
            f"{mean['ppl']:.3f} | {worst['worst ppl']:.3f} | {mean['step']:.2f} | "
            f"{mean['rounds']:.1f} |",
            flush=True,
        )
    return table


if __name__ == "__main__":
    main()
