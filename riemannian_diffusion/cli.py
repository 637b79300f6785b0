"""The command `riemannian-diffusion`: images in, a morph out, and its measures."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from riemannian_diffusion.media import (
    CLIP_SUFFIXES,
    images_in,
    open_image,
    read_clip,
    write_atomically,
    write_frames,
)

METRIC_NAMES = (
    *("tangent_normal", "score_jacobian", "stein", "euclidean"),
    *("slerp", "lerp", "nao", "noise_diffusion", "density"),
)
INIT_NAMES = ("slerp", "lerp", "roadmap")
PROTOCOL_NAMES = ("diffmorpher17", "saito11", "saito11_vgg", "saito_video3", "aid", "any")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """Report a bad command line in one line, exit status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; those of the process where None.

    Returns:
        Exit status: 0, 2 for bad input or 130 for an interrupt, each reported in one line.
    """
    args = _parser().parse_args(argv)
    try:
        {"interpolate": _interpolate, "evaluate": _evaluate, "app": _app}[args.command](args)
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise  # torch tells of too little memory so, and of its own defects
        line = " ".join(str(error).split()) or "out of memory"
        print(f"riemannian-diffusion: error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("riemannian-diffusion: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="riemannian-diffusion", description=__doc__)
    parser.add_argument(
        "--version",
        action="version",
        version=f"riemannian-diffusion {version('riemannian-diffusion')}",
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    morph = commands.add_parser(
        "interpolate",
        help="morph images into each other",
        description="Morph two or more images into each other along a geodesic of a diffusion "
        "model. Without images, the two that ship with the package; a folder stands for the images "
        "in it, by name, and a video for two of its frames, the middle of which is filled.",
    )
    add = morph.add_argument
    add(
        "images",
        nargs="*",
        type=Path,
        help="two or more images of one size, a folder of them, or a video",
    )
    add("-o", "--output", type=Path, required=True, help=".gif, .mp4, .png (a grid) or a directory")
    add(
        "--model",
        help="a directory or repository of Stable Diffusion 1, 2, XL or 3, Flux, or an "
        "unconditional DDPM or DDIM (default: shipped)",
    )
    add("--prompt", action="append", help="what the images show: once, or once per image")
    add("--negative-prompt", default="", help="what they do not show, for --guidance above 1")
    add("--metric", choices=METRIC_NAMES, default="tangent_normal")
    add("--space", choices=("noise", "clean"), default="noise", help="where the path runs")
    add(
        "--init",
        action="append",
        choices=INIT_NAMES,
        help="where the solve starts (default: slerp); given more than once, each is solved from "
        "and the path of least energy is kept",
    )
    add(
        "--frames",
        type=int,
        help="from each image to the next, both included (default: 17, of a video as many as there "
        "were)",
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
        help="keep guidance on the data manifold, up to 1 (default: 0, plain guidance)",
    )
    add("--max-evals", type=int, default=200, help="evaluations per gap at most (default: 200)")
    add("--max-batch-size", type=int, default=8, help="less needs less memory (default: 8)")
    add("--size", type=_size, help="crop and scale the images to this size first: 512 or 768x512")
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
        type=int,
        default=0,
        help="of what is random in --space clean, --init roadmap and --metric density (default: 0)",
    )
    add("--device", help="cuda, mps or cpu (default: the first there is)")
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="of the networks (default: float16 on cuda, float32 elsewhere)",
    )
    add("--force", action="store_true", help="overwrite the output")
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
    add("--resamples", type=int, default=1000, help="behind each interval; 0: none (default: 1000)")
    add("--max-batch-size", type=int, default=8, help="less needs less memory (default: 8)")
    add("--seed", type=int, default=0, help="of random frames and intervals (default: 0)")
    add("--device", help="cuda, mps or cpu (default: the first there is)")
    add("--force", action="store_true", help="overwrite the output")
    page = commands.add_parser(
        "app",
        help="morph images in the browser",
        description="Serve a page that morphs images, to this machine alone unless --host says "
        "otherwise.",
    )
    add = page.add_argument
    add("--model", help="a directory or repository, as for `interpolate` (default: shipped)")
    add("--device", help="cuda, mps or cpu (default: the first there is)")
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="of the networks (default: float16 on cuda, float32 elsewhere)",
    )
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, default=7860, help="(default: 7860)")
    return parser


def _interpolate(args: argparse.Namespace) -> None:
    if not args.output.name:
        raise ValueError(f"--output must name a file or a folder, but got {args.output}.")
    if args.output.suffix.lower() not in ("", ".gif", ".mp4", ".png"):
        raise ValueError(
            f"--output must end in .gif, .mp4, .png or nothing, but got {args.output}."
        )
    if args.fps is not None and not 0.01 <= args.fps <= 1000:
        raise ValueError(f"--fps must be in [0.01, 1000], but got {args.fps}.")
    report_path = args.output.with_suffix(".json")
    _check_output(args, report_path)
    for path, is_folder in ((args.output, args.output.suffix == ""), (report_path, False)):
        if path.exists() and path.is_dir() != is_folder:
            raise ValueError(f"{path} exists and is of another kind.")

    import torch

    images, names, num_frames, fps = _keyframes(args)
    analogy = args.analogy and open_image(args.analogy, args.size)
    pipe, device, dtype = _load(args)
    start = time.perf_counter()
    output = pipe(
        images,
        args.prompt or "",
        negative_prompt=args.negative_prompt,
        num_frames=num_frames,
        metric=args.metric,
        space=args.space,
        init=args.init or "slerp",
        strength=args.strength,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        guidance_damping=args.guidance_damping,
        max_evals=args.max_evals,
        max_batch_size=args.max_batch_size,
        extrapolate=args.extrapolate,
        analogy=analogy,
        retime=args.retime,
        adaptation=_adaptation(args, pipe, images if analogy is None else [*images, analogy]),
        adain=args.adain,
        attention_interpolation=args.attention_interpolation,
        paste_endpoints=args.paste_endpoints,
        generator=torch.Generator().manual_seed(args.seed),
    )
    frames = output.frames
    if args.ping_pong:
        frames = frames + frames[-2:0:-1]
    report = {
        "geodesics": [None if g is None else describe_geodesic(g) for g in output.geodesics],
        "reconstruction_error": output.reconstruction_error,
        "num_frames": len(frames),
        "fps": fps,
        "seconds": round(time.perf_counter() - start, 2),
        "arguments": {k: _plain(v) for k, v in vars(args).items()} | {"images": names},
        "model": args.model or "shipped",
        "device": str(device),
        "dtype": dtype,
        "versions": installed_versions(
            ("riemannian-diffusion", "torch", "diffusers", "transformers")
        ),
    }
    write_frames(frames, args.output, fps)
    write_atomically(report_path, lambda path: path.write_text(json.dumps(report, indent=2) + "\n"))
    print(f"{args.output}: {len(frames)} frames in {report['seconds']:.1f} s, report {report_path}")
    for found in report["geodesics"]:
        if found is not None:
            print("  energy {finer_energy:.4g}, {num_evals} evaluations: {message}".format(**found))


def _app(args: argparse.Namespace) -> None:
    try:
        from riemannian_diffusion.app import serve
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the app needs {error.name}: pip install 'riemannian-diffusion[app]'"
        ) from error
    pipe, _, _ = _load(args)
    serve(pipe, args.host, args.port)


def _load(args: argparse.Namespace) -> tuple:
    """The pipeline of --model on --device, the device and the name of the dtype."""
    import diffusers
    import torch
    import transformers

    from riemannian_diffusion import demo
    from riemannian_diffusion.pipelines import AutoGeodesicInterpolationPipeline

    for library in (diffusers, transformers):  # stderr is for errors and the morph's own bars
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    device = args.device or first_device()
    dtype = args.dtype or default_dtype(device)
    model = demo.model_path() if args.model is None else args.model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe = AutoGeodesicInterpolationPipeline.from_pretrained(
                model, torch_dtype=getattr(torch, dtype)
            )
    except (ValueError, OSError):
        raise
    except Exception as error:  # a broken model fails in as many ways as there are libraries
        raise OSError(f"--model {model} cannot be loaded: {error}") from error
    try:
        pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used: {error}") from error
    return pipe, device, dtype


def _adaptation(args: argparse.Namespace, pipe, images: list):
    """What --adapt asks for."""
    if args.adapt is None:
        return None
    from riemannian_diffusion import adapt

    skipped = {"embeddings": {"lora_steps": 0}, "lora": {"embedding_steps": 0}, "both": {}}
    options = {"seed": args.seed, "cache_dir": args.adapt_cache} | skipped[args.adapt]
    try:
        return adapt(pipe, images, args.prompt or "", **options)
    except ImportError as error:
        raise ValueError(str(error)) from error


def _keyframes(args: argparse.Namespace) -> tuple[list, list[str], int, float]:
    """Images, their names, the frames from one to the next, and frames per second."""
    from riemannian_diffusion import demo

    paths = args.images or [Path(path) for path in demo.endpoint_paths()]
    num_frames, fps = 17 if args.frames is None else args.frames, args.fps or 12.0
    if len(paths) == 1 and paths[0].suffix.lower() in CLIP_SUFFIXES:
        clip = read_clip(paths[0], args.clip_frames, args.size)
        first, last = clip.places
        if not first < last:
            raise ValueError(
                f"--clip-frames must name an earlier and a later frame of {paths[0]}, but got "
                f"{first} and {last}."
            )
        num_frames = last - first + 1 if args.frames is None else args.frames
        names = [f"{paths[0]}#{place}" for place in clip.places]
        return clip.frames, names, num_frames, args.fps or clip.fps
    if len(paths) == 1 and paths[0].is_dir():
        folder, paths = paths[0], list(images_in(paths[0]))
        if not paths:
            raise ValueError(f"the folder {folder} holds no images.")
    if len(paths) == 1:
        raise ValueError(f"a morph needs two or more images, but got {paths[0]} alone.")
    return [open_image(path, args.size) for path in paths], [*map(str, paths)], num_frames, fps


def _evaluate(args: argparse.Namespace) -> None:
    if args.output is not None:
        if args.output.suffix.lower() != ".json":
            raise ValueError(f"--output must end in .json, but got {args.output}.")
        _check_output(args)
        if args.output.is_dir():
            raise ValueError(f"{args.output} exists and is of another kind.")

    import torch

    from riemannian_diffusion.evaluation import PROTOCOLS, evaluate, find_sequences

    found = find_sequences(args.directory)
    protocol = PROTOCOLS[args.protocol]
    for files in found:  # all of them before the first is measured
        protocol.check(files.name, len(files.frames), files.resolution)
    device = args.device or first_device()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used: {error}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table repeats them
        result = evaluate(
            (files.load() for files in found),
            protocol,
            device=device,
            max_batch_size=args.max_batch_size,
            num_resamples=args.resamples,
            seed=args.seed,
            skip_missing=not args.strict,
        )
    if args.output is not None:
        names = ("riemannian-diffusion", "torch", "lpips", "torchmetrics", "torch-fidelity")
        report = result.as_dict() | {
            "arguments": {k: _plain(v) for k, v in vars(args).items()},
            "device": str(device),
            "versions": installed_versions(names),
        }
        text = json.dumps(report, indent=2, allow_nan=False) + "\n"
        write_atomically(args.output, lambda path: path.write_text(text))
    print(result.table())


def _check_output(args: argparse.Namespace, *also: Path) -> None:
    """Refuse to overwrite without --force, and to write where there is no folder."""
    for path in (args.output, *also):
        if path.exists() and not args.force:
            raise ValueError(f"{path} exists: choose another --output, or overwrite with --force.")
    if not args.output.parent.is_dir():
        raise ValueError(f"the folder {args.output.parent} of --output does not exist.")
    try:
        with tempfile.TemporaryFile(dir=args.output.parent):
            pass
    except OSError as error:  # told now, not when there is something to write
        raise OSError(
            f"the folder {args.output.parent} of --output cannot be written to: {error}"
        ) from error


def installed_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe_geodesic(found) -> dict:
    """What a report says of a `Geodesic`."""
    return {
        "energy": found.energy_history[-1] if found.energy_history else found.energy,
        "finer_energy": found.energy,
        "lower_bound": found.lower_bound,
        "length": found.length,
        "num_evals": found.num_evals,
        "status": found.status,
        "message": found.message,
    }


def _plain(value):
    return value if isinstance(value, (int, float, str, list, tuple, type(None))) else str(value)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    try:
        size = int(width), int(height or width)
    except ValueError:
        size = (0, 0)
    if not 1 <= min(size) <= max(size) <= 2**14:
        raise argparse.ArgumentTypeError(f"must be like 512 or 768x512, but got {text!r}")
    return size


def default_dtype(device: object) -> str:
    """The narrowest dtype whose geodesics are those of float64, where it is the faster one.

    In float16 the solver's directions stay within a quarter of a degree, in bfloat16 they are off
    by degrees (`benchmarks/precision.py`); on a CPU neither is fast.
    """
    return "float16" if str(device).startswith("cuda") else "float32"


def first_device() -> str:
    """The fastest kind of device that PyTorch has here."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
