"""The command `riemannian-diffusion`: images in, a morph out, and its measures."""

from __future__ import annotations

import sys

from riemannian_diffusion.cli.flags import with_flags
from riemannian_diffusion.cli.parser import parse

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the name of the program; None takes those of the process.

    Returns:
        Exit status: 0 on success, 1 if morphs of `batch` failed, 2 after bad input, 130 after an
        interrupt. The last two print one line that says what happened.
    """
    args = parse(argv)
    from riemannian_diffusion.cli import commands  # after parsing: --help must not wait for NumPy
    from riemannian_diffusion.cli.batch import run_batch

    run = {
        "interpolate": commands.run_interpolate,
        "batch": run_batch,
        "evaluate": commands.run_evaluate,
        "app": commands.run_app,
        "models": commands.run_models,
    }
    try:
        return run[args.command](args) or 0
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise  # PyTorch also reports its own defects as a RuntimeError
        text = str(error)
        if isinstance(error, OSError) and error.strerror:  # of the system: [Errno 13] ...
            text = ": ".join(str(one) for one in (error.filename, error.strerror) if one)
        line = with_flags(" ".join(text.split())) or "out of memory"
        print(f"riemannian-diffusion: error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        line = ". ".join(["interrupted", *map(str, error.args)])
        print(f"riemannian-diffusion: {line}", file=sys.stderr)
        return 130
