"""The options of the command `interpolate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from riemannian_diffusion.cli.options.model import add_model
from riemannian_diffusion.cli.options.values import colour, frames, scale, seed, size, start
from riemannian_diffusion.pipelines.tolerance import RTOL

# Names that the library defines, repeated here because importing the library takes seconds.
METRIC_NAMES = (
    *("tangent_normal", "score_jacobian", "stein", "likely", "euclidean"),
    *("slerp", "lerp", "split", "nao", "noise_diffusion", "density"),
)


def add_interpolate(commands: Any) -> argparse.ArgumentParser:
    """Add the command that morphs images into each other.

    Args:
        commands: The subparsers of the whole command line.

    Returns:
        The parser of the command.
    """
    command: argparse.ArgumentParser = commands.add_parser(
        "interpolate",
        help="morph images into each other",
        description="Morph two or more images into each other along a geodesic of a diffusion "
        "model. Without images, it takes the two that ship with the package. A folder stands for "
        "the images in it, by name. Given a video, it morphs between two of its frames. A number "
        "behind an image, as in cat.png@0 dog.png@24, says which frame of the morph shows it.",
    )
    add = command.add_argument
    add(
        "images",
        nargs="*",
        type=Path,
        metavar="IMAGE",
        help="two or more images of one size, each perhaps with the number of its frame (a.png@0 "
        "b.png@24); or a folder of them; or a video or a GIF",
    )
    add("-o", "--output", type=Path, required=True, help=".gif, .mp4, .png (a grid) or a directory")
    add_model(add)
    add(
        "--ip-adapter-image",
        type=Path,
        action="append",
        metavar="IMAGE",
        help="an image for --ip-adapter, on which the whole morph is conditioned; may be given "
        "more than once",
    )
    add(
        "--prompt",
        action="append",
        help="a text that describes the images; give it once, or once for each image",
    )
    add("--negative-prompt", default="", help="a text of what to avoid; needs --guidance above 1")
    add(
        "--metric",
        choices=METRIC_NAMES,
        default="tangent_normal",
        help="metric of the geodesic; or, from slerp on, a curve that needs no solve (default: "
        "tangent_normal)",
    )
    add(
        "--space",
        choices=("noise", "clean"),
        default="noise",
        help="space of the path: inverted noise, or clean latents (default: noise)",
    )
    add(
        "--init",
        action="append",
        type=start,
        metavar="START",
        help="where the solve starts: slerp, lerp, split or roadmap; or a folder of images or a "
        "video, whose frames lead from the first image to the second (default: slerp, in --space "
        "clean lerp). Given more than once, it solves from each and keeps the path of least "
        "energy",
    )
    add(
        "--frames",
        type=frames,
        metavar="NUMBER [NUMBER ...]",
        help="number of frames from each image to the next, both included; or one number for each "
        "gap between images, as in --frames 25 37 (default: 17; for a video, as many as it has)",
    )
    add(
        "--clip-frames",
        type=int,
        nargs=2,
        metavar=("FIRST", "LAST"),
        help="which frames of a video to morph between, negative ones counted from its end "
        "(default: the first and the last)",
    )
    add(
        "--steps",
        type=int,
        default=50,
        help="DDIM steps of the whole schedule, of which --strength takes a share (default: 50)",
    )
    add(
        "--spacing",
        choices=("noise", "scheduler"),
        help="noise: half as many noise levels, evenly spaced in the cube root of the noise. "
        "scheduler: all levels of the scheduler (default: noise; for flows, scheduler)",
    )
    add(
        "--strength",
        type=float,
        default=0.6,
        help="noise level of the path, as a share of the schedule in (0, 1] (default: 0.6)",
    )
    add(
        "--guidance",
        type=float,
        default=1.0,
        help="scale of guidance; 1 is no guidance (default: 1)",
    )
    add(
        "--guidance-damping",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="remove this share, in [0, 1], of the guidance that is normal to the data manifold "
        "(default: 0)",
    )
    add(
        "--max-evals",
        type=int,
        default=200,
        help="largest number of evaluations from each image to the next (default: 200)",
    )
    add(
        "--rtol",
        type=float,
        help="stop a solve when its energy is expected to fall by less than this share (default: "
        f"{RTOL})",
    )
    add(
        "--max-batch-size",
        type=int,
        default=8,
        help="largest batch of the network; a smaller one needs less memory (default: 8)",
    )
    add("--size", type=size, help="crop and scale the images to this size first: 512 or 768x512")
    add(
        "--background",
        type=colour,
        default="white",
        metavar="COLOUR",
        help="what transparent parts of images show: a name or #rrggbb (default: white)",
    )
    add(
        "--retime",
        choices=("lpips", "rmse"),
        help="move frames until neighbours differ equally by this distance; it samples them again",
    )
    add(
        "--extrapolate",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="go on beyond the last image, by this share of the way from the image before it "
        "(default: 0)",
    )
    add(
        "--analogy",
        type=Path,
        metavar="IMAGE",
        help="given two images, show this third image, changed as the first changes to the second",
    )
    add(
        "--adapt",
        choices=("embeddings", "lora", "both"),
        help="fit prompt embeddings, LoRAs (extra `adapt`) or both to the images first",
    )
    add(
        "--adapt-cache",
        type=Path,
        metavar="DIR",
        help="folder that keeps what --adapt fits, for later commands",
    )
    add(
        "--adain",
        action="store_true",
        help="move mean and spread of each noisy frame to values between those of the images",
    )
    add(
        "--attention-interpolation",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the sampling steps in which self-attention is interpolated between the "
        "images (default: 0)",
    )
    add(
        "--paste-endpoints",
        action="store_true",
        help="show the images themselves in place of their reconstructions",
    )
    add(
        "--fps",
        type=float,
        help="frames per second of .gif and .mp4 (default: 12; for a video, its own)",
    )
    add(
        "--scale",
        type=scale,
        default=1,
        metavar="NUMBER",
        help="write every pixel as a square of this many pixels along each side, so that frames of "
        "a small model can be seen; it adds no detail (default: 1)",
    )
    add("--ping-pong", action="store_true", help="play back to the first frame at the end")
    add(
        "--seed",
        type=seed,
        default=0,
        help="seed of the random numbers of --space clean, --init roadmap, --metric density and "
        "--adapt (default: 0)",
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
    return command
