"""Every example runs, and what draws the README's pictures, at its smallest."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import PIL.Image
import pytest
import torch
from diffusers import StableDiffusionPipeline

ROOT = Path(__file__).parents[1]


def load(folder, name):
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_train_demo_model(tmp_path, capsys):
    example = load("examples", "train_demo_model")
    arguments = ["--work", str(tmp_path / "work"), "--images", "15", "--device", "cpu"]
    first = [*arguments, "--output", str(tmp_path / "a"), "--vae-steps", "2", "--unet-steps", "2"]
    example.main(first)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "a")
    assert pipe.tokenizer("a red cube").input_ids[1:-1] == [
        pipe.tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in ("a", "red", "cube")
    ]
    assert sum(p.stat().st_size for p in (tmp_path / "a").rglob("*")) < 15e6
    before = pipe.unet.state_dict()

    rendered = (tmp_path / "work" / "images.safetensors").stat().st_mtime_ns
    more = [*arguments, "--output", str(tmp_path / "b"), "--vae-steps", "2", "--unet-steps", "3"]
    example.main(more)  # goes on from the checkpoints
    assert (tmp_path / "work" / "images.safetensors").stat().st_mtime_ns == rendered
    longer = StableDiffusionPipeline.from_pretrained(tmp_path / "b")
    moved = [not torch.equal(v, before[k]) for k, v in longer.unet.state_dict().items()]
    assert sum(moved) > len(moved) / 2
    for name, value in longer.vae.state_dict().items():
        assert torch.equal(value, pipe.vae.state_dict()[name])


def test_contact_sheet(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    arguments = ["--frames", "3", "--steps", "5", "--max-evals", "2", "--pairs", "1"]
    load("benchmarks", "contact_sheet").main(["--output", str(tmp_path), *arguments])
    with PIL.Image.open(tmp_path / "contact_sheet_1.png") as sheet:
        assert sheet.size == (92 + 3 * 64, 5 * 64)
    assert len(list(tmp_path.iterdir())) == 1
    assert capsys.readouterr().out.count("pair 1, ") == 5


def test_gallery(tmp_path):
    pytest.importorskip("matplotlib")
    load("examples", "gallery").main(
        ["--output", str(tmp_path / "gallery.png"), "--max-evals", "20"]
    )
    with PIL.Image.open(tmp_path / "gallery.png") as figure:
        assert figure.size == (880, 800) and len(figure.convert("RGB").getcolors(10**6)) > 100
    assert len(list(tmp_path.iterdir())) == 1
