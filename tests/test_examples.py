"""Every example runs in its smallest setting, and so does the script of the contact sheets."""

from __future__ import annotations

import importlib.util
import math
import warnings
import wave
from pathlib import Path

import PIL.Image
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    LDMPipeline,
    StableDiffusionPipeline,
    UNet2DModel,
    VQModel,
)
from exact import to_sphere
from models import randn, silent, to_pil, waves

from riemannian_diffusion import GaussianMixtureScore, TangentNormalMetric, demo, geodesic

ROOT = Path(__file__).parents[1]
SMALL = waves(2)[..., :16, :16]


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
    example.main(more)  # continues from the checkpoints
    assert (tmp_path / "work" / "images.safetensors").stat().st_mtime_ns == rendered
    longer = StableDiffusionPipeline.from_pretrained(tmp_path / "b")
    moved = [not torch.equal(v, before[k]) for k, v in longer.unet.state_dict().items()]
    assert sum(moved) > len(moved) / 2
    for name, value in longer.vae.state_dict().items():
        assert torch.equal(value, pipe.vae.state_dict()[name])


def test_train_demo_model_from_an_earlier_result(tmp_path, capsys):
    example = load("examples", "train_demo_model")
    arguments = ["--work", str(tmp_path / "work"), "--images", "5", "--device", "cpu"]
    arguments += ["--output", str(tmp_path / "a"), "--vae-steps", "0", "--unet-steps", "1"]
    with pytest.raises(SystemExit):
        example.main(arguments)
    assert "--start" in capsys.readouterr().err
    example.main([*arguments, "--start", demo.model_path()])
    before, after = (
        StableDiffusionPipeline.from_pretrained(folder)
        for folder in (demo.model_path(), tmp_path / "a")
    )
    assert after.vae.config.scaling_factor == before.vae.config.scaling_factor
    for name, value in after.vae.state_dict().items():
        assert torch.equal(value, before.vae.state_dict()[name])
    old, new = before.unet.state_dict(), after.unet.state_dict()
    changes = torch.stack([(new[name] - value).abs().max() for name, value in old.items()])
    assert 0 < changes.max() < 0.01


def test_contact_sheet(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    arguments = ["--frames", "3", "--steps", "5", "--max-evals", "2", "--pairs", "1"]
    script = load("benchmarks", "contact_sheet")
    rows = script.main(["--output", str(tmp_path), *arguments])
    with PIL.Image.open(tmp_path / "contact_sheet_1.png") as sheet:
        assert sheet.size == (92 + 3 * 64, 5 * 64)
    assert len(list(tmp_path.iterdir())) == 1
    assert [row["method"] for row in rows] == list(script.METHODS)


def test_gallery(tmp_path):
    pytest.importorskip("matplotlib")
    load("examples", "gallery").main(
        ["--output", str(tmp_path / "gallery.png"), "--max-evals", "20"]
    )
    with PIL.Image.open(tmp_path / "gallery.png") as figure:
        assert figure.size == (880, 800) and len(figure.convert("RGB").getcolors(10**6)) > 100
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_audio(tmp_path, capsys):
    table = load("examples", "audio").main(
        ["--output", str(tmp_path / "morph.wav"), "--steps", "250"]
    )
    fade, straight, glide = table.values()
    assert glide["distance"] < fade["distance"] / 3 and glide["distance"] < straight["distance"] / 2
    # an even pace has 2 cycles in 16 steps, which is 0.125 in each
    assert glide["jump"] < 0.25 < 0.35 < min(fade["jump"], straight["jump"])
    with wave.open(str(tmp_path / "morph.wav")) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 8000)
        assert sound.getnframes() == 17 * 1024 + 128
        values = torch.frombuffer(bytearray(sound.readframes(17 * 1024)), dtype=torch.int16)
    assert values.abs().max() > 25000
    loudest = torch.fft.rfft(values.view(17, 1024) * torch.hann_window(1024), 8192).abs().argmax(1)
    pitch = loudest * 128 / 8192  # pitch of the sound, in cycles per 128 samples
    assert pitch[0] == pytest.approx(4, abs=0.1) and pitch[-1] == pytest.approx(6, abs=0.1)
    assert (pitch.diff() > -0.05).all() and pitch.diff().max() < 0.35
    assert len(list(tmp_path.iterdir())) == 1
    assert capsys.readouterr().out.count("\n| ") == 4


def test_vectors(capsys):
    table = load("examples", "vectors").main(["--steps", "800"])
    assert table["dimension"] == 2 and table["share"] > 0.8
    for name in ("between two rows", "beyond the second", "mean of five rows"):
        assert table[f"{name}, curved"] < table[f"{name}, flat"] / 4
    assert table["between two rows, curved"] < table["between two rows, flat"] / 10
    assert capsys.readouterr().out.count("\n| ") == 4


def test_globe(capsys):
    found = load("examples", "globe").main()
    (lat0, lon0), (lat1, lon1) = (
        [math.radians(x) for x in place] for place in ((48.86, 2.35), (35.68, 139.69))
    )
    turn = lon1 - lon0
    cosine = math.sin(lat0) * math.sin(lat1) + math.cos(lat0) * math.cos(lat1) * math.cos(turn)
    assert found["distance"] == pytest.approx(6371 * math.acos(cosine), rel=1e-3)
    east, north = (
        math.sin(turn) * math.cos(lat1),
        math.cos(lat0) * math.sin(lat1) - math.sin(lat0) * math.cos(lat1) * math.cos(turn),
    )
    assert found["course"] == pytest.approx(math.degrees(math.atan2(east, north)), abs=0.05)
    assert found["missed"] < 1
    # The arrow keeps its angle with the great circle, whose course on arrival is known.
    back = math.atan2(
        -math.sin(turn) * math.cos(lat0),
        math.cos(lat1) * math.sin(lat0) - math.sin(lat1) * math.cos(lat0) * math.cos(turn),
    )
    arrival = math.degrees(back) + 180
    assert found["arrow"] == pytest.approx(arrival + 90 - found["course"], abs=0.2)
    assert 35 < found["latitude"] < 45 and 55 < found["longitude"] < 70
    assert capsys.readouterr().out.count("\n") == 4


