"""The stages of a morph, one after the other, and what they take from a folder of kept work."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from riemannian_diffusion.batches import is_out_of_memory
from riemannian_diffusion.cli.inputs import Inputs
from riemannian_diffusion.cli.models import ip_adapter_images
from riemannian_diffusion.cli.work import Work, solve_options
from riemannian_diffusion.events import Listener
from riemannian_diffusion.measures import Distance
from riemannian_diffusion.pipelines import GeodesicInterpolationOutput, MorphPath
from riemannian_diffusion.pipelines.curves import check_metric
from riemannian_diffusion.pipelines.expected import progress_of_solve
from riemannian_diffusion.pipelines.progress import Estimate
from riemannian_diffusion.pipelines.retiming import find_distance
from riemannian_diffusion.pipelines.starts import as_starts
from riemannian_diffusion.pipelines.texts import warn_of_negative
from riemannian_diffusion.pipelines.tolerance import RTOL
from riemannian_diffusion.score import Conditions
from riemannian_diffusion.score.schedulers import is_flow

T = TypeVar("T")


def morph(
    args: argparse.Namespace,
    inputs: Inputs,
    pipe: Any,
    work: Work,
    on_event: Listener,
    write: Callable[[GeodesicInterpolationOutput], T],
) -> T:
    """Morph images: condition, invert, solve, sample; retime, extend, transport; render and write.

    If something fails after the inversion, or is interrupted, what was finished is kept.

    Args:
        args: The command line.
        inputs: Its images and frames.
        pipe: The pipeline, on its device.
        work: What is kept.
        on_event: Receives the events of all stages.
        write: Writes what the stage `render` returns.

    Returns:
        What `write` returns.
    """
    check_metric(args.metric, args.space, is_flow(pipe.scheduler))
    as_starts(inputs.starts, args.space)
    metric, third = args.metric, inputs.third
    distance = distance_of(args, pipe)

    # 1. Find what was kept
    options = solve_options(args, inputs, pipe.device_of_work)
    work.begin(metric, options)
    keys, path = work.keyframes(), work.path(metric)
    checkpoint = work.checkpoint(metric)
    if keys is not None:
        try:
            keys = pipe.connect(keys)
        except ValueError as error:
            raise ValueError(
                f"--keep {work.folder} holds keyframes of other weights than those of --model: "
                "choose another folder, or delete its files."
            ) from error
        levels = replace(keys.levels, max_batch_size=args.max_batch_size)
        keys = replace(keys, levels=levels)
        found = "the keyframes"
        if path is not None:
            path = replace(pipe.connect(path), keys=keys)
            found += " and the path" if path.latents is None else " and the sampled path"
        elif checkpoint is not None and checkpoint.exists():
            found += " and a solve that had not ended"
        print(f"resumed from {work.folder}: {found}", flush=True)

    # 2. Prepare the conditions that are still needed: of the keyframes, of the image of --analogy
    ours, theirs = None, None
    if keys is None or third is not None:
        ours = conditions_of(args, inputs, pipe, work)
    if ours is not None and third is not None:
        ours, theirs = ours.at_knots([0, 1]), ours.at_knots([2])

    # 3. Invert the keyframes
    if keys is None:
        assert ours is not None
        keys = inverted(args, inputs, ours, pipe, on_event)
        work.keep(keys)

    # 4. Find the path, and 5. sample it, change it, decode it and write it
    try:
        if path is None:
            path = solved(args, inputs, keys, pipe, checkpoint, on_event)
            work.keep(path)
        return write(shown(args, third, theirs, path, pipe, work, distance, on_event))
    except (Exception, KeyboardInterrupt) as error:
        if hasattr(error, "bridge"):  # an error of `transport` carries it
            work.keep(error.bridge, "bridge")
        if work.folder is None:
            work.keep_in(kept_folder(args.output), metric, options)
        what = "The keyframes are kept" if path is None else "The path is kept"
        again = f"run this again with --keep {work.folder}."
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{what}: {again}") from error
        if is_out_of_memory(error):
            raise MemoryError(f"out of memory: {error} {what}: free memory and {again}") from error
        if isinstance(error, (ValueError, OSError, ImportError)):
            raise ValueError(f"{error} {what}: mend this and {again}") from error
        print(f"{what}: {again}", file=sys.stderr)
        raise


def inverted(
    args: argparse.Namespace,
    inputs: Inputs,
    conditions: Conditions,
    pipe: Any,
    on_event: Listener | None = None,
) -> Any:
    """The images of a command line as keyframes."""
    return pipe.invert(
        inputs.images,
        conditions=conditions,
        space=args.space,
        strength=args.strength,
        num_inference_steps=args.steps,
        spacing=args.spacing,
        guidance_scale=args.guidance,
        guidance_damping=args.guidance_damping,
        max_batch_size=args.max_batch_size,
        generator=torch.Generator().manual_seed(args.seed),
        on_event=on_event,
    )


def solved(
    args: argparse.Namespace,
    inputs: Inputs,
    keys: Any,
    pipe: Any,
    checkpoint: Path | None,
    on_event: Listener | None = None,
) -> MorphPath:
    """The path between keyframes."""
    return pipe.solve(
        keys,
        args.metric,
        num_frames=inputs.num_frames,
        init=inputs.starts,
        max_evals=args.max_evals,
        rtol=RTOL if args.rtol is None else args.rtol,
        checkpoint=checkpoint,
        generator=torch.Generator().manual_seed(args.seed),
        on_event=on_event,
    )


def estimate_of(args: argparse.Namespace, inputs: Inputs) -> Estimate | None:
    """What predicts the time left of a morph; None where stages come twice or their work is open.

    Args:
        args: The command line.
        inputs: Its images and frames.
    """
    if args.analogy is not None or args.retime is not None or args.extrapolate or args.adapt:
        return None
    num_frames = sum(inputs.num_frames) - len(inputs.num_frames)
    num_steps = max(1, round(args.steps * args.strength))
    in_noise = args.space == "noise"
    passes = {
        "invert": in_noise * num_steps * len(inputs.images),
        "solve": 0,
        "sample": in_noise * num_steps * (num_frames + 1),
        "decode": num_frames + 1,
    }
    rtol = RTOL if args.rtol is None else args.rtol
    return Estimate(
        passes,
        points=min(len(inputs.images), args.max_batch_size),
        solve=progress_of_solve(
            args.metric, inputs.num_frames, inputs.starts, rtol, args.max_evals
        ),
    )


def kept_folder(output: Path) -> Path:
    """A new folder beside the output, for work that would be lost."""
    names = (f"{output.stem}-kept{number or ''}" for number in itertools.count())
    return next(folder for folder in map(output.with_name, names) if not folder.exists())


def distance_of(args: argparse.Namespace, pipe: Any) -> Distance | None:
    """The distance of `--retime`, loaded before the work because its weights may be missing."""
    return None if args.retime is None else find_distance(args.retime, pipe.device_of_work)


def shown(
    args: argparse.Namespace,
    third: Any,
    theirs: Conditions | None,
    path: MorphPath,
    pipe: Any,
    work: Work,
    distance: Distance | None,
    on_event: Listener | None = None,
) -> GeodesicInterpolationOutput:
    """Sample a path, change it as asked, and decode it."""
    if path.latents is None or path.attention_interpolation != args.attention_interpolation:
        path = pipe.sample(
            path,
            adain=args.adain and path.latents is None,  # kept points are matched already
            attention_interpolation=args.attention_interpolation,
            on_event=on_event,
        )
        work.keep(path)
    if distance is not None:
        path = pipe.retime(path, distance, max_batch_size=args.max_batch_size, on_event=on_event)
    if args.extrapolate:
        path = pipe.extend(path, args.extrapolate, on_event=on_event)
    if third is not None:
        assert theirs is not None
        # loaded keyframes have their own copy of the LoRAs, and one path shares one
        theirs = replace(theirs, loras=path.keys.levels.conditions.loras)
        bridge = work.bridge(path.metric)
        if bridge is not None and not bridge.keys.pixels[1:].equal(pipe.pixels([third])):
            bridge = None  # it leads to another image
        path = pipe.transport(
            *(path, third),
            bridge=bridge,
            conditions=theirs,
            max_evals=args.max_evals,
            rtol=RTOL if args.rtol is None else args.rtol,
            on_event=on_event,
        )
    return pipe.render(
        path,
        paste_endpoints=args.paste_endpoints,
        max_batch_size=args.max_batch_size,
        on_event=on_event,
    )


def conditions_of(args: argparse.Namespace, inputs: Inputs, pipe: Any, work: Work) -> Conditions:
    """Conditions of the keyframes, and of the image of `--analogy` after them."""
    images = inputs.images if inputs.third is None else [*inputs.images, inputs.third]
    prompts, adaptation = args.prompt or [""], None
    if args.adapt is not None:
        from riemannian_diffusion.adaptation import adapt

        options: dict[str, Any] = {"seed": args.seed, "cache_dir": args.adapt_cache or work.folder}
        if args.adapt != "both":
            options["lora_steps" if args.adapt == "embeddings" else "embedding_steps"] = 0
        try:
            adaptation = adapt(pipe, images, prompts, **options)
        except ImportError as error:
            raise ValueError(str(error)) from error
    images_too: dict[str, Any] = {}
    if args.ip_adapter_image is not None:
        images_too["ip_adapter_image"] = ip_adapter_images(args)
    if args.metric != "density":  # its score is the difference of prompts
        warn_of_negative(pipe, args.negative_prompt, args.guidance, 1.0)
    return pipe.condition(prompts, args.negative_prompt, adaptation=adaptation, **images_too)
