"""All published geometries of diffusion models, on manifolds whose geodesics are known.

    python benchmarks/geometries.py [--scores exact learned] [--samples lattice 0 1 2]
        [--manifolds C-shape "two moons" ...] [--geometries Stein slerp ...] [--num-points 25]
        [--work FOLDER] [--part 1/2] [--figures FOLDER] [--held-out]

The data are a C-shape, two moons, a swiss roll, circles of even and uneven density, a flat torus
and k-spheres of k = 1 to 10 in R^100. Samples are a lattice (k-spheres: a closed form) or
4,000 random points of three seeds. The score is exact, or that of a small network that is trained
here on the same points. `--held-out` takes six curves instead that are set aside for testing: no
setting was chosen on them. There is one row per geometry, manifold, samples and score:

    space           "noise": between ends inverted to 0.6 of 50 steps, and sampled back; "clean":
                    the score at noise 0.1, read at clean points, from a straight start
    error           root mean square distance to the true geodesic, at equal fractions of the flat
                    length of the path
    own pace        the same at the points as the method returns them
    jump            largest step over the even step of the true geodesic
    len, std        flat length over the true length; population standard deviation of the steps
    dist            mean distance of the path's points to the manifold
    points          points at which the network was evaluated
    with gradient   those of them through which it was also differentiated
    status          of the solve; "formula" without a solve; "own rule" for a method that ends by
                    its own rule; "nonfinite" if the path has infinite values

Rows with the manifold "median", and rows with "lattice" and "random", sum up the others.

`--work` keeps networks and rows. Rows of the same commit and options are not measured again, so a
run that was stopped goes on, and a run can be divided:

    python benchmarks/geometries.py --work work --part 1/2 &
    python benchmarks/geometries.py --work work --part 2/2; wait
    python benchmarks/geometries.py --work work --out benchmarks/results/DATE_geometries_cpu.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median

import frame
import torch
from geometries_others import (
    DensityMetric,
    FisherRaoMetric,
    MixtureMetric,
    cog,
    force_matching,
)
from learned import exact_levels, network_levels, timestep_of, trained
from methods import METHODS, RECIPE, Case, Count, Found, Method, curve, finer, solve_clean, solved
from problems import SIGMA, Problem, benchmark_problems, held_out_problems
from torch import Tensor

from riemannian_diffusion import (
    LikelyMetric,
    ScoreJacobianMetric,
    SteinScoreMetric,
    TangentNormalMetric,
    length,
    lerp,
    refine,
    resample,
    speed,
)
from riemannian_diffusion.files import write_atomically

DRAW_NOISES = (0.3, 0.5, 0.8)  # noise of a roadmap's samples, in units of the clean data
SCORES, SAMPLES = ("exact", "learned"), ("lattice", "0", "1", "2")
MEASURES = ("error", "own pace", "jump", "len", "dist", "points", "with gradient")
SOLVED = ("converged", "formula", "own rule")  # statuses of paths that are not failures
DIGITS = 5  # significant digits of the results


@dataclass(frozen=True)
class Geometry:
    """A row of the table.

    Attributes:
        name: Name in the table.
        space: "noise" or "clean".
        find: The method that finds a path.
    """

    name: str
    space: str
    find: Method


def mixture(case: Case) -> Found:
    """A geodesic of the mixture, whose terms are measured on the straight start."""
    start = refine(lerp(case.x0, case.x1, case.num_frames), 3)
    return solve_clean(case, partial(MixtureMetric, start=start))


def likely_by_force(case: Case) -> Found:
    """A path that fits the equation of motion of the likely geometry."""
    score = case.clean_score(case.metric_timestep)
    return Found(force_matching(score, case.x0, case.x1, case.num_frames), "own rule")


def jacobian_by_recipe(case: Case) -> Found:
    """The method of arXiv 2510.05509: 500 steps of Adam from slerp, one chord a segment."""
    found = solved(ScoreJacobianMetric, **RECIPE)(case)
    return replace(found, status="own rule" if found.status == "max_evals" else found.status)


GEOMETRIES = (
    Geometry("lerp", "noise", METHODS["lerp"]),
    Geometry("slerp", "noise", METHODS["slerp"]),
    Geometry("COG", "noise", curve(cog)),
    Geometry("split", "noise", METHODS["split"]),
    Geometry("NAO", "noise", METHODS["nao"]),
    Geometry("NoiseDiffusion", "noise", METHODS["noise_diffusion"]),
    Geometry("density geodesic", "noise", METHODS["density"]),
    Geometry("Stein", "noise", METHODS["stein"]),
    Geometry("score Jacobian", "noise", jacobian_by_recipe),
    Geometry("likely", "noise", METHODS["likely"]),
    Geometry("tangent-normal", "noise", METHODS["tangent_normal"]),
    Geometry("straight line", "clean", lambda c: Found(lerp(c.x0, c.x1, c.num_frames))),
    Geometry("Fisher-Rao", "clean", lambda c: solve_clean(c, FisherRaoMetric)),
    Geometry("density", "clean", lambda c: solve_clean(c, DensityMetric)),
    Geometry("force matching", "clean", likely_by_force),
    Geometry("likely", "clean", lambda c: solve_clean(c, LikelyMetric)),
    Geometry("Stein", "clean", lambda c: solve_clean(c, SteinScoreMetric)),
    Geometry(
        "Stein, full gradient",
        "clean",
        lambda c: solve_clean(c, partial(SteinScoreMetric, detach_score=False)),
    ),
    Geometry("mixture", "clean", mixture),
    Geometry("score Jacobian", "clean", lambda c: solve_clean(c, ScoreJacobianMetric)),
    Geometry("tangent-normal", "clean", lambda c: solve_clean(c, TangentNormalMetric)),
    Geometry("roadmap", "clean", METHODS["roadmap"]),
    Geometry("relax", "clean", METHODS["relax"]),
    Geometry("both starts, then finer", "clean", finer),
)
NAMES = tuple(dict.fromkeys(geometry.name for geometry in GEOMETRIES))


@torch.no_grad()
def measures_of(problem: Problem, path: Tensor) -> dict[str, float]:
    """All measures of a path `(K, n)` except the numbers of points."""
    truth = problem.geodesic(torch.linspace(0, 1, len(path)))
    pace = speed(path)
    return {
        "error": _distance(resample(path, len(path)), truth),
        "own pace": _distance(path, truth),
        "jump": float(pace.max()) / problem.length,
        "len": float(length(path)) / problem.length,
        "std": float(pace.std(correction=0)) / len(pace),
        "dist": float(problem.distance(path).mean()),
    }


def _distance(path: Tensor, truth: Tensor) -> float:
    return float((path - truth).square().sum(1).mean().sqrt())


def row_of(geometry: Geometry, problem: Problem, case: Case, count: Count) -> tuple[dict, Tensor]:
    """The measures of one geometry, and its path."""
    count.reset()
    found = geometry.find(case)
    path, status = found.path.detach(), found.status
    if path.isfinite().all():
        values = measures_of(problem, path.double())
    else:
        values = dict.fromkeys(("error", "own pace", "jump", "len", "std", "dist"), math.nan)
        status = "nonfinite"
    rounded = {key: _rounded(value) for key, value in values.items()}
    points = {"points": count.points, "with gradient": count.with_gradient}
    return rounded | points | {"status": status}, path


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


@dataclass(frozen=True)
class Block:
    """All rows of a manifold with the same samples and the same score."""

    score: str
    samples: str
    problem: Problem

    @property
    def name(self) -> str:
        """Name of a file."""
        return f"{self.score}, {self.samples}, {self.problem.name}"


class Work:
    """A folder that keeps networks and rows; without a folder, nothing is kept."""

    def __init__(self, args: argparse.Namespace):
        self.networks = self.rows = None
        if args.work is not None:
            options = (args.num_points, args.train_steps, args.max_samples, args.seed)
            commit = frame.commit(Path(__file__).parent) or "no commit"
            self.networks = args.work / f"networks, {args.train_steps} steps, seed {args.seed}"
            self.rows = args.work / f"rows, {commit}, {' '.join(map(str, options))}"
            self.networks.mkdir(parents=True, exist_ok=True)
            self.rows.mkdir(exist_ok=True)

    def network(self, block: Block) -> Path | None:
        """The file of a block's network."""
        return self.networks and self.networks / f"{block.name}.safetensors"

    def read(self, block: Block) -> list[dict]:
        """The rows of a block that are kept."""
        file = self.rows and self.rows / f"{block.name}.json"
        return json.loads(file.read_text()) if file and file.exists() else []

    def write(self, block: Block, rows: list[dict]) -> None:
        """Keep the rows of a block."""
        if self.rows:
            text = json.dumps(rows)
            write_atomically(self.rows / f"{block.name}.json", lambda file: file.write_text(text))


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


