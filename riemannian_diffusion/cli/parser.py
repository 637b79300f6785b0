"""The command line's options."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from riemannian_diffusion.cli.app import add_app
from riemannian_diffusion.runtime import __version__

# Names that the library defines, repeated here because importing the library takes seconds.
METRIC_NAMES = (
    *("tangent_normal", "score_jacobian", "stein", "likely", "euclidean"),
    *("slerp", "lerp", "split", "nao", "noise_diffusion", "density"),
)
INIT_NAMES = ("slerp", "lerp", "split", "roadmap")
PROTOCOL_NAMES = ("diffmorpher17", "saito11", "saito11_vgg", "saito_video3", "aid", "any")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of a command line.

    Args:
        argv: Arguments without the name of the program; None takes those of the process.
    """
    return parser().parse_args(_joined(sys.argv[1:] if argv is None else argv))


def _joined(words: list[str]) -> list[str]:
    """`--frames 25 37` as `--frames 25,37`, so that names of files may follow it."""
    found: list[str] = []
    follows = False  # the word stands behind --frames, or behind numbers that do
    for word in words:
        is_number = word.isdecimal()
        if follows and is_number and found[-1] != "--frames":
            found[-1] += f",{word}"
        else:
            found.append(word)
        follows = word.startswith("--frames") or (follows and is_number)
    return found


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """Report a bad command line in one line, exit status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    whole = _Parser(
        prog="riemannian-diffusion",
        description="Images in, a morph out, and its measures; or a page that does so.",
    )
    whole.add_argument(
        "--version",
        action="version",
        version=f"riemannian-diffusion {__version__}",
    )
    commands = whole.add_subparsers(dest="command", required=True, parser_class=_Parser)
    morph = commands.add_parser(
        "interpolate",
        help="morph images into each other",
        description="Morph two or more images into each other along a geodesic of a diffusion "
        "model. Without images, it takes the two that ship with the package. A folder stands for "
        "the images in it, by name. Of a video, two frames are taken, and the morph fills the time "
        "between them. A number behind an image, as in cat.png@0 dog.png@24, says which frame of "
        "the morph shows it.",
    )
    add = morph.add_argument
    add(
        "images",
        nargs="*",
        type=Path,
        metavar="IMAGE",
        help="two or more images of one size, each perhaps with the number of its frame (a.png@0 "
        "b.png@24); or a folder of them; or a video or a GIF",
    )
    add("-o", "--output", type=Path, required=True, help=".gif, .mp4, .png (a grid) or a directory")
    _add_model(add)
    add(
        "--ip-adapter-image",
        type=Path,
        action="append",
        metavar="IMAGE",
        help="an image for --ip-adapter, which conditions the whole morph on it; more of them are "
        "read together",
    )
    add("--prompt", action="append", help="what the images show: once, or once per image")
    add("--negative-prompt", default="", help="what they do not show, for --guidance above 1")
    add("--metric", choices=METRIC_NAMES, default="tangent_normal")
    add("--space", choices=("noise", "clean"), default="noise", help="where the path runs")
    add(
        "--init",
        action="append",
        type=_start,
        metavar="START",
        help="where the solve starts: slerp, lerp, split or roadmap; or a folder of images or a "
        "video, whose frames lead from the first image to the second (default: slerp, in --space "
        "clean lerp). Given more than once, it solves from each and keeps the path of least "
        "energy",
    )
    add(
        "--frames",
        type=_frames,
        metavar="NUMBER [NUMBER ...]",
        help="number of frames from each image to the next, both included; or one number for each "
        "gap between images, as in --frames 25 37 (default: 17, for a video as many as it has)",
    )
    add(
        "--clip-frames",
        type=int,
        nargs=2,
        default=(0, -1),
        metavar=("FIRST", "LAST"),
        help="which frames of a video to morph between, negative ones counted from its end "
        "(default: the first and the last)",
    )
    add("--steps", type=int, default=50, help="DDIM steps of the whole schedule (default: 50)")
    add("--strength", type=float, default=0.6, help="noise level, in (0, 1] (default: 0.6)")
    add("--guidance", type=float, default=1.0, help="guidance scale (default: 1, none)")
    add(
        "--guidance-damping",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="damp guidance across the data manifold, 1: wholly (default: 0, plain guidance)",
    )
    add("--max-evals", type=int, default=200, help="evaluations per gap at most (default: 200)")
    add(
        "--rtol",
        type=float,
        help="stop a solve when its energy is expected to fall by less than this share (default: "
        "1e-4)",
    )
    add("--max-batch-size", type=int, default=8, help="less needs less memory (default: 8)")
    add("--size", type=_size, help="crop and scale the images to this size first: 512 or 768x512")
    add(
        "--background",
        type=_colour,
        default="white",
        metavar="COLOUR",
        help="what transparent parts of images show: a name or #rrggbb (default: white)",
    )
    add(
        "--retime",
        choices=("lpips", "rmse"),
        help="space frames evenly in what is seen to change, at the cost of sampling them again",
    )
    add(
        "--extrapolate",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="go on beyond the last image by this share of the last gap (default: 0)",
    )
    add(
        "--analogy",
        type=Path,
        metavar="IMAGE",
        help="given two images, show this one instead, changed as the first changes to the second",
    )
    add(
        "--adapt",
        choices=("embeddings", "lora", "both"),
        help="fit prompt embeddings, LoRAs (extra `adapt`) or both to the images first",
    )
    add("--adapt-cache", type=Path, metavar="DIR", help="keep what was fitted here, and find it")
    add(
        "--adain",
        action="store_true",
        help="give noisy frames means and spreads between those of the images",
    )
    add(
        "--attention-interpolation",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the sampling steps, in which self-attention is interpolated between the images "
        "(default: 0)",
    )
    add("--paste-endpoints", action="store_true", help="put the images in as first and last frames")
    add(
        "--fps",
        type=float,
        help="frames per second of .gif and .mp4 (default: 12, of a video its own)",
    )
    add("--ping-pong", action="store_true", help="go back again at the end, so that it can repeat")
    add(
        "--seed",
        type=_seed,
        default=0,
        help="of what is random in --space clean, --init roadmap and --metric density (default: 0)",
    )
    add(
        "--keep",
        type=Path,
        metavar="DIR",
        help="keep the inverted images, the solve and the path in this folder; the same command "
        "goes on from there, and one with another --metric does not invert the images again",
    )
    add(
        "--force",
        action="store_true",
        help="overwrite the output, and start anew where --keep holds work with other settings",
    )
    measure = commands.add_parser(
        "evaluate",
        help="measure folders of frames by a named protocol",
        description="Measure folders of frames by a named protocol: a table, and JSON with -o. DIR "
        "holds one folder per sequence, its frames sorted by name, as the model made them (not "
        "--paste-endpoints). A folder may hold the original images in inputs/0.png and "
        "inputs/1.png, and true middle frames in truth/. What cannot be computed, for want of "
        "those or of a network's weights, is listed with the reason.",
    )
    add = measure.add_argument
    add("directory", type=Path, metavar="DIR", help="a folder with one folder per sequence")
    add("--protocol", choices=PROTOCOL_NAMES, required=True)
    add("-o", "--output", type=Path, help="write everything to this JSON file, too")
    add("--strict", action="store_true", help="fail where a network or a library is missing")
    add(
        "--resamples",
        type=int,
        default=200,
        help="most resamples behind an interval of FID or KID; 0: no intervals (default: 200)",
    )
    add("--max-batch-size", type=int, default=8, help="less needs less memory (default: 8)")
    add("--seed", type=_seed, default=0, help="of random frames and intervals (default: 0)")
    add("--device", help="cuda, mps or cpu (default: the first there is)")
    add("--force", action="store_true", help="overwrite the output")
    add_app(commands, _add_model)
    commands.add_parser(
        "models",
        help="list which models work",
        description="List every pipeline class of the installed diffusers: whether its models can "
        "be given to --model, and why not. The class of a model is the `_class_name` in its "
        "model_index.json.",
    )
    return whole


def _add_model(add: Callable[..., Any], **options: Any) -> None:
    """Add the options that say which model to load, and how; `options` are those of --model."""
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
    add("--variant", help="of the weights of --model, for example fp16")
    add(
        "--vae",
        type=Path,
        metavar="PATH",
        help="another autoencoder for --model: a diffusers directory, or a .safetensors file",
    )
    add(
        "--lora",
        action="append",
        type=_weighted,
        metavar="PATH[:WEIGHT]",
        help="a LoRA for --model as .safetensors, of kohya or PEFT, and its weight (default: 1); "
        "may be given more than once. Needs the extra `adapt`",
    )
    add(
        "--ip-adapter",
        type=_weighted,
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
    add("--device", help="cuda, mps or cpu (default: the first there is)")
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="of the networks (default: float16 on cuda, float32 elsewhere)",
    )


def _weighted(text: str) -> tuple[str, float]:
    """A path and the weight behind its last colon, 1 without one."""
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        found = float(weight)
    except ValueError:  # the colon belongs to the path
        return text, 1.0
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"must have a finite weight, but got {text!r}")
    return path, found


def _seed(text: str) -> int:
    """A whole number of 64 bits."""
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if not 0 <= seed < 2**64:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 0 to 2^64 - 1, but got {text}"
        )
    return seed


def _start(text: str) -> str | Path:
    """A start's name, or the folder or file of its images."""
    if text in INIT_NAMES:
        return text
    if not Path(text).exists():
        names = ", ".join(INIT_NAMES)
        raise argparse.ArgumentTypeError(
            f"must be {names}, a folder of images or a video, but got {text!r}"
        )
    return Path(text)


def _frames(text: str) -> int | list[int]:
    """One number, or several between commas."""
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a whole number, or one for each gap, but got {text!r}"
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]


def _colour(text: str) -> str:
    from PIL import ImageColor

    try:
        num_channels = len(ImageColor.getrgb(text))
    except ValueError:
        num_channels = 0
    if num_channels != 3:
        raise argparse.ArgumentTypeError(
            f"must be a colour such as grey or #808080, but got {text!r}"
        )
    return text


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    try:
        size = int(width), int(height or width)
    except ValueError:
        size = (0, 0)
    if not 1 <= min(size) <= max(size) <= 2**14:
        raise argparse.ArgumentTypeError(f"must be like 512 or 768x512, but got {text!r}")
    return size
