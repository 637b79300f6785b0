"""Warnings about images that a model does not know, or that a morph does not show."""

import json
import warnings
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from models import to_pil

from riemannian_diffusion import demo
from riemannian_diffusion.cli import main
from riemannian_diffusion.pipelines import ImageWarning, Keyframes
from riemannian_diffusion.pipelines.quality import (
    autoencoder_warning,
    inversion_warning,
    too_much_lost,
)

FEW = {"num_inference_steps": 4, "strength": 1.0}


@pytest.fixture(scope="module")
def scenes():
    """The shipped pair and a scene of each kind, `(N, 3, 64, 64)`."""
    factors = demo.random_factors(len(demo.KINDS), torch.Generator().manual_seed(7))
    return torch.cat([shipped_pair(), demo.render(list(demo.KINDS), factors)])


def shipped_pair():
    images = [PIL.Image.open(path).convert("RGB") for path in demo.endpoint_paths()]
    pixels = np.stack([np.asarray(image, np.float32) / 255 for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def strange():
    """A chessboard and noise."""
    y, x = torch.meshgrid(torch.arange(64) // 8, torch.arange(64) // 8, indexing="ij")
    board = ((x + y) % 2).float().expand(3, -1, -1)
    return torch.stack([board, torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))])


def test_a_tenth_of_the_variance_is_too_much():
    y = torch.linspace(0, 1, 64)
    images = torch.stack([y.expand(3, 64, 64), torch.full((3, 64, 64), 0.5)])  # variances 1/12, 0
    limits = torch.tensor([images[0].var(correction=0) / 10, 0.001])
    assert too_much_lost(0.99 * limits, images) == []
    assert too_much_lost(1.01 * limits, images) == [1, 2]
    assert too_much_lost(torch.nan * limits, images) == [1, 2]


def test_sentences():
    images = torch.rand(3, 3, 8, 8)
    found = autoencoder_warning(torch.tensor([0.1, 0.0, 0.01]), images)
    assert "like keyframes 1 and 3: " in found and "a PSNR of 10 and 20 dB" in found
    assert autoencoder_warning(None, images) is None
    assert autoencoder_warning(torch.zeros(3), images) is None
    known, missed = torch.tensor([0.1, 0.0, 0.0]), torch.tensor([0.1, 0.2, 0.0])
    found = inversion_warning(torch.tensor([0.1, 0.2, 0.0]), known, images, missed)
    assert "does not show keyframe 2: " in found and "`num_inference_steps`" in found
    assert inversion_warning(known, known, images, missed) is None
    moved = inversion_warning(known + 0.2, known, images, missed, numbers=[2, 1, 3])
    assert "does not show keyframes 1, 2 and 3: " in moved


def test_no_part_of_an_error_is_hidden_by_the_other():
    """Inversion and the autoencoder lose 0.19 of the variance together, each less than 0.1."""
    images = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 2, 2)  # of variance 0.25
    half, whole = torch.tensor([0.095 * 0.25]), torch.tensor([0.19 * 0.25])
    assert autoencoder_warning(half, images) is None
    assert "does not show keyframe 1" in inversion_warning(whole, half, images, torch.zeros(1))
    # an autoencoder that loses everything does not show what inversion loses
    assert inversion_warning(whole, whole, images, torch.tensor([0.2])) is None
    for missed in (0.4, torch.nan):
        found = inversion_warning(whole, whole, images, torch.tensor([missed]))
        assert "the latents miss by" in found


@pytest.mark.parametrize("space", ["noise", "clean"])
def test_scenes_of_the_model_give_no_warning(shipped_pipe, scenes, space):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keys = shipped_pipe.invert(scenes, space=space, **FEW)
        path = shipped_pipe.sample(shipped_pipe.solve(keys, "lerp", num_frames=2))
        out = shipped_pipe.render(path, output_type="pt")
        latent = shipped_pipe.render(path, output_type="latent")
    assert out.warnings == latent.warnings == []
    back = shipped_pipe.decode(shipped_pipe.encode(scenes))
    expected = (back - scenes).square().flatten(1).mean(1).tolist()
    assert out.autoencoder_error == pytest.approx(expected, rel=1e-3)
    # the frames show what the autoencoder can show
    assert out.reconstruction_error == pytest.approx(expected, rel=0.05)


