"""The folder of `--keep`, frame numbers and starts of the command `interpolate`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import PIL.Image
import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from models import FAST, flags, make, to_pil, waves
from torch.nn.modules.module import register_module_forward_pre_hook

from riemannian_diffusion.cli import main
from riemannian_diffusion.cli.inputs import frames_between, split_number
from riemannian_diffusion.cli.parser import parse
from riemannian_diffusion.pipelines import (
    GeodesicInterpolationPipeline,
    Keyframes,
    MorphPath,
)

FLAGS = flags(**FAST, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny model and three images."""
    folder = tmp_path_factory.mktemp("inputs")
    make("sd").save_pretrained(folder / "model")
    for i, image in enumerate(to_pil(waves(3))):
        image.save(folder / f"{i}.png")
    return folder


@pytest.fixture
def inputs(folder):
    return [str(folder / "0.png"), str(folder / "1.png"), "--model", str(folder / "model")]


class Counted:
    """A run of the command: its status, its output, and the number of calls of its network."""

    def __init__(self, command, capsys, interrupt_at=None):
        self.calls = 0

        def count(module, args):
            self.calls += isinstance(module, UNet2DConditionModel)
            if interrupt_at is not None and self.calls >= interrupt_at:
                raise KeyboardInterrupt

        handle = register_module_forward_pre_hook(count)
        try:
            self.status = main(command)
        finally:
            handle.remove()
        self.out, self.error = capsys.readouterr()


@pytest.fixture
def run(inputs, tmp_path, capsys):
    def run(*more, images=inputs, output="a.png", interrupt_at=None):
        keep = ["--keep", str(tmp_path / "kept"), "-o", str(tmp_path / output)]
        (tmp_path / output).unlink(missing_ok=True)
        (tmp_path / output).with_suffix(".json").unlink(missing_ok=True)
        return Counted(["interpolate", *images, *FLAGS, *keep, *more], capsys, interrupt_at)

    return run


def test_work_is_resumed(run, tmp_path):
    kept, frames = tmp_path / "kept", tmp_path / "a.png"
    first = run()
    assert first.status == 0 and "resumed from" not in first.out and first.calls > 0
    names = ["keys", "path-tangent_normal", "solve-tangent_normal"]
    expected = {*(f"{name}.safetensors" for name in names), "settings.json"}
    assert {p.name for p in kept.iterdir()} == expected
    assert len(Keyframes.load(kept / "keys.safetensors")) == 2
    path = MorphPath.load(kept / "path-tangent_normal.safetensors")
    assert len(path) == 4 and path.latents is not None
    before = frames.read_bytes()

    again = run()
    assert again.status == 0 and again.calls == 0 and frames.read_bytes() == before
    assert f"resumed from {kept}: the keyframes and the sampled path\n" in again.out

    (kept / "path-tangent_normal.safetensors").unlink()
    solved = run()
    assert "the keyframes and a solve that had not ended" in solved.out
    assert 0 < solved.calls < first.calls and frames.read_bytes() == before

    path.__class__(**{**vars(path), "latents": None}).save(kept / "path-tangent_normal.safetensors")
    sampled = run()
    assert "the keyframes and the path\n" in sampled.out and frames.read_bytes() == before
    assert 0 < sampled.calls <= 4  # one call for each step of sampling


def test_another_metric_does_not_invert_again(run, tmp_path):
    first = run()
    inverted = first.calls - run("--metric", "slerp", "--keep", str(tmp_path / "other")).calls
    other = run("--metric", "slerp")
    assert (
        other.status == 0 and "resumed from" in other.out and other.calls == 4
    )  # only sampling calls the network
    assert inverted != other.calls
    assert run("--metric", "slerp").calls == run().calls == 0  # both paths are stored


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "9"], "holds work with --steps 8, not with --steps 9"),
        (["--strength", "0.6"], "holds work with --strength 0.5, not with --strength 0.6"),
        (["--prompt", "a"], "holds work with no --prompt, not with --prompt 'a'"),
        (["--space", "clean"], "--space 'noise', not with --space 'clean'"),
        (["--seed", "1"], "--seed 0, not with --seed 1"),
        (["--size", "32"], "no --size, not with --size 32x32"),
        (["--dtype", "bfloat16"], "--dtype 'float32', not with --dtype 'bfloat16'"),
        (["--guidance", "2"], "--guidance 1.0, not with --guidance 2.0"),
    ],
)
def test_other_settings_are_refused(run, tmp_path, more, message):
    assert run("--metric", "slerp").status == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "kept").iterdir()}
    refused = run("--metric", "slerp", *more)
    *told, error = refused.error.splitlines()
    assert refused.status == 2 and refused.calls == 0
    assert message in error and "start anew with --force" in error
    assert len(told) == 1 and "--max-evals has no effect on --metric slerp" in told[0]
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "kept").iterdir()}


