"""Time and memory of the main job: a morph of the shipped images in 17 frames.

    python benchmarks/main_job.py [--repeat 3]

The shipped model makes the morph. There is one row per run of the whole command, with its imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import frame


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure the command; return the rows."""
    parser = frame.parser(__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Rows with the wall time and the peak memory of every run."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.repeat):
            output = Path(folder) / f"{i}.gif"
            command = [sys.executable, "-m", "riemannian_diffusion", "interpolate", "-o", output]
            command += ["--device", args.device, "--seed", str(args.seed)]
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            report = json.loads(output.with_suffix(".json").read_text())
            found = report["geodesics"][0]
            yield {
                "run": i + 1,
                "seconds": seconds,
                "seconds in the pipeline": report["seconds"],
                "peak GiB": peak,
                "evals": found["num_evals"],
                "status": found["status"],
            }


if __name__ == "__main__":
    main()
