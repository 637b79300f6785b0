"""The page."""

from __future__ import annotations

import html
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import gradio as gr

from riemannian_diffusion import demo
from riemannian_diffusion.app.inputs import check_numbers, check_size, fit_images, parse_prompts
from riemannian_diffusion.app.outputs import (
    draw_energies,
    draw_speeds,
    sheet,
    summarise,
    write_files,
)
from riemannian_diffusion.app.studio import Cancelled, Morph, Studio
from riemannian_diffusion.pipelines.curves import CURVES, METRICS, check_metric
from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin
from riemannian_diffusion.score.schedulers import is_flow

NO_METRIC = "none"
METRIC_NAMES = [*METRICS, *CURVES]
KEEP_FILES = (3600, 24 * 3600)  # how often old files are looked for, and their age, in seconds
READY, CANCELLED = "Ready: press **Morph**.", "Cancelled."


def build(pipe: GeodesicInterpolationMixin) -> gr.Blocks:
    """The page of a pipeline.

    Args:
        pipe: The pipeline, on its device; its components are shared by all visitors.

    Returns:
        The page, to be launched. Its API has `/morph` and `/cancel`.
    """
    studio = Studio(pipe)
    native = studio.native_size
    with gr.Blocks(
        title="Geodesic morphs", analytics_enabled=False, delete_cache=KEEP_FILES, fill_width=True
    ) as page:
        gr.Markdown(
            "# Geodesic morphs\nBetween two or more images, along shortest paths on the manifold "
            "that a diffusion model has learned."
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=380):
                images = gr.Gallery(
                    [*demo.endpoint_paths()],
                    label="Images, in order",
                    elem_id="images",
                    type="filepath",
                    file_types=["image"],
                    interactive=True,
                    columns=3,
                    height=210,
                    object_fit="contain",
                )
                prompts = gr.Textbox(
                    "",
                    label="Prompts",
                    lines=2,
                    info="One line for all images, or a line for each.",
                )
                with gr.Row():
                    metric = gr.Dropdown(METRIC_NAMES, value="tangent_normal", label="Metric")
                    other = gr.Dropdown(
                        [NO_METRIC, *METRIC_NAMES], value="slerp", label="Compare with"
                    )
                with gr.Row():
                    num_frames = gr.Slider(2, 65, 17, step=1, label="Frames", min_width=120)
                    fps = gr.Slider(1, 60, 12, step=1, label="Frames/s", min_width=120)
                strength = gr.Slider(0.01, 1, 0.6, step=0.01, label="Strength (noise level)")
                with gr.Row():
                    width = gr.Number(native, label="Width", min_width=120)
                    height = gr.Number(native, label="Height", min_width=120)
                with gr.Accordion("Advanced", open=False):
                    negative = gr.Textbox("", label="Negative prompt, for a guidance above 1")
                    guidance = gr.Slider(1, 20, 1, step=0.5, label="Guidance")
                    steps = gr.Slider(1, 200, 50, step=1, label="Steps of the whole schedule")
                    max_evals = gr.Slider(1, 1000, 200, step=1, label="Evaluations at most")
                    space = gr.Radio(["noise", "clean"], value="noise", label="Space")
                    seed = gr.Number(0, label="Seed")
                with gr.Row():
                    start = gr.Button("Morph", variant="primary")
                    cancel = gr.Button("Cancel")
            with gr.Column(scale=5, min_width=520):
                status = gr.Markdown(READY, min_height=90)
                with gr.Row():
                    videos = [_video(visible) for visible in (True, False)]
                frames = gr.Image(
                    label="All frames",
                    elem_id="frames",
                    show_label=False,
                    format="png",
                    interactive=False,
                    buttons=["fullscreen"],
                )
                with gr.Row():
                    energies = gr.Plot(label="Energy", show_label=False)
                    speeds = gr.Plot(label="Speed", show_label=False)
                files = gr.File(label="Download", file_count="multiple", interactive=False)

        def run(
            images,
            prompts,
            metric,
            other,
            num_frames,
            fps,
            strength,
            width,
            height,
            negative,
            guidance,
            steps,
            max_evals,
            space,
            seed,
            request: gr.Request,
            progress=gr.Progress(),  # noqa: B008  gradio finds it as a default
        ) -> Iterator[dict]:
            compared = other not in (NO_METRIC, metric)
            names = [metric, other] if compared else [metric]
            morphs: list[Morph] = []
            written: list[str] = []
            with _as_messages(), tempfile.TemporaryDirectory() as folder:
                check_numbers(frames=num_frames, fps=fps, strength=strength, guidance=guidance)
                check_numbers(steps=steps, evaluations=max_evals, seed=seed)
                size = check_size(width, height, studio.native_size)
                shown = fit_images([path for path, _ in images or []], size)
                for name in names:
                    check_metric(name, space, is_flow(pipe.scheduler))
                report = partial(_show, progress)
                with studio.request(request.session_hash, report) as asked:
                    try:
                        keys = asked.invert(
                            shown,
                            seed=int(seed),
                            prompt=parse_prompts(prompts),
                            negative_prompt=negative,
                            space=space,
                            strength=strength,
                            num_inference_steps=int(steps),
                            guidance_scale=guidance,
                        )
                        for name, video in zip(names, videos, strict=False):
                            morph = asked.morph(
                                keys,
                                name,
                                seed=int(seed),
                                num_frames=int(num_frames),
                                max_evals=int(max_evals),
                            )
                            morphs.append(morph)
                            written += write_files(morph, Path(folder), fps)
                            yield {
                                status: summarise(morphs),
                                videos[1]: gr.Video(visible=compared),
                                video: gr.Video(written[-2], label=name, visible=True),
                                frames: sheet(morphs),
                                energies: draw_energies(morphs),
                                speeds: draw_speeds(morphs),
                                files: written,
                            }
                    except Cancelled:
                        yield {status: CANCELLED}

        def stop(request: gr.Request) -> str:
            studio.stop(request.session_hash)
            return CANCELLED

        def leave(request: gr.Request) -> None:
            studio.stop(request.session_hash)

        inputs = [images, prompts, metric, other, num_frames, fps, strength, width, height]
        inputs += [negative, guidance, steps, max_evals, space, seed]
        working = start.click(
            run,
            inputs,
            [status, *videos, frames, energies, speeds, files],
            api_name="morph",
            concurrency_limit=1,
            show_progress_on=status,
        )
        cancel.click(stop, None, status, queue=False, cancels=[working], api_name="cancel")
        page.unload(leave)
    return page


def serve(pipe: GeodesicInterpolationMixin, host: str, port: int) -> None:
    """Serve the page until interrupted.

    Args:
        pipe: The pipeline, on its device.
        host: The address to listen on: "127.0.0.1" for this machine alone, "0.0.0.0" for the whole
            network.
        port: The port to listen on.

    Raises:
        OSError: If the port is taken or the address is not this machine's.
    """
    with closing(socket.socket()) as probe:  # gradio's own message speaks of its variables
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise OSError(f"--port {port} of --host {host} cannot be used: {error}") from error
    build(pipe).launch(
        server_name=host, server_port=port, share=False, ssr_mode=False, max_file_size="50mb"
    )


@contextmanager
def _as_messages() -> Iterator[None]:
    """Shows errors of the input on the page; torch's own are printed as well."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        text = html.escape(" ".join(str(error).split()), quote=False)  # it quotes the input
        raise gr.Error(text, print_exception=isinstance(error, RuntimeError)) from error


def _show(progress: gr.Progress, phase: str, done: int, total: int | None) -> None:
    progress((done, total), desc=phase)


def _video(visible: bool) -> gr.Video:
    return gr.Video(label="Morph", autoplay=True, loop=True, height=300, visible=visible)
