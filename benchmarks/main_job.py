"""Cost of the main job: a morph of the shipped images in 17 frames.

    python benchmarks/main_job.py [--repeat 3] [--options frames 9 ...]
    python benchmarks/main_job.py --passes [--pairs shipped "tuning 1" ...] [--settings noise ...]
        [--references FOLDER]

The shipped model makes the morph. Without `--passes`, there is one row per run of the whole
command, with its imports: wall time and peak memory.

With `--passes`, there is one row per pair of images and setting, with these columns. A pass is one
evaluation of the network at one point; guidance takes two. A pass with a gradient counts as 2.1
passes, and one with a forward-mode product as 2.

    inversion    passes of the inversion
    gradient     passes of the solve with a gradient
    forward      other passes of the solve
    sampling     passes of the sampling
    total        all passes of the morph
    slerp        all passes of the same morph with slerp
    autoencoder  images that the autoencoder encoded and decoded
    evals        evaluations of energy and gradient
    status       how the solve ended
    energy       energy on six chords for each segment, over that of the reference, minus 1
    frames       root mean square difference from the frames of the reference, values in [0, 1]
    step         largest root mean square step between neighbouring frames
    reference step, slerp step    the same for the reference and for slerp

The reference is a solve with a tolerance of 1e-6 that begins on the path's own nodes. It takes
minutes; `--references` keeps it in a folder. The tuning pairs may be used to choose options, the
reporting pairs may not. The settings are noise space, with the default tolerance and with a tenth
of it, clean space, and noise space with guidance 3 and captions.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import demo_model
import frame
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from riemannian_diffusion import Metric, PathLBFGS, TangentNormalMetric, demo, smooth
from riemannian_diffusion.evaluation import largest_step
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline, Keyframes, MorphPath

PAIRS = ("shipped", *(f"{use} {i}" for use in ("tuning", "reporting") for i in range(1, 6)))
SCENES_SEED = 17
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the inversion and the solve
    "noise": ({}, {}),
    "noise, rtol 1e-4": ({}, {"rtol": 1e-4}),
    "clean": ({"space": "clean", "strength": 0.2}, {}),
    "guidance 3": ({"guidance_scale": 3.0}, {}),
}
GRADIENT, PRODUCT = 2.1, 2.0  # cost of a pass with a gradient or a product, in passes without
REFERENCE = {"solver": PathLBFGS(coarse_first=False), "rtol": 1e-6, "max_evals": 300}


@dataclass
class Passes:
    """Numbers of points at which the network was evaluated, by kind of evaluation."""

    forward: int = 0
    gradient: int = 0
    product: int = 0

    @property
    def cost(self) -> float:
        """The cost in passes without a gradient."""
        return self.forward + GRADIENT * self.gradient + PRODUCT * self.product


@contextmanager
def counted(network: torch.nn.Module) -> Iterator[Passes]:
    """Count the passes of a network."""
    passes = Passes()

    def count(module, inputs, named) -> None:
        x = inputs[0] if inputs else named["sample"]
        if unpack_dual(x).tangent is not None:
            passes.product += len(x)
        elif torch.is_grad_enabled() and x.requires_grad:
            passes.gradient += len(x)
        else:
            passes.forward += len(x)

    hook = network.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        hook.remove()


@contextmanager
def counted_images(autoencoder: torch.nn.Module) -> Iterator[Counter]:
    """Count the images that an autoencoder encodes and decodes."""
    images: Counter = Counter()

    def count(module, inputs) -> None:
        images["all"] += len(inputs[0])

    hooks = [
        part.register_forward_pre_hook(count) for part in (autoencoder.encoder, autoencoder.decoder)
    ]
    try:
        yield images
    finally:
        for hook in hooks:
            hook.remove()


def images_of(pair: str) -> Tensor:
    """The two images of a pair, `(2, 3, 64, 64)`."""
    if pair == "shipped":
        arrays = [np.array(Image.open(path).convert("RGB")) for path in demo.endpoint_paths()]
        return torch.from_numpy(np.stack(arrays)).movedim(3, 1) / 255
    scenes = demo_model.held_out(20, SCENES_SEED)  # scenes i and i + 10 show one kind of solid
    number = PAIRS.index(pair) - 1
    return scenes[[number, number + 10]]


class Recorded:
    """The tangent-normal metric of a score, which is kept."""

    def __init__(self) -> None:
        self.metric: Metric | None = None

    def __call__(self, score) -> Metric:
        """The metric."""
        self.metric = TangentNormalMetric(score)
        return self.metric

    def energy(self, points: Tensor) -> float:
        """The energy of the chords between points."""
        assert self.metric is not None
        answers = self.metric.energies([points], differentiate=False)
        return float(answers[0].segments.double().sum())


def curve_of(path: MorphPath) -> Tensor:
    """Points on the curve through the solver's nodes, six chords for each segment."""
    assert path.geodesics[0] is not None
    return smooth(path.geodesics[0].nodes, 6)


