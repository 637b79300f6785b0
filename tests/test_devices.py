"""Devices other than the CPU: without float64, with few copies, and real GPUs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from models import INVERT, SOLVE, embeddings, make, prompted_score_unet, randn, silent, waves
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from riemannian_diffusion import (
    DiffusionScore,
    PathLBFGS,
    SharedNoiseScore,
    TangentNormalMetric,
    geodesic,
)
from riemannian_diffusion.evaluation import FrameSequence, evaluate
from riemannian_diffusion.measures import rmse
from riemannian_diffusion.score import Where

SCHEDULER = DDIMScheduler()


class Narrow(torch.Tensor):
    """A tensor as if on a device without float64. Its results are on the device, too."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = super().__torch_function__(func, types, args, kwargs or {})
        if func in (torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.item):
            return found.as_subclass(torch.Tensor) if isinstance(found, torch.Tensor) else found
        for one in tree_leaves(found):
            if isinstance(one, cls) and one.dtype == torch.float64:
                raise TypeError("Cannot convert a tensor of this device to float64.")
        return found


def narrow(x):
    return x.as_subclass(Narrow)


def test_the_test_device_has_no_float64():
    x = narrow(torch.ones(2))
    assert type(x + 1) is Narrow and type(x.cpu().double()) is torch.Tensor
    with pytest.raises(TypeError, match="float64"):
        x.double()


@pytest.mark.parametrize("space", ["noise", "clean"])
def test_stages_without_float64(space):
    pipe = silent(make("sd"))
    plain = pipe.invert(waves(3), ["a", "b", "c"], space=space, **INVERT)
    moved = {name: narrow(getattr(plain, name)) for name in ("pixels", "clean", "points")}

    def shown(keys):
        path = pipe.sample(pipe.solve(keys, "tangent_normal", **SOLVE))
        path = pipe.retime(path, "rmse")
        return path, pipe.render(path, output_type="pt").frames

    path, frames = shown(replace(plain, **moved))
    assert type(path.points) is Narrow and type(path.times) is torch.Tensor
    assert_close(torch.as_tensor(frames.cpu()), shown(plain)[1], atol=1e-4, rtol=0)


def test_evaluation_without_float64():
    frames = waves(5)

    def measured(move):
        sequence = FrameSequence("a", move(frames), inputs=move(frames[[0, -1]] / 2))
        sequence = replace(sequence, truth=move(frames[1:-1] / 3))
        with pytest.warns(UserWarning):
            return evaluate([sequence], "any", distance=rmse, features=colours, skip_missing=True)

    found, expected = (
        {result.measure: result.value for result in measured(move).results}
        for move in (narrow, lambda x: x)
    )
    assert found == pytest.approx(expected) and {"mse", "re", "largest_step"} <= found.keys()


def colours(images):
    """The mean colour of each image."""
    return images.float().mean((2, 3))


class CopyCounter(TorchFunctionMode):
    """Counts copies from the CPU to the device "meta"."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) or any(
            isinstance(one, torch.Tensor) and one.device.type == "cpu" and one.ndim > 0
            for one in tree_leaves((args, kwargs))
        ):
            self.count += isinstance(found, torch.Tensor) and found.device.type == "meta"
        return found


@pytest.mark.parametrize("noises", [None, (2, 3, 2, 8, 8)], ids=["points", "shared noises"])
@pytest.mark.parametrize("knots", [(1,), (3,), (2, 3)], ids=["fixed", "knots", "pairs"])
def test_a_network_call_copies_once_to_the_device_at_most(knots, noises):
    unet = prompted_score_unet().float().to("meta")
    score = DiffusionScore(
        unet,
        SCHEDULER,
        300,
        encoder_hidden_states=embeddings(*knots, seed=12).float().to("meta"),
        negative_hidden_states=embeddings(1, seed=13).float().to("meta"),
        guidance_scale=2.0,
        mode="guided",
    )
    calls = []
    unet.register_forward_pre_hook(lambda *_: calls.append(1))
    if noises is not None:
        score = SharedNoiseScore(score, torch.zeros(noises))
        score.noise = score.noise.to("meta")
    where = Where(torch.linspace(0, 1, 4), torch.tensor([0, 0, 1, 1]))
    x = torch.zeros(4, 2, 8, 8, device="meta")
    with CopyCounter() as counter:
        score(x, where)
    assert len(calls) == 2 and counter.count == (1 if knots != (1,) else 0)


# Where there is a GPU

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def gpu_score(dtype=torch.float32, change=lambda unet: None, **options):
    unet = prompted_score_unet().to(dtype)
    change(unet)
    unet = unet if hasattr(unet, "_diffusers_hook") else unet.to("cuda")
    prompts = embeddings(2, seed=12).to("cuda", dtype)
    return DiffusionScore(unet, SCHEDULER, 300, encoder_hidden_states=prompts, **options)


def products(score):
    """A score, its products and the gradient of an energy at 4 points, float32 on the CPU."""
    x, v = (randn(4, 2, 8, 8, seed=seed, dtype=torch.float32).cuda() for seed in (1, 2))
    where = Where.even(4)
    (energy,) = TangentNormalMetric(score).energies([x], differentiate=True)
    found = [score(x, where), score.jvp(x, v, where), score.vjp(x, v, where), energy.gradient]
    return [one.float().cpu() for one in found]


def assert_near(found, expected, share):
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= share * other.norm()


@gpu
def test_a_gpu_gives_the_products_of_the_cpu():
    score = DiffusionScore(
        prompted_score_unet(), SCHEDULER, 300, encoder_hidden_states=embeddings(2, seed=12)
    )
    x, v = (randn(4, 2, 8, 8, seed=seed) for seed in (1, 2))
    where = Where.even(4)
    (energy,) = TangentNormalMetric(score).energies([x], differentiate=True)
    expected = [score(x, where), score.jvp(x, v, where), score.vjp(x, v, where), energy.gradient]
    assert_near(products(gpu_score()), [one.float() for one in expected], 1e-3)


@gpu
@pytest.mark.parametrize(
    ("dtype", "share"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)], ids=["float16", "bfloat16"]
)
def test_half_precision_on_a_gpu(dtype, share):
    assert_near(products(gpu_score(dtype)), products(gpu_score()), share)


@gpu
def test_tf32_on_a_gpu(monkeypatch):
    expected = products(gpu_score())
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert_near(products(gpu_score()), expected, 0.01)


@gpu
@pytest.mark.parametrize("kind", ["leaf_level", "block_level", "stream"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_group_offload_on_a_gpu(kind, checkpointing):
    options = {"offload_type": kind, "num_blocks_per_group": 1}
    if kind == "stream":
        options = {"offload_type": "leaf_level", "use_stream": True}

    def change(unet):
        unet.enable_group_offload(torch.device("cuda"), torch.device("cpu"), **options)
        if checkpointing:
            unet.enable_gradient_checkpointing()

    assert_near(products(gpu_score(change=change)), products(gpu_score()), 1e-3)


@gpu
def test_a_solve_on_a_gpu_copies_once_per_network_call_at_most():
    score = gpu_score()
    calls = []
    score.network.register_forward_pre_hook(lambda *_: calls.append(1))
    ends = randn(2, 2, 8, 8, dtype=torch.float32).cuda()
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        geodesic(TangentNormalMetric(score), *ends, num_points=5, max_evals=9, solver=PathLBFGS())
    copies = sum(
        event.count for event in profile.key_averages() if event.key.startswith("Memcpy HtoD")
    )
    assert copies <= len(calls) + 5  # and a few at the beginning and at the end
