"""What the steps of `gpu.py` measured, as Markdown: all rows of all steps, the targets first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

ABOUT = {  # what each step of `gpu.py` measures
    "full_size": "Morphs by models of full size, next to the targets",
    "model_costs": "Evaluations of networks of full size",
    "cost_sd15": "Evaluations of Stable Diffusion 1.5, eager and compiled",
    "memory_sd15": "Memory of an evaluation with gradient, Stable Diffusion 1.5",
    "memory_sdxl": "Memory of an evaluation with gradient, Stable Diffusion XL",
    "cost_large": "Evaluations of Stable Diffusion XL and Flux",
    "precision": "Accuracy in narrow dtypes, shipped model",
    "precision_sd15": "Accuracy in narrow dtypes, Stable Diffusion 1.5",
    "scale": "Time by the number of points, the number of pairs and the size of images",
    "main_job": "The whole command, shipped model",
    "solvers_demo": "Solvers, shipped model",
}
NONE = "No GPU has run `benchmarks/gpu.py` yet.\n"


def file_of(folder: Path, step: str, kind: str, date: str = "????-??-??") -> Path:
    """The file with all rows of a step: of a date, or a pattern for those of all dates."""
    return folder / f"{date}_gpu_{step}_{kind}.json"


def stopped(file: Path) -> Path:
    """The file with the rows of a step that did not come to its end."""
    return file.with_name(f"{file.stem}_stopped.json")


def newest(folder: Path, step: str, kind: str) -> Path | None:
    """The newest file of a step, preferably one that came to its end; None if there is none."""
    pattern = file_of(folder, step, kind)
    for name in (pattern.name, stopped(pattern).name):
        found = sorted(folder.glob(name))
        if found:
            return found[-1]
    return None


def report(folder: Path, kind: str = "cuda") -> str:
    """The tables of all steps that ran.

    Args:
        folder: The folder of results.
        kind: Ending of the names of the files: "cuda", or "rehearsal".
    """
    parts = []
    for step, about in ABOUT.items():
        file = newest(folder, step, kind)
        if file is None:
            continue
        made = json.loads(file.read_text())
        end = " It was stopped before its end." if file.stem.endswith("stopped") else ""
        head = f"{about} ({made['machine'].partition(',')[0]}, {made['date']}).{end}"
        parts.append("".join([head, "\n", *_tables(made["rows"])]))
    return "\n".join(parts) or NONE


def _tables(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One table for each run of rows with the same keys."""
    for names, some in groupby(rows, key=tuple):
        lines = [names, ["---"] * len(names), *([_text(v) for v in row.values()] for row in some)]
        yield "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