def test_other_images_are_refused_and_force_starts_anew(run, inputs, folder, tmp_path):
    assert run("--metric", "slerp").status == 0 == run("--metric", "lerp").status
    others = [str(folder / "2.png"), *inputs[1:]]
    refused = run("--metric", "slerp", images=others)
    assert refused.status == 2 and "holds work with other images" in refused.error
    anew = run("--metric", "slerp", "--force", images=others)
    assert anew.status == 0 and "resumed from" not in anew.out and anew.calls > 4
    assert not (tmp_path / "kept" / "path-lerp.safetensors").exists()
    assert run("--metric", "slerp", images=others).calls == 0


def test_other_weights_are_refused(run, inputs, folder, tmp_path):
    pipe = make("sd")
    pipe.save_pretrained(tmp_path / "model")
    mine = [*inputs[:2], "--model", str(tmp_path / "model")]
    assert run("--metric", "slerp", images=mine).status == 0
    with torch.no_grad():
        pipe.unet.conv_in.bias += 0.1
    pipe.save_pretrained(tmp_path / "model")
    refused = run("--metric", "slerp", images=mine)
    assert refused.status == 2 and "other weights than those of --model" in refused.error


@pytest.mark.parametrize(
    "more",
    [["--frames", "5"], ["--max-evals", "4"], ["--init", "lerp"], ["--adain"]],
    ids=lambda more: more[0],
)
def test_a_changed_solve_is_solved_again(run, tmp_path, more):
    assert run().status == 0
    changed = run(*more)
    frames = (tmp_path / "a.png").read_bytes()
    assert changed.status == 0 and changed.calls > 4
    alone = run(*more, "--keep", str(tmp_path / "other"))
    assert (tmp_path / "a.png").read_bytes() == frames and alone.calls > changed.calls


def test_options_of_later_stages_reuse_the_path(run):
    assert run().status == 0
    later = run("--retime", "rmse")
    assert later.status == 0 and "the sampled path" in later.out
    shared = run("--attention-interpolation", "0.5")
    assert 0 < shared.calls <= 4 and run("--attention-interpolation", "0.5").calls == 0
    smaller = run("--max-batch-size", "1", "--metric", "slerp")  # after running out of memory
    assert smaller.status == 0 and "resumed from" in smaller.out and smaller.calls == 16


@pytest.mark.slow
def test_an_analogy_resumes(run, folder):
    options = ["--analogy", str(folder / "2.png"), "--prompt", "a", "--prompt", "b"]
    options += ["--prompt", "c", "--adapt", "embeddings", "--max-evals", "1", "--frames", "3"]
    first, again = run(*options), run(*options)
    assert first.status == again.status == 0 and "the sampled path" in again.out
    assert again.calls < first.calls


def test_damaged_work_is_named(run, tmp_path):
    assert run("--metric", "slerp").status == 0
    file = tmp_path / "kept" / "path-slerp.safetensors"
    file.write_bytes(b"half")
    refused = run("--metric", "slerp")
    assert refused.status == 2 and f"Delete {file}" in refused.error
    (tmp_path / "kept" / "settings.json").write_text("{")
    assert "holds a damaged settings.json" in run("--metric", "slerp").error
    assert run("--metric", "slerp", "--force").status == 0


