"""The noise levels of a morph are those of the scheduler object that the pipeline has.

References are the scheduler's own `step`, `scale_model_input` and `add_noise`. Reconstruction alone
cannot reveal wrong levels, because inversion and sampling would use the same ones.
"""

from __future__ import annotations

import copy
import inspect

import diffusers
import diffusers.schedulers
import numpy as np
import pytest
import torch
from models import INVERT, KINDS, make, randn, silent
from packaging.version import Version
from torch import nn

from riemannian_diffusion import (
    DiffusionScore,
    GaussianMixtureScore,
    invert,
    read_schedule,
    sample,
)
from riemannian_diffusion.levels import even_sigmas, linear_shift
from riemannian_diffusion.pipelines import AutoGeodesicInterpolationPipeline
from riemannian_diffusion.score import Conditions, NetworkScore
from riemannian_diffusion.score.schedulers import is_flow

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# Without iterations, all points are evaluated together. Loaded weights lie elsewhere in memory, on
# which the rounding of a product of one point can depend.
PLAIN = INVERT | {"fixed_point_iterations": 0}
FINAL = {"final_sigmas_type": "zero"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
NOISY_END = {"final_sigmas_type": "sigma_min"}

# --------------------------------------------------------------------- every class is known by name

VARIANCE_PRESERVING = [
    *("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "DDIMParallelScheduler", "DDIMScheduler"),
    *("DDPMParallelScheduler", "DDPMScheduler", "DEISMultistepScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler"),
    *("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler"),
    *("LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "TCDScheduler"),
    *("UnCLIPScheduler", "UniPCMultistepScheduler"),
]
FLOWS = [
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
]
REFUSED = [
    *("AmusedScheduler", "BlockRefinementScheduler", "CMStochasticIterativeScheduler"),
    *("ConsistencyDecoderScheduler", "CosineDPMSolverMultistepScheduler"),
    *("DDIMInverseScheduler", "DDPMWuerstchenScheduler", "DPMSolverMultistepInverseScheduler"),
    *("DiscreteDDIMScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"),
    *("EntropyBoundScheduler", "FlowMapEulerDiscreteScheduler", "HeliosDMDScheduler"),
    *("HeliosScheduler", "IPNDMScheduler", "KarrasVeScheduler", "LTXEulerAncestralRFScheduler"),
    *("MiniMaxH3Scheduler", "PiflowScheduler", "RFD4ProteinaScheduler", "RePaintScheduler"),
    *("SCMScheduler", "ScoreSdeVeScheduler", "ScoreSdeVpScheduler", "VQDiffusionScheduler"),
]
REQUIRED = {
    "AmusedScheduler": {"mask_token_id": 0},
    "RFD4ProteinaScheduler": dict.fromkeys(("schedule_mode", "noise_mode"))
    | dict(tsr_k=1, tsr_sigma=1),
    "VQDiffusionScheduler": {"num_vec_classes": 4},
}


def build(name, **options):
    """A scheduler of a class of diffusers, with the arguments that the class has."""
    kind = getattr(diffusers.schedulers, name)
    if "torchsde" in getattr(kind, "_backends", ()):
        pytest.importorskip("torchsde")
    return kind(**options)


def test_every_scheduler_of_diffusers_is_accepted_or_refused():
    exported = {
        name
        for name in dir(diffusers.schedulers)
        if name.endswith("Scheduler") and inspect.isclass(getattr(diffusers.schedulers, name))
    }
    exported -= {name for name in exported if name.startswith("Flax")}  # in diffusers below 0.38
    known = {*VARIANCE_PRESERVING, *FLOWS, *REFUSED}
    assert exported <= known
    if Version(diffusers.__version__) >= Version("0.42.1"):  # earlier ones lack some classes
        assert exported == known


@pytest.mark.parametrize("name", [one for one in REFUSED if hasattr(diffusers.schedulers, one)])
def test_refused_classes_are_named_with_what_to_use(name):
    try:
        scheduler = build(name, **REQUIRED.get(name, {}))
    except (TypeError, ValueError):  # arguments of a model of another kind
        scheduler = object.__new__(getattr(diffusers.schedulers, name))
    with pytest.raises(ValueError, match=f"`scheduler` {name} .*: use "):
        read_schedule(scheduler, 5)
    with pytest.raises(ValueError, match=f"`scheduler` {name} .*: use "):
        DiffusionScore(nn.Linear(1, 1), scheduler, 5)


# ------------------------------------------------------------------------------------------- levels

LEVELS = {name: [{}] for name in VARIANCE_PRESERVING} | {
    "DDIMScheduler": [
        {},
        {"timestep_spacing": "linspace"},
        {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"trained_betas": np.linspace(1e-4, 0.03, 1000)},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
        {"thresholding": True, "clip_sample": True},
    ],
    "DDPMScheduler": [{"timestep_spacing": "linspace"}, {"prediction_type": "v_prediction"}],
    "CogVideoXDDIMScheduler": [{}, {"snr_shift_scale": 1.5, "timestep_spacing": "trailing"}],
    "PNDMScheduler": [{}, {"skip_prk_steps": True, "steps_offset": 1}],
    "HeunDiscreteScheduler": [{}, {"timestep_spacing": "trailing"}, {"use_karras_sigmas": True}],
    "KDPM2DiscreteScheduler": [{}, {"use_karras_sigmas": True}],
    "EulerAncestralDiscreteScheduler": [{}, {"timestep_spacing": "leading", "steps_offset": 1}],
    "LMSDiscreteScheduler": [{}, {"use_exponential_sigmas": True}],
    "UniPCMultistepScheduler": [{}, {"timestep_spacing": "leading", "steps_offset": 3}],
    "DPMSolverMultistepScheduler": [{}, NOISY_END, {"rescale_betas_zero_snr": True}],
}


def factors_by_timestep(scheduler, num_steps):
    """The scheduler's own forward process at the timesteps that it visits."""
    own = copy.deepcopy(scheduler)
    own.set_timesteps(num_steps)
    found = {}
    for timestep in own.timesteps:
        one, none = torch.ones(1), torch.zeros(1)
        alpha, sigma = (
            float(own.add_noise(data, noise, timestep[None]))
            for data, noise in ((one, none), (none, one))
        )
        norm = (alpha**2 + sigma**2) ** 0.5  # schedulers of growing variance scale the input
        found[float(timestep)] = alpha / norm, sigma / norm
    return found


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, cases in LEVELS.items() for options in cases]
)
def test_levels_are_those_of_the_schedulers_forward_process(name, options):
    scheduler = build(name, **options)
    before = copy.deepcopy(vars(scheduler))
    schedule = read_schedule(scheduler, 7)
    expected = factors_by_timestep(scheduler, 7)
    if "KDPM2" not in name and "SDE" not in name:  # their other timesteps lie between levels
        assert len(schedule.levels) == len(expected)
    else:
        assert len(schedule.levels) == 7
    for level in schedule.levels:
        assert (level.alpha, level.sigma) == pytest.approx(expected[level.timestep], rel=1e-4)
        assert level.prediction_type == scheduler.config.prediction_type
    noises = [level.sigma / level.alpha for level in schedule.levels]
    assert noises == sorted(set(noises), reverse=True)
    assert schedule.timesteps == sorted(schedule.timesteps, reverse=True)
    assert vars(scheduler).keys() == before.keys()
    for key, value in vars(scheduler).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(), before[key].nan_to_num()), key
        else:
            assert repr(value) == repr(before[key]), key


