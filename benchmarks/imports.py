"""CPU time of starting: `--help` and imports of the library against `import torch`.

    python benchmarks/imports.py [--repeat 5] [--out FILE]

Each row is the least user and system time of several fresh processes, minus that of an empty one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import frame

ROWS = {
    "import torch": ["-c", "import torch"],
    "riemannian-diffusion --help": ["-m", "riemannian_diffusion", "--help"],
    "import riemannian_diffusion": ["-c", "import riemannian_diffusion"],
    "the geometry": ["-c", "from riemannian_diffusion import TangentNormalMetric, geodesic"],
    "the pipelines": ["-c", "from riemannian_diffusion.pipelines import *"],
}


def cpu_seconds(command: list[str], repeat: int) -> float:
    """The least CPU time of a process."""
    times = []
    for _ in range(repeat):
        before = os.times()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        after = os.times()
        times.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
    return min(times)


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each command: its CPU time, and that over `import torch`."""
    empty = cpu_seconds(["-c", ""], args.repeat)
    torch = None
    for name, command in ROWS.items():
        seconds = cpu_seconds(command, args.repeat) - empty
        torch = seconds if torch is None else torch
        yield {"what": name, "seconds": round(seconds, 3), "over torch": round(seconds / torch, 3)}


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Print and return the rows."""
    parser = frame.parser(__doc__, cpu_only=True)
    parser.add_argument("--repeat", type=int, default=5)
    return frame.run(measure, parser, argv)


if __name__ == "__main__":
    main()
