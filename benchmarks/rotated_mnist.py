"""Geodesics between two angles of a real digit, compared with its true rotations.

    python benchmarks/rotated_mnist.py --data MNIST_ROOT [--score learned] [--degrees 30 60 90]
        [--starts 0 110 230] [--kinds 0 1 2] [--methods slerp roadmap ...] [--beyond 30]
        [--basis "both starts"] [--sheet FILE]

The data are ten digits at 720 angles each, which are ten closed curves in 1,024 dimensions. Their
score is exact, or learned by the small model of `benchmarks/assets`. Each method draws 25 frames
between a digit and the same digit rotated. The truth is the rotation at equal fractions. There is
one row per angle and method, with means over digits and starts. A row whose "beyond" is not 0 has
the measures of frames that continue the path of --basis by that number of degrees. The columns are:

    on        share of paths with mean angle error <= 2 degrees and mean distance <= 5 %
    distance  distance of a frame to the digit's curve, over the mean norm of the digit above black
    angle     error of a frame's nearest rotation, in degrees
    rms       root mean square error of frames to the true rotation, values in [0, 1]
    jump      largest root mean square step between neighbouring frames, values in [0, 1]
    PSNR, SSIM  similarity to the true rotation, mean over the inner frames
    FID       distance of the inner frames from all true frames, in the 32 features of a small
              classifier of digits at all angles that is trained here (not comparable to any other
              FID)
    evals     network calls, in evaluations of the energy, each of which takes 73 points
    missed    number of paths with frames that are not finite

In noise space the ends are inverted to 0.6 of 50 steps and the path is sampled back. In clean space
the path is the frames, and its metric uses shared noise at timestep 100.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import frame
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from digits import NUM_ANGLES, load_mnist, orbits, rotate
from methods import EXTENSIONS, METHODS, Case, Count, Counting, Levels
from PIL import Image
from torch import Tensor, nn

from riemannian_diffusion import DiffusionScore, GaussianMixtureScore
from riemannian_diffusion.evaluation import frechet_distance, largest_step, psnr, ssim

NUM_FRAMES = 25
POINTS_PER_EVALUATION = 3 * (NUM_FRAMES - 1) + 1
METRIC_TIMESTEP = 100  # in clean space; its noise is a third of the data's range
# Timesteps 470, 530 and 590 have noise 3, 4 and 6 for every pixel. Samples of a learned model
# scatter about the curve, so weaker noise is needed to fill the space between them.
DRAW_TIMESTEPS = {"exact": (470, 530, 590), "learned": (300, 400, 470, 530)}


def exact_levels(curves: Tensor, count: Count) -> Levels:
    """The exact score of the curves' points at the levels of diffusers' usual schedule."""
    abar = DDIMScheduler().alphas_cumprod
    points = F.pixel_unshuffle(curves.flatten(0, 1), 2)

    @cache
    def level(timestep: int) -> Counting:
        alpha = float(abar[timestep].sqrt())
        sigma = float((1 - abar[timestep]).sqrt())
        return Counting(GaussianMixtureScore(points, sigma, alpha=alpha), count)

    return level


def learned_levels(model: Path, count: Count, device: str) -> Levels:
    """The trained model's score at each timestep."""
    unet = UNet2DModel.from_pretrained(model / "unet", torch_dtype=torch.float32).to(device).eval()
    scheduler = DDIMScheduler.from_pretrained(model / "scheduler")
    return cache(lambda t: Counting(DiffusionScore(unet, scheduler, t), count))


def train_classifier(root: str | None, seed: int) -> Callable[[Tensor], Tensor]:
    """A function that gives 32 features of a small classifier of digits at all angles."""
    images, labels = (values[:9000] for values in load_mnist(root))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
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


