"""The command `batch`: manifests, results, failures, and runs with the shipped model."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import scenes
from batch_stub import results
from models import FAST, flags, make, to_pil, waves

from riemannian_diffusion.cli import batch, batch_work, main
from riemannian_diffusion.cli.parser import parse
from riemannian_diffusion.evaluation import find_sequences
from riemannian_diffusion.pairs.manifest import COLUMNS, read_pairs
from riemannian_diffusion.pairs.running import as_time, in_order
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

OPTIONS = FAST | {"num_frames": 3, "num_inference_steps": 4, "max_evals": 2}
FLAGS = [*flags(**OPTIONS, device="cpu"), "--metric", "slerp", "--metric", "tangent_normal"]
METHODS = ("slerp", "tangent_normal")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny model."""
    folder = tmp_path_factory.mktemp("model")
    make("sd").save_pretrained(folder)
    return folder


@pytest.fixture
def pairs(tmp_path):
    """A folder with three pairs of images, one of them in a sub-folder, and with other files."""
    folder, images = tmp_path / "pairs", to_pil(waves(3))
    for name in ("dog_1", "cat", "animation/a"):
        for end in (0, 1):
            path = folder / f"{name}_{end}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images[end].save(path)
    PIL.Image.new("RGB", (4, 4)).save(folder / "readme.png")
    return folder


@pytest.fixture
def run(model, pairs, tmp_path, capsys):
    """Run the command; returns its status, what it printed, and the errors that it printed."""

    def run(*more, source=pairs, output="out"):
        command = ["batch", str(source), "-o", str(tmp_path / output), "--model", str(model)]
        status = main([*command, *FLAGS, *more])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def report(out, method, name):
    return json.loads((out / method / name / "pair.json").read_text())


def test_morphs_are_those_of_the_pipeline(run, out):
    status, printed, _ = run("--seed", "3")
    assert status == 0 and "3 of 3 pairs done" in printed
    for method in METHODS:
        sequences = find_sequences(out / method)
        assert [s.name for s in sequences] == ["animation-a", "cat", "dog_1"]
        assert all(len(s.frames) == 3 and len(s.inputs) == 2 for s in sequences)
        found = report(out, method, "cat")
        assert (found["geodesic"] is None) == (method == "slerp")
        assert found["pair"]["image_1"] == "cat_1.png" and found["pair"]["seed"] == 3
        assert found["passes_of_inversion"] == report(out, "slerp", "cat")["passes_of_inversion"]
        assert any("does not know images" in text for text in found["warnings"])
    assert report(out, "tangent_normal", "cat")["passes"]["reverse"] > 0
    assert report(out, "slerp", "cat")["passes"]["reverse"] == 0

    images = [PIL.Image.open(out / "slerp" / "cat" / "inputs" / f"{i}.png") for i in (0, 1)]
    for method in METHODS:
        expected = make("sd")(images, metric=method, **OPTIONS).frames
        for i, frame in enumerate(expected):
            with PIL.Image.open(out / method / "cat" / f"{i:02d}.png") as written:
                assert np.array_equal(np.asarray(written), np.asarray(frame))


def test_each_pair_is_inverted_once(run, monkeypatch):
    calls, inverted = [], batch_work.inverted
    monkeypatch.setattr(
        batch_work, "inverted", lambda *given: (calls.append(given), inverted(*given))[1]
    )
    assert run()[0] == 0
    assert len(calls) == 3


def test_an_interrupted_batch_says_how_to_go_on(run, out, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batch, "run_pairs", interrupt)
        status, _, errors = run()
    assert status == 130 and f"Finished morphs are in {out}, and the same command" in errors
    assert run()[0] == 0


def test_the_summary_repeats_the_reports(run, out):
    _, printed, _ = run()
    with (out / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["pair"], row["method"]) for row in rows] == [
        (name, method) for name in ("animation-a", "cat", "dog_1") for method in METHODS
    ]
    found = report(out, "tangent_normal", "cat")
    (row,) = (r for r in rows if r["pair"] == "cat" and r["method"] == "tangent_normal")
    geodesic = found["geodesic"]
    assert float(row["energy over bound"]) == geodesic["finer_energy"] / geodesic["lower_bound"]
    assert float(row["reconstruction error"]) == max(found["reconstruction_error"])
    assert row["status"] == geodesic["status"] and row["on data"] == str(geodesic["on_data"])
    assert rows[0]["status"] == "curve" and rows[0]["energy over bound"] == ""
    table = json.loads((out / "summary.json").read_text())
    assert [row["made"] for row in table["methods"]] == [3, 3]
    assert all(re.search(rf"^{row['pair']} +{row['method']} ", printed, re.M) for row in rows)


