"""Pairs of images: from a folder of images, or from the rows of a CSV or JSONL file."""

from __future__ import annotations

import csv
import json
import os
import re
import reprlib
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riemannian_diffusion.media.images import is_image, named

COLUMNS = ("name", "image_0", "image_1", "prompt_0", "prompt_1", "frames", "seed")
MOST_PROBLEMS = 10  # of a manifest that are listed
LONGEST_NAME = 200  # bytes; file systems take 255, and temporary names are longer
MOST_FRAMES = 100_000  # of a morph; more would not fit in memory
LONGEST_NUMBER = 20  # digits of the largest seed
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # of Windows

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Pair:
    """Two images to morph between.

    Attributes:
        name: Name of the pair, and of the folder of its frames.
        images: The two image files.
        prompts: One prompt for each image.
        num_frames: Number of frames, both images included.
        seed: Seed of random numbers.
        root: The folder to which `described` refers the images.
    """

    name: str
    images: tuple[Path, Path]
    prompts: tuple[str, str]
    num_frames: int
    seed: int
    root: Path

    def described(self) -> dict[str, Any]:
        """What the frames depend on, by column, as values for JSON."""
        found: dict[str, Any] = {"name": self.name}
        for i, image in enumerate(self.images):
            image, root = image.absolute(), self.root.absolute()
            inside = image.is_relative_to(root)
            found[f"image_{i}"] = (image.relative_to(root) if inside else image).as_posix()
        for i, prompt in enumerate(self.prompts):
            found[f"prompt_{i}"] = prompt
        return found | {"frames": self.num_frames, "seed": self.seed}


def read_pairs(source: Path, *, num_frames: int, seed: int, tell: Tell = print) -> list[Pair]:
    """The pairs of a folder or a manifest.

    A folder has images `<name>_0.png` and `<name>_1.png`, as in MorphBench, also in sub-folders. A
    manifest is a CSV file with a header or a JSONL file. Each row is a pair, with the columns
    `image_0` and `image_1` (paths relative to the manifest) and perhaps `name`, `prompt_0`,
    `prompt_1`, `frames` and `seed`.

    Args:
        source: The folder or the manifest.
        num_frames: Number of frames of pairs that do not say it.
        seed: Seed of pairs that do not say it.
        tell: Receives a sentence about images of the folder that make no pair.

    Raises:
        OSError: If `source` does not exist.
        ValueError: If there are no pairs, or some of them are wrong. All bad rows are named.
    """
    if source.is_dir():
        return [
            Pair(name, images, ("", ""), num_frames, seed, source)
            for name, images in find_pairs(source, tell).items()
        ]
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: give a folder, a CSV or a JSONL file.")
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    if source.suffix.lower() not in readers:
        raise ValueError(f"{source} must be a folder, or end in .csv or .jsonl.")
    try:
        rows = list(readers[source.suffix.lower()](source))
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not text in UTF-8: save it as UTF-8 ({error}).") from error
    pairs, problems, places = [], [], dict[str, tuple[str, str]]()
    for number, (line, row) in enumerate(rows, 1):
        place = f"row {number} (line {line})"
        found, wrong = _pair_of(row, number, source.parent, num_frames, seed)
        if found is not None:
            name, before = places.setdefault(_on_disk(found.name), (found.name, place))
            if before != place:
                wrong = [_double(found.name, name, before)]
            pairs.append(found)
        problems += [f"{place} {problem}" for problem in wrong]
    if problems:
        more = len(problems) - MOST_PROBLEMS
        listed = problems[:MOST_PROBLEMS] + ([f"and {more} more problems"] if more > 0 else [])
        raise ValueError(f"{source} has bad rows. {'; '.join(listed)}.")
    if not pairs:
        raise ValueError(f"{source} has no rows: add one for each pair.")
    return pairs


def find_pairs(folder: Path, tell: Tell = print) -> dict[str, tuple[Path, Path]]:
    """The pairs of images in a folder and its sub-folders, by name.

    The name of a pair in a sub-folder starts with the name of that sub-folder and a dash. Files and
    folders whose names start with a dot are ignored.

    Args:
        folder: The folder.
        tell: Receives a sentence about images that make no pair.

    Raises:
        ValueError: If there are none, one image of a pair is missing, or two pairs have one name.
    """
    found: dict[str, dict[str, Path]] = {}
    others = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts) or not (is_image(path) and path.is_file()):
            continue
        stem, _, end = path.stem.rpartition("_")
        if not (stem and end in ("0", "1")):
            others.append(path)
            continue
        name = "-".join((*parts[:-1], stem))
        if end in found.setdefault(name, {}):
            raise ValueError(
                f"{path} and {found[name][end]} are both image {end} of the pair {name}: "
                "rename one."
            )
        found[name][end] = path
    places: dict[str, str] = {}
    for name, ends in found.items():
        if len(ends) == 1:
            (path,) = ends.values()
            raise ValueError(f"The pair {name} has only {path}: add the other image.")
        if problem := _bad_name(name):
            raise ValueError(f"The pair {name} {problem}: rename its images.")
        other = places.setdefault(_on_disk(name), name)
        if other != name:
            where = str(found[other]["0"].parent)
            raise ValueError(f"The pair {name} {_double(name, other, where)}: rename its images.")
    if not found:
        raise ValueError(
            f"{folder} has no pairs of images: name them <name>_0.png and <name>_1.png, or list "
            "them in a CSV or a JSONL file."
        )
    if others:
        tell(
            f"not taken from the folder {folder}, as their names do not end in _0 or _1: "
            f"{named(others)}."
        )
    return {name: (ends["0"], ends["1"]) for name, ends in found.items()}


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The first line and the cells of each row."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = _cells(csv.reader(file, strict=True, skipinitialspace=True), path)
        _, first = next(rows, (1, []))
        header = [name.strip() for name in first]
        while header and not header[-1]:  # a spreadsheet may end each row with commas
            header.pop()
        _check_header(path, header)
        for line, cells in rows:
            row = {name: cell for name, cell in zip(header, cells, strict=False) if cell}
            yield line, row | ({"": "more"} if any(cells[len(header) :]) else {})


