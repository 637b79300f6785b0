"""How well the demo model reconstructs, inverts and draws scenes that it has not seen.

    python benchmarks/demo_model.py [--model DIR] [--guidance 2.0]

There is one row for each of these measurements:

    autoencoder  mean and least PSNR of images encoded and decoded, in dB (goal: 30 or more)
    inversion    PSNR after inversion to 0.6 of 50 DDIM steps and sampling back; "loss" is the
                 difference from the autoencoder alone (goal: 0.5 dB or less)

For each guidance, there are these rows:

    samples      number of images drawn from captions that show the right kind and hue, judged by
                 their nearest render (goal: 90 of 100), and the median PSNR to that render
    mistakes     captions that are drawn as other ones, with the most frequent mistakes first
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator

import frame
import torch
from diffusers import StableDiffusionPipeline

from riemannian_diffusion import demo
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

HELD_OUT_SEED = 1000  # the model was trained on scenes drawn from seed 0


def held_out(num: int, seed: int) -> torch.Tensor:
    """Renders `(num, 3, 64, 64)` of scenes that the model was not trained on, of all kinds."""
    factors = demo.random_factors(num, torch.Generator().manual_seed(HELD_OUT_SEED + seed))
    kinds = [demo.KINDS[i % len(demo.KINDS)] for i in range(num)]
    with torch.no_grad():
        batches = zip(range(0, num, 16), factors.split(16), strict=True)
        return torch.cat([demo.render(kinds[i : i + 16], batch) for i, batch in batches])


def psnr(errors: torch.Tensor) -> torch.Tensor:
    """Decibels of mean squared errors of values in [0, 1]."""
    return -10 * errors.log10()


@torch.no_grad()
def autoencoder_errors(pipe: GeodesicInterpolationPipeline, images: torch.Tensor) -> torch.Tensor:
    """Mean squared error `(N,)` of images encoded and decoded."""
    latents = pipe.encode(images, max_batch_size=16)
    decoded = pipe.decode(latents, max_batch_size=16).cpu()
    return (decoded - images.cpu()).square().flatten(1).mean(1)


def inversion_errors(pipe: GeodesicInterpolationPipeline, images: torch.Tensor) -> torch.Tensor:
    """Mean squared error `(N,)` after inversion without a prompt and sampling back."""
    keys = pipe.invert(images, strength=0.6, num_inference_steps=50)
    # with two frames from each keyframe to the next, the path consists of the keyframes
    path = pipe.sample(pipe.solve(keys, "slerp", num_frames=2))
    return torch.tensor(pipe.render(path, output_type="pt").reconstruction_error)


def draw(
    pipe: StableDiffusionPipeline, captions: list[str], guidance: float, seed: int
) -> torch.Tensor:
    """Images `(N, 3, 64, 64)` of captions, drawn in 50 DDIM steps, each from its own seed."""
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


def main(argv: list[str] | None = None) -> list[dict]:
    """Make the three measurements; return the rows."""
    parser = frame.parser(__doc__)
    parser.add_argument("--model", help="folder of a model (default: the shipped model)")
    parser.add_argument(
        "--guidance", type=float, nargs="+", default=[2.0], help="one or more values"
    )
    parser.add_argument(
        "--scenes", type=int, default=100, help="number of scenes for the autoencoder"
    )
    parser.add_argument("--inversions", type=int, default=20, help="number of inverted scenes")
    parser.add_argument("--samples", type=int, default=100, help="number of drawn images")
    return frame.run(measure, parser, argv)


@torch.no_grad()
def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Rows for the autoencoder, the inversion, and the samples at every guidance."""
    pipe = GeodesicInterpolationPipeline.from_pretrained(args.model or demo.model_path())
    pipe.to(args.device)
    images = held_out(max(args.scenes, args.inversions, 1), args.seed)

    if args.scenes:
        db = psnr(autoencoder_errors(pipe, images[: args.scenes]))
        yield {
            "row": "autoencoder",
            "scenes": len(db),
            "PSNR": float(db.mean()),
            "least PSNR": float(db.min()),
        }
    if args.inversions:
        some = images[: args.inversions]
        alone, both = psnr(autoencoder_errors(pipe, some)), psnr(inversion_errors(pipe, some))
        loss = alone - both
        yield {
            "row": "inversion",
            "scenes": len(some),
            "PSNR": float(both.mean()),
            "loss": float(loss.mean()),
            "greatest loss": float(loss.max()),
        }
    if args.samples:
        generator = torch.Generator().manual_seed(args.seed)
        hues = torch.randint(len(demo.HUES), (args.samples,), generator=generator).tolist()
        kinds = [demo.KINDS[i % len(demo.KINDS)] for i in range(args.samples)]
        captions = [demo.caption(k, h / len(demo.HUES)) for k, h in zip(kinds, hues, strict=True)]
        drawing = StableDiffusionPipeline.from_pipe(pipe)
        for guidance in args.guidance:
            drawn = draw(drawing, captions, guidance, args.seed).cpu()
            yield from judged(captions, demo.nearest_render(drawn), guidance)


def judged(captions: list[str], found: demo.NearestRender, guidance: float) -> Iterator[dict]:
    """Counts of the right kind, the right hue and both, and the most frequent mistakes."""
    right_kind, right_hue, wrong = 0, 0, Counter()
    for caption, seen in zip(captions, found.captions, strict=True):
        (_, hue, kind), (_, seen_hue, seen_kind) = caption.split(), seen.split()
        right_kind += kind == seen_kind
        right_hue += hue == seen_hue
        wrong[f"{caption} -> {seen}"] += caption != seen
    yield {
        "row": "samples",
        "guidance": guidance,
        "samples": len(captions),
        "kind right": right_kind,
        "hue right": right_hue,
        "both right": len(captions) - wrong.total(),
        "median PSNR": float(psnr(found.mse).median()),
    }
    for mistake, count in (+wrong).most_common(12):
        yield {"row": "mistakes", "guidance": guidance, "mistake": mistake, "count": count}


if __name__ == "__main__":
    main()
