"""Passes and round-trip errors of inversion, by the rule that ends the iterations of a step.

    python benchmarks/inversion.py [--scenes 12] [--mixtures 12]

The problems are the pair of scenes that comes with the shipped model and held-out scenes, pictures
that the shipped model does not know, and points of narrow mixtures of Gaussians in R^3: draws of
the mixture, and points anywhere. Each is inverted by three rules and sampled back:

    none       no iterations: the noise is read where the step starts
    five       five plain iterations in each step, the rule of version 0.1 (written out here)
    default    what `invert` does

"passes" counts evaluations of single points, divided by the number of points. Errors are those of
the round trip, relative to the norm of the clean point. "worse" counts points that come back worse
than without iterations, and "silent" those with an error above 5% of which `invert` did not warn.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import frame
import numpy as np
import torch
from demo_model import held_out
from diffusers import DDIMScheduler
from PIL import Image, ImageDraw
from torch import Tensor

from riemannian_diffusion import (
    GaussianMixtureScore,
    ScoreModel,
    Where,
    ddim_step,
    demo,
    invert,
    sample,
)
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

SETTINGS = ((50, 0.6), (25, 0.6), (10, 0.6), (50, 1.0), (5, 1.0))  # steps and strength
STEPS_IN_MIXTURES = (50, 25, 10, 5)
FAILED = 0.05


class Counted(ScoreModel):
    """A score that counts the points that it evaluates."""

    def __init__(self, score: ScoreModel, counts: list[int]):
        self.alpha, self.sigma = score.alpha, score.sigma
        self.score, self.counts = score, counts

    def __call__(self, x: Tensor, where: Where | None = None) -> Tensor:
        """The score at each point, `(K, *shape)`."""
        self.counts.append(len(x))
        return self.score(x, where)


def five(levels: Callable[[float], ScoreModel], x: Tensor, timesteps: Any, final: float) -> Tensor:
    """Inversion with five plain iterations in each step."""
    abar = final
    for timestep in sorted(timesteps):
        level, guess = levels(timestep), x
        for _ in range(6):
            guess = ddim_step(x, -level.sigma * level(guess), abar, level.alpha**2)
        x, abar = guess, level.alpha**2
    return x


@dataclass(frozen=True)
class Problem:
    """Clean points and a model at the levels of a schedule."""

    name: str
    steps: int
    strength: float
    x: Tensor
    levels: Callable[[float], ScoreModel]
    timesteps: list
    final: float


@torch.no_grad()
def measure(args: argparse.Namespace) -> Iterator[dict]:
    """A row for each problem and rule; the points of several mixtures are one problem."""
    groups: dict[tuple, list[Problem]] = {}
    for problem in [*of_the_shipped_model(args), *of_mixtures(args)]:
        groups.setdefault((problem.name, problem.steps, problem.strength), []).append(problem)
    for (name, steps, strength), problems in groups.items():
        plain = torch.cat([errors_of(problem, "none")[0] for problem in problems])
        for rule in ("none", "five", "default"):
            found = [errors_of(problem, rule) for problem in problems]
            errors = torch.cat([one[0] for one in found])
            silent = sum(one[0].gt(FAILED).sum().item() for one in found if not one[2])
            yield {
                "problem": name,
                "steps": steps,
                "strength": strength,
                "rule": rule,
                "points": len(errors),
                "passes": sum(one[1] for one in found) / len(errors),
                "median": float(errors.median()),
                "greatest": float(errors.max()),
                "worse": int((errors > plain * 1.001).sum()),
                "silent": silent if rule == "default" else None,
            }


def errors_of(problem: Problem, rule: str) -> tuple[Tensor, int, bool]:
    """Errors of the round trip, the number of points evaluated, and whether there was a warning."""
    counts: list[int] = []
    options = {"final_abar": problem.final}
    given = (lambda t: Counted(problem.levels(t), counts)), problem.x, problem.timesteps
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if rule == "five":
            noise = five(*given, problem.final)
        else:
            noise = invert(*given, **options, fixed_point_iterations=0 if rule == "none" else None)
    back = sample(problem.levels, noise, problem.timesteps, **options)
    missed = (back - problem.x).flatten(1).norm(dim=1) / problem.x.flatten(1).norm(dim=1)
    return missed, sum(counts), bool(caught)


def of_the_shipped_model(args: argparse.Namespace) -> Iterator[Problem]:
    """Its pair of scenes, held-out scenes, and pictures that it does not know."""
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path()).to(args.device)
    conditions = pipe.condition("")
    pair = pipe.pixels([Image.open(path) for path in demo.endpoint_paths()])
    sets = {"pair": pair, "scenes": held_out(args.scenes, args.seed), "unknown": unknown(args.seed)}
    for name, pixels in sets.items():
        if len(pixels) == 0:
            continue
        x = pipe.encode(pixels)
        for steps, strength in SETTINGS:
            schedule = pipe._read_schedule(steps, strength, (64, 64))
            levels = pipe._levels(
                conditions,
                schedule,
                guidance_scale=1.0,
                true_cfg_scale=1.0,
                guidance_damping=0.0,
                max_batch_size=16,
            )
            yield Problem(
                *(name, steps, strength, x, levels, schedule.timesteps, schedule.final_abar)
            )


def unknown(seed: int) -> Tensor:
    """Pictures `(5, 3, 64, 64)` that are no scenes: text, noise, gradients, stripes and clouds."""
    generator = torch.Generator().manual_seed(seed)
    page = Image.new("L", (64, 64), 255)
    ImageDraw.Draw(page).text((2, 2), "THE QUICK\nBROWN FOX\nJUMPS OVER\nTHE DOG", fill=0)
    text = torch.from_numpy(np.array(page)).expand(3, -1, -1) / 255
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    clouds = torch.nn.functional.interpolate(
        torch.rand(1, 3, 6, 6, generator=generator), size=64, mode="bicubic"
    )
    return torch.stack(
        [
            text,
            torch.rand(3, 64, 64, generator=generator),
            torch.stack([x, y, 1 - x]),
            ((20 * x).floor() % 2).expand(3, -1, -1),
            clouds[0].clamp(0, 1),
        ]
    )


def of_mixtures(args: argparse.Namespace) -> Iterator[Problem]:
    """Mixtures of six Gaussians in R^3, at the levels of Stable Diffusion, in float64."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    for steps in STEPS_IN_MIXTURES:
        for i in range(args.mixtures):
            for std in (0.05, 0.1, 0.3):
                generator = torch.Generator().manual_seed(args.seed + i)
                means, noise, anywhere = (
                    torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(3)
                )

                def level(timestep: int, means: Tensor = means, std: float = std) -> ScoreModel:
                    abar = float(scheduler.alphas_cumprod[timestep])
                    alpha, sigma = abar**0.5, (1 - abar) ** 0.5
                    return GaussianMixtureScore(means, sigma, std=std, alpha=alpha)

                timesteps = list(range(1, 1000, 1000 // steps))
                for name, x in (("draws", means + std * noise), ("anywhere", anywhere)):
                    yield Problem(f"mixture, {name}", steps, 1.0, x, level, timesteps, 1.0)


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure; return the rows."""
    parser = frame.parser(__doc__)
    parser.add_argument("--scenes", type=int, default=12, help="held-out scenes (default: 12)")
    parser.add_argument("--mixtures", type=int, default=12, help="mixtures (default: 12)")
    return frame.run(measure, parser, argv)


if __name__ == "__main__":
    main()
