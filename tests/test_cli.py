from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from models import FAST, flags, to_pil

from riemannian_diffusion.cli import flags as in_flags
from riemannian_diffusion.cli import main
from riemannian_diffusion.cli.options.evaluate import PROTOCOL_NAMES
from riemannian_diffusion.cli.options.interpolate import METRIC_NAMES
from riemannian_diffusion.cli.options.values import INIT_NAMES
from riemannian_diffusion.evaluation import PROTOCOLS
from riemannian_diffusion.media import read_clip
from riemannian_diffusion.pipelines.curves import CURVES, METRICS
from riemannian_diffusion.pipelines.starts import NAMED_STARTS
from riemannian_diffusion.runtime import default_dtype

FLAGS = flags(**FAST, device="cpu")


@pytest.fixture
def inputs(tiny_pipe, keyframes, tmp_path):
    """A saved tiny model and two image files."""
    tiny_pipe.save_pretrained(tmp_path / "model")
    for i, image in enumerate(to_pil(keyframes[:2])):
        image.save(tmp_path / f"{i}.png")
    return [str(tmp_path / "0.png"), str(tmp_path / "1.png"), "--model", str(tmp_path / "model")]


def test_names_are_those_of_the_library():
    assert METRIC_NAMES == (*METRICS, *CURVES) and PROTOCOL_NAMES == tuple(PROTOCOLS)
    assert INIT_NAMES == NAMED_STARTS


@pytest.fixture
def run(inputs, tmp_path):
    def run(output, *more):
        return main(["interpolate", *inputs, "-o", str(tmp_path / output), *FLAGS, *more])

    return run


def test_gif_and_report(run, tmp_path):
    assert run("morph.gif", "--prompt", "a", "--prompt", "b") == 0
    with PIL.Image.open(tmp_path / "morph.gif") as gif:
        assert gif.n_frames == 4 and gif.size == (16, 16)
    report = json.loads((tmp_path / "morph.json").read_text())
    (found,) = report["geodesics"]
    assert {"energy", "finer_energy", "lower_bound", "length", "num_evals", "status"} <= set(found)
    assert found["lower_bound"] <= found["finer_energy"] * 1.0001 and found["num_evals"] == 3
    assert len(report["reconstruction_error"]) == 2 and report["num_frames"] == 4
    assert report["arguments"]["prompt"] == ["a", "b"] and report["arguments"]["frames"] == 4
    assert set(report["versions"]) >= {"python", "riemannian-diffusion", "torch", "diffusers"}
    assert report["dtype"] == "float32"
    assert not list(tmp_path.glob(".*"))


def test_a_report_has_no_lower_bound_where_none_is_known(run, tmp_path):
    assert run("morph.png", "--metric", "likely", "--init", "split") == 0
    text = (tmp_path / "morph.json").read_text()
    (found,) = json.loads(text, parse_constant=pytest.fail)["geodesics"]
    assert found["lower_bound"] is None and found["num_evals"] == 3


def test_default_dtype_of_each_device():
    assert default_dtype("cuda:1") == "float16"
    assert default_dtype(torch.device("cpu")) == default_dtype("mps") == "float32"


def test_video_has_every_frame(run, tmp_path):
    assert run("morph.mp4", "--metric", "slerp") == 0
    frames = len(read_clip(tmp_path / "morph.mp4").frames)
    assert frames == 4


def test_grid(run, tmp_path):
    assert run("morph.png", "--metric", "lerp", "--space", "clean") == 0
    assert PIL.Image.open(tmp_path / "morph.png").size == (32, 32)


def test_directory_is_replaced_frame_by_frame(run, tmp_path):
    assert run("frames", "--metric", "slerp") == 0
    names = [f"frame_{i:04d}.png" for i in range(4)]
    assert sorted(p.name for p in (tmp_path / "frames").iterdir()) == names
    assert (tmp_path / "frames.json").exists()
    (tmp_path / "frames" / "notes.txt").write_text("mine")
    assert run("frames", "--metric", "slerp", "--force", "--frames", "3") == 0
    expected = sorted([*names[:3], "notes.txt"])
    assert sorted(p.name for p in (tmp_path / "frames").iterdir()) == expected