def test_a_second_run_makes_the_missing_morphs_alone(run, out, monkeypatch):
    run()
    before = {p: p.stat().st_mtime_ns for p in out.rglob("pair.json")}
    shutil.rmtree(out / "slerp" / "cat")
    assert run()[0] == 0
    after = {p: p.stat().st_mtime_ns for p in out.rglob("pair.json")}
    assert after.keys() == before.keys()
    assert [p for p in before if after[p] != before[p]] == [out / "slerp" / "cat" / "pair.json"]
    monkeypatch.setattr(GeodesicInterpolationPipeline, "from_pretrained", None)
    status, printed, _ = run()  # all morphs exist, so the model is not loaded
    assert status == 0 and "loading" not in printed and "dog_1" in printed


def test_a_failed_pair_is_recorded_and_the_others_are_made(run, pairs, out):
    whole = (pairs / "cat_1.png").read_bytes()
    (pairs / "cat_1.png").write_bytes(b"no image")
    PIL.Image.new("RGB", (24, 24)).save(pairs / "dog_1_1.png")
    status, printed, _ = run()
    assert status == 1 and "3 of 3 pairs done, 2 with failures" in printed
    assert (out / "slerp" / "animation-a").exists() and not (out / "slerp" / "cat").exists()
    record = json.loads((out / "failed" / "slerp" / "cat.json").read_text())
    assert "cannot identify image file" in record["error"] and "open_image" in record["traceback"]
    record = json.loads((out / "failed" / "tangent_normal" / "dog_1.json").read_text())
    assert "--size" in record["error"]  # a flag, not an argument
    assert "slerp cat failed: " in printed
    (pairs / "cat_1.png").write_bytes(whole)
    assert run()[0] == 1 and not (out / "slerp" / "cat").exists()  # it is not tried again
    assert run("--retry-failed")[0] == 1 and (out / "slerp" / "cat").exists()
    assert [p.stem for p in (out / "failed").rglob("*.json")] == ["dog_1", "dog_1"]


def test_a_lost_device_ends_the_run_and_is_no_failure_of_pairs(run, out, monkeypatch):
    def lost(*_):
        raise ValueError("--device cpu cannot be used: it is gone")

    monkeypatch.setattr(batch_work, "solved", lost)
    monkeypatch.setattr(batch_work, "check_device", lost)
    status, _, error = run()
    assert status == 2 and "it is gone" in error and not (out / "failed").exists()
    assert not list(out.glob(".p*"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "5"], "was begun with --steps 4, not with --steps 5"),
        (["--adain"], "was begun with no --adain, not with --adain:"),
        (["--seed", "1"], "was made with seed 0, but now it is 1"),
        (["--frames", "4"], "was made with frames 3, but now it is 4"),
    ],
)
def test_other_settings_are_refused(run, more, message):
    assert run("--limit", "1")[0] == 0
    status, _, error = run(*more)
    assert status == 2 and message in error


def test_settings_with_which_nothing_was_made_are_replaced(run, out, monkeypatch):
    """A wrong first command does not spoil the folder, unless another process may be at work."""
    with monkeypatch.context() as patch:
        patch.setattr(
            batch_work, "load_model", lambda *_: (_ for _ in ()).throw(OSError("no model"))
        )
        assert run("--limit", "1", "--steps", "7")[0] == 2
    (out / "settings.json").write_text("{")
    process = out / ".processes" / "elsewhere-1-1-1"  # on another machine, and touched just now
    process.mkdir(parents=True)
    status, _, error = run("--limit", "1")
    assert status == 2 and f"{out / 'settings.json'} is damaged: delete it" in error
    process.rmdir()
    assert run("--limit", "1")[0] == run("--limit", "1")[0] == 0


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}"])
def test_a_damaged_morph_is_named(run, out, text):
    assert run("--limit", "1")[0] == 0
    morph = out / "slerp" / "animation-a"
    (morph / "pair.json").unlink()
    if text is not None:
        (morph / "pair.json").write_text(text)
    status, _, error = run("--limit", "1")
    assert status == 2 and re.search(f"{morph}.*: delete (it|{morph}) and run this again", error)
    shutil.rmtree(morph)
    assert run("--limit", "1")[0] == 0 and (morph / "pair.json").exists()


