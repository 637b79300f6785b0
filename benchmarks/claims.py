"""Whether what a geodesic says of itself is true: convergence, pace, length, data and energy.

    python benchmarks/claims.py [--study convergence pace departures energies starts images]
        [--networks [--work FOLDER]] [--shipped]

The metric is the tangent-normal metric, and in some cases of the first study the score Jacobian.
All solves have their default options and 25 points. There is one row per case. The columns of each
study are:

    convergence  "excess": how far the energy lies above the minimum of the valley, as a share; the
                 minimum is that of a solve that goes on from the result for 300 evaluations.
                 "error": largest distance between both paths, at equal fractions of the flat length
                 and as a share of it. "evals", "status", "on data": as the result states them.
                 With `--networks`, there are also scores of networks that are trained for minutes
                 on points of the manifolds; `--work` keeps them. With `--shipped`, there are also
                 images and the shipped model.
    pace         error at equal fractions: root mean square distance of the path to the true
                 geodesic, "error" for the path that is returned and "nodes" for the points of the
                 solver. "length": stated length over the true length; "metric length": the same in
                 the metric. Each solve starts from the true geodesic.
    departures   "leap": whether every path must leave the data; "on data": what the result says.
    energies     "stated": stated energy over that on 64 chords for each segment; "optimised":
                 the same for the energy that the solver lowered.
    starts       "default", "slerp": length of the path from the default start and from slerp, over
                 that of the geodesic; none if the start is refused.
    images       "known": whether the images are of the kind that the shipped model was trained on.
                 "warned": whether the morph warns that the model does not know them. "error": the
                 largest mean squared error with which an image returns, values in [0, 1]. The
                 morphs are slerp between two frames, because the warning needs no solve.

The curves that are set aside for testing are among the cases of the pace. The limits of
`Departure.on_data` were chosen on the manifolds and leaps here with seeds below 100. The leaps with
seeds from 100 on were drawn afterwards.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

import demo_model
import frame
import numpy as np
import torch
from learned import network_levels, timestep_of, trained
from methods import Count
from PIL import Image
from problems import (
    SIGMA,
    HypersphereScore,
    Problem,
    benchmark_problems,
    circle,
    figure_eight,
    held_out_problems,
    hypersphere,
    uneven_circle,
)
from torch import Tensor

from riemannian_diffusion import (
    GaussianMixtureScore,
    Geodesic,
    Metric,
    ScoreJacobianMetric,
    ScoreModel,
    TangentNormalMetric,
    demo,
    geodesic,
    length,
    resample,
    smooth,
)
from riemannian_diffusion.geodesics import RTOL
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline, ImageWarning

NUM_POINTS = 25
STUDIES = ("convergence", "pace", "departures", "energies", "starts", "images")
PHOTOGRAPHS = (  # files of scikit-image: photographs, drawings, text and textures
    *("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "coins.png"),
    *("hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "retina.jpg", "moon.png"),
    *("cell.png", "page.png", "text.png", "brick.png", "gravel.png", "grass.png", "horse.png"),
)
NUM_KNOWN = 10  # pairs of images of the kind that the shipped model knows


class CirclesScore(ScoreModel):
    """The exact score of a product of unit circles in R^n.

    The denoised point of a circle lies on the same ray, at radius `I_1(kappa) / I_0(kappa)` with
    `kappa = r / sigma^2` for a point at radius r (the mean of a von Mises distribution).

    Args:
        num_circles: Number of circles.
        n: Number of dimensions, at least twice the number of circles.
        sigma: Standard deviation of the noise, positive.
    """

    alpha = 1.0

    def __init__(self, num_circles: int, n: int, sigma: float):
        self.num_circles, self.sigma = num_circles, sigma
        generator = torch.Generator().manual_seed(n)
        frame = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
        self.basis, self.centre = frame[:, : 2 * num_circles], 0.5 * frame[:, -1]

    def __call__(self, x: Tensor) -> Tensor:
        """The score at each point, `(K, n) -> (K, n)`."""
        offset = x.double() - self.centre
        inside = (offset @ self.basis).unflatten(1, (self.num_circles, 2))
        radius = inside.norm(dim=2, keepdim=True).clamp(min=1e-12)
        kappa = radius / self.sigma**2
        mean = torch.special.i1e(kappa) / torch.special.i0e(kappa) * inside / radius
        return ((mean.flatten(1) @ self.basis.T - offset) / self.sigma**2).to(x)

    def at(self, angles: Tensor) -> Tensor:
        """The points at angles, `(K, num_circles) -> (K, n)`."""
        points = torch.stack([angles.cos(), angles.sin()], 2).flatten(1)
        return points @ self.basis.T + self.centre


@dataclass(frozen=True)
class Case:
    """Two points, a score, and perhaps a start and the truth.

    Attributes:
        name: Name in the table.
        score: The score.
        x0: First point.
        x1: Last point.
        start: The start of a solve, as `init` of `geodesic`.
        leap: Whether every path between the points must leave the data.
        metric: The kind of metric.
    """

    name: str
    score: ScoreModel
    x0: Tensor
    x1: Tensor
    start: Tensor | str | None = None
    leap: bool = False
    metric: Callable[[ScoreModel], Metric] = TangentNormalMetric

    @property
    def num_points(self) -> int:
        """Number of points of the path: that of the start, if it is a path."""
        return len(self.start) if isinstance(self.start, Tensor) else NUM_POINTS

    def solve(self, **options) -> Geodesic:
        """The geodesic with default options, or with those that are given."""
        options = {"num_points": self.num_points, "init": self.start} | options
        return geodesic(self.metric(self.score), self.x0, self.x1, **options)


def along(problem: Problem, sigma: float = SIGMA) -> Case:
    """A case whose solve starts from the true geodesic."""
    truth = problem.geodesic(torch.linspace(0, 1, NUM_POINTS))
    name = problem.name if sigma == SIGMA else f"{problem.name}, noise {sigma:g}"
    return Case(name, problem.level(1.0, sigma), problem.x0, problem.x1, truth)


def sphere_case(angle: float, seed: int) -> Case:
    """Two points of a 2-sphere in R^12 that is not centred on the origin."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0]
    score = HypersphereScore(basis[:, :3], basis[:, 0] + basis[:, 5], SIGMA)
    first, second, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[
        0
    ].unbind(1)
    ends = torch.stack([first, math.cos(angle) * first + math.sin(angle) * second])
    x0, x1 = ends @ basis[:, :3].T + score.centre
    return Case(f"2-sphere in R^12, angle {angle}, seed {seed}", score, x0, x1)


