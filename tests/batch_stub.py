"""A process of a batch whose morphs are small images that depend on the pair and method alone.

    python tests/batch_stub.py PAIRS OUT LOG [RANK NUM_PROCESSES]

It appends a line to LOG when it begins a morph and when it has written one, with its process id. It
does so while it holds a lock of LOG, so that the order of lines is the order of events.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time
from pathlib import Path

from PIL import Image

from riemannian_diffusion.pairs.claims import Process
from riemannian_diffusion.pairs.folder import Made, PairFolder
from riemannian_diffusion.pairs.manifest import read_pairs
from riemannian_diffusion.pairs.running import in_order, run_pairs
from riemannian_diffusion.pairs.summary import write_summary

METHODS = ["slow", "quick"]


class StubWork:
    """Makes frames from a hash of the name and method; the pair `bad` fails."""

    def __init__(self, log: Path):
        self.log = log

    def prepare(self, pair):
        """Log the begin; fail for one pair."""
        self.write(f"begin {pair.name}")
        time.sleep(0.01)
        if pair.name == "bad":
            raise ValueError("this pair always fails")
        return hashlib.sha256(pair.name.encode()).digest()

    def make(self, pair, prepared, method):
        """Two frames in one colour, which depends on the pair, and the pair's own images."""
        time.sleep(0.03 if method == "slow" else 0.005)
        colour = tuple(hashlib.sha256(prepared + method.encode()).digest()[:3])
        frames = [Image.new("RGB", (32, 32), colour) for _ in range(pair.num_frames)]
        self.write(f"made {pair.name} {method}")
        report = {"geodesic": None, "reconstruction_error": [0.0, 0.0], "seconds": 0.0}
        return Made(frames, frames[:2], report | {"seconds_of_inversion": 0.0})

    def explain(self, error):
        """The error's own sentence."""
        return str(error)

    def write(self, text: str) -> None:
        """Append a line to the log."""
        with self.log.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(f"{os.getpid()} {text}\n")


def results(output: Path) -> dict[str, bytes]:
    """All files of the output, the hidden ones, too; of failures all but the traceback."""
    found = {}
    for path in output.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            if path.parts[-3] == "failed":
                data = json.dumps({**json.loads(data), "traceback": None}).encode()
            found[str(path.relative_to(output))] = data
    return found


def main(pairs: str, output: str, log: str, rank: str = "0", num_processes: str = "1") -> None:
    """Run one process to the end, and write the summary."""
    found = read_pairs(Path(pairs), num_frames=3, seed=0)
    with Process(Path(output), beat=0.2, patience=2.0) as process:
        folder = PairFolder(Path(output), METHODS, process)
        folder.begin({"--steps": 3}, found)
        order = in_order(found, int(rank), int(num_processes))
        run_pairs(order, folder, lambda: StubWork(Path(log)), tell=print, poll=0.05)
        write_summary(found, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
