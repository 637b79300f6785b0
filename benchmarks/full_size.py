"""Time and memory of a morph by a model of full size, next to the targets of a GPU.

    python benchmarks/full_size.py [--models sd15 sdxl] [--device cuda] [--dtype float16]
        [--frames 17] [--steps 50] [--max-evals N] [--max-batch-size 8]

The targets are 20 seconds and 8 GB (1e9 bytes) for a morph of 17 frames by Stable Diffusion 1.5 at
512 px, and 120 seconds and 16 GB for one by Stable Diffusion XL at 1024 px. All parts of the models
have random weights, and the images are the shipped ones, enlarged. On a GPU, torch gets no more
memory than that of the target, less half a GB for CUDA's own. A short morph is made first, and is
not counted. There is one row per stage, and one for all of them:

    seconds           time of the stage
    passes            evaluations of the network at one point; 2.1 for one with gradient
    shipped passes    those of the same morph with the shipped model, whose weights are trained
    expected          seconds of the stage with the shipped model's number of passes
    target            seconds of the target
    peak GB           peak of the memory that torch allocated
    limit GB          memory of the target
    batch             largest batch of the network, which is halved where memory runs out
    TFLOP/s, share    rate of the network's operations, and its share of the rate of a square matrix
                      product on this device in this dtype
    met               whether both targets are met
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import frame
import torch
import transformers
from architectures import SMALL, architecture_of, default_dtype
from device import forget_peak, limit_memory, matrix_rate, peak_gib, synchronize
from main_job import Passes
from main_job import counted as counting
from model_costs import Work, counted
from PIL import Image
from torch import nn

from riemannian_diffusion import demo
from riemannian_diffusion.pipelines import (
    GeodesicInterpolationPipeline,
    GeodesicInterpolationXLPipeline,
)
from riemannian_diffusion.pipelines.quality import ImageWarning
from riemannian_diffusion.pipelines.single_file import clip_tokenizer, write_configs

OWN_GB = 0.5  # of the memory of a card, what CUDA takes for itself
SHORT = {"num_frames": 3, "steps": 4, "max_evals": 2}
SMALL_PARTS = {  # in place of the values of the configs, in rehearsals
    "AutoencoderKL": {"block_out_channels": 4 * [32], "layers_per_block": 1},
    "CLIPTextModel": {"num_hidden_layers": 1},
    "CLIPTextModelWithProjection": {"num_hidden_layers": 1},
}


@dataclass(frozen=True)
class Target:
    """What a morph of 17 frames may cost.

    Attributes:
        pipeline: Class of the pipeline.
        kind: Type of its checkpoints, as diffusers names it.
        seconds: Time.
        gigabytes: Memory of the card.
    """

    pipeline: Any
    kind: str
    seconds: float
    gigabytes: float


TARGETS = {
    "sd15": Target(GeodesicInterpolationPipeline, "v1", 20, 8),
    "sdxl": Target(GeodesicInterpolationXLPipeline, "xl_base", 120, 16),
}
TARGETS |= {f"small_{name}": target for name, target in TARGETS.items()}


def random_part(
    library: str, kind: str, config: dict[str, Any], dtype: torch.dtype, device: str
) -> Any:
    """A part of a pipeline with random weights, or its scheduler, from its config."""
    config = {key: value for key, value in config.items() if key[0] != "_"}
    cls: Any = getattr(transformers if library == "transformers" else diffusers, kind)
    if not issubclass(cls, nn.Module):
        return cls(**config)  # a scheduler, whose tensors stay on the CPU
    with default_dtype(dtype), torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        made = cls(cls.config_class(**config)) if library == "transformers" else cls(**config)
    return made.to(device, dtype).eval().requires_grad_(False)


def random_pipeline(name: str, dtype: torch.dtype, device: str) -> Any:
    """The pipeline of a model of full size, with random weights."""
    target = TARGETS[name]
    parts: dict[str, Any] = {"unet": architecture_of(name).network(dtype, device)}
    with tempfile.TemporaryDirectory() as folder:
        write_configs(target.kind, Path(folder))
        index = json.loads((Path(folder) / "model_index.json").read_text())
        for part, entry in index.items():
            if part in parts or not isinstance(entry, list):
                continue
            if entry[1] == "CLIPTokenizer":
                parts[part] = clip_tokenizer("!" if part == "tokenizer_2" else "<|endoftext|>")
                continue
            (file,) = (Path(folder) / part).glob("*config.json")
            config = json.loads(file.read_text())
            if name in SMALL:
                config |= SMALL_PARTS.get(entry[1], {})
            parts[part] = random_part(*entry, config, dtype, device)
    others = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = target.pipeline(**parts, **(others if target.kind == "v1" else {}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass(frozen=True)
class Stage:
    """What a stage took: time, passes of the network, and peak memory."""

    seconds: float
    passes: Passes
    gigabytes: float


def stages_of(
    pipe: Any, pixels: int, device: str, *, num_frames: int, steps: int, max_evals: int, **options
) -> tuple[dict[str, Stage], Any]:
    """Make a morph; return what each stage took, and the path."""
    images = [
        Image.open(path).convert("RGB").resize((pixels, pixels)) for path in demo.endpoint_paths()
    ]
    found: dict[str, Stage] = {}

    def run(name: str, function: Callable, *args, **options):
        forget_peak(device)
        synchronize(device)
        start = time.perf_counter()
        with counting(pipe.unet) as passes:
            made = function(*args, **options)
        synchronize(device)
        seconds = time.perf_counter() - start
        found[name] = Stage(seconds, passes, peak_gib(device) * 2**30 / 1e9)
        return made

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)  # random autoencoders lose the images
        keys = run("invert", pipe.invert, images, num_inference_steps=steps, **options)
    path = run("solve", pipe.solve, keys, num_frames=num_frames, max_evals=max_evals)
    path = run("sample", pipe.sample, path)
    run("render", pipe.render, path)
    return found, path


def main(argv: list[str] | None = None) -> list[dict]:
    """Make the morphs; return the rows."""
    parser = frame.parser(__doc__)
    add = parser.add_argument
    add("--models", nargs="+", choices=TARGETS, default=["sd15", "sdxl"], metavar="NAME")
    add("--dtype", default="float16", help="dtype of the models (default: float16)")
    add("--frames", type=int, default=17)
    add("--steps", type=int, default=50, help="steps of the scheduler")
    add("--max-evals", type=int, help="default: the shipped model's number of evaluations")
    add("--max-batch-size", type=int, default=8, help="largest batch of the network")
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Rows of all stages and models."""
    options = {"num_frames": args.frames, "steps": args.steps, "max_evals": args.max_evals or 200}
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path()).to(args.device)
    shipped, path = stages_of(pipe, 128, args.device, **options)
    if args.max_evals is None:
        options["max_evals"] = path.geodesics[0].num_evals
    options["max_batch_size"] = args.max_batch_size
    dtype = getattr(torch, args.dtype)
    rate = matrix_rate(dtype, args.device)
    del pipe, path
    for name in args.models:
        architecture = architecture_of(name)
        _, work = counted(architecture, architecture.pixels)
        with limit_memory(args.device, TARGETS[name].gigabytes - OWN_GB):
            pipe = random_pipeline(name, dtype, args.device)
            stages_of(pipe, architecture.pixels, args.device, **(options | SHORT))
            found, path = stages_of(pipe, architecture.pixels, args.device, **options)
        batch = path.keys.levels.learned.network.largest or args.max_batch_size
        yield from rows_of(name, found, shipped, work, rate, batch)
        del pipe, path


