"""Bad input of every kind is refused in words; files are whole or not there; seeds decide."""

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
from models import FAST, make, randn, scheduler

import riemannian_diffusion
from riemannian_diffusion import (
    Adam,
    DiffusionScore,
    EuclideanMetric,
    GaussianMixtureScore,
    ManifoldGuidedScore,
    PathLBFGS,
    ScoreJacobianMetric,
    SharedNoiseScore,
    SteinScoreMetric,
    TangentNormalMetric,
    analogy,
    ddim_step,
    exponential_map,
    extrapolate,
    frechet_mean,
    geodesic,
    geodesics,
    intrinsic_dimension,
    invert,
    length,
    lerp,
    logarithm_map,
    normal_curvature,
    parallel_transport,
    refine,
    resample,
    roadmap,
    sample,
    sdedit,
    second_fundamental_form,
    slerp,
    split_tangent,
    tangent_spectrum,
)
from riemannian_diffusion.baselines import density_geodesic, nao, noise_diffusion
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


# The functions' arguments

MEANS = randn(6, 3)
SCORE, FLAT = GaussianMixtureScore(MEANS, 0.5), EuclideanMetric()
METRIC, P, Q = TangentNormalMetric(SCORE), MEANS[0], MEANS[1]
PATH = lerp(P, Q, 5)
NET, SCHEDULER = torch.nn.Linear(1, 1), scheduler()


def levels(timestep):
    return SCORE


def same(x):
    return x


