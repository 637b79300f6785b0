from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch.testing import assert_close

from riemannian_diffusion import demo
from riemannian_diffusion.demo import (
    FACTOR_RANGES,
    FACTORS,
    HUES,
    KINDS,
    caption,
    hue_name,
    nearest_render,
    random_factors,
    render,
)

HELD_OUT_SEED = 101  # the model's own images were drawn from seed 0


def scenes(num, *, seed=HELD_OUT_SEED, dtype=torch.float32):
    factors = random_factors(num, torch.Generator().manual_seed(seed)).to(dtype)
    return [KINDS[i % len(KINDS)] for i in range(num)], factors


def psnr(images, others):
    return -10 * (images - others).square().flatten(1).mean(1).log10()


# --------------------------------------------------------------------------------------- renderer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_render_shape_range_and_dtype(dtype):
    kinds, factors = scenes(5, dtype=dtype)
    images = render(kinds, factors, resolution=20)
    assert images.shape == (5, 3, 20, 20) and images.dtype == dtype
    assert 0 <= images.min() and images.max() <= 1
    assert (images.flatten(1).std(1) > 0.1).all()  # no image is empty
    assert render("cube", factors[:1]).shape == (1, 3, 64, 64)
    assert render([], factors[:0], resolution=20).shape == (0, 3, 20, 20)


def test_one_kind_is_that_kind_for_every_scene():
    _, factors = scenes(2)
    both = render("cone", factors, resolution=16)
    assert torch.equal(both, render(["cone", "cone"], factors, resolution=16))


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("cube", (5,), r"`factors` must be \(N, 5\), but got \(5,\)"),
        ("cube", (2, 4), r"`factors` must be \(N, 5\), but got \(2, 4\)"),
        ("pyramid", (1, 5), "`kind` must be one of sphere, .*, but got 'pyramid'"),
        (["cube", "Cube"], (2, 5), "but got 'Cube'"),
        (["cube"] * 3, (2, 5), "`kind` names 3 scenes, but `factors` has 2"),
    ],
)
def test_render_refuses(kind, shape, message):
    with pytest.raises(ValueError, match=message):
        render(kind, torch.ones(shape))


