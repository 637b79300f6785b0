"""Results of morphs as visitors see them."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from matplotlib.figure import Figure

from riemannian_diffusion.app.studio import Morph
from riemannian_diffusion.media import write_frames
from riemannian_diffusion.plotting import contact_sheet, plot_energy, plot_speed

SHEET_HEIGHT = 128  # pixels of a row at most: the frames themselves are among the files


def sheet(morphs: Sequence[Morph]) -> PIL.Image.Image:
    """All frames of every morph, a row each."""
    width, height = morphs[0].frames[0].size
    scale = min(1.0, SHEET_HEIGHT / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    rows = {
        morph.name: [frame.resize(size, PIL.Image.Resampling.LANCZOS) for frame in morph.frames]
        for morph in morphs
    }
    return contact_sheet(rows, len(morphs[0].frames))


def write_files(morph: Morph, folder: Path, fps: float) -> tuple[str, str]:
    """The morph as a video, and a ZIP file of its frames."""
    video, frames = folder / f"{morph.name}.mp4", folder / f"{morph.name}"
    write_frames(morph.frames, video, fps)
    write_frames(morph.frames, frames, fps)
    packed = folder / f"{morph.name}_frames.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for frame in sorted(frames.iterdir()):
            archive.write(frame, frame.name)
    return str(video), str(packed)


def summarise(morphs: Sequence[Morph]) -> str:
    """Warnings, a table of the morphs with a row for every gap, and their states, in Markdown."""
    titles = (
        *("metric", "energy", "lower bound", "stays on the data", "evaluations"),
        *("reconstruction error", "seconds"),
    )
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    notes = []
    for morph in morphs:
        errors = ", ".join(f"{error:.2g}" for error in morph.errors)
        for i, found in enumerate(morph.geodesics):
            name = f"{morph.name}, gap {i + 1}" if len(morph.geodesics) > 1 else morph.name
            solved = ("–",) * 4
            if found is not None:
                on_data = {True: "yes", False: "no", None: "–"}[found.on_data]
                bound = f"{found.lower_bound:.4g}" if math.isfinite(found.lower_bound) else "–"
                solved = (f"{found.energy:.4g}", bound, on_data, str(found.num_evals))
                notes.append(f"**{name}**, {found.status}: {found.message}")
            lines.append(f"| {' | '.join((name, *solved, errors, f'{morph.seconds:.1f}'))} |")
    distinct = dict.fromkeys(text for morph in morphs for text in morph.warnings)
    above = [f"**Warning:** {text}" for text in distinct]
    return "\n\n".join([*above, "\n".join(lines), *notes])


def draw_energies(morphs: Sequence[Morph]) -> Figure | None:
    """Energy against evaluations of every solve; None where nothing was solved."""
    solves: dict[str, Any] = {
        f"{morph.name}, gap {i + 1}" if len(morph.solves) > 1 else morph.name: iterates
        for morph in morphs
        for i, iterates in enumerate(morph.solves)
    }
    if not any(solves.values()):
        return None
    figure = Figure(figsize=(5, 3), dpi=150, layout="constrained")
    axes = figure.subplots()
    plot_energy(axes, solves)
    axes.set_title("Energy of the path", fontsize=10)
    return figure


def draw_speeds(morphs: Sequence[Morph]) -> Figure:
    """How much the picture changes from frame to frame, against the mean of that."""
    paths = {}
    for morph in morphs:
        pixels = np.stack([np.asarray(frame) for frame in morph.frames])
        paths[morph.name] = torch.from_numpy(pixels).float() / 255
    figure = Figure(figsize=(5, 3), dpi=150, layout="constrained")
    axes = figure.subplots()
    plot_speed(axes, paths)
    axes.set_title("How fast the picture changes", fontsize=10)
    return figure