def passes_row(pipe, references: Path | None, pair: str, setting: str) -> dict:
    """The row of one pair and setting."""
    images = images_of(pair)
    prompts = demo.nearest_render(images).captions if setting == "guidance 3" else ""
    recorded, (inverting, solving) = Recorded(), SETTINGS[setting]
    with counted_images(pipe.vae) as autoencoder:
        with counted(pipe.unet) as inversion:
            keys = pipe.invert(
                images,
                prompts,
                generator=torch.Generator().manual_seed(0),
                **inverting,
            )
        with counted(pipe.unet) as solve:
            path = pipe.solve(keys, recorded, **solving)
        with counted(pipe.unet) as sampling:
            path = pipe.sample(path)
        frames = pipe.render(path, output_type="pt").frames
    with counted(pipe.unet) as slerp:
        straight = pipe.sample(pipe.solve(keys, "slerp" if setting != "clean" else "lerp"))
    straight_frames = pipe.render(straight, output_type="pt").frames
    reference = reference_of(pipe, keys, recorded, references, f"{pair} {setting.split(',')[0]}")
    reference_frames = pipe.render(reference, output_type="pt").frames
    found = path.geodesics[0]
    return {
        "pair": pair,
        "setting": setting,
        "inversion": inversion.cost,
        "gradient": solve.gradient,
        "forward": solve.cost - GRADIENT * solve.gradient,
        "sampling": sampling.cost,
        "total": inversion.cost + solve.cost + sampling.cost,
        "slerp": inversion.cost + slerp.cost,
        "autoencoder": autoencoder["all"],
        "evals": found.num_evals,
        "status": found.status,
        "energy": recorded.energy(curve_of(path)) / recorded.energy(curve_of(reference)) - 1,
        "frames": float((frames - reference_frames).square().mean().sqrt()),
        "step": float(largest_step(frames)),
        "reference step": float(largest_step(reference_frames)),
        "slerp step": float(largest_step(straight_frames)),
    }


def reference_of(pipe, keys: Keyframes, metric, folder: Path | None, name: str) -> MorphPath:
    """The sampled path of the reference, from the folder if it is there for these keyframes."""
    file = None if folder is None else folder / f"{name.replace(' ', '_')}.safetensors"
    if file is not None and file.exists():
        kept = pipe.connect(MorphPath.load(file))
        if torch.equal(kept.keys.points, keys.points):  # the inversion has not changed since
            return kept
    path = pipe.sample(pipe.solve(keys, metric, **REFERENCE))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        path.save(file)
    return path


def measure_passes(args: argparse.Namespace) -> Iterator[dict]:
    """Rows of all pairs and settings."""
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path()).to(args.device)
    for setting in args.settings:
        for pair in args.pairs:
            yield passes_row(pipe, args.references, pair, setting)


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure the command or its stages; return the rows."""
    parser = frame.parser(__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--options", nargs="+", default=[], help="further options of the command, without dashes"
    )
    parser.add_argument("--passes", action="store_true", help="count passes of the network")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--references", type=Path, help="folder of reference solves")
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Rows of the kind that was asked for."""
    yield from measure_passes(args) if args.passes else measure_command(args)


def measure_command(args: argparse.Namespace) -> Iterator[dict]:
    """Rows with the wall time and the peak memory of every run."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.repeat):
            output = Path(folder) / f"{i}.gif"
            command = [sys.executable, "-m", "riemannian_diffusion", "interpolate", "-o", output]
            command += ["--device", args.device, "--seed", str(args.seed)]
            command += frame.dashed(args.options)
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            report = json.loads(output.with_suffix(".json").read_text())
            found = report["geodesics"][0]
            yield {
                "run": i + 1,
                "seconds": seconds,
                "seconds in the pipeline": report["seconds"],
                "peak GiB": peak,
                "evals": found["num_evals"],
                "status": found["status"],
            }


if __name__ == "__main__":
    main()
