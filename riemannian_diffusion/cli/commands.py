"""The commands."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from riemannian_diffusion.cli.flags import with_flags
from riemannian_diffusion.cli.inputs import Inputs, check_ranges, read_inputs
from riemannian_diffusion.cli.interrupts import leaving_at_once
from riemannian_diffusion.cli.notes import Notes
from riemannian_diffusion.cli.progress import Progress
from riemannian_diffusion.cli.unused import unused_options
from riemannian_diffusion.files import as_json, write_atomically
from riemannian_diffusion.media import write_frames
from riemannian_diffusion.pipelines.knowledge import SHIPPED, native_size, size_problem
from riemannian_diffusion.runtime import (
    check_device,
    default_dtype,
    first_device,
    installed_versions,
)


def run_interpolate(args: argparse.Namespace) -> None:
    """Morph images and write frames and a report."""
    if not args.output.name:
        raise ValueError(f"--output must name a file or a folder, but got {args.output}.")
    if args.output.name.startswith(".") and not args.output.suffix:
        raise ValueError(
            f"--output must have a name before its ending, as in morph.gif, but got {args.output}."
        )
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

    check_ranges(args)
    notes = Notes()
    for text in unused_options(args, [args.metric]):
        notes.tell(text)
    inputs = read_inputs(args, notes.tell)
    with Progress() as progress, notes:
        progress.begin(f"loading {_model(args)}")  # before imports, which take seconds
        with leaving_at_once():
            from riemannian_diffusion.cli.models import load_model
            from riemannian_diffusion.cli.morph import estimate_of, morph
            from riemannian_diffusion.cli.work import Work, keyframe_settings

            device = args.device or first_device()
            dtype = args.dtype or default_dtype(device)
            start = time.perf_counter()
            pipe = load_model(args, device, dtype)
        check_size(args, inputs, pipe)
        work = Work(args.keep, keyframe_settings(args, inputs, dtype), force=args.force)
        if args.model is None and args.images:
            notes.tell(SHIPPED)
        progress.estimate = estimate_of(args, inputs)

        def write(output: Any) -> dict[str, Any]:
            for text in output.warnings:
                notes.tell(text)
            progress.begin(f"writing {args.output}")
            frames = shown_frames(args, output.frames)
            write_frames(frames, args.output, inputs.fps, tell=notes.tell)
            report = report_of(args, inputs, output) | {
                "warnings": notes.texts,
                "num_frames": len(frames),
                "seconds": round(time.perf_counter() - start, 2),
                "device": str(device),
                "dtype": dtype,
            }
            text = as_json(report)
            write_atomically(report_path, lambda path: path.write_text(text))
            return report

        try:
            report = morph(args, inputs, pipe, work, progress, write)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(*error.args or [_after_interrupt(args)]) from None
    num, seconds = report["num_frames"], report["seconds"]
    print(f"{args.output}: {num} frames in {seconds:.1f} s, report {report_path}")
    for i, found in enumerate(report["geodesics"]):
        if found is not None:
            line = "  energy {finer_energy:.4g}, {num_evals} evaluations: {message}".format(**found)
            print(with_flags(line))
        if len(report["speeds"]) > 1:
            print(f"  from image {i + 1} to {i + 2}: speed {report['speeds'][i]:.3g} per frame")
    print(f"  {report['quality']}")


def report_of(args: argparse.Namespace, inputs: Inputs, output: Any) -> dict[str, Any]:
    """The entries of the report that follow from a morph and from the command line.

    Args:
        args: The command line.
        inputs: Its images.
        output: What `render` returned.
    """
    from riemannian_diffusion.pipelines.quality import verdict

    flags = output.nsfw_content_detected
    names = ("riemannian-diffusion", "torch", "diffusers", "transformers")
    return {
        "geodesics": [None if g is None else describe_geodesic(g) for g in output.geodesics],
        "speeds": output.path.speeds,
        "quality": verdict(output),
        "reconstruction_error": output.reconstruction_error,
        "autoencoder_error": output.autoencoder_error,
        "blanked_frames": None if flags is None else [i for i, flag in enumerate(flags) if flag],
        "image_frames": None if inputs.third is not None else output.path.key_indices,
        "fps": inputs.fps,
        "arguments": {k: _plain(v) for k, v in vars(args).items()} | {"images": inputs.names},
        "model": args.model or "shipped",
        "versions": installed_versions(names),
    }


def shown_frames(args: argparse.Namespace, frames: list[Any]) -> list[Any]:
    """PIL images as `--ping-pong` and `--scale` ask for them."""
    from PIL.Image import Resampling

    if args.ping_pong:
        frames = frames + frames[-2:0:-1]
    if args.scale == 1:
        return frames
    size = [args.scale * side for side in frames[0].size]
    return [frame.resize(size, Resampling.NEAREST) for frame in frames]


def check_size(args: argparse.Namespace, inputs: Inputs, pipe: Any) -> None:
    """Refuse images whose size is far from the model's own, unless `--size` asks for it.

    Args:
        args: The command line.
        inputs: Its images.
        pipe: The pipeline.

    Raises:
        ValueError: If their sides are more than twice or less than half the model's own.
    """
    size = inputs.images[0].size
    problem = None if args.size is not None else size_problem(pipe, size)
    if problem is not None:
        native = native_size(pipe)
        raise ValueError(
            f"the images have {size[0]} x {size[1]} pixels, but the model was trained on about "
            f"{native} x {native}: scale and crop them with --size {native}, or confirm their size "
            f"with --size {size[0]}x{size[1]}."
        )


def _after_interrupt(args: argparse.Namespace) -> str:
    """What an interrupt leaves, to go on from."""
    if args.keep is None:
        return "Nothing was finished."
    return f"Finished work is in {args.keep}, and the same command goes on from there."


def run_models(args: argparse.Namespace) -> None:
    """List every pipeline class of the installed diffusers: works, or refused for a reason."""
    print(
        "riemannian-diffusion: looking through diffusers ...", file=sys.stderr
    )  # before imports, which take seconds
    from riemannian_diffusion.pipelines.known import installed_classes, support

    for name in installed_classes():
        print(support(name))


def run_evaluate(args: argparse.Namespace) -> None:
    """Measure folders of frames and print a table."""
    if args.output is not None:
        if args.output.suffix.lower() != ".json":
            raise ValueError(f"--output must end in .json, but got {args.output}.")
        _check_output(args)
        if args.output.is_dir():
            raise ValueError(f"{args.output} exists and is of another kind.")

    print(f"measuring {args.directory} ...", flush=True)  # before imports, which take seconds
    from riemannian_diffusion.evaluation import PROTOCOLS, evaluate, find_sequences

    found = find_sequences(args.directory)
    protocol = PROTOCOLS[args.protocol]
    for files in found:  # all of them before the first is measured
        protocol.check(files.name, len(files.frames), files.resolution)
    device = args.device or first_device()
    check_device(device)
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
        text = as_json(report)
        write_atomically(args.output, lambda path: path.write_text(text))
    print(result.table())


def _model(args: argparse.Namespace) -> str:
    """What is loaded, for a message."""
    return "the shipped model" if args.model is None else args.model


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
    except OSError as error:  # say so now, not after the work
        raise OSError(
            f"the folder {args.output.parent} of --output cannot be written to: {error}"
        ) from error


def describe_geodesic(found) -> dict:
    """The entries of a report about a `Geodesic`."""
    return {
        "energy": found.iterates[-1][1] if found.iterates else found.energy,
        "finer_energy": found.energy,
        "lower_bound": found.lower_bound,
        "length": found.length,
        "energy_change": found.energy_change,
        "on_data": found.on_data,
        "num_evals": found.num_evals,
        "status": found.status,
        "message": found.message,
    }


def _plain(value: Any) -> Any:
    """A value of the command line as JSON can hold it."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (int, float, str, type(None))) else str(value)