def measures_of(frames: Tensor, curve: Tensor, start: int, degrees: int) -> tuple[dict, Tensor]:
    """All measures of one path except FID, and the true frames.

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


def sheet(rows: list[Tensor]) -> Image.Image:
    """A picture of nine frames of each row, at twice their size.

    Each row is `(K, 1, 32, 32)` in [-1, 1].
    """
    nine = [row[torch.linspace(0, len(row) - 1, 9).round().long(), 0] for row in rows]
    picture = torch.cat([torch.cat(list(row), 1) for row in nine])
    pixels = ((picture + 1) * 127.5).clamp(0, 255).byte().numpy()
    return Image.fromarray(pixels).resize((pixels.shape[1] * 2, pixels.shape[0] * 2))


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure all methods; return the rows."""
    parser = frame.parser(__doc__)
    parser.add_argument("--data", help="root folder of MNIST, as torchvision keeps it")
    parser.add_argument("--score", choices=("exact", "learned"), default="exact")
    parser.add_argument(
        "--model", type=Path, default=Path(__file__).parent / "assets/rotated_mnist"
    )
    parser.add_argument("--degrees", type=int, nargs="+", default=[30, 60, 90])
    parser.add_argument(
        "--beyond",
        type=int,
        default=30,
        help="degrees by which the paths of --basis are continued; 0 leaves this out",
    )
    parser.add_argument("--basis", choices=METHODS, default="both starts")
    parser.add_argument("--starts", type=int, nargs="+", default=[0])
    parser.add_argument("--kinds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument(
        "--max-samples", type=int, default=4096, help="largest number of samples of a roadmap"
    )
    parser.add_argument("--sheet", type=Path, help="PNG file for a picture of the first digit")
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Rows with means of every angle and method."""
    warnings.filterwarnings("ignore", message="FID of")
    device, asked = args.device, Count()
    curves, features = orbits(args.data), train_classifier(args.data, args.seed)
    if args.score == "exact":
        levels = exact_levels(curves.to(device), asked)
    else:
        levels = learned_levels(args.model, asked, device)
    pictures = []

    def row(name: str, degrees: int, draw: Callable[[Case, tuple], Tensor], beyond: int = 0):
        """One row. `draw` gives latent frames, after the last angle if `beyond` is not 0."""
        rows, drawn, true, missed = [], [], [], 0
        for kind in args.kinds:
            for start in args.starts:
                turned = curves[kind, [start * 2 % NUM_ANGLES, (start + degrees) * 2 % NUM_ANGLES]]
                case = Case(
                    levels,
                    *F.pixel_unshuffle(turned, 2).to(device),
                    num_frames=NUM_FRAMES,
                    metric_timestep=METRIC_TIMESTEP,
                    draw_timesteps=DRAW_TIMESTEPS[args.score],
                    max_samples=args.max_samples,
                    generator=torch.Generator().manual_seed(args.seed),
                )
                asked.points = 0
                frames = F.pixel_shuffle(draw(case, (kind, start)).detach(), 2).cpu()
                if not frames.isfinite().all():
                    missed += 1
                    continue
                first = start + degrees if beyond else start
                values, truth = measures_of(frames, curves[kind], first, beyond or degrees)
                rows.append(values | {"evals": asked.points / POINTS_PER_EVALUATION})
                drawn.append(frames[1:-1]), true.append(truth)
                if beyond or degrees != args.degrees[0]:
                    continue
                if not pictures:
                    pictures.append(truth)
                if len(rows) == 1:
                    pictures.append(frames)
        means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        sets = [features(torch.cat(frames)) for frames in (drawn, true)]
        means |= {"FID": float(frechet_distance(*sets)), "missed": missed}
        return {"degrees": degrees, "beyond": beyond, "method": name, "paths": len(rows)} | means

    for degrees in args.degrees:
        paths = {}
        for name in args.methods:

            def draw(case: Case, key, name=name, paths=paths) -> Tensor:
                frames = METHODS[name](case).path
                if name == args.basis:
                    paths[key] = frames
                return frames

            yield row(name, degrees, draw)
        if args.beyond and args.basis in args.methods:
            num_steps = round(args.beyond / degrees * (NUM_FRAMES - 1))
            for name in EXTENSIONS:

                def go_on(
                    case: Case, key, extend=EXTENSIONS[name], paths=paths, num=num_steps
                ) -> Tensor:
                    return extend(case, paths[key], num)

                yield row(name, degrees, go_on, args.beyond)
    if args.sheet:
        sheet(pictures).save(args.sheet)


if __name__ == "__main__":
    main()