def _cells(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The first line and the cells of each row that is not blank."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"{path} cannot be read from line {line} on: {error}. Put quotes around a cell "
                "that holds a comma, a quote or a new line, and write each quote inside it twice."
            ) from error
        if any(cell.strip() for cell in cells):
            yield line, cells


def _check_header(path: Path, header: list[str]) -> None:
    """Refuse a header with wrong columns."""
    for sign, name in ((";", "semicolons"), ("\t", "tabs")):
        if any(sign in cell for cell in header):
            raise ValueError(f"{path} has {name} between its cells: use commas.")
    needed, known = ("image_0", "image_1"), f"the columns are {', '.join(COLUMNS)}"
    if not {*needed} & {*header}:
        raise ValueError(
            f"{path} must begin with a line of the columns' names, such as "
            f"{','.join(needed)}: {known}."
        )
    unknown = [name for name in header if name not in COLUMNS]
    missing = [name for name in needed if name not in header]
    twice = sorted({name for name in header if header.count(name) > 1})
    for names, what in ((unknown, "has unknown"), (missing, "lacks"), (twice, "repeats")):
        if names:
            columns = "column" if len(names) == 1 else "columns"
            listed = ", ".join(map(repr, names))
            raise ValueError(f"{path} {what} {columns} {listed}: {known}.")


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The line and the values of each row, or an error where they cannot be read."""
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            row = ValueError(f"is not JSON: {error} (write one object on each line)")
        except (ValueError, RecursionError) as error:  # of `_object`; or too deep, or too long
            row = ValueError(f"cannot be read: {error}")
        if isinstance(row, dict):
            row = {name: value for name, value in row.items() if value is not None}
        yield line, row


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose names differ."""
    found = dict(items)
    if len(found) < len(items):
        twice = next(name for i, (name, _) in enumerate(items) if name in dict(items[:i]))
        raise ValueError(f"{twice!r} is given twice")
    return found


def _pair_of(
    row: Any, number: int, root: Path, num_frames: int, seed: int
) -> tuple[Pair | None, list[str]]:
    """The pair of a row, or None and what is wrong with it."""
    if isinstance(row, Exception):
        return None, [str(row)]
    if not isinstance(row, dict):
        return None, ["is no object of names and values (write one object on each line)"]
    problems = []
    if "" in row:
        problems.append("has more cells than the header")
    if unknown := sorted(set(row) - {*COLUMNS, ""}):
        known = ", ".join(COLUMNS)
        problems.append(f"has unknown columns {', '.join(map(repr, unknown))} (known: {known})")
    for name in ("name", "image_0", "image_1", "prompt_0", "prompt_1"):
        if not _is_text(row.get(name, "")):
            problems.append(f"has {name} {reprlib.repr(row[name])}, which is no text")
    if problems:
        return None, problems
    images = []
    for name in ("image_0", "image_1"):
        if not row.get(name):
            problems.append(f"lacks {name}")
            continue
        images.append(root / row[name])
        if not os.path.isfile(images[-1]):  # False as well where the name is too long for a file
            is_there = os.path.exists(images[-1])
            why = "is no file" if is_there else "does not exist"
            problems.append(f"has {name} {row[name]!r}, but {images[-1]} {why}")
    name = row.get("name") or f"row{number:05d}"
    if problem := _bad_name(name):
        problems.append(problem)
    numbers = {"frames": num_frames, "seed": seed}
    for key, low, high in (("frames", 2, MOST_FRAMES), ("seed", 0, 2**64 - 1)):
        value = row.get(key, numbers[key])
        text = value.strip() if isinstance(value, str) else ""
        if text.isdecimal() and len(text) <= LONGEST_NUMBER:
            value = int(text)
        numbers[key] = value
        if type(value) is not int or not low <= value <= high:
            problems.append(
                f"has {key} {reprlib.repr(value)}, which is no whole number from {low} to {high}"
            )
    if problems:
        return None, problems
    prompts = row.get("prompt_0", ""), row.get("prompt_1", "")
    pair = Pair(name, (images[0], images[1]), prompts, numbers["frames"], numbers["seed"], root)
    return pair, []


def _is_text(value: Any) -> bool:
    """Whether a value is text that can be written: JSON can hold halves of characters."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _on_disk(name: str) -> str:
    """What some file systems make of a name: they do not tell cases or forms of Unicode apart."""
    return unicodedata.normalize("NFC", name).casefold()


def _double(name: str, other: str, where: str) -> str:
    """What is wrong with a name, given another pair's."""
    if name == other:
        return f"has the name {name}, as {where} has"
    return f"has the name {name}, which some file systems take for {other} of {where}"


def _bad_name(name: str) -> str | None:
    """Why a name cannot be that of a folder, or None."""
    if (
        name.startswith(".")
        or name.endswith((".", " "))
        or any(c in '/\\:*?"<>|' or not c.isprintable() for c in name)
        or DEVICES.fullmatch(name)
    ):
        return f"has the name {name!r}, which cannot be a folder's"
    if len(name.encode()) > LONGEST_NAME:
        return f"has a name of more than {LONGEST_NAME} bytes"
    return None
