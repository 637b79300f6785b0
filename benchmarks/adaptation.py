"""What fitting the shipped model to two images gains: the loss, and the error of inversion.

    python benchmarks/adaptation.py [--pairs 6] [--embedding-steps N] [--lora-steps N] ...

The images are pairs of held-out scenes. The variant "plain" is the model with captions,
"embeddings" fits a prompt embedding to each image, "LoRA" fits a LoRA to each image, and "both"
fits an embedding and then a LoRA (`adapt` with its defaults unless other values are given).
The first rows, one per variant, have these columns:

    loss             denoising loss on 40 timesteps with fresh noises, which fitting did not use
    loss below 600   mean of that loss over the timesteps below 600
    seconds          time of fitting per pair

The other rows, one per variant, guidance, target, strength and number of iterations, have these:

    error, worst     root mean square error of an image after DDIM inversion and sampling back, for
                     values in [0, 1]: the mean over images, and the largest
    target           what the result is compared with: the image itself ("image"), or the image
                     encoded and decoded ("decoded")
    iterations       fixed-point iterations of each inversion step: 0 is the usual inversion, None
                     is the default, which takes as many as each image needs
    guidance         guidance of sampling; images are always inverted without guidance
"""

from __future__ import annotations

import argparse
import inspect
import time
from collections.abc import Iterator
from functools import partial

import frame
import torch
from torch import Tensor, nn

from riemannian_diffusion import DiffusionScore, demo, invert, sample
from riemannian_diffusion.adaptation import LoraMix, adapt, denoising_losses
from riemannian_diffusion.levels import read_schedule
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

HELD_OUT_SEED = 3000  # the model was trained on scenes drawn from seed 0
INVERSIONS = tuple((strength, iterations) for strength in (0.6, 1.0) for iterations in (0, None))
DEFAULTS = {name: p.default for name, p in inspect.signature(adapt).parameters.items()}


class EachItsOwn(nn.Module):
    """A network in which point i of the batch has LoRA i."""

    def __init__(self, unet: nn.Module, loras: list[dict[str, Tensor]]):
        super().__init__()
        self.mix = LoraMix(unet, loras)

    def forward(self, x, t, encoder_hidden_states, return_dict=False):
        """The network's output for as many points as there are LoRAs."""
        weights = torch.eye(self.mix.num_loras, device=x.device)
        return self.mix(x, t, encoder_hidden_states, weights, return_dict)


def held_out(pair: int, seed: int) -> tuple[Tensor, list[str]]:
    """Renders `(2, 3, 64, 64)` and captions; every third pair has two kinds of solid."""
    generator = torch.Generator().manual_seed(HELD_OUT_SEED + seed + pair)
    factors = demo.random_factors(2, generator)
    kinds = [demo.KINDS[(pair + (pair % 3 == 2) * end) % len(demo.KINDS)] for end in (0, 1)]
    with torch.no_grad():
        images = demo.render(kinds, factors)
    return images, [demo.caption(k, float(f[1])) for k, f in zip(kinds, factors, strict=True)]


def losses(
    model: nn.Module, scheduler, latents: Tensor, embeddings: Tensor, seed: int
) -> tuple[float, float]:
    """The mean denoising loss on fresh noises, over all timesteps and over those below 600."""
    generator = torch.Generator().manual_seed(HELD_OUT_SEED + seed)
    timesteps, found = torch.arange(12, 1000, 25), []
    for t in timesteps:
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        at = t.repeat(len(latents)).to(latents.device)
        found.append(denoising_losses(model, scheduler, latents, embeddings, at, noise).mean())
    found = torch.stack(found)
    return float(found.mean()), float(found[timesteps < 600].mean())


