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
        "otherwise. Give --model more than once to let visitors choose among models (shipped "
        "is the shipped model). One model at a time is in memory. Visitors can load no others. "
        "Uploads and results are deleted after an hour, and when the page ends.",
    )
    add = command.add_argument
    add_model(add, action="append")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    add(
        "--auth",
        metavar="USER:PASSWORD",
        help="ask visitors for this name and password. Other users of this machine can read them: "
        f"the environment variable {AUTH} is safer",
    )
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which visitors reach the page, such as that of a proxy; this machine's own "
        "name and IP addresses are allowed anyway; may be given more than once",
    )