def test_render_is_deterministic_and_a_scene_ignores_its_batch():
    kinds, factors = scenes(7)
    images = render(kinds, factors, resolution=24)
    assert torch.equal(images, render(kinds, factors, resolution=24))
    for i in (0, 3, 6):
        alone = render(kinds[i], factors[i : i + 1], resolution=24)
        assert_close(images[i : i + 1], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_azimuth_and_hue_are_periodic(kind):
    _, factors = scenes(1, dtype=torch.float64)
    image = render(kind, factors, resolution=24)
    for name in ("azimuth", "hue"):
        period = FACTOR_RANGES[name][1] - FACTOR_RANGES[name][0]
        moved = factors.clone()
        moved[:, FACTORS.index(name)] += period
        assert_close(render(kind, moved, resolution=24), image, atol=1e-6, rtol=0)
        moved[:, FACTORS.index(name)] -= period / 2
        assert (render(kind, moved, resolution=24) - image).abs().max() > 0.02


def test_factors_have_their_meaning():
    factors = torch.tensor([[1.0, 0.0, 0.6, 0.0, 0.0]], dtype=torch.float64)

    def centre(image):  # centre of the reddish pixels, and their amount
        red = (image[0, 0] - image[0, 2]).clamp(min=0)
        rows, columns = red.sum(1), red.sum(0)
        steps = torch.arange(48, dtype=red.dtype)
        return (steps @ columns / red.sum(), steps @ rows / red.sum(), red.sum())

    def moved(name, change):
        other = factors.clone()
        other[:, FACTORS.index(name)] += change
        return render("sphere", other, resolution=48)

    image = render("sphere", factors, resolution=48)
    column, row, amount = centre(image)
    assert abs(column - 23.5) < 1
    right, away, larger = moved("x", 0.3), moved("y", 0.3), moved("size", 0.1)
    assert centre(right)[0] > column + 3 and abs(centre(right)[1] - row) < 1
    assert centre(away)[1] < row - 1 and abs(centre(away)[0] - column) < 1
    assert centre(larger)[2] > 1.2 * amount
    green = moved("hue", 1 / 3)
    middle = green[0, :, 24, 24]
    assert middle.argmax() == 1 and image[0, :, 24, 24].argmax() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_pixel_jumps(kind):
    """A tenth of the step in a factor changes every pixel by about a tenth; a jump would stay."""
    _, factors = scenes(2, dtype=torch.float64)
    image = render(kind, factors, resolution=24)
    for i, name in enumerate(FACTORS):
        low, high = FACTOR_RANGES[name]
        step = torch.zeros(5, dtype=torch.float64)
        step[i] = 0.005 * (high - low)
        large = (render(kind, factors + step, resolution=24) - image).abs().amax()
        small = (render(kind, factors + step / 10, resolution=24) - image).abs().amax()
        assert small < 0.2 * large, name


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode_against_central_differences(kind, name):
    """The median relative error over scenes is small; single pixels may have a jump."""
    _, factors = scenes(4, dtype=torch.float64)
    tangent = torch.zeros_like(factors)
    tangent[:, FACTORS.index(name)] = 1.0

    def image(f):
        return render(kind, f, resolution=32)

    _, forward = torch.func.jvp(image, (factors,), (tangent,))
    h = 1e-4
    central = (image(factors + h * tangent) - image(factors - h * tangent)) / (2 * h)
    error = (forward - central).flatten(1).norm(dim=1) / central.flatten(1).norm(dim=1)
    assert error.median() < 0.02, error


@pytest.mark.parametrize("kind", KINDS)
def test_float32_gradients_agree_with_float64(kind):
    _, factors = scenes(2)

    def gradient(dtype):
        leaf = factors.to(dtype).requires_grad_()
        (value,) = torch.autograd.grad(render(kind, leaf, resolution=16).square().sum(), leaf)
        return value.double()

    exact = gradient(torch.float64)
    assert (gradient(torch.float32) - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_reverse_mode_agrees_with_forward_mode(kind):
    _, factors = scenes(2, dtype=torch.float64)
    weights = torch.linspace(-1, 1, 2 * 3 * 16 * 16, dtype=torch.float64).reshape(2, 3, 16, 16)
    tangent = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(2, 5)
    leaf = factors.clone().requires_grad_()
    image = render(kind, leaf, resolution=16)
    (gradient,) = torch.autograd.grad((image * weights).sum(), leaf)
    _, forward = torch.func.jvp(lambda f: render(kind, f, resolution=16), (factors,), (tangent,))
    assert_close((gradient * tangent).sum(), (forward * weights).sum(), rtol=1e-8, atol=1e-8)


# ------------------------------------------------------------------------------ factors, captions


def test_random_factors_fill_their_ranges():
    factors = random_factors(2000, torch.Generator().manual_seed(3))
    assert factors.shape == (2000, 5)
    assert set(FACTOR_RANGES) == set(FACTORS)
    assert torch.equal(factors, random_factors(2000, torch.Generator().manual_seed(3)))
    for column, name in zip(factors.T, FACTORS, strict=True):
        low, high = FACTOR_RANGES[name]
        assert low <= column.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < column.max() <= high


def test_ranges_of_the_trained_model():
    assert FACTOR_RANGES["azimuth"] == (0.0, 2 * math.pi)
    assert FACTOR_RANGES["hue"] == (0.0, 1.0)
    assert FACTOR_RANGES["size"][0] > 0


@pytest.mark.parametrize("i", range(len(HUES)))
def test_hue_names_change_half_way(i):
    middle, half = i / 6, 1 / 12
    assert hue_name(middle) == HUES[i]
    assert hue_name(middle + half - 1e-6) == HUES[i]
    assert hue_name(middle - half + 1e-6) == HUES[i]
    assert hue_name(middle + half + 1e-6) == HUES[(i + 1) % 6]
    assert hue_name(middle + 1) == hue_name(middle - 1) == HUES[i]


@pytest.mark.parametrize(
    ("kind", "hue", "words"),
    [
        ("cube", 0.0, "a red cube"),
        ("sphere", 0.99, "a red sphere"),
        ("torus", 0.5, "a cyan torus"),
        ("cone", 2 / 3, "a blue cone"),
    ],
)
def test_captions(kind, hue, words):
    assert caption(kind, hue) == words


@pytest.mark.parametrize("i", range(len(HUES)))
def test_hue_names_match_the_colours(i):
    """The solid's brightest channels are those of its name: yellow is red and green."""
    factors = torch.tensor([[0.0, i / 6, 0.7, 0.0, 0.0]])
    pixel = render("sphere", factors)[0, :, 32, 32]
    names = {"red": "R", "yellow": "RG", "green": "G", "cyan": "GB", "blue": "B", "magenta": "RB"}
    bright = "".join(c for c, value in zip("RGB", pixel, strict=True) if value > 0.6 * pixel.max())
    assert bright == names[HUES[i]]


# --------------------------------------------------------------------------------- nearest render


def test_nearest_render_recovers_noisy_scenes():
    kinds, factors = scenes(10)
    clean = render(kinds, factors, resolution=32)
    noise = 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(4))
    noisy = (clean + noise).clamp(0, 1)
    found = nearest_render(noisy)
    assert found.kinds == tuple(kinds)
    assert found.captions == tuple(
        caption(k, h) for k, h in zip(found.kinds, found.factors[:, 1].tolist(), strict=True)
    )
    low, high = torch.tensor([FACTOR_RANGES[name] for name in FACTORS]).T
    assert (low <= found.factors).all() and (found.factors <= high).all()
    off = (found.factors - factors).abs()
    off = torch.minimum(off, torch.tensor([2 * math.pi, 1.0, 9.0, 9.0, 9.0]) - off)
    assert (off.amax(0) < torch.tensor([0.06, 0.01, 0.02, 0.02, 0.04])).all(), off
    assert (psnr(found.images, clean) > 38).all()
    assert_close(found.images, render(kinds, found.factors, resolution=32), atol=1e-4, rtol=0)
    assert_close(found.mse, (found.images - noisy).square().flatten(1).mean(1))
    assert (found.mse < 1.02 * (noisy - clean).square().flatten(1).mean(1)).all()


def test_nearest_render_is_deterministic_and_leaves_images_alone():
    kinds, factors = scenes(2)
    images = render(kinds, factors, resolution=64)
    before = images.clone()
    first, second = (nearest_render(images, num_coarse=1, num_fine=1) for _ in range(2))
    assert torch.equal(first.factors, second.factors) and torch.equal(images, before)
    assert first.images.shape == images.shape


def test_nearest_render_of_no_images():
    found = nearest_render(torch.zeros(0, 3, 32, 32))
    assert found.kinds == () and found.factors.shape == (0, 5) and found.mse.shape == (0,)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 64, 64), r"`images` must be \(N, 3, R, R\), but got \(3, 64, 64\)"),
        (torch.zeros(1, 1, 64, 64), r"but got \(1, 1, 64, 64\)"),
        (torch.zeros(1, 3, 64, 32), r"but got \(1, 3, 64, 32\)"),
        (torch.zeros(1, 3, 48, 48), "multiple of 32 pixels, but got 48"),
        (torch.full((1, 3, 32, 32), 1.5), r"values in \[0, 1\]"),
        (torch.full((1, 3, 32, 32), float("nan")), r"values in \[0, 1\]"),
    ],
)
def test_nearest_render_refuses(images, message):
    with pytest.raises(ValueError, match=message):
        nearest_render(images)