@pytest.mark.parametrize("only", ["beyond", "edits", "blend", "analogy"])
def test_edits(only, tmp_path, monkeypatch):
    example = load("examples", "edits")
    monkeypatch.setattr(example, "NUM_STEPS", 5)
    monkeypatch.setattr(example, "SOLVE", {"max_evals": 2, "num_frames": 3})
    example.main(["--output", str(tmp_path / "edits.png"), "--only", only])
    with PIL.Image.open(tmp_path / "edits.png") as sheet:
        assert sheet.size == (92 + 9 * 64, 64 * (3 if only == "edits" else 1))
        frames = [sheet.crop((92 + i * 64, 0, 156 + i * 64, 64)).tobytes() for i in (0, 8)]
    assert frames[0] != frames[1]
    assert len(list(tmp_path.iterdir())) == 1


def test_morph_gif(tmp_path):
    out = tmp_path / "morph.gif"
    options = ["--frames", "4", "--steps", "5", "--max-evals", "2"]
    load("examples", "morph_gif").main(["--output", str(out), *options])
    with PIL.Image.open(out) as found, PIL.Image.open(ROOT / "examples" / "morph.gif") as shipped:
        assert found.n_frames == 6 and found.size == shipped.size  # there and back again
        assert shipped.n_frames == 48
    assert (ROOT / "examples" / "morph.gif").stat().st_size < 600e3


def test_own_metric(tmp_path, capsys):
    """With even weights it is the tangent-normal metric; other weights change the geodesic."""
    example = load("examples", "own_metric")
    points = to_sphere(randn(40, 3)).double()
    score = GaussianMixtureScore(points, 0.3)
    usual = TangentNormalMetric(score)
    even = example.RegionMetric(score, torch.ones(3).double())
    x, u, v = points[:4], points[4:8], points[8:12]
    torch.testing.assert_close(even.inner(x, u, v), usual.inner(x, u, v))
    torch.testing.assert_close(even.energy(points), usual.energy(points))
    uneven = example.RegionMetric(score, torch.tensor([100.0, 1.0, 1.0]).double())
    found, other = (geodesic(metric, points[0], points[1]) for metric in (even, uneven))
    assert found.energy == pytest.approx(geodesic(usual, points[0], points[1]).energy, rel=1e-6)
    assert (found.path - other.path).norm() > 0.01
    out = tmp_path / "morph.gif"
    example.main(["--output", str(out), "--steps", "5", "--max-evals", "2"])
    with PIL.Image.open(out) as morph:
        assert morph.n_frames == 17
    assert capsys.readouterr().out.startswith("max_evals")


def test_own_family(tmp_path):
    """The example's pipeline samples as diffusers' own does, and its morph returns the images."""
    example = load("examples", "own_family")
    torch.manual_seed(0)
    blocks = {"layers_per_block": 1, "norm_num_groups": 8, "block_out_channels": (8, 16)}
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    unet = UNet2DModel(
        **{"sample_size": 8, "in_channels": 3, "out_channels": 3, "attention_head_dim": 8},
        **{"down_block_types": down, "up_block_types": up},
        **blocks,
    )
    vqvae = VQModel(
        **{"latent_channels": 3, "num_vq_embeddings": 256, "scaling_factor": 0.7},
        **{"down_block_types": ("DownEncoderBlock2D",) * 2},
        **{"up_block_types": ("UpDecoderBlock2D",) * 2},
        **blocks,
    )
    steps = DDIMScheduler(clip_sample=False, set_alpha_to_one=False)
    LDMPipeline(vqvae, unet, steps).save_pretrained(tmp_path / "ldm")
    files = [tmp_path / f"{name}.png" for name in "ab"]
    for file, image in zip(files, to_pil(SMALL), strict=True):
        image.save(file)
    out = tmp_path / "morph.gif"
    options = ["--model", str(tmp_path / "ldm"), "--steps", "4", "--max-evals", "2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an untrained autoencoder does not know the images
        example.main([*map(str, files), "--output", str(out), *options])
    with PIL.Image.open(out) as morph:
        assert morph.n_frames == 17

    pipe = silent(example.GeodesicInterpolationLDMPipeline.from_pretrained(tmp_path / "ldm"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keys = pipe.invert(SMALL, num_inference_steps=4, strength=1.0)
        latents = pipe.sample(pipe.solve(keys, "slerp", num_frames=3)).latents
    own = LDMPipeline.from_pretrained(tmp_path / "ldm")
    own.scheduler.set_timesteps(4)
    x = keys.points[:1]
    for t in own.scheduler.timesteps:
        x = own.scheduler.step(own.unet(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(latents[:1], x, atol=1e-4, rtol=1e-4)
    decoded = own.vqvae.decode(x / own.vqvae.config.scaling_factor).sample / 2 + 0.5
    torch.testing.assert_close(pipe.decode(x), decoded.clamp(0, 1), atol=1e-5, rtol=0)
