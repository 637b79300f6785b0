"""A is to B as C is to D: renders of one kind of solid, one factor changed, on the shipped model.

    python benchmarks/analogies.py [--num 12] [--device cpu]

A is a random scene, B differs from it in one factor and C in all others; the true D is known. Root
mean squares, of images in [0, 1]: the error of the last frame, and its distance from its nearest
render. `straight` carries each step straight across (`analogy` without a way), `pipeline` along the
morph from A to C. Against them: C as it is, latents added and subtracted, and that denoised by the
same score. `coded` is D through the autoencoder.
"""

from __future__ import annotations

import argparse

import torch
from diffusers.utils import logging as diffusers_logging
from machine import describe
from riemannian_diffusion.pipelines.schedules import ddim_schedule
from transformers.utils import logging as transformers_logging

from riemannian_diffusion import DiffusionScore, analogy, demo
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
from riemannian_diffusion.pipelines.starts import CARRY_NOISE

CHANGE = 0.2  # of B, in shares of a factor's range; C differs by up to as much in each other factor


def scenes(num: int) -> list[tuple[str, str, torch.Tensor]]:
    """`(kind, factor changed, factors of A, B, C and D)` of every analogy."""
    generator = torch.Generator().manual_seed(0)
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
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print one line for each analogy and the means, which are returned."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    print(describe(args.device))
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
    pipe.to(args.device, torch.float32)
    pipe.set_progress_bar_config(disable=True)
    level = DiffusionScore(
        pipe.unet,
        pipe.scheduler,
        ddim_schedule(pipe.scheduler, 1).timestep_of(CARRY_NOISE),
        encoder_hidden_states=pipe.encode_prompt([""], args.device, 1, False)[0],
    )
    scale, totals = pipe.vae.config.scaling_factor, {}
    for kind, factor, rows in scenes(args.num):
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
        cells = []
        for name, error, far in zip(last, errors.tolist(), renders.tolist(), strict=True):
            cells.append(f"{name} {error:.4f}/{far:.4f}")
            total = totals.setdefault(name, [0.0, 0.0])
            totals[name] = [total[0] + error / args.num, total[1] + far / args.num]
        print(f"{kind:9} {factor:8} {'  '.join(cells)}", flush=True)
    print("\nmeans: error, distance from the nearest render")
    for name, (error, far) in totals.items():
        print(f"  {name:10} {error:.4f}  {far:.4f}")
    return {name: error for name, (error, _) in totals.items()}


if __name__ == "__main__":
    main()
