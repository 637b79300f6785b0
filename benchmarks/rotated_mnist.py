"""Geodesics between two angles of a real digit, compared with its true rotations.

    python benchmarks/rotated_mnist.py --data MNIST_ROOT [--score learned] [--degrees 30 60 90]
        [--starts 0 110 230] [--kinds 0 1 2] [--methods slerp roadmap ...] [--beyond 30]
        [--basis "both starts"] [--sheet FILE]
    python benchmarks/rotated_mnist.py --data MNIST_ROOT --digits unseen [--num 50] [--jobs 2]
        [--work FOLDER]

The data are digits at 720 angles each, which are closed curves in 1,024 dimensions: ten digits, the
first of each kind, or digits from index 9,000 on, which no model has seen. The score is exact or
learned. The exact score knows these curves only. The learned score is that of a small model in
`benchmarks/assets`, which was trained on the same ten digits or, for unseen digits, on the first
9,000. Each method draws 25 frames between a digit and the same digit rotated. The truth is the
rotation at equal fractions. There is one row per angle and method, with means over digits and
starts. A row whose "beyond" is not 0 has the measures of frames that continue the path of --basis
by that number of degrees. The columns are:

    on        share of paths with mean angle error <= 2 degrees and mean distance <= 5 %
    distance  distance of a frame to the digit's curve, over the mean norm of the digit above black
    angle     error of a frame's nearest rotation, in degrees
    last      this error at the last frame
    rms       root mean square error of frames to the true rotation, values in [0, 1]
    jump      largest root mean square step between neighbouring frames, values in [0, 1]
    PSNR, SSIM  similarity to the true rotation, mean over the inner frames
    FID       distance of the inner frames from all true frames, in the 32 features of a small
              classifier of digits at all angles that is trained here (not comparable to any other
              FID)
    evals     network calls, in evaluations of the energy, each of which takes 73 points
    energy    energy of the frames over that of the true rotation, for the tangent-normal metric in
              clean space; if it is below 1, the rotation is not the shortest path of the model
    missed    number of paths with frames that are not finite

`--work` keeps finished paths. A run that was stopped goes on with the same command and commit.

In noise space the ends are inverted to 0.6 of 50 steps and the path is sampled back. In clean space
the path is the frames, and its metric uses shared noise at timestep 100.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import multiprocessing
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import frame
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from digits import NUM_ANGLES, NUM_SEEN, load_mnist, orbits, rotate
from methods import EXTENSIONS, METHODS, Case, Count, Counting, Extension, Levels
from PIL import Image
from torch import Tensor, nn

from riemannian_diffusion import (
    DiffusionScore,
    GaussianMixtureScore,
    ScoreModel,
    TangentNormalMetric,
)
from riemannian_diffusion.evaluation import frechet_distance, largest_step, psnr, ssim
from riemannian_diffusion.files import write_atomically

ASSETS = Path(__file__).parent / "assets"
MODELS = {"first": ASSETS / "rotated_mnist", "unseen": ASSETS / "digits"}
Task = tuple[int, Tensor]  # of `Solver`
NUM_FRAMES = 25
# Options that determine the paths of a task.
DETERMINING = ("digits", "score", "model", "methods", "beyond", "basis", "max_samples", "seed")
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
    def level(timestep: int) -> ScoreModel:
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
    images, labels = (values[:NUM_SEEN] for values in load_mnist(root))
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


def true_frames(curve: Tensor, start: int, degrees: int, num: int) -> Tensor:
    """Frames `(num, 1, 32, 32)` of a rotation, from the digit at all angles."""
    angles = start + torch.linspace(0, degrees, num)
    return curve[(angles * (NUM_ANGLES / 360)).round().long() % NUM_ANGLES]


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
    truth = true_frames(curve, start, degrees, len(frames))
    distances, nearest = torch.cdist(frames.flatten(1), curve.flatten(1)).min(1)
    error = ((nearest * step - angles + 180) % 360 - 180).abs()
    norm = (curve + 1).flatten(1).norm(dim=1).mean()
    seen, true = (((x + 1) / 2).clamp(0, 1) for x in (frames, truth))
    values = {
        "distance": float(distances.mean() / norm),
        "angle": float(error.mean()),
        "last": float(error[-1]),
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
    parser.add_argument("--digits", choices=MODELS, default="first")
    parser.add_argument("--num", type=int, default=50, help="number of unseen digits (default: 50)")
    parser.add_argument(
        "--score", choices=DRAW_TIMESTEPS, help="default: exact, or learned for unseen digits"
    )
    parser.add_argument("--model", type=Path, help="default: the model for these digits")
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
    parser.add_argument("--sheet", type=Path, help="PNG file for a picture at the first angle")
    parser.add_argument(
        "--shown", type=int, default=1, help="number of digits in the picture (default: 1)"
    )
    parser.add_argument("--work", type=Path, help="folder that keeps finished paths")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes (default: 1)")
    return frame.run(measure, parser, argv)


@dataclass
class Found:
    """The frames of a method, `(K, 1, 32, 32)` in [-1, 1], and what they cost.

    Attributes:
        frames: The frames.
        evals: Network calls, in evaluations of the energy.
        energy: Energy over that of the true rotation. It is not a number beyond the last image.
    """

    frames: Tensor
    evals: float
    energy: float = math.nan


class Solver:
    """Draws the paths of all methods between two images."""

    def __init__(self, args: argparse.Namespace, curves: Tensor):
        self.args, self.asked = args, Count()
        if args.score == "exact":
            self.levels = exact_levels(curves.to(args.device), self.asked)
        else:
            self.levels = learned_levels(args.model, self.asked, args.device)

    def __call__(self, task: Task) -> dict[tuple[str, int], Found]:
        """What each method found, by its name and the degrees beyond the end.

        Args:
            task: Degrees of a rotation, and its frames `(25, 1, 32, 32)` in [-1, 1].
        """
        if self.args.work is None:
            return self._solve(task)
        file = self.args.work / f"{self._fingerprint(task)}.pt"
        if file.exists():
            known = torch.load(file, weights_only=True)
            return {key: Found(*values) for key, values in known.items()}
        found = self._solve(task)
        plain = {key: (one.frames, one.evals, one.energy) for key, one in found.items()}
        write_atomically(file, lambda path: torch.save(plain, path))
        return found

    def _fingerprint(self, task: Task) -> str:
        """A name for what determines the result of a task."""
        options = [str(getattr(self.args, name)) for name in DETERMINING]
        text = f"{frame.commit(Path(__file__).parent)} {options} {task[0]}"
        return hashlib.sha256(text.encode() + task[1].numpy().tobytes()).hexdigest()

    def _solve(self, task: Task) -> dict[tuple[str, int], Found]:
        degrees, truth = task
        ends, found, paths = truth[[0, -1]], {}, {}
        energy = self._energy(truth)
        for name in self.args.methods:
            find = METHODS[name]
            paths[name], found[name, 0] = self._draw(ends, lambda case, find=find: find(case).path)
            found[name, 0].energy = self._energy(found[name, 0].frames) / energy
        if self.args.beyond and self.args.basis in paths:
            path = paths[self.args.basis]
            num_steps = round(self.args.beyond / degrees * (NUM_FRAMES - 1))
            for name, extend in EXTENSIONS.items():
                go_on = partial(self._go_on, extend, path, num_steps)
                found[name, self.args.beyond] = self._draw(ends, go_on)[1]
        return found

    @staticmethod
    def _go_on(extend: Extension, path: Tensor, num_steps: int, case: Case) -> Tensor:
        return extend(case, path, num_steps)

    def _case(self, ends: Tensor) -> Case:
        return Case(
            self.levels,
            *F.pixel_unshuffle(ends, 2).to(self.args.device),
            num_frames=NUM_FRAMES,
            metric_timestep=METRIC_TIMESTEP,
            draw_timesteps=DRAW_TIMESTEPS[self.args.score],
            max_samples=self.args.max_samples,
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def _draw(self, ends: Tensor, draw: Callable[[Case], Tensor]) -> tuple[Tensor, Found]:
        """The path of a method, and what it found."""
        self.asked.points = 0
        path = draw(self._case(ends)).detach()
        frames = F.pixel_shuffle(path, 2).cpu()
        return path, Found(frames, self.asked.points / POINTS_PER_EVALUATION)

    @torch.no_grad()
    def _energy(self, frames: Tensor) -> float:
        """The energy of frames, with three chords from each frame to the next."""
        metric = TangentNormalMetric(self._case(frames[[0, -1]]).clean_score(METRIC_TIMESTEP))
        path = F.pixel_unshuffle(frames, 2).to(self.args.device)
        between = [torch.lerp(path[:-1], path[1:], part / 3) for part in range(3)]
        path = torch.cat([torch.stack(between, 1).flatten(0, 1), path[-1:]])
        return float(metric.energy(path).sum())


_solver: Solver  # of a process of `solve_all`


def _start(args: argparse.Namespace, curves: Tensor) -> None:
    global _solver
    torch.set_num_threads(1)
    torch.multiprocessing.set_sharing_strategy("file_system")
    _solver = Solver(args, curves)


def _solve(task: Task) -> dict:
    return _solver(task)


def solve_all(args: argparse.Namespace, curves: Tensor, tasks: Iterable[Task]) -> Iterator[dict]:
    """The result of `Solver` for each task, in order."""
    if args.jobs == 1:
        yield from map(Solver(args, curves), tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, context, _start, (args, curves)) as pool:
        yield from pool.map(_solve, tasks)


def images_of(args: argparse.Namespace) -> Tensor:
    """The digits to measure, `(N, 28, 28)` in [0, 1]."""
    images, labels = load_mnist(args.data)
    if args.digits == "first":
        return torch.stack([images[labels == kind][0] for kind in args.kinds])
    return images[NUM_SEEN : NUM_SEEN + args.num]


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Rows with means of every angle and method."""
    warnings.filterwarnings("ignore", message="FID of")
    args.score = args.score or ("exact" if args.digits == "first" else "learned")
    args.model = args.model or MODELS[args.digits]
    if args.work is not None:
        args.work.mkdir(parents=True, exist_ok=True)
    curves, features = orbits(images_of(args)), train_classifier(args.data, args.seed)
    cases = [(i, start) for i in range(len(curves)) for start in args.starts]
    tasks = [
        (degrees, true_frames(curves[i], start, degrees, NUM_FRAMES))
        for degrees in args.degrees
        for i, start in cases
    ]
    solved = solve_all(args, curves, tasks)
    for degrees in args.degrees:
        found = [next(solved) for _ in cases]
        for name, beyond in found[0]:
            rows, drawn, true = [], [], []
            for (i, start), results in zip(cases, found, strict=True):
                one = results[name, beyond]
                if one.frames.isfinite().all():
                    first = start + degrees if beyond else start
                    values, truth = measures_of(one.frames, curves[i], first, beyond or degrees)
                    rows.append(values | {"evals": one.evals, "energy": one.energy})
                    drawn.append(one.frames[1:-1]), true.append(truth)
            means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
            sets = [features(torch.cat(frames)) for frames in (drawn, true)]
            means |= {"FID": float(frechet_distance(*sets)), "missed": len(found) - len(rows)}
            yield {"degrees": degrees, "beyond": beyond, "method": name, "paths": len(rows)} | means
        if args.sheet and degrees == args.degrees[0]:
            sheet(list(shown(args, curves, found, degrees))).save(args.sheet)


def shown(
    args: argparse.Namespace, curves: Tensor, found: list[dict], degrees: int
) -> Iterator[Tensor]:
    """Rows of the picture: the true rotation and the path of each method, for each digit."""
    for i in range(min(args.shown, len(curves))):
        yield true_frames(curves[i], args.starts[0], degrees, NUM_FRAMES)
        results = found[i * len(args.starts)]
        yield from (one.frames for (_, beyond), one in results.items() if not beyond)


if __name__ == "__main__":
    main()
