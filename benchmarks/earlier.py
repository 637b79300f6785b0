"""The main job and ten other pairs, next to an earlier version of this package.

    git worktree add ../earlier b9162de
    python benchmarks/earlier.py --earlier ../earlier [--pairs shipped "tuning 1" ...]

Both versions solve between the same inverted ends with their default options, and sample 17 frames.
There is one row per pair, and one of means, with these columns:

    passes, earlier passes  all point-passes of the morph (see `main_job.py`)
    curve    energy of today's curve over the energy of the same curve through the earlier nodes,
             minus 1; both have six chords for each segment
    lines    the same with straight lines between the earlier nodes, as that version defined a path
    frames   root mean square difference between both versions' frames, values in [0, 1]
    step, earlier step      largest root mean square step between neighbouring frames

Frames cannot be the same: the earlier version's frames are its nodes, which are unevenly spaced.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import frame
import torch
from main_job import GRADIENT, PAIRS, Recorded, counted, curve_of, images_of
from safetensors.torch import load_file, save_file

from riemannian_diffusion import demo, refine, smooth
from riemannian_diffusion.evaluation import largest_step
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline, Keyframes

# The earlier package runs this in a process of its own, with a folder of images and ends.
EARLIER = """
import dataclasses
import sys
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from riemannian_diffusion import demo
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

folder = Path(sys.argv[1])
pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path()).to(sys.argv[2])
pipe.set_progress_bar_config(disable=True)
passes = [0, 0]

def count(module, inputs, named):
    x = inputs[0] if inputs else named["sample"]
    passes[torch.is_grad_enabled() and x.requires_grad] += len(x)

pipe.unet.register_forward_pre_hook(count, with_kwargs=True)
for file in sorted(folder.glob("*.given")):
    given = load_file(file, device=sys.argv[2])
    passes[:] = [0, 0]
    keys = pipe.invert(given["images"], "")
    keys = dataclasses.replace(keys, points=given["ends"])
    path = pipe.sample(pipe.solve(keys))
    found = path.geodesics[0]
    nodes = getattr(found, "nodes", found.path).contiguous()  # once, they were the path
    frames = pipe.render(path, output_type="pt").frames.contiguous()
    counts = torch.tensor(passes)
    save_file({"nodes": nodes, "frames": frames, "passes": counts}, file.with_suffix(".found"))
"""


def main(argv: list[str] | None = None) -> list[dict]:
    """Compare both versions; return the rows."""
    parser = frame.parser(__doc__)
    parser.add_argument(
        "--earlier", type=Path, required=True, metavar="FOLDER", help="the earlier version's files"
    )
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """One row for each pair."""
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path()).to(args.device)
    keys, inversions = {}, {}
    for pair in args.pairs:
        with counted(pipe.unet) as inversions[pair]:
            keys[pair] = pipe.invert(images_of(pair), "")
    with tempfile.TemporaryDirectory() as folder:
        for pair in args.pairs:
            given = {"images": images_of(pair).contiguous(), "ends": keys[pair].points.contiguous()}
            save_file(given, Path(folder) / f"{pair}.given")
        command = [sys.executable, "-c", EARLIER, folder, args.device]
        environment = os.environ | {"PYTHONPATH": str(args.earlier.resolve())}
        subprocess.run(command, check=True, env=environment, cwd=folder)
        rows = []
        for pair in args.pairs:
            found = load_file(Path(folder) / f"{pair}.found", device=args.device)
            rows.append(compared(pipe, keys[pair], inversions[pair].cost, found))
            yield {"pair": pair} | rows[-1]
    yield {"pair": "mean"} | {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def compared(
    pipe: GeodesicInterpolationPipeline,
    keys: Keyframes,
    inversion: float,
    earlier: dict[str, torch.Tensor],
) -> dict[str, float]:
    """The measures of one pair."""
    recorded = Recorded()
    with counted(pipe.unet) as passes:
        path = pipe.sample(pipe.solve(keys, recorded))
    frames = pipe.render(path, output_type="pt").frames
    now = recorded.energy(curve_of(path))
    forward, gradient = earlier["passes"].tolist()
    return {
        "passes": inversion + passes.cost,
        "earlier passes": forward + GRADIENT * gradient,
        "curve": now / recorded.energy(smooth(earlier["nodes"], 6)) - 1,
        "lines": now / recorded.energy(refine(earlier["nodes"], 6)) - 1,
        "frames": float((frames - earlier["frames"]).square().mean().sqrt()),
        "step": float(largest_step(frames)),
        "earlier step": float(largest_step(earlier["frames"])),
    }


if __name__ == "__main__":
    main()
