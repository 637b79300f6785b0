"""What the command shows while it works: the stage, how far it is, and the time left."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from riemannian_diffusion.events import Event
from riemannian_diffusion.pipelines.progress import TITLES, Estimate

TICK = 0.5  # seconds between two updates of the line on a terminal
REMIND = 30.0  # seconds between two lines in a file
CLEAR = "\r\x1b[K"


class Progress:
    """Shows on a terminal one line that is kept up to date; elsewhere prints a line for each stage.

    The terminal is that of stderr. Without one, the lines go to stdout, and another one comes every
    30 s. As a context it updates the line also where no events come, as during imports.

    Attributes:
        estimate: What predicts the time left, or None.
    """

    def __init__(self) -> None:
        self.estimate: Estimate | None = None
        self._text, self._stage, self._start = "", "", time.perf_counter()
        self._is_terminal = sys.stderr.isatty()
        self._told = self._start
        self._end, self._turn = threading.Event(), threading.Lock()

    def begin(self, text: str) -> None:
        """Begin a phase without events, such as loading."""
        with self._turn:
            self._text, self._stage = text, ""
            self._tell(f"{text} ...")

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if self.estimate is not None:
            self.estimate(event)
        if event.stage not in TITLES:
            return
        title = TITLES[event.stage].lower()
        count = f"{event.done}" if event.total is None else f"{event.done}/{event.total}"
        energy = "" if event.energy is None else f", energy {event.energy:.4g}"
        with self._turn:
            self._text = f"{title} {count}{energy}"
            if event.stage != self._stage:
                self._stage = event.stage
                self._tell(f"{title} ...{self._left(', ')}")
        if not self._is_terminal and time.perf_counter() - self._told > REMIND:
            self._tell(self._line())

    def __enter__(self) -> Progress:
        """Begin to update the line."""
        if self._is_terminal:
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        """Remove the line."""
        with self._turn:
            self._end.set()
            if self._is_terminal:
                print(CLEAR, end="", file=sys.stderr, flush=True)

    def _tick(self) -> None:
        while not self._end.wait(TICK):
            with self._turn:
                if self._text and not self._end.is_set():
                    print(f"{CLEAR}{self._line()}", end="", file=sys.stderr, flush=True)

    def _line(self) -> str:
        spent = clock(time.perf_counter() - self._start)
        return f"{self._text} ({spent}{self._left(', ')})"

    def _left(self, before: str) -> str:
        left = None if self.estimate is None else self.estimate.seconds_left()
        return "" if left is None else f"{before}{between(*left)} left"

    def _tell(self, text: str) -> None:
        """Show a text on the terminal, or write a line to the output."""
        self._told = time.perf_counter()
        if self._is_terminal:
            print(f"{CLEAR}{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, flush=True)


def clock(seconds: float) -> str:
    """Seconds as `0:07` or `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def between(least: float, most: float) -> str:
    """A range of seconds as no more than is known of it: `about 40 s`, `5 s to 2 min`."""
    first, last = rounded(least), rounded(most)
    return f"about {last}" if first == last else f"{first} to {last}"


def rounded(seconds: float) -> str:
    """Seconds as no more than is known of them: `5 s`, `40 s`, `3 min`, `2 h 10 min`."""
    if seconds < 57:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(10 * round(minutes / 10), 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"
