"""Work of visitors that is kept, so that another metric starts from it at once."""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from riemannian_diffusion.adaptation import Adaptation
from riemannian_diffusion.pipelines import Keyframes

Work = TypeVar("Work", Keyframes, Adaptation)


@dataclass(frozen=True)
class _Entry:
    file: Path
    num_bytes: int
    since: float


class KeptWork:
    """Inverted images, and what was fitted to images; the oldest go first.

    Files are limited in number, size and age. They lie in a folder of their own, which the page
    does not serve and which is deleted at exit. On disk they hold no model in memory.

    Args:
        per_visitor: Most files of one visitor.
        num: Most files of all visitors.
        num_bytes: Most bytes of all of them.
        seconds: The age at which they are deleted.
    """

    def __init__(
        self,
        *,
        per_visitor: int = 4,
        num: int = 100,
        num_bytes: int = 2**30,
        seconds: float = 3600,
    ):
        self._limits = per_visitor, num, num_bytes, seconds
        self._folder = tempfile.TemporaryDirectory(prefix="riemannian-diffusion-kept-")
        self._entries: dict[tuple[str | None, str], _Entry] = {}  # the oldest first
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._names = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, visitor: str | None, name: str, kind: type[Work]) -> Work | None:
        """What was kept for a visitor, or None.

        Args:
            visitor: Whose it is: nobody else finds it.
            name: What it was kept under.
            kind: Its class.
        """
        with self._lock:
            self._trim()
            entry = self._entries.get((visitor, name))
            return None if entry is None else kind.load(entry.file)

    def keep(self, visitor: str | None, name: str, work: Work) -> None:
        """Keep work, in place of the oldest if there is too much.

        Args:
            visitor: Whose it is.
            name: What it is found under.
            work: The work.
        """
        with self._lock:
            file = Path(self._folder.name) / f"{next(self._names)}.safetensors"
            work.save(file)
            self._drop(visitor, name)
            entry = _Entry(file, file.stat().st_size, time.monotonic())
            self._entries[visitor, name] = entry
            self._trim()
            self._watch()

    def forget(self, visitor: str | None) -> None:
        """Delete what was kept for a visitor."""
        with self._lock:
            for who, name in [*self._entries]:
                if who == visitor:
                    self._drop(who, name)

    def _drop(self, visitor: str | None, name: str) -> None:
        entry = self._entries.pop((visitor, name), None)
        if entry is not None:
            entry.file.unlink(missing_ok=True)

    def _trim(self) -> None:
        """Delete what is too old or too much."""
        per_visitor, num, num_bytes, seconds = self._limits
        counts: dict[str | None, int] = {}
        total, before = 0, time.monotonic() - seconds
        for i, (key, entry) in enumerate(reversed([*self._entries.items()])):
            visitor = key[0]
            counts[visitor] = counts.get(visitor, 0) + 1
            total += entry.num_bytes
            is_too_much = counts[visitor] > per_visitor or i >= num or total > num_bytes
            if is_too_much or entry.since <= before:
                self._drop(*key)

    def _watch(self) -> None:
        """Look again when the oldest has reached its age."""
        if self._timer is not None or not self._entries:
            return
        oldest = next(iter(self._entries.values()))
        wait = max(0.0, oldest.since + self._limits[3] - time.monotonic()) + 0.01
        self._timer = threading.Timer(wait, self._look)
        self._timer.daemon = True
        self._timer.start()

    def _look(self) -> None:
        with self._lock:
            self._timer = None
            self._trim()
            self._watch()
