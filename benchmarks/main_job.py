"""Time and memory of the main job: 17 frames between the shipped images with the shipped model.

python benchmarks/main_job.py [--repeat 3]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe


def main(argv: list[str] | None = None) -> None:
    """Print wall time and peak memory of the whole command, imports included."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args(argv)
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.repeat):
            output = Path(folder) / f"{i}.gif"
            command = [sys.executable, "-m", "riemannian_diffusion", "interpolate", "-o", output]
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            report = json.loads(output.with_suffix(".json").read_text())
            found = report["geodesics"][0]
            print(
                f"{seconds:6.1f} s in all, {report['seconds']:6.1f} s in the pipeline, peak "
                f"{peak:.2f} GiB, {found['num_evals']} evaluations, {found['status']}"
            )


if __name__ == "__main__":
    main()
