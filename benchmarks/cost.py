"""Cost of one evaluation, in forward passes of the same network over the same points.

    python benchmarks/cost.py [--models shipped sd15 sdxl flux ...] [--device cuda]
        [--dtypes float32] [--points 17] [--quadrature 2] [--chunks N ...] [--compile] [--repeats 5]

For each model and dtype, there is one row for each of these:

    forward               the network alone, once per point
    energy, gradient      an evaluation of the tangent-normal energy and its gradient by chords
    in chunks of N        the same evaluation with `max_batch_size=N`, which needs less memory
    J v                   one forward-mode product per point
    J v, 4 tangents       four products at one point under vmap, relative to one forward pass there
    forward-mode energy   the papers' energy by products at midpoints, and its gradient
    ..., compiled         with torch.compile

Columns:

    seconds     the least time of the repeats
    forwards    time over the time of forward passes at as many points
    work        floating-point operations over those of the forward passes (None when compiled)
    TFLOP/s     rate of the network alone, only for "forward"
    share       that rate over the rate of a square matrix product on this device in this dtype
    first call  seconds of the first call, which includes compiling

The end points are embedded once per solve and are not counted. Full-size networks, except Stable
Diffusion 1.5 on a GPU, have 2 points between the end points, and only forward passes and gradients
are timed. Names of models are those of `architectures.py`.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator

import frame
import torch
from architectures import ARCHITECTURES, NAMES, ByProducts, compiled, score_of
from device import is_gpu, least_seconds, matrix_rate
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from riemannian_diffusion import Metric, ScoreModel, TangentNormalMetric, smooth
from riemannian_diffusion.batches import free_memory
from riemannian_diffusion.geodesics.progress import NUM_QUADRATURE
from riemannian_diffusion.score.network import NetworkScore

NUM_TANGENTS = 4
ONE = "forward, one point"
FEW = ("forward", "energy, gradient", "forward, compiled", "energy, gradient, compiled")


def products(score: ScoreModel, x: Tensor, tangents: Tensor) -> Tensor:
    """The Jacobian's products with several tangents `(T, *shape)` at one point."""
    return torch.func.vmap(lambda v: score.jvp(x[None], v[None])[0])(tangents)


def evaluation(metric: Metric, path: Tensor) -> Callable[[], object]:
    """An evaluation of the energy and its gradient, as in a solve after its first evaluation."""
    ends: dict = {}
    metric.energies([path[[0, -1]]], differentiate=False, ends=ends)  # embeds the ends
    return lambda: metric.energies([path], differentiate=True, ends=ends)


def num_flops(function: Callable[[], object]) -> int:
    """Floating-point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def random_path(
    shape: tuple[int, ...], num_points: int, num_quadrature: int, args: argparse.Namespace
) -> Tensor:
    """Points on the smooth curve through random points, as a solve evaluates them."""
    generator = torch.Generator().manual_seed(args.seed)
    knots = torch.randn(num_points, *shape, generator=generator).to(args.device)
    return smooth(knots, num_quadrature)


def rows_of(
    name: str, score: NetworkScore, path: Tensor, sizes: list[int], compile: bool
) -> dict[str, tuple[Callable[[], object], int]]:
    """Functions to time for a model, each with the number of its points."""
    tangents = path[:NUM_TANGENTS]
    num, inner = len(path), len(path) - 2

    def alone(model: NetworkScore, num_points: int = num) -> Callable[[], object]:
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
        fast = compiled(name, score)
        metric = TangentNormalMetric(fast)
        rows["forward, compiled"] = (alone(fast), num)
        rows["energy, gradient, compiled"] = (evaluation(metric, path), inner)
    return rows


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure the costs; return the rows."""
    parser = frame.parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=NAMES, default=["shipped"], metavar="NAME")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--points", type=int, help="default: 17; 4 for full-size models")
    parser.add_argument("--quadrature", type=int, help="default: 2; 1 for full-size models")
    parser.add_argument("--chunks", type=int, nargs="+", default=[])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Rows with the costs of every model in every dtype."""
    for name in args.models:
        for dtype in args.dtypes:
            yield from costs_of(name, dtype, args)
            free_memory()


def costs_of(name: str, dtype: str, args: argparse.Namespace) -> Iterator[dict]:
    """Rows with the costs of one model in one dtype."""
    is_large = name in ARCHITECTURES and not (is_gpu(args.device) and name == "sd15")
    num_points = args.points or (4 if is_large else 17)
    num_quadrature = args.quadrature or (1 if is_large else NUM_QUADRATURE)
    if (num_points - 1) * num_quadrature < 2:
        raise SystemExit("There is no point between the ends: give --points 3 or more.")
    options = {"device": args.device, "dtype": getattr(torch, dtype), "seed": args.seed}
    score, shape = score_of(name, **options)
    rate = matrix_rate(getattr(torch, dtype), args.device)
    path = random_path(shape, num_points, num_quadrature, args)
    rows = rows_of(name, score, path, args.chunks, args.compile)
    if is_large:
        rows = {label: row for label, row in rows.items() if label in FEW or "chunks" in label}
    per_point = {}  # seconds and floating-point operations of a forward pass
    for label, (function, num) in rows.items():
        is_compiled = label.endswith("compiled")
        start = time.perf_counter()
        flops = None if is_compiled else num_flops(function)
        if is_compiled:
            function()
        first = time.perf_counter() - start
        seconds = least_seconds(function, args.repeats, args.device)
        if label in ("forward", ONE):
            per_point[label] = seconds / num, flops / num
        base = per_point[ONE if label.endswith("tangents") else "forward"]
        speed = flops / seconds / 1e12 if label == "forward" else None
        yield {
            "model": name,
            "dtype": dtype,
            "points": num,
            "row": label,
            "seconds": seconds,
            "forwards": seconds / (num * base[0]),
            "work": None if is_compiled else flops / (num * base[1]),
            "TFLOP/s": speed,
            "share": speed and speed / rate,
            "first call": first if is_compiled else None,
        }


if __name__ == "__main__":
    main()