def product_case(seed: int) -> Case:
    """Two points of a product of ten circles in R^200, at most 2.2 apart on each circle."""
    score = CirclesScore(10, 200, SIGMA)
    generator = torch.Generator().manual_seed(seed)
    start, turn = torch.rand(2, 10, generator=generator, dtype=torch.float64)
    ends = score.at(torch.stack([6 * start, 6 * start + 4.4 * (turn - 0.5)]))
    return Case(f"ten circles in R^200, seed {seed}", score, *ends)


def convergence_cases() -> Iterator[Case]:
    """All manifolds from a straight start and others, and from the truth where that one leaps."""
    for problem in benchmark_problems():
        yield Case(problem.name, problem.score, problem.x0, problem.x1)
        if problem.name in ("C-shape", "swiss roll in R^20"):
            yield replace(along(problem), name=f"{problem.name}, from the truth")
    for make in (partial(sphere_case, 2.2), partial(sphere_case, 2.9), product_case):
        for case in map(make, range(4)):
            yield case
            yield replace(case, name=f"{case.name}, from slerp", start="slerp")
    for seed in range(3):
        problem = circle(5, seed=seed)
        yield Case(f"{problem.name}, random {seed}", problem.score, problem.x0, problem.x1)


def score_jacobian_cases() -> Iterator[Case]:
    """The cases with the default start, with the score Jacobian."""
    for case in convergence_cases():
        if case.start is None:
            name = f"score Jacobian, {case.name}"
            yield replace(case, name=name, metric=ScoreJacobianMetric)


