"""Network points that stages save, compared with whole calls of the pipeline.

    python benchmarks/stages.py [--frames 17] [--steps 50] [--device cpu] [--seed 0] [--out FILE]

The shipped model morphs between the shipped images. The comparisons are: four metrics, re-timing a
path, and extending a path. A network point is one point in one evaluation of the network. Backward
passes are not counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import frame
from methods import count_passes
from PIL import Image

from riemannian_diffusion import demo
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

METRICS = ("tangent_normal", "score_jacobian", "stein", "euclidean")
CURVES = ("slerp", "lerp", "nao", "noise_diffusion")


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per comparison: network points of stages, those of whole calls, and their ratio."""
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path()).to(args.device)
    images = [Image.open(path) for path in demo.endpoint_paths()]
    count = count_passes(pipe.network)

    def counted(call: Callable[[], Any]) -> tuple[Any, int]:
        count.reset()
        made = call()
        return made, count.points

    keys, inversion = counted(lambda: pipe.invert(images, num_inference_steps=args.steps))
    first = None
    for what, names in (("four metrics", METRICS), ("four curves", CURVES)):
        through_stages, calls = inversion, 0
        for metric in names:
            path, solve = counted(lambda m=metric: pipe.solve(keys, m, num_frames=args.frames))
            path, sample = counted(lambda p=path: pipe.sample(p))
            through_stages += solve + sample
            calls += inversion + solve + sample
            first = first or (path, inversion + solve + sample)
        yield row(what, through_stages, calls)
    path, call = first
    _, retime = counted(lambda: pipe.retime(path, "rmse"))
    yield row("re-time a path", retime, call + retime)
    _, extend = counted(lambda: pipe.extend(path, 0.5))
    yield row("extend a path by half", extend, call + extend)


def row(name: str, stages: int, calls: int) -> dict[str, Any]:
    """One row of the table."""
    return {"what": name, "stages": stages, "calls": calls, "ratio": round(stages / calls, 3)}


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Print and return the rows."""
    parser = frame.parser(__doc__)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--steps", type=int, default=50)
    return frame.run(measure, parser, argv)


if __name__ == "__main__":
    main()
