"""What the demo model can do on scenes it has not seen: reconstruct, invert, and draw to order.

python benchmarks/demo_model.py [--model DIR] [--guidance 2.0]

Prints the autoencoder's PSNR (goal: 30 dB or more), how much of it inversion to 0.6 of 50 DDIM
steps and sampling back lose (goal: 0.5 dB or less), and how many of 100 images drawn from captions
show the right kind and the right hue, judged by the nearest render (goal: 90 or more).
"""

from __future__ import annotations

import argparse
from collections import Counter

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from machine import describe
from transformers.utils import logging as transformers_logging

from riemannian_diffusion import demo
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

HELD_OUT_SEED = 1000  # the model was trained on scenes drawn from seed 0


def held_out(num: int) -> torch.Tensor:
    """Renders `(num, 3, 64, 64)` of scenes the model was not trained on, the kinds in turn."""
    factors = demo.random_factors(num, torch.Generator().manual_seed(HELD_OUT_SEED))
    kinds = [demo.KINDS[i % len(demo.KINDS)] for i in range(num)]
    with torch.no_grad():
        batches = zip(range(0, num, 16), factors.split(16), strict=True)
        return torch.cat([demo.render(kinds[i : i + 16], batch) for i, batch in batches])


def psnr(errors: torch.Tensor) -> torch.Tensor:
    """Decibels of mean squared errors of values in [0, 1]."""
    return -10 * errors.log10()


@torch.no_grad()
def autoencoder_errors(pipe: StableDiffusionPipeline, images: torch.Tensor) -> torch.Tensor:
    """Mean squared error `(N,)` of encoding, posterior mode, and decoding."""
    decoded = [
        pipe.vae.decode(pipe.vae.encode(2 * batch - 1).latent_dist.mode()).sample
        for batch in images.split(16)
    ]
    decoded = (torch.cat(decoded) / 2 + 0.5).clamp(0, 1)
    return (decoded - images).square().flatten(1).mean(1)


def inversion_errors(pipe: GeodesicInterpolationPipeline, images: torch.Tensor) -> torch.Tensor:
    """Mean squared error `(N,)` after inversion without a prompt and sampling back."""
    output = pipe(  # two frames per gap: the keyframes themselves, and no path to solve
        images, metric="slerp", num_frames=2, strength=0.6, num_inference_steps=50, output_type="pt"
    )
    return torch.tensor(output.reconstruction_error)


def draw(
    pipe: StableDiffusionPipeline, captions: list[str], guidance: float, seed: int
) -> torch.Tensor:
    """Images `(N, 3, 64, 64)` of captions, 50 DDIM steps; each from a seed of its own."""
    batches = []
    for start in range(0, len(captions), 20):
        texts = captions[start : start + 20]
        seeds = range(seed + start, seed + start + len(texts))
        output = pipe(
            texts,
            num_inference_steps=50,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(s) for s in seeds],
            output_type="pt",
        )
        batches.append(output.images.float().clamp(0, 1))
    return torch.cat(batches)


def main(argv: list[str] | None = None) -> None:
    """Print the three measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a directory to measure (default: the shipped model)")
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0], help="one or more")
    parser.add_argument("--scenes", type=int, default=100, help="for the autoencoder")
    parser.add_argument("--inversions", type=int, default=20)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    args = parser.parse_args(argv)

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    print(describe())
    torch.set_grad_enabled(False)
    pipe = GeodesicInterpolationPipeline.from_pretrained(args.model or demo.model_path())
    pipe.set_progress_bar_config(disable=True)
    images = held_out(max(args.scenes, args.inversions, 1))

    if args.scenes:
        db = psnr(autoencoder_errors(pipe, images[: args.scenes]))
        print(
            f"autoencoder, {len(db)} held-out scenes: "
            f"PSNR mean {db.mean():.2f} dB, least {db.min():.2f} dB"
        )
    if args.inversions:
        some = images[: args.inversions]
        alone, both = psnr(autoencoder_errors(pipe, some)), psnr(inversion_errors(pipe, some))
        loss = alone - both
        print(
            f"inverted to 0.6 of 50 steps and back, {len(some)} held-out scenes: PSNR mean "
            f"{both.mean():.2f} dB, {loss.mean():.2f} dB below the autoencoder alone "
            f"(greatest loss {loss.max():.2f} dB)"
        )
    if args.samples:
        generator = torch.Generator().manual_seed(args.seed)
        hues = torch.randint(len(demo.HUES), (args.samples,), generator=generator).tolist()
        kinds = [demo.KINDS[i % len(demo.KINDS)] for i in range(args.samples)]
        captions = [demo.caption(k, h / len(demo.HUES)) for k, h in zip(kinds, hues, strict=True)]
        drawing = StableDiffusionPipeline.from_pipe(pipe)
        drawing.set_progress_bar_config(disable=True)
        for guidance in args.guidance:
            drawn = draw(drawing, captions, guidance, args.seed)
            report_samples(captions, demo.nearest_render(drawn), guidance)


def report_samples(captions: list[str], found: demo.NearestRender, guidance: float) -> None:
    """Print the shares of the right kind, the right hue and both, and what went wrong."""
    right_kind, right_hue, wrong = 0, 0, Counter()
    for said, seen in zip(captions, found.captions, strict=True):
        (_, hue, kind), (_, seen_hue, seen_kind) = said.split(), seen.split()
        right_kind += kind == seen_kind
        right_hue += hue == seen_hue
        wrong[f"{said} -> {seen}"] += said != seen
    print(
        f"{len(captions)} captioned samples, 50 steps, guidance {guidance:g}: kind right "
        f"{right_kind}, hue right {right_hue}, both {len(captions) - wrong.total()}; PSNR to the "
        f"nearest render: median {psnr(found.mse).median():.1f} dB"
    )
    for line, count in (+wrong).most_common(12):
        print(f"    {count} x {line}")


if __name__ == "__main__":
    main()
