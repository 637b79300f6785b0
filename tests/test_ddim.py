"""DDIM compared with diffusers' schedulers, with its own inverse, and with a closed form."""

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from models import randn, score_unet
from torch.testing import assert_close
from uses import MEANS, NAN_, levels

from riemannian_diffusion import (
    DiffusionScore,
    GaussianMixtureScore,
    ScoreModel,
    ddim_step,
    invert,
    invert_steps,
    sample,
    sample_steps,
    sdedit,
)

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}
SCHEDULER = DDIMScheduler(**STABLE_DIFFUSION)
TIMESTEPS = range(1, 600, 20)  # 0.6 of 50 steps


def mixture_levels(timestep):
    """The exact model of five Gaussians among 2 x 2 images, at Stable Diffusion's levels."""
    abar = float(SCHEDULER.alphas_cumprod[timestep])
    return GaussianMixtureScore(randn(5, 1, 2, 2), (1 - abar) ** 0.5, std=0.3, alpha=abar**0.5)


def unet_levels(prediction_type="epsilon"):
    unet = score_unet()
    scheduler = DDIMScheduler(**STABLE_DIFFUSION, prediction_type=prediction_type)
    return unet, scheduler, lambda timestep: DiffusionScore(unet, scheduler, timestep)


# -------------------------------------------------------------------------------- diffusers' steps


def noise_of(output, x, abar, prediction_type):
    if prediction_type == "epsilon":
        return output
    return abar**0.5 * output + (1 - abar) ** 0.5 * x


