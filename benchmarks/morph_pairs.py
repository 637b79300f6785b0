"""Morph a folder of image pairs by several methods, ready to be evaluated.

    accelerate launch benchmarks/morph_pairs.py PAIRS OUT [--model NAME] [--methods NAME ...]
    riemannian-diffusion evaluate OUT/tangent_normal --protocol diffmorpher17

PAIRS is a folder with images `<name>_0.png` and `<name>_1.png` (or .jpg, .jpeg, .webp), as in
MorphBench. They may lie in sub-folders. `--prompts` is a CSV file with the columns name, prompt_0
and prompt_1. If `--scenes N` is given in place of PAIRS, N pairs that the shipped model was not
trained on are rendered to OUT/pairs.

A method is a name that the pipeline takes as `metric`. A name that ends with "@clean" solves in the
space of clean latents. Each method writes a folder `OUT/<method>/<name>/` with the frames `00.png`,
`01.png`..., with the two images as the model receives them in `inputs/`, and with `pair.json`. If a
pair fails, `OUT/failed/<method>/<name>.json` describes the error, and the other pairs are still
morphed. `OUT/summary.json` has the counts of finished and failed pairs and the means of their
measures.

`accelerate launch` spreads pairs over processes and machines that share OUT. Processes on the CPU
need `--multi_gpu --num_processes N`. The same command continues a run that was interrupted. It
refuses to mix different settings in one folder.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from frame import describe
from PIL import Image

from riemannian_diffusion import demo
from riemannian_diffusion.cli.commands import describe_geodesic
from riemannian_diffusion.cli.options.interpolate import METRIC_NAMES
from riemannian_diffusion.files import write_atomically
from riemannian_diffusion.media import open_image
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
from riemannian_diffusion.pipelines.curves import NOISE_CURVES
from riemannian_diffusion.runtime import default_dtype, first_device, installed_versions

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
NO_PROMPTS = ["", ""]
HELD_OUT_SEED = 2000  # the shipped model was trained on scenes drawn from seed 0
CLEAN = tuple(f"{name}@clean" for name in METRIC_NAMES if name not in NOISE_CURVES)
METHODS = (*METRIC_NAMES, *CLEAN)
SETTINGS = (  # frames depend on these settings, so all frames in one folder must share them
    *("model", "frames", "steps", "strength", "clean_strength", "size", "guidance"),
    *("negative_prompt", "max_evals", "dtype", "seed"),
)


@dataclass(frozen=True)
class Pair:
    """Two images to morph between.

    Attributes:
        name: Name of the pair, and of the folder of its frames.
        paths: The two image files.
        prompts: One prompt for each image.
    """

    name: str
    paths: tuple[Path, Path]
    prompts: list[str]


Morph = Callable[..., tuple[list, list, dict]]  # as `morph`, with the same arguments


def find_pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """The pairs in a folder and its sub-folders, by name.

    The name of a pair in a sub-folder starts with the name of that sub-folder and a dash.

    Raises:
        ValueError: If there are none, one image of a pair is missing, or two pairs have one name.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    found: dict[str, dict[str, Path]] = {}
    for path in files:
        stem, _, end = path.stem.rpartition("_")
        if stem and end in ("0", "1"):
            name = "-".join((*path.relative_to(folder).parent.parts, stem))
            if end in found.setdefault(name, {}):
                raise ValueError(
                    f"{path} and {found[name][end]} are both image {end} of the pair {name}: "
                    "rename one."
                )
            found[name][end] = path
    for name, ends in found.items():
        if len(ends) == 1:
            (path,) = ends.values()
            raise ValueError(f"The pair {name} has only {path}: add the other image.")
    if not found:
        raise ValueError(f"{folder} has no images: name them <name>_0.png and <name>_1.png.")
    return {name: (ends["0"], ends["1"]) for name, ends in found.items()}


