"""Counted work and memory of networks, the functions of devices, and the run on a GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from types import SimpleNamespace

import cost
import device
import full_size
import gpu
import gpu_report
import memory
import model_costs
import precision
import pytest
import torch
from architectures import (
    ARCHITECTURES,
    SMALL,
    Architecture,
    compiled,
    encoder_parameters,
    num_parameters,
    score_of,
)
from main_job import Passes
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


@pytest.mark.parametrize(("name", "number"), [("cuda", 0), ("cuda:1", 1)])
def test_the_memory_of_a_gpu_is_limited_for_a_while(monkeypatch, name, number):
    """PyTorch's own function checks the arguments. It refuses "cuda" without a number."""
    shares = []
    card = SimpleNamespace(total_memory=int(32e9))
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(
        *(torch._C, "_cuda_setMemoryFraction", lambda *values: shares.append(values)), raising=False
    )
    with device.limit_memory(name, 8):
        assert shares == [(0.25, number)]
    assert shares[1:] == [(1.0, number)]


@pytest.mark.parametrize("name", ["small_sd15", "small_sdxl"])
def test_parts_of_a_model_are_on_its_device_but_for_the_scheduler(name):
    """The device "meta" stands in for a GPU; schedulers compute with NumPy."""
    pipe = full_size.random_pipeline(name, torch.float16, "meta")
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    assert len(modules) >= 3
    assert all(one.is_meta for part in modules for one in part.state_dict().values())
    assert not pipe.scheduler.alphas_cumprod.is_meta
    assert pipe.scheduler.alphas_cumprod.dtype == torch.float32


# A network without enough memory


@pytest.fixture
def crowded(monkeypatch):
    """A function that sets the largest batch which networks from now on have memory for."""
    plain = Architecture.network

    def set_largest(largest):
        def crowd(_, inputs):
            if len(inputs[0]) > largest:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        def network(*args):
            made = plain(*args)
            made.register_forward_pre_hook(crowd)
            return made

        monkeypatch.setattr(Architecture, "network", network)

    return set_largest


def test_no_row_says_more_points_than_memory_was_enough_for(crowded):
    """The library halves the batches. A row of 2 points must not show batches of one."""
    crowded(1)
    work = model_costs.Work(1, 2, 3)
    options = {"work": work, "dtype": torch.float32, "device": "cpu"}
    (row,) = model_costs.measured(SMALL["small_sd15"], [1, 2, 4], 64, 100, 40, **options)
    assert row["batch"] == 1


@pytest.mark.parametrize(("largest", "batch"), [(9, 5), (1, 1), (0, None)])
def test_memory_names_the_largest_batch(crowded, largest, batch):
    """The path has 5 points with its chords."""
    crowded(largest)
    case = memory.Case("small_sd15", "cpu", "float32", 3, 0, False, None, 0)
    found, gib = memory.peak(case)
    assert found == batch and (gib is None) == (batch is None)


def test_cost_needs_a_point_between_the_ends():
    with pytest.raises(SystemExit, match="--points 3"):
        cost.main(["--points", "2", "--quadrature", "1"])


def test_precision_compares_one_network_with_itself():
    """Random weights of one seed differ between dtypes, unless they are drawn in one."""
    options = ["--model", "small_sd15", "--points", "3", "--no-solve"]
    narrow, wide = precision.main([*options, "--dtypes", "bfloat16", "float32"])
    assert wide["chords"] < 1e-4 and narrow["chords"] < 0.2


# Targets of a whole morph


def test_rows_of_a_morph_next_to_its_targets():
    """The shipped model takes half the passes, so half the time is expected, but for decoding."""
    shipped = {"solve": Passes(forward=9, gradient=10), "render": Passes()}
    stages = {
        name: full_size.Stage(seconds, Passes(2 * one.forward, 2 * one.gradient), gigabytes)
        for (name, one), seconds, gigabytes in zip(shipped.items(), (30, 4), (7, 6), strict=True)
    }
    shipped = {name: full_size.Stage(1, one, 1) for name, one in shipped.items()}
    work = model_costs.Work(int(1e12), int(3e12), 0)
    solve, render, whole = full_size.rows_of("sd15", stages, shipped, work, 20.0, 4)
    assert (solve["passes"], solve["shipped passes"]) == (60, 30)
    assert solve["expected"] == 15 and render["expected"] == 4 and whole["expected"] == 19
    assert solve["TFLOP/s"] == pytest.approx((18 + 20 * 3) / 30)
    assert solve["share"] == pytest.approx(solve["TFLOP/s"] / 20)
    assert whole["met"] and whole["peak GB"] == 7
    *_, late = full_size.rows_of(
        "small_sd15",
        stages | {"render": full_size.Stage(30, Passes(), 6)},
        *(shipped, work, 20.0, 4),
    )
    assert late["expected"] == 45 and not late["met"]


def test_a_model_of_full_size_has_all_its_parts():
    """A morph of the small networks in the dtype of a GPU."""
    pipe = full_size.random_pipeline("small_sdxl", torch.float16, "cpu")
    assert {part.dtype for part in pipe.components.values() if isinstance(part, nn.Module)} == {
        torch.float16
    }
    found, path = full_size.stages_of(pipe, 64, "cpu", num_frames=3, steps=4, max_evals=2)
    assert list(found) == ["invert", "solve", "sample", "render"]
    assert found["solve"].passes.gradient > 0 and len(path.latents) == 3


