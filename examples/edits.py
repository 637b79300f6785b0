"""Beyond morphs: extensions, edits, blends and analogies on a model's manifold.

    python examples/edits.py --output edits.png

The picture has rows of frames that the shipped model draws from renders of its own scenes:

    beyond      a morph whose last third lies beyond its second keyframe
    edit i      one scene, moved in both directions along a vector of its tangent space
    blend       three scenes, followed by their Frechet mean
    analogy     a third scene, changed as the first keyframe of a morph changes into the second

`--only` draws some of these rows. The first vectors of a tangent space are the directions that the
denoiser of the model preserves best. They mix the factors of the scene.
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
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline, MorphPath
from riemannian_diffusion.plotting import contact_sheet

NUM_STEPS = 20
SOLVE = {"max_evals": 40, "num_frames": 9}
EDIT_LENGTH = 12.0  # largest step in each direction, in units of the latents

HUES = (0.6, 0.6, 0.85)
PROMPTS = [demo.caption("cube", hue) for hue in HUES]


def scenes() -> Tensor:
    """Three renders of a cube. The second has another place, the third another colour."""
    low, high = torch.tensor([demo.FACTOR_RANGES[name] for name in demo.FACTORS]).T
    x, y = (0.2, 0.5, 0.2), (0.4, 0.4, 0.4)
    shares = torch.tensor([[0.3, *rest] for rest in zip(HUES, [0.5] * 3, x, y, strict=True)])
    return demo.render(["cube"] * 3, low + (high - low) * shares, resolution=64)


def beyond(pipe, images: Tensor) -> dict[str, list]:
    """A morph, continued by half its length."""
    path = _morph(pipe, images, PROMPTS[:1])
    return {"beyond": pipe.render(pipe.extend(path, 0.5)).frames}


def edits(pipe, images: Tensor, num: int = 3) -> dict[str, list]:
    """A scene, moved in both directions along the first vectors of its tangent space."""
    level, latents = _level(pipe, PROMPTS[0]), pipe.encode(images[:1])
    steps = torch.linspace(-EDIT_LENGTH, EDIT_LENGTH, 9)[:, None, None, None]
    rows = {}
    for i, vector in enumerate(tangent_basis(level, level.alpha * latents, num)[0]):
        rows[f"edit {i + 1}"] = _decoded(pipe, _denoised(level, latents + steps * vector))
    return rows


def blend(pipe, images: Tensor) -> dict[str, list]:
    """Three scenes and their Frechet mean."""
    level, latents = _level(pipe, "a cube"), pipe.encode(images)
    options = {"num_points": 5, "rtol": 0.1, "max_steps": 2, "max_evals": 12}
    metric = TangentNormalMetric(level)
    mean = frechet_mean(metric, level.alpha * latents, **options) / level.alpha
    return {"blend": _decoded(pipe, torch.cat([latents, _denoised(level, mean[None])]))}


def analogy(pipe, images: Tensor) -> dict[str, list]:
    """The third scene, changed as the first changes to the second."""
    path = _morph(pipe, images, PROMPTS[:2])
    return {"analogy": pipe.render(pipe.transport(path, images[2], PROMPTS[2])).frames}


ROWS = {"beyond": beyond, "edits": edits, "blend": blend, "analogy": analogy}


def _morph(pipe, images: Tensor, prompts: list[str]) -> MorphPath:
    """The sampled path between the first two scenes."""
    keys = pipe.invert(images[:2], prompts, num_inference_steps=NUM_STEPS)
    return pipe.sample(pipe.solve(keys, **SOLVE))


def _level(pipe, prompt: str, timestep: int = 200) -> DiffusionScore:
    """The model's score at a noise level."""
    conditions = pipe.condition(prompt, do_classifier_free_guidance=False)
    hidden = conditions.positive["encoder_hidden_states"].values[0]
    return DiffusionScore(pipe.network, pipe.scheduler, timestep, encoder_hidden_states=hidden)


def _denoised(level: DiffusionScore, latents: Tensor) -> Tensor:
    return level.denoise(level.alpha * latents) / level.alpha


def _decoded(pipe, latents: Tensor) -> list:
    return pipe.image_processor.numpy_to_pil(pipe.decode(latents).permute(0, 2, 3, 1).numpy())


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