def test_other_images_give_one_warning(shipped_pipe, strange, tmp_path):
    with pytest.warns(ImageWarning, match="does not know images like keyframes 1 and 2:") as caught:
        keys = shipped_pipe.invert(strange, **FEW)
    assert len(caught) == 1
    keys.save(tmp_path / "keys.safetensors")
    keys = Keyframes.load(tmp_path / "keys.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # they have been warned of
        path = shipped_pipe.sample(shipped_pipe.solve(keys, "slerp", num_frames=2))
        out = shipped_pipe.render(path)
        assert out.warnings == [str(caught[0].message)]
        unknown = replace(path, keys=replace(path.keys, autoencoder_error=None))
        out = shipped_pipe.render(unknown)
    assert out.autoencoder_error is None and out.warnings == []


def test_frames_that_do_not_show_keyframes_give_a_warning(shipped_pipe, scenes):
    keys = shipped_pipe.invert(scenes[:2], **FEW)
    path = shipped_pipe.sample(shipped_pipe.solve(keys, "slerp", num_frames=2))
    spoilt = replace(path, latents=torch.stack([path.latents[0], path.latents[0]]))
    for kind in ("pt", "latent"):
        with pytest.warns(ImageWarning, match="The morph does not show keyframe 2:") as caught:
            out = shipped_pipe.render(spoilt, output_type=kind)
        assert len(caught) == 1 and out.warnings == [str(caught[0].message)]


def test_transport_warns_of_its_image(shipped_pipe, scenes, strange):
    keys = shipped_pipe.invert(scenes[:2], **FEW)
    path = shipped_pipe.sample(shipped_pipe.solve(keys, "lerp", num_frames=2))
    with pytest.warns(ImageWarning, match="does not know images like keyframe 1:"):
        moved = shipped_pipe.transport(path, strange[0])
    assert "like keyframe 3:" in shipped_pipe.render(moved).warnings[0]


def test_warnings_number_keyframes_as_they_were_given(shipped_pipe, scenes):
    """A transported path runs from the second image to the first, and on to the third."""
    path = shipped_pipe.solve(shipped_pipe.invert(scenes[:2], **FEW), "lerp", num_frames=2)
    moved = shipped_pipe.transport(shipped_pipe.sample(path), scenes[2])
    spoilt = moved.latents.clone()
    spoilt[moved.key_indices[0]] *= -1
    with pytest.warns(ImageWarning, match="does not show keyframe 2:"):
        shipped_pipe.render(replace(moved, latents=spoilt), output_type="latent")


def test_the_command_prints_warnings_once(strange, tmp_path, capsys):
    for i, image in enumerate(to_pil(strange)):
        image.save(tmp_path / f"{i}.png")
    words = ["interpolate", *(str(tmp_path / f"{i}.png") for i in range(2))]
    words += ["-o", str(tmp_path / "out.png"), "--keep", str(tmp_path / "kept"), "--device", "cpu"]
    words += ["--metric", "slerp", "--frames", "2", "--steps", "4", "--strength", "1", "--force"]
    for _ in range(2):  # the second time from kept keyframes
        assert main(words) == 0
        printed = capsys.readouterr().err
        assert printed.count("riemannian-diffusion: warning: The model does not know images") == 1
        assert "UserWarning" not in printed
        knows, found = json.loads((tmp_path / "out.json").read_text())["warnings"]
        assert found in printed and printed.count("only knows renders of five solids") == 1
        assert "Give --model for those" in knows
