"""What it takes to reach the energy that the papers' recipe reaches.

    python benchmarks/solvers.py [--demo] [--device cuda] [--adam-evals 500]

The recipe: Adam over 500 evaluations with a cosine to a tenth of its first rate, on the energy of
the points alone, by a forward-mode product at the midpoint of every segment. It runs at its
published rate, 1e-3, and at 1e-2, on 17 points from the straight path. What counts is the energy
of the path found on a sampling six times as fine, by chords: a line per run gives it, the
evaluations and seconds the recipe took to come within 1 % of it (looked at every 10 evaluations),
and what path-preconditioned L-BFGS and plain L-BFGS, both with 3 sub-chords per segment, take to
get below it; then the recipe's cost over the former's: to come within 1 %, and in total, as it has
no criterion to stop. The time of looking is not counted.
`--demo` adds a pair of images in the shipped model, 9 points from their great circle at timestep
581.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass

import torch
from architectures import ByProducts
from machine import describe
from problems import all_problems
from torch import Tensor

from riemannian_diffusion import (
    Adam,
    DiffusionScore,
    Iterate,
    Metric,
    PathLBFGS,
    ScoreModel,
    Solver,
    TangentNormalMetric,
    geodesic,
    refine,
)

RATES = (1e-3, 1e-2)
MAX_EVALS = 300


@dataclass(frozen=True)
class Look:
    """The finer energy after so many evaluations and seconds."""

    energy: float
    num_evals: float
    seconds: float


NEVER = Look(math.inf, math.inf, math.inf)


class Reached(Exception):
    """The goal is reached; ends a solve."""


def looks(
    metric: Metric,
    ends: tuple[Tensor, Tensor],
    solver: Solver,
    *,
    finer: TangentNormalMetric,
    goal: float = -math.inf,
    every: int = 1,
    **options,
) -> list[Look]:
    """Solve, looking at the finer energy after every so many iterations, until it is the goal's."""
    seen: list[Look] = []
    looking, start, calls = 0.0, time.perf_counter(), 0

    def look(iterate: Iterate) -> None:
        nonlocal looking, calls
        calls += 1
        if (calls - 1) % every and iterate.num_evals < options["max_evals"]:
            return
        if iterate.path.is_cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        with torch.no_grad():
            energy = float(finer.energy(refine(iterate.path, 6)).sum())
        seen.append(Look(energy, iterate.num_evals, now - start - looking))
        looking += time.perf_counter() - now
        if energy <= goal:
            raise Reached

    try:
        geodesic(metric, *ends, solver=solver, rtol=0.0, callback=look, **options)
    except Reached:
        pass
    return seen


def first_below(seen: list[Look], goal: float) -> Look:
    """The first look at the goal's energy or less."""
    return next((look for look in seen if look.energy <= goal), NEVER)


def compare(
    name: str, score: ScoreModel, ends: tuple[Tensor, Tensor], num_adam: int, **options
) -> list[tuple[float, float, float]]:
    """Print two rows; returns the ratios of evaluations, of time, and of time in total."""
    metric = TangentNormalMetric(score)
    ratios = []
    for rate in RATES:
        recipe = looks(
            ByProducts(score),
            ends,
            Adam(rate, rate / 10),
            finer=metric,
            every=10,
            max_evals=num_adam,
            num_quadrature=1,
            **options,
        )
        goal = recipe[-1].energy
        there = first_below(recipe, 1.01 * goal)
        ours, plain = (
            first_below(
                looks(
                    metric,
                    ends,
                    PathLBFGS(precondition=precondition),
                    finer=metric,
                    goal=goal,
                    max_evals=MAX_EVALS,
                    **options,
                ),
                goal,
            )
            for precondition in (True, False)
        )
        spent = there.num_evals, there.seconds, recipe[-1].seconds
        least = ours.num_evals, ours.seconds, ours.seconds
        ratios.append(tuple(a / b for a, b in zip(spent, least, strict=True)))
        print(
            f"{name:24s}{rate:8.0e}{goal:12.4f}"
            f"{there.num_evals:7.0f}{there.seconds:9.2f}"
            f"{ours.num_evals:7.0f}{ours.seconds:9.3f}"
            f"{plain.num_evals:7.0f}{plain.seconds:9.3f}"
            + "".join(f"{ratio:9.1f}" for ratio in ratios[-1]),
            flush=True,
        )
    return ratios


def demo_pair(device: str) -> tuple[DiffusionScore, tuple[Tensor, Tensor]]:
    """The score at timestep 581, and the shipped end points inverted to it."""
    from PIL import Image

    from riemannian_diffusion import demo
    from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path()).to(device)
    pipe.set_progress_bar_config(disable=True)
    images = [Image.open(path).convert("RGB") for path in demo.endpoint_paths()]
    ends = pipe(images, metric="slerp", num_frames=2, output_type="latent").latents
    hidden, _ = pipe.encode_prompt("", device, 1, False)
    score = DiffusionScore(pipe.unet, pipe.scheduler, 581, encoder_hidden_states=hidden)
    return score, (ends[0], ends[1])


def main(argv: list[str] | None = None) -> list[tuple[float, float, float]]:
    """Print the table; returns the ratios of all rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", action="store_true", help="also the shipped model (minutes)")
    parser.add_argument("--device", default="cpu", help="of the shipped model")
    parser.add_argument("--adam-evals", type=int, default=500)
    args = parser.parse_args(argv)
    print(describe(args.device if args.demo else "cpu"))
    print(f"{'':24s}{'':8s}{'':12s}{'recipe':>16s}{'L-BFGS':>16s}{'plain L-BFGS':>16s}", end="")
    print(f"{'recipe / L-BFGS':>27s}")
    print(f"{'':24s}{'rate':>8s}{'energy':>12s}" + f"{'evals':>7s}{'s':>9s}" * 3, end="")
    print(f"{'evals':>9s}{'time':>9s}{'in total':>9s}")
    ratios = []
    for problem in all_problems():
        ends = problem.x0, problem.x1
        ratios += compare(problem.name, problem.score, ends, args.adam_evals, init="lerp")
    if args.demo:
        score, ends = demo_pair(args.device)
        ratios += compare("shipped model", score, ends, args.adam_evals, num_points=9)
    return ratios


if __name__ == "__main__":
    main()