BAD_USES = [
    (lambda: geodesic(3, P, Q), "`metric` must be a Metric or a sequence of them, but got 3"),
    (lambda: geodesic([], P, Q), "`metric` must be a Metric"),
    (lambda: geodesic(FLAT, [0.0], [1.0]), "`x0` must be a floating-point tensor.* got list"),
    (lambda: geodesic(FLAT, P, Q.numpy()), "`x1` must be a floating-point tensor.* got ndarray"),
    (lambda: geodesic(FLAT, P[:0], Q[:0]), r"points of one shape, but got \(0,\)"),
    (lambda: geodesic(FLAT, P, Q, num_points=2.5), "`num_points` must be a whole number"),
    (lambda: geodesic(FLAT, P, Q, max_evals=INF), "`max_evals` must be a whole .* got inf"),
    (lambda: geodesic(FLAT, P, Q, rtol="x"), "`rtol` must be a finite number, but got 'x'"),
    (lambda: geodesic(FLAT, P, Q, solver=Adam), "`solver` must be a Solver, but got the class"),
    (lambda: geodesic(FLAT, P, Q, callback=3), "`callback` must be a function, but got int"),
    (lambda: geodesic(FLAT, P, Q, init=lambda *_: None), "`init` must return a path"),
    (lambda: geodesic(METRIC, P[:2], Q[:2]), r"`x` must be \(K, 3"),
    (lambda: geodesic(FLAT, P, Q)("x"), r"`u` must be numbers in \[0, 1\], but got 'x'"),
    (lambda: geodesic(FLAT, P, Q)(NAN), r"`u` must lie in \[0, 1\].* got nan"),
    (
        lambda: geodesic(FLAT, P, Q)(torch.zeros(2, 2)),
        r"`u` must be one number or \(U,\), but got \(2, 2\)",
    ),
    (lambda: geodesics(FLAT, [P], [Q]), "`x0` must be a floating-point tensor.* got list"),
    (lambda: geodesics(FLAT, MEANS[:0], MEANS[:0]), r"must be points \(P, \*shape\)"),
    (lambda: exponential_map(3, P, Q), "`metric` must be a Metric, but got int"),
    (lambda: exponential_map(FLAT, P, Q * NAN), "`v` must be .* has NaN or infinite ones"),
    (lambda: exponential_map(FLAT, P, Q, num_steps=1.5), "`num_steps` must be a whole number"),
    (lambda: exponential_map(FLAT, P, Q, rtol=-1), "`rtol` must not be negative, but got -1"),
    (lambda: logarithm_map(FLAT, [0.0], [1.0]), "`x` must be a floating-point tensor"),
    (lambda: logarithm_map(None, P, Q), "`metric` must be a Metric"),
    (lambda: parallel_transport(FLAT, PATH[:0], Q), r"`path` must be finite points .* \(0, 3\)"),
    (lambda: parallel_transport(FLAT, PATH, None), "`v` must be .* but got NoneType"),
    (lambda: frechet_mean(FLAT, [P, Q]), "`points` must be .* but got list"),
    (lambda: frechet_mean(FLAT, MEANS, [1.0] * 6), "`weights` must be .* but got list"),
    (lambda: frechet_mean(FLAT, MEANS, torch.full((6,), INF)), "`weights` must be .* infinite"),
    (lambda: frechet_mean(FLAT, MEANS, init="lerp"), "`init` must be .* but got str"),
    (lambda: frechet_mean(FLAT, MEANS, max_steps=0), "`max_steps` must be a whole number"),
    (
        lambda: extrapolate(PATH, "x", project=SCORE.denoise),
        "`distance` must be positive and .* got x",
    ),
    (lambda: extrapolate(PATH, 1.0, project=3), "`project` must be a function"),
    (
        lambda: extrapolate(PATH, 1.0, project=lambda x: x * NAN),
        r"`project` must return finite points \(1, 3\)",
    ),
    (
        lambda: extrapolate(PATH, 1.0, project=SCORE.denoise, max_residual=NAN),
        "`max_residual` must be a finite",
    ),
    (lambda: analogy(3, PATH, Q), "`score` must be a ScoreModel, but got int"),
    (lambda: analogy(SCORE, PATH, None), "`start` must be .* but got NoneType"),
    (lambda: analogy(SCORE, PATH, Q, bridge=3), "`bridge` must be .* but got int"),
    (lambda: tangent_spectrum(3, MEANS, 1), "`score` must be a ScoreModel, but got int"),
    (lambda: tangent_spectrum(SCORE, MEANS, 1.5), r"`rank` must be in \[1, 3\], but got 1.5"),
    (lambda: tangent_spectrum(SCORE, MEANS[:0], 1), r"points \(K, \*shape\), but it is \(0, 3\)"),
    (lambda: tangent_spectrum(SCORE, MEANS, 1, max_iterations=0), "`max_iterations` must be"),
    (lambda: tangent_spectrum(SCORE, MEANS, 1, generator=3), "`generator` must be a Generator"),
    (lambda: intrinsic_dimension(SCORE, None), "`x` must be .* but got NoneType"),
    (lambda: intrinsic_dimension(SCORE, MEANS, max_dim=1.5), r"`max_dim` must be in \[1, 3\]"),
    (lambda: split_tangent(SCORE, MEANS, MEANS[:2]), r"`v` must be tangents .* got \(2, 3\)"),
    (lambda: second_fundamental_form(SCORE, MEANS, MEANS, MEANS, step=0), "`step` must be posi"),
    (lambda: normal_curvature(SCORE, MEANS, MEANS, step="x"), "`step` must be a finite number"),
    (lambda: invert(levels, MEANS, None), "`timesteps` must be one or more .* but got None"),
    (lambda: invert(levels, MEANS, ["a"]), r"`timesteps` must be finite numbers.*\['a'\]"),
    (lambda: invert(levels, MEANS, [NAN]), "`timesteps` must be finite numbers"),
    (lambda: invert(3, MEANS, [1]), "`model` must be a function, but got int"),
    (lambda: invert(lambda t: 3, MEANS, [1]), "`model` must give a ScoreModel for timestep 1"),
    (lambda: invert(levels, MEANS * NAN, [1]), "`x` must be .* has NaN or infinite ones"),
    (lambda: invert(levels, MEANS, [1], final_abar="x"), r"must be in \(0, 1\], but got x"),
    (lambda: sample(levels, [0.0], [1]), "`x` must be .* but got list"),
    (lambda: sdedit(levels, MEANS, [1], generator=3), "`generator` must be a Generator"),
    (lambda: ddim_step(MEANS, MEANS[:2], 0.5, 0.9), r"one shape, but got \(6, 3\) and \(2, 3\)"),
    (lambda: resample([P, Q], 3), "`path` must be .* but got list"),
    (lambda: resample(PATH * NAN, 3), "`path` must be .* has NaN or infinite ones"),
    (lambda: resample(torch.ones(3), 3), r"`path` must be at least 2 points .* got \(3,\)"),
    (lambda: resample(PATH, 3, metric=3), "`metric` must be a Metric, but got int"),
    (lambda: slerp(P.long(), Q.long(), 3), "`x0` must be .* but got torch.int64"),
    (lambda: lerp(P, None, 3), "`x1` must be .* but got NoneType"),
    (lambda: refine(PATH, 0), "`factor` must be a whole number of at least 1, but got 0"),
    (lambda: length([P]), "`path` must be .* but got list"),
    (lambda: roadmap(same, P, Q), "`draws` must be a Sequence, but got function"),
    (lambda: roadmap([3], P, Q), "`draws` must be a function, but got int"),
    (lambda: roadmap([same], P * NAN, Q), "`x0` must be .* has NaN or infinite ones"),
    (lambda: roadmap([same], P, Q, power=NAN), "`power` must be a finite number, but got nan"),
    (lambda: roadmap([same], P, Q, max_samples=1.5), "`max_samples` must be a whole number"),
    (lambda: roadmap([lambda x: None], P, Q), "`draws` must return a tensor"),
    (lambda: roadmap([same], P, Q, metric=3), "`metric` must be a Metric, but got int"),
    (lambda: SteinScoreMetric(3), "`score` must be a ScoreModel, but got int"),
    (lambda: SteinScoreMetric(SCORE, lam=INF), "`lam` must be a finite number, but got inf"),
    (lambda: ScoreJacobianMetric(METRIC), "`score` must be a ScoreModel, but got Tangent"),
    (lambda: TangentNormalMetric(SCORE, normal_weight="x"), "`normal_weight` must be a finite"),
    (lambda: GaussianMixtureScore([[0.0]], 1.0), "`means` must be .* but got list"),
    (lambda: GaussianMixtureScore(MEANS * NAN, 1.0), "`means` must be .* NaN"),
    (lambda: GaussianMixtureScore(MEANS, NAN), "`sigma` must be a finite number, but got nan"),
    (lambda: GaussianMixtureScore(MEANS, 1.0, std="x"), "`std` must be a finite number"),
    (lambda: GaussianMixtureScore(MEANS, 1.0, weights=[1.0] * 6), "`weights` must be a Tensor"),
    (
        lambda: GaussianMixtureScore(MEANS, 1.0, weights=torch.full((6,), NAN)),
        r"`weights` must be \(6,\), non-negative and not all 0",
    ),
    (lambda: SCORE.jvp(MEANS, MEANS[:2]), r"but got \(6, 3\) and \(2, 3\)"),
    (lambda: SCORE([[0.0]]), "`x` must be a Tensor, but got list"),
    (lambda: DiffusionScore(3, SCHEDULER, 5), "`model` must be a Module, but got int"),
    (lambda: DiffusionScore(NET, None, 5), "`scheduler` must have `alphas_cumprod`"),
    (lambda: DiffusionScore(NET, SCHEDULER, NAN), "`timestep` must be a finite number"),
    (lambda: DiffusionScore(NET, SCHEDULER, "x"), "`timestep` must be a finite number.* 'x'"),
    (lambda: DiffusionScore(NET, SCHEDULER, 5, guidance_scale=NAN), "`guidance_scale` must be"),
    (lambda: DiffusionScore(NET, SCHEDULER, 5, max_batch_size=1.5), "`max_batch_size` must be"),
    (
        lambda: DiffusionScore(NET, SCHEDULER, 5, encoder_hidden_states="x"),
        "`encoder_hidden_states` must be .* but got str",
    ),
    (lambda: SharedNoiseScore(3, P), "`score` must be a ScoreModel, but got int"),
    (lambda: SharedNoiseScore(SCORE, None), "`noise` must be .* but got NoneType"),
    (lambda: SharedNoiseScore(SCORE, MEANS[:0]), r"`noise` must have values, but is \(0, 3\)"),
    (lambda: ManifoldGuidedScore(3, SCORE, 2.0), "`conditional` must be a ScoreModel"),
    (lambda: ManifoldGuidedScore(SCORE, SCORE, INF), "`guidance_scale` must be a finite number"),
    (lambda: ManifoldGuidedScore(SCORE, SCORE, 2.0, damping="x"), "`damping` must be a finite"),
    (lambda: PathLBFGS(history_size=1.5), "`history_size` must be a whole number .* got 1.5"),
    (lambda: Adam(lr="x"), "`lr` must be a finite number, but got 'x'"),
    (lambda: nao(P, Q, 3, max_steps=1.5), "`max_steps` must be a whole number .* got 1.5"),
    (
        lambda: noise_diffusion(P, Q, 3, clean0=None, clean1=Q, alpha=0.5),
        "`clean0` must be .* but got NoneType",
    ),
    (lambda: density_geodesic(levels, 1, P, Q, 3, exponent="x"), "`exponent` must be a finite"),
]