def rows_of(
    name: str,
    found: dict[str, Stage],
    shipped: dict[str, Stage],
    work: Work,
    rate: float,
    batch: int,
) -> Iterator[dict]:
    """A row for each stage of a morph, and one for the whole."""
    target = TARGETS[name]
    total: dict[str, Any] = {"seconds": 0.0, "passes": 0.0, "shipped passes": 0.0, "expected": 0.0}
    for label, stage in found.items():
        passes, other = stage.passes.cost, shipped[label].passes.cost
        costs = {
            "seconds": stage.seconds,
            "passes": passes,
            "shipped passes": other,
            "expected": stage.seconds * (other / passes if passes else 1.0),
        }
        total = {key: total[key] + costs[key] for key in total}
        done = stage.passes.forward * work.forward + stage.passes.gradient * work.both
        speed = done / stage.seconds / 1e12 if passes else None
        yield _row(name, label, costs, None, stage.gigabytes, batch, speed, rate, None)
    peak = max(stage.gigabytes for stage in found.values())
    met = total["expected"] <= target.seconds and peak <= target.gigabytes
    yield _row(name, "all", total, target.seconds, peak, batch, None, rate, met)


def _row(
    name: str,
    label: str,
    costs: dict[str, float],
    target: float | None,
    peak: float,
    batch: int,
    speed: float | None,
    rate: float,
    met: bool | None,
) -> dict:
    return {
        "model": architecture_of(name).title,
        "pixels": architecture_of(name).pixels,
        "stage": label,
        **costs,
        "target": target,
        "peak GB": peak,
        "limit GB": TARGETS[name].gigabytes,
        "batch": batch,
        "TFLOP/s": speed,
        "share": speed and speed / rate,
        "met": met,
    }


if __name__ == "__main__":
    main()