def reconstructions(
    pipe,
    loras: list[dict[str, Tensor]] | None,
    latents: Tensor,
    embeddings: Tensor,
    inversion: tuple[float, int | None],
    negative: Tensor,
    guidances: list[float],
    num_steps: int,
) -> dict[float, Tensor]:
    """Images inverted without guidance and sampled back, by the guidance of sampling."""
    strength, iterations = inversion
    schedule = read_schedule(pipe.scheduler, num_steps, strength=strength)
    timesteps, options = schedule.timesteps, {"final_abar": schedule.final_abar}
    found: dict[float, list[Tensor]] = {guidance: [] for guidance in guidances}
    for i in range(len(latents)):  # inversion may evaluate some of its points only
        here = slice(i, i + 1)
        model = pipe.unet if loras is None else EachItsOwn(pipe.unet, loras[here])

        def level(t: float, guidance: float = 1.0, model=model, here=here) -> DiffusionScore:
            return DiffusionScore(
                model,
                pipe.scheduler,
                t,
                encoder_hidden_states=embeddings[here],
                negative_hidden_states=negative[here],
                guidance_scale=guidance,
                mode="guided" if guidance > 1 else "conditional",
            )

        given = options | {"fixed_point_iterations": iterations}
        noisy = invert(level, latents[here], timesteps, **given)
        for guidance, images in found.items():
            guided = partial(level, guidance=guidance)
            images.append(pipe.decode(sample(guided, noisy, timesteps, **options)))
    return {guidance: torch.cat(images) for guidance, images in found.items()}


def rms(images: Tensor, others: Tensor) -> Tensor:
    """Root mean square difference of each image."""
    return (images - others).square().flatten(1).mean(1).sqrt()


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure the losses and the errors; return the rows."""
    parser = frame.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=6)
    for name in ("embedding_steps", "embedding_lr", "lora_steps", "lora_lr", "rank", "batch_size"):
        default = DEFAULTS[name]
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps at strength 1")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Losses of all variants, then their errors."""
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
    pipe.to(args.device, torch.float32)
    shared = {name: getattr(args, name) for name in ("rank", "batch_size")}
    prompt_steps = {"embedding_steps": args.embedding_steps, "embedding_lr": args.embedding_lr}
    lora_steps = {"lora_steps": args.lora_steps, "lora_lr": args.lora_lr}
    errors: dict[tuple, list[Tensor]] = {}
    figures: dict[str, list[tuple[float, ...]]] = {}
    for pair in range(args.pairs):
        images, captions = held_out(pair, args.seed)
        start = time.perf_counter()
        both = adapt(pipe, images, captions, **prompt_steps, **lora_steps, **shared)
        middle = time.perf_counter()
        lora = adapt(pipe, images, captions, embedding_steps=0, **lora_steps, **shared)
        seconds = {"both": middle - start, "LoRA": time.perf_counter() - middle}
        seconds["embeddings"] = seconds["both"] - seconds["LoRA"]
        variants = {
            "plain": (None, None),
            "embeddings": (both.embeddings, None),
            "LoRA": (None, lora.loras),
            "both": (both.embeddings, both.loras),
        }
        with torch.no_grad():
            images = images.to(args.device)
            latents = pipe.encode(images)
            prompts, negative = pipe.encode_prompt(captions, args.device, 1, True)
            references = {"decoded": pipe.decode(latents), "image": images}
            for name, (embeddings, loras) in variants.items():
                model = pipe.unet if loras is None else EachItsOwn(pipe.unet, loras)
                hidden = prompts if embeddings is None else embeddings.to(args.device)
                found = losses(model, pipe.scheduler, latents, hidden, args.seed)
                figures.setdefault(name, []).append((*found, seconds.get(name, 0.0)))
                options = negative, args.guidance, args.steps
                for inversion in INVERSIONS:
                    back = reconstructions(pipe, loras, latents, hidden, inversion, *options)
                    for guidance, found_images in back.items():
                        for target, reference in references.items():
                            key = (name, guidance, inversion, target)
                            errors.setdefault(key, []).append(rms(found_images, reference).cpu())
        print(f"pair {pair} ({' / '.join(captions)}) done", flush=True)
    for name, values in figures.items():
        loss, low, seconds = torch.tensor(values, dtype=torch.float64).mean(0).tolist()
        yield {"variant": name, "loss": loss, "loss below 600": low, "seconds": seconds}
    for (name, guidance, (strength, iterations), target), values in errors.items():
        values = torch.cat(values)
        yield {
            "variant": name,
            "guidance": guidance,
            "target": target,
            "strength": strength,
            "iterations": iterations,
            "error": float(values.mean()),
            "worst": float(values.max()),
        }


if __name__ == "__main__":
    main()
