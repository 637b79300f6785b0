"""Turning a digit: geodesics between two angles of a real digit, against its true rotations.

    python benchmarks/rotated_mnist.py --data MNIST_ROOT [--score learned] [--degrees 30 60 90]
        [--starts 0 110 230] [--kinds 0 1 2] [--methods slerp roadmap ...] [--sheet FILE]

The data are ten digits at 720 angles each, ten closed curves in 1,024 dimensions. Their score is
exact, or learned by the small model of `benchmarks/assets`. Each method draws 25 frames between a
digit and the same digit turned; the truth is the rotation at equal fractions. A table per angle
gives means over digits and starts:

    on        share of paths with mean angle error <= 2 degrees and mean distance <= 5 %
    distance  of a frame to the digit's curve, over the mean norm of the digit above black
    angle     of a frame's nearest rotation against the true one, in degrees
    rms       of frames against the true rotation, values in [0, 1]
    jump      largest root mean square step between neighbouring frames, values in [0, 1]
    PSNR, SSIM against the true rotation, mean over the inner frames
    FID       of inner frames against all true ones, in the 32 features of a small classifier of
              digits at every angle that is trained here (no other FID is comparable)
    evals     what the network was asked for, in evaluations of the energy: 73 points
    missed    paths that a method gave no finite frames for

In noise space the ends are inverted to 0.6 of 50 steps and the path is sampled back; in clean space
the path is the frames, its metric read under shared noise at timestep 100.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from digits import NUM_ANGLES, load_mnist, orbits, rotate
from machine import describe
from PIL import Image
from torch import Tensor, nn

from riemannian_diffusion import (
    DiffusionScore,
    GaussianMixtureScore,
    Roadmap,
    ScoreJacobianMetric,
    ScoreModel,
    SharedNoiseScore,
    SteinScoreMetric,
    TangentNormalMetric,
    geodesic,
    invert,
    lerp,
    roadmap,
    sample,
    sdedit,
    slerp,
)
from riemannian_diffusion.baselines import density_geodesic, nao, noise_diffusion
from riemannian_diffusion.evaluation import frechet_distance, largest_step, psnr, ssim

NUM_FRAMES = 25
POINTS_PER_EVALUATION = 3 * (NUM_FRAMES - 1) + 1
STRENGTH, NUM_STEPS = 0.6, 50
METRIC_TIMESTEP = 100  # of clean space: noise of a third of the data's range
STEIN_TIMESTEP = 290  # here abar is 0.42, as at Stable Diffusion's t = 400
NUM_NOISES = 4
DRAW_TIMESTEPS = {  # 470, 530 and 590 are noise of 3, 4 and 6 for every pixel; a learned model's
    "exact": (470, 530, 590),  # samples scatter about the curve, and weak noise fills their gaps
    "learned": (300, 400, 470, 530),
}
DRAW_STEPS = 6


class Counting(ScoreModel):
    """A score model that counts the points it is asked for."""

    def __init__(self, score: ScoreModel, counter: list[int]):
        self.score, self.counter = score, counter
        self.alpha, self.sigma = score.alpha, score.sigma

    def __call__(self, x: Tensor) -> Tensor:
        """The score, `(K, *shape) -> (K, *shape)`."""
        self.counter[0] += len(x)
        return self.score(x)


@dataclass
class Case:
    """Two angles of a digit as the model sees it, `(4, 16, 16)`, and the model's levels."""

    levels: Callable[[int], ScoreModel]
    timesteps: list[int]
    x0: Tensor
    x1: Tensor
    asked: list[int]
    draw_timesteps: tuple[int, ...]
    max_samples: int
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def noises(self, num: int) -> Tensor:
        """Shared noises `(num, 4, 16, 16)`."""
        return torch.randn(num, *self.x0.shape, generator=self.generator)

    def inverted(self) -> Tensor:
        """Both ends in noise space, `(2, 4, 16, 16)`."""
        ends = torch.stack([self.x0, self.x1])
        return invert(self.levels, ends, self.timesteps, fixed_point_iterations=5)

    def back(self, path: Tensor) -> Tensor:
        """A path of noise space as frames."""
        return sample(self.levels, path, self.timesteps)


def in_noise_space(make_path: Callable[[Case, Tensor, Tensor], Tensor]) -> Callable[[Case], Tensor]:
    """A method that draws its path between inverted ends."""
    return lambda case: case.back(make_path(case, *case.inverted()))


def curve(function) -> Callable[[Case], Tensor]:
    """A curve between inverted ends that needs no model."""
    return in_noise_space(lambda case, x0, x1: function(x0, x1, NUM_FRAMES))


def density(case: Case, x0: Tensor, x1: Tensor) -> Tensor:
    """A probability-density geodesic; without prompts its direction is half the noise removed."""
    timestep = max(case.timesteps)
    options = {"generator": case.generator}
    return density_geodesic(case.levels, timestep, x0, x1, NUM_FRAMES, **options)


