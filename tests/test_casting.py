"""Networks that cast or move their weights layer by layer, and networks made in inference mode."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import DDIMScheduler
from models import FAST, embeddings, make, prompted_score_unet, randn, silent, waves
from torch.testing import assert_close

from riemannian_diffusion import (
    DiffusionScore,
    GaussianMixtureScore,
    LikelyMetric,
    ScoreJacobianMetric,
    SteinScoreMetric,
    TangentNormalMetric,
    geodesic,
)

METRICS = (TangentNormalMetric, ScoreJacobianMetric, SteinScoreMetric, LikelyMetric)
FP8 = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float32}
CPU = torch.device("cpu")
SCHEDULER = DDIMScheduler()


def cast(unet):
    unet.enable_layerwise_casting(**FP8)


def offload(unet):
    unet.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def offload_blocks(unet):
    options = {"offload_type": "block_level", "num_blocks_per_group": 1}
    unet.enable_group_offload(onload_device=CPU, offload_device=CPU, **options)


MOVES = {"cast": [cast], "offload": [offload], "both": [cast, offload], "blocks": [offload_blocks]}


@pytest.fixture(params=MOVES)
def networks(request):
    """A network that moves its weights, and one with the same weights that does not."""
    moving = prompted_score_unet().float().eval()
    plain = copy.deepcopy(moving)
    for change in MOVES[request.param]:
        change(moving)
    with torch.no_grad():
        for parameter, other in zip(plain.parameters(), moving.parameters(), strict=True):
            parameter.copy_(other.float())
    return moving, plain


def score_of(network, max_batch_size=None):
    prompt = embeddings(1, seed=12).float()
    options = {"encoder_hidden_states": prompt, "max_batch_size": max_batch_size}
    return DiffusionScore(network, SCHEDULER, 300, **options)


X, V = (randn(4, 2, 8, 8, seed=seed, dtype=torch.float32) for seed in (1, 2))


@pytest.mark.parametrize("max_batch_size", [None, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_moved_weights_give_the_same_products(networks, max_batch_size, checkpointing):
    moving, plain = networks
    if checkpointing:
        moving.enable_gradient_checkpointing()
    score, expected = score_of(moving, max_batch_size), score_of(plain)

    def gradient(score):
        points = X.clone().requires_grad_()
        return torch.autograd.grad((score(points) * V).sum(), points)[0]

    assert_close(score(X), expected(X))
    assert_close(gradient(score), gradient(expected), rtol=1e-4, atol=1e-6)
    assert_close(score.jvp(X, V), expected.jvp(X, V), rtol=1e-4, atol=1e-6)
    assert_close(score.vjp(X, V), expected.vjp(X, V), rtol=1e-4, atol=1e-6)
    assert_close(gradient(score), gradient(expected), rtol=1e-4, atol=1e-6)  # nothing was spoiled


@pytest.mark.parametrize("kind", METRICS)
def test_moved_weights_give_the_same_energies(networks, kind):
    moving, plain = networks
    (found,), (expected,) = (
        kind(score_of(network)).energies([X], differentiate=True) for network in networks
    )
    assert_close(found.segments, expected.segments, rtol=1e-4, atol=1e-6)
    assert_close(found.gradient, expected.gradient, rtol=1e-4, atol=1e-5)
    inner, other = (kind(score_of(network)).inner(X, V, V) for network in networks)
    assert_close(inner, other, rtol=1e-4, atol=1e-6)


def test_gradients_of_forward_products_with_moved_weights(networks):
    """The energy of `inner` is differentiated through forward mode."""
    forces = [ScoreJacobianMetric(score_of(network)).force(X, V) for network in networks]
    assert forces[1].norm() > 0
    assert_close(*forces, rtol=1e-4, atol=1e-5)


# Inference mode


@pytest.fixture
def exact():
    return GaussianMixtureScore(randn(3, 5, seed=1), 0.7)


def products(score, x, v):
    """All derivatives of a score, through all ways that compute them."""
    metric = TangentNormalMetric(score)
    return [
        score.jvp(x, v),
        score.vjp(x, v),
        metric.inner(x, v, v),
        metric.flat(x, v),
        metric.energies([x], differentiate=True)[0].gradient,
    ]


@pytest.mark.parametrize("inside", [False, True], ids=["points outside", "points inside"])
@pytest.mark.parametrize("kind", ["plain", "chunks", "checkpointing", "cast"])
def test_products_in_inference_mode(inside, kind):
    unet = prompted_score_unet().float()
    if kind == "checkpointing":
        unet.enable_gradient_checkpointing()
    if kind == "cast":
        cast(unet)
    score = score_of(unet, 3 if kind == "chunks" else None)
    expected = products(score, X, V)
    with torch.inference_mode():
        found = products(score, X.clone(), V.clone()) if inside else products(score, X, V)
    for one, other in zip(found, expected, strict=True):
        assert_close(one.clone(), other)


def test_weights_loaded_in_inference_mode_are_refused_before_the_work():
    with torch.inference_mode():
        pipe = silent(make("sd"))
        unet = prompted_score_unet().float()
    calls = []
    pipe.vae.register_forward_pre_hook(lambda *_: calls.append(1))
    pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    for mode in (True, False):
        with torch.inference_mode(mode), pytest.raises(ValueError, match="load the model outside"):
            pipe(waves(2), ["a", "b"], **FAST)
        with torch.inference_mode(mode), pytest.raises(ValueError, match="UNet2DConditionModel"):
            score_of(unet)
    assert not calls


def test_a_morph_in_inference_mode_is_the_morph_outside():
    pipe = silent(make("sd"))
    options = FAST | {"output_type": "pt", "metric": "score_jacobian"}
    expected = pipe(waves(2), ["a", "b"], **options)
    with torch.inference_mode():
        found = pipe(waves(2), ["a", "b"], **options)
    assert_close(found.frames.clone(), expected.frames)
    assert found.geodesics[0].energy == pytest.approx(expected.geodesics[0].energy)


def test_a_geodesic_in_inference_mode(exact):
    ends = randn(2, 5, seed=3)
    expected = geodesic(ScoreJacobianMetric(exact), *ends, num_points=5)
    with torch.inference_mode():
        found = geodesic(ScoreJacobianMetric(exact), *ends.clone(), num_points=5)
    assert_close(found.path.clone(), expected.path)
