"""Overhead of the command `batch` beyond its networks, and an estimate for 10,000 pairs on 8 GPUs.

    python benchmarks/batch.py [--pairs 3] [--metrics tangent_normal] [--seconds-per-pass S]
        [--price 3]

The command morphs scenes that the shipped model was not trained on, with its default options, in
this process. Imports and loading are not counted. Columns of the first row:

    seconds          from the first claim of a pair to the last written report
    network          the part of it in networks: forward passes of the network, the text encoder and
                     the autoencoder, and backward passes of the network
    overhead         the rest, relative to the part in networks
    CPU overhead     the same in CPU time, which other programs on the machine do not disturb

The second row has the passes of the network per pair, from the reports that the command writes, and
the time of a reverse pass relative to a forward pass of a point.

The third row is an estimate: these passes at an assumed time per forward pass of a point, with the
overhead that was measured, on 8 GPUs that divide the pairs evenly, at an assumed price per GPU
hour. If the time is not given, it is that of Stable Diffusion 1.5 at 512 x 512 at 200 TFLOP/s.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import frame
import torch
from architectures import ARCHITECTURES
from model_costs import counted
from scenes import write_pairs
from torch import Tensor, nn

from riemannian_diffusion.cli.batch import settings_of
from riemannian_diffusion.cli.batch_work import MorphWork
from riemannian_diffusion.cli.parser import parse
from riemannian_diffusion.pairs.claims import Process
from riemannian_diffusion.pairs.folder import PairFolder
from riemannian_diffusion.pairs.manifest import read_pairs
from riemannian_diffusion.pairs.running import run_pairs

NUM_PAIRS, NUM_GPUS, RATE = 10_000, 8, 200.0


class Times(NamedTuple):
    """Wall time and CPU time in seconds."""

    wall: float = 0.0
    cpu: float = 0.0

    def plus(self, start: Times, end: Times) -> Times:
        """These times and those from a start to an end."""
        return Times(self.wall + end.wall - start.wall, self.cpu + end.cpu - start.cpu)


class Clock:
    """Adds up the times that networks take.

    Attributes:
        forward: Time of forward passes of all networks.
        points: Time of forward passes of the main network.
        reverse: Time of its backward passes.
    """

    def __init__(self, device: str):
        self.waits = device.startswith("cuda")
        self.forward = self.points = self.reverse = Times()
        self._start = self._end = self.now()

    def now(self) -> Times:
        """The time when all work on the device has ended."""
        if self.waits:
            torch.cuda.synchronize()
        return Times(time.perf_counter(), time.process_time())

    def follow(self, network: nn.Module, *others: nn.Module) -> None:
        """Follow a network and its backward passes, and the forward passes of others."""
        for module in (network, *others):
            module.register_forward_pre_hook(self._begin)
            module.register_forward_hook(self._add)
        network.register_forward_hook(self._add_points)

    def _begin(self, module: nn.Module, inputs: tuple) -> None:
        self._start = self.now()

    def _add(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        self._end = self.now()
        self.forward = self.forward.plus(self._start, self._end)

    def _add_points(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        self.points = self.points.plus(self._start, self._end)
        value = output[0]
        if not value.requires_grad:
            return
        began: list[Times] = []
        value.register_hook(lambda _: began.append(self.now()))

        def end(_: Tensor) -> None:
            self.reverse = self.reverse.plus(began.pop(), self.now())

        inputs[0].register_hook(end)


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure the overhead; return the rows."""
    parser = frame.parser(__doc__)
    add = parser.add_argument
    add("--pairs", type=int, default=3)
    add("--metrics", nargs="+", default=["tangent_normal"])
    add("--options", nargs="+", default=[], help="further options of the command, without dashes")
    add("--seconds-per-pass", type=float, help="of a forward pass of one point on a GPU")
    add("--price", type=float, default=3.0, help="price of a GPU hour")
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """A row with the overhead, one with the passes, and one with the estimate."""
    with tempfile.TemporaryDirectory() as folder:
        reports, clock, whole = run_batch(args, Path(folder))
    network = clock.forward.plus(Times(), clock.reverse)
    overhead = whole.cpu / network.cpu - 1
    yield {
        "row": "overhead",
        "pairs": args.pairs,
        "methods": len(args.metrics),
        "seconds": whole.wall,
        "network": network.wall,
        "overhead": whole.wall / network.wall - 1,
        "CPU overhead": overhead,
    }

    passes = {way: passes_per_pair(reports, way, args.pairs) for way in ("forward", "reverse")}
    each = clock.points.cpu / (passes["forward"] * args.pairs)
    relative = clock.reverse.cpu / (passes["reverse"] * args.pairs) / each
    yield {"row": "passes", **passes, "reverse over forward": relative}

    each_pass = (
        args.seconds_per_pass or counted(ARCHITECTURES["sd15"], 512)[1].forward / 1e12 / RATE
    )
    work = (passes["forward"] + relative * passes["reverse"]) * each_pass
    hours = NUM_PAIRS * work * (1 + overhead) / 3600
    yield {
        "row": "estimate",
        "assumed seconds per pass": each_pass,
        "seconds per pair": work,
        "GPU hours": hours,
        f"hours on {NUM_GPUS} GPUs": hours / NUM_GPUS,
        "price": math.ceil(hours * args.price),
    }


def run_batch(args: argparse.Namespace, folder: Path) -> tuple[list[dict], Clock, Times]:
    """Run the command's work; return its reports, the times of networks, and the whole time."""
    manifest, output = write_pairs(folder / "pairs", args.pairs), folder / "out"
    command = ["batch", str(manifest), "-o", str(output), "--device", args.device]
    command += frame.dashed(args.options)
    options = parse([*command, "--seed", str(args.seed)])
    work = MorphWork(options, args.metrics, args.device, "float32")
    pipe, clock = work.pipe, Clock(args.device)
    clock.follow(pipe.network, pipe.text_encoder, pipe.vae.encoder, pipe.vae.decoder)
    start = clock.now()
    pairs = read_pairs(manifest, num_frames=options.frames, seed=options.seed)
    with Process(output) as process:
        results = PairFolder(output, args.metrics, process)
        results.begin(settings_of(options, "float32"), pairs)
        run_pairs(pairs, results, lambda: work, tell=print)
        found = [results.report(pair, method) for pair in pairs for method in args.metrics]
    return (
        [report for report in found if report is not None],
        clock,
        Times().plus(start, clock.now()),
    )


def passes_per_pair(reports: list[dict], way: str, num_pairs: int) -> float:
    """Points at which the network was evaluated, or differentiated, per pair."""
    inversions = {json.dumps(r["pair"]): r["passes_of_inversion"][way] for r in reports}
    solves = sum(report["passes"][way] for report in reports)
    return (statistics.fmean(inversions.values()) * num_pairs + solves) / num_pairs


if __name__ == "__main__":
    main()
