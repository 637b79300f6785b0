from __future__ import annotations

import json
import re
import warnings

import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from models import (
    FAST,
    flags,
    ip_adapter,
    make,
    randn,
    stable_diffusion,
    to_pil,
    vae,
    with_lora,
)
from original_layout import original, parts_of_version_1
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from riemannian_diffusion.cli import main
from riemannian_diffusion.cli.models import load_loras, read_autoencoder
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

CURVE = {name: value for name, value in FAST.items() if name != "max_evals"}
FLAGS = flags(**CURVE, device="cpu", metric="slerp")


@pytest.fixture
def run(keyframes, tmp_path, capsys):
    """Runs the command on two images; returns its status, what it printed, and its report."""
    for i, image in enumerate(to_pil(keyframes[:2])):
        image.save(tmp_path / f"{i}.png")
    images = [str(tmp_path / "0.png"), str(tmp_path / "1.png")]

    def run(*options, model="model"):
        output = ["-o", str(tmp_path / "out"), "--force", "--model", str(tmp_path / model)]
        status = main(["interpolate", *images, *output, *FLAGS, *map(str, options)])
        report = tmp_path / "out.json"
        found = json.loads(report.read_text()) if report.exists() else None
        report.unlink(missing_ok=True)
        return status, " ".join(capsys.readouterr().err.split()), found

    make("sd").save_pretrained(tmp_path / "model")
    return run


def frame(tmp_path) -> bytes:
    return (tmp_path / "out" / "frame_0001.png").read_bytes()


# -------------------------------------------------------------------------------------------- LoRAs


@pytest.fixture
def loras(tmp_path):
    """The files of one LoRA in the layouts of diffusers and of kohya; a pipeline with it."""
    pipe = with_lora(make("sd"))
    state = {f"unet.{n}": v for n, v in get_peft_model_state_dict(pipe.unet).items()}
    kohya = {}
    for name, value in state.items():
        layer, half, _ = name.removeprefix("unet.").rsplit(".", 2)
        layer = "lora_unet_" + layer.replace(".", "_").replace("_processor", "")
        part = {"lora_A": "lora_down", "lora_B": "lora_up"}[half]
        kohya[f"{layer}.{part}.weight"] = value
        kohya[f"{layer}.alpha"] = torch.tensor(float(2))  # its rank, so that the scale is 1
    save_file({n: v.contiguous() for n, v in state.items()}, tmp_path / "peft.safetensors")
    save_file({n: v.contiguous() for n, v in kohya.items()}, tmp_path / "kohya.safetensors")
    return tmp_path / "peft.safetensors", tmp_path / "kohya.safetensors", pipe


def output(pipe) -> torch.Tensor:
    x, hidden = randn(2, 4, 8, 8, dtype=torch.float32), randn(2, 5, 16, dtype=torch.float32)
    with torch.no_grad():
        return pipe.unet(x, 500, hidden).sample


def test_both_layouts_of_a_lora_give_the_network_of_its_source(loras):
    *files, source = loras
    expected, plain = output(source), output(make("sd"))
    assert (expected - plain).abs().max() > 1e-3
    for file in files:
        pipe = make("sd")
        load_loras(pipe, [(str(file), 1.0)])
        torch.testing.assert_close(output(pipe), expected, rtol=1e-6, atol=1e-6)
    halves = make("sd")
    load_loras(halves, [(str(files[0]), 0.25), (str(files[1]), 0.75)])
    torch.testing.assert_close(output(halves), expected, rtol=1e-5, atol=1e-5)
    none = make("sd")
    load_loras(none, [(str(files[0]), 0.0)])
    torch.testing.assert_close(output(none), plain)


def test_a_lora_changes_the_morph_and_its_weight_is_read(run, loras, tmp_path):
    frames = {}
    for options in ((), ("--lora", loras[0]), ("--lora", f"{loras[1]}:0")):
        status, text, report = run(*options)
        assert status == 0, text
        frames[options] = frame(tmp_path)
    plain, changed, unchanged = frames.values()
    assert plain == unchanged != changed
    assert report["arguments"]["lora"] == [[str(loras[1]), 0.0]]


