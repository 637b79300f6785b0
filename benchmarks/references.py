"""Reference frames of every kind of model, and how far today's frames are from them.

    python benchmarks/references.py [--families sd xl sd3 flux pixels shipped] [--record]

The references were recorded on 2026-11-28, when solves began on coarse curves and frames in noise
space were paced by samples. `--record` writes new ones. Frames are stored with 16 bits, so a
difference below 1e-5 is rounding. Solves end after 8 evaluations: a longer one can amplify rounding
errors, so that the same code ends on another path with another number of threads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import frame
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import models  # noqa: E402

from riemannian_diffusion import Adaptation, adapt, demo  # noqa: E402
from riemannian_diffusion.pipelines import (  # noqa: E402
    GeodesicInterpolationPipeline,
    RoadmapStart,
)

FOLDER = Path(__file__).parent / "references"
TINY = {"num_frames": 5, "num_inference_steps": 10, "max_evals": 8}
SHIPPED = {"num_frames": 5, "num_inference_steps": 25, "max_evals": 8}


def waves(num: int) -> list[Tensor]:
    """Smooth images `(3, 16, 16)`."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
    return [torch.stack([(k * x).sin() ** 2, (k * y).cos() ** 2, x * y]) for k in range(1, num + 1)]


def setting(family: str) -> tuple[Any, list[Tensor], list[str], dict[str, int]]:
    """A pipeline, three images, their prompts and options."""
    if family != "shipped":
        texts = [""] * 3 if family == "pixels" else ["a", "b", "c"]
        return models.make(family), list(models.waves(3)), texts, TINY
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
    factors = demo.random_factors(3, torch.Generator().manual_seed(2000))
    hue = demo.FACTORS.index("hue")
    texts = [demo.caption(demo.KINDS[0], float(one[hue])) for one in factors]
    return pipe, list(demo.render(demo.KINDS[0], factors)), texts, SHIPPED