def test_the_last_step_may_end_above_no_noise():
    schedule = read_schedule(diffusers.DPMSolverMultistepScheduler(**NOISY_END), 7)
    least = float(diffusers.DDIMScheduler().alphas_cumprod[0])
    assert schedule.final_abar == pytest.approx(least, rel=1e-5) and least < 1


def test_a_timestep_between_two_is_interpolated_as_in_the_euler_scheduler():
    euler = diffusers.EulerDiscreteScheduler(**BETAS)
    level = read_schedule(euler, 7).levels[1]
    assert level.timestep == 832.5
    score = DiffusionScore(nn.Linear(1, 1), euler, level.timestep)
    assert (score.alpha, score.sigma) == pytest.approx((level.alpha, level.sigma), rel=1e-5)
    assert score.level.timestep == level.timestep


# ---------------------------------------------------------------- sampling against the own `step`


class Net(nn.Module):
    """A smooth function of points `(K, 6)` and of the timestep."""

    def forward(self, x, timestep):
        mixed = x @ randn(6, 6, seed=3).to(x) / 3
        return mixed.tanh() + (timestep.to(x) / 90).sin()


def sampled(x, net, schedule):
    """Our sampling, from the same levels."""

    def level(timestep):
        found = schedule.at(timestep)
        return NetworkScore(net, lambda x, t, _: net(x, t), found, Conditions({}))

    return sample(level, x, schedule.timesteps, final_abar=schedule.final_abar)


