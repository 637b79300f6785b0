"""What Ctrl-C does to the command: exit status 130, one or two lines, and no traceback."""

from __future__ import annotations

import atexit
import gc
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from riemannian_diffusion.files import delete_unfinished

LINE = "riemannian-diffusion: interrupted"
STOPPING = (
    "riemannian-diffusion: stopping after the current step of the network; press Ctrl-C again to "
    "end at once"
)
SOON = 0.3  # seconds that the command may take to stop before it says that it is stopping
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
        _write(LINE)
        os._exit(130)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Interrupts:
    """Answers the first interrupt within half a second, and ends the process at the second one.

    PyTorch runs operations of many seconds, during which Python raises no `KeyboardInterrupt`. A
    thread is woken by the signal itself. It says that the command is stopping, if that takes long.
    At the second interrupt it deletes what is half written and ends the process. It works as a
    context, and only in the main thread, which alone receives signals.

    Interrupts that arrive where Python cannot raise them, as in a `__del__`, are sent again.

    Args:
        end_at_second: Whether to do all this; otherwise only lost interrupts are sent again.
    """

    def __init__(self, *, end_at_second: bool = True):
        self._is_told = not end_at_second
        self._num_again = 0  # interrupts that this process has sent to itself
        self._watches = end_at_second
        self._watches &= threading.current_thread() is threading.main_thread()

    def tell(self, error: KeyboardInterrupt) -> None:
        """Say that the command was interrupted, and what the interrupt says."""
        self._is_told = True
        print(". ".join([LINE, *map(str, error.args)]), file=sys.stderr)

    def __enter__(self) -> Interrupts:
        """Begin."""
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        if self._watches:
            self._woken, self._waking = socket.socketpair()
            self._waking.setblocking(False)
            self._before = signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._wait, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        """End."""
        sys.unraisablehook = self._hook
        if self._watches:
            signal.set_wakeup_fd(self._before)
            self._waking.close()
            self._thread.join()
            self._woken.close()

    def _wait(self) -> None:
        num = 0
        while True:
            wait = SOON if num > 0 and not self._is_told else None
            if not select.select([self._woken], [], [], wait)[0]:
                if not self._is_told:
                    self._is_told = True
                    _write(STOPPING)
                continue
            signals = self._woken.recv(64)
            if not signals:
                return
            num += signals.count(signal.SIGINT)
            if num - self._num_again > 1:
                _write(LINE)
                delete_unfinished()
                os._exit(130)

    def _unraisable(self, found: Any) -> None:
        if not issubclass(found.exc_type, KeyboardInterrupt):
            self._hook(found)
            return
        again = threading.Timer(AGAIN, self._send_again)
        again.daemon = True
        again.start()

    def _send_again(self) -> None:
        self._num_again += 1
        signal.raise_signal(signal.SIGINT)


def _write(line: str) -> None:
    """Write a line to stderr, below the line of progress."""
    os.write(2, f"\n{line}\n".encode() if os.isatty(2) else f"{line}\n".encode())


def finish_quietly() -> None:
    """Let the process ignore interrupts when Python ends, and end soon: the work is done then.

    Python gives up its own handler at its end, so that an interrupt would kill the process. It also
    looks for garbage among all objects of the imported libraries, which takes more than a second.
    """
    atexit.unregister(_finish)
    atexit.register(_finish)


def _finish() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