def test_a_manifest_may_be_named_by_another_path(run, pairs, monkeypatch):
    """Absolute and relative paths, of the manifest and in it, name the same images."""
    rows = [GOOD | {name: str(pairs / GOOD[name]) for name in ("image_0",)}]
    manifest = write(pairs / "list.csv", rows)
    assert run(source=manifest)[0] == 0
    monkeypatch.chdir(pairs)
    assert run(source=Path("list.csv"))[0] == 0


def test_options_on_which_no_frame_depends_may_change(run):
    assert run("--limit", "1")[0] == 0
    assert run("--limit", "1", "--max-batch-size", "3", "--metric", "lerp")[0] == 0


def test_settings_are_all_options_but_known_ones():
    """A new option of `interpolate` is a setting unless someone says that it is none."""
    args = parse(["batch", "pairs", "-o", "out"])
    names = {f"--{name.replace('_', '-')}" for name in vars(args)}
    left_out = {f"--{name.replace('_', '-')}" for name in batch.NOT_OF_FRAMES}
    assert names - left_out == set(batch.settings_of(args, "float32"))
    assert "--seed" in left_out and "--strength" not in left_out


def test_settings_hold_options_of_every_kind():
    """A size, a path with a weight, a path, a list and a number: as JSON gives them back."""
    given = ["--size", "512x256", "--lora", "a.safetensors:0.5", "--vae", "b.safetensors"]
    args = parse(["batch", "pairs", "-o", "out", *given, "--init", "slerp", "--strength", "0.5"])
    found = batch.settings_of(args, "float32")
    assert found["--size"] == [512, 256] and found["--lora"] == [f"{Path.cwd()}/a.safetensors:0.5"]
    assert found["--vae"] == f"{Path.cwd()}/b.safetensors" and found["--init"] == ["slerp"]


def test_names_that_the_terminal_cannot_show_do_no_harm(run, pairs, out, monkeypatch):
    """Some terminals do not take every character, such as those of Windows or of an old locale."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    rows = [GOOD | {"name": "\u65e5"}]
    assert run("--metric", "lerp", source=write(pairs / "list.csv", rows))[0] == 0
    sys.stdout.flush()
    assert b"\\u65e5" in written.getvalue()
    assert "\u65e5,lerp" in (out / "summary.csv").read_text(encoding="utf-8")


def test_a_protocol_of_another_size_is_refused_before_the_work(run):
    status, printed, error = run("--frames", "17", "--evaluate", "diffmorpher17")
    assert status == 2 and "needs 512 x 512" in error and "loading" not in printed


def test_missing_weights_end_the_run_before_the_work(run, out, monkeypatch):
    """They are no failure of one pair after the other."""

    def fail(*_, **__):
        raise OSError("no weights")

    monkeypatch.setattr("riemannian_diffusion.pipelines.retiming.lpips_distance", fail)
    status, _, error = run("--retime", "lpips")
    assert status == 2 and "no weights" in error and not (out / "failed").exists()


def test_size_crops_and_scales(run, out):
    assert run("--limit", "1", "--size", "32")[0] == run("--limit", "1", "--size", "32")[0] == 0
    with PIL.Image.open(out / "slerp" / "animation-a" / "00.png") as frame:
        assert frame.size == (32, 32)
    status, _, error = run("--limit", "1", "--size", "32x64")
    assert status == 2 and "was begun with --size 32x32, not with --size 32x64" in error


# ------------------------------------------------------------------------------ manifests


def write(path: Path, rows: list[dict]) -> Path:
    """A manifest in the format of its suffix."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        table.writeheader()
        table.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_manifest(run, pairs, out, suffix):
    rows = [
        {"image_0": "cat_0.png", "image_1": "cat_1.png", "prompt_0": 'a "cat",\nor two'},
        {"name": "dög", "image_0": "dog_1_0.png", "image_1": "cat_1.png", "frames": 4, "seed": 7},
    ]
    manifest = write(pairs / f"list{suffix}", rows)
    first, second = read_pairs(manifest, num_frames=3, seed=1)
    assert (first.name, first.prompts) == ("row00001", ('a "cat",\nor two', ""))
    assert (first.num_frames, first.seed) == (3, 1)
    assert (second.num_frames, second.seed) == (4, 7) and second.images[1] == pairs / "cat_1.png"
    assert run(source=manifest)[0] == 0
    assert len(list((out / "slerp" / "dög").glob("*.png"))) == 4
    assert report(out, "slerp", "row00001")["pair"]["prompt_0"] == 'a "cat",\nor two'
    rows[0]["prompt_1"] = "a dog"
    status, _, error = run(source=write(manifest, rows))
    assert status == 2 and "was made with prompt_1 '', but now it is 'a dog'" in error