def read_prompts(path: Path, names: list[str]) -> dict[str, list[str]]:
    """The two prompts of every pair that the file names.

    Raises:
        ValueError: If a column is missing, or a row names a pair that does not exist.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"name", "prompt_0", "prompt_1"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(
                f"--prompts {path} lacks the columns {', '.join(sorted(missing))}: add them."
            )
        prompts = {row["name"]: [row["prompt_0"], row["prompt_1"]] for row in reader}
    unknown = sorted(set(prompts) - set(names))
    if unknown:
        raise ValueError(
            f"--prompts {path} has prompts for {unknown[0]}, which is none of the pairs."
        )
    return prompts


def write_scenes(folder: Path, num: int) -> None:
    """Render pairs of scenes and write their captions.

    The kinds of solid take turns. Every third pair has two different kinds.
    """
    factors = demo.random_factors(2 * num, torch.Generator().manual_seed(HELD_OUT_SEED))
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(num):
        kinds = [demo.KINDS[(i + (i % 3 == 2) * end) % len(demo.KINDS)] for end in (0, 1)]
        ends = factors[2 * i : 2 * i + 2]
        with torch.no_grad():
            images = (demo.render(kinds, ends) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for end, pixels in enumerate(images):
            write_atomically(
                folder / f"scene{i:02d}_{end}.png",
                lambda path, pixels=pixels: Image.fromarray(pixels).save(path, "PNG"),
            )
        captions = [demo.caption(k, float(f[1])) for k, f in zip(kinds, ends, strict=True)]
        rows.append([f"scene{i:02d}", *captions])
    lines = ["name,prompt_0,prompt_1", *(",".join(row) for row in rows)]
    write_atomically(folder / "prompts.csv", lambda path: path.write_text("\n".join(lines) + "\n"))


def pairs_of(args: argparse.Namespace) -> list[Pair]:
    """The first `args.limit` pairs of the folder `args.pairs`, with their prompts."""
    found = find_pairs(args.pairs)
    prompts = read_prompts(args.prompts, list(found)) if args.prompts else {}
    pairs = [Pair(name, paths, prompts.get(name, NO_PROMPTS)) for name, paths in found.items()]
    return pairs[: args.limit]


def prepare(args: argparse.Namespace, settings: Sequence[str]) -> list[tuple[str, str]]:
    """Prepare the output folder, and list the morphs `(method, name)` that are still to be made.

    Unfinished folders of an interrupted run are removed.

    Args:
        args: The options.
        settings: Names of the options on which frames depend.

    Raises:
        ValueError: If an earlier run in the same folder had other settings or prompts.
    """
    args.output.mkdir(parents=True, exist_ok=True)
    values = {name: getattr(args, name) for name in settings}
    record = args.output / "run.json"
    if record.exists():
        before = json.loads(record.read_text())
        for name, value in values.items():
            if before.get(name) != value:
                raise ValueError(
                    f"{args.output} was begun with {name}={before.get(name)!r}, but now it is "
                    f"{value!r}: choose another folder, or give the earlier setting."
                )
    else:
        text = json.dumps(values, indent=2) + "\n"
        write_atomically(record, lambda path: path.write_text(text))
    for remains in args.output.glob("*/.part-*"):
        shutil.rmtree(remains)
    todo = []
    for method, pair in ((method, pair) for pair in pairs_of(args) for method in args.methods):
        done = args.output / method / pair.name / "pair.json"
        failed = failure_path(args.output, method, pair.name)
        if args.retry_failed:
            failed.unlink(missing_ok=True)
        if done.exists():
            before = json.loads(done.read_text())["prompts"]
            if before != pair.prompts:
                raise ValueError(
                    f"{done.parent} was made with the prompts {before}, but now they are "
                    f"{pair.prompts}: choose another folder, or remove that one."
                )
        elif not failed.exists():
            todo.append((method, pair.name))
    return todo


def failure_path(output: Path, method: str, name: str) -> Path:
    """The file that describes why a pair failed."""
    return output / "failed" / method / f"{name}.json"


def morph(pipe, pair: Pair, method: str, args: argparse.Namespace) -> tuple[list, list, dict]:
    """The frames of one pair, the images as the model receives them, and the report."""
    metric, _, space = method.partition("@")
    images = images_of(pair, args.size)
    output = pipe(
        images,
        pair.prompts,
        negative_prompt=args.negative_prompt,
        num_frames=args.frames,
        metric=metric,
        space=space or "noise",
        strength=args.clean_strength if space else args.strength,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        max_evals=args.max_evals,
        max_batch_size=args.max_batch_size,
        generator=torch.Generator().manual_seed(args.seed),
    )
    return output.frames, images, describe_morph(output)


def images_of(pair: Pair, size: int) -> list:
    """The images of a pair, cropped and scaled to squares."""
    return [open_image(path, (size, size)) for path in pair.paths]


def describe_morph(output) -> dict:
    """The entries of a report about the pipeline's output for one pair."""
    found = output.geodesics[0]
    return {
        "reconstruction_error": output.reconstruction_error,
        "geodesic": None if found is None else describe_geodesic(found),
    }