def test_same_seed_same_bytes(run, tmp_path):
    for name in ("a.png", "b.png"):
        assert run(name, "--space", "clean", "--seed", "3") == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_several_starts(run, tmp_path):
    energies = []
    for starts in (["slerp"], ["lerp"], ["slerp", "lerp"]):
        more = [option for start in starts for option in ("--init", start)]
        assert run("morph.png", *more, "--max-evals", str(3 * len(starts)), "--force") == 0
        report = json.loads((tmp_path / "morph.json").read_text())
        assert report["arguments"]["init"] == starts
        energies.append(report["geodesics"][0]["finer_energy"])
    assert energies[2] == min(energies)


def test_an_analogy(run, inputs, tmp_path):
    assert run("d.gif", "--analogy", inputs[1]) == 0
    report = json.loads((tmp_path / "d.json").read_text())
    assert report["arguments"]["analogy"] == inputs[1] and report["num_frames"] == 4
    assert len(report["reconstruction_error"]) == 3


def test_existing_outputs_are_kept(run, tmp_path, capsys):
    (tmp_path / "morph.gif").write_text("mine")
    assert run("morph.gif") == 2
    assert "exists: choose another --output, or overwrite with --force" in capsys.readouterr().err
    assert (tmp_path / "morph.gif").read_text() == "mine"
    assert run("morph.gif", "--force", "--metric", "slerp") == 0


def test_size_crops_and_scales(run, inputs, tmp_path):
    PIL.Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(inputs[1])
    assert run("morph.png", "--metric", "slerp") == 2
    assert run("morph.png", "--metric", "slerp", "--size", "16") == 0


def test_what_a_late_stage_needs_is_checked_before_the_work(run, tmp_path, capsys, monkeypatch):
    """Weights of --retime that are missing, and an image of --analogy of another size."""

    def fail(*_, **__):
        raise OSError("no file, or pass a network of your own.")

    monkeypatch.setattr("riemannian_diffusion.pipelines.retiming.lpips_distance", fail)
    assert run("a.gif", "--retime", "lpips") == 2
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    assert run("a.gif", "--analogy", str(tmp_path / "small.png")) == 2
    printed, errors = capsys.readouterr()
    assert "error: no file.\n" in errors and "small.png has 8 x 8 pixels, but the first" in errors
    assert "inverting" not in printed