def network_cases(folder: Path | None) -> Iterator[Case]:
    """Manifolds with the score of a small network, from a straight start and from the truth."""
    spheres = [hypersphere(k, 100, seed=0) for k in (2, 5, 10)]  # they have no lattice
    for problem in (*islice(benchmark_problems(), 6), *spheres):
        file = None if folder is None else folder / f"{problem.name}.safetensors"
        score = network_levels(trained(problem, 10_000, 0, file), Count())(timestep_of(SIGMA))
        path = score.alpha * problem.geodesic(torch.linspace(0, 1, NUM_POINTS)).float()
        for start, name in ((None, "straight"), (path, "truth")):
            name = f"network, {problem.name}, from {name}"
            yield Case(name, score, path[0], path[-1], start)


def convergence(case: Case) -> dict:
    """The row of a case in the study of convergence."""
    found = case.solve()
    settled = case.solve(init=found.nodes, rtol=0.0, max_evals=300)
    lowest = min(energy for _, energy in settled.iterates)
    even = [resample(smooth(one.nodes, 8), 101) for one in (found, settled)]
    return {
        "excess": settled.iterates[0][1] / lowest - 1,
        "error": float((even[0] - even[1]).norm(dim=1).max() / length(even[1])),
        "evals": found.num_evals,
        "status": found.status,
        "on data": found.on_data,
    }


def shipped_convergence(pair: int) -> dict:
    """The row of two scenes that the shipped model has not seen, in noise space."""
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
    keys = pipe.invert(demo_model.held_out(10, 7)[[pair, pair + 5]], num_inference_steps=50)
    found = pipe.solve(keys, rtol=RTOL).geodesics[0]
    settled = pipe.solve(keys, init=found.nodes, rtol=0.0, max_evals=100).geodesics[0]
    even = [resample(smooth(one.nodes, 8), 101).flatten(1) for one in (found, settled)]
    lowest = min(energy for _, energy in settled.iterates)
    return {
        "excess": settled.iterates[0][1] / lowest - 1,
        "error": float((even[0] - even[1]).norm(dim=1).max() / length(even[1])),
        "evals": found.num_evals,
        "status": found.status,
        "on data": found.on_data,
    }


def pace_problems() -> Iterator[tuple[Problem, str]]:
    """Curves with lattices and with 4,000 random points of three seeds."""
    for seed in (None, 0, 1, 2):
        samples = "lattice" if seed is None else f"random {seed}"
        for problem in (circle(5, shift=1.0, seed=seed), uneven_circle(8, seed=seed)):
            yield problem, samples
        yield from ((problem, samples) for problem in held_out_problems(seed))


def pace(problem: Problem) -> dict:
    """The row of a curve in the study of pace."""
    found = along(problem).solve()
    truth = problem.geodesic(torch.linspace(0, 1, NUM_POINTS))
    metric = TangentNormalMetric(problem.score)

    def error(path: Tensor) -> float:
        return float((path - truth).square().sum(1).mean().sqrt())

    return {
        "error": error(found.path),
        "nodes": error(found.nodes),
        "length": found.length / problem.length,
        "metric length": float(metric.length(smooth(found.nodes, 6))) / problem.length,
        "on data": found.on_data,
    }


