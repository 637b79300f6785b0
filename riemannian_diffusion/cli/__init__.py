"""The command `riemannian-diffusion`: images in, a morph out, and its measures."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable

from riemannian_diffusion.cli.app import run_app
from riemannian_diffusion.cli.flags import with_flags
from riemannian_diffusion.cli.interrupts import Interrupts, finish_quietly, leaving_at_once
from riemannian_diffusion.cli.parser import parse

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the name of the program; None takes those of the process.

    Returns:
        Exit status: 0 on success, 1 if morphs of `batch` failed, 2 after bad input, 130 after an
        interrupt, 141 if nobody reads the output any more. After bad input or an interrupt, one
        line says what happened.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may hold what the stream cannot
            stream.reconfigure(errors="backslashreplace")
    args = parse(argv)
    spin_briefly()
    finish_quietly()
    with leaving_at_once():  # after parsing: --help must not wait for NumPy
        from riemannian_diffusion.cli import commands
        from riemannian_diffusion.cli.batch import run_batch

    run = {
        "interpolate": commands.run_interpolate,
        "batch": run_batch,
        "evaluate": commands.run_evaluate,
        "app": run_app,
        "models": commands.run_models,
    }
    is_page = args.command == "app"  # it is never ended at once, because it deletes uploads
    with Interrupts(end_at_second=not is_page) as interrupts:
        try:
            return _status(run[args.command], args)
        except KeyboardInterrupt as error:
            interrupts.tell(error)
            return 130


def _status(run: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Run one command; return its exit status, and say in one line why it failed."""
    try:
        return run(args) or 0
    except BrokenPipeError:  # the reader of the output has ended, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # lest the last flush fails as well
        return 141
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise  # PyTorch also reports its own defects as a RuntimeError
        text = str(error)
        if isinstance(error, OSError) and error.strerror:  # of the system: [Errno 13] ...
            text = ": ".join(str(one) for one in (error.filename, error.strerror) if one)
        line = with_flags(" ".join(text.split())) or "out of memory"
        print(f"riemannian-diffusion: error: {line}", file=sys.stderr)
        return 2


def spin_briefly() -> None:
    """Let threads of OpenMP spin only briefly while they wait for each other.

    By default they spin for long. If another process holds one of the processors, they then spin
    for most of the time. Threads that sleep at once are slow on an idle machine
    (`benchmarks/threads.py`). This function changes nothing that the user has set, and it has an
    effect only before PyTorch is imported.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
        os.environ["GOMP_SPINCOUNT"] = "1000"
