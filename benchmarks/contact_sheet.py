"""Contact sheets of three held-out pairs: nine frames of each morph, one row per method.

    python benchmarks/contact_sheet.py --output examples

The sheets are `contact_sheet_1.png` to `contact_sheet_3.png`. The pairs are renders that the
shipped model was not trained on. There is one row of results per pair and method, with the largest
step between neighbouring frames.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import frame
import numpy as np
import torch
from PIL import Image

from riemannian_diffusion import demo
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
from riemannian_diffusion.plotting import contact_sheet

# A pair has the kinds of two solids and their factors: azimuth, hue, size, x, y.
PAIRS = (
    (("torus", "torus"), ((0.3, 0.02, 0.68, -0.12, 0.00), (1.3, 0.14, 0.72, 0.12, -0.10))),
    (("cube", "cube"), ((0.2, 0.60, 0.60, -0.25, -0.20), (0.9, 0.70, 0.72, 0.20, 0.20))),
    (("cylinder", "cone"), ((2.0, 0.33, 0.70, 0.10, 0.00), (2.4, 0.50, 0.70, -0.10, 0.05))),
)
METHODS = {
    "tangent-normal": "tangent_normal",
    "score Jacobian": "score_jacobian",
    "Stein": "stein",
    "slerp": "slerp",
    "lerp": "lerp",
}


def largest_step(frames: list[Image.Image]) -> float:
    """Largest root mean square difference between neighbouring frames, for values in [0, 1]."""
    values = np.stack([np.asarray(frame) for frame in frames]) / 255  # (K, H, W, 3)
    return float(np.sqrt(np.square(np.diff(values, axis=0)).mean((1, 2, 3))).max())


def main(argv: list[str] | None = None) -> list[dict]:
    """Make the sheets; return the rows."""
    parser = frame.parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("."), help="directory of the sheets")
    parser.add_argument("--model", help="folder of a model (default: the shipped model)")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--max-evals", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="number of pairs")
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Largest steps of every pair and method. The sheets are written, too."""
    args.output.mkdir(parents=True, exist_ok=True)
    pipe = GeodesicInterpolationPipeline.from_pretrained(args.model or demo.model_path())
    pipe.to(args.device)
    for number, (kinds, factors) in enumerate(PAIRS[: args.pairs], start=1):
        images = demo.render(kinds, torch.tensor(factors))
        prompts = [demo.caption(k, f[1]) for k, f in zip(kinds, factors, strict=True)]
        keys = pipe.invert(images, prompts, num_inference_steps=args.steps)
        rows = {}
        for name, metric in METHODS.items():
            path = pipe.solve(keys, metric, num_frames=args.frames, max_evals=args.max_evals)
            out = pipe.render(pipe.sample(path))
            rows[name] = out.frames
            found = out.geodesics[0]
            yield {
                "pair": number,
                "method": name,
                "largest step": largest_step(out.frames),
                "energy": None if found is None else found.energy,
                "status": "" if found is None else found.status,
            }
        contact_sheet(rows, min(9, args.frames)).save(args.output / f"contact_sheet_{number}.png")


if __name__ == "__main__":
    main()
