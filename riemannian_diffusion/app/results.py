"""The outputs of the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from riemannian_diffusion.app.inputs import as_text

BEFORE = "The video, its frames and a judgement of both appear here."
KeptResult = tuple[str, str]  # the name of a metric, and the file of its video


@dataclass(frozen=True)
class Results:
    """The outputs of the page.

    Attributes:
        videos: The videos of both metrics.
        words: The results in words.
        details: The tabs with what follows.
        sheet: All frames.
        steps: The frames to step through.
        table: The numbers.
        energies: A figure of energies.
        speeds: A figure of speeds.
        files: Files to download.
        keeping: The row of the buttons `keep` and `forget`.
        keep: Keeps what is shown.
        forget: Removes what was kept.
        latest: The names of the metrics that are shown.
        kept: What was kept, a list of `KeptResult`.
    """

    videos: list[gr.Video]
    words: gr.Markdown
    details: gr.Tabs
    sheet: gr.Image
    steps: gr.Gallery
    table: gr.Markdown
    energies: gr.Plot
    speeds: gr.Plot
    files: gr.File
    keeping: gr.Row
    keep: gr.Button
    forget: gr.Button
    latest: gr.State
    kept: gr.State

    @property
    def shown(self) -> list[Any]:
        """What a morph fills."""
        pictures = [self.sheet, self.steps, self.energies, self.speeds]
        others = [self.words, self.table, self.files, self.latest, self.details, self.keeping]
        return [*self.videos, *pictures, *others]


def make_results(minutes: int) -> Results:
    """Make the outputs inside the present block of gradio.

    Args:
        minutes: How long files are kept.
    """
    with gr.Row():
        videos = [_video("Morph", visible) for visible in (True, False)]
    words = gr.Markdown(BEFORE, elem_id="words")
    with gr.Row(visible=False) as keeping:
        keep = gr.Button("Keep this result", size="sm", min_width=140)
        forget = gr.Button("Remove kept results", size="sm", min_width=140)
    with gr.Tabs(visible=False) as details:
        with gr.Tab("All frames"):
            sheet = gr.Image(
                label="All frames",
                elem_id="frames",
                show_label=False,
                format="png",
                interactive=False,
                buttons=["fullscreen"],
            )
        with gr.Tab("Step"):
            gr.Markdown("Step with the arrow keys, or choose a frame below the picture.")
            steps = gr.Gallery(
                label="Frame by frame",
                elem_id="steps",
                show_label=False,
                format="png",
                preview=True,
                interactive=False,
                object_fit="contain",
                height=420,
                buttons=["download", "fullscreen"],
            )
        with gr.Tab("Numbers"):
            table = gr.Markdown("", elem_id="numbers")
            with gr.Row():
                energies = gr.Plot(label="Energy", show_label=False, min_width=260)
                speeds = gr.Plot(label="Speed", show_label=False, min_width=260)
        with gr.Tab("Files"):
            gr.Markdown(f"Uploads and results are deleted after {minutes} minutes.")
            files = gr.File(label="Download", file_count="multiple", interactive=False)
    latest, kept = gr.State([]), gr.State([])

    @gr.render(inputs=kept)
    def show_kept(results: list[KeptResult]) -> None:
        if results:
            gr.Markdown("### Kept results")
            with gr.Row():
                for name, file in results:
                    _video(as_text(name), True, file)

    return Results(
        *(videos, words, details, sheet, steps, table, energies, speeds, files),
        *(keeping, keep, forget, latest, kept),
    )


def _video(label: str, visible: bool, file: str | None = None) -> gr.Video:
    return gr.Video(
        file,
        label=label,
        autoplay=True,
        loop=True,
        height=260,
        visible=visible,
        min_width=150,
        interactive=False,
    )
