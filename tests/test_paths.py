import math

import pytest
import torch
from models import randn
from torch.testing import assert_close
from uses import NAN_, PATH, P, Q

from riemannian_diffusion import (
    EuclideanMetric,
    GaussianMixtureScore,
    Metric,
    TangentNormalMetric,
    length,
    lerp,
    refine,
    resample,
    slerp,
    smooth,
    speed,
)
from riemannian_diffusion.paths import points_at, segment_lengths, solve_second_difference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def arc(angles, radius=1.0):
    angles = torch.as_tensor(angles, dtype=torch.float64)
    return radius * torch.stack([angles.cos(), angles.sin()], -1)


class Exponential(Metric):
    """On the line, G = exp(2 x): the length from 0 to x is exp(x) - 1."""

    def inner(self, x, u, v):
        return (x.mul(2).exp() * u * v).flatten(1).sum(1)


# ----------------------------------------------------------------------------------- lerp, slerp


def test_lerp():
    x0, x1 = randn(2, 3), randn(2, 3, seed=1)
    path = lerp(x0, x1, 5)
    for i in range(5):
        assert_close(path[i], (1 - i / 4) * x0 + i / 4 * x1)


def test_slerp_runs_along_the_circle():
    path = slerp(*arc([0.4, 2.6], radius=3.0), 12)
    assert_close(path, arc(torch.linspace(0.4, 2.6, 12, dtype=torch.float64), radius=3.0))


@pytest.mark.parametrize("shape", [(3,), (4, 5, 5)])
def test_slerp_turns_at_constant_speed_and_interpolates_norms(shape):
    x0, x1 = 2 * randn(*shape), 5 * randn(*shape, seed=1)
    path = slerp(x0, x1, 9).flatten(1)
    u = torch.linspace(0, 1, 9, dtype=torch.float64)
    assert_close(path.norm(dim=1), (1 - u) * x0.norm() + u * x1.norm())
    unit = path / path.norm(dim=1, keepdim=True)
    turns = (unit[1:] * unit[:-1]).sum(1).acos()
    total = torch.acos((unit[0] * unit[-1]).sum())
    assert_close(turns, (total / 8).expand(8), rtol=1e-6, atol=0)
    basis = torch.linalg.qr(torch.stack([x0.flatten(), x1.flatten()], 1))[0]
    assert_close(path @ basis @ basis.T, path)  # the path stays in the plane of its ends


@pytest.mark.parametrize("angle", [1e-9, 1e-6, 1e-3])
def test_slerp_of_nearly_equal_directions(angle):
    x0, x1 = arc([0.0, angle])
    path = slerp(x0, 2 * x1, 5)
    expected = torch.stack([(1 + u) * arc(u * angle) for u in (0, 0.25, 0.5, 0.75, 1)])
    assert_close(path, expected, rtol=1e-6, atol=angle * 1e-6 if angle > 1e-7 else 1e-8)