GOOD = {"image_0": "cat_0.png", "image_1": "cat_1.png"}
BAD_ROWS = [
    (GOOD | {"image_1": "cow.png"}, r"has image_1 'cow.png', but .*cow.png does not exist"),
    (GOOD | {"image_1": ""}, "lacks image_1"),
    (GOOD | {"frames": "1"}, "has frames 1, which is no whole number from 2"),
    (GOOD | {"frames": "many"}, "has frames 'many'"),
    (GOOD | {"seed": -1}, "has seed '?-1'?, which is no whole number from 0"),
    (GOOD | {"name": "a/b"}, "has the name 'a/b', which cannot be a folder's"),
    (GOOD | {"name": ".."}, "has the name '..', which cannot be a folder's"),
    (GOOD | {"name": "x" * 300}, "has a name of more than 200 bytes"),
]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_bad_rows_are_named_before_the_work(run, pairs, suffix):
    rows = [GOOD | {"name": "first"}, *(row for row, _ in BAD_ROWS), GOOD | {"name": "first"}]
    status, printed, error = run(source=write(pairs / f"list{suffix}", rows))
    assert status == 2 and printed == ""
    shift = suffix == ".csv"  # its first line is the header
    for number, (_, problem) in enumerate(BAD_ROWS, 2):
        assert re.search(rf"row {number} \(line {number + shift}\) {problem}", error), problem
    assert "row 10" in error and "has the name first, as row 1" in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_0,image_1,promt_0\n", "has unknown column 'promt_0': the columns are name, image"),
        ("image_0\n", "lacks column 'image_1'"),
        ("image_0,image_1,image_1\n", "repeats column 'image_1'"),
        ("image_0,image_1\na,b,c\n", r"row 1 \(line 2\) has more cells than the header"),
        ("image_0,image_1\n", "has no rows"),
        ("\n", "must begin with a line of the columns' names, such as image_0,image_1"),
        ("cat_0.png,cat_1.png\n", "must begin with a line of the columns' names"),
        ("name;image_0;image_1\n", "has semicolons between its cells: use commas"),
        ("name\timage_0\timage_1\n", "has tabs between its cells: use commas"),
        ('image_0,image_1,prompt_0\na,b,"a cat\nc,d,e\n', "from line 2 on: .* Put quotes around"),
        ('image_0,image_1,prompt_0\na,b,"a "big" cat"\n', "from line 2 on: .* inside it twice"),
        (f"image_0,image_1\na,{'b' * 200_000}\n", "from line 2 on"),
        (f"image_0,image_1\ncat_0.png,{'b' * 300}\n", "has image_1 'b+', but .* does not exist"),
        ("image_0,image_1\ncat_0.png,animation\n", "animation is no file"),
        (f"image_0,image_1,seed\ncat_0.png,cat_1.png,{'9' * 5000}\n", "has seed '99+.*99', which"),
        ('{"image_0": "cat_0.png", "image_0": "b"}\n', "'image_0' is given twice"),
        (
            '{"image_0": "cat_0.png", "prompt_0": "\\ud800"}\n',
            r"has prompt_0 '\\ud800', which is no",
        ),
        ("[" * 100_000, "row 1 .* cannot be read"),
        ('[\n{"image_0": "a"}]', r"row 1 .* not JSON.*\(write one object on each line\)"),
        ('{"image_0": "a", "picture": 1}\n', r"has unknown columns 'picture' \(known: name,"),
        ('{"image_0": 3}\n[1]\n{', "which is no text; row 2 .* is no object .*; row 3 .* not JSON"),
        ('{"image_0": "cat_0.png", "image_1": "cat_1.png", "frames": true}', "has frames True"),
    ],
)
def test_bad_manifests(run, pairs, text, message):
    path = pairs / ("list.jsonl" if text[0] in "{[" else "list.csv")
    path.write_text(text)
    status, _, error = run(source=path)
    assert status == 2 and re.search(message, error), error


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("\ufeffimage_0,image_1,prompt_0\r\n\r\ncat_0.png,cat_1.png,a cat\r\n,,\r\n", "a cat"),
        ('image_0, image_1, prompt_0,\ncat_0.png, cat_1.png, "a, b",\n', "a, b"),
        ('{"image_0":"cat_0.png","image_1":"cat_1.png","prompt_0":"a\u2028b"}\r\n', "a\u2028b"),
    ],
)
def test_manifests_as_programs_write_them(pairs, text, prompts):
    path = pairs / ("list.jsonl" if text[0] == "{" else "list.csv")
    path.write_bytes(text.encode())
    (pair,) = read_pairs(path, num_frames=3, seed=0)
    assert (pair.name, pair.prompts[0]) == ("row00001", prompts)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("Cat", "cat", "cat, which some file systems take for Cat of row 1"),
        ("\u00e9", "e\u0301", "which some file systems take for"),
        ("a", "b.", "'b.', which cannot be a folder's"),
        ("a", "Nul", "'Nul', which cannot be a folder's"),
    ],
)
def test_names_differ_on_every_file_system(pairs, first, second, message):
    path = write(pairs / "list.csv", [GOOD | {"name": name} for name in (first, second)])
    with pytest.raises(ValueError, match=message):
        read_pairs(path, num_frames=3, seed=0)


