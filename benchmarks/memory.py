"""Peak memory of an energy and its gradient, without the memory of the weights.

    python benchmarks/memory.py [--model shipped|sd15|sdxl|flux|...] [--device cuda]
        [--dtype float32] [--points 5 9 17 33] [--max-batch-sizes 0 4 1] [--checkpointing]
        [--size N]

The energy is the tangent-normal energy with 3 sub-chords per segment. There is one row per
`max_batch_size` (0 means no limit) and number of points. A separate process measures each row. GiB
is the peak of the memory that torch allocated on CUDA, or that the process used on a CPU.
`--checkpointing` repeats all rows with the gradient checkpointing of the network.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator

import frame
import torch
from architectures import NAMES, score_of
from device import forget_peak, peak_gib, used_gib

from riemannian_diffusion import TangentNormalMetric, refine, slerp

NUM_QUADRATURE = 3


def peak(arguments: tuple) -> float:
    """Peak memory of one case without the weights, in GiB."""
    model, device, dtype, num_points, max_batch_size, checkpointing, size, seed = arguments
    score, shape = score_of(
        *(model,),
        device=device,
        dtype=getattr(torch, dtype),
        max_batch_size=max_batch_size or None,
        size=size,
        seed=seed,
    )
    if checkpointing:
        score.network.enable_gradient_checkpointing()
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randn(2, *shape, generator=generator).to(device)
    path = refine(slerp(*ends, num_points), NUM_QUADRATURE)
    metric = TangentNormalMetric(score)
    forget_peak(device)
    before = used_gib(device)
    metric.energies([path], differentiate=True)
    return peak_gib(device) - before


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
    context = multiprocessing.get_context("spawn")
    for checkpointing in (False, True) if args.checkpointing else (False,):
        for size in args.max_batch_sizes:
            for num in args.points:
                case = args.model, args.device, args.dtype, num, size, checkpointing
                with context.Pool(1) as pool:
                    found = pool.apply(peak, ((*case, args.size, args.seed),))
                yield {
                    "model": args.model,
                    "dtype": args.dtype,
                    "checkpointing": checkpointing,
                    "max_batch_size": size,
                    "points": num,
                    "GiB": found,
                }


if __name__ == "__main__":
    main()