def test_an_interrupted_command_leaves_whole_files(run, tmp_path):
    whole = run("--keep", str(tmp_path / "other"))
    frames = (tmp_path / "a.png").read_bytes()
    for at in (1, whole.calls // 2, whole.calls - 2):  # inverting, solving, sampling
        shutil.rmtree(tmp_path / "kept", ignore_errors=True)
        stopped = run(interrupt_at=at)
        assert (
            stopped.status == 130
            and "riemannian-diffusion: interrupted" in stopped.error.splitlines()[-1]
        )
        assert not (tmp_path / "a.png").exists() and not (tmp_path / "a.json").exists()
        assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]
    resumed = run()
    assert "the keyframes and the path\n" in resumed.out and 0 < resumed.calls <= 4
    assert (tmp_path / "a.png").read_bytes() == frames


@pytest.mark.parametrize("stage", ["solve", "transport"])
def test_an_interrupt_keeps_what_was_finished_without_the_option(
    inputs, folder, tmp_path, capsys, monkeypatch, stage
):
    words = ["interpolate", *inputs, *FLAGS, "-o", str(tmp_path / "a.png")]
    words += ["--analogy", str(folder / "2.png"), "--prompt", "a"]

    def fails(*args, **options):
        raise KeyboardInterrupt

    name = {"solve": "solve", "transport": "_transporting"}[stage]
    with monkeypatch.context() as patch:
        patch.setattr(GeodesicInterpolationPipeline, name, fails)
        assert main(words) == 130
    what = "The keyframes are" if stage == "solve" else "The path is"
    advice = f"{what} kept: run this again with --keep {tmp_path / 'a-kept'}."
    assert f"riemannian-diffusion: interrupted. {advice}\n" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        for done in ["invert"] if stage == "solve" else ["invert", "solve", "sample"]:
            patch.setattr(GeodesicInterpolationPipeline, done, fails)
        assert main([*words, "--keep", str(tmp_path / "a-kept")]) == 0


@pytest.mark.parametrize("error", [ValueError("NaN"), RuntimeError("a defect")])
def test_a_path_is_kept_whatever_fails_after_it(inputs, tmp_path, capsys, monkeypatch, error):
    words = ["interpolate", *inputs, *FLAGS, "-o", str(tmp_path / "a.png")]

    def fails(self, *args, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(GeodesicInterpolationPipeline, "render", fails)
        if isinstance(error, RuntimeError):
            with pytest.raises(RuntimeError, match="a defect"):
                main(words)
        else:
            assert main(words) == 2
    assert f"run this again with --keep {tmp_path / 'a-kept'}." in capsys.readouterr().err
    resumed = Counted([*words, "--keep", str(tmp_path / "a-kept")], capsys)
    assert resumed.status == 0 and "and the sampled path\n" in resumed.out and not resumed.calls


@pytest.mark.slow
def test_a_killed_command_is_resumed(folder, inputs, tmp_path, capsys):
    long = [*flags(num_frames=9, num_inference_steps=8, max_evals=25), "--device", "cpu"]

    def command(keep, output):
        return [*inputs, *long, "--keep", str(tmp_path / keep), "-o", str(tmp_path / output)]

    kept = tmp_path / "kept"
    words = [sys.executable, "-m", "riemannian_diffusion", "interpolate", *command("kept", "a.png")]
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (kept / "solve-tangent_normal.safetensors").exists():
        assert child.poll() is None
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "a.png").exists()
    assert not (kept / "path-tangent_normal.safetensors").exists()
    resumed = Counted(["interpolate", *command("kept", "a.png")], capsys)
    whole = Counted(["interpolate", *command("other", "b.png")], capsys)
    assert "a solve that had not ended" in resumed.out and resumed.calls < whole.calls
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


# ---------------------------------------------------------------------------------- frame numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat.png@24", ("cat.png", 24)),
        ("cat.png@0", ("cat.png", 0)),
        ("a/b@2.png@3", ("a/b@2.png", 3)),
        ("cat.png@1@2", ("cat.png@1", 2)),
        ("cat.png", ("cat.png", None)),
        ("cat@2x.png", ("cat@2x.png", None)),
        ("cat.png@", ("cat.png@", None)),
        ("cat.png@-1", ("cat.png@-1", None)),
        ("@3", ("@3", None)),
        ("a@1/cat.png", ("a@1/cat.png", None)),
    ],
)
def test_numbers_after_names(text, expected):
    path, number = split_number(Path(text))
    assert (str(path), number) == expected