@pytest.mark.parametrize(("use", "message"), BAD_USES)
def test_a_bad_use_of_a_function(use, message):
    with pytest.raises(ValueError, match=message):
        use()


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
    """A working directory with images, good and bad, and a copy of the model."""
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
    lines = [line for line in lines if line.strip()]
    assert len(lines) == 1 and message in lines[0], lines
    assert "Traceback" not in lines[0]
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


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
    (["--seed", "9" * 30], "riemannian-diffusion: error: "),
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
def test_a_bad_command_is_one_line(place, capfd, arguments, message):
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
        "model is a KandinskyPipeline; geodesics are there for models of StableDiffusionPipeline",
    ),
    "no kind": (lambda: _rewrite("model/model_index.json", _class_name=None), "model is a None"),
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
def test_a_broken_model_is_one_line(place, capfd, case):
    spoil, message = BROKEN_MODELS[case]
    spoil()
    is_refused(message, capfd)
    assert not Path("ran").exists()


def _as_pickles(folder: Path) -> None:
    """The weights of a model as pickles, as old repositories have them."""
    from safetensors.torch import load_file

    for file in folder.rglob("*.safetensors"):
        name = "pytorch_model" if file.stem == "model" else file.stem
        torch.save(load_file(file), file.with_name(f"{name}.bin"))
        file.unlink()