def noisy_blend(case: Case, x0: Tensor, x1: Tensor) -> Tensor:
    """NoiseDiffusion's."""
    alpha = case.levels(max(case.timesteps)).alpha
    return noise_diffusion(x0, x1, NUM_FRAMES, clean0=case.x0, clean1=case.x1, alpha=alpha)


def solved(metric) -> Callable[[Case], Tensor]:
    """A metric's geodesic in noise space from slerp, as in arXiv 2510.05509."""

    def path(case: Case, x0: Tensor, x1: Tensor) -> Tensor:
        score = case.levels(max(case.timesteps))
        return geodesic(metric(score), x0, x1, num_points=NUM_FRAMES).path

    return in_noise_space(path)


def solve_clean(case: Case, init, timestep: int = METRIC_TIMESTEP) -> Tensor:
    """A tangent-normal geodesic in clean space."""
    score = SharedNoiseScore(case.levels(timestep), case.noises(NUM_NOISES))
    metric = TangentNormalMetric(score)
    return geodesic(metric, case.x0, case.x1, num_points=NUM_FRAMES, init=init).path


def stein(case: Case) -> Tensor:
    """As in arXiv 2505.11128: one shared noise, a geodesic from slerp, and a denoising pass."""
    level, noise = case.levels(STEIN_TIMESTEP), case.noises(1)[0]
    metric = SteinScoreMetric(SharedNoiseScore(level, noise))
    path = geodesic(metric, case.x0, case.x1, num_points=NUM_FRAMES).path
    timesteps = [t for t in case.timesteps if t <= STEIN_TIMESTEP]
    frames = sample(case.levels, level.alpha * path + level.sigma * noise, timesteps)
    return torch.cat([path[:1], frames[1:-1], path[-1:]])


def way(case: Case) -> Roadmap:
    """The roadmap between the ends of a case."""
    draws = [
        partial(
            sdedit,
            case.levels,
            timesteps=[round(top * i / DRAW_STEPS) for i in range(1, DRAW_STEPS + 1)],
            generator=case.generator,
        )
        for top in case.draw_timesteps
    ]
    with torch.no_grad():
        return roadmap(
            draws, case.x0, case.x1, max_samples=case.max_samples, generator=case.generator
        )


def continuation(case: Case) -> Tensor:
    """From a straight line, the tangent-normal metric at ever weaker noise."""
    noises = case.noises(NUM_NOISES)
    tops = [round(t) for t in torch.linspace(600, METRIC_TIMESTEP, 11).tolist()]
    metrics = [TangentNormalMetric(SharedNoiseScore(case.levels(t), noises)) for t in tops]
    found = geodesic(metrics, case.x0, case.x1, num_points=NUM_FRAMES, init="lerp")
    return found.path


METHODS: dict[str, Callable[[Case], Tensor]] = {
    "lerp": curve(lerp),
    "slerp": curve(slerp),
    "nao": curve(nao),
    "noise_diffusion": in_noise_space(noisy_blend),
    "density": in_noise_space(density),
    "stein": stein,
    "score_jacobian": solved(ScoreJacobianMetric),
    "tangent_normal": solved(TangentNormalMetric),
    "clean": lambda case: solve_clean(case, "lerp"),
    "continuation": continuation,
    "roadmap": lambda case: way(case)(case.x0, case.x1, NUM_FRAMES),
    "roadmap+geodesic": lambda case: solve_clean(case, way(case)),
}


def exact_levels(curves: Tensor, counter: list[int]) -> Callable[[int], ScoreModel]:
    """The exact score of the curves' points at the levels of diffusers' usual schedule."""
    abar = DDIMScheduler().alphas_cumprod
    points = F.pixel_unshuffle(curves.flatten(0, 1), 2)

    @cache
    def level(timestep: int) -> ScoreModel:
        alpha = float(abar[timestep].sqrt())
        sigma = float((1 - abar[timestep]).sqrt())
        return Counting(GaussianMixtureScore(points, sigma, alpha=alpha), counter)

    return level


def learned_levels(model: Path, counter: list[int], device: str) -> Callable[[int], ScoreModel]:
    """The trained model's score at each timestep."""
    unet = UNet2DModel.from_pretrained(model / "unet", torch_dtype=torch.float32).to(device).eval()
    scheduler = DDIMScheduler.from_pretrained(model / "scheduler")
    return cache(lambda t: Counting(DiffusionScore(unet, scheduler, t), counter))


