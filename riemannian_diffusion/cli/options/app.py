"""The options of the command `app`."""

from __future__ import annotations

from typing import Any

from riemannian_diffusion.cli.options.model import add_model

AUTH = "RIEMANNIAN_DIFFUSION_AUTH"  # the environment variable in place of --auth


def add_app(commands: Any) -> None:
    """Add the command that serves a page.

    Args:
        commands: The subparsers of the whole command line.
    """
    command = commands.add_parser(
        "app",
        help="morph images in the browser",
        description="Serve a page that morphs images, to this machine alone unless --host says "
        "otherwise. Give --model more than once to let visitors choose (shipped is the shipped "
        "model): one at a time is in memory, and visitors can load no others. What they upload and "
        "make is deleted after an hour and at the end.",
    )
    add = command.add_argument
    add_model(add, action="append")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, default=7860, help="(default: 7860)")
    add(
        "--auth",
        metavar="USER:PASSWORD",
        help="ask visitors for this name and password; better set the environment variable "
        f"{AUTH}, which other users of this machine cannot read",
    )
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which visitors reach the page, such as that of a proxy; this machine's own "
        "name and IP addresses are allowed anyway; may be given more than once",
    )
