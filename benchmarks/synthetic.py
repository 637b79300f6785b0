"""Geodesics of manifolds known in closed form: every method against the truth.

    python benchmarks/synthetic.py [--score learned] [--problems C-shape torus ...]
        [--methods straight "both starts" ...] [--num-points 25] [--figures FOLDER]

The data are C-shape, two moons, a swiss roll, circles evenly and unevenly populated, a flat torus
and k-spheres of k = 1 to 10 in R^100. Their score is exact, or that of a small network trained here
in seconds. A table per manifold, one line per method:

    dist, worst  mean and largest distance of the path's points to the manifold
    rms, jump    error to the true geodesic at equal fractions; largest step over the even one
    len          flat length over the true one
    std, cv      population standard deviation of the steps, and over their mean (speed variation)
    dlogp        mean log-density along the path less that of the truth, at sigma 0.1, exact
    energy       of the tangent-normal metric at sigma 0.1 on a sampling six times as fine, exact,
                 over that of the truth
    evals        what the model was asked for, in evaluations of an energy (3 points per segment)

In noise space the ends are inverted to 0.6 of 50 steps and the path is sampled back. In clean space
the metric is read at sigma 0.1, from a straight line or from the roadmap.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from machine import describe
from methods import CLEAN_METHODS, METHODS, Case, Counting
from problems import SIGMA, Problem, benchmark_problems
from torch import Tensor, nn

from riemannian_diffusion import (
    DiffusionScore,
    ScoreModel,
    TangentNormalMetric,
    length,
    refine,
    speed,
)

DRAW_NOISES = (0.3, 0.5, 0.8)  # of a roadmap's samples, in units of the clean data
ALL_METHODS = CLEAN_METHODS | METHODS
SHOWN = ("slerp", "score_jacobian", "clean", "both starts, then finer")
COLUMNS = ("dist", "worst", "rms", "jump", "len", "std", "cv", "dlogp", "energy", "evals")


def timestep_of(noise: float) -> int:
    """The level of the usual schedule with so much noise in units of the clean data."""
    abar = DDIMScheduler().alphas_cumprod
    return int(((1 - abar) / abar).sqrt().sub(noise).abs().argmin())


class Denoiser(nn.Module):
    """A small network that predicts the clean point, called like a diffusers model."""

    def __init__(self, size: int, width: int = 256):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(size + 16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()),
            *(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size)),
        )

    def forward(self, x: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Noisy points `(K, n)` and their timestep -> clean points `(K, n)`, in a tuple."""
        waves = timestep.float().reshape(-1, 1) / 1000 * torch.pi * 2.0 ** torch.arange(8) / 2
        waves = torch.cat([waves.sin(), waves.cos()], 1).expand(len(x), -1)
        return (self.layers(torch.cat([x, waves], 1)),)


