"""The community pipeline, loaded as diffusers loads code that comes with a model."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from models import FAST, INVERT, SOLVE, flux, silent, stable_diffusion_xl

from riemannian_diffusion.pipelines import (
    GeodesicInterpolationFluxPipeline,
    GeodesicInterpolationXLPipeline,
)

FILE = Path(__file__).parent.parent / "examples" / "community" / "pipeline.py"
OPTIONS = FAST | {"output_type": "pt"}


@pytest.fixture
def model(tiny_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    folder = tmp_path / "model"
    StableDiffusionPipeline.from_pipe(tiny_pipe).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("given", ["file", "folder", "hub"])
def test_the_pipeline_loaded_by_diffusers_morphs(model, tiny_pipe, keyframes, given):
    options = {"custom_pipeline": str(FILE if given == "file" else FILE.parent)}
    if given == "hub":  # the code is in the folder of the weights
        shutil.copy(FILE, model / "pipeline.py")
        index = json.loads((model / "model_index.json").read_text())
        index["_class_name"] = ["pipeline", "GeodesicInterpolation"]
        (model / "model_index.json").write_text(json.dumps(index))
        options = {}
    pipe = DiffusionPipeline.from_pretrained(model, trust_remote_code=True, **options)
    assert type(pipe).__name__ == "GeodesicInterpolation"
    found = silent(pipe)(keyframes[:2], ["a", "b"], **OPTIONS).frames
    expected = tiny_pipe(keyframes[:2], ["a", "b"], **OPTIONS).frames
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("given", ["file", "hub"])
def test_without_the_flag_no_code_is_run(model, given):
    options = {"custom_pipeline": str(FILE)}
    if given == "hub":
        shutil.copy(FILE, model / "pipeline.py")
        index = json.loads((model / "model_index.json").read_text())
        index["_class_name"] = ["pipeline", "GeodesicInterpolation"]
        (model / "model_index.json").write_text(json.dumps(index))
        options = {}
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(model, **options)


BLOCKS = {
    "xl": ("", stable_diffusion_xl, GeodesicInterpolationXLPipeline),
    "flux": ("Flux", flux, GeodesicInterpolationFluxPipeline),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_of_modular_pipelines(keyframes, monkeypatch, kind):
    """The whole as one block, and its stages one by one, make the frames of the pipeline."""
    monkeypatch.syspath_prepend(FILE.parent)
    blocks = importlib.import_module("block")
    name, make, pipeline = BLOCKS[kind]
    components = make()
    direct = silent(pipeline(**components))
    options = {"image": keyframes[:2], "prompt": ["a", "b"], **OPTIONS}
    expected = direct(**options).frames

    def pipe(block):
        made = block().init_pipeline()
        made.update_components(**components)
        return made

    whole = pipe(getattr(blocks, f"GeodesicInterpolation{name}Block"))
    found = whole(**options, output="frames")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    one = {"image": keyframes[:2], "prompt": ["a", "b"], **INVERT}
    suffix = name or "XL"
    keys = pipe(getattr(blocks, f"Invert{suffix}"))(**one, output="keys")
    path = pipe(getattr(blocks, f"Solve{suffix}"))(keys=keys, **SOLVE, output="path")
    other = pipe(getattr(blocks, f"Solve{suffix}"))(
        keys=keys, **SOLVE, metric="lerp", output="path"
    )
    path = pipe(getattr(blocks, f"Sample{suffix}"))(path=path, output="path")
    render = pipe(getattr(blocks, f"Render{suffix}"))
    frames = render(path=path, output_type="pt", output="frames")
    torch.testing.assert_close(frames, expected, atol=1e-5, rtol=0)
    assert (other.points - path.points).abs().max() > 1e-4
