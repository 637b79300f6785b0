"""Accuracy of energies and gradients from networks in narrow dtypes, compared with float64.

    python benchmarks/precision.py [--model shipped|sd15|...] [--device cuda] [--points 9 17 33]
        [--dtypes float32 bfloat16 float16] [--size N] [--no-solve]

The path is a great circle between two random latents at timestep 581, with 2 chords per
segment. Chords are differences of neighbouring points. They shrink if the points become denser,
while the rounding of the network stays the same. The points, the chords and the sums are float32
(float64 for the reference). Only the network changes its dtype. "tf32" is float32 with
TensorFloat-32 products (on CUDA). There is one row per dtype and number of points, with these
columns:

    resolved  root mean square chord over the rounding error of the values that are subtracted;
              `geodesic` refuses less than 2
    chords    root mean square error of the chords over the root mean square chord
    energy    relative error of the energy
    gradient  norm of the gradient's error over its norm
    angle     angle between the gradient and the exact one, in degrees
    across    angle between both gradients after the solver's preconditioner (inverse second
              differences), in degrees
    solved    exact energy of the geodesic found with this network over the energy of the geodesic
              found in float64, minus 1 (None with --no-solve)
    evals     evaluations of that solve
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager

import frame
import torch
from architectures import NAMES, score_of
from torch import Tensor

from riemannian_diffusion import Geodesic, TangentNormalMetric, geodesic, slerp, smooth
from riemannian_diffusion.geodesics.progress import NUM_QUADRATURE
from riemannian_diffusion.paths import solve_second_difference


@contextmanager
def products_in_tf32(wanted: bool) -> Iterator[None]:
    """Switch TensorFloat-32 in matrix products and convolutions on or off."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = wanted
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def evaluate(metric: TangentNormalMetric, path: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Chords, energy and gradient at the inner points, in float64, and the chords' resolution."""
    path = path.detach().requires_grad_()
    fine = smooth(path, NUM_QUADRATURE)
    (answer,) = metric.energies([fine.detach()], differentiate=True)
    with torch.no_grad():
        embedded = metric.embed(fine)
    chords = (embedded[1:] - embedded[:-1]).flatten(1)
    (gradient,) = torch.autograd.grad(fine, path, answer.gradient)
    values = chords, answer.segments.sum(), gradient[1:-1].flatten(1)
    return *(value.detach().cpu().double() for value in values), answer.resolution


def true_energy(exact: TangentNormalMetric, found: Geodesic) -> float:
    """The exact energy of a geodesic on twice as many chords as elsewhere."""
    with torch.no_grad():
        return float(exact.energy(smooth(found.nodes.double(), 2 * NUM_QUADRATURE)).sum())


def angle(a: Tensor, b: Tensor) -> float:
    """Angle between two tensors, in degrees."""
    cosine = (a * b).sum() / (a.norm() * b.norm())
    return math.degrees(math.acos(min(1.0, float(cosine))))


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure all errors; return the rows."""
    parser = frame.parser(__doc__)
    parser.add_argument("--model", choices=NAMES, default="shipped", metavar="NAME")
    parser.add_argument("--points", type=int, nargs="+", default=[9, 17, 33])
    parser.add_argument("--dtypes", nargs="+", help="default: all that the device has")
    parser.add_argument("--size", type=int, help="side of the latents")
    parser.add_argument("--max-batch-size", type=int, default=16)
    parser.add_argument("--no-solve", action="store_true")
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Errors of every dtype and number of points."""
    dtypes = args.dtypes or ["float32", "bfloat16", "float16"]
    if args.dtypes is None and args.device.startswith("cuda"):
        dtypes.insert(1, "tf32")
    options = {"device": args.device, "max_batch_size": args.max_batch_size, "size": args.size}
    options |= {"seed": args.seed, "drawn_in": torch.float32}  # the same weights in all dtypes

    def metric_in(dtype: torch.dtype) -> tuple[TangentNormalMetric, tuple[int, ...]]:
        score, shape = score_of(args.model, dtype=dtype, **options)
        return TangentNormalMetric(score), shape

    exact, shape = metric_in(torch.float64)
    generator = torch.Generator().manual_seed(args.seed)
    ends = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(args.device)
    truths = {num: evaluate(exact, slerp(*ends, num)) for num in args.points}
    goals = {}
    if not args.no_solve:
        goals = {
            num: true_energy(exact, geodesic(exact, *ends, num_points=num)) for num in args.points
        }
    for name in dtypes:
        dtype = torch.float32 if name == "tf32" else getattr(torch, name)
        metric, _ = metric_in(dtype)
        for num, (chords, energy, gradient, _) in truths.items():
            with products_in_tf32(name == "tf32"):
                found = evaluate(metric, slerp(*ends, num).float())
            row = {
                "model": args.model,
                "network": name,
                "points": num,
                "resolved": found[3],
                "chords": float((found[0] - chords).norm() / chords.norm()),
                "energy": float(found[1] / energy - 1),
                "gradient": float((found[2] - gradient).norm() / gradient.norm()),
                "angle": angle(found[2], gradient),
                "across": angle(*map(solve_second_difference, (found[2], gradient))),
                "solved": None,
                "evals": None,
            }
            if goals:
                with products_in_tf32(name == "tf32"):
                    solution = geodesic(metric, *ends.float(), num_points=num)
                row["solved"] = true_energy(exact, solution) / goals[num] - 1
                row["evals"] = solution.num_evals
            yield row
        del metric


if __name__ == "__main__":
    main()
