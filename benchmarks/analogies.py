"""A is to B as C is to D: renders of one kind of solid, one factor changed, on the shipped model.

    python benchmarks/analogies.py [--num 12] [--device cpu]

A is a random scene. B differs from it in one factor, C in all others, and the true D is known.
There is one row per analogy and method, then the means. Both columns are root mean squares of
images in [0, 1]: "error" is the error of the last frame, "render" its distance from the nearest
render.

    coded      the true D, encoded and decoded
    C          C as it is
    C + B - A  latents added and subtracted
    denoised   the same sum, denoised by the score
    straight   each step of the morph from A to B moved straight to C (`analogy` without a path)
    pipeline   each step transported along the morph from A to C (`analogy` of the pipeline)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import frame
import torch
from riemannian_diffusion.pipelines.schedules import ddim_schedule

from riemannian_diffusion import DiffusionScore, analogy, demo
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
from riemannian_diffusion.pipelines.starts import TRANSPORT_NOISE

CHANGE = 0.2  # of a factor's range: change of B; C changes each other factor by at most as much
GROUPS = {  # means over analogies by the factor that changes from A to B
    "all": demo.FACTORS,
    "place or size": ("x", "y", "size"),
    "hue or azimuth": ("hue", "azimuth"),
}


def scenes(num: int, seed: int) -> list[tuple[str, str, torch.Tensor]]:
    """`(kind, factor changed, factors of A, B, C and D)` of every analogy."""
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
        ddim_schedule(pipe.scheduler, 1).timestep_of(TRANSPORT_NOISE),
        encoder_hidden_states=pipe.encode_prompt([""], args.device, 1, False)[0],
    )
    scale, found = pipe.vae.config.scaling_factor, []
    for kind, factor, rows in scenes(args.num, args.seed):
        images = demo.render([kind] * 4, rows, resolution=64).to(args.device)
        modes = pipe.vae.encode(2 * images - 1).latent_dist.mode()
        a, b, c, d = modes * scale
        morph = pipe(list(images[:2]), output_type="latent", num_frames=9).frames
        carried = pipe(
            list(images[:2]), analogy=images[2], output_type="latent", num_frames=9
        ).frames
        sums = c + b - a
        straight = analogy(level, level.alpha * morph, level.alpha * c) / level.alpha
        last = {
            "coded": d,
            "C": c,
            "C + B - A": sums,
            "denoised": level.denoise(level.alpha * sums[None])[0] / level.alpha,
            "straight": straight[-1],
            "pipeline": carried[-1],
        }
        drawn = pipe.vae.decode(torch.stack(list(last.values())) / scale, return_dict=False)[0]
        drawn = (drawn / 2 + 0.5).clamp(0, 1)
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
