"""The shipped model as a score: products with its Jacobian, and solves in its latents."""

import pytest
import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
)
from exact import central_difference
from PIL import Image

from riemannian_diffusion import (
    Adam,
    DiffusionScore,
    PathLBFGS,
    TangentNormalMetric,
    demo,
    geodesic,
)

TIMESTEP = 581  # 0.6 of 50 steps


@pytest.fixture(scope="module")
def ends(shipped_pipe):
    """The noisy latents of the shipped images at the timestep, `(2, 4, 16, 16)`."""
    images = [Image.open(path).convert("RGB") for path in demo.endpoint_paths()]
    return shipped_pipe(images, metric="slerp", num_frames=2, output_type="latent").latents


def score_of(shipped_pipe, prompt="") -> DiffusionScore:
    hidden, _ = shipped_pipe.encode_prompt(prompt, "cpu", 1, False)
    return DiffusionScore(
        shipped_pipe.unet, shipped_pipe.scheduler, TIMESTEP, encoder_hidden_states=hidden
    )


def processors(unet) -> list:
    return [module.processor for module in unet.modules() if isinstance(module, Attention)]


def leave(unet):
    """The loaded model, which uses torch's fused attention."""


DEFAULTS = {
    "as loaded": (leave, AttnProcessor2_0),
    "set_default_attn_processor": (lambda unet: unet.set_default_attn_processor(), AttnProcessor),
    "set_attention_slice": (lambda unet: unet.set_attention_slice("max"), SlicedAttnProcessor),
}


@pytest.mark.parametrize("choose, kind", DEFAULTS.values(), ids=DEFAULTS.keys())
@pytest.mark.parametrize("prompt", ["", "a red cube"])
def test_jvp_against_central_differences(shipped_pipe, ends, prompt, choose, kind):
    unet, usual = shipped_pipe.unet, shipped_pipe.unet.attn_processors
    score = score_of(shipped_pipe, prompt)
    try:
        unet.double()
        choose(unet)
        before = processors(unet)
        assert before and all(type(processor) is kind for processor in before)
        x = ends.double()
        v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        product = score.jvp(x, v)
        expected = central_difference(score, x, v, 1e-3)
        assert (product - expected).norm() <= 1e-6 * expected.norm()
        w = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
        transposed = (score.vjp(x, w) * v).sum()
        assert float(transposed) == pytest.approx(float((w * product).sum()), rel=1e-9, abs=1e-9)
        after = processors(unet)
        assert all(one is other for one, other in zip(after, before, strict=True))
    finally:
        unet.set_attn_processor(dict(usual))
        unet.float()


def test_the_end_points_of_a_solve(shipped_pipe, ends):
    metric = TangentNormalMetric(score_of(shipped_pipe))
    found = geodesic(metric, *ends, num_points=5, max_evals=4)
    assert torch.equal(found.path[0], ends[0]) and torch.equal(found.path[-1], ends[1])
    assert found.lower_bound <= found.energy
    assert found.iterates[-1][1] < found.iterates[0][1]


@pytest.mark.slow
def test_evaluations_to_reach_what_adam_reaches_in_500(shipped_pipe, ends):
    metric = TangentNormalMetric(score_of(shipped_pipe))

    def lowest(solver, max_evals):
        found = geodesic(metric, *ends, num_points=9, solver=solver, rtol=0.0, max_evals=max_evals)
        return min(energy for _, energy in found.iterates)

    goal = min(lowest(Adam(lr, lr / 10), 500) for lr in (1e-3, 1e-2))
    assert lowest(PathLBFGS(), 50) <= goal


def test_guided_images_come_back(shipped_pipe):
    """Small residuals of a guided inversion grow a hundredfold on the way back."""
    images = [Image.open(path) for path in demo.endpoint_paths()]
    captions = ["a red torus", "a yellow torus"]
    keys = shipped_pipe.invert(images, captions, guidance_scale=3.0)
    ends = shipped_pipe.sample(shipped_pipe.solve(keys, "lerp", num_frames=2)).latents
    missed = (ends - keys.clean).flatten(1).norm(dim=1) / keys.clean.flatten(1).norm(dim=1)
    assert float(missed.max()) < 0.01
