"""The README and the guide: their Python runs, and their tables name tests that exist."""

from __future__ import annotations

import importlib
import re
from functools import partial, wraps
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionXLAutoBlocks
from exact import ExactDenoiser, to_sphere
from models import FAST, INVERT, SOLVE, make, randn, to_pil, vector, waves

import riemannian_diffusion
from riemannian_diffusion import DiffusionScore, GaussianMixtureScore
from riemannian_diffusion.pipelines import (
    GeodesicInterpolationPipeline,
    GeodesicInterpolationXLPipeline,
    RoadmapStart,
)

ROOT = Path(__file__).parent.parent
README, GUIDE = "README.md", "examples/README.md"
FILES = (README, GUIDE, "examples/community/README.md")
TEXTS = {name: (ROOT / name).read_text() for name in FILES}
TABLES = TEXTS[GUIDE]  # of models and features
BLOCKS = [
    (name, block)
    for name, text in TEXTS.items()
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
]


def title(found: tuple[str, str]) -> str:
    """The file of a block of code, and its first line that is not blank."""
    name, block = found
    return f"{name}: {next(line for line in block.splitlines() if line.strip())}"


def rmse(x, y):
    """The root mean square difference of images. It replaces LPIPS, which needs weights."""
    return (x - y).square().flatten(1).mean(1).sqrt()


def stand_ins() -> dict:
    """The names that the code uses without defining them."""
    scheduler = DDIMScheduler()
    images, points = to_pil(waves(3)), to_sphere(randn(40, 8))
    unet = ExactDenoiser(scheduler, points, 0.2)
    return {
        "image_a": images[0],
        "image_b": images[1],
        "image_c": images[2],
        "prompts": ["a photo of a cat", "a photo of a dog"],
        "unet": unet,
        "scheduler": scheduler,
        "levels": partial(DiffusionScore, unet, scheduler),
        "x": points[:3],
        "u": points[3:6],
        "v": points[5:8],
        "x0": points[0],
        "x1": points[1],
        "points": points[:3],
        "weights": vector(0.5, 0.3, 0.2),
        "starts": points[:2],
        "ends": points[2:4],
        "conditional": GaussianMixtureScore(points[:20], 0.5),
        "unconditional": GaussianMixtureScore(points, 0.5),
        "modular": StableDiffusionXLAutoBlocks().init_pipeline(),
    }


def patched(function, few=None, renamed=None):
    """The function with few steps, and with replacements for some values of arguments."""

    @wraps(function)
    def call(*args, **options):
        args = [renamed.get(a, a) if renamed and isinstance(a, str) else a for a in args]
        return function(*args, **options | (few or {}))

    return call


@pytest.fixture(scope="module")
def errors(tmp_path_factory) -> list[BaseException | None]:
    """The errors that the blocks raise when they run in order, as one program.

    The names of models on the hub are folders with tiny models, "cuda" is the CPU, and
    calls take few steps.
    """
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    named = r'(?:from_pretrained|init_pipeline)\(\s*"([^"]+)"'
    for name in set(re.findall(named, "".join(TEXTS.values()))):
        make("xl" if "-xl-" in name else "sd").save_pretrained(folder / name)

    for name, image in zip(("cat", "dog"), to_pil(waves(2)), strict=True):
        image.save(folder / f"{name}.png")

    namespace, found = stand_ins(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cache = str(folder / "cache")
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", cache)
        patch.setattr("riemannian_diffusion.evaluation.lpips_distance", lambda *_, **__: rmse)
        for kind in (DiffusionPipeline, torch.nn.Module):
            patch.setattr(kind, "to", patched(kind.to, renamed={"cuda": "cpu"}))
        for kind in (GeodesicInterpolationPipeline, GeodesicInterpolationXLPipeline):
            for name, few in (("__call__", FAST), ("invert", INVERT), ("solve", SOLVE)):
                patch.setattr(kind, name, patched(getattr(kind, name), few))
        patch.syspath_prepend(ROOT / "examples" / "community")
        start = patched(RoadmapStart, {"max_samples": 8})
        patch.setattr("riemannian_diffusion.pipelines.RoadmapStart", lambda _: start())
        few = {"embedding_steps": 1, "lora_steps": 1}
        patch.setattr("riemannian_diffusion.adapt", patched(riemannian_diffusion.adapt, few))
        for name, block in BLOCKS:
            text = TEXTS[name]
            code = "\n" * text[: text.index(block)].count("\n") + block
            try:
                exec(compile(code, name, "exec"), namespace)
                found.append(None)
            except Exception as error:
                found.append(error)
    return found


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=map(title, BLOCKS))
def test_the_python_runs(errors, number):
    if errors[number] is not None:
        raise errors[number]


@pytest.mark.parametrize("named", sorted(set(re.findall(r"`(test_\w+\.py::test_\w+)`", TABLES))))
def test_named_tests_exist(named):
    module, _, function = named.partition(".py::")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_readme_is_short():
    lines = TEXTS[README].splitlines()
    assert len(lines) <= 150
    assert any("from_pretrained(" in line for line in lines[:40])


def test_every_model_and_feature_names_its_test():
    tables = re.search(r"\n## Models\n.*?(?=\n## (?!Features))", TABLES + "\n## ", re.DOTALL)[0]
    rows = re.findall(r"^\|(?!---).*\|$", tables, re.MULTILINE)
    rows = [row for row in rows if not row.endswith("| test |")]
    assert len(rows) > 15 and all(re.search(r"`test_\w+\.py::test_\w+` \|$", row) for row in rows)