def departure_cases() -> Iterator[Case]:
    """Correct paths on all manifolds at three noises, and leaps over gaps of many widths."""
    for sigma in (0.1, 0.05):
        yield from (along(problem, sigma) for problem in benchmark_problems())
    for seed in (0, 1):
        yield from (along(problem) for problem in benchmark_problems(seed))
    for sigma in (0.025, 0.0125):
        for problem in (circle(32, shift=1.0, num=1600), uneven_circle(8, num=1600)):
            yield along(problem, sigma)
    for gap in (5, 6, 8, 10, 15, 20, 40):
        yield clusters(gap * SIGMA, seed=0, spread=0.0)
        yield clusters(gap * SIGMA, seed=gap, spread=0.2)
        yield arcs(gap * SIGMA, seed=gap)
        yield rings(gap * SIGMA, n=5)
    for gap, num in ((5, 17), (8, 9), (8, 17), (8, 25), (15, 25)):  # long chords
        yield line(gap * SIGMA, num_points=num)
        yield line(gap * SIGMA, num_points=num, curved=True)
    yield line(0.0, num_points=17)
    yield line(0.0, num_points=17, curved=True)
    for seed in range(100, 130):
        generator = torch.Generator().manual_seed(seed)
        gap = float(5 + 25 * torch.rand((), generator=generator)) * SIGMA
        kind = (clusters, arcs)[seed % 2]
        yield kind(gap, seed=seed)


def clusters(gap: float, *, seed: int, spread: float = 0.3) -> Case:
    """Two clouds of 3 dimensions in R^20, whose nearest points are a gap apart."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(2, 500, 3, generator=generator, dtype=torch.float64)
    inside = directions / directions.norm(dim=2, keepdim=True)
    radius = torch.rand(2, 500, 1, generator=generator, dtype=torch.float64) ** (1 / 3)
    points = torch.zeros(2, 500, 20, dtype=torch.float64)
    points[:, :, :3] = spread * radius * inside
    points[1, :, 0] += gap + 2 * spread
    score = GaussianMixtureScore(points.flatten(0, 1), SIGMA)
    name = f"two clouds of radius {spread:g}, gap {gap:.2f}, seed {seed}"
    return Case(name, score, points[0, 0], points[1, 0], leap=True)


def arcs(gap: float, *, seed: int) -> Case:
    """An arc of a circle in R^8 with a gap, whose ends lie on both sides of it."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))[0]
    radius = 2.5 * max(1.0, gap)
    half = math.asin(gap / 2 / radius)
    piece = torch.linspace(half, half + 1.2, 800, dtype=torch.float64)
    angles = torch.cat([-piece.flip(0), piece])
    points = radius * torch.stack([angles.cos(), angles.sin()], 1) @ frame[:, :2].T
    name = f"arc with a gap of {gap:.2f}, seed {seed}"
    return Case(name, GaussianMixtureScore(points, SIGMA), points[300], points[-300], leap=True)


def line(gap: float, *, num_points: int, curved: bool = False) -> Case:
    """A line or an arc in R^8 that is 400 times as long as the noise, with or without a gap."""
    length = 400 * SIGMA
    half = torch.arange(gap / 2, length / 2 + 1, SIGMA / 2, dtype=torch.float64)
    if not gap:
        half = half + SIGMA / 4
    whole = torch.linspace(-length / 2, length / 2, num_points, dtype=torch.float64)

    def at(place: Tensor) -> Tensor:
        points = torch.zeros(len(place), 8, dtype=torch.float64)
        radius = length / 2.2
        points[:, 0] = radius * (place / radius).sin() if curved else place
        points[:, 1] = radius * (place / radius).cos() if curved else 0.0
        return points

    score = GaussianMixtureScore(at(torch.cat([-half.flip(0), half])), SIGMA)
    name = f"{'arc' if curved else 'line'} with a gap of {gap:.2f}, {num_points} points"
    path = at(whole)
    return Case(name, score, path[0], path[-1], path, leap=gap > 0)


def rings(gap: float, *, n: int) -> Case:
    """Two unit circles side by side in a plane of R^n."""
    angles = torch.arange(400, dtype=torch.float64) * (2 * math.pi / 400)
    ring = torch.zeros(400, n, dtype=torch.float64)
    ring[:, 0], ring[:, 1] = angles.cos(), angles.sin()
    far = torch.zeros(n, dtype=torch.float64)
    far[0] = 2 + gap
    points = torch.cat([ring, ring + far])
    name = f"two circles, gap {gap:.2f}"
    return Case(name, GaussianMixtureScore(points, SIGMA), points[100], points[500], leap=True)


