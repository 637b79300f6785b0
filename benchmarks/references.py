"""Reference frames of every kind of model, and how far today's frames are from them.

python benchmarks/references.py [--record] [--families sd xl sd3 flux pixels shipped]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import models  # noqa: E402

from riemannian_diffusion import Adaptation, adapt, demo  # noqa: E402
from riemannian_diffusion.pipelines import (  # noqa: E402
    GeodesicInterpolationFluxPipeline,
    GeodesicInterpolationPipeline,
    GeodesicInterpolationSD3Pipeline,
    GeodesicInterpolationUnconditionalPipeline,
    GeodesicInterpolationXLPipeline,
)

FOLDER = Path(__file__).parent / "references"
KINDS = {
    "sd": (GeodesicInterpolationPipeline, models.stable_diffusion),
    "xl": (GeodesicInterpolationXLPipeline, models.stable_diffusion_xl),
    "sd3": (GeodesicInterpolationSD3Pipeline, models.stable_diffusion_3),
    "flux": (GeodesicInterpolationFluxPipeline, models.flux),
    "pixels": (GeodesicInterpolationUnconditionalPipeline, models.unconditional),
}
TINY = {"num_frames": 5, "num_inference_steps": 10, "max_evals": 8}
SHIPPED = {"num_frames": 5, "num_inference_steps": 25}


def waves(num: int) -> list[torch.Tensor]:
    y, x = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
    return [torch.stack([(k * x).sin() ** 2, (k * y).cos() ** 2, x * y]) for k in range(1, num + 1)]


def cases(family, pipe, images, prompts, options):
    two, texts = images[:2], prompts and prompts[:2]
    yield "plain", (two, texts), {}
    yield "slerp", (two, texts), {"metric": "slerp"}
    yield "jacobian", (two, texts), {"metric": "score_jacobian"}
    yield "stein", (two, texts), {"metric": "stein"}
    yield "three", (images[:3], prompts), {}
    yield "clean", (two, texts), {"space": "clean", "generator": 0}
    yield "extrapolated", (two, texts), {"extrapolate": 0.5}
    yield "retimed", (two, texts), {"retime": "rmse"}
    yield "analogy", (two, prompts), {"analogy": images[2]}
    yield "roadmap", (two, texts), {"init": ["slerp", "roadmap"], "max_samples": 48, "generator": 0}
    if family != "pixels":
        yield "guided", (two, texts), {"guidance_scale": 3.0, "negative_prompt": prompts[2]}
        yield (
            "density",
            (two, texts),
            {"metric": "density", "generator": 0, "negative_prompt": prompts[2]},
        )
    if family in ("sd", "xl", "shipped"):
        yield "damped", (two, texts), {"guidance_scale": 3.0, "guidance_damping": 0.5}
        yield "matched", (two, texts), {"adain": True, "attention_interpolation": 0.6}
    if family in ("sd", "shipped"):
        yield "adapted", (two, texts), {"adaptation": True}


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--families", nargs="+", default=[*KINDS, "shipped"])
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args(argv)
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
    for family in args.families:
        if family == "shipped":
            pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
            factors = demo.random_factors(3, torch.Generator().manual_seed(2000))
            images = list(demo.render(demo.KINDS[0], factors))
            hue = demo.FACTORS.index("hue")
            prompts = [demo.caption(demo.KINDS[0], float(f[hue])) for f in factors]
            options = SHIPPED
        else:
            kind, parts = KINDS[family]
            pipe, images, options = kind(**parts()), waves(3), TINY
            prompts = "" if family == "pixels" else ["a", "b", "c"]
        pipe.set_progress_bar_config(disable=True)
        found = {}
        for name, (keys, texts), more in cases(family, pipe, images, prompts, options):
            more = dict(more)
            if "generator" in more:
                more["generator"] = torch.Generator().manual_seed(more["generator"])
            if "adaptation" in more:
                fitted = adapt(pipe, keys, texts, embedding_steps=2, lora_steps=2, rank=2)
                parts = {"adapted.embeddings": fitted.embeddings}
                for i, lora in enumerate(fitted.loras):
                    parts |= {f"adapted.lora.{i}.{n}": v for n, v in lora.items()}
                found |= {n: v.contiguous() for n, v in parts.items()}
                more["adaptation"] = fitted
            network, points = getattr(pipe, "unet", None) or pipe.transformer, [0]

            def count(module, args, kwargs, points=points):
                points[0] += len(args[0] if args else kwargs["hidden_states"])

            hook = network.register_forward_pre_hook(count, with_kwargs=True)
            out = pipe(keys, texts, output_type="pt", **options, **more)
            hook.remove()
            found[f"{name}.points"] = torch.tensor(points)
            found[f"{name}.frames"] = (out.frames * 65535).round().to(torch.uint16).contiguous()
            energies = [g.energy for g in out.geodesics if g is not None]
            found[f"{name}.energies"] = torch.tensor(energies, dtype=torch.float64)
            found[f"{name}.evals"] = torch.tensor(
                [g.num_evals for g in out.geodesics if g is not None]
            )
            print(
                family,
                name,
                tuple(out.frames.shape),
                energies,
                max(out.reconstruction_error),
                points,
                flush=True,
            )
        FOLDER.mkdir(exist_ok=True)
        save_file(found, FOLDER / f"{family}.safetensors")


if __name__ == "__main__":
    main()
