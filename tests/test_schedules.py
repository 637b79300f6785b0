"""The noise levels of a morph are those of the scheduler object that the pipeline has."""

from __future__ import annotations

import copy
import inspect

import diffusers
import pytest
import torch
from models import INVERT, KINDS, SOLVE, make, silent

from riemannian_diffusion import read_schedule
from riemannian_diffusion.pipelines import AutoGeodesicInterpolationPipeline

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VARIANCE = "alphas_cumprod"  # attribute of schedulers with these levels
NOISE = "sigmas"
# Without iterations, all points are evaluated together. Loaded weights lie elsewhere in memory, on
# which the rounding of a product of one point can depend.
PLAIN = INVERT | {"fixed_point_iterations": 0}

SCHEDULERS = {
    "DDIM": ("DDIMScheduler", {}, VARIANCE),
    "DDIM alpha": ("DDIMScheduler", {"set_alpha_to_one": False}, VARIANCE),
    "DDIM trailing": ("DDIMScheduler", {"timestep_spacing": "trailing"}, VARIANCE),
    "DDIM velocity": ("DDIMScheduler", {"prediction_type": "v_prediction"}, VARIANCE),
    "DDPM linspace": ("DDPMScheduler", {"timestep_spacing": "linspace"}, VARIANCE),
    "DDPM velocity": ("DDPMScheduler", {"prediction_type": "v_prediction"}, VARIANCE),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}, VARIANCE),
    "Euler": ("EulerDiscreteScheduler", {}, NOISE),
    "Euler leading": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, NOISE),
    "Euler Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, NOISE),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, NOISE),
    "Heun": ("HeunDiscreteScheduler", {"timestep_spacing": "trailing"}, NOISE),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}, NOISE),
    "DPM-Solver++ Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, NOISE),
    "UniPC": ("UniPCMultistepScheduler", {"use_exponential_sigmas": True}, NOISE),
    "LMS": ("LMSDiscreteScheduler", {"timestep_spacing": "trailing"}, NOISE),
    "DEIS": ("DEISMultistepScheduler", {"timestep_spacing": "trailing"}, NOISE),
}


def scheduler_of(case, steps_offset=1):
    name, options, _ = SCHEDULERS[case]
    kind = getattr(diffusers, name)
    if "steps_offset" in inspect.signature(kind).parameters:
        options = options | {"steps_offset": steps_offset}
    return kind(**BETAS, **options)


def own_levels(scheduler, num, kind):
    """The scheduler's alpha and sigma after `set_timesteps`, by timestep."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num)
    found = {}
    for i, timestep in enumerate(scheduler.timesteps.double().tolist()):
        if kind == VARIANCE:
            abar = float(scheduler.alphas_cumprod[int(timestep)])
        else:
            abar = 1 / (1 + float(scheduler.sigmas[i]) ** 2)
        found.setdefault(timestep, (abar**0.5, (1 - abar) ** 0.5))
    return found


def assert_levels(levels, expected):
    assert [level.timestep for level in levels] == sorted(expected, reverse=True)[-len(levels) :]
    for level in levels:
        assert (level.alpha, level.sigma) == pytest.approx(expected[level.timestep], rel=1e-4)


def own_final_abar(scheduler, num_steps):
    """The squared factor of the data at the end of the scheduler's own last step."""
    own = copy.deepcopy(scheduler)
    own.set_timesteps(num_steps)
    if hasattr(own, "final_alpha_cumprod"):
        return float(own.final_alpha_cumprod)
    if not hasattr(own, "sigmas") or len(own.sigmas) == len(own.timesteps):
        return 1.0
    return 1 / (1 + float(own.sigmas[-1]) ** 2)


def test_the_last_step_may_end_above_no_noise():
    options = {"final_sigmas_type": "sigma_min", "algorithm_type": "dpmsolver++"}
    schedule = read_schedule(diffusers.DPMSolverMultistepScheduler(**options), 7)
    least = float(diffusers.DDIMScheduler().alphas_cumprod[0])
    assert schedule.final_abar == pytest.approx(least, rel=1e-5) and least < 1


@pytest.mark.parametrize("steps_offset", [0, 1, 3])
@pytest.mark.parametrize("case", SCHEDULERS)
def test_levels_are_those_of_the_scheduler(case, steps_offset):
    scheduler = scheduler_of(case, steps_offset)
    before = copy.deepcopy(vars(scheduler))
    schedule = read_schedule(scheduler, 7)
    assert_levels(schedule.levels, own_levels(scheduler, 7, SCHEDULERS[case][2]))
    kinds = {level.prediction_type for level in schedule.levels}
    assert kinds == {scheduler.config.prediction_type}
    assert schedule.final_abar == pytest.approx(own_final_abar(scheduler, 7), rel=1e-6)
    assert vars(scheduler).keys() == before.keys()
    for name, value in vars(scheduler).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, before[name]), name
        else:
            assert repr(value) == repr(before[name]), name


