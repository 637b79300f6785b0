"""The command `batch`."""

from __future__ import annotations

import argparse
import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

from riemannian_diffusion.arguments import check_whole
from riemannian_diffusion.cli.inputs import check_ranges, frames_of_gaps
from riemannian_diffusion.cli.notes import Notes
from riemannian_diffusion.cli.options.batch import OF_ONE_MORPH
from riemannian_diffusion.cli.unused import unused_options
from riemannian_diffusion.media import shown_size
from riemannian_diffusion.pairs.claims import Process, names_in
from riemannian_diffusion.pairs.folder import PairFolder
from riemannian_diffusion.pairs.manifest import Pair, read_pairs
from riemannian_diffusion.pairs.running import Work, in_order, run_pairs
from riemannian_diffusion.pairs.summary import write_summary
from riemannian_diffusion.runtime import default_dtype, first_device

NOT_OF_FRAMES = (  # options on which frames do not depend, or which each pair has for itself
    *("command", "pairs", "output", "metric", "frames", "seed", "limit", "retry_failed"),
    *("evaluate", "device", "max_batch_size", "offload", "vae_slicing", "adapt_cache"),
)


def run_batch(args: argparse.Namespace) -> int:
    """Morph pairs of images, together with the other processes that share the output folder.

    Args:
        args: The command line.

    Returns:
        Exit status: 1 if a morph of the pairs has failed, else 0. Under `accelerate launch` the
        other processes than the first one return 0, because it ends all when one returns 1.
    """
    # 1. Refuse what is wrong, before the work and without PyTorch
    check_ranges(args)
    frames_of_gaps(args.frames, 1)
    if args.limit is not None:
        check_whole(1, limit=args.limit)
    for start in args.init or ():
        if isinstance(start, Path):
            raise ValueError(f"--init {start} starts one morph: `batch` takes names of starts.")
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"--output must name a folder, but {args.output} is a file.")
    if not args.output.parent.is_dir():
        raise ValueError(f"the folder {args.output.parent} of --output does not exist.")
    is_first = os.environ.get("RANK", "0") == "0"
    tell = partial(print, flush=True) if is_first else _silent
    pairs = read_pairs(args.pairs, num_frames=args.frames, seed=args.seed, tell=tell)[: args.limit]
    methods = list(dict.fromkeys(args.metric or ["tangent_normal"]))
    notes = Notes(silent=not is_first)
    for text in unused_options(args, methods):
        notes.tell(text)
    tell(f"{len(pairs)} pairs by {', '.join(methods)}: preparing ...")

    # 2. Prepare the folder
    rank, num_processes, device = place_of_process(args.device)
    dtype = args.dtype or default_dtype(device)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end in order, as after Ctrl-C
    if args.evaluate is not None:
        check_protocol(args.evaluate, pairs, args.size)
    with Process(args.output) as process:
        folder = PairFolder(args.output, methods, process)
        folder.begin(settings_of(args, dtype), pairs)
        if args.retry_failed:
            folder.forget_failures()

        # 3. Make the morphs
        def load() -> Work:
            from riemannian_diffusion.cli.batch_work import MorphWork

            tell(f"loading {args.model or 'the shipped model'} ...")
            with Notes(silent=not is_first):  # other libraries' warnings are for developers
                return MorphWork(args, methods, device, dtype)

        try:
            run_pairs(in_order(pairs, rank, num_processes), folder, load, tell=tell)
        except KeyboardInterrupt:
            kept = f"Finished morphs are in {args.output}, and the same command goes on from there."
            raise KeyboardInterrupt(kept) from None

        # 4. Summarise and measure them
        if not is_first:
            return 0
        table, num_failed = write_summary(pairs, folder)
        tell(f"\n{table}\n\nwritten to {args.output / 'summary.csv'}")
        if args.evaluate is not None:
            for method in methods:
                evaluate_method(folder, method, args.evaluate, device, process)
    return int(num_failed > 0)


def _silent(text: str) -> None:
    """What processes other than the first one say."""


def place_of_process(device: str | None) -> tuple[int, int, str]:
    """The number of this process among those of `accelerate launch`, their number, and the device.

    Args:
        device: The device that the user asks for, or None.
    """
    if "LOCAL_RANK" not in os.environ:
        return 0, 1, device or first_device()
    from accelerate import PartialState

    state = PartialState(cpu=(device or first_device()) == "cpu")
    place = state.process_index, state.num_processes
    state.destroy_process_group()  # from here on no process waits for another
    return *place, device or ("cpu" if state.device.type == "cpu" else str(state.device))


def settings_of(args: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """The options on which the frames of all pairs depend, by flag.

    Args:
        args: The command line.
        dtype: The name of the networks' dtype.
    """
    from riemannian_diffusion.cli.work import absolute, plain

    model = args.model or "shipped"
    known = vars(args) | {"model": Path(model) if Path(model).exists() else model, "dtype": dtype}
    return plain(
        {
            f"--{name.replace('_', '-')}": absolute(value)
            for name, value in known.items()
            if name not in (*NOT_OF_FRAMES, *OF_ONE_MORPH)
        }
    )


def check_protocol(name: str, pairs: list[Pair], size: tuple[int, int] | None) -> None:
    """Refuse pairs with another number or size of frames than a protocol needs.

    Args:
        name: The name of the protocol.
        pairs: The pairs.
        size: Width and height of all frames; None stands for those of each pair's first image.

    Raises:
        ValueError: Naming the first such pair.
    """
    from riemannian_diffusion.evaluation import PROTOCOLS

    protocol = PROTOCOLS[name]
    for pair in pairs:
        try:
            width, height = size or shown_size(pair.images[0])
        except (OSError, ValueError):  # the pair will fail, and its record will say why
            continue
        protocol.check(pair.name, pair.num_frames, (height, width))


def evaluate_method(
    folder: PairFolder, method: str, protocol: str, device: str, process: Process
) -> None:
    """Measure the frames of a method, unless another process has done so or is doing it."""
    from riemannian_diffusion.cli.commands import run_evaluate
    from riemannian_diffusion.cli.parser import parse

    directory = folder.path / method
    output = folder.path / f"evaluation_{method}_{protocol}.json"
    names = sorted(name for name in names_in(directory) if not name.startswith("."))
    claim = process.take(f"evaluate:{method}:{protocol}")
    if claim is None or not names:
        return
    if _measured_in(output) != names:
        command = ["evaluate", str(directory), "--protocol", protocol, "-o", str(output)]
        run_evaluate(parse([*command, "--device", device, "--force"]))
    process.finish(claim)


def _measured_in(report: Path) -> list[str] | None:
    """The names of the sequences in a report of `evaluate`; None if there is no whole report."""
    try:
        return sorted(json.loads(report.read_bytes())["sequences"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