def write_pair(frames: list, images: list, report: dict, folder: Path) -> None:
    """Write a pair's folder under a temporary name, then rename it."""
    part = folder.with_name(f".part-{os.getpid()}-{folder.name}")
    (part / "inputs").mkdir(parents=True)
    for i, frame in enumerate(frames):
        frame.save(part / f"{i:02d}.png")
    for i, image in enumerate(images):
        image.save(part / "inputs" / f"{i}.png")
    (part / "pair.json").write_text(json.dumps(report, indent=2) + "\n")
    part.replace(folder)


def summarise(output: Path, methods: list[str], num_pairs: int) -> dict:
    """Counts and means of every method, over the pairs that have been written so far."""
    table = {}
    for method in methods:
        reports = [json.loads(p.read_text()) for p in sorted(output.glob(f"{method}/*/pair.json"))]
        failed = sorted(p.stem for p in (output / "failed" / method).glob("*.json"))
        solved = [r["geodesic"] for r in reports if r["geodesic"] is not None]
        table[method] = {
            "pairs": num_pairs,
            "done": len(reports),
            "failed": failed,
            "seconds": _mean([r["seconds"] for r in reports]),
            "reconstruction_error": _mean([e for r in reports for e in r["reconstruction_error"]]),
            "num_evals": _mean([g["num_evals"] for g in solved]),
            "not_converged": sum(g["status"] != "converged" for g in solved),
        }
    return table


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def write_summary(output: Path, methods: list[str], num_pairs: int) -> dict:
    """Write the summary. Write it again if another process has finished a pair in the meantime."""
    while True:
        table = summarise(output, methods, num_pairs)
        text = json.dumps(table, indent=2) + "\n"
        write_atomically(output / "summary.json", lambda path, text=text: path.write_text(text))
        if summarise(output, methods, num_pairs) == table:
            return table


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every script that morphs a folder of pairs."""
    add = parser.add_argument
    add("--prompts", type=Path, help="CSV file: name,prompt_0,prompt_1; other pairs have no prompt")
    add("--limit", type=int, metavar="N", help="take only the first N pairs")
    add("--size", type=int, help="side of the square images (default: the model's own)")
    add("--negative-prompt", default="")
    add("--max-batch-size", type=int, default=8)
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="default: float16 on CUDA, else float32",
    )
    add("--retry-failed", action="store_true", help="try the failed pairs again")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("pairs", type=Path, nargs="?", metavar="PAIRS")
    add("output", type=Path, metavar="OUT")
    add("--scenes", type=int, metavar="N", help="render N held-out pairs to OUT/pairs")
    add(
        "--model",
        default="stable-diffusion-v1-5/stable-diffusion-v1-5",
        help='name or folder of a model, or "shipped" for the shipped model',
    )
    add("--methods", nargs="+", choices=METHODS, metavar="NAME", default=["tangent_normal"])
    add("--frames", type=int, default=17)
    add("--steps", type=int, default=50)
    add("--strength", type=float, default=0.6, help="strength in noise space (default: 0.6)")
    add("--clean-strength", type=float, default=0.2, help="strength in clean space (default: 0.2)")
    add("--guidance", type=float, default=1.0)
    add("--max-evals", type=int, default=200)
    add("--seed", type=int, default=0)
    add_options(parser)
    return parser


def make_morphs(
    args: argparse.Namespace, state: PartialState, settings: Sequence[str], morph: Morph
) -> None:
    """Make the morphs that are still to be made, and write and print a summary.

    Args:
        args: The options of `add_options`, and `pairs`, `output`, `model`, `methods`, `device` and
            those that `settings` names. It is given the `dtype` and the `size` if they are None.
        state: The processes that share the work.
        settings: Names of the options on which frames depend.
        morph: Function of the pipeline, a `Pair`, a method and the options; returns the frames, the
            images as the model receives them, and a report.
    """
    # 1. One process lists the morphs to make; each process takes its share
    todo: list[list[tuple[str, str]]] = [[]]
    args.dtype = args.dtype or default_dtype(args.device)
    if state.is_main_process:
        try:
            todo = [prepare(args, settings)]
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")
    mine = broadcast_object_list(todo)[0]
    if state.is_main_process:
        print(f"{len(mine)} morphs to make, {state.num_processes} processes", flush=True)
    mine = mine[state.process_index :: state.num_processes]
    if state.num_processes > 1:
        state.destroy_process_group()  # from here on no process waits for another

    # 2. Morph
    pairs = {pair.name: pair for pair in pairs_of(args)}
    if mine:
        path = demo.model_path() if args.model == "shipped" else args.model
        pipe = GeodesicInterpolationPipeline.from_pretrained(path, use_safetensors=True)
        pipe.to(args.device, getattr(torch, args.dtype))
        pipe.set_progress_bar_config(disable=True)
        args.size = args.size or pipe.unet.config.sample_size * pipe.vae_scale_factor
    versions = installed_versions(("riemannian-diffusion", "torch", "diffusers", "transformers"))
    for method, name in mine:
        pair, start = pairs[name], time.perf_counter()
        report = {"name": name, "method": method, "process": state.process_index}
        report |= {"prompts": pair.prompts, "images": [str(path) for path in pair.paths]}
        try:
            frames, images, found = morph(pipe, pair, method, args)
            report["seconds"] = round(time.perf_counter() - start, 3)
            report |= found | {"device": str(args.device), "versions": versions}
            write_pair(frames, images, report, args.output / method / name)
            print(f"{method} {name}: {report['seconds']:.1f} s", flush=True)
        except Exception as error:  # any error is recorded, and the other pairs follow
            report |= {"error": f"{type(error).__name__}: {error}"}
            text = json.dumps(report | {"traceback": traceback.format_exc()}, indent=2) + "\n"
            failed = failure_path(args.output, method, name)
            failed.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(failed, lambda path, text=text: path.write_text(text))
            print(f"{method} {name}: failed, {report['error']}", flush=True)

    # 3. Write and print the summary
    for method, row in write_summary(args.output, args.methods, len(pairs)).items():
        failed = f", failed: {', '.join(row['failed'])}" if row["failed"] else ""
        print(f"{method}: {row['done']} of {row['pairs']} done{failed}", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Make the morphs that are still to be made."""
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.pairs is None) == (args.scenes is None):
        parser.error("give either PAIRS or --scenes N")
    state = PartialState(cpu=first_device() == "cpu")
    args.device = str(state.device)
    if args.scenes:
        args.pairs = args.output / "pairs"
        args.prompts = args.prompts or args.pairs / "prompts.csv"
    if state.is_main_process:
        print(describe(args.device))
        if args.scenes:
            write_scenes(args.pairs, args.scenes)
    make_morphs(args, state, SETTINGS, morph)


if __name__ == "__main__":
    main()