def train(problem: Problem, num_steps: int) -> Denoiser:
    """A denoiser of the problem's points at every level."""
    scheduler = DDIMScheduler(prediction_type="sample")
    alphas = scheduler.alphas_cumprod.sqrt()
    sigmas = (1 - scheduler.alphas_cumprod).sqrt()
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Denoiser(problem.points.shape[1])
    weights = problem.weights
    weights = torch.ones(len(problem.points)) if weights is None else weights
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        index = torch.multinomial(weights, 512, replacement=True, generator=generator)
        clean = problem.points[index].float()
        timesteps = (999 * torch.rand(512, generator=generator) ** 2).long()  # mostly weak noise
        alpha, sigma = alphas[timesteps, None], sigmas[timesteps, None]
        noisy = alpha * clean + sigma * torch.randn(clean.shape, generator=generator)
        error = (model(noisy, timesteps)[0] - clean).square().sum(1)
        loss = (error / (sigma.squeeze(1) ** 2 + 0.01)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def levels_of(
    problem: Problem, counter: list[int], num_steps: int | None
) -> Callable[[int], ScoreModel]:
    """The exact levels, or those of a network trained for `num_steps`."""
    abar = DDIMScheduler().alphas_cumprod
    if num_steps is not None:
        model, scheduler = train(problem, num_steps), DDIMScheduler(prediction_type="sample")
        return cache(lambda t: Counting(DiffusionScore(model, scheduler, t), counter))

    @cache
    def level(timestep: int) -> ScoreModel:
        alpha, sigma = float(abar[timestep].sqrt()), float((1 - abar[timestep]).sqrt())
        return Counting(problem.level(alpha, sigma), counter)

    return level


@torch.no_grad()
def measure(problem: Problem, path: Tensor) -> dict[str, float]:
    """All measures of a path `(K, n)` that need no counting."""
    truth = problem.geodesic(torch.linspace(0, 1, len(path)))
    distance, pace = problem.distance(path), speed(path)
    metric = TangentNormalMetric(problem.score)
    energies = [float(metric.energy(refine(p, 6)).sum()) for p in (path, truth)]
    densities = [float(problem.score.log_prob(p).mean()) for p in (path, truth)]
    return {
        "dist": float(distance.mean()),
        "worst": float(distance.max()),
        "rms": float((path - truth).square().sum(1).mean().sqrt()),
        "jump": float(pace.max()) / problem.length,
        "len": float(length(path)) / problem.length,
        "std": float(pace.std(correction=0)) / len(pace),
        "cv": float(pace.std(correction=0) / pace.mean()),
        "dlogp": densities[0] - densities[1],
        "energy": energies[0] / energies[1],
    }


def draw(problem: Problem, paths: dict[str, Tensor], file: Path) -> None:
    """A picture: the manifold's points with the paths, and each path's error along it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    plane, errors = figure.subplots(1, 2, width_ratios=(1.2, 1))
    cloud = (problem.points @ problem.plane)[:: max(1, len(problem.points) // 1500)]
    truth = problem.geodesic(torch.linspace(0, 1, 200)) @ problem.plane
    plane.plot(*cloud.T, ".", color="0.8", markersize=2)
    plane.plot(*truth.T, color="black", linewidth=4, alpha=0.3, label="true geodesic")
    for name, path in paths.items():
        u = torch.linspace(0, 1, len(path))
        plane.plot(*(path @ problem.plane).T, ".-", linewidth=1, markersize=4, label=name)
        error = (path - problem.geodesic(u)).norm(dim=1)
        errors.semilogy(u[1:-1], error[1:-1], ".-", linewidth=1, markersize=4)
    plane.set_aspect("equal")
    plane.set_title(problem.name)
    errors.set_title("error to the truth at equal fractions")
    errors.set_xlabel("fraction of the path")
    figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(file, dpi=80)


def main(argv: list[str] | None = None) -> dict[tuple[str, str], dict[str, float]]:
    """Print one table per manifold; returns their rows."""
    names = [problem.name for problem in benchmark_problems()]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--score", choices=("exact", "learned"), default="exact")
    parser.add_argument("--problems", nargs="+", choices=names, metavar="NAME", default=names)
    parser.add_argument(
        "--methods", nargs="+", choices=ALL_METHODS, metavar="NAME", default=list(ALL_METHODS)
    )
    parser.add_argument("--num-points", type=int, default=25)
    parser.add_argument("--train-steps", type=int, default=10000, help="of --score learned")
    parser.add_argument("--max-samples", type=int, default=2048, help="of a roadmap")
    parser.add_argument("--figures", type=Path, help="a folder for one PNG per manifold")
    args = parser.parse_args(argv)
    print(describe())
    asked, table = [0], {}
    per_evaluation = 3 * (args.num_points - 1) + 1
    for problem in benchmark_problems():
        if problem.name not in args.problems:
            continue
        num_steps = args.train_steps if args.score == "learned" else None
        levels = levels_of(problem, asked, num_steps)
        chord = float((problem.x1 - problem.x0).norm())
        print(f"\n{problem.name}, {args.score} score, geodesic {problem.length:.3f}", end="")
        print(f", chord {chord:.3f}, sigma {SIGMA}, {args.num_points} points")
        print(f"{'':28s}" + "".join(f"{name:>10s}" for name in COLUMNS))
        paths = {}
        for name in args.methods:
            asked[0] = 0
            case = Case(
                levels,
                problem.x0,
                problem.x1,
                num_frames=args.num_points,
                metric_timestep=timestep_of(SIGMA),
                draw_timesteps=tuple(timestep_of(noise) for noise in DRAW_NOISES),
                num_noises=0,
                draw_steps=12,
                max_samples=args.max_samples,
            )
            path = ALL_METHODS[name](case).detach()
            row = measure(problem, path) | {"evals": asked[0] / per_evaluation}
            table[problem.name, name] = row
            print(f"{name:28s}" + "".join(f"{row[c]:10.3g}" for c in COLUMNS), flush=True)
            if name in SHOWN:
                paths[name] = path
        if args.figures is not None:
            args.figures.mkdir(parents=True, exist_ok=True)
            file = problem.name.replace(" ", "_").replace("^", "") + ".png"
            draw(problem, paths, args.figures / file)
    return table


if __name__ == "__main__":
    main()