def departure(case: Case) -> dict:
    """The row of a case in the study of departures."""
    found = case.solve(max_evals=100)
    return {
        "leap": case.leap,
        "on data": found.on_data,
        "status": found.status,
        "energy over bound": found.energy / max(found.lower_bound, 1e-12),
    }


def energy_cases() -> Iterator[Case]:
    """Correct paths at noises down to a fortieth of the radius, and leaps."""
    for sigma in (0.1, 0.05, 0.025):
        for problem in (circle(32, shift=1.0, num=1600), uneven_circle(8, num=1600)):
            yield along(problem, sigma)
    for gap in (5, 10, 20, 40):
        yield rings(gap * SIGMA, n=5)
        yield clusters(gap * SIGMA, seed=0, spread=0.0)


def energies(case: Case) -> dict:
    """The row of a case in the study of energies."""
    found = case.solve(max_evals=100)
    metric = TangentNormalMetric(case.score)
    with torch.no_grad():
        true = float(metric.energy(smooth(found.nodes, 64)).sum())
    return {
        "stated": found.energy / true,
        "optimised": found.iterates[-1][1] / true,
        "stated change": found.energy_change,
        "chords": (len(found.curve) - 1) // (NUM_POINTS - 1),
    }


def start_cases() -> Iterator[Problem]:
    """Closed curves around, beside and through the origin."""
    for shift in (0.0, 0.5, 1.0, 3.0):
        yield replace(circle(5, shift=shift), name=f"circle, centre {shift:g} from the origin")
    for shift in (0.5, 0.9):
        problem = circle(5, start=math.pi - 1.1, shift=shift)
        yield replace(problem, name=f"the near side of the circle with centre {shift:g}")
    for half in (0.1, 0.2):
        problem = figure_eight(around=0.0, half=half)
        yield replace(problem, name=f"figure eight, opposite ends {2 * half:g} apart")
    problem = figure_eight(around=0.1, half=0.2)
    yield replace(problem, name="figure eight, nearly opposite ends")


def starting(problem: Problem) -> dict:
    """The row of a curve in the study of starts."""
    lengths: dict[str, float | None] = {}
    for name, start in (("default", None), ("slerp", "slerp")):
        try:
            found = Case(name, problem.score, problem.x0, problem.x1, start).solve()
            lengths[name] = found.length / problem.length
        except ValueError:  # slerp between opposite ends
            lengths[name] = None
    return lengths


