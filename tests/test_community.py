"""The community pipeline, loaded as diffusers loads code that comes with a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from models import FAST, silent, stable_diffusion_xl

from riemannian_diffusion.pipelines import GeodesicInterpolationXLPipeline

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


def test_a_block_of_a_modular_pipeline(keyframes, monkeypatch):
    monkeypatch.syspath_prepend(FILE.parent)
    from block import GeodesicInterpolationBlock

    components = stable_diffusion_xl()
    pipe = GeodesicInterpolationBlock().init_pipeline()
    pipe.update_components(**components)
    options = {"image": keyframes[:2], "prompt": ["a", "b"], **OPTIONS}
    found = pipe(**options, output="frames")
    direct = silent(GeodesicInterpolationXLPipeline(**components))
    torch.testing.assert_close(found, direct(**options).frames, atol=1e-5, rtol=0)
