"""Results in words, and in a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from riemannian_diffusion.app.labels import with_labels
from riemannian_diffusion.app.morphs import Morph
from riemannian_diffusion.geodesics import Geodesic
from riemannian_diffusion.pipelines.quality import psnr

EVEN = 1.5  # the largest speed over the mean of a morph that changes evenly


def in_words(morphs: Sequence[Morph], *, reused: bool = False) -> str:
    """What came out, in Markdown: warnings, then a paragraph for each morph, then a comparison.

    Args:
        morphs: Morphs between the same images.
        reused: Whether the images had been inverted before.
    """
    warnings = list(dict.fromkeys(text for morph in morphs for text in morph.warnings))
    parts = [f"**Warning:** {with_labels(text)}" for text in warnings]
    for morph in morphs:
        sentences = [f"{morph.verdict}.", *_solved(morph.geodesics), _pace(morph)]
        parts.append(f"**{morph.name}** is {' '.join(sentences)}")
    if len(morphs) == 2:
        parts.append(_compared(*morphs))
    if reused:
        parts.append("The images were not inverted again: nothing that this needs has changed.")
    return "\n\n".join(parts)


def speeds(morph: Morph) -> np.ndarray:
    """How much the picture changes from each frame to the next `(F - 1,)`, its mean is 1."""
    pixels = np.stack([np.asarray(frame, np.float32) for frame in morph.frames])
    steps = np.sqrt(np.square(np.diff(pixels, axis=0)).sum(axis=(1, 2, 3), dtype=np.float64))
    return steps / steps.mean() if steps.any() else np.ones(len(steps))


def _solved(geodesics: Sequence[Geodesic | None]) -> list[str]:
    """What the solver says of the path."""
    found = [one for one in geodesics if one is not None]
    if not found:
        return ["It is a curve that is computed without solving."]
    return list(dict.fromkeys(with_labels(one.message) for one in found))


def _pace(morph: Morph) -> str:
    most = speeds(morph).max()
    how = "evenly" if most <= EVEN else "unevenly"
    return (
        f"The picture changes {how}: between two frames by up to {most:.1f} times the mean. "
        f"{len(morph.frames)} frames took {morph.seconds:.1f} s."
    )


def _compared(first: Morph, second: Morph) -> str:
    one, other = (speeds(morph).max() for morph in (first, second))
    if abs(one - other) < 0.05:
        return f"**{first.name}** and **{second.name}** change equally evenly."
    better, worse = (first, second) if one < other else (second, first)
    return f"**{better.name}** changes more evenly than **{worse.name}**."


def table(morphs: Sequence[Morph]) -> str:
    """A table in Markdown: a row for each number, a column for each gap of each morph."""
    columns = [["", "energy", "lower bound", "stays on the data", "evaluations", "status"]]
    columns[0] += ["images return with", "seconds"]
    for morph in morphs:
        returned = ", ".join(f"{psnr(error):.1f}" for error in morph.errors) + " dB"
        for title, found in zip(morph.titles, morph.geodesics, strict=True):
            solved = ["–"] * 5
            if found is not None:
                on_data = {True: "yes", False: "no", None: "–"}[found.on_data]
                has_bound = math.isfinite(found.lower_bound)
                bound = f"{found.lower_bound:.4g}" if has_bound else "–"
                solved = [f"{found.energy:.4g}", bound, on_data, str(found.num_evals), found.status]
            columns.append([title, *solved, returned, f"{morph.seconds:.1f}"])
    rows = list(zip(*columns, strict=True))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])
