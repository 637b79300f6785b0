"""How threads wait for each other: a solve alone, and beside a process that keeps one CPU busy.

    python benchmarks/threads.py [--repeat 3] [--evals 3] [--out FILE]

OpenMP lets waiting threads spin (its default), spin briefly (GOMP_SPINCOUNT=1000, which the command
sets) or sleep (OMP_WAIT_POLICY=passive). Each row is the least time of several fresh processes,
which take turns with those of the other rows; times are also given over those of one thread beside
nothing. Other work on the machine makes the times of both longer: compare the processor time, which
counts the spinning.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import frame

POLICIES = {
    "spin": {},
    "spin briefly": {"GOMP_SPINCOUNT": "1000"},
    "sleep": {"OMP_WAIT_POLICY": "passive"},
}
SOLVE = """
import json, sys, time
from PIL import Image
from riemannian_diffusion import demo
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
pipe.set_progress_bar_config(disable=True)
keys = pipe.invert([Image.open(path) for path in demo.endpoint_paths()], num_inference_steps=5)
pipe.solve(keys, num_frames=9, max_evals=1)  # what the first call costs once
start = time.perf_counter(), time.process_time()
pipe.solve(keys, num_frames=9, max_evals=int(sys.argv[1]))
print(json.dumps([time.perf_counter() - start[0], time.process_time() - start[1]]))
"""


@contextmanager
def busy_processes(num: int) -> Iterator[None]:
    """Processes that compute without end."""
    made = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num)]
    try:
        yield
    finally:
        for process in made:
            process.kill()
            process.wait()


def solve_seconds(threads: int, policy: str, evals: int) -> tuple[float, float]:
    """Time and processor time of a solve in a fresh process."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    env = {name: value for name, value in os.environ.items() if name not in names}
    env |= POLICIES[policy] | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", SOLVE, str(evals)]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    seconds, of_processors = json.loads(done.stdout.splitlines()[-1])
    return seconds, of_processors


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each number of threads, way of waiting and number of busy processes."""
    cases = [(1, "spin"), *((args.threads, policy) for policy in POLICIES)]
    rows = list(itertools.product((0, 1), cases))
    found: dict[Any, list[tuple[float, float]]] = {row: [] for row in rows}
    for _, (busy, case) in itertools.product(range(args.repeat), rows):
        with busy_processes(busy):
            found[busy, case].append(solve_seconds(*case, args.evals))
    least = {row: [min(times) for times in zip(*found[row], strict=True)] for row in rows}
    base = least[rows[0]]
    for (busy, (threads, policy)), (seconds, of_processors) in least.items():
        yield {
            "busy processes": busy,
            "threads": threads,
            "waiting": policy,
            "seconds": round(seconds, 2),
            "processor seconds": round(of_processors, 2),
            "over one thread": round(seconds / base[0], 2),
            "processor over one thread": round(of_processors / base[1], 2),
        }


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Print and return the rows."""
    parser = frame.parser(__doc__, cpu_only=True)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--evals", type=int, default=3, help="evaluations of the solve")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return frame.run(measure, parser, argv)


if __name__ == "__main__":
    main()