def test_a_folder_of_any_images(pairs):
    """Every format is taken, hidden files are not, and what makes no pair is told."""
    image = PIL.Image.new("RGB", (4, 4))
    (pairs / ".cache").mkdir()
    (pairs / "x_0.png").mkdir()
    for name in ("a_0.bmp", "a_1.tif", ".cache/b_0.png", "._cat_0.png", "c_2.png"):
        image.save(pairs / name)
    told: list[str] = []
    found = read_pairs(pairs, num_frames=3, seed=0, tell=told.append)
    assert [pair.name for pair in found] == ["a", "animation-a", "cat", "dog_1"]
    (sentence,) = told
    assert sentence.endswith("as their names do not end in _0 or _1: c_2.png, readme.png.")
    for end in (0, 1):
        image.save(pairs / f"CAT_{end}.png")
    with pytest.raises(ValueError, match="some file systems take for CAT of .*: rename its images"):
        read_pairs(pairs, num_frames=3, seed=0)


def test_many_bad_rows_are_counted(pairs):
    path = write(pairs / "list.csv", [{"image_0": "a", "image_1": "b", "seed": "x"}] * 20)
    with pytest.raises(ValueError, match=r"row 4 .* and 50 more problems"):
        read_pairs(path, num_frames=3, seed=0)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("lone", r"pair cat has only .*cat_0.png"),
        ("empty", r"has no pairs of images: name them <name>_0.png"),
        ("double", r"are both image 0 of the pair cat"),
        ("missing", r"does not exist: give a folder, a CSV or a JSONL file"),
        ("text", r"must be a folder, or end in .csv or .jsonl"),
    ],
)
def test_bad_folders(run, pairs, case, message):
    source = pairs
    if case == "lone":
        (pairs / "cat_1.png").unlink()
    elif case == "empty":
        shutil.rmtree(pairs)
        pairs.mkdir()
    elif case == "double":
        shutil.copy(pairs / "cat_0.png", pairs / "cat_0.jpg")
    else:
        source = pairs / ("readme.png" if case == "text" else "nothing")
    status, printed, error = run(source=source)
    assert status == 2 and re.search(message, error) and printed == ""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--limit", "0"], "--limit"),
        (["--frames", "1"], "--frames must be at least 2, but got 1"),
        (["--evaluate", "saito11"], "saito11 needs 11 frames"),
        (["--space", "clean", "--metric", "nao"], "nao needs --space noise"),
    ],
)
def test_bad_options_are_refused(run, more, message):
    status, _, error = run(*more)
    assert status == 2 and message in error


def test_the_description_names_all_columns(capsys):
    with pytest.raises(SystemExit):
        main(["batch", "--help"])
    shown = capsys.readouterr().out
    assert all(column in shown for column in COLUMNS)


