"""The library's default and the published recipes: what each costs, and how good its paths are.

    python benchmarks/peers.py [--manifolds C-shape helix ...] [--only manifolds|pair]
        [--num-points 17] [--work FOLDER]

On manifolds whose geodesics are known, the scores are exact. Methods of the space "clean" read the
score at noise 0.1 at clean points, and start from a straight line. Methods of the space "noise"
work between ends that are inverted to 0.6 of 50 steps, and their points are sampled back. The
recipes are 500 steps of Adam from 1e-3 to 1e-4 with one chord for each segment. A recipe returns
the optimiser's own points. Columns:

    passes          point-passes: 1 for a point at which the network is evaluated, 2.1 for a point
                    through which it is also differentiated; with inversion and sampling
    error           root mean square distance of the points to the true geodesic at equal fractions
    re-paced        the same after the points are spread evenly along the path
    largest step    largest step over the even step of the true geodesic
    energy          energy of the smooth curve through the points under the default metric, by so
                    many chords that doubling them changes it by less than 1 %; None if the path
                    lies elsewhere
    energy / ours   that energy over the energy of the default's path

Rows with "manifolds" sum up all manifolds: the number on which a peer's error or largest step is
below the default's, and medians of its ratios to the default. Rows with "public" compare our
version of the score Jacobian's recipe (17 points, 500 steps, clean space) with figures from public
code. The definitions behind those figures are not public: shapes, ends and noise may differ. So
the ratios show whether both fail in the same way and to the same extent, not that both programs
are equal.

The last rows are morphs of the shipped pair with the shipped model, between the same inverted ends.
"energy" is that of the points, and "largest step" is the largest over the mean of the steps between
frames, root mean square over pixels. "Stein, own ends" gives both clean images the same noise
instead.

`--work` keeps each row, so a run that was stopped goes on. Use a new folder after a change of code.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import frame
import torch
from geometries import measures_of
from learned import exact_levels, timestep_of
from methods import (
    METHODS,
    RECIPE,
    Case,
    Count,
    Found,
    Method,
    count_passes,
    solve_clean,
    solved,
    stein,
)
from PIL import Image
from problems import SIGMA, Problem, benchmark_problems, helix, sphere, trefoil
from reproduce import RECIPES, noised, solve_as_published
from torch import Tensor

from riemannian_diffusion import (
    Metric,
    ScoreJacobianMetric,
    SteinScoreMetric,
    TangentNormalMetric,
    demo,
    smooth,
)
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline, Keyframes, MorphPath

OURS = "ours"
PUBLISHED = partial(dict, even=False, **RECIPE)
SETTLED, FINEST = 0.01, 96  # relative change of a settled energy; largest number of chords
PUBLIC = {  # error and largest step, from public code
    "helix": (0.168, 1.59),
    "trefoil": (0.109, 2.54),
    "2-sphere in R^10": (0.115, 2.03),
    "flat torus in R^6": (0.081, 1.57),
}


@dataclass(frozen=True)
class Peer:
    """A method of the table: its name, its space, and how it finds a path.

    Attributes:
        name: Name in the table.
        space: "noise" or "clean".
        find: The method.
        elsewhere: Whether its points lie in another space than the default's.
    """

    name: str
    space: str
    find: Method
    elsewhere: bool = False


PEERS = (
    Peer(OURS, "clean", lambda c: solve_clean(c, TangentNormalMetric)),
    Peer("Stein", "clean", lambda c: solve_clean(c, SteinScoreMetric, **PUBLISHED())),
    Peer("score Jacobian", "clean", lambda c: solve_clean(c, ScoreJacobianMetric, **PUBLISHED())),
    Peer(OURS, "noise", METHODS["tangent_normal"]),
    Peer("Stein", "noise", partial(stein, **PUBLISHED()), elsewhere=True),
    Peer("score Jacobian", "noise", solved(ScoreJacobianMetric, **PUBLISHED())),
    Peer("density", "noise", METHODS["density"]),
    Peer("split", "noise", METHODS["split"]),
    Peer("slerp", "noise", METHODS["slerp"]),
)


def all_manifolds() -> list[Problem]:
    """The manifolds with public figures that are missing elsewhere, and those of the benchmark."""
    return [helix(), trefoil(), sphere(10, shift=1.0), *benchmark_problems()]


@torch.no_grad()
def energy_of(metric: Metric, path: Tensor) -> float:
    """The energy of a path on a sampling that is fine enough."""
    factor, before = 3, float(metric.energy(smooth(path, 3)).sum())
    while True:
        factor *= 2
        energy = float(metric.energy(smooth(path, factor)).sum())
        if abs(energy - before) <= SETTLED * energy or factor >= FINEST:
            return energy
        before = energy


def on_manifold(problem: Problem, peer: Peer, num_points: int, seed: int) -> dict:
    """The measures of one method on one manifold."""
    count = Count()
    case = Case(
        exact_levels(problem, count),
        problem.x0,
        problem.x1,
        num_frames=num_points,
        metric_timestep=timestep_of(SIGMA),
        draw_timesteps=(),
        num_noises=0,
        generator=torch.Generator().manual_seed(seed),
    )
    found: Found = peer.find(case)
    spent = {"passes": count.passes, "points": count.points, "with gradient": count.with_gradient}
    measures, energy = measures_of(problem, found.path.double()), None
    if not peer.elsewhere:
        noise = case.levels(max(case.timesteps))
        score = noise if peer.space == "noise" else case.clean_score(case.metric_timestep)
        nodes = found.path if found.nodes is None else found.nodes
        energy = energy_of(TangentNormalMetric(score), nodes)
    return spent | {
        "error": measures["own pace"],
        "re-paced": measures["error"],
        "largest step": measures["jump"],
        "energy": energy,
        "status": found.status,
    }


def of_manifolds(args: argparse.Namespace) -> Iterator[dict]:
    """One row for each manifold and method, then their sums and the public figures."""
    rows = []
    for problem in all_manifolds():
        if problem.name not in args.manifolds:
            continue
        ours = {}
        for peer in PEERS:
            key = {"manifold": problem.name, "space": peer.space, "method": peer.name}
            file = args.work and args.work / f"{' '.join(key.values())}, {args.num_points}.json"
            make = partial(on_manifold, problem, peer, args.num_points, args.seed)
            found = frame.kept(file, make)
            if peer.name == OURS:
                ours[peer.space] = found["energy"]
            over = found["energy"] and found["energy"] / ours[peer.space]
            status = found.pop("status")
            rows.append(key | found | {"energy / ours": over, "status": status})
            yield rows[-1]
    yield from sums_of(rows)
    if args.num_points == 17:
        yield from checks_of(rows)


def sums_of(rows: list[dict]) -> Iterator[dict]:
    """For each method, how often it beats the default of its space, and medians of its ratios."""
    for peer in PEERS:
        pairs = [
            (row, ours)
            for row in rows
            for ours in rows
            if (row["space"], row["method"]) == (peer.space, peer.name)
            and (ours["space"], ours["method"]) == (peer.space, OURS)
            and row["manifold"] == ours["manifold"]
        ]
        over = [row["energy / ours"] for row, _ in pairs if row["energy / ours"]]

        def ratio(name: str, pairs: list = pairs) -> float:
            return median(row[name] / max(ours[name], 1e-12) for row, ours in pairs)

        def wins(name: str, pairs: list = pairs) -> int:
            return sum(row[name] < ours[name] for row, ours in pairs)

        yield {
            "space": peer.space,
            "method": peer.name,
            "manifolds": len(pairs),
            "passes": median(row["passes"] for row, _ in pairs),
            "error": median(row["error"] for row, _ in pairs),
            "largest step": median(row["largest step"] for row, _ in pairs),
            "passes / ours": ratio("passes"),
            "error / ours": ratio("error"),
            "energy / ours": median(over) if over else None,
            "smaller error": wins("error"),
            "smaller re-paced": wins("re-paced"),
            "smaller step": wins("largest step"),
            "fewer passes": wins("passes"),
        }


def checks_of(rows: list[dict]) -> Iterator[dict]:
    """Our version of the recipe next to figures from public code."""
    for row in rows:
        known = PUBLIC.get(row["manifold"])
        if known and (row["space"], row["method"]) == ("clean", "score Jacobian"):
            yield {
                "public": row["manifold"],
                "error": row["error"],
                "public error": known[0],
                "error / public": row["error"] / known[0],
                "largest step": row["largest step"],
                "public step": known[1],
                "step / public": row["largest step"] / known[1],
            }


def of_the_pair(args: argparse.Namespace) -> Iterator[dict]:
    """One row for each method on the shipped pair."""
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path()).to(args.device)
    images = [Image.open(path).convert("RGB") for path in demo.endpoint_paths()]
    count = count_passes(pipe.network)
    options = {"num_frames": args.num_points}

    def published(name: str, keys: Keyframes) -> MorphPath:
        return solve_as_published(pipe, keys, RECIPES[name], options)

    def curve(name: str, keys: Keyframes) -> MorphPath:
        generator = torch.Generator().manual_seed(args.seed)
        mode = {"score_mode": "conditional"}  # there are no prompts to compare
        return pipe.solve(keys, name, generator=generator, **mode, **options)

    def same_noise() -> Keyframes:
        generator = torch.Generator().manual_seed(args.seed)
        return noised(pipe.invert(images, generator=generator, **RECIPES["stein"].ends))

    both: Callable[[], Keyframes] = partial(pipe.invert, images)
    methods: dict[str, tuple[Callable[[], Keyframes], Callable[[Keyframes], MorphPath]]] = {
        OURS: (both, lambda keys: pipe.solve(keys, **options)),
        "Stein": (both, partial(published, "stein")),
        "Stein, own ends": (same_noise, partial(published, "stein")),
        "score Jacobian": (both, partial(published, "score_jacobian")),
        "density": (both, partial(curve, "density")),
        "split": (both, partial(curve, "split")),
        "slerp": (both, partial(curve, "slerp")),
    }

    def measured(name: str) -> dict:
        make_ends, find = methods[name]
        spent, points = {}, {}
        for stage in ("inversion", "path", "sampling"):
            count.reset()
            if stage == "inversion":
                keys = make_ends()
            elif stage == "path":
                path = find(keys)
                points = {"points": count.points, "with gradient": count.with_gradient}
            else:
                path = pipe.sample(path)
            spent[stage] = count.passes
        energy = None
        if make_ends is both:
            metric = TangentNormalMetric(keys.levels(keys.levels.schedule.timesteps[0]))
            solve = path.geodesics[0]
            nodes = path.points if solve is None else solve.nodes
            energy = energy_of(metric, nodes)
        frames = pipe.render(path, output_type="pt").frames
        steps = (frames[1:] - frames[:-1]).flatten(1).square().mean(1).sqrt()
        return {
            "passes": sum(spent.values()),
            **spent,
            **points,
            "energy": energy,
            "largest step": float(steps.max() / steps.mean()),
        }

    ours = None
    for name in methods:
        file = args.work and args.work / f"shipped pair {name}, {args.num_points}.json"
        found = frame.kept(file, partial(measured, name))
        ours = ours or found["energy"]
        over = found["energy"] and found["energy"] / ours
        yield {"pair": "shipped", "method": name} | found | {"energy / ours": over}


def main(argv: list[str] | None = None) -> list[dict]:
    """Compare the methods; return the rows."""
    names = [problem.name for problem in all_manifolds()]
    parser = frame.parser(__doc__)
    parser.add_argument("--only", choices=("manifolds", "pair"), help="default: both")
    parser.add_argument("--manifolds", nargs="+", choices=names, metavar="NAME", default=names)
    parser.add_argument("--num-points", type=int, default=17)
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="folder that keeps the rows")
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Rows of the manifolds and of the shipped pair."""
    if args.only != "pair":
        yield from of_manifolds(args)
    if args.only != "manifolds":
        yield from of_the_pair(args)


if __name__ == "__main__":
    main()