def train_classifier(root: str | None) -> Callable[[Tensor], Tensor]:
    """32 features of a small network that tells digits at any angle apart; seconds to train."""
    images, labels = (values[:9000] for values in load_mnist(root))
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 32), nn.ReLU()),
        )
        head = nn.Linear(32, 10)
    optimizer = torch.optim.Adam([*features.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(1500):
        index = torch.randint(len(images), (64,), generator=generator)
        turned = rotate(images[index], 2 * math.pi * torch.rand(64, generator=generator))
        loss = F.cross_entropy(head(features(turned)), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return features.eval().requires_grad_(False)


def measure(frames: Tensor, curve: Tensor, start: int, degrees: int) -> tuple[dict, Tensor]:
    """All measures of one path but FID, and the true frames.

    Args:
        frames: `(K, 1, 32, 32)` in [-1, 1].
        curve: The digit at all angles, `(720, 1, 32, 32)`.
        start: Angle of the first frame in degrees.
        degrees: Angle from the first frame to the last.
    """
    step = 360 / NUM_ANGLES
    angles = start + torch.linspace(0, degrees, len(frames))
    truth = curve[(angles / step).round().long() % NUM_ANGLES]
    distances, nearest = torch.cdist(frames.flatten(1), curve.flatten(1)).min(1)
    error = ((nearest * step - angles + 180) % 360 - 180).abs()
    norm = (curve + 1).flatten(1).norm(dim=1).mean()
    seen, true = (((x + 1) / 2).clamp(0, 1) for x in (frames, truth))
    values = {
        "distance": float(distances.mean() / norm),
        "angle": float(error.mean()),
        "rms": float((seen - true).square().mean().sqrt()),
        "jump": float(largest_step(seen)),
        "PSNR": float(psnr(seen[1:-1], true[1:-1]).clamp(max=60).mean()),
        "SSIM": float(ssim(seen[1:-1], true[1:-1]).mean()),
    }
    values["on"] = float(values["angle"] <= 2 and values["distance"] <= 0.05)
    return values, truth


COLUMNS = ("on", "distance", "angle", "rms", "jump", "PSNR", "SSIM", "FID", "evals", "missed")


def sheet(rows: list[Tensor]) -> Image.Image:
    """Nine frames of each row, `(K, 1, 32, 32)` in [-1, 1], twice as large."""
    nine = [row[torch.linspace(0, len(row) - 1, 9).round().long(), 0] for row in rows]
    picture = torch.cat([torch.cat(list(row), 1) for row in nine])
    pixels = ((picture + 1) * 127.5).clamp(0, 255).byte().numpy()
    return Image.fromarray(pixels).resize((pixels.shape[1] * 2, pixels.shape[0] * 2))


def main(argv: list[str] | None = None) -> dict[tuple[int, str], dict[str, float]]:
    """Print the tables; returns their rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="MNIST as torchvision keeps it")
    parser.add_argument("--score", choices=("exact", "learned"), default="exact")
    parser.add_argument(
        "--model", type=Path, default=Path(__file__).parent / "assets/rotated_mnist"
    )
    parser.add_argument("--degrees", type=int, nargs="+", default=[30, 60, 90])
    parser.add_argument("--starts", type=int, nargs="+", default=[0])
    parser.add_argument("--kinds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--max-samples", type=int, default=4096, help="of a roadmap")
    parser.add_argument("--sheet", type=Path, help="a PNG of the first kind, the truth above")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", message="FID of")
    print(describe(args.device))
    device, asked = args.device, [0]
    curves, features = orbits(args.data), train_classifier(args.data)
    if args.score == "exact":
        levels = exact_levels(curves.to(device), asked)
    else:
        levels = learned_levels(args.model, asked, device)
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(NUM_STEPS)
    timesteps = scheduler.timesteps[-int(STRENGTH * NUM_STEPS) :].tolist()
    table, pictures = {}, []
    for degrees in args.degrees:
        print(f"\n{args.score} score, {degrees} degrees, starts {args.starts}, kinds {args.kinds}")
        print(f"{'':18s}" + "".join(f"{name:>9s}" for name in COLUMNS))
        for name in args.methods:
            rows, drawn, true, missed = [], [], [], 0
            for kind in args.kinds:
                for start in args.starts:
                    turned = curves[
                        kind, [start * 2 % NUM_ANGLES, (start + degrees) * 2 % NUM_ANGLES]
                    ]
                    ends = F.pixel_unshuffle(turned, 2).to(device)
                    asked[0] = 0
                    draws = DRAW_TIMESTEPS[args.score], args.max_samples
                    case = Case(levels, timesteps, ends[0], ends[1], asked, *draws)
                    frames = F.pixel_shuffle(METHODS[name](case).detach(), 2).cpu()
                    if not frames.isfinite().all():
                        missed += 1
                        continue
                    values, truth = measure(frames, curves[kind], start, degrees)
                    rows.append(values | {"evals": asked[0] / POINTS_PER_EVALUATION})
                    drawn.append(frames[1:-1]), true.append(truth)
                    if not pictures:
                        pictures.append(truth)
                    if len(rows) == 1 and degrees == args.degrees[0]:
                        pictures.append(frames)
            means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
            sets = [features(torch.cat(frames)) for frames in (drawn, true)]
            means |= {"FID": float(frechet_distance(*sets)), "missed": missed}
            table[degrees, name] = means
            print(f"{name:18s}" + "".join(f"{means[c]:9.3f}" for c in COLUMNS), flush=True)
    if args.sheet:
        sheet(pictures).save(args.sheet)
    return table


if __name__ == "__main__":
    main()
