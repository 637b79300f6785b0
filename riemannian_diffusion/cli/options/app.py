"""The options of the command `app`."""

from __future__ import annotations

from typing import Any

from riemannian_diffusion.cli.options.model import add_model


def add_app(commands: Any) -> None:
    """Add the command that serves a page.

    Args:
        commands: The subparsers of the whole command line.
    """
    command = commands.add_parser(
        "app",
        help="morph images in the browser",
        description="Serve a page that morphs images, to this machine alone unless --host says "
        "otherwise.",
    )
    add = command.add_argument
    add_model(add)
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, default=7860, help="(default: 7860)")