def test_wrong_loras_are_refused_in_a_sentence(run, loras, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "lora.pt").write_bytes(b"")
    foreign = {f"unet.blocks.7.to_q.lora_{half}.weight": torch.zeros(2, 2) for half in "AB"}
    save_file(foreign, tmp_path / "foreign.safetensors")
    wide = load_file(loras[0])
    wide = {n: torch.cat([v, v], -1) if "lora_A" in n else v for n, v in wide.items()}
    save_file(wide, tmp_path / "wide.safetensors")
    for name, message in (
        ("other.safetensors", "holds no LoRA"),
        ("wide.safetensors", "is for another model, with layers of other sizes.$"),
        ("lora.pt", "must be a .safetensors file"),
        ("none.safetensors", "there is no file"),
        ("foreign.safetensors", "--lora .*foreign.safetensors"),
        ("peft.safetensors:nan", None),
    ):
        if message is None:
            with pytest.raises(SystemExit, match="2"):
                run("--lora", tmp_path / name)
            continue
        status, text, _ = run("--lora", tmp_path / name)
        assert status == 2 and re.search(message, text), text


def test_layers_of_a_lora_without_effect_are_told(loras, tmp_path):
    state = load_file(loras[0])
    other = {n.replace("attn2", "attn7"): v.clone() for n, v in state.items() if "attn2" in n}
    num = sum("lora_A" in name for name in state)
    save_file(state | other, tmp_path / "more.safetensors")
    with pytest.warns(UserWarning, match=f"has {num + num // 2} layers, of which {num // 2} are"):
        load_loras(make("sd"), [(str(tmp_path / "more.safetensors"), 1.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for file in loras[:2]:
            load_loras(make("sd"), [(str(file), 1.0)])


# ------------------------------------------------------------------------------------ IP-Adapters


def test_an_ip_adapter_and_its_image(run, tmp_path, keyframes):
    state = ip_adapter(make("sd").unet)
    flat = {
        f"{part}.{name}": value for part, values in state.items() for name, value in values.items()
    }
    save_file(flat, tmp_path / "adapter.safetensors")
    arguments = ("--ip-adapter", f"{tmp_path / 'adapter.safetensors'}:0.5")
    picture = ("--ip-adapter-image", tmp_path / "1.png")
    for options in (arguments, picture):
        status, text, _ = run(*options)
        assert status == 2 and "need each other" in text
    status, text, _ = run(*arguments, *picture)
    assert status == 2 and "image_encoder beside it" in text
    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=224,
        patch_size=112,
        projection_dim=6,
    )
    torch.manual_seed(0)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "image_encoder")
    frames = []
    for options in (
        (),
        (*arguments, *picture),
        (*arguments, "--ip-adapter-image", tmp_path / "0.png"),
    ):
        status, text, _ = run(*options)
        assert status == 0, text
        frames.append(frame(tmp_path))
    assert len(set(frames)) == 3  # the adapter matters, and so does its image


# ----------------------------------------------------------------------------------- autoencoders


def test_another_autoencoder_from_a_folder_or_a_file(tmp_path):
    torch.manual_seed(9)
    other, old = vae(), vae()
    other.save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    for path in (tmp_path / "vae", file):
        found = read_autoencoder(path, old)
        assert all(v.equal(other.state_dict()[n]) for n, v in found.state_dict().items())
    whole = make("sd")
    whole.save_pretrained(tmp_path / "model")
    found = read_autoencoder(tmp_path / "model", old)
    assert all(v.equal(whole.vae.state_dict()[n]) for n, v in found.state_dict().items())
    with pytest.raises(ValueError, match="latents of 16 channels, but the model needs 4"):
        vae(16).save_pretrained(tmp_path / "wide")
        read_autoencoder(tmp_path / "wide", old)
    with pytest.raises(ValueError, match="latents of 16 channels, but the model needs 4"):
        read_autoencoder(tmp_path / "wide" / "diffusion_pytorch_model.safetensors", old)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="holds no autoencoder"):
        read_autoencoder(tmp_path / "empty", old)


def test_an_autoencoder_in_the_original_layout(tmp_path):
    other, old = parts_of_version_1(), parts_of_version_1()["vae"]
    start = "first_stage_model."
    state = {n.removeprefix(start): v for n, v in original(other).items() if n.startswith(start)}
    save_file(state, tmp_path / "vae.safetensors")
    found = read_autoencoder(tmp_path / "vae.safetensors", old).state_dict()
    assert all(v.equal(found[name]) for name, v in other["vae"].state_dict().items())
    assert not all(v.equal(found[name]) for name, v in old.state_dict().items())