@pytest.mark.parametrize("inverse", [False, True], ids=["sampling", "inversion"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("timestep", [1, 21, 301, 581, 961])
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
def test_a_step_equals_that_of_the_scheduler(inverse, prediction_type, timestep, set_alpha_to_one):
    """diffusers names a step of an inversion by the level where it arrives."""
    scheduler = (DDIMInverseScheduler if inverse else DDIMScheduler)(
        **STABLE_DIFFUSION,
        prediction_type=prediction_type,
        set_alpha_to_one=set_alpha_to_one,
        steps_offset=1,
    )
    scheduler.set_timesteps(50)
    assert timestep in scheduler.timesteps
    x, output = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    expected = scheduler.step(output, timestep, x).prev_sample
    clean = scheduler.initial_alpha_cumprod if inverse else scheduler.final_alpha_cumprod
    cleaner = float(scheduler.alphas_cumprod[timestep - 20]) if timestep >= 20 else float(clean)
    noisier = float(scheduler.alphas_cumprod[timestep])
    start, end = (cleaner, noisier) if inverse else (noisier, cleaner)
    actual = ddim_step(x, noise_of(output, x, start, prediction_type), start, end)
    assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
def test_sampling_equals_the_loop_of_diffusers(prediction_type, set_alpha_to_one):
    unet, _, levels = unet_levels(prediction_type)
    scheduler = DDIMScheduler(
        **STABLE_DIFFUSION,
        prediction_type=prediction_type,
        set_alpha_to_one=set_alpha_to_one,
        steps_offset=1,
    )
    scheduler.set_timesteps(10)
    timesteps = scheduler.timesteps[4:]
    x = expected = randn(2, 2, 8, 8)
    with torch.no_grad():
        for timestep in timesteps:
            output = unet(expected, timestep).sample
            expected = scheduler.step(output, timestep, expected).prev_sample
        final_abar = float(scheduler.final_alpha_cumprod)
        actual = sample(levels, x, timesteps, final_abar=final_abar)
    assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_step_and_its_inverse():
    x, eps = randn(2, 3), randn(2, 3, seed=1)
    there = ddim_step(x, eps, 0.9, 0.2)
    assert_close(ddim_step(there, eps, 0.2, 0.9), x)
    assert_close(ddim_step(ddim_step(x, eps, 0.9, 0.5), eps, 0.5, 0.2), there)
    assert_close(ddim_step(x, eps, 0.4, 0.4), x)
    assert_close(ddim_step(0.6 * x + 0.8 * eps, eps, 0.36, 1.0), x)


# ------------------------------------------------------------------------------------- round trips


def round_trip_errors(levels, x, timesteps, iterations, final_abar=1.0):
    errors = []
    with torch.no_grad():
        for number in iterations:
            noise = invert(
                levels, x, timesteps, final_abar=final_abar, fixed_point_iterations=number
            )
            back = sample(levels, noise, timesteps, final_abar=final_abar)
            errors.append(float((back - x).norm() / x.norm()))
    return errors


@pytest.mark.parametrize("final_abar", [1.0, 0.99915])
def test_round_trips_in_an_exact_model(final_abar):
    x = randn(5, 1, 2, 2) + 0.3 * randn(5, 1, 2, 2, seed=1)
    errors = round_trip_errors(mixture_levels, x, TIMESTEPS, (0, 1, 2, 3, 60), final_abar)
    assert 1e-3 < errors[0] < 0.5
    for before, after in zip(errors, errors[1:4], strict=False):
        assert after < 0.5 * before
    assert errors[4] < 1e-11  # the implicit equation is solved, so the inverse is exact


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_round_trips_in_a_network(prediction_type):
    _, _, levels = unet_levels(prediction_type)
    errors = round_trip_errors(levels, randn(2, 2, 8, 8), TIMESTEPS[::3], (0, 1, 2, 3, 40))
    for before, after in zip(errors, errors[1:4], strict=False):
        assert after < 0.5 * before
    assert errors[4] < 1e-11


def test_samples_invert_to_their_noise():
    noise = randn(4, 1, 2, 2, seed=3)
    clean = sample(mixture_levels, noise, TIMESTEPS)
    again = invert(mixture_levels, clean, TIMESTEPS, fixed_point_iterations=60)
    assert_close(again, noise, rtol=0, atol=1e-9)


# ------------------------------------------------------------------------------- hard round trips


class Counting(GaussianMixtureScore):
    """Records the number of points of every evaluation."""

    sizes: list

    def __call__(self, x, where=None):
        self.sizes.append(len(x))
        return super().__call__(x, where)


def coarse_levels(seed, std, sizes=None):
    """Six narrow Gaussians in R^3."""
    means = randn(6, 3, seed=seed)

    def level(timestep):
        abar = float(SCHEDULER.alphas_cumprod[timestep])
        kind = GaussianMixtureScore if sizes is None else Counting
        made = kind(means, (1 - abar) ** 0.5, std=std, alpha=abar**0.5)
        made.sizes = sizes
        return made

    return means, level


def errors_of(levels, x, noise, timesteps):
    return (sample(levels, noise, timesteps) - x).norm(dim=1) / x.norm(dim=1)


@pytest.mark.parametrize("num_steps", [5, 10, 50])
def test_iterations_never_harm(num_steps):
    """Between modes, fixed-point iteration diverges; the better inverse is kept, with a warning."""
    timesteps = range(1, 1000, 1000 // num_steps)
    better = failed = 0
    for seed in range(4):
        _, levels = coarse_levels(seed, 0.1)
        x = randn(8, 3, seed=seed + 100)  # anywhere, not near the modes
        plain = errors_of(
            levels, x, invert(levels, x, timesteps, fixed_point_iterations=0), timesteps
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = errors_of(levels, x, invert(levels, x, timesteps), timesteps)
        assert (found <= plain * (1 + 1e-9)).all()
        assert bool(caught) == bool((found > 0.05).any())
        better, failed = better + int((found < plain / 10).sum()), failed + len(caught)
    assert better >= 10 and failed >= 1


def test_few_points_are_evaluated():
    """Near the data, a fine schedule needs few iterations, and those at its cleanest levels."""
    sizes = []
    means, levels = coarse_levels(0, 0.3, sizes)
    x = means + 0.3 * randn(6, 3, seed=1)
    noise = invert(levels, x, TIMESTEPS)
    assert len(TIMESTEPS) * len(x) <= sum(sizes) < 1.5 * len(TIMESTEPS) * len(x)
    assert 0 < min(sizes) < len(x)  # points that have converged are left out
    assert errors_of(levels, x, noise, TIMESTEPS).max() < 5e-3


@pytest.mark.parametrize("num_steps", [5, 30])
def test_other_points_do_not_matter(num_steps):
    timesteps = range(1, 1000, 1000 // num_steps)
    means, levels = coarse_levels(0, 0.2)
    x = torch.cat([means + 0.2 * randn(6, 3, seed=1), randn(3, 3, seed=2)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = invert(levels, x, timesteps)
        alone = torch.cat([invert(levels, point[None], timesteps) for point in x])
    assert_close(together, alone, rtol=1e-6, atol=1e-9)


def test_tolerance_bounds_the_round_trip():
    errors = []
    x = randn(5, 1, 2, 2) + 0.3 * randn(5, 1, 2, 2, seed=1)
    for tol in (1e-2, 1e-4, 1e-6, 0.0):
        noise = invert(mixture_levels, x, TIMESTEPS, tol=tol)
        back = sample(mixture_levels, noise, TIMESTEPS)
        missed = (back - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
        errors.append(float(missed.max()))
        assert errors[-1] < 10 * tol + 1e-10
    assert errors[0] > 1e-4  # the first tolerance is used


def test_zero_is_inverted():
    levels = gaussian_levels(20, randn(2, 3), 0.5)
    x = torch.zeros(2, 2, 3).double()
    back = sample(levels, invert(levels, x, range(20)), range(20))
    assert_close(back, x, rtol=0, atol=2e-3)


def test_infinite_noise_is_not_hidden():
    class Broken(GaussianMixtureScore):
        def __call__(self, x, where=None):
            return super().__call__(x, where) * NAN_

    x = randn(2, 3)
    with pytest.warns(UserWarning, match="2 of 2 points were not inverted.*non-finite"):
        assert invert(lambda t: Broken(x, 0.5), x, [1, 2]).isnan().all()


class Guided(ScoreModel):
    """Plain classifier-free guidance of exact scores."""

    def __init__(self, means, kept, weight, alpha, sigma, std):
        self.alpha, self.sigma, self.weight = alpha, sigma, weight
        self.some, self.all = (
            GaussianMixtureScore(one, sigma, std=std, alpha=alpha) for one in (means[:kept], means)
        )

    def __call__(self, x, where=None):
        without = self.all(x)
        return without + self.weight * (self.some(x) - without)


def silent_and_poor(levels, x, timesteps):
    """Whether a poor round trip has no warning, and whether it is poor."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        noise = invert(levels, x, timesteps)
    poor = bool((errors_of(levels, x, noise, timesteps) > 0.05).any())
    return poor and not caught, poor


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("weight", [1.0, 7.5])
def test_errors_are_relative_to_the_points(weight, num_steps, flow):
    """On coarse schedules, the noise at the cleanest level is larger than the data."""
    timesteps = [i / num_steps for i in range(1, num_steps + 1)]
    found = []
    for seed in range(8):
        for scale, dim in ((0.5, 2), (0.3, 64)):
            means = scale * randn(10, dim, seed=seed)

            def level(t, means=means, scale=scale):
                tau = 0.9 * t
                alpha = 1 - tau if flow else math.sqrt(1 - tau**2)
                return Guided(means, 5, weight, alpha, tau, 0.3 * scale)

            x = means[:3] + 0.3 * scale * randn(3, dim, seed=seed + 100)
            found.append(silent_and_poor(level, x, timesteps))
    silent, poor = map(sum, zip(*found, strict=True))
    assert silent == 0 < poor


def test_small_residuals_that_grow_are_not_hidden():
    """On the way back along a guided score, a residual below the tolerance can grow."""
    found = []
    for seed in range(20):
        means = randn(8, 2, seed=seed)

        def level(timestep, means=means):
            abar = float(SCHEDULER.alphas_cumprod[timestep])
            return Guided(means, 4, 7.5, abar**0.5, (1 - abar) ** 0.5, 0.5)

        x = means[:3] + 0.5 * randn(3, 2, seed=seed + 100)
        found.append(silent_and_poor(level, x, range(12, 601, 12)))
    silent, poor = map(sum, zip(*found, strict=True))
    assert silent == 0 < poor


# ------------------------------------------------------------------------------------- closed form


def gaussian_levels(num, mean, std, last=3.0):
    """Equal steps of `tau = sigma / alpha` up to `last`, for data from one Gaussian."""

    def level(timestep):
        tau = last * (timestep + 1) / num
        alpha = 1 / math.hypot(1, tau)
        return GaussianMixtureScore(mean[None], tau * alpha, std=std, alpha=alpha)

    return level


def test_sampling_a_gaussian_tends_to_the_closed_form():
    """`z - mean` shrinks as `sqrt(std^2 + tau^2)`; the error falls as the steps do."""
    mean, std, last = randn(2, 3), 0.5, 3.0
    noise = randn(4, 2, 3, seed=1)
    scale = math.hypot(1, last)  # 1 / alpha
    expected = mean + (noise * scale - mean) * std / math.hypot(std, last)
    errors, back = [], []
    for num in (100, 200, 400):
        levels = gaussian_levels(num, mean, std, last)
        clean = sample(levels, noise, range(num))
        errors.append(float((clean - expected).norm() / expected.norm()))
        again = invert(levels, expected, range(num), fixed_point_iterations=1)
        back.append(float((again - noise).norm() / noise.norm()))
    for found in (errors, back):
        assert found[2] < 0.01
        assert found[0] / found[1] == pytest.approx(2, rel=0.15)
        assert found[1] / found[2] == pytest.approx(2, rel=0.1)


def test_noise_and_back_draws_from_the_posterior():
    """Points of one Gaussian that are noised to `tau` return with spread `std`, nearer the mean."""
    mean, std, last = randn(2, 3), 0.5, 3.0
    levels, generator = gaussian_levels(200, mean, std, last), torch.Generator().manual_seed(0)
    x = mean + randn(1, 2, 3, seed=1).expand(4000, -1, -1)
    drawn = sdedit(levels, x, range(200), generator=generator)
    shrink = std / math.hypot(std, last)
    assert_close(drawn.mean(0), mean + shrink * (x[0] - mean), rtol=0, atol=0.04)
    assert_close(drawn.std(0), torch.full((2, 3), shrink * last).double(), rtol=0.05, atol=0)
    again = sdedit(levels, x, range(199, -1, -1), generator=generator.manual_seed(0))
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, sdedit(levels, x, range(200), generator=generator))


def test_a_single_step_is_the_denoiser():
    noise = randn(4, 1, 2, 2)
    level = mixture_levels(400)
    assert_close(sample(mixture_levels, noise, [400]), level.denoise(noise) / level.alpha)


def test_without_iterations_the_noise_is_read_where_the_step_starts():
    x = randn(4, 1, 2, 2)
    expected, abar = x, 1.0
    for timestep in TIMESTEPS:
        level = mixture_levels(timestep)
        eps = -level.sigma * level(expected)
        expected, abar = ddim_step(expected, eps, abar, level.alpha**2), level.alpha**2
    actual = invert(mixture_levels, x, TIMESTEPS, fixed_point_iterations=0)
    assert_close(actual, expected)


# -------------------------------------------------------------------------------------- generators


def test_steps_of_an_inversion():
    x = randn(2, 1, 2, 2)
    before = x.clone()
    steps = list(invert_steps(mixture_levels, x, TIMESTEPS))
    assert len(steps) == len(TIMESTEPS)
    assert torch.equal(steps[-1], invert(mixture_levels, x, TIMESTEPS))
    for num in (1, 7):
        assert torch.equal(steps[num - 1], invert(mixture_levels, x, TIMESTEPS[:num]))
    assert torch.equal(x, before)


def test_steps_of_sampling():
    x = randn(2, 1, 2, 2)
    before = x.clone()
    steps = list(sample_steps(mixture_levels, x, TIMESTEPS))
    assert len(steps) == len(TIMESTEPS)
    assert torch.equal(steps[-1], sample(mixture_levels, x, TIMESTEPS))
    rest = sample(mixture_levels, steps[9], TIMESTEPS[:-10])
    assert_close(rest, steps[-1], rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)


def test_a_caller_may_send_other_points():
    x, other = randn(2, 1, 2, 2), randn(2, 1, 2, 2, seed=1)
    steps = sample_steps(mixture_levels, x, TIMESTEPS)
    next(steps)
    follows = [steps.send(other), *steps]
    assert torch.equal(follows[-1], sample(mixture_levels, other, TIMESTEPS[:-1]))
    assert len(follows) == len(TIMESTEPS) - 1


def test_timesteps_in_any_order():
    x, shuffled = randn(2, 1, 2, 2), [301, 21, 581, 101]
    tensor = torch.tensor(shuffled)
    for function in (invert, sample):
        expected = function(mixture_levels, x, sorted(shuffled))
        for timesteps in (shuffled, tensor, iter(shuffled), reversed(sorted(shuffled))):
            assert torch.equal(function(mixture_levels, x, timesteps), expected)


def test_levels_are_visited_in_order():
    visited = []

    def levels(timestep):
        visited.append(timestep)
        return mixture_levels(timestep)

    x = randn(2, 1, 2, 2)
    invert(levels, x, [401, 1, 201])
    assert visited == [1, 201, 401]
    visited.clear()
    sample(levels, x, [401, 1, 201])
    assert list(dict.fromkeys(visited)) == [401, 201, 1]


@pytest.mark.parametrize("function", [invert, sample])
def test_the_clean_level(function):
    """The clean level of a scheduler may have a little noise."""
    x = randn(2, 1, 2, 2)
    usual = function(mixture_levels, x, TIMESTEPS)
    other = function(mixture_levels, x, TIMESTEPS, final_abar=0.99)
    assert not torch.allclose(usual, other, rtol=1e-4)
    if function is sample:
        *_, last, _ = sample_steps(mixture_levels, x, TIMESTEPS)
        level = mixture_levels(1)
        expected = ddim_step(last, -level.sigma * level(last), level.alpha**2, 0.99)
        assert_close(other, expected)


def test_the_loops_are_differentiable():
    x = randn(2, 1, 2, 2).requires_grad_()
    timesteps = [1, 201, 401]
    assert torch.autograd.gradcheck(lambda p: sample(mixture_levels, p, timesteps), x)
    assert torch.autograd.gradcheck(lambda p: invert(mixture_levels, p, timesteps), x)


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("function", [invert, sample])
@pytest.mark.parametrize(
    "options, message",
    [
        ({"timesteps": []}, r"`timesteps` must be one or more different levels, but got \[\]"),
        ({"timesteps": [1, 5, 1]}, r"different levels, but got \[1, 1, 5\]"),
        ({"final_abar": 0.0}, r"`final_abar` must be in \(0, 1\], but got .*0\.0"),
        ({"final_abar": 1.5}, r"`final_abar` must be in \(0, 1\], but got .*1\.5"),
    ],
)
def test_bad_arguments(function, options, message):
    with pytest.raises(ValueError, match=message):
        function(**{"model": mixture_levels, "x": randn(2, 1, 2, 2), "timesteps": [1]} | options)


def test_bad_tolerance():
    with pytest.raises(ValueError, match="`tol` must not be negative, but got -1"):
        invert(mixture_levels, randn(2, 1, 2, 2), [1], tol=-1.0)


def test_bad_number_of_iterations():
    with pytest.raises(
        ValueError,
        match="`fixed_point_iterations` must be a whole number of at least 0, but got -1",
    ):
        invert(mixture_levels, randn(2, 1, 2, 2), [1], fixed_point_iterations=-1)


@pytest.mark.parametrize("levels", [(0.0, 0.5), (0.5, 0.0), (1.1, 0.5), (0.5, math.nan)])
def test_bad_levels(levels):
    x = randn(2, 3)
    with pytest.raises(ValueError, match=r"`abar_(from|to)` must be in \(0, 1\], but got"):
        ddim_step(x, x, *levels)


USES = [
    (lambda: invert(levels, MEANS, None), "`timesteps` must be one or more .* but got None"),
    (lambda: invert(levels, MEANS, ["a"]), r"`timesteps` must be finite numbers.*\['a'\]"),
    (lambda: invert(levels, MEANS, [NAN_]), "`timesteps` must be finite numbers"),
    (lambda: invert(3, MEANS, [1]), "`model` must be a function, but got int"),
    (lambda: invert(lambda t: 3, MEANS, [1]), "`model` must give a ScoreModel for timestep 1"),
    (lambda: invert(levels, MEANS * NAN_, [1]), "`x` must be .* has NaN or infinite ones"),
    (lambda: invert(levels, MEANS, [1], final_abar="x"), r"must be in \(0, 1\], but got x"),
    (lambda: sample(levels, [0.0], [1]), "`x` must be .* but got list"),
    (lambda: sdedit(levels, MEANS, [1], generator=3), "`generator` must be a Generator"),
    (lambda: ddim_step(MEANS, MEANS[:2], 0.5, 0.9), r"one shape, but got \(6, 3\) and \(2, 3\)"),
]


@pytest.mark.parametrize(("use", "message"), USES)
def test_uses_that_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("scale", [2.0, 3.0, 8.0])
@pytest.mark.parametrize("num", [2, 3, 4])
@pytest.mark.parametrize("top", [0.6, 0.9])
def test_guided_inversion_on_coarse_schedules_fails_with_a_warning(flow, scale, num, top):
    """An iterate far from the data, whose rounding errors hide its residual, is no solution."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(8, 2, generator=generator, dtype=torch.float64)

    def level(t):
        angle = t * torch.pi / 2
        alpha, sigma = (1 - t, t) if flow else (math.cos(angle), math.sin(angle))
        return Guided(means, 4, scale, alpha, sigma, 0.0)

    timesteps = [top * (i + 1) / num for i in range(num)]
    assert not silent_and_poor(level, means[:4], timesteps)[0]


def test_numbers_of_any_class_give_the_same_points():
    x = randn(3, 1, 2, 2)
    expected = invert(mixture_levels, x, [1, 21, 41], final_abar=0.5, fixed_point_iterations=2)
    for abar in (np.float64(0.5), torch.tensor(0.5), Fraction(1, 2)):
        times, num = np.array([1, 21, 41]), np.int64(2)
        found = invert(mixture_levels, x, times, final_abar=abar, fixed_point_iterations=num)
        assert torch.equal(found, expected)


def test_a_point_without_an_axis_of_points_is_refused():
    with pytest.raises(ValueError, match=r"`x` must be points \(K, \*shape\)"):
        invert(mixture_levels, torch.zeros(4), TIMESTEPS)
