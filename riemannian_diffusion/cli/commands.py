"""What the commands do."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from riemannian_diffusion.media import (
    CLIP_SUFFIXES,
    images_in,
    open_image,
    read_clip,
    write_atomically,
    write_frames,
)
from riemannian_diffusion.runtime import default_dtype, first_device, installed_versions


def run_interpolate(args: argparse.Namespace) -> None:
    """Morph images and write frames and a report."""
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


def run_app(args: argparse.Namespace) -> None:
    """Serve the page."""
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
            pipe: Any = AutoGeodesicInterpolationPipeline.from_pretrained(
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
    from riemannian_diffusion.adaptation import adapt

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


def run_evaluate(args: argparse.Namespace) -> None:
    """Measure folders of frames and print a table."""
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