FIRST_ORDER = [
    ("DDIMScheduler", {"clip_sample": False}),
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}),
    ("DDIMScheduler", {"clip_sample": False, "prediction_type": "sample"}),
    (
        "DDIMScheduler",
        {
            "clip_sample": False,
            "timestep_spacing": "trailing",
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
        },
    ),
    ("DDIMScheduler", {"clip_sample": False, "trained_betas": np.linspace(1e-4, 0.03, 1000)}),
    ("DDIMParallelScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    ("CogVideoXDDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    (
        "CogVideoXDDIMScheduler",
        {
            "clip_sample": False,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "snr_shift_scale": 1.0,
        },
    ),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    (
        "EulerDiscreteScheduler",
        {
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
        },
    ),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "sigma_max": 20.0, "sigma_min": 0.2}),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}),
    ("EulerDiscreteScheduler", {"use_beta_sigmas": True}),
    ("LMSDiscreteScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_beta_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"} | NOISY_END),
    (
        "DPMSolverMultistepScheduler",
        {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"},
    ),
    ("DPMSolverMultistepScheduler", FLOW | {"flow_shift": 3.0}),
    ("DPMSolverMultistepScheduler", FLOW | {"use_dynamic_shifting": True}),
    ("DPMSolverSinglestepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverSinglestepScheduler", FLOW | {"flow_shift": 3.0}),
    ("DEISMultistepScheduler", {"timestep_spacing": "trailing"}),
    ("DEISMultistepScheduler", {"use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", {"prediction_type": "v_prediction"} | NOISY_END),
    ("UniPCMultistepScheduler", FLOW | {"flow_shift": 3.0}),
    ("UniPCMultistepScheduler", FLOW | {"use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", FLOW | {"use_dynamic_shifting": True, "shift_terminal": 0.1}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_karras_sigmas": True}),
    ("FlowMatchEulerDiscreteScheduler", {"use_exponential_sigmas": True, "shift_terminal": 0.1}),
    ("FlowMatchEulerDiscreteScheduler", {"use_beta_sigmas": True}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    (
        "FlowMatchEulerDiscreteScheduler",
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    ),
]
NOT_SAMPLED_FIRST = 2  # steps before the part that is compared


@pytest.mark.parametrize("num_steps", [10, 50])
@pytest.mark.parametrize(("name", "options"), FIRST_ORDER)
def test_sampling_equals_the_steps_of_first_order_schedulers(name, options, num_steps):
    kind = getattr(diffusers, name)
    accepted = inspect.signature(kind).parameters
    first = {"solver_order": 1, "disable_corrector": list(range(num_steps))}
    betas = {} if {"trained_betas", "beta_schedule"} & set(options) else BETAS
    given = {n: v for n, v in (first | betas).items() if n in accepted} | options
    scheduler = kind(**given)
    shift = {"mu": 0.7} if options.get("use_dynamic_shifting") else {}
    strength = 1 - NOT_SAMPLED_FIRST / 10
    schedule = read_schedule(scheduler, num_steps, strength=strength, **shift)
    net, noisiest = Net(), schedule.levels[0]
    start = 1.5 * randn(4, 6, seed=1)
    ours = sampled(start, net, schedule)

    scheduler.set_timesteps(num_steps, **shift)
    skipped = num_steps - len(schedule.levels)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    x, timesteps = start, scheduler.timesteps[skipped:]
    scales = getattr(scheduler, "scale_model_input", lambda x, t: x)
    if float(scales(torch.ones(1), timesteps[0])) != 1:  # noise is in units of the clean data
        x = start / noisiest.alpha
    step = {"order": 1} if name == "LMSDiscreteScheduler" else {}
    with torch.no_grad():
        for timestep in timesteps:
            output = net(scales(x, timestep), timestep)
            x = scheduler.step(output, timestep, x, **step).prev_sample
    torch.testing.assert_close(ours, x.double(), atol=2e-4, rtol=2e-4)


# ------------------------------------------------------------------------------------- fewer levels


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDIMScheduler", BETAS | {"steps_offset": 1}),
        ("DDIMScheduler", BETAS | {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}),
        ("EulerDiscreteScheduler", BETAS | {"use_karras_sigmas": True}),
        ("DPMSolverMultistepScheduler", BETAS | {"use_karras_sigmas": True} | FINAL),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ],
)
def test_half_as_many_levels_are_even_in_the_cube_root_of_the_noise(name, options):
    scheduler = build(name, **options)
    schedule = read_schedule(scheduler, 50, strength=0.6)
    few = schedule.even_in_noise()
    assert (len(few.levels), few.final_abar) == (15, schedule.final_abar)
    assert few.levels[::14] == schedule.levels[::29]
    noises = [level.sigma / level.alpha for level in few.levels]
    steps = np.diff(np.cbrt(noises))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert few.timesteps == sorted(set(few.timesteps), reverse=True)
    for level in few.levels[1:-1]:  # they are those at which the network was trained
        assert level == schedule.at(level.timestep)
        time = level.timestep / 1000
        if is_flow(scheduler):
            assert level.sigma == pytest.approx(time)
        else:
            around = scheduler.alphas_cumprod[[int(level.timestep), int(level.timestep) + 1]]
            assert around[0] > level.alpha**2 > around[1]


@pytest.mark.parametrize(
    ("num", "expected"), [(1, 1), (2, 2), (7, 7), (12, 10), (20, 10), (31, 16)]
)
def test_few_levels_are_not_halved(num, expected):
    schedule = read_schedule(build("DDIMScheduler", **BETAS), num)
    assert len(schedule.even_in_noise().levels) == expected


def test_levels_may_lie_closer_together_than_the_timesteps_of_training():
    schedule = read_schedule(build("DDIMScheduler", **BETAS), 500, strength=0.1)
    levels = schedule.even_in_noise().levels
    assert all(
        a.timestep > b.timestep and a.sigma > b.sigma
        for a, b in zip(levels, levels[1:], strict=False)
    )


def test_half_as_many_levels_are_nearer_to_the_closed_form():
    """For data from one Gaussian, `z - mean` grows as `sqrt(std^2 + tau^2)`."""
    schedule = read_schedule(build("DDIMScheduler", **BETAS, steps_offset=1), 50, strength=0.6)
    mean, std, errors = randn(3), 0.1, []
    clean = mean + std * randn(8, 3, seed=1)
    for one in (schedule, schedule.even_in_noise()):

        def level(timestep, one=one):
            found = one.at(timestep)
            return GaussianMixtureScore(mean[None], found.sigma, std=std, alpha=found.alpha)

        noisy = invert(level, clean, one.timesteps)
        back = sample(level, noisy, one.timesteps)
        assert (back - clean).norm() < 1e-3 * clean.norm()
        alpha, sigma = one.levels[0].alpha, one.levels[0].sigma
        expected = alpha * (mean + (clean - mean) * np.hypot(std, sigma / alpha) / std)
        errors.append(float((noisy - expected).norm() / expected.norm()))
    assert errors[1] < errors[0] / 1.5 < 0.2


# ------------------------------------------------------------------------------------------- flows


@pytest.mark.parametrize("name", FLOWS)
def test_flows_have_the_levels_of_the_object(name):
    scheduler = build(name, shift=3.0)
    schedule = read_schedule(scheduler, 6)
    own = copy.deepcopy(scheduler)
    own.set_timesteps(6)
    assert schedule.timesteps[1:] == own.timesteps.unique().flip(0)[1:].tolist()
    for level in schedule.levels:
        x0, noise = torch.tensor([2.0]), torch.tensor([5.0])
        expected = (1 - level.timestep / 1000) * x0 + level.timestep / 1000 * noise
        assert level.alpha * 2 + level.sigma * 5 == pytest.approx(float(expected), rel=1e-5)
        assert level.prediction_type == "flow_prediction"
    assert schedule.timesteps[0] == 999 and schedule.is_flow  # pure noise has no data


@pytest.mark.parametrize("kind", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_timesteps_of_flows_are_read_beside_their_sigmas(kind):
    """These schedulers round timesteps, also to the same one, but not sigmas."""
    scheduler = getattr(diffusers, kind)(**FLOW, flow_shift=12.0)
    levels = read_schedule(scheduler, 300).levels
    own = copy.deepcopy(scheduler)
    own.set_timesteps(300)
    sigmas, timesteps = own.sigmas[:-1].double().clamp(max=0.999), own.timesteps
    sigmas, timesteps = sigmas[-len(levels) :], timesteps[-len(levels) :].clamp(max=999)
    assert [level.sigma for level in levels] == sigmas.tolist()
    given = torch.tensor([level.timestep for level in levels])  # as networks are given them
    assert torch.equal(given, timesteps.float())
    assert len(set(timesteps.tolist())) < len(levels) == len({level.timestep for level in levels})


def test_a_leftover_key_does_not_make_a_flow():
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    unipc = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True)
    ddim = diffusers.DDIMScheduler.from_config(flow.config)
    other = diffusers.DDPMScheduler.from_config(unipc.config)
    heun = diffusers.FlowMatchHeunDiscreteScheduler.from_config(flow.config)
    assert "shift" in ddim.config and "use_flow_sigmas" in other.config
    assert not is_flow(ddim) and not is_flow(other) and is_flow(heun)
    assert read_schedule(ddim, 5).levels == read_schedule(diffusers.DDIMScheduler(), 5).levels
    assert read_schedule(heun, 5).is_flow  # it has no dynamic shift


def test_the_shift_of_a_flow_is_given_or_that_of_flux():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    calculated = diffusers.pipelines.flux.pipeline_flux.calculate_shift
    for num_tokens in (16, 256, 4096):
        assert linear_shift(scheduler, num_tokens) == pytest.approx(calculated(num_tokens))
    with pytest.raises(ValueError, match="depends on the image size: give `mu`"):
        read_schedule(scheduler, 5)
    given = read_schedule(scheduler, 5, mu=0.9, sigmas=even_sigmas(5)).timesteps
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 5, 5), mu=0.9)
    assert given[1:] == scheduler.timesteps[1:].tolist()