def image_cases() -> Iterator[tuple[str, bool, Tensor]]:
    """Names, whether the shipped model knows such images, and pairs of images in [0, 1]."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    scenes = demo_model.held_out(2 * NUM_KNOWN, 29)
    for i in range(NUM_KNOWN):
        yield f"scenes {i}", True, scenes[[i, i + NUM_KNOWN]]
    photographs = [_small(Image.open(folder / name)) for name in PHOTOGRAPHS]
    half = len(photographs) // 2
    for i in range(half):
        name = f"{PHOTOGRAPHS[i]}, {PHOTOGRAPHS[i + half]}"
        yield name, False, torch.stack([photographs[i], photographs[i + half]])
    generator = torch.Generator().manual_seed(0)
    yield "noise", False, torch.rand(2, *scenes.shape[1:], generator=generator)
    for i in range(2):
        yield f"scene and {PHOTOGRAPHS[i]}", False, torch.stack([scenes[i], photographs[i]])


def _small(image: Image.Image) -> Tensor:
    """The middle square of an image as the shipped model takes it, `(3, 64, 64)` in [0, 1]."""
    image = image.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((64, 64), Image.LANCZOS)
    return torch.from_numpy(np.array(image)).movedim(2, 0) / 255


def known(pipe: GeodesicInterpolationPipeline, images: Tensor) -> dict:
    """The row of two images in the study of images."""
    found = pipe(images, metric="slerp", num_frames=2)
    return {"warned": bool(found.warnings), "error": max(found.reconstruction_error)}


def main(argv: list[str] | None = None) -> list[dict]:
    """Run the studies; return the rows."""
    parser = frame.parser(__doc__, cpu_only=True)
    parser.add_argument("--study", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument(
        "--networks", action="store_true", help="convergence with scores of networks, too"
    )
    parser.add_argument("--work", type=Path, help="folder that keeps trained networks")
    parser.add_argument(
        "--shipped", action="store_true", help="convergence on the shipped model, too"
    )
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """The rows of all studies, and a summary of each."""
    rows: dict[str, list[dict]] = {study: [] for study in args.study}

    def row(study: str, case: str, values: dict) -> dict:
        rows[study].append({"study": study, "case": case} | values)
        return rows[study][-1]

    if "convergence" in args.study:
        for case in chain(convergence_cases(), score_jacobian_cases()):
            yield row("convergence", case.name, convergence(case))
        for case in network_cases(args.work) if args.networks else ():
            yield row("convergence", case.name, convergence(case))
        for pair in range(3) if args.shipped else ():
            yield row("convergence", f"shipped model, pair {pair}", shipped_convergence(pair))
    if "pace" in args.study:
        for problem, samples in pace_problems():
            yield row("pace", f"{problem.name}, {samples}", pace(problem))
    if "departures" in args.study:
        for case in departure_cases():
            yield row("departures", case.name, departure(case))
    if "energies" in args.study:
        for case in energy_cases():
            yield row("energies", case.name, energies(case))
    if "starts" in args.study:
        for problem in start_cases():
            yield row("starts", problem.name, starting(problem))
    if "images" in args.study:
        pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)  # they are in the rows
            for name, is_known, images in image_cases():
                yield row("images", name, {"known": is_known} | known(pipe, images))
    for study, some in rows.items():
        yield from summary(study, some)


def summary(study: str, rows: list[dict]) -> Iterator[dict]:
    """What the worst rows of a study are."""
    if study == "convergence":
        kinds = {kind: f"worst, {kind}" for kind in ("score Jacobian", "network", "shipped model")}
        for kind, case in {"": "worst on the data", **kinds}.items():
            some = [row for row in rows if row["case"].startswith(kind)]
            if not kind:
                some = [row for row in rows if not row["case"].startswith(tuple(kinds))]
            some = [row for row in some if row["status"] == "converged" and row["on data"]]
            if some:
                worst = {key: max(row[key] for row in some) for key in ("excess", "error")}
                yield {"study": study, "case": case, "cases": len(some)} | worst
    elif study == "pace":
        for samples in ("lattice", "random"):
            some = [row for row in rows if samples in row["case"].rsplit(", ")[-1]]
            longest = max(abs(row["length"] - 1) for row in some)
            worst = {key: max(row[key] for row in some) for key in ("error", "nodes")}
            case = f"worst, {samples}"
            yield {
                "study": study,
                "case": case,
                "cases": len(some),
                "length error": longest,
            } | worst
    elif study == "departures":
        for leap in (False, True):
            some = [row for row in rows if row["leap"] == leap]
            wrong = sum(row["on data"] is leap for row in some)
            case = "missed leaps" if leap else "false alarms"
            yield {"study": study, "case": case, "cases": len(some), "wrong": wrong}
    elif study == "starts":
        for name in ("default", "slerp"):
            found = [row[name] for row in rows if row[name] is not None]
            wrong = sum(abs(value - 1) > 0.03 for value in found)
            case = {"study": study, "case": f"all, {name}", "cases": len(rows)}
            yield case | {"refused": len(rows) - len(found), "wrong": wrong}
    elif study == "images":
        for is_known in (True, False):
            some = [row for row in rows if row["known"] is is_known]
            wrong = sum(row["warned"] is is_known for row in some)
            case = "known images" if is_known else "unknown images"
            yield {"study": study, "case": case, "cases": len(some), "wrong": wrong}
    else:
        worst = {key: min(row[key] for row in rows) for key in ("stated", "optimised")}
        yield {"study": study, "case": "lowest", "cases": len(rows)} | worst


if __name__ == "__main__":
    main()
