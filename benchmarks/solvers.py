"""Evaluations and time that solvers take to reach the energy of the papers' recipe.

    python benchmarks/solvers.py [--problems exact demo] [--device cuda] [--adam-evals 500]
        [--demo-points 9] [--demo-steps 50]

The recipe is Adam with 500 evaluations of the energy. The energy uses a forward-mode product at the
midpoint of each segment and one chord. The rate falls from its first value to a tenth, by a
cosine. The recipe runs at its published rate, 1e-3, and at 1e-2, on 17 points from the straight
path. There is one row per problem and rate, with these columns:

    energy        energy of the path that the recipe finds, by chords on a sampling six times finer
    recipe        evaluations and seconds of the recipe until it is within 1 % of that energy; it is
                  checked every 10 evaluations, and the time of checking is not counted
    L-BFGS        evaluations and seconds of path-preconditioned L-BFGS until it is below that
                  energy, with 2 chords per segment
    plain L-BFGS  evaluations and seconds of L-BFGS without the preconditioner and coarse curves
    ratios        cost of the recipe over the cost of path-preconditioned L-BFGS: evaluations and
                  time of the recipe until it is within 1 %, and its total time, because the recipe
                  has no stopping criterion

The problem "demo" is the shipped pair of images with the shipped model, at timestep 581. Its paths
start from the great circle. The others have exact scores and run on the CPU.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import frame
import torch
from architectures import ByProducts
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
    smooth,
)

RATES = (1e-3, 1e-2)
MAX_EVALS = 300


@dataclass(frozen=True)
class Look:
    """The energy on a finer sampling, after a number of evaluations and seconds."""

    energy: float
    num_evals: float
    seconds: float


NEVER = Look(math.inf, math.inf, math.inf)


class Reached(Exception):
    """Raised to end a solve, when the goal is reached."""


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
    """Solve and record the finer energy every `every` iterations, until it is at most the goal."""
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
            energy = float(finer.energy(smooth(iterate.path, 6)).sum())
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
    """The first record whose energy is at most the goal."""
    return next((look for look in seen if look.energy <= goal), NEVER)


def compare(
    name: str, score: ScoreModel, ends: tuple[Tensor, Tensor], num_adam: int, **options
) -> Iterator[dict]:
    """One row for each rate of the recipe."""
    metric = TangentNormalMetric(score)
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
                    PathLBFGS(precondition=precondition, coarse_first=precondition),
                    finer=metric,
                    goal=goal,
                    max_evals=MAX_EVALS,
                    **options,
                ),
                goal,
            )
            for precondition in (True, False)
        )
        row = {"problem": name, "rate": rate, "energy": goal}
        for label, found in {"recipe": there, "L-BFGS": ours, "plain L-BFGS": plain}.items():
            row |= {f"{label} evals": found.num_evals, f"{label} seconds": found.seconds}
        yield row | {
            "ratio of evals": there.num_evals / ours.num_evals,
            "ratio of time": there.seconds / ours.seconds,
            "ratio of total time": recipe[-1].seconds / ours.seconds,
        }


def demo_pair(device: str, steps: int) -> tuple[DiffusionScore, tuple[Tensor, Tensor]]:
    """The score at timestep 581, and the shipped images inverted to that timestep."""
    from PIL import Image

    from riemannian_diffusion import demo
    from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path()).to(device)
    images = [Image.open(path).convert("RGB") for path in demo.endpoint_paths()]
    ends = pipe.invert(images, num_inference_steps=steps).points
    hidden, _ = pipe.encode_prompt("", device, 1, False)
    score = DiffusionScore(pipe.unet, pipe.scheduler, 581, encoder_hidden_states=hidden)
    return score, (ends[0], ends[1])


def main(argv: list[str] | None = None) -> list[dict]:
    """Compare the solvers; return the rows."""
    parser = frame.parser(__doc__)
    add = parser.add_argument
    add("--problems", nargs="+", choices=("exact", "demo"), default=["exact"])
    add("--adam-evals", type=int, default=500)
    add("--demo-points", type=int, default=9, help="points of a path of the shipped model")
    add("--demo-steps", type=int, default=50, help="steps of its scheduler")
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Rows of the problems with exact scores, then rows of the shipped model."""
    for problem in all_problems() if "exact" in args.problems else ():
        ends = problem.x0, problem.x1
        yield from compare(problem.name, problem.score, ends, args.adam_evals, init="lerp")
    if "demo" in args.problems:
        score, ends = demo_pair(args.device, args.demo_steps)
        options = {"num_points": args.demo_points, "init": "slerp"}
        yield from compare("shipped model", score, ends, args.adam_evals, **options)


if __name__ == "__main__":
    main()