CONTRADICTIONS = [
    (
        diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True),
        "'epsilon', but use_flow_sigmas=T",
    ),
    (diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction"), "use_flow_sigmas=False"),
    (diffusers.DDIMScheduler(prediction_type="flow_prediction"), "DDIMScheduler .*_sigmas=False"),
    (
        diffusers.EulerDiscreteScheduler(interpolation_type="log_linear"),
        "ends at sigma .* use DDIMScheduler",
    ),
    (diffusers.DDIMScheduler(prediction_type="bad"), "`prediction_type` must be one of .* 'bad'"),
    (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas=True"),
    (
        diffusers.EulerDiscreteScheduler(
            timestep_type="continuous", prediction_type="v_prediction"
        ),
        "timestep_type='continuous'",
    ),
    (
        diffusers.EulerDiscreteScheduler(**NOISY_END),
        "ends at sigma .* use DDIMScheduler",
    ),
    (diffusers.DEISMultistepScheduler(**FLOW), "ends at sigma 0.1998.* use FlowMatchEulerDiscrete"),
    (diffusers.DPMSolverMultistepScheduler(**FLOW, use_karras_sigmas=True), "use_karras_sigmas"),
    (
        diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"),
        "Timestep 999 of DDIMScheduler has nothing of the data.*both signal.* a lower `strength`",
    ),
    (
        diffusers.DDIMScheduler(num_train_timesteps=4),
        "`num_inference_steps` must be at most 4,",
    ),
]


@pytest.mark.parametrize(("scheduler", "message"), CONTRADICTIONS)
def test_options_without_levels_are_refused(scheduler, message):
    with pytest.raises(ValueError, match=message):
        read_schedule(scheduler, 5)


def test_a_timestep_beyond_training_is_refused_before_the_work():
    scheduler = diffusers.DDIMScheduler(steps_offset=1)
    with pytest.raises(ValueError, match="`num_inference_steps` 1000 .* visit timestep 1000, but"):
        read_schedule(scheduler, 1000)
    assert read_schedule(scheduler, 1000, strength=0.9).levels[0].timestep == 900


# --------------------------------------------------------------------------------------- pipelines


def frames_of(pipe, images):
    """Clean latents of a path that every stage has seen."""
    keys = pipe.invert(images[:2], **PLAIN)
    return keys, pipe.sample(pipe.solve(keys, "lerp", num_frames=3)).latents


def assert_same_after_saving(pipe, kind, folder, images):
    keys, latents = frames_of(pipe, images)
    pipe.save_pretrained(folder)
    for loader in (KINDS[kind][0], AutoGeodesicInterpolationPipeline):
        loaded = silent(loader.from_pretrained(folder))
        assert type(loaded.scheduler) is type(pipe.scheduler)
        found, again = frames_of(loaded, images)
        assert found.levels.schedule.levels == keys.levels.schedule.levels
        assert torch.equal(again, latents)
        assert loaded.connect(keys) is keys and loaded._digest() == pipe._digest()


@pytest.mark.parametrize("kind", ["sd", "pixels"])
@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_saved_and_loaded_pipelines_give_the_same_latents(name, kind, tmp_path, keyframes):
    """Of a scheduler that was rebuilt from the config of another class.

    Values that were not set are then the defaults of its own class, and its config keeps values of
    the other class.
    """
    source = diffusers.EulerDiscreteScheduler(beta_end=0.011, timestep_spacing="trailing")
    other = diffusers.PNDMScheduler(beta_end=0.011, set_alpha_to_one=True)
    pipe = make(kind)
    pipe.scheduler = type(build(name)).from_config((source if kind == "sd" else other).config)
    assert_same_after_saving(pipe, kind, tmp_path, keyframes)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
        ("FlowMatchHeunDiscreteScheduler", {}),
        ("FlowMatchLCMScheduler", {"shift": 2.0}),
        ("DPMSolverMultistepScheduler", FLOW | {"flow_shift": 3.0}),
        ("DPMSolverSinglestepScheduler", FLOW),
        ("UniPCMultistepScheduler", FLOW | {"use_dynamic_shifting": True}),
    ],
)
def test_saved_and_loaded_flows_give_the_same_latents(name, options, kind, tmp_path, keyframes):
    source = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    pipe = make(kind)
    pipe.scheduler = getattr(diffusers, name).from_config(source.config, **options)
    assert_same_after_saving(pipe, kind, tmp_path, keyframes)


