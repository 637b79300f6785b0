import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
)
from exact import ExactDenoiser, central_difference, dense_jacobian
from models import embeddings, prompted_score_unet, randn, score_unet
from scipy.stats import multivariate_normal
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from uses import MEANS, MODEL, NAN_, NET, STEPS, P

from riemannian_diffusion import (
    DiffusionScore,
    GaussianMixtureScore,
    ManifoldGuidedScore,
    ScoreJacobianMetric,
    ScoreModel,
    SharedNoiseScore,
    SteinScoreMetric,
    TangentNormalMetric,
    geodesic,
)
from riemannian_diffusion.score import DenoiserScore, Where
from riemannian_diffusion.score.attention import BlockwiseAttention


def apply(matrices, v):
    return (matrices @ v.flatten(1)[..., None]).view_as(v)


# ---------------------------------------------------------------------------- Gaussian mixtures

WEIGHTS = torch.tensor([0.1, 0.5, 2.0, 1.0, 0.0, 0.7], dtype=torch.float64)
MIXTURES = {
    "points": dict(shape=(5,), sigma=0.6),
    "gaussians": dict(shape=(5,), sigma=0.4, std=0.5),
    "weighted": dict(shape=(4,), sigma=0.6, std=0.2, weights=WEIGHTS),
    "scaled": dict(shape=(4,), sigma=0.6, std=0.3, weights=WEIGHTS, alpha=0.8),
    "images": dict(shape=(2, 3, 2), sigma=0.9, std=0.1, alpha=0.7),
    "no noise": dict(shape=(3,), sigma=0.0, std=0.7, alpha=0.9),
}


@pytest.fixture(params=MIXTURES.values(), ids=MIXTURES.keys())
def mixture(request):
    arguments = dict(request.param)
    means = randn(6, *arguments.pop("shape"), seed=1)
    return GaussianMixtureScore(means, arguments.pop("sigma"), **arguments)


def points_of(mixture, num=5):
    return 1.2 * randn(num, *mixture.means.shape[1:], seed=2)


def explicit_density(mixture, weights, x):
    variance = mixture.sigma**2 + (mixture.alpha * mixture.std) ** 2
    means = mixture.alpha * mixture.means.flatten(1).numpy()
    return sum(
        float(w) * multivariate_normal(mean, variance).pdf(x.flatten(1))
        for w, mean in zip(weights / weights.sum(), means, strict=True)
    )


def test_log_prob_is_the_log_of_the_summed_density(mixture, request):
    x = points_of(mixture)
    case = MIXTURES[request.node.callspec.id]
    weights = case.get("weights", torch.ones(6, dtype=torch.float64))
    expected = torch.as_tensor(explicit_density(mixture, weights, x)).log()
    assert_close(mixture.log_prob(x), expected, rtol=1e-10, atol=1e-10)


def test_score_is_the_gradient_of_log_prob(mixture):
    x = points_of(mixture).requires_grad_()
    (expected,) = torch.autograd.grad(mixture.log_prob(x).sum(), x)
    assert_close(mixture(x), expected, rtol=1e-10, atol=1e-10)


def test_jvp_and_vjp_are_products_with_the_dense_jacobian(mixture):
    x, v = points_of(mixture), randn(5, *mixture.means.shape[1:], seed=3)
    matrices = dense_jacobian(mixture, x)
    assert_close(mixture.jvp(x, v), apply(matrices, v), rtol=1e-10, atol=1e-10)
    assert_close(mixture.vjp(x, v), apply(matrices.mT, v), rtol=1e-10, atol=1e-10)
    # these products are inherited from `ScoreModel`
    assert_close(ScoreModel.jvp(mixture, x, v), apply(matrices, v), rtol=1e-10, atol=1e-10)
    assert_close(ScoreModel.vjp(mixture, x, v), apply(matrices.mT, v), rtol=1e-10, atol=1e-10)
    assert_close(mixture.stack(x), mixture(x)[:, None], rtol=0, atol=0)
    assert_close(mixture.stack_jvp(x, v), mixture.jvp(x, v)[:, None], rtol=0, atol=0)


