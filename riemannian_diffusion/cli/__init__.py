"""The command `riemannian-diffusion`: images in, a morph out, and its measures."""

from __future__ import annotations

import sys

from riemannian_diffusion.cli.commands import (
    default_dtype,
    describe_geodesic,
    first_device,
    installed_versions,
    run_app,
    run_evaluate,
    run_interpolate,
)
from riemannian_diffusion.cli.parser import METRIC_NAMES, PROTOCOL_NAMES, parser

__all__ = [
    "METRIC_NAMES",
    "PROTOCOL_NAMES",
    "default_dtype",
    "describe_geodesic",
    "first_device",
    "installed_versions",
    "main",
]

COMMANDS = {"interpolate": run_interpolate, "evaluate": run_evaluate, "app": run_app}


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; those of the process where None.

    Returns:
        Exit status: 0, 2 for bad input or 130 for an interrupt, each reported in one line.
    """
    args = parser().parse_args(argv)
    try:
        COMMANDS[args.command](args)
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise  # torch tells of too little memory so, and of its own defects
        line = " ".join(str(error).split()) or "out of memory"
        print(f"riemannian-diffusion: error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("riemannian-diffusion: interrupted", file=sys.stderr)
        return 130
    return 0