@pytest.mark.parametrize("kind", ["sd", "xl", "pixels"])
def test_a_pipeline_does_not_change_its_scheduler(kind, tmp_path, keyframes):
    parts = KINDS[kind][2]()
    parts["scheduler"] = diffusers.DDIMScheduler(**BETAS)  # with clip_sample, without an offset
    pipe = silent(KINDS[kind][0](**parts))
    assert pipe.scheduler.config.steps_offset == 0 and pipe.scheduler.config.clip_sample
    assert_same_after_saving(pipe, kind, tmp_path, keyframes)


def test_values_that_a_config_does_not_hold_are_not_lost_in_silence(tmp_path):
    pipe = make("flux")
    pipe.scheduler.set_shift(5.0)
    with pytest.raises(ValueError, match="`shift` of this FlowMatchEuler.* would be lost"):
        pipe.save_pretrained(tmp_path)
    pipe = make("sd")
    pipe.scheduler.alphas_cumprod = pipe.scheduler.alphas_cumprod.square()
    with pytest.raises(ValueError, match="`alphas_cumprod` of this DDIMScheduler was changed"):
        pipe.save_pretrained(tmp_path)
    pipe.scheduler = diffusers.DDIMScheduler(trained_betas=torch.linspace(1e-4, 0.02, 1000))
    with pytest.raises(ValueError, match="cannot be saved .*: build it with numbers and lists"):
        pipe.save_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["sd", "pixels"])
