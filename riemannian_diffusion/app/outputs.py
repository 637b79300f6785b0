"""Results of morphs as pictures, figures and files."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from riemannian_diffusion.app.morphs import Morph
from riemannian_diffusion.media import write_frames
from riemannian_diffusion.plotting import contact_sheet, plot_energy, plot_speed

SHEET_HEIGHT = 128  # pixels of a row at most: the frames themselves are among the files
STEP_HEIGHT = 512  # the same of a picture to step through
GREY = "#808080"  # of lines and letters, legible on light and dark pages


def sheet(morphs: Sequence[Morph]) -> PIL.Image.Image:
    """All frames of every morph, a row each."""
    rows = {morph.name: _scaled(morph.frames, SHEET_HEIGHT) for morph in morphs}
    return contact_sheet(rows, max(len(morph.frames) for morph in morphs))


def steps(morphs: Sequence[Morph]) -> list[tuple[PIL.Image.Image, str]]:
    """Pictures to step through, all morphs side by side, each with a caption."""
    num = max(len(morph.frames) for morph in morphs)
    rows = [_scaled(morph.frames, STEP_HEIGHT) for morph in morphs]
    names = " | ".join(morph.name for morph in morphs)
    pictures = []
    for i in range(num):
        shown = [row[round(i * (len(row) - 1) / (num - 1))] for row in rows]
        width, height = shown[0].size
        picture = PIL.Image.new("RGB", (width * len(shown), height))
        for k, frame in enumerate(shown):
            picture.paste(frame, (k * width, 0))
        pictures.append((picture, f"{names}: frame {i + 1} of {num}"))
    return pictures


def _scaled(frames: Sequence[PIL.Image.Image], height: int) -> list[PIL.Image.Image]:
    scale = min(1.0, height / frames[0].height)
    size = max(1, round(frames[0].width * scale)), max(1, round(frames[0].height * scale))
    return [frame.resize(size, PIL.Image.Resampling.LANCZOS) for frame in frames]


def write_files(morph: Morph, folder: Path, fps: float, *, ping_pong: bool = False) -> list[str]:
    """The morph as a video, as a GIF, and as a ZIP file of its frames."""
    frames = morph.frames + morph.frames[-2:0:-1] if ping_pong else morph.frames
    files = [folder / f"{morph.name}{suffix}" for suffix in (".mp4", ".gif")]
    for file in files:
        write_frames(frames, file, fps)
    single, packed = folder / morph.name, folder / f"{morph.name}_frames.zip"
    write_frames(morph.frames, single, fps)
    with zipfile.ZipFile(packed, "w") as archive:
        for frame in sorted(single.iterdir()):
            archive.write(frame, frame.name)
    return [*map(str, files), str(packed)]


def draw_energies(morphs: Sequence[Morph]) -> Figure | None:
    """Energy against evaluations of every solve; None where nothing was solved."""
    solves: dict[str, Any] = {
        title: iterates
        for morph in morphs
        for title, iterates in zip(morph.titles, morph.solves, strict=False)  # curves have none
    }
    if not any(solves.values()):
        return None
    figure, axes = _figure("Energy of the path")
    plot_energy(axes, solves)
    return _for_both_themes(figure, axes)


def draw_speeds(morphs: Sequence[Morph]) -> Figure:
    """How much the picture changes from frame to frame, against the mean of that."""
    paths = {}
    for morph in morphs:
        pixels = np.stack([np.asarray(frame) for frame in morph.frames])
        paths[morph.name] = torch.from_numpy(pixels).float() / 255
    figure, axes = _figure("How fast the picture changes")
    plot_speed(axes, paths)
    return _for_both_themes(figure, axes)


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 3), dpi=150, layout="constrained", facecolor="none")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10, color=GREY)
    return figure, axes


def _for_both_themes(figure: Figure, axes: Axes) -> Figure:
    """A figure without a background, whose lines and letters are legible on light and dark."""
    axes.set_facecolor("none")
    axes.tick_params(which="both", colors=GREY)
    axes.xaxis.label.set_color(GREY)
    axes.yaxis.label.set_color(GREY)
    for spine in axes.spines.values():
        spine.set_color(GREY)
    legend = axes.get_legend()
    if legend is not None:
        legend.get_frame().set(facecolor="none", edgecolor=GREY)
        for text in legend.get_texts():
            text.set_color(GREY)
    return figure
