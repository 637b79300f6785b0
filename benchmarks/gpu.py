"""Run the benchmarks of cost, memory and precision on a GPU, one after the other.

    python benchmarks/gpu.py [--device cuda] [--minutes 10] [--results benchmarks/results]
        [--steps model_costs cost_sd15 ...] [--rehearse]

Each step is one benchmark in a process of its own, with a limit of time. Its rows are saved as
`DATE_gpu_NAME_cuda.json` when it ends; a step that reaches its limit keeps the rows so far. No step
starts after --minutes. The weights are random, so nothing is downloaded, except for the shipped
model's. `--rehearse` runs the same steps on the CPU with tiny arguments, to test them before
renting a GPU, without their limits. The last lines say what each step did.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import frame

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Step:
    """One benchmark.

    Attributes:
        name: Name of its results.
        seconds: Its limit of time.
        command: Script and arguments on a GPU.
        rehearsal: Script and arguments on a CPU, which take seconds.
    """

    name: str
    seconds: int
    command: str
    rehearsal: str


STEPS = (  # in the order of their importance
    Step(
        "model_costs",
        150,
        "model_costs.py --models sd15 sdxl flux sd35_medium qwen_image z_image --pixels 512 1024",
        "model_costs.py --models sd15 --pixels 64 --points 2 --with-gradient 1",
    ),
    Step("main_job", 40, "main_job.py --repeat 2", "main_job.py --repeat 1"),
    Step(
        "cost_sd15",
        60,
        "cost.py --models sd15 --dtypes float16 --repeats 3 --points 5 --compile",
        "cost.py --models shipped --points 2 --quadrature 1 --repeats 1",
    ),
    Step(
        "cost_large",
        70,
        "cost.py --models sdxl flux --dtypes bfloat16 --repeats 2",
        "cost.py --models shipped --points 2 --quadrature 1 --repeats 1",
    ),
    Step(
        "memory_sd15",
        80,
        "memory.py --model sd15 --dtype float16 --points 5 17 --max-batch-sizes 0 4 1",
        "memory.py --points 3 --max-batch-sizes 1",
    ),
    Step(
        "memory_sdxl",
        60,
        "memory.py --model sdxl --dtype float16 --points 17 --max-batch-sizes 1 --checkpointing",
        "memory.py --points 3 --max-batch-sizes 1 --checkpointing",
    ),
    Step(
        "precision",
        50,
        "precision.py --points 9 17",
        "precision.py --points 3 --dtypes bfloat16 --size 8 --no-solve",
    ),
    Step(
        "precision_sd15",
        40,
        "precision.py --model sd15 --points 9 --no-solve --max-batch-size 4",
        "precision.py --points 3 --dtypes float16 --size 8 --no-solve",
    ),
    Step(
        "scale",
        60,
        "scale.py --points 5 17 65 --pairs 1 4 16 --sizes 16 64 128",
        "scale.py --points 3 --pairs 1 --sizes 8",
    ),
    Step(
        "solvers_demo",
        90,
        "solvers.py --demo --adam-evals 300",
        "solvers.py --adam-evals 10",
    ),
)


def run_step(step: Step, device: str, folder: Path, seconds: float, rehearse: bool) -> dict:
    """Run one step, keep what it measured, and say how it ended."""
    kind = "rehearsal" if rehearse else device.partition(":")[0]
    out = folder / f"{datetime.date.today().isoformat()}_gpu_{step.name}_{kind}.json"
    script, *options = shlex.split(step.rehearsal if rehearse else step.command)
    command = [sys.executable, str(HERE / script), *options, "--device", device, "--out", str(out)]
    start = time.perf_counter()
    process = subprocess.Popen(command, start_new_session=True)
    try:
        ended = process.wait(seconds)
        status = "done" if ended == 0 else f"failed with status {ended}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
        process.wait()
        status = f"stopped after {seconds:.0f} s"
    part = frame.part_of(out)
    if part.exists():  # the rows before the end
        part.rename(out)
    return {
        "step": step.name,
        "status": status,
        "seconds": time.perf_counter() - start,
        "saved": out.exists(),
    }


def main(argv: list[str] | None = None) -> list[dict]:
    """Run the steps; return what each did."""
    parser = frame.parser(__doc__)
    parser.set_defaults(device="cuda")
    names = [step.name for step in STEPS]
    parser.add_argument("--minutes", type=float, default=10.0, help="for all steps (default: 10)")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder")
    parser.add_argument("--steps", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny arguments")
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--rehearse" in argv:
        parser.set_defaults(device="cpu")
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """One row for each step."""
    end = time.perf_counter() + 60 * args.minutes
    for step in STEPS:
        left = end - time.perf_counter()
        if step.name not in args.steps:
            continue
        if left < 10:
            yield {"step": step.name, "status": "no time left", "seconds": 0.0, "saved": False}
            continue
        yield run_step(
            step,
            args.device,
            args.results,
            left if args.rehearse else min(left, step.seconds),
            args.rehearse,
        )


if __name__ == "__main__":
    main()
