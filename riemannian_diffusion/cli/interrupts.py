"""What Ctrl-C does to the command: one line, exit status 130, and no traceback."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LINE = "riemannian-diffusion: interrupted"
AGAIN = 0.05  # seconds after which an interrupt that was lost is sent again


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """End the process at the first interrupt, while there is nothing to clean up.

    Imports of compiled modules can neither be undone nor repeated, and some of them swallow an
    exception or turn it into another one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return

    def leave(*_: Any) -> None:
        os.write(2, f"\n{LINE}\n".encode() if os.isatty(2) else f"{LINE}\n".encode())
        os._exit(130)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def no_interrupt_lost() -> Iterator[None]:
    """Send an interrupt again that arrived where Python cannot raise it, as in a `__del__`."""
    before = sys.unraisablehook

    def report(found: Any) -> None:
        if not issubclass(found.exc_type, KeyboardInterrupt):
            before(found)
            return
        again = threading.Timer(AGAIN, signal.raise_signal, [signal.SIGINT])
        again.daemon = True
        again.start()

    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = before


def finish_quietly() -> None:
    """Let the process ignore interrupts when Python ends: the work is done then.

    Python gives up its own handler at its end, so that an interrupt would kill the process.
    """
    atexit.unregister(_ignore)
    atexit.register(_ignore)


def _ignore() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
