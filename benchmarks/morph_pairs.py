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
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from frame import describe
from PIL import Image

from riemannian_diffusion import demo
from riemannian_diffusion.cli.commands import describe_geodesic
from riemannian_diffusion.cli.parser import METRIC_NAMES
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
        raise ValueError(f"PAIRS {folder} has no images: name them <name>_0.png and <name>_1.png.")
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


def prepare(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Prepare the output folder, and list the morphs `(method, name)` that are still to be made.

    Unfinished folders of an interrupted run are removed.

    Raises:
        ValueError: If an earlier run in the same folder had other settings or prompts.
    """
    args.output.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(args, name) for name in SETTINGS}
    record = args.output / "run.json"
    if record.exists():
        before = json.loads(record.read_text())
        for name, value in settings.items():
            if before.get(name) != value:
                raise ValueError(
                    f"OUT {args.output} was begun with {name}={before.get(name)!r}, but now it is "
                    f"{value!r}: choose another OUT, or give the earlier setting."
                )
    else:
        text = json.dumps(settings, indent=2) + "\n"
        write_atomically(record, lambda path: path.write_text(text))
    for remains in args.output.glob("*/.part-*"):
        shutil.rmtree(remains)
    if args.scenes:
        write_scenes(args.pairs, args.scenes)
    pairs = find_pairs(args.pairs)
    prompts = read_prompts(args.prompts, list(pairs)) if args.prompts else {}
    todo = []
    for method, name in ((method, name) for name in pairs for method in args.methods):
        done = args.output / method / name / "pair.json"
        failed = failure_path(args.output, method, name)
        if args.retry_failed:
            failed.unlink(missing_ok=True)
        if done.exists():
            before, now = json.loads(done.read_text())["prompts"], prompts.get(name, NO_PROMPTS)
            if before != now:
                raise ValueError(
                    f"{done.parent} was made with the prompts {before}, but now they are {now}: "
                    "choose another OUT, or remove that folder."
                )
        elif not failed.exists():
            todo.append((method, name))
    return todo


def failure_path(output: Path, method: str, name: str) -> Path:
    """The file that describes why a pair failed."""
    return output / "failed" / method / f"{name}.json"


def morph(pipe, paths: tuple[Path, Path], prompts: list[str], method: str, args) -> tuple:
    """The frames of one pair, the images as the model receives them, and the report."""
    metric, _, space = method.partition("@")
    images = [open_image(path, (args.size, args.size)) for path in paths]
    start = time.perf_counter()
    output = pipe(
        images,
        prompts,
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
    found = output.geodesics[0]
    report = {
        "prompts": prompts,
        "images": [str(path) for path in paths],
        "seconds": round(time.perf_counter() - start, 3),
        "reconstruction_error": output.reconstruction_error,
        "geodesic": None if found is None else describe_geodesic(found),
    }
    return output.frames, images, report


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("pairs", type=Path, nargs="?", metavar="PAIRS")
    add("output", type=Path, metavar="OUT")
    add("--scenes", type=int, metavar="N", help="render N held-out pairs to OUT/pairs")
    add("--prompts", type=Path, help="CSV file: name,prompt_0,prompt_1; other pairs have no prompt")
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
    add("--size", type=int, help="side of the square images (default: the model's own)")
    add("--guidance", type=float, default=1.0)
    add("--negative-prompt", default="")
    add("--max-evals", type=int, default=200)
    add("--max-batch-size", type=int, default=8)
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="default: float16 on CUDA, else float32",
    )
    add("--seed", type=int, default=0)
    add("--retry-failed", action="store_true", help="try the failed pairs again")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Make the morphs that are still to be made."""
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.pairs is None) == (args.scenes is None):
        parser.error("give either PAIRS or --scenes N")
    if args.scenes:
        args.pairs = args.output / "pairs"
        args.prompts = args.prompts or args.pairs / "prompts.csv"

    # 1. One process lists the morphs to make; each process takes its share
    state, todo = PartialState(cpu=first_device() == "cpu"), [[]]
    args.dtype = args.dtype or default_dtype(state.device)
    if state.is_main_process:
        try:
            todo = [prepare(args)]
        except (ValueError, OSError) as error:
            sys.exit(f"morph_pairs: error: {error}")
    todo = broadcast_object_list(todo)[0]
    mine = todo[state.process_index :: state.num_processes]
    if state.is_main_process:
        print(describe(str(state.device)))
        print(f"{len(todo)} morphs to make, {state.num_processes} processes", flush=True)
    if state.num_processes > 1:
        state.destroy_process_group()  # from here on no process waits for another

    # 2. Morph
    pairs = find_pairs(args.pairs)
    prompts = read_prompts(args.prompts, list(pairs)) if args.prompts else {}
    if mine:
        path = demo.model_path() if args.model == "shipped" else args.model
        pipe = GeodesicInterpolationPipeline.from_pretrained(path, use_safetensors=True)
        pipe.to(state.device, getattr(torch, args.dtype))
        pipe.set_progress_bar_config(disable=True)
        args.size = args.size or pipe.unet.config.sample_size * pipe.vae_scale_factor
    versions = installed_versions(("riemannian-diffusion", "torch", "diffusers", "transformers"))
    for method, name in mine:
        texts = prompts.get(name, NO_PROMPTS)
        report = {"name": name, "method": method, "process": state.process_index}
        try:
            frames, images, found = morph(pipe, pairs[name], texts, method, args)
            report |= found | {"device": str(state.device), "versions": versions}
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


if __name__ == "__main__":
    main()
