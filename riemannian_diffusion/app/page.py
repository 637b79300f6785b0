"""The page."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from riemannian_diffusion.app.controls import make_controls
from riemannian_diffusion.app.guard import Limits
from riemannian_diffusion.app.inputs import (
    Settings,
    as_text,
    check_size,
    check_upload,
    fit_images,
)
from riemannian_diffusion.app.kept import KeptWork
from riemannian_diffusion.app.labels import with_labels
from riemannian_diffusion.app.models import Models, Offer, is_shipped
from riemannian_diffusion.app.morphs import Morph
from riemannian_diffusion.app.outputs import (
    draw_energies,
    draw_speeds,
    sheet,
    steps,
    write_files,
)
from riemannian_diffusion.app.results import KeptResult, Results, make_results
from riemannian_diffusion.app.studio import Cancelled, Request, Studio
from riemannian_diffusion.app.values import Page
from riemannian_diffusion.app.words import in_words, table
from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin
from riemannian_diffusion.pipelines.unused import unused_by_curves

LOOK_FOR_OLD = 300  # seconds between two searches for old files
MOST_WAITING = 200  # visitors in the queue
MOST_KEPT = 4  # results that are kept on the page
READY, CANCELLED = "Ready: press **Morph**.", "Cancelled."
TO_RESULTS = """() => {
    const results = document.getElementById("results");
    if (results && window.innerWidth < 900) results.scrollIntoView({behavior: "smooth"});
}"""


def build(models: Models | GeodesicInterpolationMixin, limits: Limits | None = None) -> gr.Blocks:
    """The page of models.

    Args:
        models: The models that visitors may choose, or one pipeline on its device. All visitors
            share them.
        limits: What visitors may keep; the age counts here, sizes are for `serve`.

    Returns:
        The page; `launch` of `riemannian_diffusion.app.serving` serves it. Its API has `/morph` and
        `/cancel`.
    """
    limits = limits or Limits()
    if not isinstance(models, Models):
        pipe = models
        models = Models([Offer("shipped" if is_shipped(pipe) else "model", lambda: pipe)])
    studio = Studio(models, KeptWork(seconds=limits.seconds))
    with (
        tempfile.TemporaryDirectory() as folder,  # gradio copies the examples
        Page(
            title="Geodesic morphs",
            analytics_enabled=False,
            delete_cache=(LOOK_FOR_OLD, limits.seconds),
            fill_width=True,
        ) as page,
    ):
        gr.Markdown(
            "# Geodesic morphs\nGive it two or more images, and it draws the frames between them "
            "that stay realistic."
        )
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=3, min_width=300):
                controls = make_controls(models, Path(folder))
            with gr.Column(scale=6, min_width=300, elem_id="results"):
                results = make_results(limits.seconds // 60)
        with gr.Row(elem_id="bar"):
            with gr.Column(scale=3, min_width=260), gr.Row():
                start = gr.Button("Morph", variant="primary", min_width=100)
                cancel = gr.Button("Cancel", min_width=100)
            with gr.Column(scale=6, min_width=260):
                status = gr.Markdown(READY, elem_id="status")

        outputs = [status, *results.shown]
        run = partial(_run, studio, results, status)
        working = start.click(
            with_settings(run),
            controls.ordered,
            outputs,
            api_name="morph",
            concurrency_limit=1,
            show_progress_on=status,
        )
        working.success(None, js=TO_RESULTS)
        after: dict[str, Any] = {
            "queue": False,
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        working.then(models.describe, controls["model"], controls.about, **after)

        def stop(request: gr.Request) -> str:
            studio.stop(request.session_hash)
            return CANCELLED

        def leave(request: gr.Request) -> None:
            studio.leave(request.session_hash)

        def choose(name: str) -> tuple[str, int, int]:
            return models.describe(name), 0, 0

        cancel.click(stop, None, status, queue=False, cancels=[working], api_name="cancel")
        page.unload(leave)
        chosen = [controls.about, controls["width"], controls["height"]]
        controls["model"].input(choose, controls["model"], chosen, **after)
        queued = after | {"queue": True}  # gradio shows warnings and a changed state only then
        for name in ("images", "analogy"):
            controls[name].upload(_readable, controls[name], controls[name], **queued)
        keep = [results.kept, results.latest, *results.videos]
        results.keep.click(_keep, keep, results.kept, **queued)
        results.forget.click(lambda: [], None, results.kept, **queued)
    page.queue(max_size=MOST_WAITING)
    return page


def with_settings(run: Any) -> Any:
    """A function of `Settings` as gradio calls it: a parameter for each field.

    The parameters' names are those of the page's API.
    """

    def asked(*values: Any) -> Iterator[dict]:
        *given, request, progress = values
        yield from run(Settings(*given), request, progress)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    asked.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *(inspect.Parameter(field.name, kind) for field in fields(Settings)),
            inspect.Parameter("request", kind, annotation=gr.Request),
            inspect.Parameter("progress", kind, default=gr.Progress()),
        ]
    )
    asked.__annotations__ = {"request": gr.Request}
    return asked


def _run(
    studio: Studio,
    results: Results,
    status: gr.Markdown,
    settings: Settings,
    request: gr.Request,
    progress: gr.Progress,
) -> Iterator[dict]:
    """Morph as a visitor asks, and show every morph as soon as it is there."""

    def report(phase: str, done: int, total: int | None) -> None:
        progress((done, total), desc=phase)

    with _as_messages(), tempfile.TemporaryDirectory() as folder:
        settings.check()
        visitor = request.session_hash
        with studio.request(visitor, report, settings.model) as asked:
            try:
                for morphs, files in _morphs(asked, settings, Path(folder)):
                    yield _shown(results, morphs, files, settings, asked.reused) | {
                        status: _state(morphs, settings)
                    }
            except Cancelled:
                yield {status: CANCELLED}


def _morphs(
    asked: Request, settings: Settings, folder: Path
) -> Iterator[tuple[list[Morph], list[str]]]:
    """The morphs up to each metric, and their files."""
    size = check_size(settings.width, settings.height, asked.native_size())
    paths = [path for path, _ in [*(settings.images or []), *(settings.analogy or [])]]
    options = settings.morph()
    images = fit_images(paths, size, lambda text: gr.Warning(as_text(text)))
    third = images.pop() if settings.analogy else None
    asked.check(settings.metrics, settings.space, settings.starts)
    unused = unused_by_curves(
        settings.metrics, init=settings.starts, max_evals=int(settings.max_evals)
    )
    if unused is not None:
        gr.Warning(as_text(with_labels(unused)))
    seed = int(settings.seed)
    inverted = asked.invert(images, third, seed=seed, **settings.inversion())
    morphs: list[Morph] = []
    files: list[str] = []
    for morph in asked.morphs(inverted, settings.metrics, seed=seed, **options):
        morphs.append(morph)
        files += write_files(morphs[-1], folder, settings.fps, ping_pong=settings.ping_pong)
        yield morphs, files


def _shown(
    results: Results, morphs: list[Morph], files: list[str], settings: Settings, reused: bool
) -> dict:
    """What the page shows of morphs."""
    videos = [file for file in files if file.endswith(".mp4")]
    is_compared = len(settings.metrics) > 1
    shown: dict[Any, Any] = {
        results.words: in_words(morphs, reused=reused),
        results.table: table(morphs),
        results.sheet: sheet(morphs),
        results.steps: gr.Gallery(steps(morphs), selected_index=0),
        results.energies: draw_energies(morphs),
        results.speeds: draw_speeds(morphs),
        results.files: files,
        results.latest: [morph.name for morph in morphs],
        results.details: gr.Tabs(visible=True),
        results.keeping: gr.Row(visible=True),
    }
    for i, video in enumerate(results.videos):
        if i < len(videos):
            shown[video] = gr.Video(videos[i], label=morphs[i].name, visible=True)
        else:
            shown[video] = gr.Video(None, visible=is_compared)
    return shown


def _state(morphs: list[Morph], settings: Settings) -> str:
    seconds = sum(morph.seconds for morph in morphs)
    left = settings.metrics[len(morphs) :]
    if left:
        return f"**{morphs[-1].name}** is there; **{left[0]}** follows."
    return f"Done: {' and '.join(settings.metrics)} in {seconds:.1f} s."


def _readable(shown: list[tuple[str, str | None]] | None) -> Any:
    """The uploaded files that are images; the page says in words why the others are not taken."""
    taken, refused = [], []
    for path, caption in shown or []:
        try:
            check_upload(Path(path))
        except ValueError as error:
            refused.append(as_text(with_labels(str(error))))
        else:
            taken.append((path, caption))
    for text in refused:
        gr.Warning(text, title="Not taken")
    return taken if refused else gr.skip()


def _keep(kept: list[KeptResult], latest: list[str], *videos: str | None) -> list[KeptResult]:
    """The kept results with those that are shown; the oldest make room."""
    more = [(name, video) for name, video in zip(latest, videos, strict=False) if video]
    return [*(kept or []), *more][-MOST_KEPT:]


@contextmanager
def _as_messages() -> Iterator[None]:
    """Shows errors of the input on the page; torch's own are printed as well."""
    try:
        yield
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
        text = as_text(with_labels(str(error) or "out of memory"))  # it quotes the input
        raise gr.Error(text, print_exception=isinstance(error, RuntimeError)) from error
