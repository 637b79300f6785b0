"""Peak memory of an energy and its gradient, without the memory of the weights.

    python benchmarks/memory.py [--model shipped|sd15|sdxl|flux|...] [--device cuda]
        [--dtype float32] [--points 5 9 17 33] [--max-batch-sizes 0 4 1] [--checkpointing]
        [--size N]

The energy is the tangent-normal energy with 2 chords per segment. There is one row per
`max_batch_size` (0 means no limit) and number of points. "batch" is the largest batch that memory
was enough for, and GiB is the peak of the memory that torch allocated on CUDA, or that the process
used on a CPU, where a separate process measures each row. Both are None if memory was not enough
for one point. `--checkpointing` repeats all rows with the gradient checkpointing of the network.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass

import frame
import torch
from architectures import NAMES, score_of
from device import forget_peak, is_gpu, peak_gib, used_gib

from riemannian_diffusion import TangentNormalMetric, slerp, smooth
from riemannian_diffusion.batches import free_memory, is_out_of_memory
from riemannian_diffusion.geodesics.progress import NUM_QUADRATURE


@dataclass(frozen=True)
class Case:
    """What one row measures: arguments of `score_of`, and of the path."""

    model: str
    device: str
    dtype: str
    num_points: int
    max_batch_size: int
    checkpointing: bool
    size: int | None
    seed: int


def peak(case: Case) -> tuple[int | None, float | None]:
    """Largest batch, and peak memory without the weights in GiB."""
    score, shape = score_of(
        case.model,
        device=case.device,
        dtype=getattr(torch, case.dtype),
        max_batch_size=case.max_batch_size or None,
        size=case.size,
        seed=case.seed,
    )
    if case.checkpointing:
        score.network.enable_gradient_checkpointing()
    generator = torch.Generator().manual_seed(case.seed)
    ends = torch.randn(2, *shape, generator=generator).to(case.device)
    path = smooth(slerp(*ends, case.num_points), NUM_QUADRATURE)
    free_memory()  # of the case before
    forget_peak(case.device)
    before = used_gib(case.device)
    try:
        TangentNormalMetric(score).energies([path], differentiate=True)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None, None
    return score.points_at_once(path), peak_gib(case.device) - before


def peak_apart(case: Case) -> tuple[int | None, float | None]:
    """What `peak` returns in a process of its own: on a CPU, the peak is that of the process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak, (case,))


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure the memory; return the rows."""
    parser = frame.parser(__doc__)
    parser.add_argument("--model", choices=NAMES, default="shipped", metavar="NAME")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--points", type=int, nargs="+", default=[5, 9, 17, 33])
    parser.add_argument("--max-batch-sizes", type=int, nargs="+", default=[0, 4, 1])
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--size", type=int, help="side of the latents")
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Peak memory of every case."""
    measured = peak if is_gpu(args.device) else peak_apart
    for checkpointing in (False, True) if args.checkpointing else (False,):
        for size in args.max_batch_sizes:
            for num in args.points:
                case = Case(
                    *(args.model, args.device, args.dtype, num, size),
                    *(checkpointing, args.size, args.seed),
                )
                batch, found = measured(case)
                yield {
                    "model": args.model,
                    "dtype": args.dtype,
                    "checkpointing": checkpointing,
                    "max_batch_size": size,
                    "points": num,
                    "batch": batch,
                    "GiB": found,
                }


if __name__ == "__main__":
    main()
