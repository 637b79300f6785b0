"""What one evaluation costs, in forward passes of the same network over the same points.

    python benchmarks/cost.py [--models shipped sd15 sdxl] [--device cuda] [--dtypes float32]
        [--points 17] [--quadrature 3] [--chunks N ...] [--compile] [--repeats 5]

One line per model and dtype for each of:

    forward               the network alone, once per point, as fused as it comes
    energy, gradient      an evaluation of the tangent-normal energy and its gradient by chords
    in chunks of N        the same with `max_batch_size=N`: less memory
    J v                   one forward-mode product per point
    J v, 4 tangents       at one point under vmap, in forward passes of that point alone
    forward-mode energy   the papers' energy by products at midpoints, and its gradient
    ..., compiled         with torch.compile, and what compiling took

Columns: seconds (the least of the repeats), the ratio to the forward passes, TFLOP/s of the network
alone and its share of the rate of a square matrix product on this device in the same dtype. End
points are embedded once per solve and not counted. On a CPU the full architectures are given 2
points between the ends, and only forward passes and gradients are timed.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
from architectures import NAMES, ByProducts, score_of
from machine import describe
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from riemannian_diffusion import DiffusionScore, Metric, TangentNormalMetric, refine

NUM_TANGENTS = 4
ONE = "forward, one point"


def least_seconds(function: Callable[[], object], repeats: int, device: str) -> float:
    """The least time of several runs, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def matrix_rate(dtype: torch.dtype, device: str) -> float:
    """TFLOP/s of a square matrix product."""
    size = 8192 if device.startswith("cuda") else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / least_seconds(lambda: a @ a, 5, device) / 1e12


def products(score: DiffusionScore, x: Tensor, tangents: Tensor) -> Tensor:
    """The Jacobian's products with several tangents `(T, *shape)` at one point."""
    return torch.func.vmap(lambda v: score.jvp(x[None], v[None])[0])(tangents)


def evaluation(metric: Metric, path: Tensor) -> Callable[[], object]:
    """An evaluation of the energy and its gradient, as in a solve that is under way."""
    ends: dict = {}
    return lambda: metric.energies([path], differentiate=True, ends=ends)


def rows_of(
    score: DiffusionScore,
    shape: tuple[int, ...],
    num_points: int,
    num_quadrature: int,
    sizes: list[int],
    compile: bool,
) -> dict[str, tuple[Callable[[], object], int]]:
    """What is timed, and over how many points."""
    generator = torch.Generator().manual_seed(0)
    device = next(score.model.parameters()).device
    knots = torch.randn(num_points, *shape, generator=generator).to(device)
    path = refine(knots, num_quadrature)
    tangents = torch.randn(NUM_TANGENTS, *shape, generator=generator).to(device)
    num, inner = len(path), len(path) - 2

    def alone(model: DiffusionScore, num_points: int = num) -> Callable[[], object]:
        def forward() -> Tensor:
            with torch.no_grad():
                return model(path[:num_points])

        return forward

    rows = {
        "forward": (alone(score), num),
        "energy, gradient": (evaluation(TangentNormalMetric(score), path), inner),
    }
    for size in sizes or [max(1, num // 8)]:
        chunked = copy.copy(score)
        chunked.max_batch_size = size
        rows[f"in chunks of {size}"] = (evaluation(TangentNormalMetric(chunked), path), inner)
    rows |= {
        "J v": (lambda: score.jvp(path, path), num),
        ONE: (alone(score, 1), 1),
        f"J v, {NUM_TANGENTS} tangents": (lambda: products(score, path[0], tangents), 1),
        "forward-mode energy": (evaluation(ByProducts(score), path), num - 1),
    }
    if compile:
        compiled = copy.copy(score)
        compiled.model = torch.compile(score.model)
        metric = TangentNormalMetric(compiled)
        rows["forward, compiled"] = (alone(compiled), num)
        rows["energy, gradient, compiled"] = (evaluation(metric, path), inner)
    return rows


def main(argv: list[str] | None = None) -> dict[tuple[str, str, str], float]:
    """Print the tables; returns the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=NAMES, default=["shipped"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--points", type=int, help="default: 17, or 4 of a full one on a CPU")
    parser.add_argument("--quadrature", type=int, help="default: 3, or 1 of a full one on a CPU")
    parser.add_argument("--chunks", type=int, nargs="+", default=[])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    print(describe(args.device))
    ratios = {}
    for name in args.models:
        small = args.device == "cpu" and name != "shipped"
        num_points = args.points or (4 if small else 17)
        num_quadrature = args.quadrature or (1 if small else 3)
        for dtype in args.dtypes:
            score, shape = score_of(name, device=args.device, dtype=getattr(torch, dtype))
            rate = matrix_rate(getattr(torch, dtype), args.device)
            rows = rows_of(*(score, shape, num_points, num_quadrature), args.chunks, args.compile)
            if small:
                rows = dict(list(rows.items())[:3])
            with FlopCounterMode(display=False) as counter:
                rows["forward"][0]()
            tera = counter.get_total_flops() / 1e12
            print(f"\n{name}, {dtype}, points of {shape}: {rows['forward'][1]} points", end="")
            print(f", {tera:.3f} TFLOP; matrix products run at {rate:.3g} TFLOP/s")
            print(f"{'':32s}{'s':>10s}{'forwards':>10s}{'TFLOP/s':>10s}{'share':>8s}")
            per_point = {}
            for label, (function, num) in rows.items():
                start = time.perf_counter()
                function()
                first = time.perf_counter() - start
                seconds = least_seconds(function, args.repeats, args.device)
                if label in ("forward", ONE):
                    per_point[label] = seconds / num
                base = per_point[ONE if label.endswith("tangents") else "forward"]
                ratios[name, dtype, label] = ratio = seconds / (num * base)
                line = f"{label:32s}{seconds:10.3f}{ratio:10.2f}"
                if label == "forward":
                    line += f"{tera / seconds:10.3g}{tera / seconds / rate:8.2f}"
                if label.endswith("compiled"):
                    line += f"   the first call {first:.0f} s"
                print(line, flush=True)
            del score, rows
    return ratios


if __name__ == "__main__":
    main()
