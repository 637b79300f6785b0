"""The options of the command `batch`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from riemannian_diffusion.cli.options.evaluate import PROTOCOL_NAMES
from riemannian_diffusion.cli.options.interpolate import METRIC_NAMES

# Options of `interpolate` for one morph alone; `batch` has all others.
OF_ONE_MORPH = (
    *("help", "images", "output", "prompt", "metric", "frames", "clip_frames", "analogy"),
    *("fps", "ping_pong", "scale", "keep", "force"),
)


def add_batch(commands: Any, morph: argparse.ArgumentParser) -> None:
    """Add the command that morphs many pairs of images.

    Args:
        commands: The subparsers of the whole command line.
        morph: The parser of `interpolate`, whose options for any morph `batch` has, too.
    """
    batch = commands.add_parser(
        "batch",
        help="morph many pairs of images, by one process or many",
        description="Morph many pairs of images, each by one or more methods. PAIRS is a folder "
        "with images <name>_0.png and <name>_1.png; or a .csv or .jsonl file with one row for each "
        "pair and the columns image_0, image_1 (paths relative to the file) and perhaps name, "
        "prompt_0, prompt_1, frames and seed. The frames of each pair are written to "
        "DIR/<method>/<name>/. `accelerate launch -m riemannian_diffusion batch ...` shares the "
        "pairs among processes, and so do several commands with one DIR, on one machine or many. "
        "The same command goes on after an interruption. The exit status is 1 if a pair failed.",
    )
    add = batch.add_argument
    add("pairs", type=Path, metavar="PAIRS", help="a folder, a .csv file or a .jsonl file")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    add(
        "--metric",
        action="append",
        choices=METRIC_NAMES,
        help="metric, or a curve from slerp on; may be given more than once: each pair is inverted "
        "once for all of them (default: tangent_normal)",
    )
    add(
        "--frames",
        type=int,
        default=17,
        help="number of frames of pairs that name none (default: 17)",
    )
    add("--limit", type=int, metavar="NUMBER", help="morph the first pairs alone, so many")
    add("--retry-failed", action="store_true", help="try the failed pairs again")
    add("--evaluate", choices=PROTOCOL_NAMES, help="measure the frames of each method at the end")
    for action in morph._actions:  # as `parents` does, which takes all of them
        if action.dest not in OF_ONE_MORPH:
            batch._add_action(action)
