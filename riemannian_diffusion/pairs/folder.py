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

from riemannian_diffusion.files import as_json
from riemannian_diffusion.pairs.claims import Process, names_in
from riemannian_diffusion.pairs.manifest import Pair

FAILED, SETTINGS = "failed", "settings.json"


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

        Settings with which nothing has been made are replaced, for example those of a command with
        a wrong name of a model.

        Args:
            settings: What all frames depend on, by flag, as values for JSON.
            pairs: The pairs.

        Raises:
            ValueError: Naming the difference.
        """
        record = self.path / SETTINGS
        if self._is_unused() or not record.exists():
            self.process.write_text(record, as_json(settings))
        before = _read(record) or settings
        for flag in sorted({*before, *settings}):
            old, new = before.get(flag), settings.get(flag)
            if old != new:
                raise ValueError(
                    f"{self.path} was begun with {typed(flag, old)}, not with {typed(flag, new)}: "
                    "choose another folder, or give the earlier setting."
                )
        for pair in pairs:
            for method in self.methods:
                self._check(pair, method)

    def _check(self, pair: Pair, method: str) -> None:
        """Refuse a morph that was made from other images, prompts, frames or another seed."""
        report = self.report(pair, method)
        if report is None or "error" in report:
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
        (part / "pair.json").write_text(as_json(report))
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
        self.process.write_text(record, as_json(report))

    def report(self, pair: Pair, method: str) -> dict[str, Any] | None:
        """The report of a morph or of its failure; None if there is none yet.

        Raises:
            ValueError: If it is damaged or missing.
        """
        morph = self._morph(pair, method)
        if not morph.exists():
            return _read(self._failure(pair, method))
        report = _read(morph / "pair.json", damaged=morph)
        if report is None or "pair" not in report:
            raise ValueError(f"{morph} is no whole morph: delete it and run this again.")
        return report

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

    def _is_unused(self) -> bool:
        """Whether nothing has been made here, and no other process works here."""
        seen = {name for name in names_in(self.path) if not name.startswith(".")}
        return seen <= {SETTINGS} and self.process.is_alone()

    def _morph(self, pair: Pair, method: str) -> Path:
        return self.path / method / pair.name

    def _failure(self, pair: Pair, method: str) -> Path:
        return self.path / FAILED / method / f"{pair.name}.json"


def _read(file: Path, *, damaged: Path | None = None) -> dict[str, Any] | None:
    """An object in a JSON file; None if there is no such file.

    Args:
        file: The file.
        damaged: What to delete if it is damaged; None stands for the file itself.
    """
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: delete {damaged or 'it'} and run this again.")
    return found


def typed(flag: str, value: Any) -> str:
    """A setting as the user would type it."""
    if value is None or value is False or value == []:
        return f"no {flag}"
    if value is True:
        return flag
    values = value if isinstance(value, list) else [value]
    if flag == "--size":
        return f"--size {values[0]}x{values[-1]}"
    return " ".join(
        f"{flag} {one!r}" if isinstance(one, str) else f"{flag} {one}" for one in values
    )