# The run on a GPU


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Makes a step of a script that first saves rows, then runs a line of Python."""
    monkeypatch.setattr(gpu, "HERE", tmp_path)

    def made(name, end):
        report = {"machine": "A card, 1 threads", "date": "2026-01-01", "rows": [{"a": 1.5}]}
        (tmp_path / f"{name}.py").write_text(
            "import os, pathlib, sys, time\n"
            "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
            "part = out.with_name(out.name + '.part')\n"
            f"part.write_text({json.dumps(report)!r})\n"
            f"out.with_name('{name}.pid').write_text(str(os.getpid()))\n{end}\n"
        )
        return gpu.Step(name, 60, f"{name}.py", "")

    return made


def test_a_step_that_is_stopped_keeps_its_rows(tmp_path, steps):
    """And a step that fails is reported."""
    ends = {"slow": "time.sleep(60)", "bad": "raise SystemExit(3)", "good": "part.rename(out)"}
    found = {
        name: gpu.run_step(steps(name, end), "cpu", tmp_path, 5 if name == "slow" else 60, False)
        for name, end in ends.items()
    }
    statuses = [found[name]["status"] for name in ends]
    assert statuses == ["stopped after 5 s", "failed with status 3", "done"]
    assert all(row["saved"] for row in found.values())
    names = sorted(file.name[11:] for file in tmp_path.glob("*_gpu_*"))
    assert names == ["gpu_bad_cpu_stopped.json", "gpu_good_cpu.json", "gpu_slow_cpu_stopped.json"]


def test_a_step_ends_with_the_run(tmp_path, steps):
    """When the run is interrupted, its step leaves the card, and its rows are kept."""

    def interrupt(*_):
        raise SystemExit(143)

    before = signal.signal(signal.SIGALRM, interrupt)
    step = steps("slow", "signal = out.with_name('ready'); signal.touch(); time.sleep(60)")

    def wait():
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGALRM)

    try:
        threading.Thread(target=wait, daemon=True).start()
        with pytest.raises(SystemExit):
            gpu.run_step(step, "cpu", tmp_path, 60, False)
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "slow.pid").read_text()), 0)
    assert len(list(tmp_path.glob("*_gpu_slow_cpu_stopped.json"))) == 1


def test_a_second_run_goes_on_and_prints_all_tables(tmp_path, steps, monkeypatch, capsys):
    """A step that was stopped runs again, one that ended does not."""
    monkeypatch.setattr(gpu_report, "ABOUT", {"first": "The first", "second": "The second"})
    monkeypatch.setattr(gpu, "ABOUT", gpu_report.ABOUT)

    def run(end):
        both = steps("first", "part.rename(out)"), steps("second", end)
        monkeypatch.setattr(gpu, "STEPS", both)
        rows = gpu.main(["--device", "cpu", "--results", str(tmp_path / "new" / "folder")])
        return [row["status"] for row in rows], capsys.readouterr().out

    statuses, printed = run("raise SystemExit(3)")
    assert statuses == ["done", "failed with status 3"]
    assert "The second (A card, 2026-01-01). It was stopped before its end." in printed
    statuses, printed = run("part.rename(out)")
    assert statuses == ["done before", "done"]
    assert "2 steps, 25 minutes at most" in printed
    assert printed.count("| a |\n| --- |\n| 1.5 |") == 2 and "stopped before" not in printed


def test_tables_of_steps(tmp_path):
    rows = [{"a": 1, "b": None}, {"a": 2, "b": 0.12345}, {"met": True}]
    made = {"machine": "A card, 1 threads", "date": "2026-01-01", "rows": rows}
    assert gpu_report.report(tmp_path) == gpu_report.NONE
    gpu_report.file_of(tmp_path, "scale", "cuda", "2026-01-01").write_text(json.dumps(made))
    about = gpu_report.ABOUT["scale"]
    assert gpu_report.report(tmp_path) == (
        f"{about} (A card, 2026-01-01).\n\n| a | b |\n| --- | --- |\n| 1 | – |\n| 2 | 0.123 |\n"
        "\n| met |\n| --- |\n| yes |\n"
    )


def test_the_steps_on_a_gpu_fit_in_their_time(capsys):
    assert sum(step.seconds for step in gpu.STEPS) <= 60 * 25
    assert [step.name for step in gpu.STEPS] == list(gpu_report.ABOUT)
    assert gpu.main(["--rehearse", "--plan"]) == []
    printed = capsys.readouterr().out
    assert all(f"  {step.name}" in printed for step in gpu.STEPS)


@pytest.mark.slow
def test_a_rehearsal_runs_every_step(tmp_path, capfd):
    rows = gpu.main(["--rehearse", "--results", str(tmp_path)])
    assert [row["status"] for row in rows] == ["done"] * len(gpu.STEPS)
    printed = capfd.readouterr().out
    assert all(f"{about} (" in printed for about in gpu_report.ABOUT.values())
