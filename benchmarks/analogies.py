"""Analogies between renders, made with the shipped model: A is to B as C is to D.

    python benchmarks/analogies.py [--num 12] [--device cpu]

A is a random scene with one solid. B differs from A in one factor. C differs from A in all other
factors. The true D is known. There is one row per analogy and method, and rows with means follow.
The columns are root mean square differences of images in [0, 1]: "error" compares the last frame
with the true D, and "render" compares it with the nearest render. The methods are:

    coded      the true D, encoded and decoded
    C          C as it is
    C + B - A  latents added and subtracted
    denoised   the same sum, denoised by the score
    straight   each step of the morph from A to B moved straight to C (`analogy` without a path)
    pipeline   each step transported along the morph from A to C (stage `transport`)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import frame
import torch

from riemannian_diffusion import DiffusionScore, analogy, demo
from riemannian_diffusion.levels import read_schedule
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
from riemannian_diffusion.pipelines.starts import TRANSPORT_NOISE

CHANGE = 0.2  # change of the factor of B, and the largest change of C, as a share of the range
GROUPS = {  # a mean is over the analogies in which one of these factors changes from A to B
    "all": demo.FACTORS,
    "place or size": ("x", "y", "size"),
    "hue or azimuth": ("hue", "azimuth"),
}


def scenes(num: int, seed: int) -> list[tuple[str, str, torch.Tensor]]:
    """Kind of solid, name of the factor that changes, and factors `(4, 5)` of A, B, C and D."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([demo.FACTOR_RANGES[name] for name in demo.FACTORS]).T
    found = []
    for i in range(num):
        place = 0.3 + 0.2 * torch.rand(5, generator=generator)
        moved = place + CHANGE * (2 * torch.rand(5, generator=generator) - 1)
        factor = i % 5
        moved[factor] = place[factor]
        rows = torch.stack([place, place, moved, moved])
        rows[[1, 3], factor] += CHANGE
        kind = demo.KINDS[i // 5 % len(demo.KINDS)]
        found.append((kind, demo.FACTORS[factor], low + (high - low) * rows))
    return found


@torch.no_grad()
def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Errors of every analogy, then their means."""
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
    pipe.to(args.device, torch.float32)
    level = DiffusionScore(
        pipe.unet,
        pipe.scheduler,
        read_schedule(pipe.scheduler, 1).timestep_of(TRANSPORT_NOISE),
        encoder_hidden_states=pipe.encode_prompt([""], args.device, 1, False)[0],
    )
    found = []
    for kind, factor, rows in scenes(args.num, args.seed):
        images = demo.render([kind] * 4, rows, resolution=64).to(args.device)
        a, b, c, d = pipe.encode(images)
        path = pipe.sample(pipe.solve(pipe.invert(images[:2]), num_frames=9))
        transported = pipe.transport(path, images[2]).shown
        sums = c + b - a
        straight = analogy(level, level.alpha * path.latents, level.alpha * c) / level.alpha
        last = {
            "coded": d,
            "C": c,
            "C + B - A": sums,
            "denoised": level.denoise(level.alpha * sums[None])[0] / level.alpha,
            "straight": straight[-1],
            "pipeline": transported[-1],
        }
        drawn = pipe.decode(torch.stack(list(last.values())))
        errors = (drawn - images[3]).square().flatten(1).mean(1).sqrt()
        renders = demo.nearest_render(drawn.cpu()).mse.sqrt()
        for name, error, far in zip(last, errors.tolist(), renders.tolist(), strict=True):
            measured = {"error": error, "render": far}
            found.append({"kind": kind, "factor": factor, "method": name} | measured)
            yield found[-1]
    for group, factors in GROUPS.items():
        for name in last:
            rows = [r for r in found if r["factor"] in factors and r["method"] == name]
            if rows:
                means = {key: sum(r[key] for r in rows) / len(rows) for key in measured}
                yield {"mean over": group, "analogies": len(rows), "method": name} | means


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure every analogy; return the rows."""
    parser = frame.parser(__doc__)
    parser.add_argument("--num", type=int, default=12, help="number of analogies")
    return frame.run(measure, parser, argv)


if __name__ == "__main__":
    main()
