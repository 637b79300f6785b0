"""Morphs of folders of pairs: files, second runs, and runs that are killed."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from models import FAST, flags, to_pil

from riemannian_diffusion.evaluation import find_sequences

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OPTIONS = FAST | {"num_frames": 3, "num_inference_steps": 4, "max_evals": 2}
FLAGS = flags(**OPTIONS, clean_strength=0.5)
METHODS = ["--methods", "slerp", "tangent_normal@clean"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("morph_pairs")


@pytest.fixture
def pairs(tmp_path, keyframes):
    """A folder with three pairs of images, one of them in a sub-folder, and with other files."""
    folder, images = tmp_path / "pairs", to_pil(keyframes)
    for name in ("dog_1", "cat", "animation/a"):
        for end in (0, 1):
            path = folder / f"{name}_{end}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images[end].save(path)
    PIL.Image.new("RGB", (4, 4)).save(folder / "readme.png")
    return folder


@pytest.fixture
def run(script, tiny_pipe, pairs, tmp_path):
    tiny_pipe.save_pretrained(tmp_path / "model")

    def run(*more, output="out", source=pairs):
        model = ["--model", str(tmp_path / "model")]
        script.main([str(source), str(tmp_path / output), *model, *FLAGS, *METHODS, *more])
        return tmp_path / output

    return run


def times(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("pair.json")}


def test_folders_can_be_evaluated(run, tiny_pipe, keyframes):
    out = run()
    for method in ("slerp", "tangent_normal@clean"):
        sequences = find_sequences(out / method)
        assert [s.name for s in sequences] == ["animation-a", "cat", "dog_1"]
        assert all(len(s.frames) == 3 and len(s.inputs) == 2 for s in sequences)
        report = json.loads((out / method / "cat" / "pair.json").read_text())
        assert (report["geodesic"] is None) == (method == "slerp")
        assert report["prompts"] == ["", ""] and len(report["reconstruction_error"]) == 2
    summary = json.loads((out / "summary.json").read_text())
    assert summary["slerp"]["done"] == 3 and summary["slerp"]["failed"] == []
    assert summary["tangent_normal@clean"]["num_evals"] == 2

    images = [PIL.Image.open(out / "slerp" / "cat" / "inputs" / f"{i}.png") for i in (0, 1)]
    expected = tiny_pipe(images, metric="slerp", **OPTIONS).frames
    for i, frame in enumerate(expected):
        with PIL.Image.open(out / "slerp" / "cat" / f"{i:02d}.png") as written:
            assert np.array_equal(np.asarray(written), np.asarray(frame))


def test_a_second_run_makes_the_missing_morphs(run, script, monkeypatch):
    out = run()
    shutil.rmtree(out / "slerp" / "cat")
    (out / "slerp" / ".part-1-cat" / "inputs").mkdir(parents=True)
    before = times(out)
    run()
    after = times(out)
    new = set(after) - set(before)
    assert new == {str(out / "slerp" / "cat" / "pair.json")}
    assert all(after[path] == before[path] for path in before)
    assert not list(out.glob("*/.part-*"))
    monkeypatch.setattr(script.GeodesicInterpolationPipeline, "from_pretrained", None)
    run()  # all morphs exist, so the model is not loaded


def test_a_failed_pair_is_recorded(run, pairs, capsys):
    whole = (pairs / "cat_1.png").read_bytes()
    (pairs / "cat_1.png").write_bytes(b"no image")
    out = run()
    assert not (out / "slerp" / "cat").exists() and (out / "slerp" / "dog_1").exists()
    record = json.loads((out / "failed" / "slerp" / "cat.json").read_text())
    assert "cannot identify image file" in record["error"] and "open_image" in record["traceback"]
    assert json.loads((out / "summary.json").read_text())["slerp"]["failed"] == ["cat"]
    assert "slerp: 2 of 3 done, failed: cat" in capsys.readouterr().out
    (pairs / "cat_1.png").write_bytes(whole)
    run()
    assert not (out / "slerp" / "cat").exists()  # this pair failed before, so it is not tried again
    run("--retry-failed")
    assert (out / "slerp" / "cat").exists() and not list((out / "failed").rglob("*.json"))


def test_prompts(run, script, tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text('name,prompt_0,prompt_1\ncat,"a, b",c\n')
    out = run("--prompts", str(table))
    prompts = [
        json.loads((out / "slerp" / name / "pair.json").read_text())["prompts"]
        for name in ("cat", "dog_1")
    ]
    assert prompts == [["a, b", "c"], ["", ""]]


def test_scenes(script, tmp_path):
    script.write_scenes(tmp_path, 3)
    found = script.find_pairs(tmp_path)
    prompts = script.read_prompts(tmp_path / "prompts.csv", list(found))
    kinds = [[text.split()[-1] for text in prompts[name]] for name in sorted(prompts)]
    assert (
        kinds == [["sphere", "sphere"], ["cube", "cube"], ["cylinder", "cone"]] or len(kinds) == 3
    )
    assert [len(set(k)) for k in kinds] == [1, 1, 2]
    for ends in found.values():
        with PIL.Image.open(ends[0]) as image:
            assert image.size == (64, 64)


def test_settings_are_not_mixed(run, script, tmp_path, pairs, capsys):
    run()
    with pytest.raises(SystemExit, match=r"was begun with steps=4, but now it is 5"):
        run("--steps", "5")
    table = tmp_path / "prompts.csv"
    table.write_text("name,prompt_0,prompt_1\ncat,a,b\n")
    with pytest.raises(SystemExit, match=r"made with the prompts \['', ''\], but now .*'a', 'b'"):
        run("--prompts", str(table))


BAD = [
    ("lone", r"pair cat has only .*cat_0.png"),
    ("empty", r"has no images: name them <name>_0.png"),
    ("double", r"are both image 0 of the pair cat"),
    ("columns", r"lacks the columns prompt_1"),
    ("unknown", r"has prompts for cow, which is none of the pairs"),
]


@pytest.mark.parametrize(("case", "message"), BAD, ids=[b[0] for b in BAD])
def test_errors(run, tmp_path, pairs, case, message):
    more, table = [], tmp_path / "prompts.csv"
    if case == "lone":
        (pairs / "cat_1.png").unlink()
    elif case == "empty":
        shutil.rmtree(pairs)
        pairs.mkdir()
    elif case == "double":
        shutil.copy(pairs / "cat_0.png", pairs / "cat_0.jpg")
    else:
        head, name = ("prompt_1", "cow") if case == "unknown" else ("prompt_2", "cat")
        table.write_text(f"name,prompt_0,{head}\n{name},a,b\n")
        more = ["--prompts", str(table)]
    with pytest.raises(SystemExit, match=message):
        run(*more)


def test_pairs_or_scenes(script, tmp_path, capsys):
    for arguments in ([str(tmp_path)], ["a", str(tmp_path), "--scenes", "2"]):
        with pytest.raises(SystemExit):
            script.main(arguments)
        assert "give either PAIRS or --scenes N" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_one_killed(script, tmp_path):
    """No finished morph is lost or made twice, for twelve pairs with the shipped model."""
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += [str(BENCHMARKS / "morph_pairs.py"), "--scenes", "12", str(out)]
    launch += ["--model", "shipped", "--frames", "5", "--steps", "10", "--max-evals", "5"]
    launch += ["--methods", "slerp", "tangent_normal"]
    first = subprocess.Popen(launch, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 500
    while len(times(out)) < 8:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    workers = subprocess.run(
        ["pgrep", "-f", f"morph_pairs.py --scenes 12 {out}", "-P", str(first.pid)],
        capture_output=True,
        text=True,
    ).stdout.split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    first.wait(120)
    before = times(out)
    assert 8 <= len(before) < 24
    subprocess.run(launch, check=True, timeout=500)
    after = times(out)
    assert len(after) == 24 and all(after[path] == before[path] for path in before)
    summary = json.loads((out / "summary.json").read_text())
    assert [summary[m]["done"] for m in ("slerp", "tangent_normal")] == [12, 12]
    assert not list(out.glob("*/.part-*"))
    processes = {json.loads(Path(path).read_text())["process"] for path in after}
    assert processes == {0, 1}
    sequences = find_sequences(out / "tangent_normal")
    assert len(sequences) == 12 and all(len(s.frames) == 5 for s in sequences)
    assert all(torch.isfinite(s.load().frames.float()).all() for s in sequences)
