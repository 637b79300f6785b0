"""What the model's manifold is good for beyond a morph: going on, edits, blends, analogies.

    python examples/edits.py --output edits.png

Rows of frames drawn with the model that ships with the package, from renders of its own scenes:

    beyond      a morph, its last third beyond its second keyframe
    edit i      one scene moved to and fro along a vector of its tangent space
    blend       two scenes, and last the Frechet mean of these and a third
    analogy     a third scene, changed as the first keyframe of the morph changes to the second

`--only` draws some of them. The first vectors of a tangent space are the directions that the
model's denoiser keeps best; they mix the factors of the scene.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from riemannian_diffusion import (
    DiffusionScore,
    TangentNormalMetric,
    demo,
    frechet_mean,
    tangent_basis,
)
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
from riemannian_diffusion.plotting import contact_sheet

FAST = {"num_inference_steps": 20, "max_evals": 40, "num_frames": 9}
EDIT_LENGTH = 12.0  # of latents, each way


HUES = (0.6, 0.6, 0.85)
PROMPTS = [demo.caption("cube", hue) for hue in HUES]


def scenes() -> Tensor:
    """Three renders of a cube: two places and, in another colour, the first."""
    low, high = torch.tensor([demo.FACTOR_RANGES[name] for name in demo.FACTORS]).T
    x, y = (0.2, 0.5, 0.2), (0.4, 0.4, 0.4)
    shares = torch.tensor([[0.3, *rest] for rest in zip(HUES, [0.5] * 3, x, y, strict=True)])
    return demo.render(["cube"] * 3, low + (high - low) * shares, resolution=64)


def beyond(pipe, images: Tensor) -> dict[str, list]:
    """A morph, continued by half its length."""
    return {"beyond": pipe(list(images[:2]), PROMPTS[0], extrapolate=0.5, **FAST).frames}


def edits(pipe, images: Tensor, num: int = 3) -> dict[str, list]:
    """A scene moved along the first vectors of its tangent space, both ways, and denoised."""
    level, latents = _level(pipe, PROMPTS[0]), _encoded(pipe, images[:1])
    steps = torch.linspace(-EDIT_LENGTH, EDIT_LENGTH, 9)[:, None, None, None]
    rows = {}
    for i, vector in enumerate(tangent_basis(level, level.alpha * latents, num)[0]):
        rows[f"edit {i + 1}"] = _decoded(pipe, _denoised(level, latents + steps * vector))
    return rows


def blend(pipe, images: Tensor) -> dict[str, list]:
    """Three scenes and their Frechet mean."""
    level, latents = _level(pipe, "a cube"), _encoded(pipe, images)
    options = {"num_points": 5, "rtol": 0.1, "max_steps": 2, "max_evals": 12}
    metric = TangentNormalMetric(level)
    mean = frechet_mean(metric, level.alpha * latents, **options) / level.alpha
    return {"blend": _decoded(pipe, torch.cat([latents, _denoised(level, mean[None])]))}


def analogy(pipe, images: Tensor) -> dict[str, list]:
    """The third scene, changed as the first changes to the second."""
    return {"analogy": pipe(list(images[:2]), PROMPTS, analogy=images[2], **FAST).frames}


ROWS = {"beyond": beyond, "edits": edits, "blend": blend, "analogy": analogy}


def _level(pipe, prompt: str, timestep: int = 200) -> DiffusionScore:
    hidden = pipe.encode_prompt([prompt], "cpu", 1, False)[0]
    return DiffusionScore(pipe.unet, pipe.scheduler, timestep, encoder_hidden_states=hidden)


def _denoised(level: DiffusionScore, latents: Tensor) -> Tensor:
    return level.denoise(level.alpha * latents) / level.alpha


def _encoded(pipe, images: Tensor) -> Tensor:
    return pipe.vae.encode(2 * images - 1).latent_dist.mode() * pipe.vae.config.scaling_factor


def _decoded(pipe, latents: Tensor) -> list:
    images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    return pipe.image_processor.postprocess(images)


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Draw the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("edits.png"))
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    args = parser.parse_args(argv)
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
    pipe.set_progress_bar_config(disable=True)
    images, rows = scenes(), {}
    for name in args.only:
        rows |= ROWS[name](pipe, images)
    part = args.output.with_name(f".part-{args.output.name}")
    contact_sheet(rows, 9).save(part, format=args.output.suffix[1:] or "png")
    part.replace(args.output)


if __name__ == "__main__":
    main()
