"""Rotated digits: the rotation itself, and the main result of its benchmark."""

import importlib
import math
import os
from pathlib import Path

import pytest
import torch
from methods import Count
from torch.testing import assert_close

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
needs_mnist = pytest.mark.skipif(
    not os.environ.get("RIEMANNIAN_DIFFUSION_MNIST"),
    reason="RIEMANNIAN_DIFFUSION_MNIST does not name a directory with MNIST",
)


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def test_quarter_turns_are_exact(load):
    digits = load("digits")
    images = torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(0))
    quarters = [digits.rotate(images, torch.full((3,), k * math.pi / 2)) for k in range(4)]
    for k, turned in enumerate(quarters):
        assert turned.shape == (3, 1, 32, 32) and -1 <= turned.min() and turned.max() <= 1
        assert_close(turned, quarters[0].rot90(k, (2, 3)), rtol=0, atol=1e-4)


def test_a_turn_is_smooth(load):
    """Half the angle moves a digit half as far."""
    digits = load("digits")
    y, x = torch.meshgrid(torch.linspace(-2, 2, 28), torch.linspace(-2, 2, 28), indexing="ij")
    bar = torch.exp(-(x**2) * 8 - y**2)[None]
    still = digits.rotate(bar, torch.zeros(1))
    moved = [float((digits.rotate(bar, torch.full((1,), a)) - still).norm()) for a in (0.01, 0.02)]
    assert 0 < moved[0] and moved[1] == pytest.approx(2 * moved[0], rel=0.05)


def test_missing_mnist_is_reported(load, tmp_path, monkeypatch):
    digits = load("digits")
    with pytest.raises(FileNotFoundError, match="t10k-images-idx3-ubyte is neither in"):
        digits.load_mnist(str(tmp_path))
    monkeypatch.delenv(digits.ENVIRONMENT, raising=False)
    with pytest.raises(FileNotFoundError, match="give --data DIR or set RIEMANNIAN"):
        digits.load_mnist()


@needs_mnist
def test_mnist_is_read_from_the_folders_of_torchvision(load, tmp_path):
    digits = load("digits")
    images, labels = digits.load_mnist()
    assert images.shape == (10000, 28, 28) and labels[:5].tolist() == [7, 2, 1, 0, 4]
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    root = Path(os.environ[digits.ENVIRONMENT])
    source = root if list(root.glob("t10k-images*")) else root / "MNIST" / "raw"
    for path in source.glob("t10k-*-ubyte*"):
        (raw / path.name).symlink_to(path.resolve())
    assert torch.equal(digits.load_mnist(str(tmp_path))[0], images)


@needs_mnist
def test_the_model_of_all_digits_denoises_unseen_digits(load):
    digits, rotated = load("digits"), load("rotated_mnist")
    folder = rotated.MODELS["unseen"]
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) <= 8e6
    images = digits.load_mnist()[0][digits.NUM_SEEN :][:16]
    generator = torch.Generator().manual_seed(0)
    angles = 2 * math.pi * torch.rand(16, generator=generator)
    clean = torch.nn.functional.pixel_unshuffle(digits.rotate(images, angles), 2)
    noise = torch.randn(clean.shape, generator=generator)
    levels = rotated.learned_levels(folder, Count(), "cpu")
    # noise is 0.34 and 1.24 times the signal; the model of ten digits has errors 0.19 and 0.35
    for timestep, largest in ((100, 0.1), (300, 0.25)):
        score = levels(timestep)
        with torch.no_grad():
            found = score.denoise(score.alpha * clean + score.sigma * noise) / score.alpha
        assert (found - clean).square().mean().sqrt() < largest


@needs_mnist
@pytest.mark.slow
def test_a_roadmap_finds_the_rotation(load):
    """A roadmap has at most half the error and half the largest jump of slerp."""
    arguments = ["--degrees", "60", "--kinds", "1", "9", "--methods"]
    methods = ["slerp", "roadmap", "both starts"]
    rows = load("rotated_mnist").main(arguments + methods)
    until, beyond = (
        {row["method"]: row for row in rows if row["beyond"] == degrees} for degrees in (0, 30)
    )
    slerp = until["slerp"]
    assert slerp["on"] == 0
    for name in methods[1:]:
        row = until[name]
        assert row["on"] == 1 and row["missed"] == 0
        assert row["rms"] <= slerp["rms"] / 2 and row["jump"] <= slerp["jump"] / 2
        assert row["evals"] <= 500
    on, walk = beyond["extrapolate"], beyond["walk"]
    assert on["angle"] <= 2 and on["distance"] <= 0.05
    assert on["rms"] <= min(walk["rms"], beyond["slerp"]["rms"]) / 2
