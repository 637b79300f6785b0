"""The pace of geodesics in noise space."""

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch.testing import assert_close

from riemannian_diffusion import (
    EuclideanMetric,
    GaussianMixtureScore,
    Geodesic,
    TangentNormalMetric,
    demo,
    geodesic,
    geodesics,
    invert,
    lerp,
    pace_by_samples,
    sample,
    slerp,
)
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

ABAR = DDIMScheduler().alphas_cumprod.double()
ANGLES = torch.arange(720, dtype=torch.float64) * torch.pi / 360
CIRCLE = torch.stack([ANGLES.cos(), ANGLES.sin(), 0 * ANGLES], 1)
TIMESTEPS = range(580, 0, -20)


def level(timestep):
    abar = float(ABAR[int(timestep)])
    return GaussianMixtureScore(CIRCLE, (1 - abar) ** 0.5, alpha=abar**0.5)


def unevenness(points):
    steps = (points[1:] - points[:-1]).flatten(1).norm(dim=1)
    return float(steps.std() / steps.mean())


def found(stop=250):
    ends = invert(level, CIRCLE[[0, stop]], TIMESTEPS)
    return geodesic(TangentNormalMetric(level(580)), *ends)


def test_samples_of_a_paced_geodesic_are_even_and_on_the_true_geodesic():
    one = found()
    (paced,) = pace_by_samples(level, [one], TIMESTEPS)
    before, after = (sample(level, g.path, TIMESTEPS) for g in (one, paced))
    assert unevenness(before) > 0.3 and unevenness(after) < 0.02
    truth = CIRCLE[torch.linspace(0, 250, 17).round().long()]
    assert (
        float((after - truth).norm(dim=1).max()) < 0.02 < float((before - truth).norm(dim=1).max())
    )


def test_only_the_pace_changes():
    one = found()
    (paced,) = pace_by_samples(level, [one], TIMESTEPS)
    assert torch.equal(paced.curve, one.curve) and torch.equal(paced.nodes, one.nodes)
    assert paced.length == pytest.approx(one.length) and paced.energy == one.energy
    assert torch.equal(paced.path[[0, -1]], one.path[[0, -1]])
    assert_close(paced(torch.linspace(0, 1, 17)), paced.path)
    assert (paced.arc[1:] >= paced.arc[:-1]).all()


def test_many_geodesics_are_paced_as_each_alone():
    several = [found(250), found(100)]
    together = pace_by_samples(level, several, TIMESTEPS, num_points=[17, 9])
    for one, num, paced in zip(several, (17, 9), together, strict=True):
        (alone,) = pace_by_samples(level, [one], TIMESTEPS, num_points=num)
        assert_close(paced.path, alone.path)
    assert pace_by_samples(level, [], TIMESTEPS) == []


def test_few_steps_visit_the_noisiest_level_and_others_even_in_the_noise():
    visited = []

    def noted(timestep):
        score = level(timestep)

        class Noted(GaussianMixtureScore):
            def __call__(self, x, where=None):
                visited.append((timestep, len(x)))
                return super().__call__(x)

        return Noted(CIRCLE, score.sigma, alpha=score.alpha)

    pace_by_samples(noted, [found()], TIMESTEPS, num_points=9, num_steps=4)
    timesteps = [timestep for timestep, _ in visited]
    assert timesteps[0] == 580 and len(timesteps) == 4 and {num for _, num in visited} == {9}
    noises = torch.tensor([float(((1 - ABAR[t]) / ABAR[t]) ** (1 / 6)) for t in timesteps])
    even = noises[0] * torch.linspace(1, 0.25, 4)
    assert_close(noises, even, rtol=0, atol=0.2)


def test_points_that_do_not_move_or_are_not_finite_keep_their_pace():
    x0, x1 = CIRCLE[0], CIRCLE[9]
    still = Geodesic(lerp(x0, x0, 5), 0.0)
    failed = Geodesic(lerp(x0, x1, 5), float("nan"))

    def broken(timestep):
        class Broken(GaussianMixtureScore):
            def __call__(self, x, where=None):
                return x * torch.nan

        return Broken(CIRCLE, level(timestep).sigma, alpha=level(timestep).alpha)

    assert pace_by_samples(level, [still], TIMESTEPS)[0] is still
    assert pace_by_samples(broken, [found()], TIMESTEPS)[0].arc.isfinite().all()
    assert pace_by_samples(level, [failed], TIMESTEPS)[0] is failed


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_points": 1}, "`num_points` must be"),
        ({"num_points": [9, 9]}, "`num_points` must be one number, or one for each of 1"),
        ({"num_steps": 0}, "`num_steps` must be"),
    ],
)
def test_bad_arguments_are_refused(options, match):
    one = geodesic(EuclideanMetric(), CIRCLE[0], CIRCLE[9])
    with pytest.raises(ValueError, match=match):
        pace_by_samples(level, [one], TIMESTEPS, **options)


def test_geodesics_of_a_morph_are_paced_by_samples_and_curves_are_not():
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
    pipe.set_progress_bar_config(disable=True)
    images = [Image.open(path) for path in demo.endpoint_paths()]
    keys = pipe.invert(images, num_inference_steps=20)
    path = pipe.solve(keys, num_frames=9, max_evals=6)
    (solve,) = path.geodesics
    assert_close(path.points, solve(torch.linspace(0, 1, 9)), rtol=0, atol=1e-5)
    even = Geodesic(solve.path, 0.0, curve=solve.curve)(torch.linspace(0, 1, 9))  # by flat length
    latents = pipe.sample(path).latents
    flat = sample(keys.levels, even, keys.levels.schedule.timesteps)
    assert unevenness(latents) < 0.7 * unevenness(flat)
    assert_close(pipe.solve(keys, "slerp", num_frames=9).points, slerp(*keys.points, 9))
    clean = pipe.invert(images, space="clean", strength=0.2, num_inference_steps=20)
    paced = pipe.solve(clean, num_frames=9, max_evals=3)
    assert unevenness(paced.points) < 0.05


def test_many_pairs_are_solved_before_they_are_paced():
    ends = invert(level, CIRCLE[[0, 250, 0, 100]], TIMESTEPS)
    several = geodesics(TangentNormalMetric(level(580)), ends[::2], ends[1::2])
    paced = pace_by_samples(level, several, TIMESTEPS)
    assert all(unevenness(sample(level, one.path, TIMESTEPS)) < 0.02 for one in paced)


def test_a_failure_while_pacing_gives_the_solved_path(monkeypatch):
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
    pipe.set_progress_bar_config(disable=True)
    keys = pipe.invert([Image.open(path) for path in demo.endpoint_paths()], num_inference_steps=5)

    def fails(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("riemannian_diffusion.pipelines.stages.pace_by_samples", fails)
    with pytest.raises(KeyboardInterrupt) as caught:
        pipe.solve(keys, num_frames=3, max_evals=2)
    (path,) = caught.value.path
    assert path.points.shape[0] == 3 and path.geodesics[0].num_evals == 2
