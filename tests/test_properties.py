"""Properties that hold for every shape, dtype and argument."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from models import randn, score_unet

from riemannian_diffusion import (
    Condition,
    DiffusionScore,
    EuclideanMetric,
    GaussianMixtureScore,
    ScoreJacobianMetric,
    SteinScoreMetric,
    TangentNormalMetric,
    Where,
    geodesic,
    geodesics,
    invert,
    length,
    lerp,
    refine,
    resample,
    sample,
    slerp,
    smooth,
)
from riemannian_diffusion.media import sorted_by_name
from riemannian_diffusion.pipelines.inputs import to_pixels

settings.register_profile("few", max_examples=25, deadline=None, derandomize=True, print_blob=False)
settings.load_profile("few")

DTYPES = st.sampled_from([torch.float16, torch.float32, torch.float64])
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
METRICS = {
    "flat": lambda score: EuclideanMetric(),
    "stein": SteinScoreMetric,
    "jacobian": ScoreJacobianMetric,
    "tangent": TangentNormalMetric,
}


@st.composite
def points(draw, num=2):
    """Points of one shape and dtype, whose memory may be strided and that may need a gradient."""
    shape, dtype = draw(SHAPES), draw(DTYPES)
    seed = draw(st.integers(0, 2**16))
    drawn = randn(num, *shape, seed=seed, dtype=dtype)
    if draw(st.booleans()):
        drawn = torch.stack([drawn, drawn], -1)[
            ..., 0
        ]  # the tensor has every second number of its memory
    return drawn.requires_grad_(draw(st.booleans()))


def mixture(shape, dtype=torch.float64) -> GaussianMixtureScore:
    return GaussianMixtureScore(randn(5, *shape, seed=7, dtype=dtype), 0.5, std=0.5)


@given(points(), st.sampled_from(sorted(METRICS)), st.integers(2, 6), st.integers(1, 3))
def test_a_geodesic_keeps_its_ends_and_its_bound(ends, name, num_points, num_quadrature):
    before = ends.detach().clone()
    metric = METRICS[name](mixture(ends.shape[1:], torch.float32))
    options = {"num_points": num_points, "num_quadrature": num_quadrature, "max_evals": 4}
    found = geodesic(metric, ends[0], ends[1], init="lerp", **options)
    wide = torch.float64 if ends.dtype == torch.float64 else torch.float32
    assert found.path.dtype == wide and found.path.shape == (num_points, *ends.shape[1:])
    assert torch.equal(found.path[[0, -1]], before.to(wide))
    assert torch.equal(found([0.0, 1.0]), before.to(wide))
    assert found.path.isfinite().all() and not found.path.requires_grad
    assert found.energy >= found.lower_bound * (1 - 1e-4) - 1e-6
    fine = smooth(found.nodes, (len(found.curve) - 1) // (num_points - 1))
    with torch.no_grad():
        assert float(metric.length(fine)) ** 2 <= 2 * found.energy * (1 + 1e-4) + 1e-6
    assert torch.equal(ends, before) and ends.grad is None


@given(points(num=6), st.integers(2, 5))
def test_pairs_are_solved_as_if_alone(ends, num_points):
    metric = TangentNormalMetric(mixture(ends.shape[1:]))
    options = {"num_points": num_points, "max_evals": 3, "init": "lerp"}
    found = geodesics(metric, ends[:3], ends[3:], **options)
    for i, together in enumerate(found):
        alone = geodesic(metric, ends[i], ends[3 + i], **options)
        torch.testing.assert_close(together.path, alone.path, atol=1e-4, rtol=1e-4)


@given(points(), st.integers(2, 9), st.sampled_from([lerp, slerp]))
def test_curves_keep_ends_dtype_and_input(ends, num_points, curve):
    before = ends.detach().clone()
    try:
        path = curve(ends[0], ends[1], num_points)
    except ValueError as error:  # half of all pairs of points with one number are opposite
        assert "opposite directions" in str(error)
        return
    assert path.dtype == ends.dtype and path.shape == (num_points, *ends.shape[1:])
    assert torch.equal(path[[0, -1]], before) and path.isfinite().all()
    assert torch.equal(ends, before)


@given(points(num=5), st.integers(2, 9), st.integers(1, 4))
def test_lengths_do_not_depend_on_the_sampling(path, num_points, factor):
    path = path.detach().double()
    whole = float(length(path))
    assert float(length(refine(path, factor))) == pytest.approx(whole, rel=1e-9)
    assert torch.equal(refine(path, factor)[::factor], path)
    again = resample(path, num_points)
    assert torch.equal(again[[0, -1]], path[[0, -1]])
    assert float(length(again)) <= whole * (1 + 1e-9)
    assert float(length(resample(path.flip(0), num_points))) == pytest.approx(float(length(again)))


@given(points(num=3), st.integers(1, 8), st.floats(0.1, 0.95))
def test_inverted_points_sample_back(clean, num_levels, least):
    clean = clean.detach().double()
    means = randn(4, *clean.shape[1:], seed=3)
    abars = torch.linspace(1, least, num_levels + 1, dtype=torch.float64)[1:].tolist()

    def level(timestep):
        abar = abars[timestep]
        return GaussianMixtureScore(means, (1 - abar) ** 0.5, std=2.0, alpha=abar**0.5)

    noisy = invert(level, clean, range(num_levels), fixed_point_iterations=60)
    assert noisy.shape == clean.shape and noisy.dtype == clean.dtype
    back = sample(level, noisy, range(num_levels))
    torch.testing.assert_close(back, clean, atol=1e-7, rtol=1e-7)


@settings(max_examples=8)
@given(st.integers(1, 5), st.integers(1, 6), st.sampled_from(sorted(METRICS)))
def test_chunks_do_not_change_results(num_points, size, name):
    x, v = randn(2, num_points, 2, 8, 8)
    unet, scheduler = score_unet(), DDIMScheduler()
    values = []
    for most in (None, size):
        score = DiffusionScore(unet, scheduler, 300, max_batch_size=most)
        values.append((score(x), score.jvp(x, v), score.vjp(x, v), METRICS[name](score).norm(x, v)))
    for one, other in zip(*values, strict=True):
        torch.testing.assert_close(other, one, atol=1e-9, rtol=1e-9)


@given(
    st.lists(SHAPES, min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.lists(st.floats(0, 1), min_size=1, max_size=4),
)
def test_each_condition_is_interpolated_on_its_own(shapes, num_paths, num_knots, fractions):
    named = {
        str(i): Condition(randn(num_paths, num_knots, *shape, seed=i))
        for i, shape in enumerate(shapes)
    }
    pair = [i % num_paths for i in range(len(fractions))]
    where = Where(fractions, pair)
    for name, condition in named.items():
        found = condition.at(where, len(fractions), name)
        for k, (u, p) in enumerate(zip(fractions, pair, strict=True)):
            place = u * (num_knots - 1)
            left = min(int(place), max(0, num_knots - 2))
            before = condition.values[p, left]
            after = condition.values[p, min(left + 1, num_knots - 1)]
            expected = before + (place - left) * (after - before)
            value = found[0] if len(found) == 1 else found[k]
            torch.testing.assert_close(value, expected, atol=1e-9, rtol=1e-9)


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_kinds_of_images_are_the_same_pixels(pixels):
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    kinds = [
        pixels,
        np.asfortranarray(pixels),
        PIL.Image.fromarray(pixels),
        pixels.astype(np.float64) / 255,
        tensor,
        tensor[None],
        tensor.double() / 255,
        (tensor.float() / 255).requires_grad_(),
    ]
    before = pixels.copy()
    first = to_pixels(kinds[0], 0)
    assert first.dtype == torch.float32 and first.shape == tensor.shape
    for kind in kinds[1:]:
        torch.testing.assert_close(to_pixels(kind, 0).detach(), first, atol=1e-7, rtol=0)
    assert np.array_equal(pixels, before)


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=8), st.sampled_from(["", "a", "f_"]))
def test_names_are_sorted_by_their_numbers(numbers, prefix):
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            (Path(folder) / f"{prefix}{number}.png").touch()
            (Path(folder) / f".{number}.png").touch()
        found = [int(p.stem.removeprefix(prefix)) for p in sorted_by_name(Path(folder))]
    assert found == sorted(numbers)


NO_COUNT = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=5),
    st.floats(),
    st.integers(max_value=1),
    st.lists(st.integers(), max_size=3),
    st.complex_numbers(),
)


@given(NO_COUNT, st.sampled_from(["geodesic", "lerp", "slerp", "resample"]))
def test_numbers_that_are_no_counts_are_refused(value, name):
    x0, x1 = randn(2, 3)
    use = {
        "geodesic": lambda: geodesic(EuclideanMetric(), x0, x1, num_points=value),
        "lerp": lambda: lerp(x0, x1, value),
        "slerp": lambda: slerp(x0, x1, value),
        "resample": lambda: resample(torch.stack([x0, x1]), value),
    }[name]
    with pytest.raises(ValueError, match="`num_points` must be a whole number of at least 2"):
        use()
