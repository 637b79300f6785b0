"""The table at the end of a batch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from riemannian_diffusion.files import as_json
from riemannian_diffusion.pairs.folder import PairFolder
from riemannian_diffusion.pairs.manifest import Pair

MOST_ROWS = 60  # that are printed
COLUMNS = (
    *("pair", "method", "status", "energy over bound", "on data", "reconstruction error"),
    *("seconds", "seconds of inversion"),
)


def rows_of(pairs: Iterable[Pair], folder: PairFolder) -> list[dict[str, Any]]:
    """One row for each pair and method.

    The status is that of the geodesic, "curve" for a method that solves for none, or "failed". The
    reconstruction error is the larger mean squared error of the two images, in [0, 1].
    """
    rows = []
    for pair in pairs:
        for method in folder.methods:
            report = folder.report(pair, method)
            if report is not None:
                rows.append({"pair": pair.name, "method": method} | _measured(report))
    return rows


def _measured(report: dict[str, Any]) -> dict[str, Any]:
    if "error" in report:
        return dict.fromkeys(COLUMNS[2:]) | {"status": "failed", "error": report["error"]}
    found = report["geodesic"] or {"status": "curve", "lower_bound": None, "on_data": None}
    # numbers that are not finite are null in reports
    bound, energy = found["lower_bound"], found.get("finer_energy")
    errors = report["reconstruction_error"]
    values = (
        found["status"],
        energy / bound if bound and energy is not None else None,
        found["on_data"],
        None if None in errors else max(errors),
        report["seconds"],
        report["seconds_of_inversion"],
    )
    return dict(zip(COLUMNS[2:], values, strict=True)) | {"error": None}


def means_of(rows: Sequence[dict[str, Any]], methods: Iterable[str]) -> list[dict[str, Any]]:
    """One row for each method: counts, and means over its pairs."""
    found = []
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        made = [row for row in mine if row["status"] != "failed"]
        solved = [row for row in made if row["status"] != "curve"]
        row = {"method": method, "made": len(made), "failed": len(mine) - len(made)}
        row["not converged"] = sum(row["status"] != "converged" for row in solved)
        row["off the data"] = sum(row["on data"] is False for row in solved)
        for column in COLUMNS[3:4] + COLUMNS[5:]:
            values = [one[column] for one in made if one[column] is not None]
            row[column] = sum(values) / len(values) if values else None
        found.append(row)
    return found


def write_summary(pairs: Sequence[Pair], folder: PairFolder) -> tuple[str, int]:
    """Write `summary.csv` and `summary.json`.

    Returns:
        The table as text, and the number of failed morphs.
    """
    rows = rows_of(pairs, folder)
    means = means_of(rows, folder.methods)
    written = io.StringIO()
    table = csv.DictWriter(written, [*COLUMNS, "error"], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    folder.process.write_text(folder.path / "summary.csv", written.getvalue())
    text = as_json({"methods": means, "morphs": rows})
    folder.process.write_text(folder.path / "summary.json", text)

    parts = [as_table([{name: row[name] for name in COLUMNS} for row in rows[:MOST_ROWS]])]
    if len(rows) > MOST_ROWS:
        parts.append(f"... and {len(rows) - MOST_ROWS} more in {folder.path / 'summary.csv'}")
    parts += ["", as_table(means)]
    failed = [row for row in rows if row["status"] == "failed"]
    parts += [f"{row['method']} {row['pair']} failed: {row['error']}" for row in failed[:MOST_ROWS]]
    return "\n".join(parts), len(failed)


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as text with aligned columns."""
    cells = [[*map(str, rows[0])]] + [[*map(_cell, row.values())] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