def test_weights_come_from_safetensors_alone(place, capfd):
    _as_pickles(Path("model"))
    is_refused("--model model cannot be loaded", capfd)
    with pytest.raises(OSError, match="safetensors"):
        AutoGeodesicInterpolationPipeline.from_pretrained("model")
    with pytest.raises(OSError, match="safetensors"):
        GeodesicInterpolationPipeline.from_pretrained("model")
    GeodesicInterpolationPipeline.from_pretrained("model", use_safetensors=None)


def test_the_package_runs_nothing_that_it_reads():
    """No pickles, no code from strings, no remote code."""
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
        (torch.OutOfMemoryError("CUDA out of memory."), "error: CUDA out of memory.", 2),
    ],
)
def test_an_interrupted_morph_is_one_line(place, capfd, monkeypatch, failure, message, status):
    def fails(*args, **options):
        raise failure

    monkeypatch.setattr(GeodesicInterpolationPipeline, "solve", fails)
    is_refused(message, capfd, status=status)


@pytest.mark.parametrize("output", ["out.gif", "out.png", "out.mp4", "out"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_write_that_fails_keeps_the_old(place, capfd, monkeypatch, output, failure):
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
        if len(calls) > 5:  # the keyframes are opened, some frames are written
            raise failure
        return convert(image, *args, **options)

    monkeypatch.setattr(PIL.Image.Image, "save", fails)
    if output == "out.mp4":
        monkeypatch.setattr(PIL.Image.Image, "convert", fails_in_a_video)
    status, message = (130, "interrupted") if not failure.args else (2, "No space left")
    is_refused(message, capfd, "-o", output, "--force", status=status)
    assert len(calls) > 0


def test_a_video_that_the_disk_cut_short_is_none(tmp_path, capfd):
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


def test_a_link_is_replaced_and_what_it_points_to_left(place):
    os.symlink("/dev/full", "out.gif")
    assert run("--force") == 0
    assert not Path("out.gif").is_symlink() and _num_frames(Path("out.gif")) == 3


def test_remains_of_a_killed_process_of_this_number_do_not_matter(place):
    remains = Path(f".{os.getpid()}-out")
    remains.mkdir()
    (remains / "frame_0099.png").write_bytes(b"half")
    assert run("-o", "out") == 0
    assert not remains.exists() and len(list(Path("out").iterdir())) == 3


KILLED = """
import os, random, signal, sys, time
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
                    media.write_frames(frames[: 9 - 4 * (i % 2)], media.Path(output), 12.0)
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
    """Twelve processes, killed at random moments while they write over what is there."""
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