@pytest.mark.parametrize("kind", ["sd", "pixels"])
@pytest.mark.parametrize("case", SCHEDULERS)
def test_saved_and_loaded_pipelines_have_the_same_levels(case, kind, tmp_path, keyframes):
    """Values that were not set are the defaults of the scheduler's own class.

    Where `steps_offset` is not 1, diffusers' own Stable Diffusion changes it as it is loaded.
    """
    pipe = make(kind)
    pipe.scheduler = scheduler_of(case, 1 if kind == "sd" else 2)
    before = pipe.scheduler
    keys = pipe.invert(keyframes[:2], **PLAIN)
    pipe.save_pretrained(tmp_path)
    for loader in (KINDS[kind][0], AutoGeodesicInterpolationPipeline):
        loaded = silent(loader.from_pretrained(tmp_path))
        assert type(loaded.scheduler) is type(before)
        found = loaded.invert(keyframes[:2], **PLAIN)
        assert found.levels.schedule.levels == keys.levels.schedule.levels
        assert found.levels.schedule.final_abar == keys.levels.schedule.final_abar
        assert torch.equal(found.points, keys.points)
    assert pipe.scheduler is before


@pytest.mark.parametrize("case", SCHEDULERS)
def test_inverted_images_are_sampled_back(case, keyframes):
    pipe = make("sd")
    pipe.scheduler = scheduler_of(case)
    keys = pipe.invert(keyframes[:2], "a", fixed_point_iterations=12, **INVERT)
    out = pipe.render(pipe.sample(pipe.solve(keys, "lerp", num_frames=2)), output_type="latent")
    assert max(out.reconstruction_error) < 1e-5


@pytest.mark.parametrize("kind", ["sd", "pixels"])
@pytest.mark.parametrize("case", ["Euler", "Euler leading", "Euler Karras"])
def test_sampling_equals_that_of_the_euler_scheduler(kind, case, keyframes):
    """A DDIM step is an Euler step, so steps of diffusers give the same clean latents."""
    pipe = make(kind)
    pipe.scheduler = scheduler_of(case)
    options = {"num_inference_steps": 8, "strength": 1.0}
    keys = pipe.invert(keyframes[:2], **options)
    path = pipe.sample(pipe.solve(keys, "lerp", num_frames=2))
    euler = scheduler_of(case)
    euler.set_timesteps(8)
    x = keys.points / keys.levels.schedule.levels[0].alpha
    hidden = {}
    if kind == "sd":
        hidden["encoder_hidden_states"] = pipe.encode_prompt([""] * 2, "cpu", 1, False)[0]
    with torch.no_grad():
        for t in euler.timesteps:
            noise = pipe.unet(euler.scale_model_input(x, t), t, **hidden).sample
            x = euler.step(noise, t, x).prev_sample
    torch.testing.assert_close(path.latents, x, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "scheduler"),
    [
        ("sd3", diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)),
        ("sd3", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_karras_sigmas=True)),
        ("sd3", diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)),
        ("flux", diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)),
        ("flux", diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)),
    ],
)
def test_levels_of_flows(kind, scheduler, keyframes, tmp_path):
    pipe = make(kind)
    pipe.scheduler = scheduler
    keys = pipe.invert(keyframes[:2], num_inference_steps=6, strength=1.0, fixed_point_iterations=0)
    levels = keys.levels.schedule.levels
    assert all(level.alpha == pytest.approx(1 - level.sigma) for level in levels)
    sigmas = [level.sigma for level in levels]
    assert sigmas == sorted(set(sigmas), reverse=True) and 0 < sigmas[-1] < sigmas[0] < 1
    own = copy.deepcopy(scheduler)
    given = {}
    if kind == "flux":
        given["sigmas"] = torch.linspace(1, 1 / 6, 6).double().numpy()
        if own.config.use_dynamic_shifting:
            given["mu"] = own.config.base_shift + (16 - own.config.base_image_seq_len) * (
                own.config.max_shift - own.config.base_shift
            ) / (own.config.max_image_seq_len - own.config.base_image_seq_len)
    else:
        given["num_inference_steps"] = 6
    own.set_timesteps(**given)
    expected = own.timesteps.unique().flip(0).clamp(max=999).tolist()
    assert [level.timestep for level in levels] == pytest.approx(expected, rel=1e-5)
    pipe.save_pretrained(tmp_path)
    loaded = silent(KINDS[kind][0].from_pretrained(tmp_path))
    again = loaded.invert(
        keyframes[:2], num_inference_steps=6, strength=1.0, fixed_point_iterations=0
    )
    assert again.levels.schedule.levels == levels and torch.equal(again.points, keys.points)
    assert loaded.solve(again, **SOLVE).points.isfinite().all()


REFUSED = [
    (diffusers.FlowMatchEulerDiscreteScheduler(), "needs a scheduler with the levels of a vari"),
    (diffusers.DDIMScheduler(prediction_type="bad"), "`prediction_type` must be one of .* 'bad'"),
    (diffusers.EDMEulerScheduler(), "`scheduler` must have `alphas_cumprod`.* EDMEulerScheduler"),
]


@pytest.mark.parametrize(("scheduler", "message"), REFUSED)
def test_schedulers_that_are_refused(scheduler, message, keyframes):
    pipe = make("sd")
    pipe.scheduler = scheduler
    with pytest.raises(ValueError, match=message):
        pipe.invert(keyframes[:2], **INVERT)


def test_a_flow_needs_a_flow_scheduler(keyframes):
    pipe = make("flux")
    pipe.scheduler = diffusers.DDIMScheduler()
    with pytest.raises(ValueError, match="needs a scheduler with the levels of a rectified flow"):
        pipe.invert(keyframes[:2], **INVERT)