def test_a_file_with_the_whole_name_is_preferred(tmp_path):
    (tmp_path / "cat.png@12").write_text("mine")
    assert split_number(tmp_path / "cat.png@12") == (tmp_path / "cat.png@12", None)
    assert split_number(tmp_path / "cat.png@12@3") == (tmp_path / "cat.png@12", 3)


@given(st.lists(st.integers(2, 100), min_size=1, max_size=9))
def test_numbers_of_frames_are_those_of_gaps(gaps):
    numbers = [0]
    for frames in gaps:
        numbers.append(numbers[-1] + frames - 1)
    assert frames_between([Path("a")] * len(numbers), numbers) == gaps


@given(st.lists(st.integers(0, 50), min_size=2, max_size=5))
def test_numbers_rise_from_0(numbers):
    if numbers[0] == 0 and all(a < b for a, b in zip(numbers, numbers[1:], strict=False)):
        return
    with pytest.raises(ValueError, match="must rise from 0"):
        frames_between([Path("a")] * len(numbers), numbers)


@pytest.mark.parametrize(
    ("words", "frames"),
    [
        (["--frames", "25", "a.png", "b.png"], 25),
        (["a.png", "b.png", "--frames", "25", "37"], [25, 37]),
        (["--frames", "25", "37", "a.png", "b.png"], [25, 37]),
        (["--frames=25", "37", "a.png", "b.png"], [25, 37]),
        (["--frames", "25,37", "a.png", "b.png"], [25, 37]),
        (["--frames", "3", "4", "a.png", "b.png", "--frames", "5"], 5),
        (["a.png", "b.png"], None),
    ],
)
def test_frames_are_one_number_or_several(words, frames):
    args = parse(["interpolate", *words, "-o", "x.gif"])
    assert args.frames == frames and [str(path) for path in args.images] == ["a.png", "b.png"]


@pytest.mark.parametrize("given_as", ["numbers", "frames"])
def test_images_are_where_they_should_be(folder, tmp_path, given_as):
    images = [str(folder / f"{i}.png") for i in range(3)]
    more = ["--frames", "3", "6"]
    if given_as == "numbers":
        images, more = [f"{p}@{n}" for p, n in zip(images, (0, 2, 7), strict=True)], []
    options = ["--model", str(folder / "model"), *flags(**FAST, device="cpu", metric="slerp")]
    del options[options.index("--frames") : options.index("--frames") + 2]
    options += [*more, "--paste-endpoints", "-o", str(tmp_path / "frames")]
    assert main(["interpolate", *images, *options]) == 0
    report = json.loads((tmp_path / "frames.json").read_text())
    assert report["num_frames"] == 8 and report["image_frames"] == [0, 2, 7]
    for number, name in ((0, "0"), (2, "1"), (7, "2")):
        with PIL.Image.open(tmp_path / "frames" / f"frame_{number:04d}.png") as frame:
            assert frame.tobytes() == PIL.Image.open(folder / f"{name}.png").tobytes()


# ------------------------------------------------------------------------------------------ starts


def test_a_solve_starts_from_images(run, folder, tmp_path):
    frames = tmp_path / "frames"
    assert (
        main(
            ["interpolate", *[str(folder / f"{i}.png") for i in (0, 1)], "-o", str(frames)]
            + ["--model", str(folder / "model"), *FLAGS, "--metric", "lerp"]
        )
        == 0
    )
    started = run("--init", str(frames), "--max-evals", "1")
    assert started.status == 0
    path = MorphPath.load(tmp_path / "kept" / "path-tangent_normal.safetensors")
    (found,) = path.geodesics
    assert len(path) == 4 and len(found.iterates) == 1
    plain = run("--max-evals", "1")
    other = MorphPath.load(tmp_path / "kept" / "path-tangent_normal.safetensors")
    assert plain.status == 0 and other.geodesics[0].iterates != found.iterates
    three = [str(folder / f"{i}.png") for i in range(3)]
    refused = run("--init", str(frames), images=[*three, "--model", str(folder / "model")])
    assert refused.status == 2 and "starts a morph of two images" in refused.error
