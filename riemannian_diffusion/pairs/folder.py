"""The folder of a batch: settings, frames and reports of morphs, and failures.

    OUT/settings.json                  what all frames depend on
    OUT/<method>/<name>/               00.png, 01.png ..., the images in inputs/, and pair.json
    OUT/failed/<method>/<name>.json    why a morph failed

Everything is written to a folder of this process and then renamed, so that whatever is here is
whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riemannian_diffusion.pairs.claims import Process, names_in
from riemannian_diffusion.pairs.manifest import Pair

FAILED = "failed"


@dataclass(frozen=True)
class Made:
    """A morph to be written.

    Attributes:
        frames: The frames, PIL images.
        inputs: The two images as the model received them, PIL images.
        report: What else is known of it, as values for JSON.
    """

    frames: Sequence[Any]
    inputs: Sequence[Any]
    report: Mapping[str, Any]


class PairFolder:
    """The folder of a batch.

    Args:
        path: The folder.
        methods: The methods of this run.
        process: This process, which has begun.
    """

    def __init__(self, path: Path, methods: Sequence[str], process: Process):
        self.path, self.methods, self.process = path, list(methods), process

    def begin(self, settings: Mapping[str, Any], pairs: Iterable[Pair]) -> None:
        """Record the settings, or refuse to continue with other settings or other pairs.

        Args:
            settings: What all frames depend on, by flag, as values for JSON.
            pairs: The pairs.

        Raises:
            ValueError: Naming the difference.
        """
        record = self.path / "settings.json"
        if not record.exists():
            self.process.write_text(record, _as_json(settings))
        before = json.loads(record.read_text())
        for flag in sorted({*before, *settings}):
            old, new = before.get(flag), settings.get(flag)
            if old != new:
                raise ValueError(
                    f"{self.path} was begun with {flag} {_typed(old)}, but now it is "
                    f"{_typed(new)}: choose another folder, or give the earlier setting."
                )
        for pair in pairs:
            for method in self.methods:
                self._check(pair, method)

    def _check(self, pair: Pair, method: str) -> None:
        """Refuse a morph that was made from other images, prompts, frames or another seed."""
        report = _read(self._morph(pair, method) / "pair.json")
        if report is None:
            return
        for column, new in pair.described().items():
            old = report["pair"].get(column)
            if old != new:
                raise ValueError(
                    f"{self._morph(pair, method)} was made with {column} {old!r}, but now it is "
                    f"{new!r}: choose another folder, or delete that one."
                )

    def forget_failures(self) -> None:
        """Delete the records of failures of this run's methods, so that they are tried again."""
        for method in self.methods:
            shutil.rmtree(self.path / FAILED / method, ignore_errors=True)
        if not names_in(self.path / FAILED):
            shutil.rmtree(self.path / FAILED, ignore_errors=True)

    def missing(self, pair: Pair) -> list[str]:
        """The methods whose morph of a pair has neither been made nor failed."""
        return [
            method
            for method in self.methods
            if not self._morph(pair, method).exists() and not self._failure(pair, method).exists()
        ]

    def write(self, pair: Pair, method: str, made: Made) -> None:
        """Write a morph. If another process has written it in the meantime, nothing changes."""
        part = self.process.scratch / "morph"
        shutil.rmtree(part, ignore_errors=True)  # of a morph that could not be written
        (part / "inputs").mkdir(parents=True)
        for i, frame in enumerate(made.frames):
            frame.save(part / f"{i:02d}.png")
        for i, image in enumerate(made.inputs):
            image.save(part / "inputs" / f"{i}.png")
        report = {"pair": pair.described(), "method": method, **made.report}
        (part / "pair.json").write_text(_as_json(report))
        folder = self._morph(pair, method)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.replace(folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(part)

    def fail(self, pair: Pair, method: str, error: str, trace: str) -> None:
        """Record why a morph failed."""
        report = {"pair": pair.described(), "method": method, "error": error, "traceback": trace}
        record = self._failure(pair, method)
        record.parent.mkdir(parents=True, exist_ok=True)
        self.process.write_text(record, _as_json(report))

    def report(self, pair: Pair, method: str) -> dict[str, Any] | None:
        """The report of a morph or of its failure; None if there is none yet."""
        made = _read(self._morph(pair, method) / "pair.json")
        return _read(self._failure(pair, method)) if made is None else made

    def ended(self) -> tuple[set[str], set[str]]:
        """The names of pairs whose morphs have all been made or failed, and those with a failure.

        It lists folders and reads no files, so it is quick for many pairs.
        """
        ended, failed = [], set[str]()
        for method in self.methods:
            bad = {name.removesuffix(".json") for name in names_in(self.path / FAILED / method)}
            ended.append(bad.union(names_in(self.path / method)))
            failed |= bad
        return set.intersection(*ended), failed

    def _morph(self, pair: Pair, method: str) -> Path:
        return self.path / method / pair.name

    def _failure(self, pair: Pair, method: str) -> Path:
        return self.path / FAILED / method / f"{pair.name}.json"


def _as_json(report: Mapping[str, Any]) -> str:
    return json.dumps(report, indent=2) + "\n"


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None


def _typed(value: Any) -> str:
    """A setting as a sentence shows it."""
    return "not given" if value is None else json.dumps(value)
