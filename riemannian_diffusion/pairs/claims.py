"""Processes that share a folder, and their claims on names, so that no two do one thing at once.

Each process has a folder `.processes/<id>/` for what it has not yet finished, and touches it again
and again. A process is dead if it has ended on this machine, or if its folder has not been touched
for long, by the watcher's own clock, so clocks need not agree. What a dead process has left is
deleted.

A claim is a file `.claims/<name>.<generation>` with the id of its process. It is made with O_EXCL,
which one process can do and no second one, also on a network file system. Whoever finds a claim
whose process is dead makes the file of the next generation. Claims on a name are deleted only once
its work is done, so a process must check after it has claimed a name whether the work is still to
be done.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riemannian_diffusion.files import unfinished

BEAT = 15.0  # seconds between touches
PATIENCE = 180.0  # seconds without a touch after which a process on another machine counts as dead
UNKNOWN = "unknown"  # a machine that does not show its processes


@dataclass(frozen=True)
class Claim:
    """A name that this process works on.

    Attributes:
        name: The name.
        generation: How many claims on it have ended before, their work undone.
    """

    name: str
    generation: int

    @property
    def file(self) -> str:
        """Name of the claim's file."""
        return f"{self.name}.{self.generation}"


class Process:
    """This process among those that share a folder. As a context, it lives until the end of it.

    Args:
        folder: The shared folder.
        beat: Seconds between touches.
        patience: Seconds without a touch after which a process on another machine counts as dead.

    Attributes:
        id: A name that no other process has.
        scratch: A folder of its own, for what is not yet finished.
    """

    def __init__(self, folder: Path, *, beat: float = BEAT, patience: float = PATIENCE):
        self.id = f"{_machine()}-{os.getpid()}-{_started(os.getpid())}-{uuid.uuid4().hex[:8]}"
        self._processes, self._claims = folder / ".processes", folder / ".claims"
        self.scratch = self._processes / self.id
        self._beat, self._patience = beat, patience
        self._seen: dict[Path, tuple[int, float]] = {}  # last touch of a file, when it was seen
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)
        self._unfinished = unfinished(self.scratch)

    def __enter__(self) -> Process:
        """Begin to live, and delete what dead processes have left."""
        _made(self.scratch)
        self._unfinished.__enter__()
        self._thread.start()
        self.sweep()
        return self

    def __exit__(self, *error: Any) -> None:
        """End, and give up all claims."""
        self._stop.set()
        self._thread.join()
        self.sweep()
        self._unfinished.__exit__(None, None, None)
        for folder in (self._processes, self._claims):
            with contextlib.suppress(OSError):  # other processes are there
                folder.rmdir()

    def take(self, name: str) -> Claim | None:
        """Claim a name; None if another living process has it, or was faster."""
        generation = max(self._generations(name), default=-1)
        if generation >= 0 and not self._is_free(Claim(name, generation)):
            return None
        claim = Claim(name, generation + 1)
        self._claims.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(self._claims / claim.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except (FileExistsError, FileNotFoundError):  # another process took it, or ended all work
            return None
        with open(file, "w") as opened:
            opened.write(self.id)
        return claim

    def holds(self, claim: Claim) -> bool:
        """Whether a claim is still this process's: nobody has taken the process for dead."""
        newest = max(self._generations(claim.name), default=-1)
        return newest == claim.generation and self.scratch.exists()

    def write_text(self, path: Path, text: str) -> None:
        """Write a file of the shared folder, whole or not at all."""
        part = self.scratch / "text"
        part.write_text(text, encoding="utf-8")
        part.replace(path)

    def finish(self, claim: Claim) -> None:
        """Delete a claim whose work is done, and those before it."""
        for generation in self._generations(claim.name):
            if generation <= claim.generation:
                (self._claims / f"{claim.name}.{generation}").unlink(missing_ok=True)

    def finish_dead(self, is_done: Callable[[str], bool]) -> None:
        """Delete the claims of dead processes on names whose work is done."""
        for name in {file.rpartition(".")[0] for file in names_in(self._claims)}:
            newest = Claim(name, max(self._generations(name), default=-1))
            if is_done(name) and self._is_free(newest):
                self.finish(newest)

    def is_alone(self) -> bool:
        """Whether no other process that may be alive has begun here."""
        self.sweep()
        return set(names_in(self._processes)) <= {self.id}

    def sweep(self) -> None:
        """Delete what dead processes have left."""
        for process in names_in(self._processes):
            if process != self.id and self._is_dead(process):
                shutil.rmtree(self._processes / process, ignore_errors=True)

    def _generations(self, name: str) -> list[int]:
        found = (file.rpartition(".") for file in names_in(self._claims))
        return [int(end) for stem, _, end in found if stem == name]

    def _is_free(self, claim: Claim) -> bool:
        """Whether the process of a claim is dead or has ended."""
        file = self._claims / claim.file
        try:
            owner = file.read_text()
        except FileNotFoundError:  # it has just been finished
            return False
        return self._is_dead(owner) if owner else self._is_untouched(file)

    def _is_dead(self, process: str) -> bool:
        folder = self._processes / process
        if not folder.exists():
            return True
        machine, number, started, _ = process.split("-")
        if machine == _machine() != UNKNOWN:
            return _started(int(number)) != started
        return self._is_untouched(folder)

    def _is_untouched(self, path: Path) -> bool:
        """Whether a file or folder has not been touched for long while this process watched it."""
        try:
            file = os.open(path, os.O_RDONLY)  # on a network file system this reads the true time
        except FileNotFoundError:
            return True
        touched = os.fstat(file).st_mtime_ns
        os.close(file)
        last = self._seen.get(path)
        if last is None or last[0] != touched:
            self._seen[path] = touched, time.monotonic()
            return False
        return time.monotonic() - last[1] > self._patience

    def _touch(self) -> None:
        while not self._stop.wait(self._beat):
            with contextlib.suppress(OSError):  # the file system is slow
                os.utime(self.scratch)


def _made(folder: Path) -> None:
    """Make a folder, while a process that ends may delete the empty folder above it."""
    while True:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return folder.mkdir()


def names_in(folder: Path) -> list[str]:
    """The names of what is in a folder; none if there is no such folder."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _machine() -> str:
    """A name of the set of processes that this process can see."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        seen = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return UNKNOWN
    return hashlib.sha256(seen.encode()).hexdigest()[:12]


def _started(process: int) -> str | None:
    """When a process of this machine started; None if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
