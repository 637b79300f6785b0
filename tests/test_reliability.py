"""Bad input is refused with a message, files are whole or absent, and seeds fix the results."""

from __future__ import annotations

import ast
import errno
import json
import math
import os
import resource
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from models import FAST, make

import riemannian_diffusion
from riemannian_diffusion.cli import main
from riemannian_diffusion.media import open_image, write_frames
from riemannian_diffusion.pipelines import (
    AutoGeodesicInterpolationPipeline,
    GeodesicInterpolationPipeline,
)

NAN, INF = math.nan, math.inf
A, B = torch.full((3, 16, 16), 0.2), torch.linspace(0, 1, 768).view(3, 16, 16)


@pytest.fixture(scope="module")
def pipe():
    return make("sd")


# The command line


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.fixture(scope="module")
def model(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "good"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def place(model, tmp_path, monkeypatch):
    """A working folder with good images, bad images and a copy of the model."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "model")
    noise = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    for i in range(2):
        PIL.Image.fromarray(noise[i]).save(f"{i}.png")
    whole = Path("0.png").read_bytes()
    Path("half.png").write_bytes(whole[: len(whole) // 2])
    Path("head.png").write_bytes(whole[:20])
    Path("wrong.png").write_bytes(whole[:60] + bytes([whole[60] ^ 255]) + whole[61:])
    Path("empty.png").write_bytes(b"")
    Path("text.png").write_text("no image")
    size = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    ends = _chunk(b"IHDR", size), _chunk(b"IDAT", b""), _chunk(b"IEND", b"")
    Path("bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(ends))
    head = b"GIF89a" + struct.pack("<HHBBB", 65000, 65000, 0, 0, 0)
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 65000, 65000, 0) + b"\x02\x02\x44\x01\x00;"
    Path("bomb.gif").write_bytes(head + frame)
    for name in ("folder.png", "nothing", "report.json", "folder.gif"):
        Path(name).mkdir()
    return tmp_path


COMMAND = ["interpolate", "--metric", "lerp", "--frames", "3", "--steps", "4", "--device", "cpu"]
COMMAND += ["--strength", "0.5", "--model", "model", "-o", "out.gif"]
UNREADABLE = "cannot be read as an image"


def run(*arguments: str) -> int:
    images = [] if arguments and not arguments[0].startswith("-") else ["0.png", "1.png"]
    try:
        return main([*COMMAND, *images, *arguments])
    except SystemExit as stop:
        return stop.code


def is_refused(message: str, capfd, *arguments: str, status: int = 2) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    capfd.readouterr()
    assert run(*arguments) == status
    lines = [line for line in capfd.readouterr().err.splitlines() if "%|" not in line]
    lines = [line for line in lines if line.strip() and "warning: The model does not" not in line]
    assert len(lines) == 1 and message in lines[0], lines
    assert "Traceback" not in lines[0]
    after = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    kept = {path for path in after.keys() - before.keys() if path.parts[0] == "out-kept"}
    assert {path: time for path, time in after.items() if path not in kept} == before
    assert bool(kept) == ("--keep out-kept" in lines[0])  # finished work is kept and announced


BAD_COMMANDS = [
    (["half.png", "1.png"], f"half.png {UNREADABLE}"),
    (["1.png", "head.png"], f"head.png {UNREADABLE}"),
    (["wrong.png", "1.png"], f"wrong.png {UNREADABLE}"),
    (["empty.png", "1.png"], f"empty.png {UNREADABLE}"),
    (["text.png", "1.png"], f"text.png {UNREADABLE}"),
    (["bomb.png", "1.png"], f"bomb.png {UNREADABLE}"),
    (["bomb.gif", "1.png"], f"bomb.gif {UNREADABLE}"),
    (["folder.png", "1.png"], f"folder.png {UNREADABLE}"),
    (["--analogy", "half.png"], f"half.png {UNREADABLE}"),
    (["nothing"], "the folder nothing holds no images"),
    (["--model", "owner/missing"], "owner/missing"),
    (["--model", "./missing"], "--model ./missing cannot be loaded"),
    (["--model", "nothing"], "--model nothing cannot be loaded"),
    (["--model", "text.png"], "--model text.png cannot be loaded"),
    (["--model", ""], "model_index.json"),
    (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
    (["--device", "cuda:9"], "--device cuda:9 cannot be used"),
    (["-o", "/proc/out.gif"], "the folder /proc of --output cannot be written to"),
    (["-o", "text.png/out.gif"], "the folder text.png of --output does not exist"),
    (["-o", "/dev/full"], "/dev/full exists: choose another --output"),
    (["-o", "/dev/full", "--force"], "/dev/full exists and is of another kind"),
    (["-o", "report.gif", "--force"], "report.json exists and is of another kind"),
    (["-o", "folder.gif", "--force"], "folder.gif exists and is of another kind"),
    (["-o", ""], "--output must name a file or a folder"),
    (["-o", "a" * 300 + ".gif"], "riemannian-diffusion: error: "),
    (["--seed", "9" * 30], "--seed: must be a whole number from 0 to 2^64 - 1"),
    (["--frames", str(10**13)], "riemannian-diffusion: error: "),
    (["--size", "1000000"], "must be like 512 or 768x512, but got '1000000'"),
    (["--fps", "1e-9"], "--fps must be in [0.01, 1000], but got 1e-09"),
    (["--strength", "nan"], "--strength must be a finite number, but got nan"),
    (["--guidance", "inf"], "--guidance must be a finite number, but got inf"),
    (
        ["--prompt", "a", "--prompt", "b", "--prompt", "c"],
        "--prompt must be given once, or once for each of 2 images",
    ),
    (["--max-batch-size", "0"], "--max-batch-size must be a whole number of at least 1"),
    (["--size", "15"], "Height and width must be multiples of 2, but got (15, 15)"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD_COMMANDS, ids=[" ".join(b[0])[:40] for b in BAD_COMMANDS]
)
def test_a_bad_command_gives_one_line(place, capfd, arguments, message):
    is_refused(message, capfd, *arguments)


def _rewrite(path: str, **entries) -> None:
    config = json.loads(Path(path).read_text()) | entries
    Path(path).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def _cut(path: str, size: int) -> None:
    file = next(Path(path).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:size])


def _with_code() -> None:
    _rewrite("model/model_index.json", unet=["code", "Denoiser"])
    Path("model/unet/code.py").write_text("open('ran', 'w')\nclass Denoiser: pass\n")


BROKEN_MODELS = {
    "cut network": (lambda: _cut("model/unet", 1000), "--model model cannot be loaded"),
    "cut encoder": (lambda: _cut("model/text_encoder", 20), "--model model cannot be loaded"),
    "empty weights": (lambda: _cut("model/vae", 0), "--model model cannot be loaded"),
    "no weights": (lambda: shutil.rmtree("model/vae"), "--model model cannot be loaded"),
    "half an index": (
        lambda: Path("model/model_index.json").write_text("{"),
        "--model model cannot be loaded",
    ),
    "unknown kind": (
        lambda: _rewrite("model/model_index.json", _class_name="KandinskyPipeline"),
        "model is a KandinskyPipeline, which cannot be loaded: it has several stages",
    ),
    "no kind": (
        lambda: _rewrite("model/model_index.json", _class_name=None),
        "model names no pipeline",
    ),
    "no network": (
        lambda: _rewrite("model/model_index.json", unet=None),
        "--model model cannot be loaded",
    ),
    "a function for a network": (
        lambda: _rewrite("model/model_index.json", unet=["os", "system"]),
        "--model model cannot be loaded",
    ),
    "code of its own": (_with_code, "--model model cannot be loaded"),
    "weights of another size": (
        lambda: _rewrite("model/unet/config.json", block_out_channels=[16, 32]),
        "--model model cannot be loaded",
    ),
}


@pytest.mark.parametrize("case", BROKEN_MODELS)
def test_a_broken_model_gives_one_line(place, capfd, case):
    spoil, message = BROKEN_MODELS[case]
    spoil()
    is_refused(message, capfd)
    assert not Path("ran").exists()


def _as_pickles(folder: Path) -> None:
    """Change the weights of a model to pickles, as in old repositories."""
    from safetensors.torch import load_file

    for file in folder.rglob("*.safetensors"):
        name = "pytorch_model" if file.stem == "model" else file.stem
        torch.save(load_file(file), file.with_name(f"{name}.bin"))
        file.unlink()


def test_weights_are_read_only_from_safetensors(place, capfd):
    _as_pickles(Path("model"))
    is_refused("--model model cannot be loaded", capfd)
    with pytest.raises(OSError, match="safetensors"):
        AutoGeodesicInterpolationPipeline.from_pretrained("model")
    with pytest.raises(OSError, match="safetensors"):
        GeodesicInterpolationPipeline.from_pretrained("model")
    GeodesicInterpolationPipeline.from_pretrained("model", use_safetensors=None)


def test_the_package_runs_no_code_that_it_reads():
    """The package has no pickles, no code from strings and no remote code."""
    found = []
    for file in Path(riemannian_diffusion.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Call):
                names = [ast.unparse(node.func), *(word.arg or "" for word in node.keywords)]
            bad = {"eval", "exec", "compile", "torch.load", "trust_remote_code", "np.load"}
            loads = [n for n in names if n.split(".")[0] in ("pickle", "marshal", "shelve")]
            found += [f"{file.name}: {name}" for name in names if name in bad or name in loads]
    assert not found


def test_sixteen_bits_are_not_clipped(tmp_path):
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    PIL.Image.fromarray(grey).save(tmp_path / "grey.png")
    image = np.asarray(open_image(tmp_path / "grey.png", None))
    assert np.array_equal(image, np.repeat((grey // 257)[..., None], 3, 2))


# What is written is whole


@pytest.mark.parametrize(
    ("failure", "message", "status"),
    [
        (KeyboardInterrupt(), "riemannian-diffusion: interrupted", 130),
        (MemoryError(), "error: out of memory", 2),
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            "error: out of memory: CUDA out of memory.",
            2,
        ),
    ],
)
def test_an_interrupted_morph_gives_one_line(place, capfd, monkeypatch, failure, message, status):
    def fails(*args, **options):
        raise failure

    monkeypatch.setattr(GeodesicInterpolationPipeline, "solve", fails)
    is_refused(message, capfd, status=status)


@pytest.mark.parametrize("output", ["out.gif", "out.png", "out.mp4", "out"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_write_that_fails_keeps_the_old_file(place, capfd, monkeypatch, output, failure):
    assert run("-o", output) == 0
    save, convert, calls = PIL.Image.Image.save, PIL.Image.Image.convert, []

    def fails(image, path, *args, **options):
        calls.append(path)
        if len(calls) == 2 or output != "out":
            Path(path).write_bytes(b"half")
            raise failure
        save(image, path, *args, **options)

    def fails_in_a_video(image, *args, **options):
        calls.append(image)
        if len(calls) > 5:  # by now the keyframes are open and some frames are written
            raise failure
        return convert(image, *args, **options)

    monkeypatch.setattr(PIL.Image.Image, "save", fails)
    if output == "out.mp4":
        monkeypatch.setattr(PIL.Image.Image, "convert", fails_in_a_video)
    status, message = (130, "interrupted") if not failure.args else (2, "No space left")
    is_refused(message, capfd, "-o", output, "--force", status=status)
    assert len(calls) > 0


def test_a_video_cut_short_by_a_full_disk_is_refused(tmp_path, capfd):
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
    frames = [PIL.Image.fromarray(one) for one in noise]
    (tmp_path / "x.mp4").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError):
            write_frames(frames, tmp_path / "x.mp4", 12.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]
    assert (tmp_path / "x.mp4").read_text() == "old"


def test_a_link_is_replaced_and_its_target_is_kept(place):
    os.symlink("/dev/full", "out.gif")
    assert run("--force") == 0
    assert not Path("out.gif").is_symlink() and _num_frames(Path("out.gif")) == 3


def test_files_of_a_killed_process_with_this_number_do_no_harm(place):
    remains = Path(f".{os.getpid()}-out")
    remains.mkdir()
    (remains / "frame_0099.png").write_bytes(b"half")
    assert run("-o", "out") == 0
    assert not remains.exists() and len(list(Path("out").iterdir())) == 3


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from PIL import Image
from riemannian_diffusion import cli, media
from riemannian_diffusion.cli import commands
from riemannian_diffusion.pipelines import AutoGeodesicInterpolationPipeline

random.seed(0)
noise = np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), dtype=np.uint8)
frames = [Image.fromarray(one) for one in noise]
command = sys.argv[1:]
for trial in range(12):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.dup2(2, 1)
        for i in range(10**6):
            if trial % 3:
                for output in ("many", "many.gif", "many.png"):
                    media.write_frames(frames[: 9 - 4 * (i % 2)], Path(output), 12.0)
            else:
                for output in ("out", "out.gif"):
                    more = ["--frames", str(5 + 4 * (i % 2)), "--force", "-o", output]
                    cli.main(command + more)
    time.sleep(random.uniform(0.3, 1.5))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("killed", flush=True)
    sys.stdin.readline()
"""


def _num_frames(path: Path) -> int:
    with PIL.Image.open(path) as image:
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            image.load()
        return i + 1


@pytest.mark.slow
def test_a_kill_leaves_whole_files(place):
    """Twelve processes are killed at random moments while they overwrite files."""
    for output in ("out", "out.gif"):
        assert run("-o", output, "--frames", "5", "--force") == 0
    noise = np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), dtype=np.uint8)
    for output in ("many", "many.gif", "many.png"):
        write_frames([PIL.Image.fromarray(one) for one in noise], Path(output), 12.0)
    command = [sys.executable, "-c", KILLED, *COMMAND, "0.png", "1.png"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as driver:
        for _ in range(12):
            assert driver.stdout.readline() == "killed\n"
            for name in ("out", "many"):
                frames = sorted(Path(name).iterdir())
                assert len(frames) in range(5, 10)
                assert [f.name for f in frames] == [
                    f"frame_{i:04d}.png" for i in range(len(frames))
                ]
                assert all(_num_frames(frame) == 1 for frame in frames)
                assert _num_frames(Path(f"{name}.gif")) in (5, 9)
            assert _num_frames(Path("many.png")) == 1
            assert json.loads(Path("out.json").read_text())["num_frames"] in (5, 9)
            driver.stdin.write("\n")
            driver.stdin.flush()
        assert driver.wait(60) == 0
    known = {"model", "out", "out.gif", "out.json", "many", "many.gif", "many.png", "report.json"}
    known |= {path.name for path in Path().glob("*.png")} | {"nothing", "bomb.gif", "folder.gif"}
    assert all(path.name in known or path.name[0] == "." for path in Path().iterdir())
    assert run("-o", "out", "--force") == 0 and len(list(Path("out").iterdir())) == 3


# A seed decides

RUNS = {
    "tangent_normal": {"metric": "tangent_normal"},
    "stein": {"metric": "stein", "space": "clean"},
    "density": {"metric": "density", "negative_prompt": "c"},
    "guided": {"metric": "score_jacobian", "guidance_scale": 2.0, "negative_prompt": "c"},
    "two morphs": {"metric": "euclidean", "image": [[A, B], [B, A]]},
}


@pytest.mark.parametrize("case", RUNS)
def test_a_seed_gives_the_same_frames_in_any_batch_size(pipe, case):
    def frames(size):
        options = FAST | {"num_frames": 3, "num_inference_steps": 4, "max_evals": 2}
        options |= {"image": [A, B], "prompt": "a", **RUNS[case]}
        seed = torch.Generator().manual_seed(5)
        out = pipe(**options, generator=seed, max_batch_size=size, output_type="pt")
        return torch.stack(list(out.frames))

    first = frames(8)
    assert torch.equal(frames(8), first)
    for size in (1, 2, None):
        torch.testing.assert_close(frames(size), first, atol=1e-4, rtol=0)