def test_order_and_time():
    assert [in_order(range(5), rank, 2)[0] for rank in (0, 1)] == [0, 2]
    assert all(sorted(in_order(range(5), rank, 3)) == [0, 1, 2, 3, 4] for rank in range(3))
    assert [as_time(s) for s in (7, 89, 3600, 12000)] == ["7 s", "1 min", "1 h 0 min", "3 h 20 min"]


def test_a_process_of_a_launch_has_its_place(monkeypatch):
    assert batch.place_of_process("cpu") == (0, 1, "cpu")
    code = "from riemannian_diffusion.cli.batch import place_of_process as p; print(*p(None))"
    launch = [sys.executable, "-c", code]
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(launch, env=os.environ | place, capture_output=True, text=True)
    assert done.stdout.split()[:2] == ["0", "1"], done.stderr


def test_an_evaluation_at_the_end(run, out, monkeypatch):
    """It measures each method once, also if several processes come to the end."""
    calls = []

    def measure(args: argparse.Namespace):
        calls.append((args.directory, args.protocol))
        names = sorted(path.name for path in args.directory.iterdir())
        args.output.write_text(json.dumps({"sequences": names}))

    monkeypatch.setattr("riemannian_diffusion.cli.commands.run_evaluate", measure)
    for _ in range(2):
        assert run("--evaluate", "any")[0] == 0
    assert calls == [(out / method, "any") for method in METHODS]


# ------------------------------------------------------------ processes with the shipped model


@pytest.fixture(scope="module")
def scene_manifest(tmp_path_factory):
    """Six pairs of scenes that the shipped model was not trained on."""
    return scenes.write_pairs(tmp_path_factory.mktemp("scenes"), 6)


SHIPPED = ["--frames", "5", "--steps", "10", "--max-evals", "5", "--device", "cpu"]
SHIPPED += ["--metric", "slerp", "--metric", "tangent_normal"]


def command(manifest, output, launch=("-m", "riemannian_diffusion")):
    return [sys.executable, *launch, "batch", str(manifest), "-o", str(output), *SHIPPED]


def frames_of(output: Path) -> dict[str, bytes]:
    """Everything but reports, which have times, and tables of them."""
    return {k: v for k, v in results(output).items() if k.endswith(".png")}


@pytest.fixture(scope="module")
def undisturbed(scene_manifest, tmp_path_factory):
    """The frames of one process that nobody disturbs."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    subprocess.run(command(scene_manifest, output), check=True, timeout=2000)
    return frames_of(output)


@pytest.mark.slow
@pytest.mark.parametrize("num", [2, 4])
def test_killed_processes_make_the_same_frames(scene_manifest, undisturbed, tmp_path, num):
    output, random_number = tmp_path / "out", random.Random(num)

    def start():
        return subprocess.Popen(command(scene_manifest, output), stdout=subprocess.DEVNULL)

    running, num_killed = [start() for _ in range(num)], 0
    deadline, next_kill = time.monotonic() + 3000, 1
    while any(process.poll() is None for process in running):
        assert time.monotonic() < deadline
        time.sleep(random_number.uniform(0.1, 2.0))
        made = len(list(output.glob("*/*/pair.json")))
        rank = random_number.randrange(num)
        if made >= next_kill and num_killed < 2 * num and running[rank].poll() is None:
            os.kill(running[rank].pid, signal.SIGKILL)
            running[rank].wait()
            running[rank] = start()
            num_killed, next_kill = num_killed + 1, made + 1
    assert [process.returncode for process in running] == [0] * num and num_killed >= 2
    assert len(undisturbed) == 6 * 2 * 7 and frames_of(output) == undisturbed
    assert not list(output.glob(".*"))


@pytest.mark.slow
def test_accelerate_launch(scene_manifest, undisturbed, tmp_path):
    """One of the two processes that it starts is killed, and the same command resumes."""
    output = tmp_path / "out"
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch = command(scene_manifest, output, (*launch, "-m", "riemannian_diffusion"))
    first = subprocess.Popen(launch, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 2000
    while len(list(output.glob("*/*/pair.json"))) < 3:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    listed = subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True)
    workers = [int(pid) for pid in listed.stdout.split()]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    assert first.wait(600) != 0
    made = len(list(output.glob("*/*/pair.json")))
    assert 3 <= made < 12
    done = subprocess.run(launch, check=True, timeout=2000, capture_output=True, text=True)
    assert "6 of 6 pairs done" in done.stdout and done.stdout.count("6 pairs by") == 1
    assert frames_of(output) == undisturbed and not list(output.glob(".*"))