def cases(family: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of calls and what they change."""
    yield "plain", {}
    if family != "shipped":  # its file would be too large with all cases
        yield "slerp", {"metric": "slerp"}
        yield "jacobian", {"metric": "score_jacobian"}
        yield "stein", {"metric": "stein"}
        yield "roadmap", {"init": ["slerp", RoadmapStart(48)]}
    yield "three", {"three": True}
    yield "clean", {"space": "clean", "init": "slerp"}
    yield "extrapolated", {"extend": 0.5}
    yield "retimed", {"retime": "rmse"}
    yield "analogy", {"transport": True}
    if family != "pixels":
        yield "guided", {"guidance_scale": 3.0, "negative": True}
        yield "density", {"metric": "density", "negative": True}
    if family in ("sd", "xl", "shipped"):
        yield "damped", {"guidance_scale": 3.0, "guidance_damping": 0.5}
        if family != "shipped":
            yield "matched", {"adain": True, "attention_interpolation": 0.6}
    if family in ("sd", "shipped"):
        yield "adapted", {"adapted": True}


def morph(family: str, name: str, more: dict[str, Any], stored: dict[str, Tensor]) -> tuple:
    """Frames, energies and the number of points that the network saw."""
    pipe, images, texts, options = setting(family)
    models.silent(pipe)
    take = 3 if "three" in more else 2
    prompt = texts[:take] if texts[0] else ""
    conditions = None
    if "adapted" in more:
        conditions = pipe.condition(prompt, adaptation=adaptation(stored))
    elif family == "pixels":
        conditions = pipe.condition("")
    else:
        conditions = pipe.condition(prompt, texts[2] if "negative" in more else "")
    with models.counting(pipe.network) as seen:
        out = _staged(pipe, images, texts, conditions, more, options)
    energies = [found.energy for found in out.geodesics if found is not None]
    energies = torch.tensor(energies, dtype=torch.float64)
    return out.frames, energies, torch.tensor(seen.points)


def _staged(pipe, images, texts, conditions, more, options) -> Any:
    """The output of all stages of a case."""
    take = 3 if "three" in more else 2
    generator = torch.Generator().manual_seed(0)
    inversion = {n: more[n] for n in ("space", "guidance_scale", "guidance_damping") if n in more}
    keys = pipe.invert(
        images[:take],
        conditions=conditions,
        num_inference_steps=options["num_inference_steps"],
        generator=generator,
        **inversion,
    )
    path = pipe.solve(
        keys,
        more.get("metric", "tangent_normal"),
        num_frames=options["num_frames"],
        max_evals=options["max_evals"],
        init=more.get("init"),
        generator=generator,
    )
    sampling = {n: more[n] for n in ("adain", "attention_interpolation") if n in more}
    path = pipe.sample(path, **sampling)
    if "retime" in more:
        path = pipe.retime(path, more["retime"])
    if "extend" in more:
        path = pipe.extend(path, more["extend"])
    if "transport" in more:
        third = texts[2] if texts[0] else None
        path = pipe.transport(path, images[2], third, max_evals=options["max_evals"])
    return pipe.render(path, output_type="pt")


def adaptation(stored: dict[str, Tensor]) -> Adaptation:
    """The adaptation among the references."""
    loras = [
        {
            name.removeprefix(f"adapted.lora.{i}."): value
            for name, value in stored.items()
            if name.startswith(f"adapted.lora.{i}.")
        }
        for i in range(2)
    ]
    return Adaptation(stored["adapted.embeddings"], loras)


def fitted(family: str) -> dict[str, Tensor]:
    """A small adaptation as tensors, to be stored among the references."""
    pipe, images, texts, _ = setting(family)
    found = adapt(pipe, images[:2], texts[:2], embedding_steps=2, lora_steps=2, rank=2)
    parts = {"adapted.embeddings": found.embeddings}
    for i, lora in enumerate(found.loras or ()):
        parts |= {f"adapted.lora.{i}.{name}": value for name, value in lora.items()}
    return {name: value.contiguous() for name, value in parts.items()}


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each case: how far today's frames and energies are from the references."""
    torch.set_num_threads(1)  # sums are rounded otherwise with more
    for family in args.families:
        file = FOLDER / f"{family}.safetensors"
        if not args.record:
            stored = load_file(file)
        else:
            stored = fitted(family) if "adapted" in dict(cases(family)) else {}
        for name, more in cases(family):
            if args.cases and name not in args.cases:
                continue
            frames, energies, points = morph(family, name, more, stored)
            if args.record:
                stored[f"{name}.frames"] = (frames * 65535).round().to(torch.uint16).contiguous()
                stored[f"{name}.energies"], stored[f"{name}.points"] = energies, points
            expected = stored[f"{name}.frames"].float() / 65535
            before = stored[f"{name}.energies"]
            same = expected.shape == frames.shape
            yield {
                "family": family,
                "case": name,
                "frames": float((frames - expected).abs().max()) if same else None,
                "energies": float(((energies - before).abs() / before).max()) if len(before) else 0,
                "points": int(points),
                "points before": int(stored[f"{name}.points"]),
            }
        if args.record:
            FOLDER.mkdir(exist_ok=True)
            save_file(stored, file)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Print and return the rows, and print the largest difference of each family."""
    parser = frame.parser(__doc__)
    parser.add_argument("--families", nargs="+", default=[*models.KINDS, "shipped"])
    parser.add_argument("--cases", nargs="+")
    parser.add_argument("--record", action="store_true")
    rows = frame.run(measure, parser, argv)
    for family in dict.fromkeys(row["family"] for row in rows):
        differences = [row["frames"] for row in rows if row["family"] == family]
        worst = float("inf") if None in differences else max(differences)
        print(f"largest difference of {family}: {worst:.1e}")
    return rows


if __name__ == "__main__":
    main()
