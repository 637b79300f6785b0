"""The options of the command `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from riemannian_diffusion.cli.options.values import seed

# Names that the library defines, repeated here because importing the library takes seconds.
PROTOCOL_NAMES = ("diffmorpher17", "saito11", "saito11_vgg", "saito_video3", "aid", "any")


def add_evaluate(commands: Any) -> None:
    """Add the command that measures folders of frames.

    Args:
        commands: The subparsers of the whole command line.
    """
    command = commands.add_parser(
        "evaluate",
        help="measure folders of frames by a named protocol",
        description="Measure folders of frames by a named protocol: a table, and JSON with -o. DIR "
        "holds one folder per sequence, its frames sorted by name, as the model made them (not "
        "--paste-endpoints). A folder may hold the original images in inputs/0.png and "
        "inputs/1.png, and true middle frames in truth/. A measure that lacks those or the weights "
        "of a network is listed with the reason.",
    )
    add = command.add_argument
    add("directory", type=Path, metavar="DIR", help="a folder with one folder per sequence")
    add(
        "--protocol",
        choices=PROTOCOL_NAMES,
        required=True,
        help="what is measured, and on frames of which number and size",
    )
    add("-o", "--output", type=Path, help="write everything to this JSON file, too")
    add("--strict", action="store_true", help="fail where a network or a library is missing")
    add(
        "--resamples",
        type=int,
        default=200,
        help="largest number of resamples behind an interval of FID or KID; 0 for no intervals "
        "(default: 200)",
    )
    add(
        "--max-batch-size",
        type=int,
        default=8,
        help="largest batch of a network; a smaller one needs less memory (default: 8)",
    )
    add("--seed", type=seed, default=0, help="seed of random frames and intervals (default: 0)")
    add("--device", help="cuda, mps or cpu (default: the first of them that this machine has)")
    add("--force", action="store_true", help="overwrite the output")