@pytest.mark.parametrize("function", [lerp, slerp])
@pytest.mark.parametrize("num_points", [2, 3, 17])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ends_stay_bit_identical(function, num_points, dtype):
    for seed in range(5):
        x0, x1 = 7 * randn(3, 4, seed=seed, dtype=dtype), randn(3, 4, seed=90 + seed, dtype=dtype)
        path = function(x0, x1, num_points)
        assert path.shape == (num_points, 3, 4)
        assert path.dtype == dtype
        assert torch.equal(path[0], x0) and torch.equal(path[-1], x1)
        wide = function(x0.double(), x1.double(), num_points)
        assert_close(path.double(), wide, rtol=0, atol=40 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("function", [lerp, slerp])
def test_identical_points(function):
    x = randn(3)
    assert torch.equal(function(x, x, 4), x.expand(4, 3))


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_slerp_of_parallel_points_is_straight(factor):
    x = randn(3)
    assert_close(slerp(x, factor * x, 6), lerp(x, factor * x, 6))


def test_slerp_from_or_to_zero_is_straight():
    x, zero = randn(3), torch.zeros(3, dtype=torch.float64)
    assert torch.equal(slerp(zero, x, 5), lerp(zero, x, 5))
    assert torch.equal(slerp(x, zero, 5), lerp(x, zero, 5))
    assert torch.equal(slerp(zero, zero, 5), zero.expand(5, 3))


@pytest.mark.parametrize("factor", [-1.0, -3.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slerp_between_opposite_points_is_refused(factor, dtype):
    x = torch.tensor([0.5, -2.0, 1.25], dtype=dtype)  # exact in every dtype
    with pytest.raises(ValueError, match="opposite directions.*Start from lerp"):
        slerp(x, factor * x, 5)


def test_slerp_of_nearly_opposite_points_keeps_its_plane():
    x0, x1 = arc([0.0, math.pi - 1e-4])
    expected = arc(torch.linspace(0, math.pi - 1e-4, 5, dtype=torch.float64))
    assert_close(slerp(x0, x1, 5), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("function", [lerp, slerp])
@pytest.mark.parametrize(
    "x0, x1, num_points, message",
    [
        (torch.zeros(3), torch.zeros(4), 5, r"one shape, but got \(3,\) and \(4,\)"),
        (torch.zeros(3), torch.zeros(1, 3), 5, r"one shape, but got \(3,\) and \(1, 3\)"),
        (
            torch.zeros(3),
            torch.ones(3),
            1,
            "`num_points` must be a whole number of at least 2, but got 1",
        ),
        (
            torch.zeros(3),
            torch.ones(3),
            0,
            "`num_points` must be a whole number of at least 2, but got 0",
        ),
    ],
)
def test_bad_ends(function, x0, x1, num_points, message):
    with pytest.raises(ValueError, match=message):
        function(x0, x1, num_points)


# --------------------------------------------------------------------------------- length, speed


@pytest.mark.parametrize("metric", [None, EuclideanMetric()])
def test_length_and_speed_of_an_arc(metric):
    path = arc(torch.linspace(0, 2, 9, dtype=torch.float64), radius=3.0)
    chord = 2 * 3.0 * math.sin(2 / 8 / 2)
    expected = torch.full((8,), chord, dtype=torch.float64)
    assert_close(segment_lengths(path, metric), expected)
    assert float(length(path, metric)) == pytest.approx(8 * chord, rel=1e-12)
    assert_close(speed(path, metric), 8 * expected)


def test_length_and_speed_of_uneven_images():
    path = torch.tensor([0.0, 1.0, 3.0, 3.0], dtype=torch.float64).view(4, 1, 1).expand(4, 2, 2)
    assert_close(segment_lengths(path), torch.tensor([2.0, 4.0, 0.0], dtype=torch.float64))
    assert_close(speed(path), torch.tensor([6.0, 12.0, 0.0], dtype=torch.float64))
    assert float(length(path)) == 6.0
    assert float(speed(path).mean()) == 6.0


def test_length_in_a_metric():
    path = torch.linspace(0, 1.5, 400, dtype=torch.float64)[:, None]
    assert float(length(path, Exponential())) == pytest.approx(math.exp(1.5) - 1, rel=1e-5)


# ---------------------------------------------------------------------------------------- refine


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_refine(factor):
    path = randn(4, 2, 3)
    fine = refine(path, factor)
    assert fine.shape == (3 * factor + 1, 2, 3)
    assert torch.equal(fine[::factor], path)
    for i in range(3):
        for j in range(factor):
            w = j / factor
            assert_close(fine[i * factor + j], (1 - w) * path[i] + w * path[i + 1])
    assert_close(length(fine), length(path))


def test_refine_is_differentiable():
    path = randn(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: refine(p, 3), path)


# -------------------------------------------------------------------------------------- resample


def test_resample_an_uneven_line():
    x0, x1 = randn(3), randn(3, seed=1)
    u = torch.tensor([0.0, 0.01, 0.7, 0.75, 1.0], dtype=torch.float64)[:, None]
    assert_close(resample(x0 + u * (x1 - x0), 6), lerp(x0, x1, 6))


def test_resample_runs_on_the_polyline():
    path = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    expected = torch.tensor([[0, 0], [1, 0], [1, 1], [1, 2], [1, 3]], dtype=torch.float64)
    assert_close(resample(path, 5), expected)


def test_resample_in_a_metric_with_a_closed_form():
    path = torch.linspace(0, 1.5, 1000, dtype=torch.float64)[:, None]
    u = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None]
    expected = (1 + u * (math.exp(1.5) - 1)).log()
    assert_close(resample(path, 7, metric=Exponential()), expected, rtol=1e-5, atol=1e-6)


def test_resample_gives_equal_lengths_in_a_metric():
    metric = TangentNormalMetric(GaussianMixtureScore(randn(6, 3), 0.5))
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    path = torch.cat([(3 * t).cos(), (2 * t).sin(), t**3], 1)
    assert speed(resample(path, 41), metric).std() > 0.3 * length(path, metric)
    fine = resample(path, 8 * 100 + 1, metric=metric)
    pieces = segment_lengths(fine, metric).view(8, 100).sum(1)
    assert_close(pieces, pieces.mean().expand(8), rtol=1e-3, atol=0)
    assert_close(fine[::100], resample(path, 9, metric=metric), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_points", [2, 3, 11])
@pytest.mark.parametrize("dtype", DTYPES)
def test_resample_keeps_the_ends_bit_for_bit(num_points, dtype):
    path = 7 * randn(6, 2, 3, dtype=dtype)
    out = resample(path, num_points)
    assert out.shape == (num_points, 2, 3)
    assert out.dtype == dtype
    assert torch.equal(out[0], path[0]) and torch.equal(out[-1], path[-1])


@pytest.mark.parametrize("num_points", [2, 5])
def test_resample_a_path_that_stands_still(num_points):
    x = randn(3)
    assert torch.equal(resample(x.expand(4, 3), num_points), x.expand(num_points, 3))


def test_resample_passes_over_repeated_points():
    path = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0], dtype=torch.float64)[:, None]
    assert_close(resample(path, 5), torch.linspace(0, 2, 5, dtype=torch.float64)[:, None])


@pytest.mark.parametrize(
    "num_given, num_points, message",
    [
        (1, 5, r"`path` must be at least 2 points .* got \(1, 2\)"),
        (3, 1, "`num_points` must be a whole number of at least 2, but got 1"),
    ],
)
def test_bad_resampling(num_given, num_points, message):
    with pytest.raises(ValueError, match=message):
        resample(torch.zeros(num_given, 2), num_points)


def test_points_at_fractions_of_the_length():
    path = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    lengths = torch.tensor(
        [0.0, 3.0, 4.0], dtype=torch.float64
    )  # these lengths differ from the flat ones
    points = points_at(path, lengths, torch.tensor([0.0, 0.375, 0.75, 0.875, 1.0]))
    assert_close(points, torch.tensor([[0.0], [0.5], [1.0], [3.0], [5.0]], dtype=torch.float64))


def test_points_at_the_ends_of_a_length_that_stands_still():
    """Different points may have distance 0 in a metric; the ends are still those of the path."""
    path = torch.tensor([[0.0], [1.0], [5.0], [7.0]], dtype=torch.float64)
    lengths = torch.tensor([0.0, 0.0, 4.0, 4.0], dtype=torch.float64)
    points = points_at(path, lengths, torch.tensor([0.0, 0.5, 1.0]))
    assert_close(points, torch.tensor([[0.0], [3.0], [7.0]], dtype=torch.float64))


USES = [
    (lambda: resample([P, Q], 3), "`path` must be .* but got list"),
    (lambda: resample(PATH * NAN_, 3), "`path` must be .* has NaN or infinite ones"),
    (lambda: resample(torch.ones(3), 3), r"`path` must be at least 2 points .* got \(3,\)"),
    (lambda: resample(PATH, 3, metric=3), "`metric` must be a Metric, but got int"),
    (lambda: slerp(P.long(), Q.long(), 3), "`x0` must be .* but got torch.int64"),
    (lambda: lerp(P, None, 3), "`x1` must be .* but got NoneType"),
    (lambda: refine(PATH, 0), "`factor` must be a whole number of at least 1, but got 0"),
    (lambda: length([P]), "`path` must be .* but got list"),
]


@pytest.mark.parametrize(("use", "message"), USES)
def test_uses_that_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()


# ---------------------------------------------------------------------------- second differences


@pytest.mark.parametrize("num", [1, 2, 3, 7, 8, 511])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 3e-13), (torch.float32, 5e-7)])
def test_the_second_difference_is_solved_as_by_a_dense_matrix(num, dtype, tolerance):
    """For rough, smooth and one-signed values; errors are shares of the largest values."""
    ones = torch.ones(num, dtype=torch.float64)
    matrix = 2 * ones.diag() - ones[1:].diag(1) - ones[1:].diag(-1)
    k = torch.arange(num, dtype=torch.float64)
    values = torch.stack([randn(num, seed=num), (k / num * 6).sin(), ones, (-1) ** k], 1).to(dtype)
    wanted = torch.linalg.solve(matrix, values.double())
    found = solve_second_difference(values.view(num, 2, 2))
    assert found.dtype == dtype and found.shape == (num, 2, 2)
    scale = torch.linalg.solve(matrix, values.double().abs()).amax(0)
    assert ((found.flatten(1).double() - wanted).abs().amax(0) <= tolerance * scale).all()


@pytest.mark.parametrize("function", [smooth, refine])
@pytest.mark.parametrize(
    "path", [torch.tensor(1.0), torch.zeros(3), torch.zeros(1, 2), torch.zeros(3, 2).long()]
)
def test_what_is_no_path_is_refused(function, path):
    with pytest.raises(ValueError, match="`path` must be"):
        function(path, 2)
