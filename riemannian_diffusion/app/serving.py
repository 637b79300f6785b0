"""Serves the page to this machine or to a network."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from riemannian_diffusion.app.guard import Guard, Limits
from riemannian_diffusion.app.models import Models
from riemannian_diffusion.app.page import build
from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin

STYLE = """
#bar {  /* the buttons and the progress, always in sight */
    position: fixed; bottom: 0; left: 0; right: 0; z-index: 40; align-items: center;
    padding: 8px max(16px, 2.5vw); gap: 8px 16px;
    background: var(--body-background-fill); border-top: 1px solid var(--border-color-primary);
}
.gradio-container { padding-bottom: 150px; }
footer .divider { display: none; }
#status { height: 72px; display: flex; align-items: center; }
#status .pending { visibility: hidden; }  /* the progress takes its place */
#status .progress-level { width: 100%; margin: 0; }
#status .progress-level-inner { width: 100%; font-size: 12px; }
#status .progress-bar-wrap { width: 100%; }
#status .progress-text {
    inset: auto 0 14px auto; line-height: 1.2; transform: none; padding: 0; margin: 0;
}
#status:has(.progress-bar-wrap) .progress-text { display: none; }  /* it would cover the bar */
#analogy .thumbnail-item { width: 120px; }
#numbers { overflow-x: auto; }
#numbers th, #numbers td {
    white-space: nowrap; word-break: keep-all; overflow-wrap: normal; font-size: 13px;
    padding: 4px 6px;
}
#numbers th:first-child, #numbers td:first-child {
    position: sticky; left: 0; white-space: normal; background: var(--body-background-fill);
}
#words, #about { overflow-wrap: break-word; word-break: normal; }
"""


def serve(
    models: Models | GeodesicInterpolationMixin,
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    auth: tuple[str, str] | None = None,
    names: Collection[str] = (),
    limits: Limits | None = None,
) -> None:
    """Serve the page until interrupted; then delete what visitors have uploaded and made.

    Args:
        models: The models that visitors may choose, or one pipeline.
        host: The address to listen on: "127.0.0.1" for this machine alone, "0.0.0.0" for the whole
            network.
        port: The port to listen on.
        auth: Name and password that visitors must give, or None.
        names: Names by which visitors reach this machine, beside its own and IP addresses.
        limits: How much visitors may send and keep.

    Raises:
        OSError: If the port is taken or the address is not this machine's.
    """
    with closing(socket.socket(_family(host))) as probe:  # gradio's message speaks of its variables
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise OSError(f"--port {port} of --host {host} cannot be used: {error}") from error
    for text in warnings_of(host, auth):
        print(f"riemannian-diffusion: warning: {text}", file=sys.stderr)
    with uploads_folder() as folder, ended_by_signal():
        page = build(models, limits)
        print(
            f"The page is at http://{_shown_host(host)}:{port} (stop it with Ctrl-C).", flush=True
        )
        launch(
            page, folder, auth=auth, names=names, limits=limits, server_name=host, server_port=port
        )


def launch(
    page: gr.Blocks,
    folder: Path,
    *,
    auth: tuple[str, str] | None = None,
    names: Collection[str] = (),
    limits: Limits | None = None,
    **options: Any,
) -> tuple[Any, str, str]:
    """Launch a page behind its guard, in its style.

    Args:
        page: What `build` returned.
        folder: Where gradio keeps uploads and results, as `uploads_folder` made it.
        auth: See `serve`.
        names: See `serve`.
        limits: See `serve`.
        **options: Other options of gradio's `launch`.

    Returns:
        What gradio's `launch` returns.
    """
    limits = limits or Limits()
    known = {*names, socket.gethostname(), socket.getfqdn()}
    guard = Middleware(Guard, folder=folder, auth=auth, names=known, limits=limits)
    return page.launch(
        share=False,
        ssr_mode=False,
        quiet=True,
        css=STYLE,
        max_file_size=limits.file_bytes,
        enable_monitoring=False,
        run_history=False,
        footer_links=["api"],
        app_kwargs={"middleware": [guard]},
        **options,
    )


def warnings_of(host: str, auth: tuple[str, str] | None) -> list[str]:
    """What whoever serves a page should know about its address.

    Args:
        host: The address to listen on.
        auth: See `serve`.
    """
    if is_local(host):
        return []
    if auth is None:
        return [
            f"with --host {host}, everybody who reaches this machine can use the page and its "
            "model. Give visitors a password with --auth, or serve to this machine alone and let "
            "them in through SSH (ssh -L)."
        ]
    return [
        f"with --host {host}, the password and all images travel unencrypted (plain HTTP). Put a "
        "proxy with TLS before the page, or let visitors in through SSH (ssh -L)."
    ]


def is_local(host: str) -> bool:
    """Whether an address belongs to this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _shown_host(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


@contextmanager
def uploads_folder() -> Iterator[Path]:
    """A new folder in which gradio keeps uploads and results; it is deleted at the end."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    folder = Path(tempfile.mkdtemp(prefix="riemannian-diffusion-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        yield folder
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """Inside it, a SIGTERM ends the process like Ctrl-C, so that files are deleted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
