"""Peak memory of an energy and its gradient, above the weights.

    python benchmarks/memory.py [--model shipped|sd15|sdxl] [--device cuda] [--dtype float32]
        [--points 5 9 17 33] [--max-batch-sizes 0 4 1] [--checkpointing] [--size N]

The tangent-normal energy with 3 sub-chords per segment. A line per `max_batch_size` (0: none), a
column per number of points, in GiB, each in a process of its own; on CUDA what torch allocated at
the most, on a CPU what the process held at the most. `--checkpointing` adds the network's own
gradient checkpointing to each.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
from pathlib import Path

import torch
from architectures import NAMES, score_of
from machine import describe

from riemannian_diffusion import TangentNormalMetric, refine, slerp

NUM_QUADRATURE = 3


def resident(field: str) -> float:
    """What this process holds ("VmRSS") or held at the most ("VmHWM"), in GiB."""
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) / 2**20


def peak(arguments: tuple) -> float:
    """GiB above the weights."""
    model, device, dtype, num_points, max_batch_size, checkpointing, size = arguments
    score, shape = score_of(
        *(model,),
        device=device,
        dtype=getattr(torch, dtype),
        max_batch_size=max_batch_size or None,
        size=size,
    )
    if checkpointing:
        getattr(score.model, "unet", score.model).enable_gradient_checkpointing()
    generator = torch.Generator().manual_seed(0)
    ends = torch.randn(2, *shape, generator=generator).to(device)
    path = refine(slerp(*ends, num_points), NUM_QUADRATURE)
    metric = TangentNormalMetric(score)
    cuda = device.startswith("cuda")
    before = torch.cuda.memory_allocated() / 2**30 if cuda else resident("VmRSS")
    metric.energies([path], differentiate=True)
    after = torch.cuda.max_memory_allocated() / 2**30 if cuda else resident("VmHWM")
    return after - before


def main(argv: list[str] | None = None) -> dict[tuple[bool, int, int], float]:
    """Print the table; returns its cells by (checkpointing, max_batch_size, points)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=NAMES, default="shipped")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--points", type=int, nargs="+", default=[5, 9, 17, 33])
    parser.add_argument("--max-batch-sizes", type=int, nargs="+", default=[0, 4, 1])
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--size", type=int, help="side of the latents")
    args = parser.parse_args(argv)
    print(describe(args.device))
    print(f"\n{args.model}, {args.dtype}, latents of side {args.size or 'its own'}, GiB")
    print(f"{'max_batch_size':32s}" + "".join(f"{num:>5d} points" for num in args.points))
    cells = {}
    context = multiprocessing.get_context("spawn")
    for checkpointing in (False, True) if args.checkpointing else (False,):
        for size in args.max_batch_sizes:
            label = f"{size or 'none'}{', checkpointing' if checkpointing else ''}"
            print(f"{label:32s}", end="", flush=True)
            for num in args.points:
                case = (args.model, args.device, args.dtype, num, size, checkpointing, args.size)
                with context.Pool(1) as pool:
                    cells[checkpointing, size, num] = cell = pool.apply(peak, (case,))
                print(f"{cell:12.3f}", end="", flush=True)
            print()
    return cells


if __name__ == "__main__":
    main()
