"""Guidance along the manifold: the score, its products, and the guider of diffusers."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLLoopDenoiser
from exact import central_difference
from models import prompted_score_unet, prompted_xl_unet, randn
from uses import INF, MODEL

from riemannian_diffusion import (
    DiffusionScore,
    GaussianMixtureScore,
    ManifoldGuidance,
    ManifoldGuidedScore,
    TangentNormalMetric,
    geodesic,
    split_tangent,
)


def _mixtures(weights, sigma=0.5):
    means = randn(5, 3)
    return [
        GaussianMixtureScore(means, sigma, alpha=0.8, weights=torch.tensor(w).double())
        for w in weights
    ]


def test_guidance_of_a_gaussian_is_its_shrunken_difference():
    # Two Gaussians N(m, s^2): D = mean + c (x - mean), c = s^2 / (s^2 + sigma^2), so J_D g = c g.
    means, sigma, std = randn(2, 4), 0.7, 0.5
    pair = [GaussianMixtureScore(mean[None], sigma, std=std) for mean in means]
    guided, x = ManifoldGuidedScore(*pair, 4.0, damping=1.0), randn(6, 4, seed=1)
    difference = (means[0] - means[1]) / (std**2 + sigma**2)
    expected = pair[0](x) + 3 * difference * std**2 / (std**2 + sigma**2)
    torch.testing.assert_close(guided(x), expected)


@pytest.mark.parametrize("damping", [0.0, 0.5, 1.0])
def test_damping_lies_between_plain_and_tangent_guidance(damping):
    conditional, unconditional = _mixtures([[5.0, 1, 1, 2, 1], [1.0, 1, 1, 1, 1]])
    x = randn(4, 3, seed=3)
    plain = conditional(x) + 3 * (conditional(x) - unconditional(x))
    along = ManifoldGuidedScore(conditional, unconditional, 4.0, damping=1.0)(x)
    found = ManifoldGuidedScore(conditional, unconditional, 4.0, damping=damping)(x)
    torch.testing.assert_close(found, torch.lerp(plain, along, damping))


def test_normal_guidance_is_removed_and_tangent_guidance_is_kept():
    # The unconditional data are dense points of a line along the first axis.
    line = torch.zeros(400, 3).double()
    line[:, 0] = torch.linspace(-20, 20, 400)
    unconditional = GaussianMixtureScore(line, 0.3)

    class Moved(GaussianMixtureScore):
        def __call__(self, x):
            return super().__call__(x) + torch.tensor([0.2, 0.5, -0.4]).double()

    guided = ManifoldGuidedScore(Moved(line, 0.3), unconditional, 6.0, damping=1.0)
    x = torch.tensor([[0.3, 0.1, 0.0]]).double()
    change = guided(x) - guided.conditional(x)
    torch.testing.assert_close(change, torch.tensor([[5 * 0.2, 0, 0]]).double(), atol=1e-6, rtol=0)


def test_a_small_difference_is_projected_exactly():
    near = [1.0, 1.0, 1.0, 1.0, 1.001], [1.0, 1.0, 1.0, 1.0, 1.0]
    conditional, unconditional = _mixtures(near)
    x = randn(4, 3, seed=2)
    found = ManifoldGuidedScore(conditional, unconditional, 2.0, damping=1.0)(x) - conditional(x)
    exact = split_tangent(unconditional, x, conditional(x) - unconditional(x))[0]
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=1e-3)
    assert exact.abs().max() > 1e-5


def test_guidance_scale_one_is_the_conditional_score():
    conditional, unconditional = _mixtures([[5.0, 1, 1, 1, 1], [1.0, 1, 1, 1, 1]])
    x = randn(4, 3)
    assert torch.equal(ManifoldGuidedScore(conditional, unconditional, 1.0)(x), conditional(x))


@pytest.mark.parametrize("network", [False, True])
def test_products_equal_those_of_autograd(network):
    if network:
        unet, scheduler = prompted_score_unet(), DDIMScheduler()
        prompts = randn(2, 4, 6)
        pair = [
            DiffusionScore(unet, scheduler, 400, encoder_hidden_states=p[None]) for p in prompts
        ]
        x, v, w = (randn(3, 2, 8, 8, seed=i) for i in range(3))
    else:
        pair = _mixtures([[5.0, 1, 1, 2, 1], [1.0, 1, 1, 1, 1]])
        x, v, w = (randn(4, 3, seed=i) for i in range(3))
    guided = ManifoldGuidedScore(*pair, 5.0, damping=0.7)
    expected = central_difference(guided, x, v, 1e-4)
    torch.testing.assert_close(guided.jvp(x, v), expected, atol=1e-7, rtol=1e-6)
    point = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(guided(point), point, w)
    torch.testing.assert_close(guided.vjp(x, w), expected)


def test_a_metric_reads_guidance_with_prompts_along_the_path():
    unet, scheduler = prompted_score_unet(), DDIMScheduler()
    paths = randn(2, 3, 4, 6)
    pair = [
        DiffusionScore(unet, scheduler, 400, encoder_hidden_states=p, max_batch_size=2)
        for p in paths
    ]
    metric = TangentNormalMetric(ManifoldGuidedScore(*pair, 3.0))
    ends = randn(2, 2, 8, 8)
    found = geodesic(metric, *ends, num_points=4, max_evals=5)
    assert found.iterates[-1][1] < found.iterates[0][1] and metric.points_at_once(ends) == 2


@pytest.mark.parametrize(
    ("pair", "scale", "message"),
    [
        (_mixtures([[1.0] * 5] * 2), 0.5, "at least 1, but got 0.5"),
        (_mixtures([[1.0] * 5]) + _mixtures([[1.0] * 5], sigma=0.4), 2.0, "one noise level"),
    ],
)
def test_bad_scores(pair, scale, message):
    with pytest.raises(ValueError, match=message):
        ManifoldGuidedScore(*pair, scale)


@pytest.mark.parametrize("damping", [0.5, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("timestep", [1, 400, 999])
def test_the_guider_in_the_loop_of_diffusers_equals_the_score(prediction, timestep, damping):
    unet = prompted_xl_unet(width=6, pooled=4, dtype=torch.float64)
    scheduler = DDIMScheduler(beta_schedule="linear", prediction_type=prediction)
    options = {"guidance_scale": 5.0, "damping": damping}
    guider = ManifoldGuidance.from_scheduler(scheduler, **options)
    state = SimpleNamespace(
        prompt_embeds=randn(2, 4, 6),
        negative_prompt_embeds=randn(2, 4, 6, seed=1),
        add_time_ids=randn(2, 6),
        negative_add_time_ids=randn(2, 6),
        pooled_prompt_embeds=randn(2, 4),
        negative_pooled_prompt_embeds=randn(2, 4, seed=1),
        scaled_latents=randn(2, 4, 8, 8),
        num_inference_steps=10,
        timestep_cond=None,
        cross_attention_kwargs=None,
    )
    components = SimpleNamespace(unet=unet, guider=guider)
    StableDiffusionXLLoopDenoiser()(components, state, 3, torch.tensor(timestep))

    class Bound(torch.nn.Module):
        def __init__(self, prompt, time_ids, text_embeds):
            super().__init__()
            self.unet, self.prompt = unet, prompt
            self.more = {"time_ids": time_ids, "text_embeds": text_embeds}

        def forward(self, x, t, **kwargs):
            more = {"encoder_hidden_states": self.prompt, "added_cond_kwargs": self.more}
            return self.unet(x, t, **more, **kwargs)

    given = [
        (state.prompt_embeds, state.add_time_ids, state.pooled_prompt_embeds),
        (state.negative_prompt_embeds, state.negative_add_time_ids)
        + (state.negative_pooled_prompt_embeds,),
    ]
    pair = [DiffusionScore(Bound(*one), scheduler, timestep) for one in given]
    score = ManifoldGuidedScore(*pair, 5.0, damping=damping)
    x = state.scaled_latents
    noise = -score.sigma * score(x)
    clean = (x - score.sigma * noise) / score.alpha
    expected = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": score.alpha * noise - score.sigma * clean,
    }
    torch.testing.assert_close(state.noise_pred, expected[prediction])
    assert not unet._forward_pre_hooks


class Velocity(torch.nn.Module):
    """The exact velocity `noise - data` of a mixture at `x = (1 - t) data + t noise`."""

    def __init__(self, means):
        super().__init__()
        self.means = means

    def forward(self, hidden_states, timestep, weights):
        sigma = float(timestep) / 1000
        level = GaussianMixtureScore(self.means, sigma, alpha=1 - sigma, weights=weights)
        data = level.denoise(hidden_states) / (1 - sigma)
        return SimpleNamespace(sample=(hidden_states - data) / sigma)


def test_the_guider_on_a_rectified_flow():
    model, x = Velocity(randn(5, 3)), randn(4, 3)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    guider = ManifoldGuidance.from_scheduler(scheduler, guidance_scale=4.0, damping=1.0)
    assert guider.config.prediction_type == "flow_prediction"
    timestep, weights = torch.tensor(600.0), torch.tensor([[5.0, 1, 1, 1, 1], [1.0] * 5]).double()
    guider.set_state(0, 10, timestep)
    batches = guider.prepare_inputs({"weights": tuple(weights)})
    for batch in batches:
        guider.prepare_models(model)
        call = {"hidden_states": x, "timestep": timestep, "weights": batch.weights}
        batch.noise_pred = model(**call).sample
        guider.cleanup_models(model)
    pair = [GaussianMixtureScore(model.means, 0.6, alpha=0.4, weights=w) for w in weights]
    clean = ManifoldGuidedScore(*pair, 4.0, damping=1.0).denoise(x) / 0.4
    torch.testing.assert_close(guider(batches)[0], (x - clean) / 0.6)


def _options(guider):
    return {name: value for name, value in guider.config.items() if not name.startswith("_")}


def test_a_timestep_between_two_and_the_defaults_of_stable_diffusion():
    guider = ManifoldGuidance()
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    abar = scheduler.alphas_cumprod.double()
    guider.set_state(0, 10, torch.tensor(500.25))
    alpha, sigma = guider._level()
    assert alpha**2 == pytest.approx(float(0.75 * abar[500] + 0.25 * abar[501]), rel=1e-6)
    assert alpha**2 + sigma**2 == pytest.approx(1)
    assert _options(ManifoldGuidance.from_scheduler(scheduler)) == _options(guider)


def test_the_guider_is_saved_and_loaded(tmp_path):
    scheduler = DDIMScheduler(num_train_timesteps=50, beta_end=0.5, prediction_type="sample")
    guider = ManifoldGuidance.from_scheduler(scheduler, guidance_scale=3.0, stop=0.8)
    guider.save_pretrained(tmp_path)
    again = ManifoldGuidance.from_pretrained(tmp_path)
    assert _options(again) == _options(guider) and again.guidance_scale == 3.0
    assert torch.equal(again._abar, scheduler.alphas_cumprod.double())


def test_a_guider_out_of_its_range_is_the_conditional_model():
    guider, condition = ManifoldGuidance(start=0.5), randn(2, 3)
    guider.set_state(2, 10, torch.tensor(700))
    assert guider.num_conditions == 1
    (batch,) = guider.prepare_inputs({"prompt_embeds": (condition, condition)})
    guider.prepare_models(torch.nn.Identity())
    batch.noise_pred = condition
    assert torch.equal(guider([batch])[0], condition)


def test_bad_guiders():
    with pytest.raises(ValueError, match="`damping` must be in .* but got 1.5"):
        ManifoldGuidance(damping=1.5)
    with pytest.raises(ValueError, match="`damping` must be in .* but got -1"):
        ManifoldGuidedScore(*_mixtures([[1.0] * 5] * 2), 2.0, damping=-1)
    with pytest.raises(ValueError, match="prediction_type.*'noise'"):
        ManifoldGuidance(prediction_type="noise")
    with pytest.raises(ValueError, match="must have a schedule of betas"):
        ManifoldGuidance.from_scheduler(DDIMScheduler(trained_betas=[0.1, 0.2]))
    guider = ManifoldGuidance()
    guider.set_state(0, 10, torch.tensor(700))
    with pytest.raises(ValueError, match="prepare_models"):
        guider.forward(randn(1, 2), randn(1, 2))


def test_a_network_whose_point_is_joined_to_others_is_refused():
    class Joined(torch.nn.Module):
        def forward(self, sample):
            return (sample[:, :2],)

    guider, network = ManifoldGuidance(), Joined()
    guider.set_state(0, 10, torch.tensor([700, 700]))
    batches = guider.prepare_inputs({"prompt_embeds": (None, None)})
    for i, batch in enumerate(batches):
        guider.prepare_models(network)
        batch.noise_pred = network(randn(1, 3, seed=i))[0]
        guider.cleanup_models(network)
    with pytest.raises(ValueError, match=r"noisy point alone, \(1, 2\) .*, but got \(1, 3\)"):
        guider(batches)


def test_networks_that_cache_keep_the_third_evaluation_apart():
    class Cached(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.here, self.seen = None, []

        @contextmanager
        def cache_context(self, name):
            self.here = name
            yield
            self.here = None

        def forward(self, sample):
            self.seen.append(self.here)
            return (sample,)

    guider, network, x = ManifoldGuidance(), Cached(), randn(1, 3)
    guider.set_state(0, 10, torch.tensor([700]))
    batches = guider.prepare_inputs({"prompt_embeds": (None, None)})
    for batch, name in zip(batches, ("pred_cond", "pred_uncond"), strict=True):
        guider.prepare_models(network)
        with network.cache_context(name):
            batch.noise_pred = network(x)[0]
        guider.cleanup_models(network)
    guider(batches)
    assert network.seen == ["pred_cond", "pred_uncond", "pred_manifold"]


def test_a_call_that_fails_leaves_no_hook():
    class Failing(torch.nn.Module):
        def forward(self, sample):
            raise KeyboardInterrupt

    guider, network = ManifoldGuidance(), Failing()
    guider.set_state(0, 10, torch.tensor(700))
    guider.prepare_models(torch.nn.Identity())
    guider.prepare_models(network)
    with pytest.raises(KeyboardInterrupt):
        network(randn(1, 2))
    assert not network._forward_pre_hooks


@pytest.mark.parametrize(
    "scheduler",
    [
        EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
        FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    ],
)
def test_timesteps_that_are_no_levels_are_refused(scheduler):
    with pytest.raises(ValueError, match="not indices of its levels"):
        ManifoldGuidance.from_scheduler(scheduler)


USES = [
    (lambda: ManifoldGuidedScore(3, MODEL, 2.0), "`conditional` must be a ScoreModel"),
    (
        lambda: ManifoldGuidedScore(MODEL, MODEL, INF),
        "`guidance_scale` must be a finite number",
    ),
    (
        lambda: ManifoldGuidedScore(MODEL, MODEL, 2.0, damping="x"),
        "`damping` must be a finite",
    ),
]


@pytest.mark.parametrize(("use", "message"), USES)
def test_uses_that_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()
