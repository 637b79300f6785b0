"""A figure of a metric: paths, energies, speeds and a spectrum.

    python examples/gallery.py --output gallery.png

The data are a circle in the plane and a 2-sphere in R^100. Their scores are exact.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from riemannian_diffusion import (
    Adam,
    GaussianMixtureScore,
    Iterate,
    PathLBFGS,
    Solver,
    TangentNormalMetric,
    geodesic,
    intrinsic_dimension,
    lerp,
    tangent_spectrum,
)
from riemannian_diffusion.plotting import plot_energy, plot_plane, plot_spectrum, plot_speed


def main(argv: list[str] | None = None) -> None:
    """Draw the figure."""
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("gallery.png"))
    parser.add_argument("--max-evals", type=int, default=150)
    args = parser.parse_args(argv)
    angles = torch.linspace(0, 2 * math.pi, 201, dtype=torch.float64)[:-1]
    score = GaussianMixtureScore(torch.stack([angles.cos(), angles.sin()], 1), 0.15)
    metric = TangentNormalMetric(score, normal_weight=100.0)
    x0, x1 = torch.tensor([[1.0, 0.0], [-0.55, 0.835]], dtype=torch.float64)

    def solve(solver: Solver) -> list[Iterate]:
        iterates: list[Iterate] = []
        options = {"init": "lerp", "rtol": 0.0, "max_evals": args.max_evals}
        geodesic(metric, x0, x1, solver=solver, callback=iterates.append, **options)
        return iterates

    solves = {
        "path L-BFGS": solve(PathLBFGS()),
        "plain L-BFGS": solve(PathLBFGS(precondition=False, coarse_first=False)),
        "Adam, rate 1e-2": solve(Adam(1e-2, 1e-3)),
    }
    paths = {"straight line": lerp(x0, x1, 17), "geodesic": solves["path L-BFGS"][-1].path}

    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(100, 3, generator=generator, dtype=torch.float64))[0]
    points = torch.randn(20000, 3, generator=generator, dtype=torch.float64)
    sphere = GaussianMixtureScore(points / points.norm(dim=1, keepdim=True) @ basis.T, 0.1)
    x = sphere.means[:1]
    (dimension,) = intrinsic_dimension(sphere, x, max_dim=12).dimension.tolist()

    figure = Figure(figsize=(11, 10), layout="constrained")
    (plane, energy), (pace, spectrum) = figure.subplots(2, 2)
    plot_plane(plane, paths, log_prob=score.log_prob, metric=metric)
    plot_energy(energy, solves)
    plot_speed(pace, paths, metric)
    plot_spectrum(spectrum, tangent_spectrum(sphere, x, 12).values[0], dimension)
    plane.set_title("density, metric and paths")
    spectrum.set_title(f"a 2-sphere in R^100: dimension {dimension}")
    part = args.output.with_name(f".part-{args.output.name}")
    figure.savefig(part, dpi=80, format=args.output.suffix[1:] or "png")
    part.replace(args.output)


if __name__ == "__main__":
    main()