def test_denoising_is_the_posterior_mean(mixture, request):
    """Tweedie's formula equals Bayes' rule for every component."""
    x = points_of(mixture).flatten(1)
    case = MIXTURES[request.node.callspec.id]
    alpha, std, sigma = mixture.alpha, mixture.std, mixture.sigma
    variance = sigma**2 + (alpha * std) ** 2
    means = alpha * mixture.means.flatten(1)
    weights = case.get("weights", torch.ones(6, dtype=torch.float64))
    away = x[:, None] - means  # (K, M, d)
    posterior = (weights.log() - away.square().sum(2) / (2 * variance)).softmax(1)
    component = means + (alpha * std) ** 2 / variance * away
    expected = (posterior[..., None] * component).sum(1)
    assert_close(mixture.denoise(x.view(5, *mixture.means.shape[1:])).flatten(1), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_and_correct_far_from_every_mean(dtype):
    sigma = 0.1
    means = randn(50, 8, seed=4, dtype=dtype)
    mixture = GaussianMixtureScore(means, sigma)
    direction = F.normalize(randn(6, 8, seed=5), dim=1)
    x = (1e4 * sigma * direction).to(dtype)
    away = x.double()[:, None] - means.double()
    logits = -away.square().sum(2) / (2 * sigma**2)
    posterior = logits.softmax(1)
    expected = -(posterior[..., None] * away).sum(1) / sigma**2
    log_prob = logits.logsumexp(1) - math.log(50) - 4 * math.log(2 * math.pi * sigma**2)
    rtol = 1e-6 if dtype == torch.float32 else 1e-11
    assert_close(mixture(x).double(), expected, rtol=rtol, atol=rtol * 1e4 / sigma)
    assert_close(mixture.log_prob(x).double(), log_prob, rtol=rtol, atol=0)
    v = randn(6, 8, seed=6, dtype=dtype)
    assert mixture.jvp(x, v).isfinite().all()
    assert mixture.vjp(x, v).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jacobian_far_away_between_two_means(dtype):
    """On the bisector of two means both have equal probability, at any distance."""
    sigma, half = 0.1, 0.15
    means = torch.tensor([[half, 0.0, 0.0], [-half, 0.0, 0.0]], dtype=dtype)
    mixture = GaussianMixtureScore(means, sigma)
    x = torch.tensor([[0.0, 1e4 * sigma, 0.0]], dtype=dtype)
    expected = [(half / sigma**2) ** 2 - 1 / sigma**2, -1 / sigma**2, -1 / sigma**2]
    matrix = torch.stack([mixture.jvp(x, e[None])[0] for e in torch.eye(3, dtype=dtype)])
    assert_close(matrix, torch.diag(torch.tensor(expected, dtype=dtype)), rtol=1e-5, atol=1e-3)
    assert_close(mixture(x), -x / sigma**2, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("max_logits", [1, 6, 13])
def test_chunks_of_points_give_the_same_values(mixture, max_logits):
    x, v = points_of(mixture, 7), randn(7, *mixture.means.shape[1:], seed=3)
    expected = mixture(x), mixture.log_prob(x), mixture.jvp(x, v), mixture.vjp(x, v)
    sizes = []
    inner = mixture._centred
    mixture._centred = lambda part: (sizes.append(len(part)), inner(part))[1]
    mixture.max_logits = max_logits
    actual = mixture(x), mixture.log_prob(x), mixture.jvp(x, v), mixture.vjp(x, v)
    assert max(sizes) == max(1, max_logits // 6)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that an operation returned."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.size = max([self.size, *sizes])
        return out


def test_ten_thousand_means_of_a_thousand_values():
    means = randn(10_000, 10, 100, seed=7, dtype=torch.float32)
    mixture = GaussianMixtureScore(means, 0.5)
    x = means[:16] + 0.5 * randn(16, 10, 100, seed=8, dtype=torch.float32)
    with LargestTensor() as largest:
        score, product = mixture(x), mixture.jvp(x, x)
    # the means are far apart, so each point belongs to its own mean
    assert_close(score, (means[:16] - x) / 0.25, rtol=1e-4, atol=1e-3)
    assert_close(product, -x / 0.25, rtol=1e-4, atol=1e-3)
    assert mixture.log_prob(x).isfinite().all()
    assert largest.size == means.numel()  # no tensor has shape (points, means, values)


@pytest.mark.parametrize(
    "x_dtype, means_dtype",
    [
        (torch.float16, torch.float32),
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
    ],
)
def test_mixture_keeps_the_dtype_of_the_points(x_dtype, means_dtype):
    mixture = GaussianMixtureScore(randn(4, 3, dtype=means_dtype), 0.5, alpha=0.9)
    x = randn(2, 3, seed=1, dtype=x_dtype)
    wide = GaussianMixtureScore(mixture.means.double(), 0.5, alpha=0.9)
    for name, more in (("__call__", ()), ("jvp", (x,)), ("vjp", (x,)), ("log_prob", ())):
        actual = getattr(mixture, name)(x, *more)
        assert actual.dtype == x_dtype
        expected = getattr(wide, name)(x.double(), *(a.double() for a in more)).to(x_dtype)
        assert_close(actual, expected, rtol=2e-3, atol=2e-3 if x_dtype.itemsize == 2 else 1e-5)


@pytest.mark.parametrize(
    "means, sigma, options, message",
    [
        (torch.zeros(3), 1.0, {}, r"`means` must be .*\(M, \*shape\).*got \(3,\)"),
        (torch.zeros(3, 2, dtype=torch.int64), 1.0, {}, "`means` must be a floating-point"),
        (torch.zeros(0, 2), 1.0, {}, "`means` must be"),
        (torch.zeros(3, 2), -1.0, {}, "must not be negative.*sigma=-1"),
        (torch.zeros(3, 2), 0.0, {}, "nor both 0"),
        (torch.zeros(3, 2), 1.0, {"std": -0.1}, "must not be negative.*std=-0.1"),
        (torch.zeros(3, 2), 1.0, {"alpha": 0.0}, "`alpha` must be positive.*alpha=0"),
        (torch.zeros(3, 2), 1.0, {"weights": torch.ones(2)}, r"`weights` must be \(3,\)"),
        (torch.zeros(3, 2), 1.0, {"weights": torch.tensor([1.0, -1, 1])}, "non-negative"),
        (torch.zeros(3, 2), 1.0, {"weights": torch.zeros(3)}, "not all 0"),
    ],
)
def test_bad_mixtures(means, sigma, options, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixtureScore(means, sigma, **options)


def test_mixture_names_the_shape_it_needs():
    mixture = GaussianMixtureScore(torch.zeros(3, 2, 4), 1.0)
    with pytest.raises(ValueError, match=r"`x` must be \(K, 2, 4\), but got \(2, 4\)"):
        mixture(torch.zeros(2, 4))


# ---------------------------------------------------------------- diffusers denoisers, known ones


@pytest.mark.parametrize("timestep", [0, 400, 999])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_every_parametrisation_is_the_same_score(prediction_type, timestep):
    scheduler = DDIMScheduler(prediction_type=prediction_type)
    means = randn(5, 2, 3, seed=1)
    score = DiffusionScore(ExactDenoiser(scheduler, means, 0.3), scheduler, timestep)
    abar = float(scheduler.alphas_cumprod[timestep])
    assert score.alpha**2 == pytest.approx(abar, rel=1e-12)
    assert score.sigma**2 == pytest.approx(1 - abar, rel=1e-12)
    exact = GaussianMixtureScore(means, score.sigma, std=0.3, alpha=score.alpha)
    x, v = randn(4, 2, 3, seed=2), randn(4, 2, 3, seed=3)
    assert_close(score(x), exact(x), rtol=1e-8, atol=1e-8)
    assert_close(score.denoise(x), exact.denoise(x), rtol=1e-8, atol=1e-8)
    assert_close(score.jvp(x, v), exact.jvp(x, v), rtol=1e-8, atol=1e-8)
    assert_close(score.vjp(x, v), exact.vjp(x, v), rtol=1e-8, atol=1e-8)


# --------------------------------------------------------------- diffusers denoisers, random ones


class MaskedProcessor:
    """Attention by torch's fused function, with its own mask."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
        residual, shape = hidden_states, hidden_states.shape
        if hidden_states.ndim == 4:
            hidden_states = hidden_states.flatten(2).mT
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.mT).mT
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for layer, states in (
                (attn.to_q, hidden_states),
                (attn.to_k, context),
                (attn.to_v, context),
            )
        )
        num_queries, num_keys = query.shape[2], key.shape[2]
        mask = torch.ones(num_queries, num_keys, dtype=torch.bool)
        mask[:, 1] = False
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out = attn.to_out[0](out.transpose(1, 2).flatten(2))
        if len(shape) == 4:
            out = out.mT.reshape(shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor


def attentions(model):
    return [module for module in model.modules() if isinstance(module, Attention)]


def set_processors(model, make):
    for module in attentions(model):
        module.set_processor(make())
        module.upcast_softmax = False  # the rounding of float32 would spoil differences in float64


PROCESSORS = {
    "AttnProcessor2_0": AttnProcessor2_0,
    "AttnProcessor": AttnProcessor,
    "SlicedAttnProcessor": lambda: SlicedAttnProcessor(1),
    "custom": MaskedProcessor,
}


SCHEDULER = DDIMScheduler()
UNETS = {
    "unconditional": (score_unet, {}),
    "conditional": (prompted_score_unet, {"encoder_hidden_states": embeddings(1)}),
}


@pytest.fixture(params=UNETS.values(), ids=UNETS.keys())
def unet(request):
    make, options = request.param
    return make(), options


def images(num, seed=0, dtype=torch.float64):
    return randn(num, 2, 8, 8, seed=seed, dtype=dtype)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_products_with_the_jacobian_of_a_unet(unet, processor):
    model, options = unet
    set_processors(model, PROCESSORS[processor])
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 > 0)
    before = [module.processor for module in attentions(model)]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    assert len(before) >= 3

    score = DiffusionScore(model, SCHEDULER, 300, **options)
    x, v, w = images(2, 1), images(2, 2), images(2, 3)
    product = score.jvp(x, v)
    expected = central_difference(score, x, v, 1e-3)
    assert (product - expected).norm() <= 1e-6 * expected.norm()
    transposed = score.vjp(x, w)
    assert_close(
        (w * product).flatten(1).sum(1), (transposed * v).flatten(1).sum(1), rtol=1e-9, atol=1e-9
    )

    after = [module.processor for module in attentions(model)]
    assert all(one is other for one, other in zip(after, before, strict=True))
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


def test_jvp_of_a_channels_last_model(unet):
    model, options = unet
    score = DiffusionScore(model, SCHEDULER, 300, **options)
    x, v = images(2, 1), images(2, 2)
    expected = score.jvp(x, v)
    model.to(memory_format=torch.channels_last)
    actual = score.jvp(x.to(memory_format=torch.channels_last), v)
    assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_products_do_not_need_grad_mode(unet, context):
    model, options = unet
    score = DiffusionScore(model, SCHEDULER, 300, **options)
    x, v = images(2, 1), images(2, 2)
    expected = score.jvp(x, v), score.vjp(x, v)
    with context():
        actual = score.jvp(x, v), score.vjp(x, v)
    assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_products_after_set_attention_slice():
    model = prompted_score_unet()
    score = DiffusionScore(model, SCHEDULER, 300, encoder_hidden_states=embeddings(1))
    expected = score.jvp(images(2, 1), images(2, 2))
    model.set_attention_slice("max")
    sliced = [module.processor for module in attentions(model)]
    assert {type(processor) for processor in sliced} == {SlicedAttnProcessor}
    assert_close(score.jvp(images(2, 1), images(2, 2)), expected, rtol=1e-10, atol=1e-10)
    after = [module.processor for module in attentions(model)]
    assert all(one is other for one, other in zip(after, sliced, strict=True))


def test_the_mask_of_a_custom_processor_counts():
    """Without an effect of the mask, the test above could not show that it is passed on."""
    model = score_unet()
    score = DiffusionScore(model, SCHEDULER, 300)
    plain = score.jvp(images(2, 1), images(2, 2))
    set_processors(model, MaskedProcessor)
    masked = score.jvp(images(2, 1), images(2, 2))
    assert (masked - plain).norm() > 1e-5 * plain.norm()


def test_an_attention_backend_chosen_by_the_user_is_restored():
    model = score_unet()
    score = DiffusionScore(model, SCHEDULER, 300)
    expected = score.jvp(images(2, 1), images(2, 2))
    for module in attentions(model):
        module.processor._attention_backend = "_native_efficient"
    assert_close(score.jvp(images(2, 1), images(2, 2)), expected, rtol=1e-10, atol=1e-10)
    backends = {module.processor._attention_backend for module in attentions(model)}
    assert backends == {"_native_efficient"}


@pytest.mark.parametrize("name", ["__call__", "jvp", "vjp"])
def test_an_exception_inside_the_model_leaves_it_as_it_was(unet, name):
    model, options = unet
    set_processors(model, AttnProcessor)
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 > 0)
    before = [module.processor for module in attentions(model)]
    flags = [parameter.requires_grad for parameter in model.parameters()]

    def fail(*_):
        raise RuntimeError("from inside the model")

    handle = model.conv_out.register_forward_hook(fail)
    score = DiffusionScore(model, SCHEDULER, 300, **options)
    with pytest.raises(RuntimeError, match="from inside the model"):
        getattr(score, name)(images(2), *([] if name == "__call__" else [images(2)]))
    handle.remove()
    after = [module.processor for module in attentions(model)]
    assert all(one is other for one, other in zip(after, before, strict=True))
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    query = randn(1, 1, 4, 4)  # attention allows dropout again
    F.scaled_dot_product_attention(query, query, query, dropout_p=0.5)


@pytest.mark.parametrize("max_scores", [1, 200])
def test_products_do_not_depend_on_the_blocks_of_attention(unet, monkeypatch, max_scores):
    model, options = unet
    score = DiffusionScore(model, SCHEDULER, 300, **options)
    expected = score.jvp(images(2, 1), images(2, 2))
    monkeypatch.setattr(BlockwiseAttention, "max_scores", max_scores)
    actual = score.jvp(images(2, 1), images(2, 2))
    assert_close(actual, expected, rtol=1e-10, atol=1e-10)


BOOL_MASK = torch.rand(7, 9, generator=torch.Generator().manual_seed(0)) > 0.3
EMPTY_ROW = torch.arange(7)[:, None] != 2  # the third query may attend to no key
ATTENTION = {
    "plain": {},
    "bool mask": {"attn_mask": BOOL_MASK},
    "bool mask for every batch and head": {"attn_mask": BOOL_MASK.expand(2, 4, 7, 9)},
    "float mask": {"attn_mask": randn(2, 1, 7, 9, seed=5)},
    "float mask for keys": {"attn_mask": randn(2, 1, 1, 9, seed=5)},
    "bool mask for keys": {"attn_mask": BOOL_MASK[:1]},
    "bool mask with an empty row": {"attn_mask": BOOL_MASK & EMPTY_ROW},
    "float mask with an empty row": {
        "attn_mask": randn(7, 9, seed=5).masked_fill(~EMPTY_ROW, -torch.inf)
    },
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "scale 0": {"scale": 0.0},
    "grouped": {"enable_gqa": True},
    "grouped, causal, scaled": {"enable_gqa": True, "is_causal": True, "scale": 2.0},
}


@pytest.mark.parametrize("max_scores", [1, 150, 2**23])
@pytest.mark.parametrize("options", ATTENTION.values(), ids=ATTENTION.keys())
def test_blockwise_attention_is_torch_attention(options, max_scores, monkeypatch):
    monkeypatch.setattr(BlockwiseAttention, "max_scores", max_scores)
    heads = 2 if options.get("enable_gqa") else 4
    query, key = randn(2, 4, 7, 5, seed=1), randn(2, heads, 9, 5, seed=2)
    value = randn(2, heads, 9, 3, seed=3)
    expected = F.scaled_dot_product_attention(query, key, value, **options)
    with BlockwiseAttention():
        actual = F.scaled_dot_product_attention(query, key, value, **options)
    assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", ATTENTION.values(), ids=ATTENTION.keys())
def test_blockwise_attention_has_the_derivative_of_torch_attention(options, monkeypatch):
    """Forward mode through blocks equals reverse mode through torch's kernel."""
    monkeypatch.setattr(BlockwiseAttention, "max_scores", 150)
    heads = 2 if options.get("enable_gqa") else 4
    inputs = randn(2, 4, 7, 5, seed=1), randn(2, heads, 9, 5, seed=2), randn(2, heads, 9, 3, seed=3)
    tangents = [randn(*a.shape, seed=4 + i) for i, a in enumerate(inputs)]
    cotangent = randn(2, 4, 7, 3, seed=7)

    def attend(*inputs):
        return F.scaled_dot_product_attention(*inputs, **options)

    _, pull = torch.func.vjp(attend, *inputs)
    expected = sum((a * b).sum() for a, b in zip(pull(cotangent), tangents, strict=True))
    with BlockwiseAttention():
        _, pushed = torch.func.jvp(attend, inputs, tuple(tangents))
    assert_close((pushed * cotangent).sum(), expected, rtol=1e-9, atol=1e-9)


def test_blockwise_attention_holds_one_block_of_scores(monkeypatch):
    monkeypatch.setattr(BlockwiseAttention, "max_scores", 2**10)
    query = randn(1, 1, 256, 2)
    with BlockwiseAttention(), LargestTensor() as largest:
        F.scaled_dot_product_attention(query, query, query)
    assert largest.size == 2**10


def test_blockwise_attention_refuses_dropout():
    query = randn(1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"dropout is 0.5: call `model.eval\(\)`"):
        with BlockwiseAttention():
            F.scaled_dot_product_attention(query, query, query, dropout_p=0.5)


# ------------------------------------------------------------------------------ prompts and modes


def raw_noise(model, x, hidden):
    with torch.no_grad():
        return model(x, torch.tensor(300), encoder_hidden_states=hidden).sample


def test_paths_of_prompts():
    model = prompted_score_unet()
    x = images(5)
    one, two, five = embeddings(1, seed=12), embeddings(2, seed=13), embeddings(5, seed=14)
    u = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None, None]
    for given, used in (
        (one, one.expand(5, -1, -1)),
        (five, five),
        (two, (1 - u) * two[:1] + u * two[1:]),
        (five[:3], torch.stack([five[0], five[:2].mean(0), five[1], five[1:3].mean(0), five[2]])),
    ):
        score = DiffusionScore(model, SCHEDULER, 300, encoder_hidden_states=given)
        expected = -raw_noise(model, x, used) / score.sigma
        assert_close(score(x, Where.even(5)), expected, rtol=1e-10, atol=1e-10)
    assert (raw_noise(model, x, five) - raw_noise(model, x, one.expand(5, -1, -1))).norm() > 1e-3


MODES = {
    "conditional": lambda cond, neg: cond,
    "guided": lambda cond, neg: neg + 2.5 * (cond - neg),
    "difference": lambda cond, neg: cond - neg,
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_combine_the_models_outputs(mode):
    model, x = prompted_score_unet(), images(4)
    cond, neg = embeddings(4, seed=12), embeddings(1, seed=13)
    score = DiffusionScore(
        model,
        SCHEDULER,
        300,
        encoder_hidden_states=cond,
        negative_hidden_states=neg,
        guidance_scale=2.5,
        mode=mode,
    )
    noise = MODES[mode](raw_noise(model, x, cond), raw_noise(model, x, neg.expand(4, -1, -1)))
    sigma = (1 - float(SCHEDULER.alphas_cumprod[300])) ** 0.5
    assert_close(score(x, Where.even(4)), -noise / sigma, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_values_do_not_depend_on_the_batch_size(mode):
    model = prompted_score_unet()
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    x, v, where = images(5, 1), images(5, 2), Where.even(5)
    results = []
    for max_batch_size in (None, 2, 1):
        score = DiffusionScore(
            model,
            SCHEDULER,
            300,
            encoder_hidden_states=embeddings(2, seed=12),
            negative_hidden_states=embeddings(5, seed=13),
            guidance_scale=2.5,
            mode=mode,
            max_batch_size=max_batch_size,
        )
        sizes.clear()
        points = x.clone().requires_grad_()
        value = score(points, where)
        (gradient,) = torch.autograd.grad((value * v).sum(), points)
        with torch.no_grad():
            assert_close(score(x, where), value.detach(), rtol=1e-10, atol=1e-10)
        results.append([value.detach(), gradient, score.jvp(x, v, where), score.vjp(x, v, where)])
        assert max(sizes) == (max_batch_size or 5)
        sizes.clear()
        score.max_batch_size = 4
        assert_close(score(x, where), value.detach(), rtol=1e-10, atol=1e-10)
        assert max(sizes) == score.max_batch_size == 4
        assert all(parameter.grad is None for parameter in model.parameters())
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    assert_close(results[0][1], results[0][3], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("max_batch_size", [None, 2])
def test_a_model_that_checkpoints_itself(unet, max_batch_size):
    """Its blocks are evaluated again in the reverse pass, whose parameters require gradients."""
    model, options = unet
    x, v = images(3, 1).requires_grad_(), images(3, 2)

    def gradient():
        score = DiffusionScore(model, SCHEDULER, 300, max_batch_size=max_batch_size, **options)
        return torch.autograd.grad((score(x) * v).sum(), x)[0]

    expected = gradient()
    model.enable_gradient_checkpointing()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert_close(gradient(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("max_batch_size", [None, 2])
def test_transforms_of_torch_func_around_a_score(unet, max_batch_size):
    """They support neither gradient checkpointing nor evaluation of chunks in the reverse pass."""
    model, options = unet
    x, v = images(3, 1), images(3, 2)
    plain = DiffusionScore(model, SCHEDULER, 300, **options)
    products = plain.jvp(x, v), plain.vjp(x, v)
    model.enable_gradient_checkpointing()
    score = DiffusionScore(model, SCHEDULER, 300, max_batch_size=max_batch_size, **options)
    for found, expected in (
        (torch.func.vjp(score, x)[1](v)[0], products[1]),
        (torch.func.vmap(lambda w: score.vjp(x, w))(v[None])[0], products[1]),
        (torch.func.vmap(lambda w: score.jvp(x, w))(v[None])[0], products[0]),
    ):
        assert_close(found, expected, rtol=1e-10, atol=1e-12)
    # a reverse pass through a product in forward mode: d/dv of |J v|^2 / 2 is J^T J v
    v.requires_grad_()
    gradient = torch.autograd.grad(score.jvp(x, v).square().sum() / 2, v)[0]
    assert_close(gradient, plain.vjp(x, products[0]), rtol=1e-10, atol=1e-12)
    checked = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
    assert checked and all(module.gradient_checkpointing for module in checked)


class Narrow(ExactDenoiser):
    """A network whose memory runs out for more than `most` points at once."""

    most, sizes = 5, ()

    def forward(self, x, timestep, return_dict=True):
        self.sizes = (*self.sizes, len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(x, timestep, return_dict)


@pytest.mark.parametrize("noises", [None, 2])
def test_a_solve_that_runs_out_of_memory_continues_in_smaller_batches(noises):
    means = randn(5, 3, seed=1)

    def solve(most):
        model = Narrow(SCHEDULER, means, 0.3)
        model.most = most
        score = DiffusionScore(model, SCHEDULER, 300)
        read = score if noises is None else SharedNoiseScore(score, randn(noises, 3, seed=2))
        found = geodesic(TangentNormalMetric(read), means[0], means[1], num_points=9, max_evals=4)
        return found, score, model.sizes

    wide, score, sizes = solve(1000)
    assert score.max_batch_size is None and max(sizes) == 31 * (noises or 1)
    with pytest.warns(UserWarning, match="Out of memory") as caught:
        narrow, score, sizes = solve(5)
    first = 15 * (noises or 1)  # 9 points, 2 chords, without the end points
    (warning,) = caught
    assert f"with a batch of {first}: continued with 3 at once" in str(warning.message)
    failed = [i for i, size in enumerate(sizes) if size > 5]
    assert [sizes[i] for i in failed] == [30, 15, 7][-len(failed) :]
    assert score.max_batch_size == 3 and max(sizes[failed[-1] + 1 :]) == 3
    assert_close(narrow.path, wide.path, rtol=1e-9, atol=1e-9)
    assert narrow.energy == pytest.approx(wide.energy, rel=1e-9)
    with pytest.raises(torch.OutOfMemoryError):
        solve(0)


def test_several_tangents_at_one_point_by_vmap(unet):
    """The network is evaluated at the point once, not once per tangent."""
    model, options = unet
    score = DiffusionScore(model, SCHEDULER, 300, **options)
    x, tangents = images(1, 1), images(3, 2)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    pushed = torch.func.vmap(lambda v: score.jvp(x, v[None])[0])(tangents)
    assert_close(pushed, score.jvp(x.expand_as(tangents).contiguous(), tangents))
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


@pytest.mark.parametrize("max_batch_size", [None, 1])
def test_parameters_get_no_gradient(unet, max_batch_size):
    model, options = unet
    score = DiffusionScore(model, SCHEDULER, 300, max_batch_size=max_batch_size, **options)
    x = images(3).requires_grad_()
    score(x).square().sum().backward()
    assert x.grad.norm() > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("max_batch_size", [None, 2])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.float64])
def test_points_keep_their_dtype_with_any_model(unet, x_dtype, max_batch_size):
    model, options = unet
    x, v = images(3, 1, x_dtype), images(3, 2, x_dtype)
    options = dict(options, max_batch_size=max_batch_size)
    wide = DiffusionScore(model, SCHEDULER, 300, **options)
    expected = [
        wide(x.double()),
        wide.jvp(x.double(), v.double()),
        wide.vjp(x.double(), v.double()),
    ]
    half = DiffusionScore(model.to(torch.bfloat16), SCHEDULER, 300, **options)
    actual = [half(x), half.jvp(x, v), half.vjp(x, v)]
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == x_dtype
        assert (one - other).norm() <= 0.05 * other.norm()
    points = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((half(points) * v).sum(), points)
    assert gradient.dtype == x_dtype
    assert (gradient - expected[2]).norm() <= 0.05 * expected[2].norm()


def test_rounding_of_the_model_does_not_reach_the_points():
    """With velocity prediction, the point enters the score in its own precision."""
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    model = score_unet().to(torch.bfloat16)
    score = DiffusionScore(model, scheduler, 300)
    x = images(2)
    near = x + 1e-9
    same = x.to(torch.bfloat16) == near.to(torch.bfloat16)
    assert same.all()
    expected = torch.full_like(x, -1e-9)
    assert_close(score(near) - score(x), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"timestep": -1}, r"`timestep` must be in \[0, 999\], but got -1"),
        ({"timestep": 1000}, r"`timestep` must be in \[0, 999\], but got 1000"),
        ({"mode": "uncond"}, "`mode` must be .*got 'uncond'"),
        ({"mode": "guided"}, "needs both `encoder_hidden_states` and `negative_hidden_states`"),
        (
            {"mode": "difference", "encoder_hidden_states": embeddings(1)},
            "mode='difference' needs both",
        ),
        ({"mode": "guided", "negative_hidden_states": embeddings(1)}, "mode='guided' needs both"),
        ({"max_batch_size": 0}, "`max_batch_size` must be a whole number of at least 1, but got 0"),
        ({"scheduler": object()}, "`scheduler` must have `alphas_cumprod`.*but got object"),
        (
            {"scheduler": DDIMScheduler(rescale_betas_zero_snr=True), "timestep": 999},
            "999 .*a level needs both signal and noise: choose a lower `timestep`",
        ),
    ],
)
def test_bad_arguments_of_a_diffusion_score(options, message):
    arguments = {"model": nn.Linear(1, 1), "scheduler": SCHEDULER, "timestep": 5} | options
    with pytest.raises(ValueError, match=message):
        DiffusionScore(**arguments)


def test_unknown_prediction_types_are_named():
    scheduler = DDIMScheduler()
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match="`prediction_type` must be one of .*but got 'flow'"):
        DiffusionScore(nn.Linear(1, 1), scheduler, 5)


def test_bad_prompts():
    model, x = prompted_score_unet(), images(2)
    with pytest.raises(ValueError, match=r"`encoder_hidden_states` must be \(1, L, C\), \(P, L, C"):
        DiffusionScore(model, SCHEDULER, 5, encoder_hidden_states=embeddings(1)[0])
    several = DiffusionScore(model, SCHEDULER, 5, encoder_hidden_states=embeddings(3))
    for call in (several, lambda x: several.jvp(x, x), lambda x: several.vjp(x, x)):
        with pytest.raises(ValueError, match=r"`encoder_hidden_states` changes .*where=Where\("):
            call(x)
    with pytest.raises(ValueError, match="a place for each of 2 points, but has 3"):
        several(x, Where.even(3))
    paths = DiffusionScore(model, SCHEDULER, 5, encoder_hidden_states=embeddings(2, 3))
    with pytest.raises(ValueError, match="for 2 paths, but a point lies on path number 3"):
        paths(x, Where.even(2, pair=2))


# ---------------------------------------------------------------------------- places and slices


def prompted(**options):
    return DiffusionScore(
        prompted_score_unet(),
        SCHEDULER,
        300,
        encoder_hidden_states=embeddings(2, 2, seed=12),
        negative_hidden_states=embeddings(3, seed=13),
        guidance_scale=2.5,
        mode="guided",
        **options,
    )


PLACED = {
    "prompts": prompted,
    "in chunks": lambda: prompted(max_batch_size=3),
    "noises of each pair": lambda: SharedNoiseScore(prompted(), randn(2, 3, 2, 8, 8, seed=5)),
    "guided along the manifold": lambda: ManifoldGuidedScore(prompted(), prompted(), 3.0),
}


@pytest.mark.parametrize("make", PLACED.values(), ids=PLACED.keys())
def test_every_value_depends_only_on_its_own_point_and_place(make):
    """A call on some points gives the same values, up to the rounding of other batch sizes."""
    score = make()
    x, v = images(6, 1), images(6, 2)
    where = Where([0.0, 0.2, 0.5, 1.0, 0.7, 0.3], [0, 1, 1, 0, 1, 0])
    calls = {
        "score": lambda i: score(x[i], where[i]),
        "denoise": lambda i: score.denoise(x[i], where[i]),
        "jvp": lambda i: score.jvp(x[i], v[i], where[i]),
        "vjp": lambda i: score.vjp(x[i], v[i], where[i]),
        "stack": lambda i: score.stack(x[i], where[i]),
        "energy": lambda i: TangentNormalMetric(score).embed(x[i], where[i]),
        "inner": lambda i: TangentNormalMetric(score).inner(x[i], v[i], v[i], where[i]),
        "Stein": lambda i: SteinScoreMetric(score).inner(x[i], v[i], v[i], where[i]),
    }
    for call in calls.values():
        whole = call(slice(None))
        for index in (slice(4), slice(2, 3), [5, 0, 3]):
            scale = float(whole.abs().max())
            assert_close(call(index), whole[index], rtol=1e-12, atol=1e-12 * scale)
    moved = Where(where.u.flip(0), where.pair)
    assert (score(x, moved) - score(x, where)).abs().max() > 1e-6


def test_methods_without_places_are_the_same_at_all_places():
    mixture = GaussianMixtureScore(randn(4, 3), 0.5)

    class Own(ScoreModel):
        alpha, sigma = 1.0, 0.5

        def __call__(self, x):
            return mixture(x)

    x, v = randn(5, 3, seed=1), randn(5, 3, seed=2)
    metric, expected = TangentNormalMetric(Own()), TangentNormalMetric(mixture)
    assert_close(metric.energy(x), expected.energy(x))
    assert_close(metric.inner(x, v, v, Where.even(5)), expected.inner(x, v, v))


# ---------------------------------------------------------------------------------- any denoiser


def test_a_denoiser_is_read_by_tweedies_formula():
    exact = GaussianMixtureScore(randn(5, 2, 3, seed=1), 0.7, std=0.3, alpha=0.8)
    score = DenoiserScore(exact.denoise, 0.7, alpha=0.8)
    x, v = randn(4, 2, 3, seed=2), randn(4, 2, 3, seed=3)
    assert_close(score(x), exact(x), rtol=1e-12, atol=1e-12)
    assert_close(score.denoise(x), exact.denoise(x), rtol=0, atol=0)
    assert_close(score.jvp(x, v), exact.jvp(x, v), rtol=1e-10, atol=1e-10)
    assert_close(score.vjp(x, v), exact.vjp(x, v), rtol=1e-10, atol=1e-10)
    assert (score.alpha, score.sigma) == (0.8, 0.7)
    metric, expected = TangentNormalMetric(score), TangentNormalMetric(exact)
    assert_close(metric.as_matrix(x), expected.as_matrix(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "function, options, message",
    [
        (3, {"sigma": 1.0}, "`function` must be a function, but got int"),
        (lambda x: x, {"sigma": 0.0}, "`sigma` and `alpha` must be positive"),
        (lambda x: x, {"sigma": 1.0, "alpha": -1.0}, "`sigma` and `alpha` must be positive"),
    ],
)
def test_bad_denoisers(function, options, message):
    with pytest.raises(ValueError, match=message):
        DenoiserScore(function, **options)


@pytest.mark.parametrize("function", [lambda x: x[:1], lambda x: 3])
def test_a_denoiser_of_another_shape(function):
    with pytest.raises(ValueError, match=r"points of the shape of its argument, \(2, 3\), but"):
        DenoiserScore(function, 1.0)(torch.zeros(2, 3))


def test_models_of_another_output_shape_are_refused():
    class Wide(nn.Linear):
        def forward(self, x, timestep, return_dict):
            return (torch.cat([x, x, x], 1),)

    with pytest.raises(ValueError, match=r"\(3, 2\) into \(3, 6\): a score needs equal shapes"):
        DiffusionScore(Wide(1, 1), SCHEDULER, 5)(torch.zeros(3, 2))


def test_a_predicted_variance_is_left_out():
    class Wide(nn.Linear):
        def forward(self, x, timestep, return_dict):
            return (torch.cat([2 * x, 5 + x], 1),)

    score, x = DiffusionScore(Wide(1, 1), SCHEDULER, 5), randn(3, 2)
    torch.testing.assert_close(score(x), -2 * x / score.sigma)


# ----------------------------------------------------------------------------------- shared noise


@pytest.fixture(params=[(4,), (2, 3)], ids=["vectors", "images"])
def noisy_mixture(request):
    return GaussianMixtureScore(randn(6, *request.param, seed=1), 0.6, std=0.2, alpha=0.8)


def test_one_shared_noise_is_the_chain_rule(noisy_mixture):
    shape = noisy_mixture.means.shape[1:]
    noise = randn(*shape, seed=2)
    shared = SharedNoiseScore(noisy_mixture, noise)
    assert (shared.alpha, shared.sigma) == (1.0, pytest.approx(0.6 / 0.8))
    x, v = randn(5, *shape, seed=3), randn(5, *shape, seed=4)

    def log_prob(clean):
        return noisy_mixture.log_prob(0.8 * clean + 0.6 * noise)

    points = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(log_prob(points).sum(), points)
    assert_close(shared(x), expected, rtol=1e-10, atol=1e-10)
    assert_close(shared.stack(x), expected[:, None], rtol=1e-10, atol=1e-10)
    matrices = dense_jacobian(shared, x)
    assert_close(shared.jvp(x, v), apply(matrices, v), rtol=1e-10, atol=1e-10)
    assert_close(shared.vjp(x, v), apply(matrices.mT, v), rtol=1e-10, atol=1e-10)
    assert_close(shared.stack_jvp(x, v), apply(matrices, v)[:, None], rtol=1e-10, atol=1e-10)
    expected = noisy_mixture.denoise(0.8 * x + 0.6 * noise) / 0.8
    assert_close(shared.denoise(x), expected, rtol=1e-10, atol=1e-10)


def test_several_shared_noises(noisy_mixture):
    shape = noisy_mixture.means.shape[1:]
    noises = randn(3, *shape, seed=2)
    shared = SharedNoiseScore(noisy_mixture, noises)
    single = [SharedNoiseScore(noisy_mixture, noise) for noise in noises]
    x, v = randn(5, *shape, seed=3), randn(5, *shape, seed=4)
    assert shared.stack(x).shape == shared.stack_jvp(x, v).shape == (5, 3, *shape)
    assert_close(shared.stack(x), torch.stack([one(x) for one in single], 1))
    assert_close(shared.stack_jvp(x, v), torch.stack([one.jvp(x, v) for one in single], 1))
    for name, more in (("__call__", ()), ("denoise", ()), ("jvp", (v,)), ("vjp", (v,))):
        mean = torch.stack([getattr(one, name)(x, *more) for one in single]).mean(0)
        assert_close(getattr(shared, name)(x, *more), mean, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "metric",
    [
        SteinScoreMetric,
        lambda score: SteinScoreMetric(score, normalize=True, detach_score=False),
        lambda score: ScoreJacobianMetric(score, ridge=0.1),
        TangentNormalMetric,
    ],
    ids=["stein", "stein normalised", "jacobian", "tangent normal"],
)
def test_metric_of_several_noises_is_the_mean_of_their_metrics(noisy_mixture, metric):
    shape = noisy_mixture.means.shape[1:]
    noises, x = randn(3, *shape, seed=2), randn(4, *shape, seed=3)
    actual = metric(SharedNoiseScore(noisy_mixture, noises))
    single = [metric(SharedNoiseScore(noisy_mixture, noise)) for noise in noises]
    mean = torch.stack([one.as_matrix(x) for one in single]).mean(0)
    assert_close(actual.as_matrix(x), mean, rtol=1e-10, atol=1e-10)
    energy = torch.stack([one.energy(x) for one in single]).mean(0)
    assert_close(actual.energy(x), energy, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("noise", [torch.zeros(3), torch.zeros(2, 3), torch.zeros(1, 1, 3)])
def test_shared_noise_of_another_shape(noise):
    mixture = GaussianMixtureScore(torch.zeros(2, 4), 1.0)
    with pytest.raises(ValueError, match=r"`noise` is \(.*does not fit points \(5, 4\)"):
        SharedNoiseScore(mixture, noise)(torch.zeros(5, 4))


@pytest.mark.parametrize("network", [False, True])
def test_one_point_expanded_for_many_tangents(network):
    """Points may be views that share memory, which forward mode itself rejects."""
    x, v = randn(1, 2, 8, 8), randn(3, 2, 8, 8, seed=1)
    score = GaussianMixtureScore(randn(4, 2, 8, 8, seed=2), 1.0)
    if network:
        score = DiffusionScore(score_unet(), DDIMScheduler(), 400)
    products = score.jvp(x.expand(3, -1, -1, -1), v)
    assert_close(products, score.jvp(x.repeat(3, 1, 1, 1), v))
    same = score.jvp(x.repeat(3, 1, 1, 1), v[:1].expand(3, -1, -1, -1))
    assert_close(same, products[:1].expand_as(same))

    class Own(ScoreModel):
        sigma = 1.0

        def __call__(self, x):
            return score(x)

    if not network:
        assert_close(Own().jvp(x.expand(3, -1, -1, -1), v), products)


USES = [
    (lambda: GaussianMixtureScore([[0.0]], 1.0), "`means` must be .* but got list"),
    (lambda: GaussianMixtureScore(MEANS * NAN_, 1.0), "`means` must be .* NaN"),
    (
        lambda: GaussianMixtureScore(MEANS, NAN_),
        "`sigma` must be a finite number, but got nan",
    ),
    (lambda: GaussianMixtureScore(MEANS, 1.0, std="x"), "`std` must be a finite number"),
    (lambda: GaussianMixtureScore(MEANS, 1.0, weights=[1.0] * 6), "`weights` must be a Tensor"),
    (
        lambda: GaussianMixtureScore(MEANS, 1.0, weights=torch.full((6,), NAN_)),
        r"`weights` must be \(6,\), non-negative and not all 0",
    ),
    (lambda: MODEL.jvp(MEANS, MEANS[:2]), r"but got \(6, 3\) and \(2, 3\)"),
    (lambda: MODEL([[0.0]]), "`x` must be a Tensor, but got list"),
    (lambda: DiffusionScore(3, STEPS, 5), "`model` must be a Module, but got int"),
    (lambda: DiffusionScore(NET, None, 5), "`scheduler` must have `alphas_cumprod`"),
    (
        lambda: DiffusionScore(NET, STEPS, NAN_),
        "`timestep` must be a finite number",
    ),
    (lambda: DiffusionScore(NET, STEPS, "x"), "`timestep` must be a finite number.* 'x'"),
    (
        lambda: DiffusionScore(NET, STEPS, 5, guidance_scale=NAN_),
        "`guidance_scale` must be",
    ),
    (
        lambda: DiffusionScore(NET, STEPS, 5, max_batch_size=1.5),
        "`max_batch_size` must be",
    ),
    (
        lambda: DiffusionScore(NET, STEPS, 5, encoder_hidden_states="x"),
        "`encoder_hidden_states` must be .* but got str",
    ),
    (lambda: SharedNoiseScore(3, P), "`score` must be a ScoreModel, but got int"),
    (lambda: SharedNoiseScore(MODEL, None), "`noise` must be .* but got NoneType"),
    (
        lambda: SharedNoiseScore(MODEL, MEANS[:0]),
        r"`noise` must have values, but is \(0, 3\)",
    ),
]


@pytest.mark.parametrize(("use", "message"), USES)
def test_uses_that_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()
