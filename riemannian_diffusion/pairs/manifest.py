"""Pairs of images: from a folder of images, or from the rows of a CSV or JSONL file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
COLUMNS = ("name", "image_0", "image_1", "prompt_0", "prompt_1", "frames", "seed")
MOST_PROBLEMS = 10  # of a manifest that are listed
LONGEST_NAME = 200  # bytes; file systems take 255, and temporary names are longer


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
            inside = image.is_relative_to(self.root)
            found[f"image_{i}"] = (image.relative_to(self.root) if inside else image).as_posix()
        for i, prompt in enumerate(self.prompts):
            found[f"prompt_{i}"] = prompt
        return found | {"frames": self.num_frames, "seed": self.seed}


def read_pairs(source: Path, *, num_frames: int, seed: int) -> list[Pair]:
    """The pairs of a folder or a manifest.

    A folder has images `<name>_0.png` and `<name>_1.png`, as in MorphBench, also in sub-folders. A
    manifest is a CSV file with a header or a JSONL file. Each row is a pair, with the columns
    `image_0` and `image_1` (paths relative to the manifest) and perhaps `name`, `prompt_0`,
    `prompt_1`, `frames` and `seed`.

    Args:
        source: The folder or the manifest.
        num_frames: Number of frames of pairs that do not say it.
        seed: Seed of pairs that do not say it.

    Raises:
        OSError: If `source` does not exist.
        ValueError: If there are no pairs, or some of them are wrong. All bad rows are named.
    """
    if source.is_dir():
        return [
            Pair(name, images, ("", ""), num_frames, seed, source)
            for name, images in find_pairs(source).items()
        ]
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: give a folder, a CSV or a JSONL file.")
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    if source.suffix.lower() not in readers:
        raise ValueError(f"{source} must be a folder, or end in .csv or .jsonl.")
    try:
        rows = list(readers[source.suffix.lower()](source))
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not text in UTF-8: {error}.") from error
    pairs, problems, places = [], [], dict[str, str]()
    for number, (line, row) in enumerate(rows, 1):
        place = f"row {number} (line {line})"
        found, wrong = _pair_of(row, number, source.parent, num_frames, seed)
        if found is not None and found.name in places:
            wrong = [f"has the name {found.name}, as {places[found.name]} has"]
        elif found is not None:
            places[found.name] = place
            pairs.append(found)
        problems += [f"{place} {problem}" for problem in wrong]
    if problems:
        more = len(problems) - MOST_PROBLEMS
        listed = problems[:MOST_PROBLEMS] + ([f"and {more} more problems"] if more > 0 else [])
        raise ValueError(f"{source} has bad rows. {'; '.join(listed)}.")
    if not pairs:
        raise ValueError(f"{source} has no rows: add one for each pair.")
    return pairs


def find_pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """The pairs of images in a folder and its sub-folders, by name.

    The name of a pair in a sub-folder starts with the name of that sub-folder and a dash.

    Raises:
        ValueError: If there are none, one image of a pair is missing, or two pairs have one name.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    found: dict[str, dict[str, Path]] = {}
    for path in files:
        stem, _, end = path.stem.rpartition("_")
        if stem and end in ("0", "1"):
            name = "-".join((*path.relative_to(folder).parent.parts, stem))
            if end in found.setdefault(name, {}):
                raise ValueError(
                    f"{path} and {found[name][end]} are both image {end} of the pair {name}: "
                    "rename one."
                )
            found[name][end] = path
    for name, ends in found.items():
        if len(ends) == 1:
            (path,) = ends.values()
            raise ValueError(f"The pair {name} has only {path}: add the other image.")
        if problem := _bad_name(name):
            raise ValueError(f"The pair {name} {problem}: rename its images.")
    if not found:
        raise ValueError(f"{folder} has no images: name them <name>_0.png and <name>_1.png.")
    return {name: (ends["0"], ends["1"]) for name, ends in found.items()}


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The line and the cells of each row."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restkey="")
        header = list(reader.fieldnames or ())
        unknown = [name for name in header if name not in COLUMNS]
        missing = [name for name in ("image_0", "image_1") if name not in header]
        twice = sorted({name for name in header if header.count(name) > 1})
        for names, what in ((unknown, "the unknown"), (missing, "not the"), (twice, "twice the")):
            if names:
                raise ValueError(
                    f"{path} has {what} columns {', '.join(map(repr, names))}: the columns are "
                    f"{', '.join(COLUMNS)}."
                )
        for row in reader:
            yield reader.line_num, {name: cell for name, cell in row.items() if cell}


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The line and the values of each row; a row that is not JSON is an error."""
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            row = error
        if isinstance(row, dict):
            row = {name: value for name, value in row.items() if value is not None}
        yield line, row


def _pair_of(
    row: Any, number: int, root: Path, num_frames: int, seed: int
) -> tuple[Pair | None, list[str]]:
    """The pair of a row, or None and what is wrong with it."""
    if isinstance(row, Exception):
        return None, [f"is not JSON: {row}"]
    if not isinstance(row, dict):
        return None, ["is no object of names and values"]
    problems = []
    if "" in row:
        problems.append("has more cells than the header")
    if unknown := sorted(set(row) - {*COLUMNS, ""}):
        known = ", ".join(COLUMNS)
        problems.append(f"has unknown columns {', '.join(map(repr, unknown))} (known: {known})")
    for name in ("name", "image_0", "image_1", "prompt_0", "prompt_1"):
        if not isinstance(row.get(name, ""), str):
            problems.append(f"has {name} {row[name]!r}, which is no text")
    if problems:
        return None, problems
    images = []
    for name in ("image_0", "image_1"):
        if not row.get(name):
            problems.append(f"lacks {name}")
            continue
        images.append(root / row[name])
        if not images[-1].is_file():
            problems.append(f"has {name} {row[name]!r}, but {images[-1]} does not exist")
    name = row.get("name") or f"row{number:05d}"
    if problem := _bad_name(name):
        problems.append(problem)
    numbers = {"frames": num_frames, "seed": seed}
    for key, low, high in (("frames", 2, 10**6), ("seed", 0, 2**64 - 1)):
        value = row.get(key, numbers[key])
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        numbers[key] = value
        if type(value) is not int or not low <= value <= high:
            problems.append(f"has {key} {value!r}, which is no whole number from {low} to {high}")
    if problems:
        return None, problems
    prompts = row.get("prompt_0", ""), row.get("prompt_1", "")
    pair = Pair(name, (images[0], images[1]), prompts, numbers["frames"], numbers["seed"], root)
    return pair, []


def _bad_name(name: str) -> str | None:
    """Why a name cannot be that of a folder, or None."""
    if name.startswith(".") or any(c in '/\\:*?"<>|' or not c.isprintable() for c in name):
        return f"has the name {name!r}, which cannot be a folder's"
    if len(name.encode()) > LONGEST_NAME:
        return f"has a name of more than {LONGEST_NAME} bytes"
    return None