BAD = [
    (["-o", "x.bmp"], "--output must end in .gif, .mp4, .png or nothing"),
    (["-o", "no/such/x.gif"], "the folder no/such of --output does not exist"),
    (["only.png", "-o", "x.gif"], "two or more images, but got only.png alone"),
    (["a.png", "b.png", "-o", "x.gif"], "error: a.png does not exist."),
    (["broken.png", "broken.png", "-o", "x.gif"], "cannot identify image file"),
    (["-o", "x.gif", "--fps", "0"], "--fps must be in [0.01, 1000], but got 0.0"),
    (["-o", "x.gif", "--frames", "many"], "argument --frames: must be a whole number, or one for"),
    (["-o", "x.gif", "--metric", "flat"], "argument --metric: invalid choice: 'flat'"),
    (["-o", "x.gif", "--size", "0x4"], "must be like 512 or 768x512, but got '0x4'"),
    (["ok.png", "ok.png", "-o", "x.gif", "--model", "no-such-model"], "no-such-model"),
    (["ok.png", "ok.png", "--strength", "2", "-o", "x.gif"], "--strength must be in (0, 1]"),
    (["ok.png", "ok.png", "--max-evals", "0", "-o", "x.gif"], "--max-evals must be a whole"),
    (["ok.png", "ok.png", "--guidance", "nan", "-o", "x.gif"], "--guidance must be a finite"),
    (["ok.png", "ok.png", "--frames", "1", "-o", "x.gif"], "--frames must be at least 2, but got"),
    (["ok.png", "ok.png", "--frames", "3", "4", "-o", "x.gif"], "next, which makes 1, but got 2"),
    (["ok.png", "ok.png", "--frames", "200000", "-o", "x.gif"], "200000 frames, more than 100000"),
    (["ok.png@0", "ok.png@200000", "-o", "x.gif"], "200001 frames, more than 100000"),
    (["ok.png", "ok.png", "--clip-frames", "0", "3", "-o", "x.gif"], "no video is given"),
    (["--variant", "fp16", "-o", "x.gif"], "shipped model has no variants"),
    (
        ["ok.png", "ok.png", "--init", "split", "--space", "clean", "-o", "x.gif"],
        "--init 'split' needs --space 'noise', but got 'clean'",
    ),
    (["ok.png@0", "ok.png", "-o", "x.gif"], "or none of them: ok.png has none"),
    (["ok.png@1", "ok.png@2", "-o", "x.gif"], "must rise from 0, but got 1, 2"),
    (["ok.png@0", "ok.png@4", "--frames", "5", "-o", "x.gif"], "--frames exclude each other"),
    (["model@0", "-o", "x.gif"], "but model is a folder or a video"),
    (
        ["-o", "x.gif", "--init", "flat"],
        "must be slerp, lerp, split, roadmap, a folder of images or",
    ),
    (
        [
            "ok.png",
            "ok.png",
            "--prompt",
            "a",
            "--prompt",
            "b",
            "--analogy",
            "ok.png",
            "-o",
            "x.gif",
        ],
        "--prompt must be given once, or once for each of 3 images",
    ),
    (["ok.png", "ok.png", "--analogy", "ok.png", "--extrapolate", "1", "-o", "x.gif"], "exclude"),
    (["ok.png", "ok.png", "--keep", "ok.png", "-o", "x.gif"], "but ok.png is a file"),
    (["ok.png", "ok.png", "--device", "moon", "-o", "x.gif"], "--device moon cannot be used"),
    (["ok.png", "ok.png", "--device", "meta", "-o", "x.gif"], "--device meta cannot be used"),
    (
        ["ok.png", "ok.png", "--size", "15", "-o", "x.gif"],
        "(15, 15): crop and scale them with --size",
    ),
    (["ok.png", "ok.png", "--steps", "5000", "-o", "x.gif"], "--steps must be at most 1000"),
    (["ok.png", "no.png", "-o", "x.gif"], "error: no.png does not exist."),
    (["no/", "-o", "x.gif"], "error: no does not exist."),
    (["ok.png", "ok.png", "--analogy", "no.png", "-o", "x.gif"], "error: no.png does not exist."),
    (["ok.png", "ok.png", "-o", ".gif"], "--output must have a name before its ending"),
    (["ok.png", "ok.png", "--model", "ok.png", "-o", "x.gif"], "must be a .safetensors file"),
    (["ok.png", "ok.png", "--vae", "none", "-o", "x.gif"], "--vae: there is no file none."),
    (["ok.png", "model", "-o", "x.gif"], "model cannot be read as an image: it is a folder"),
    (["ok.png", "ok.png", "--keep", "ok.png/x", "-o", "x.gif"], "--keep ok.png/x cannot be made"),
    (
        ["ok.png", "ok.png", "--metric", "nao", "--space", "clean", "-o", "x.gif"],
        "--metric nao needs --space noise, but got 'clean'",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(b[0]) for b in BAD])
def test_bad_input_gives_one_line_and_status_2(
    inputs, arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_text("no image")
    PIL.Image.new("RGB", (16, 16)).save(tmp_path / "ok.png")
    if "ok.png" in arguments and "--model" not in arguments:
        arguments = [*arguments, "--model", "model"]
    before = sorted(p.name for p in tmp_path.iterdir())
    try:
        status = main(["interpolate", *arguments])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert message in error.strip().splitlines()[-1] and len(error.strip().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_running_the_module_runs_the_command():
    command = [sys.executable, "-m", "riemannian_diffusion", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("riemannian-diffusion 0.")


def test_advice_of_the_library_in_the_words_of_the_command_line():
    """Every sentence that is reworded is one that the library has."""
    said = []
    for file in Path(in_flags.__file__).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())) if file.name != "flags.py" else ():
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value for part in parts if isinstance(part, ast.Constant)]
            said.append("".join(map(str, texts)))
    assert [text for text in in_flags.ADVICE if not any(text in one for one in said)] == []
    message = "`checkpoint` a.safetensors belongs to another problem"
    assert in_flags.with_flags(message).startswith("--keep: a.safetensors belongs")
    message = "`image` must have the keyframes' size, but is (3, 8, 8)."
    assert in_flags.with_flags(message).startswith("--analogy must have the size")