def test_an_autoencoder_changes_the_frames(run, tmp_path):
    torch.manual_seed(9)
    vae().save_pretrained(tmp_path / "vae")
    frames = []
    for options in ((), ("--vae", tmp_path / "vae"), ("--vae-slicing",)):
        status, text, _ = run(*options)
        assert status == 0, text
        frames.append(frame(tmp_path))
    assert frames[0] == frames[2] != frames[1]


# ---------------------------------------------------------------------------- options of the family


def test_options_that_a_family_lacks_are_refused_by_name(run, tmp_path):
    make("pixels").save_pretrained(tmp_path / "pixels")
    for options in (
        ("--vae", tmp_path),
        ("--vae-slicing",),
        ("--vae-tiling",),
        ("--no-safety-checker",),
        ("--lora", tmp_path / "x.safetensors"),
        ("--ip-adapter", tmp_path / "x.safetensors", "--ip-adapter-image", tmp_path / "0.png"),
    ):
        status, text, _ = run(*options, model="pixels")
        assert status == 2 and f"{options[0]} does not fit --model" in text
    for options, message in (
        (("--offload", "model"), "--offload keeps the model in the CPU's memory"),
        (("--config", tmp_path), "--config is for a --model that is one file"),
        (("--variant", "fp16"), "no variant 'fp16'"),
    ):
        status, text, _ = run(*options)
        assert status == 2 and message in text, text


def test_messages_name_flags(run, tmp_path):
    file = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    status, text, _ = run(model="model/unet/diffusion_pytorch_model.safetensors")
    assert status == 2 and "give the folder above" in text
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    status, text, _ = run()
    assert status == 2 and "give --variant" in text
    assert run("--variant", "fp16")[0] == 0


def test_a_seed_beyond_64_bits_is_told_by_its_name(run, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("--seed", 2**64)
    assert "--seed" in capsys.readouterr().err
    assert run("--seed", 2**64 - 1, "--space", "clean")[0] == 0


def test_the_tolerance_of_a_solve(run):
    counts = []
    for rtol in ("0", "1e9"):
        _, _, report = run("--rtol", rtol, "--metric", "tangent_normal", "--max-evals", "6")
        counts.append(report["geodesics"][0]["num_evals"])
    assert counts[1] < counts[0]
    status, text, _ = run("--rtol", "-1")
    assert status == 2 and "--rtol" in text


# ------------------------------------------------------------------------------------------- notes


def test_what_has_no_effect_is_told_on_both_channels(run):
    status, text, report = run("--prompt", "a" * 20, "--negative-prompt", "b")
    told = [one for one in report["warnings"] if "truncated" in one or "no effect" in one]
    assert status == 0 and len(told) == 2 and all(one in text for one in told)
    assert "--negative-prompt has no effect" in text and "--guidance above 1" in text
    _, text, report = run("--negative-prompt", "b", "--guidance", "2")
    assert "no effect" not in text and report["blanked_frames"] is None


def test_blanked_frames_are_told_and_can_be_avoided(run, tmp_path):
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=32,
        patch_size=16,
    )
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config=vision.to_dict(), projection_dim=8)
    )
    torch.nn.init.constant_(checker.concept_embeds_weights, -10.0)  # any image is above these
    sizes = {"size": {"shortest_edge": 32}, "crop_size": 32}
    parts = stable_diffusion() | {
        "safety_checker": checker,
        "feature_extractor": CLIPImageProcessor(**sizes),
    }
    GeodesicInterpolationPipeline(**parts).save_pretrained(tmp_path / "checked")
    status, text, report = run(model="checked")
    assert status == 0 and "safety checker" in text and "--no-safety-checker" in text
    assert report["blanked_frames"] == [0, 1, 2, 3]
    _, text, other = run("--no-safety-checker", model="checked")
    assert "safety checker" not in text and other["blanked_frames"] is None
    assert other["reconstruction_error"] == report["reconstruction_error"]


def test_models_are_listed(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "StableDiffusionPipeline: works" in lines
    assert any(line.startswith("WanPipeline: refused, because") for line in lines)
    assert all(": works" in line or ": refused, because " in line for line in lines)