def part(text: str) -> tuple[int, int]:
    """Parse "1/2", the first of two parts."""
    index, _, num = text.partition("/")
    if not (index.isdigit() and num.isdigit() and 1 <= int(index) <= int(num)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 1/2")
    return int(index), int(num)


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure all geometries; return the rows."""
    names = [problem.name for problem in benchmark_problems()]
    parser = frame.parser(__doc__, cpu_only=True)
    parser.add_argument("--scores", nargs="+", choices=SCORES, default=list(SCORES))
    parser.add_argument(
        "--samples", nargs="+", choices=SAMPLES, default=list(SAMPLES), help="lattice, or seeds"
    )
    parser.add_argument("--manifolds", nargs="+", choices=names, metavar="NAME", default=names)
    parser.add_argument(
        "--held-out", action="store_true", help="six curves for testing, instead of --manifolds"
    )
    parser.add_argument(
        "--geometries", nargs="+", choices=NAMES, metavar="NAME", default=list(NAMES)
    )
    parser.add_argument("--num-points", type=int, default=25)
    parser.add_argument("--train-steps", type=int, default=10000, help="steps of learned scores")
    parser.add_argument(
        "--max-samples", type=int, default=2048, help="largest number of samples of a roadmap"
    )
    parser.add_argument("--work", type=Path, help="folder that keeps networks and rows")
    parser.add_argument(
        "--part", type=part, default=(1, 1), help="measure one part only, such as 1/2"
    )
    parser.add_argument(
        "--figures", type=Path, help="folder for a PNG per manifold; kept rows are not used"
    )
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Rows of every manifold and geometry, and their summaries."""
    work, rows, seconds = Work(args), [], []
    problems = held_out_problems if args.held_out else benchmark_problems
    blocks = [
        Block(score, samples, problem)
        for score in args.scores
        for samples in args.samples
        for problem in problems(None if samples == "lattice" else int(samples))
        if args.held_out or problem.name in args.manifolds
    ]
    index, num = args.part
    blocks = blocks[index - 1 :: num]
    for i, block in enumerate(blocks):
        start, measured = time.perf_counter(), False
        for row, new in rows_of(block, args, work):
            rows.append(row)
            measured |= new
            yield row
        if measured:
            seconds.append(time.perf_counter() - start)
            left = (len(blocks) - i - 1) * fmean(seconds) / 60
            print(f"{i + 1} of {len(blocks)}; about {left:.0f} minutes left", file=sys.stderr)
    if num == 1:
        yield from sums_of(rows)


def rows_of(block: Block, args: argparse.Namespace, work: Work) -> Iterator[tuple[dict, bool]]:
    """The rows of a block, and whether each was measured now."""
    problem, count = block.problem, Count()
    kept, paths = [] if args.figures else work.read(block), {}
    levels = None
    for geometry in GEOMETRIES:
        if geometry.name not in args.geometries:
            continue
        key = {
            "geometry": geometry.name,
            "space": geometry.space,
            "manifold": problem.name,
            "samples": block.samples,
            "score": block.score,
        }
        known = next((row for row in kept if key.items() <= row.items()), None)
        if known is not None:
            yield known, False
            continue
        if levels is None:
            if block.score == "exact":
                levels = exact_levels(problem, count)
            else:
                model = trained(problem, args.train_steps, args.seed, work.network(block))
                levels = network_levels(model, count)
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
        values, paths[f"{geometry.name}, {geometry.space}"] = row_of(geometry, problem, case, count)
        kept.append(key | values)
        if not args.figures:
            work.write(block, kept)
        yield kept[-1], True
    if args.figures:
        args.figures.mkdir(parents=True, exist_ok=True)
        file = problem.name.replace(" ", "_").replace("^", "") + ".png"
        draw(problem, paths, args.figures / file)


def sums_of(rows: list[dict]) -> Iterator[dict]:
    """Errors side by side for each manifold, and medians over all manifolds.

    Values that are not finite count as infinite in medians, and make a mean None.
    """
    grouped = list(_groups(rows, ("score", "geometry", "space")))
    for key, own in grouped:
        for there, found in _groups(own, ("manifold",)):
            errors = [row["error"] for row in found if row["samples"] != "lattice"]
            yield (
                key
                | there
                | {
                    "lattice": next((r["error"] for r in found if r["samples"] == "lattice"), None),
                    "random": _rounded(fmean(errors)) if errors and None not in errors else None,
                }
            )
    for key, own in grouped:
        for samples in ("lattice", "random"):
            chosen = [r for r in own if (r["samples"] == "lattice") == (samples == "lattice")]
            if not chosen:
                continue
            medians = {
                name: _rounded(median(math.inf if r[name] is None else r[name] for r in chosen))
                for name in MEASURES
            }
            failed = sum(row["status"] not in SOLVED for row in chosen)
            head = key | {"manifold": "median", "samples": samples}
            yield head | medians | {"failed": failed, "rows": len(chosen)}


def _groups(rows: list[dict], names: tuple[str, ...]) -> Iterator[tuple[dict, list[dict]]]:
    """The rows that share the values of some keys, with these values, in order."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    for values, members in groups.items():
        yield dict(zip(names, values, strict=True)), members


if __name__ == "__main__":
    main()
