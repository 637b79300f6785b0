"""Geodesics on manifolds known in closed form: which metric finds them, and how well.

    python benchmarks/synthetic.py

For each manifold and metric, from a straight start with the default solver: mean and largest
distance of the path to the manifold, its flat length over the true geodesic's, the coefficient of
variation of its flat speed, the energy on the finer sampling over the optimised one, the lower
bound over the finer energy, evaluations and status.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from machine import describe

from riemannian_diffusion import (
    PathLBFGS,
    ScoreJacobianMetric,
    SteinScoreMetric,
    TangentNormalMetric,
    geodesic,
    length,
    lerp,
    slerp,
    speed,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from problems import Problem, all_problems  # noqa: E402

METRICS = {
    "tangent-normal": TangentNormalMetric,
    "score Jacobian": ScoreJacobianMetric,
    "Stein, lam 1000": SteinScoreMetric,
    "Stein, full gradient": lambda score: SteinScoreMetric(score, detach_score=False),
}


def measure(problem: Problem, path) -> str:
    """Distances to the manifold, length ratio and variation of speed of one path."""
    distance, pace = problem.distance(path), speed(path)
    return (
        f"{distance.mean():8.4f} {distance.max():8.4f} {float(length(path)) / problem.length:8.3f} "
        f"{float(pace.std(correction=0) / pace.mean()):8.3f}"
    )


def main(argv: list[str] | None = None) -> None:
    """Print one table per manifold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-points", type=int, default=17)
    args = parser.parse_args(argv)
    print(describe())
    for problem in all_problems():
        print(f"\n{problem.name}, geodesic of length {problem.length:.3f}, sigma 0.1")
        print(f"{'':22s} {'mean d':>8s} {'max d':>8s} {'len/true':>8s} {'cv speed':>8s}", end=" ")
        print(f"{'fine/opt':>8s} {'bound':>6s} {'evals':>5s} status")
        for name, curve in (("lerp", lerp), ("slerp", slerp)):
            print(f"{name:22s} {measure(problem, curve(problem.x0, problem.x1, args.num_points))}")
        for name, metric in METRICS.items():
            found = geodesic(
                metric(problem.score),
                problem.x0,
                problem.x1,
                num_points=args.num_points,
                init="lerp",
                solver=PathLBFGS(),
            )
            print(
                f"{name:22s} {measure(problem, found.path)} "
                f"{found.energy / found.energy_history[-1]:8.3f} "
                f"{found.lower_bound / found.energy:6.2f} {found.num_evals:5d} {found.status}"
            )


if __name__ == "__main__":
    main()
