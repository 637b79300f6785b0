"""The command line's options."""

from __future__ import annotations

import argparse
import sys

from riemannian_diffusion.cli.options.app import add_app
from riemannian_diffusion.cli.options.batch import add_batch
from riemannian_diffusion.cli.options.evaluate import add_evaluate
from riemannian_diffusion.cli.options.interpolate import add_interpolate
from riemannian_diffusion.runtime import __version__


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of a command line.

    Args:
        argv: Arguments without the name of the program; None takes those of the process.
    """
    return parser().parse_args(_joined(sys.argv[1:] if argv is None else argv))


def _joined(words: list[str]) -> list[str]:
    """`--frames 25 37` as `--frames 25,37`, so that names of files may follow it."""
    found: list[str] = []
    follows = False  # the word stands behind --frames, or behind numbers that do
    for word in words:
        is_number = word.isdecimal()
        if follows and is_number and found[-1] != "--frames":
            found[-1] += f",{word}"
        else:
            found.append(word)
        follows = word.startswith("--frames") or (follows and is_number)
    return found


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """Report a bad command line in one line, exit status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    whole = _Parser(
        prog="riemannian-diffusion",
        description="Morph images along geodesics of a diffusion model, and measure the frames.",
    )
    whole.add_argument(
        "--version",
        action="version",
        version=f"riemannian-diffusion {__version__}",
    )
    commands = whole.add_subparsers(dest="command", required=True, parser_class=_Parser)
    add_batch(commands, add_interpolate(commands))
    add_evaluate(commands)
    add_app(commands)
    commands.add_parser(
        "models",
        help="list which models work",
        description="List every pipeline class of the installed diffusers: whether its models can "
        "be given to --model, and why not. The class of a model is the `_class_name` in its "
        "model_index.json.",
    )
    return whole
