"""The inputs of the page."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image

from riemannian_diffusion import demo
from riemannian_diffusion.app.inputs import ANALOGY, MOST_IMAGES, NO, NO_METRIC, Settings
from riemannian_diffusion.app.models import Models, native_size
from riemannian_diffusion.pipelines.curves import CURVES, METRICS
from riemannian_diffusion.pipelines.starts import NAMED_STARTS

METRIC_NAMES = [*METRICS, *CURVES]


@dataclass(frozen=True)
class Controls:
    """The inputs of the page.

    Attributes:
        inputs: A component for each field of `Settings`, by its name.
        about: What is known about the model.
    """

    inputs: dict[str, Any]
    about: gr.Markdown

    def __getitem__(self, name: str) -> Any:
        return self.inputs[name]

    @property
    def ordered(self) -> list[Any]:
        """The inputs in the order of `Settings`."""
        return [self.inputs[field.name] for field in fields(Settings)]


def make_controls(models: Models, folder: Path) -> Controls:
    """Make the inputs inside the present block of gradio.

    Args:
        models: The models that visitors may choose.
        folder: Where images of examples are written.
    """
    name = models.names[0]
    native = native_size(models.get(name))
    made: dict[str, Any] = {}
    made["model"] = gr.Dropdown(
        models.names, value=name, label="Model", visible=len(models.names) > 1, elem_id="model"
    )
    about = gr.Markdown(models.describe(name), elem_id="about")
    made["images"] = gr.Gallery(
        [*demo.endpoint_paths()],
        label=f"Images, in order (2 to {MOST_IMAGES})",
        elem_id="images",
        type="filepath",
        file_types=["image"],
        interactive=True,
        columns=3,
        height=200,
        object_fit="contain",
    )
    made["prompts"] = gr.Textbox(
        "",
        label="Prompts",
        lines=2,
        info="One line for all images, or a line for each.",
        render=False,
    )
    made["other"] = gr.Dropdown(
        [NO_METRIC, *METRIC_NAMES], value="slerp", label="Compare with", min_width=200, render=False
    )
    _make_examples(made, folder)
    made["prompts"].render()
    with gr.Row():
        made["metric"] = gr.Dropdown(
            METRIC_NAMES, value="tangent_normal", label="Metric", min_width=200
        )
        made["other"].render()
    with gr.Row():
        made["num_frames"] = _slider(2, 65, 17, 1, "Frames")
        made["fps"] = _slider(1, 50, 12, 1, "Frames/s")
    with gr.Accordion("Path", open=False):
        made["strength"] = _slider(0.01, 1, 0.6, 0.01, "Strength (noise level)")
        made["at_frames"] = gr.Textbox(
            "",
            label="Images at frames",
            info="The number of each image's frame, such as 0, 12, 48. Empty: evenly spaced.",
        )
        made["start"] = gr.CheckboxGroup(
            [*NAMED_STARTS],
            label="Start from",
            info="Several: the path of least energy is kept. None: slerp, in clean space lerp. "
            "A roadmap leads along samples of the model and takes longer.",
        )
        fits = [NO, "embeddings"]
        if importlib.util.find_spec("peft") is not None:
            fits += ["lora", "both"]
        made["adapt"] = gr.Radio(
            fits,
            value=NO,
            label="Fit the model to the images first",
            info="Prompt embeddings, LoRAs or both, of Stable Diffusion 1 and 2 alone. It takes "
            "minutes.",
        )
        made["space"] = gr.Radio(["noise", "clean"], value="noise", label="Space")
        made["max_evals"] = _slider(1, 1000, 200, 1, "Evaluations at most")
        made["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0)
    with gr.Accordion("Sampling and guidance", open=False):
        made["steps"] = _slider(1, 200, 50, 1, "Steps of the whole schedule")
        made["negative"] = gr.Textbox("", label="Negative prompt, for a guidance above 1")
        made["guidance"] = _slider(1, 20, 1, 0.5, "Guidance")
        made["damping"] = _slider(0, 1, 0, 0.05, "Guidance damping")
        made["attention"] = _slider(0, 1, 0, 0.05, "Attention interpolation")
        with gr.Row():
            made["width"] = gr.Number(native, label="Width", min_width=100, precision=0)
            made["height"] = gr.Number(native, label="Height", min_width=100, precision=0)
        gr.Markdown("Width and Height 0: the model's own size.")
    with gr.Accordion("Pace and ends", open=False):
        distances = [NO, "rmse"]
        if importlib.util.find_spec("lpips") is not None:
            distances.append("lpips")
        made["retime"] = gr.Radio(
            distances,
            value=NO,
            label="Even out what is seen",
            info="Frames are moved until neighbours differ equally. This samples them again.",
        )
        made["extrapolate"] = _slider(0, 1, 0, 0.05, "Go on beyond the last image")
        made["analogy"] = gr.Gallery(
            label=ANALOGY,
            elem_id="analogy",
            type="filepath",
            file_types=["image"],
            interactive=True,
            columns=3,
            height=170,
            object_fit="contain",
        )
        gr.Markdown(
            "For two images above: this one is shown, changed as the first changes into the "
            "second. With a prompt for each image, its own is the last line."
        )
        made["paste"] = gr.Checkbox(False, label="Put the images in as they were uploaded")
        made["ping_pong"] = gr.Checkbox(False, label="Play forth and back")
    return Controls(made, about)


def _slider(low: float, high: float, value: float, step: float, label: str) -> gr.Slider:
    return gr.Slider(low, high, value, step=step, label=label, min_width=120)


def _make_examples(made: dict[str, Any], folder: Path) -> None:
    """Examples to click, of images like those that ship with the package."""
    cube, cone = _rendered(folder, "cube", 0.0), _rendered(folder, "cone", 2 / 3)
    ball, drum = _rendered(folder, "sphere", 1 / 6), _rendered(folder, "cylinder", 1 / 3)
    pairs: list[tuple[str, Sequence[str], str, str]] = [
        ("A torus turns and changes its colour", demo.endpoint_paths(), "", "slerp"),
        ("A red cube becomes a blue cone", (cube, cone), "a red cube\na blue cone", "slerp"),
        ("A ball becomes a cylinder, then a cube", (ball, drum, cube), "", NO_METRIC),
    ]
    names = ("images", "prompts", "other")
    gr.Examples(
        [[[*images], prompts, other] for _, images, prompts, other in pairs],
        [made[name] for name in names],
        label="Examples: click one, then press Morph",
        example_labels=[title for title, *_ in pairs],
        elem_id="examples",
        cache_examples=False,
        api_visibility="private",
    )


def _rendered(folder: Path, kind: str, hue: float) -> str:
    """The file of a render like those that the shipped model knows."""
    factors = torch.tensor([[0.9, hue, 0.65, 0.0, 0.0]])
    pixels = (demo.render(kind, factors)[0].clamp(0, 1) * 255).round().byte()
    file = folder / f"{demo.caption(kind, hue).replace(' ', '_')}.png"
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file)
    return str(file)
