"""Every method compared with true geodesics, on manifolds that are known in closed form.

    python benchmarks/synthetic.py [--score learned] [--problems C-shape torus ...]
        [--methods straight "both starts" ...] [--num-points 25] [--figures FOLDER]
    python benchmarks/synthetic.py --held-out

The data are a C-shape, two moons, a swiss roll, circles with even and uneven density, a flat torus
and k-spheres of k = 1 to 10 in R^100. Their score is exact, or that of a small network that is
trained here in seconds. `--held-out` takes six curves instead, with evenly spaced and with random
points. They are set aside for testing: no setting was chosen on them. There is one row per manifold
and method, with these columns:

    dist, worst  mean and largest distance of the path's points to the manifold
    rms          root mean square error to the true geodesic at equal fractions
    jump         largest step over the even step
    len          flat length over the true length
    std, cv      population standard deviation of the steps; that deviation over their mean
    dlogp        exact mean log-density along the path minus that of the true geodesic, at sigma 0.1
    energy       exact tangent-normal energy at sigma 0.1 over that of the true geodesic, on a
                 sampling six times finer
    evals        network calls, in evaluations of an energy (3 points per segment)

In noise space the ends are inverted to 0.6 of 50 steps and the path is sampled back. In clean space
the metric is evaluated at sigma 0.1, and a solve starts from a straight line or from the roadmap.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import frame
import torch
from diffusers import DDIMScheduler
from methods import CLEAN_METHODS, METHODS, Case, Counting
from problems import SIGMA, Problem, benchmark_problems, held_out_problems
from torch import Tensor, nn

from riemannian_diffusion import (
    DiffusionScore,
    ScoreModel,
    TangentNormalMetric,
    length,
    refine,
    speed,
)

DRAW_NOISES = (0.3, 0.5, 0.8)  # noise of a roadmap's samples, in units of the clean data
ALL_METHODS = CLEAN_METHODS | METHODS
SHOWN = ("slerp", "score_jacobian", "clean", "both starts, then finer")


def timestep_of(noise: float) -> int:
    """The timestep of the usual schedule with a given noise in units of the clean data."""
    abar = DDIMScheduler().alphas_cumprod
    return int(((1 - abar) / abar).sqrt().sub(noise).abs().argmin())


class Denoiser(nn.Module):
    """A small network that predicts clean points, with the interface of diffusers."""

    def __init__(self, size: int, width: int = 256):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(size + 16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()),
            *(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size)),
        )

    def forward(self, x: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Predict clean points `(K, n)`, in a tuple, from noisy points and their timestep."""
        waves = timestep.float().reshape(-1, 1) / 1000 * torch.pi * 2.0 ** torch.arange(8) / 2
        waves = torch.cat([waves.sin(), waves.cos()], 1).expand(len(x), -1)
        return (self.layers(torch.cat([x, waves], 1)),)


def train(problem: Problem, num_steps: int, seed: int) -> Denoiser:
    """A denoiser of the problem's points at every noise level."""
    scheduler = DDIMScheduler(prediction_type="sample")
    alphas = scheduler.alphas_cumprod.sqrt()
    sigmas = (1 - scheduler.alphas_cumprod).sqrt()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Denoiser(problem.points.shape[1])
    weights = problem.weights
    weights = torch.ones(len(problem.points)) if weights is None else weights
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        index = torch.multinomial(weights, 512, replacement=True, generator=generator)
        clean = problem.points[index].float()
        timesteps = (
            999 * torch.rand(512, generator=generator) ** 2
        ).long()  # most timesteps have weak noise
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
    problem: Problem, counter: list[int], num_steps: int | None, seed: int
) -> Callable[[int], ScoreModel]:
    """A function from timesteps to scores: exact, or of a network trained for `num_steps`."""
    abar = DDIMScheduler().alphas_cumprod
    if num_steps is not None:
        model = train(problem, num_steps, seed)
        scheduler = DDIMScheduler(prediction_type="sample")
        return cache(lambda t: Counting(DiffusionScore(model, scheduler, t), counter))

    @cache
    def level(timestep: int) -> ScoreModel:
        alpha, sigma = float(abar[timestep].sqrt()), float((1 - abar[timestep]).sqrt())
        return Counting(problem.level(alpha, sigma), counter)

    return level


@torch.no_grad()
def measures_of(problem: Problem, path: Tensor) -> dict[str, float]:
    """All measures of a path `(K, n)` except the number of evaluations."""
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
    """Draw a picture: the points of the manifold with the paths, and the error along each path."""
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


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure all methods; return the rows."""
    names = [problem.name for problem in benchmark_problems()]
    parser = frame.parser(__doc__, cpu_only=True)
    parser.add_argument("--score", choices=("exact", "learned"), default="exact")
    parser.add_argument(
        "--held-out", action="store_true", help="six curves for testing, instead of --problems"
    )
    parser.add_argument("--problems", nargs="+", choices=names, metavar="NAME", default=names)
    parser.add_argument(
        "--methods", nargs="+", choices=ALL_METHODS, metavar="NAME", default=list(ALL_METHODS)
    )
    parser.add_argument("--num-points", type=int, default=25)
    parser.add_argument("--train-steps", type=int, default=10000, help="steps of --score learned")
    parser.add_argument(
        "--max-samples", type=int, default=2048, help="largest number of samples of a roadmap"
    )
    parser.add_argument("--figures", type=Path, help="folder for one PNG per manifold")
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Measures of every manifold and method."""
    asked = [0]
    per_evaluation = 3 * (args.num_points - 1) + 1
    problems = (p for p in benchmark_problems() if p.name in args.problems)
    for problem in held_out_problems() if args.held_out else problems:
        num_steps = args.train_steps if args.score == "learned" else None
        levels = levels_of(problem, asked, num_steps, args.seed)
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
                generator=torch.Generator().manual_seed(args.seed),
            )
            path = ALL_METHODS[name](case).detach()
            row = measures_of(problem, path) | {"evals": asked[0] / per_evaluation}
            yield {"manifold": problem.name, "method": name} | row
            if name in SHOWN:
                paths[name] = path
        if args.figures is not None:
            args.figures.mkdir(parents=True, exist_ok=True)
            file = problem.name.replace(" ", "_").replace("^", "") + ".png"
            draw(problem, paths, args.figures / file)


if __name__ == "__main__":
    main()
