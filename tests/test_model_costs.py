"""Counted work and memory of networks, the functions of devices, and the run on a GPU."""

from __future__ import annotations

import dataclasses

import device
import gpu
import model_costs
import pytest
import torch
from architectures import ARCHITECTURES, compiled, encoder_parameters, num_parameters, score_of
from model_costs import WithoutData, counted, work_of
from torch import nn

from riemannian_diffusion import TangentNormalMetric, slerp

BILLIONS = {  # parameters of the published networks
    **{"sd15": 0.860, "sd21": 0.866, "sdxl": 2.57, "sd3": 2.03, "sd35_large": 8.06, "flux": 11.9},
    **{"flux2_klein_4b": 3.9, "flux2_klein_9b": 9.1, "flux2": 32.2, "qwen_image": 20.4},
    **{"z_image": 6.15, "sana": 1.60, "pixart": 0.61, "lumina2": 2.61, "chroma": 8.9},
    "aura_flow": 6.8,
}
ENCODERS = {"CLIP L": 0.123, "T5-XXL": 4.76, "Gemma 2 2B": 2.61, "Mistral Small 24B": 24.0} | {
    **{"Qwen2.5-VL 7B": 8.29, "Qwen3 4B": 4.02, "Qwen3 8B": 8.19, "Pile-T5-XL": 1.2},
}


class Attention(nn.Module):
    """A linear layer, then attention of one head among L tokens of width W."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Points `(K, L, W)` as queries, keys and values `(K, 1, L, W)`."""
        y = self.linear(x)[:, None]
        return nn.functional.scaled_dot_product_attention(y, y, y)[:, 0]


@pytest.mark.parametrize("name", BILLIONS)
def test_networks_have_their_published_size(name):
    network = ARCHITECTURES[name].network(torch.bfloat16, "meta")
    assert num_parameters(network) == pytest.approx(1e9 * BILLIONS[name], rel=0.015)


@pytest.mark.parametrize("name", ENCODERS)
def test_text_encoders_have_their_published_size(name):
    assert encoder_parameters(name) == pytest.approx(1e9 * ENCODERS[name], rel=0.03)


def test_work_and_memory_of_attention_in_closed_form():
    """L = 64 tokens of width W = 32 in bfloat16; frozen weights need no saved input."""
    length, width = 64, 32
    with torch.device("meta"):
        network = Attention(width).bfloat16().requires_grad_(False)
        x = torch.zeros(1, length, width, dtype=torch.bfloat16)
    with WithoutData():
        work = work_of(network, x, list(network.parameters()))
    linear, product = 2 * length * width**2, 2 * length**2 * width
    assert work.forward == linear + 2 * product
    assert work.both == 2 * linear + 2 * product + 5 * product  # scores are computed again
    assert work.saved == 2 * (2 * length * width + length)  # q = k = v, the output, the sums


def test_work_grows_with_the_points_as_measured():
    """The counted work of Stable Diffusion 1.5 is known: about 0.8 TFLOP at 512 px."""
    number, work = counted(ARCHITECTURES["sd15"], 512)
    assert number == 859_520_964 and 0.75e12 < work.forward < 0.85e12
    assert 2.0 < work.both / work.forward < 2.4 and 0.3e9 < work.saved < 1.5e9


@pytest.mark.parametrize("name", ["z_image", "lumina2", "qwen_image", "chroma"])
def test_masked_transformers_are_counted(name):
    """Of one layer, at two sizes."""
    one = {"num_layers": 1}
    if name == "chroma":
        one["num_single_layers"] = 1
    if name == "z_image":
        one = {"n_layers": 1, "n_refiner_layers": 1}
    architecture = ARCHITECTURES[name]
    architecture = dataclasses.replace(architecture, config=dict(architecture.config) | one)
    small, large = (counted(architecture, pixels)[1] for pixels in (256, 512))
    assert 1.5 < large.saved / small.saved < 5 and large.forward > 1.5 * small.forward


def test_estimates():
    options = ["--models", "sd15", "--pixels", "512", "--points", "100", "--with-gradient", "40"]
    (row,) = model_costs.main([*options, "--rate", "1000", "--share", "0.5"])
    work = (60 + 40 * row["gradient"]) * row["TFLOP"]
    assert row["kind"] == "estimate" and row["morph TFLOP"] == pytest.approx(work)
    assert row["seconds"] == pytest.approx(work / 500)
    assert row["memory GB"] == pytest.approx(row["weights GB"] + row["GB per point"])


def test_the_score_of_an_architecture_is_differentiated():
    """Also after compiling, which runs eagerly here."""
    score, shape = score_of("shipped", size=8)
    path = slerp(*torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)), 3)
    with torch.compiler.set_stance("force_eager"):
        found = [
            TangentNormalMetric(one).energies([path], differentiate=True)[0].gradient
            for one in (score, compiled("shipped", score))
        ]
    torch.testing.assert_close(*found)
    assert float(found[0].abs().max()) > 0


def test_measured_rows_on_any_device():
    """The code that measures on a GPU, on the CPU with a small model."""
    architecture = ARCHITECTURES["sd15"]
    small = {"block_out_channels": (64, 64, 64, 64), "cross_attention_dim": 768}
    small = dataclasses.replace(architecture, config=small)
    _, work = counted(small, 64)
    (row,) = model_costs.measured(
        *(small, [2], 64, 100, 40), work=work, dtype=torch.float32, device="cpu"
    )
    assert row["kind"] == "measured" and row["share"] > 0
    assert row["seconds"] == pytest.approx(60 * row["forward"] + 40 * row["gradient"])


def test_functions_of_devices():
    assert device.is_gpu("cuda:1") and not device.is_gpu("cpu")
    calls = []
    assert device.least_seconds(lambda: calls.append(0), 3, "cpu") >= 0 and len(calls) == 4
    device.forget_peak("cpu")
    assert 0 < device.used_gib("cpu") <= device.peak_gib("cpu")


def test_a_step_that_is_stopped_keeps_its_rows(tmp_path, monkeypatch):
    """And a step that fails is reported."""
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    ends = {"slow": "time.sleep(60)", "bad": "raise SystemExit(3)", "good": "part.rename(out)"}
    found = {}
    for name, end in ends.items():
        (tmp_path / f"{name}.py").write_text(
            "import pathlib, sys, time\n"
            "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
            f"part = out.with_name(out.name + '.part')\npart.write_text('rows')\n{end}\n"
        )
        step = gpu.Step(name, 60, f"{name}.py", "")
        found[name] = gpu.run_step(step, "cpu", tmp_path, 5 if name == "slow" else 60, False)
    statuses = [found[name]["status"] for name in ends]
    assert statuses == ["stopped after 5 s", "failed with status 3", "done"]
    assert all(row["saved"] for row in found.values())
    texts = [file.read_text() for file in tmp_path.glob("*_gpu_*_cpu.json")]
    assert texts == ["rows"] * 3 and not list(tmp_path.glob("*.part"))


def test_the_steps_on_a_gpu_fit_in_their_time():
    assert sum(step.seconds for step in gpu.STEPS) <= 600 + 100