def test_inverted_images_are_sampled_back(kind, keyframes):
    pipe = make(kind)
    pipe.scheduler = diffusers.EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True)
    keys = pipe.invert(keyframes[:2], fixed_point_iterations=12, **INVERT)
    out = pipe.render(pipe.sample(pipe.solve(keys, "lerp", num_frames=2)), output_type="latent")
    assert max(out.reconstruction_error) < 1e-5


def test_schedulers_of_the_other_kind_are_refused(keyframes):
    for kind, scheduler in (
        ("sd", diffusers.FlowMatchEulerDiscreteScheduler()),
        ("pixels", diffusers.UniPCMultistepScheduler(**FLOW)),
        ("flux", diffusers.DDIMScheduler()),
    ):
        parts = KINDS[kind][2]() | {"scheduler": scheduler}
        pipe = silent(KINDS[kind][0](**parts))
        assert pipe.scheduler is scheduler
        with pytest.raises(ValueError, match=f"needs a scheduler .*{type(scheduler).__name__}"):
            pipe.invert(keyframes[:2], **INVERT)


def test_learned_embeddings_of_timesteps_are_read_at_whole_ones(keyframes):
    """A network with one embedding for each timestep has none between them."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        time_embedding_type="learned",
        num_train_timesteps=1000,
    )
    pipe = KINDS["pixels"][0](unet, diffusers.DDPMScheduler())
    keys = pipe.invert(keyframes[:2], **INVERT)
    assert keys.levels.schedule.timesteps == [375, 250, 125, 0]
    with pytest.raises(ValueError, match="`spacing` 'noise' needs timesteps between whole ones"):
        pipe.invert(keyframes[:2], spacing="noise", **INVERT)