# ---------------------------------------------------------------------------------- shipped model


def test_a_missing_model_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="The shipped model is missing .*model_index.json"):
        demo.model_path()
    with pytest.raises(FileNotFoundError, match="A shipped image is missing .*endpoint_0.png"):
        demo.endpoint_paths()


def test_shipped_files():
    folder = Path(demo.model_path())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 15e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".md"}
    card = (folder / "README.md").read_text().lower()
    for word in ("licen", "apache-2.0", "data", "steps"):
        assert word in card, word


def test_shipped_endpoints_are_renders_of_different_scenes():
    images = []
    for path in demo.endpoint_paths():
        with PIL.Image.open(path) as image:
            assert image.size == (64, 64) and image.mode == "RGB"
            images.append(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255)
    found = nearest_render(torch.stack(images))
    assert (found.mse < 1e-3).all()
    assert (images[0] - images[1]).square().mean() > 1e-3


def test_captions_have_few_tokens_and_are_decoded(shipped_pipe):
    for kind in KINDS:
        for i in range(len(HUES)):
            ids = shipped_pipe.tokenizer(caption(kind, i / 6)).input_ids
            assert len(ids) <= 6 + 2  # and the start and the end; "green" is four, others are one
            assert shipped_pipe.tokenizer.decode(ids[1:-1]).strip() == caption(kind, i / 6)
    assert (
        len(shipped_pipe.tokenizer("a purple cube").input_ids) > 8
    )  # any other text is spelled out


@torch.no_grad()
def test_shipped_autoencoder_on_held_out_scenes(shipped_pipe):
    images = render(*scenes(5))
    decoded = shipped_pipe.vae.decode(
        shipped_pipe.vae.encode(2 * images - 1).latent_dist.mode()
    ).sample
    assert (psnr((decoded / 2 + 0.5).clamp(0, 1), images) >= 30).all()


def test_shipped_model_follows_the_caption(shipped_pipe):
    from diffusers import StableDiffusionPipeline

    captions = [caption(kind, i / 6) for i, kind in enumerate(KINDS)]
    draw = StableDiffusionPipeline.from_pipe(shipped_pipe)
    draw.set_progress_bar_config(disable=True)
    images = draw(
        captions,
        num_inference_steps=25,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(HELD_OUT_SEED),
        output_type="pt",
    ).images
    found = nearest_render(images)
    right = [seen == said for seen, said in zip(found.captions, captions, strict=True)]
    assert sum(right) >= 4, found.captions
