"""Options that say which model to load, and how."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from riemannian_diffusion.cli.options.values import weighted


def add_model(add: Callable[..., Any], **options: Any) -> None:
    """Add the options that say which model to load, and how.

    Args:
        add: Adds one option to a parser.
        options: Further arguments of `add` for --model.
    """
    add(
        "--model",
        **options,
        help="a diffusers directory or repository, for example of Stable Diffusion or Flux; or one "
        ".safetensors file (default: shipped). The command `models` lists what works",
    )
    add(
        "--config",
        type=Path,
        metavar="DIR",
        help="for a --model that is one file: a diffusers directory of the same family, which "
        "gives its configs and what the file lacks (not needed for whole files of Stable Diffusion "
        "1 to 3.5)",
    )
    add("--variant", help="variant of the weights of --model, for example fp16")
    add(
        "--vae",
        type=Path,
        metavar="PATH",
        help="another autoencoder for --model: a diffusers directory, or a .safetensors file",
    )
    add(
        "--lora",
        action="append",
        type=weighted,
        metavar="PATH[:WEIGHT]",
        help="a LoRA for --model as .safetensors, of kohya or PEFT, and its weight (default: 1); "
        "may be given more than once. Needs the extra `adapt`",
    )
    add(
        "--ip-adapter",
        type=weighted,
        metavar="PATH[:WEIGHT]",
        help="an IP-Adapter for --model as .safetensors, with the folder image_encoder beside it, "
        "and its weight (default: 1)",
    )
    add(
        "--offload",
        choices=("model", "sequential", "group"),
        help="keep the model in the CPU's memory and bring to --device only the network that runs "
        "(model) or only some of its layers (sequential or group: slower, least memory)",
    )
    add("--vae-slicing", action="store_true", help="let the autoencoder take one image at a time")
    add(
        "--vae-tiling",
        action="store_true",
        help="let the autoencoder take large images in tiles: saves memory, may show seams",
    )
    add(
        "--no-safety-checker",
        action="store_true",
        help="do not load the model's safety checker, which blanks frames",
    )
    add("--device", help="cuda, mps or cpu (default: the first of them that this machine has)")
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="number type of the networks (default: float16 on cuda, float32 elsewhere)",
    )
