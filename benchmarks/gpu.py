"""Run the benchmarks of cost, memory and precision on a GPU, one after the other.

    python benchmarks/gpu.py [--device cuda] [--minutes 25] [--results benchmarks/results]
        [--steps full_size model_costs ...] [--again] [--plan] [--rehearse]

Each step is one benchmark in a process of its own, with a limit of time. Its rows are saved as
`DATE_gpu_NAME_cuda.json` when it ends; a step that fails, or that its limit, Ctrl-C or SIGTERM
stops, keeps its rows in `DATE_gpu_NAME_cuda_stopped.json`. No step starts after --minutes. A second
run on the same day goes on with the steps that have not ended, unless `--again` is given. `--plan`
only says what each step will take. The weights are random, so nothing is downloaded, except for
the shipped model's. At the end, all rows are printed as tables, which
`python benchmarks/tables.py` copies into `benchmarks/README.md`.

`--rehearse` runs the same steps with the same code on the CPU, with small networks and few points,
without their limits, and with results in a temporary folder: test with it before renting a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import frame
from gpu_report import ABOUT, file_of, report, stopped

HERE = Path(__file__).parent
REHEARSAL = "rehearsal"
LEAST_SECONDS = 20.0  # no step starts with less time than this


@dataclass(frozen=True)
class Step:
    """One benchmark.

    Attributes:
        name: Name of its results, one of `ABOUT`.
        seconds: Its limit of time.
        command: Script and arguments on a GPU.
        smaller: Options of a rehearsal, which come after those of the command and replace them.
    """

    name: str
    seconds: int
    command: str
    smaller: str

    def arguments(self, device: str, out: Path, rehearse: bool) -> list[str]:
        """Script and arguments of a run."""
        script, *options = shlex.split(self.command)
        options += shlex.split(self.smaller) if rehearse else []
        return [script, "--device", device, "--out", str(out), *options]


SMALL = "small_sd15 small_sdxl small_flux small_sd35_medium small_qwen_image small_z_image"
STEPS = (  # in the order of their importance
    Step(
        "full_size",
        300,
        "full_size.py --models sd15 sdxl --dtype float16",
        "--models small_sd15 small_sdxl --frames 3 --steps 4 --max-evals 2",
    ),
    Step(
        "model_costs",
        200,
        "model_costs.py --models sd15 sdxl flux sd35_medium qwen_image z_image --pixels 512 1024"
        " --measure",
        f"--models {SMALL} --pixels 64 --batches 1 2 --points 2 --with-gradient 1",
    ),
    Step(
        "cost_sd15",
        200,
        "cost.py --models sd15 --dtypes float16 --repeats 3 --points 5 --compile",
        "--models small_sd15 --points 3 --quadrature 1 --repeats 1",
    ),
    Step(
        "memory_sd15",
        80,
        "memory.py --model sd15 --dtype float16 --points 5 17 --max-batch-sizes 0 4 1",
        "--model small_sd15 --points 3 --max-batch-sizes 0 1",
    ),
    Step(
        "memory_sdxl",
        80,
        "memory.py --model sdxl --dtype float16 --points 17 --max-batch-sizes 1 --checkpointing",
        "--model small_sdxl --points 3",
    ),
    Step(
        "cost_large",
        120,
        "cost.py --models sdxl flux --dtypes bfloat16 --repeats 2",
        "--models small_sdxl small_flux --points 3 --quadrature 1 --repeats 1",
    ),
    Step(
        "precision",
        80,
        "precision.py --points 9 17 --dtypes float32 tf32 bfloat16 float16",
        "--points 3 --size 8",
    ),
    Step(
        "precision_sd15",
        80,
        "precision.py --model sd15 --points 9 --dtypes float32 tf32 bfloat16 float16 --no-solve"
        " --max-batch-size 4",
        "--model small_sd15 --points 3",
    ),
    Step(
        "scale",
        80,
        "scale.py --points 5 17 65 --pairs 1 4 16 --sizes 16 64 128",
        "--points 3 --pairs 1 --sizes 8",
    ),
    Step(
        "main_job",
        60,
        "main_job.py --repeat 2",
        "--repeat 1 --options frames 3 steps 4 max-evals 2",
    ),
    Step(
        "solvers_demo",
        120,
        "solvers.py --problems demo --adam-evals 300",
        "--demo-points 3 --demo-steps 4 --adam-evals 10",
    ),
)


def run_step(step: Step, device: str, folder: Path, seconds: float, rehearse: bool) -> dict:
    """Run one step, keep what it measured, and say how it ended.

    Whatever ends this process before the step, also ends the step.
    """
    kind = REHEARSAL if rehearse else device.partition(":")[0]
    out = file_of(folder, step.name, kind, datetime.date.today().isoformat())
    script, *options = step.arguments(device, out, rehearse)
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(HERE / script), *options], start_new_session=True
    )
    try:
        ended = process.wait(seconds)
        status = "done" if ended == 0 else f"failed with status {ended}"
    except subprocess.TimeoutExpired:
        status = f"stopped after {seconds:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.wait()
        if frame.part_of(out).exists():  # the rows before the end
            frame.part_of(out).rename(stopped(out))
        elif out.exists():
            stopped(out).unlink(missing_ok=True)  # of a run before
    return {
        "step": step.name,
        "status": status,
        "seconds": time.perf_counter() - start,
        "saved": out.exists() or stopped(out).exists(),
    }


def plan(steps: list[Step], args: argparse.Namespace) -> str:
    """What each step will take, in lines."""
    limits = "no limits" if args.rehearse else f"{args.minutes:g} minutes at most"
    lines = [f"{len(steps)} steps, {limits}; all they measure is in {args.results}:"]
    for step in steps:
        limit = "" if args.rehearse else f" {step.seconds:4d} s at most "
        script, *options = step.arguments(args.device, Path("FILE"), args.rehearse)
        lines.append(
            f"  {step.name:15}{limit} {ABOUT[step.name]}: {script} {shlex.join(options[4:])}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> list[dict]:
    """Run the steps; return what each did."""
    parser = frame.parser(__doc__)
    parser.set_defaults(device="cuda", results=HERE / "results")
    names = [step.name for step in STEPS]
    parser.add_argument("--minutes", type=float, default=25.0, help="for all steps (default: 25)")
    parser.add_argument("--results", type=Path, help="folder of the results")
    parser.add_argument("--steps", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--again", action="store_true", help="run also what has ended today")
    parser.add_argument("--plan", action="store_true", help="say what would run, and run nothing")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny arguments")
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--rehearse" in argv:
        folder = Path(tempfile.gettempdir()) / "gpu_rehearsal"
        parser.set_defaults(device="cpu", results=folder)
    args = parser.parse_args(argv)
    args.results.mkdir(parents=True, exist_ok=True)
    kind = REHEARSAL if args.rehearse else args.device.partition(":")[0]
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception ends the step
    try:
        return frame.run(measure, parser, argv)
    finally:
        signal.signal(signal.SIGTERM, before)
        print("\n" + report(args.results, kind))


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """One row for each step."""
    end = time.perf_counter() + 60 * args.minutes
    kind = REHEARSAL if args.rehearse else args.device.partition(":")[0]
    steps = [step for step in STEPS if step.name in args.steps]
    print(plan(steps, args), flush=True)
    for step in () if args.plan else steps:
        left = end - time.perf_counter()
        file = file_of(args.results, step.name, kind, datetime.date.today().isoformat())
        if file.exists() and not args.again:
            yield {"step": step.name, "status": "done before", "seconds": 0.0, "saved": True}
        elif left < LEAST_SECONDS and not args.rehearse:
            yield {"step": step.name, "status": "no time left", "seconds": 0.0, "saved": False}
        else:
            seconds = 3600.0 if args.rehearse else min(left, step.seconds)
            yield run_step(step, args.device, args.results, seconds, args.rehearse)


if __name__ == "__main__":
    main()
