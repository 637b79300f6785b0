"""Evaluations that path-preconditioned L-BFGS needs to reach what Adam reaches in 500.

    python benchmarks/solvers.py [--demo] [--adam-evals 500]

Adam runs the papers' recipe, a cosine to a tenth of the first rate, at that rate of 1e-3 and at
1e-2; the lower energy of the two is the goal. Both solvers minimise the same energy from the same
straight start. `--demo` adds a pair of images in the shipped model, at timestep 581.
"""

from __future__ import annotations

import argparse
import math

import torch
from machine import describe
from problems import all_problems

from riemannian_diffusion import (
    Adam,
    DiffusionScore,
    Iterate,
    Metric,
    PathLBFGS,
    TangentNormalMetric,
    geodesic,
)


def evals_to_reach(goal: float, iterates: list[Iterate]) -> float:
    """Evaluations spent when the energy first was at most the goal; infinite if never."""
    return min((i.num_evals for i in iterates if i.energy <= goal), default=math.inf)


def compare(name: str, metric: Metric, x0, x1, num_adam: int, num_points: int, init: str) -> None:
    """Print one row."""

    def run(solver, max_evals: int) -> list[Iterate]:
        iterates: list[Iterate] = []
        geodesic(
            metric,
            x0,
            x1,
            num_points=num_points,
            init=init,
            solver=solver,
            rtol=0.0,
            max_evals=max_evals,
            callback=iterates.append,
        )
        return iterates

    adam = [run(Adam(lr, lr / 10), num_adam) for lr in (1e-3, 1e-2)]
    best = [min(i.energy for i in iterates) for iterates in adam]
    goal = min(best)
    preconditioned = run(PathLBFGS(), 100)
    plain = run(PathLBFGS(precondition=False), 300)
    print(
        f"{name:28s} {preconditioned[0].energy:10.4f} {best[0]:10.4f} {best[1]:10.4f} "
        f"{min(i.energy for i in preconditioned):10.4f} "
        f"{evals_to_reach(goal, preconditioned):6.0f} {evals_to_reach(goal, plain):6.0f}",
        flush=True,
    )


def demo_pair() -> tuple[DiffusionScore, torch.Tensor, torch.Tensor]:
    """The shipped end points, inverted to timestep 581, and the score there."""
    from PIL import Image

    from riemannian_diffusion import demo
    from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
    images = [Image.open(path).convert("RGB") for path in demo.endpoint_paths()]
    ends = pipe(images, metric="slerp", num_frames=2, output_type="latent").latents
    hidden, _ = pipe.encode_prompt("", "cpu", 1, False)
    return DiffusionScore(pipe.unet, pipe.scheduler, 581, encoder_hidden_states=hidden), *ends


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", action="store_true", help="also the shipped model (minutes)")
    parser.add_argument("--adam-evals", type=int, default=500)
    args = parser.parse_args(argv)
    print(describe())
    print(f"{'':28s} {'start':>10s} {'Adam 1e-3':>10s} {'Adam 1e-2':>10s} {'L-BFGS':>10s}", end=" ")
    print(f"{'evals':>6s} {'plain':>6s}")
    for problem in all_problems():
        metric = TangentNormalMetric(problem.score)
        ends = problem.x0, problem.x1
        compare(problem.name, metric, *ends, args.adam_evals, 17, "lerp")
    if args.demo:
        score, x0, x1 = demo_pair()
        metric = TangentNormalMetric(score)
        compare("shipped model, 9 points", metric, x0, x1, args.adam_evals, 9, "slerp")


if __name__ == "__main__":
    main()
