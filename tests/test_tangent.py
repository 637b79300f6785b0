"""Local geometry compared with dense linear algebra and with closed forms of spheres."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from models import prompted_score_unet, randn, score_unet
from problems import HypersphereScore
from torch.testing import assert_close
from uses import MEANS, MODEL

from riemannian_diffusion import (
    DenoiserScore,
    DiffusionScore,
    GaussianMixtureScore,
    ScoreModel,
    SharedNoiseScore,
    demo,
    intrinsic_dimension,
    normal_curvature,
    second_fundamental_form,
    split_tangent,
    tangent_basis,
    tangent_spectrum,
)
from riemannian_diffusion.score import Where


class Linear(ScoreModel):
    """A score whose denoiser is a matrix that is not symmetric."""

    alpha, sigma = 1.0, 0.5

    def __init__(self, matrix):
        self.matrix = matrix

    def __call__(self, x):
        return (x @ self.matrix.mT - x) / self.sigma**2


def sphere(k, n=100, *, sigma=0.1, radius=1.0, num=3, seed=0):
    """The score of a k-sphere in R^n, and points of the sphere."""
    basis = torch.linalg.qr(randn(n, k + 1, seed=seed))[0]
    score = HypersphereScore(basis, torch.zeros(n).double(), sigma, alpha=radius)
    points = randn(num, k + 1, seed=seed + 1)
    return score, radius * points / points.norm(dim=1, keepdim=True) @ basis.T


class Flat(ScoreModel):
    """The exact score of a normal distribution on an affine subspace.

    Args:
        basis: Orthonormal columns `(n, k)`.
        centre: Mean `(n,)`.
        spread: Standard deviation of the clean data.
    """

    def __init__(self, basis, centre, sigma, *, spread=1.0, alpha=1.0):
        self.basis, self.centre, self.sigma, self.alpha = basis, centre, sigma, alpha
        self.share = (alpha * spread) ** 2 / ((alpha * spread) ** 2 + sigma**2)

    def __call__(self, x):
        away = x - self.alpha * self.centre
        return (self.share * away @ self.basis @ self.basis.mT - away) / self.sigma**2


def dense(score, x):
    """`J_D` at every point, `(K, d, d)`."""
    size = x[0].numel()
    basis = torch.eye(size, dtype=x.dtype).view(size, *x.shape[1:])
    columns = [score.jvp(x, e.expand_as(x)).flatten(1) for e in basis]
    return torch.eye(size, dtype=x.dtype) + score.sigma**2 * torch.stack(columns, 2)


SCORES = {
    "mixture": (GaussianMixtureScore(randn(9, 3, 4), 0.8, std=0.1), (3, 4)),
    "not symmetric": (Linear(randn(12, 12) / 4), (12,)),
    "network": (DiffusionScore(score_unet(), DDIMScheduler(), 300), (2, 8, 8)),
}
every_score = pytest.mark.parametrize("score, shape", SCORES.values(), ids=SCORES.keys())


@every_score
def test_the_spectrum_is_the_dense_one(score, shape):
    x = randn(2, *shape, seed=1)
    found = tangent_spectrum(score, x, 4, max_iterations=200, rtol=1e-9)
    left, values, _ = torch.linalg.svd(dense(score, x))
    assert found.values.shape == (2, 4) and found.vectors.shape == (2, 4, *shape)
    assert_close(found.values, values[:, :4], rtol=1e-4, atol=0)
    cosines = (found.vectors.flatten(2) * left[:, :, :4].mT).sum(2).abs()
    apart = (
        values[:, :4] / values[:, 1:5] > 1.05
    )  # a vector is defined only if its value is separate from the others
    apart[:, 1:] &= apart[:, :-1]
    assert (cosines[apart] > 1 - 1e-3).all() and apart.any()
    gram = found.vectors.flatten(2) @ found.vectors.flatten(2).mT
    assert_close(gram, torch.eye(4).double().expand(2, 4, 4), rtol=0, atol=1e-8)


def test_the_spectrum_does_not_depend_on_the_batch_and_the_generator_decides():
    score, x = sphere(3)
    found = tangent_spectrum(score, x, 5)
    again = tangent_spectrum(score, x, 5)
    assert torch.equal(found.values, again.values) and torch.equal(found.vectors, again.vectors)
    other = tangent_spectrum(score, x[:1], 5, generator=torch.Generator().manual_seed(7))
    assert_close(other.values, found.values[:1], rtol=1e-4, atol=1e-6)
    assert not torch.equal(other.vectors, found.vectors[:1])


def test_the_rank_may_be_every_value():
    score, _ = SCORES["not symmetric"]
    x = randn(1, 12)
    values = torch.linalg.svdvals(dense(score, x))
    assert_close(tangent_spectrum(score, x, 12).values, values, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("k", range(1, 11))
def test_the_dimension_of_spheres(k):
    score, x = sphere(k, seed=k)
    found = intrinsic_dimension(score, x)
    assert found.dimension.tolist() == [k] * 3
    assert (found.gap > 0.85).all() and (found.gap <= 1).all()
    by_scores = intrinsic_dimension(score, x, method="scores")
    assert by_scores.dimension.tolist() == [k] * 3 and (by_scores.gap > 0.3).all()


def test_the_dimension_of_a_subspace_of_half_the_dimension():
    basis = torch.linalg.qr(randn(40, 20))[0]
    score = Linear(basis @ basis.T)
    found = intrinsic_dimension(score, randn(2, 40))
    assert found.dimension.tolist() == [20, 20]
    assert_close(found.gap, torch.ones(2).double())


METHODS = ["spectrum", "scores", "flipd", "loss"]
each_method = pytest.mark.parametrize("method", METHODS)


@each_method
@pytest.mark.parametrize("k", range(7))
def test_every_method_answers_every_dimension(method, k):
    """Data that span k of six dimensions, from a single point to all of R^6."""
    basis, centre = torch.linalg.qr(randn(6, 6))[0][:, :k], 3 * randn(6, seed=1)
    score = Flat(basis, centre, 0.05, alpha=0.8)
    x = 0.8 * (centre + randn(4, k, seed=2) @ basis.mT)
    num = 2000 if method in ("flipd", "loss") else None
    found = intrinsic_dimension(score, x, method=method, num_samples=num)
    assert found.dimension.tolist() == [k] * 4 and found.dimension.dtype == torch.int64
    assert_close(found.estimate, torch.full((4,), k).double(), rtol=0, atol=0.3)
    assert (found.gap > 0.4).all() or found.gap.isnan().all()


@each_method
def test_points_of_one_batch_may_have_different_dimensions(method):
    """Lattices that fill a point, a line, a plane and space, far from each other."""
    line = torch.linspace(-2, 2, 17).double()
    centres = 20 * torch.eye(4, 3).double()
    parts = [torch.zeros(1, 3).double()]
    for k in (1, 2, 3):
        lattice = torch.cartesian_prod(*[line] * k).view(-1, k)
        parts.append(torch.cat([lattice, lattice.new_zeros(len(lattice), 3 - k)], 1))
    score = GaussianMixtureScore(
        torch.cat([p + c for p, c in zip(parts, centres, strict=True)]), 0.3
    )
    num = 2000 if method in ("flipd", "loss") else None
    found = intrinsic_dimension(score, centres, method=method, num_samples=num)
    assert found.dimension.tolist() == [0, 1, 2, 3]


def gaussian_off_its_plane():
    """A normal distribution on the plane of 3 axes of R^8, and points off the plane."""
    score = Flat(torch.eye(8, 3).double(), 2 * randn(8), 0.4, spread=0.7, alpha=0.6)
    away = 0.5 * randn(5, 8, seed=1)
    share = (0.6 * 0.7) ** 2 / ((0.6 * 0.7) ** 2 + 0.4**2)
    residual = torch.cat([(1 - share) * away[:, :3], away[:, 3:]], 1)
    return score, 0.6 * score.centre + away, share, residual.square().sum(1) / 0.4**2


def test_flipd_of_a_gaussian_is_exact():
    """Random signs give the exact trace of a diagonal Jacobian."""
    score, x, share, off = gaussian_off_its_plane()
    found = intrinsic_dimension(score, x, method="flipd", num_samples=2)
    assert_close(found.estimate, 3 * share + off, rtol=1e-12, atol=1e-12)
    assert (found.std_error < 1e-12).all()


def test_flipd_is_the_slope_of_the_log_density_in_the_noise():
    means, alpha, sigma = randn(7, 3), 0.6, 0.3
    clean = 0.5 * randn(4, 3, seed=1)
    score = GaussianMixtureScore(means, sigma, alpha=alpha)
    found = intrinsic_dimension(score, alpha * clean, method="flipd", num_samples=4000)
    noises = [sigma / alpha * math.exp(h) for h in (1e-4, -1e-4)]
    ahead, behind = (GaussianMixtureScore(means, noise).log_prob(clean) for noise in noises)
    expected = 3 + (ahead - behind) / 2e-4
    assert ((found.estimate - expected).abs() < 4 * found.std_error + 1e-5).all()
    assert (found.std_error < 0.1).all()


def test_the_loss_of_a_gaussian_and_its_standard_error():
    score, x, share, off = gaussian_off_its_plane()
    found = intrinsic_dimension(score, x.repeat(300, 1), method="loss")
    estimates, errors = (part.view(300, 5) for part in (found.estimate, found.std_error))
    expected = 3 * share**2 + off
    assert_close(estimates.mean(0), expected, rtol=0.03, atol=0)
    assert_close(errors.square().mean(0).sqrt(), estimates.std(0), rtol=0.2, atol=0)


@pytest.mark.parametrize("method", ["flipd", "loss"])
def test_cheap_estimates_of_a_sphere_and_their_growth_away_from_it(method):
    score, x = sphere(3, sigma=0.05, num=200)
    found = intrinsic_dimension(score, torch.cat([x, 1.2 * x]), method=method)
    on, off = found.estimate.split(200)
    assert abs(float(on.mean()) - 3) < 0.2 and 0.5 < float(on.std()) < 1.1
    assert abs(float(off.mean()) - (3 + (0.2 / 0.05) ** 2)) < 1.5


@pytest.mark.parametrize("method", ["flipd", "loss"])
def test_probes_are_read_under_the_prompt_of_their_point(method):
    unet = prompted_score_unet()
    prompts, x = 3 * randn(2, 5, 6, seed=3), randn(2, 2, 8, 8, seed=4)

    def estimate(hidden, where=None):
        score = DiffusionScore(unet, DDIMScheduler(), 300, encoder_hidden_states=hidden)
        return intrinsic_dimension(score, x, method=method, where=where).estimate

    both = estimate(prompts, Where([0.0, 1.0]))
    first, second = estimate(prompts[:1]), estimate(prompts[1:])
    assert_close(both, torch.stack([first[0], second[1]]), rtol=1e-9, atol=0)
    assert not torch.allclose(both, first, rtol=1e-4)


def test_a_dimension_larger_than_asked_for_shows_no_gap():
    score, x = sphere(10)
    few = intrinsic_dimension(score, x, max_dim=4)
    assert (few.gap < 0.05).all()
    assert few.dimension.tolist() == few.estimate.tolist() == [4] * 3  # at least 4, and not 0
    found = intrinsic_dimension(score, x, max_dim=10)
    assert found.dimension.tolist() == [10] * 3 and (found.gap > 0.85).all()


@pytest.mark.parametrize("method", ["spectrum", "scores", "flipd", "loss"])
def test_a_score_that_is_not_finite_has_no_dimension(method):
    score = DenoiserScore(lambda x: x / (x[:, :1] < 0).to(x), 0.1)
    assert intrinsic_dimension(score, -torch.ones(1, 3), method=method).dimension.tolist() == [3]
    with pytest.raises(ValueError, match="`score` or its derivative is not finite"):
        intrinsic_dimension(score, torch.ones(1, 3), method=method)


def test_every_point_is_read_under_its_own_prompt():
    unet = prompted_score_unet()
    prompts, x = 3 * randn(2, 5, 6, seed=3), randn(2, 2, 8, 8, seed=4)
    both = DiffusionScore(unet, DDIMScheduler(), 300, encoder_hidden_states=prompts)
    options = {"max_iterations": 200, "rtol": 1e-9}
    found = tangent_spectrum(both, x, 3, where=Where([0.0, 1.0]), **options).values
    for i in range(2):
        alone = DiffusionScore(unet, DDIMScheduler(), 300, encoder_hidden_states=prompts[i : i + 1])
        mine = tangent_spectrum(alone, x[i : i + 1], 3, **options).values
        assert_close(found[i : i + 1], mine, rtol=1e-6, atol=0)


def test_renders_of_five_factors_have_five_dimensions_in_the_shipped_model():
    pipe = StableDiffusionPipeline.from_pretrained(demo.model_path())
    factors = demo.random_factors(5, torch.Generator().manual_seed(2000))[:1]
    with torch.no_grad():
        hidden = pipe.encode_prompt(demo.caption("sphere", float(factors[0, 1])), "cpu", 1, False)[
            0
        ]
        pixels = 2 * demo.render("sphere", factors).float() - 1
        clean = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    score = DiffusionScore(pipe.unet, pipe.scheduler, 400, encoder_hidden_states=hidden)
    found = intrinsic_dimension(score, score.alpha * clean, max_dim=8)
    assert found.dimension.tolist() == [5] and float(found.gap) > 0.3


def test_the_tangent_basis_of_a_sphere():
    score, x = sphere(4)
    basis = tangent_basis(score, x, 4)  # (3, 4, 100)
    assert basis.shape == (3, 4, 100)
    tangential, normal = split_tangent(score, x, x)  # the radius
    assert (tangential.norm(dim=1) < 0.05 * x.norm(dim=1)).all()
    assert_close(tangential + normal, x)
    assert ((basis @ x[:, :, None]).abs() < 1e-3).all()
    for i in range(4):
        along, across = split_tangent(score, x, basis[:, i])
        assert (across.norm(dim=1) < 0.05).all() and (along.norm(dim=1) > 0.95).all()


def test_the_score_off_the_manifold_is_normal():
    score, x = sphere(2)
    x = 1.15 * x
    tangential, normal = split_tangent(score, x, score(x))
    assert (tangential.norm(dim=1) < 0.05 * normal.norm(dim=1)).all()


@pytest.mark.parametrize("radius", [1.0, 3.0])
def test_the_curvature_of_a_sphere(radius):
    score, x = sphere(2, radius=radius, sigma=0.05 * radius)
    basis = tangent_basis(score, x, 2)
    for u in (basis[:, 0], 2.5 * basis[:, 1], basis[:, 0] - 3 * basis[:, 1]):
        found = normal_curvature(score, x, u)
        assert_close(found, torch.full_like(found, 1 / radius), rtol=0.02, atol=0)
    u, v = basis[:, 0], basis[:, 0] + 2 * basis[:, 1]
    expected = -x / radius**2
    bend = second_fundamental_form(score, x, u, v)
    assert ((bend - expected).norm(dim=1) < 0.03 * expected.norm(dim=1)).all()
    assert_close(bend, second_fundamental_form(score, x, v, u), rtol=0.02, atol=0.02 / radius)


def test_a_flat_manifold_does_not_bend():
    basis = torch.linalg.qr(randn(10, 3))[0]
    score = Linear(basis @ basis.T)
    assert float(normal_curvature(score, randn(2, 10), randn(2, 10, seed=1)).max()) < 1e-6


SCORE, POINT = SCORES["not symmetric"][0], randn(1, 12)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: tangent_spectrum(SCORE, POINT, 0), r"`rank` must be in \[1, 12\], but got 0"),
        (lambda: tangent_basis(SCORE, POINT, 13), r"`rank` must be in \[1, 12\], but got 13"),
        (lambda: tangent_spectrum(SCORE, POINT[0], 2), r"points \(K, \*shape\), but it is \(12,\)"),
        (lambda: tangent_spectrum(SCORE, POINT * math.nan, 2), "`x` must be .* finite values"),
        (lambda: intrinsic_dimension(SCORE, POINT, method="pca"), "loss, but got 'pca'"),
        (lambda: intrinsic_dimension(SCORE, POINT, max_dim=99), r"`max_dim` must be in \[1, 12\]"),
        (
            lambda: intrinsic_dimension(SCORE, POINT, method="scores", num_samples=5),
            "`num_samples` must be a whole number of at least 13, but got 5",
        ),
        (
            lambda: intrinsic_dimension(SCORE, POINT, method="loss", num_samples=1),
            "`num_samples` must be a whole number of at least 2, but got 1",
        ),
        (
            lambda: intrinsic_dimension(SharedNoiseScore(SCORE, POINT[0]), POINT, method="flipd"),
            "`score` adds a shared noise .* pass the score inside",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


USES = [
    (lambda: tangent_spectrum(3, MEANS, 1), "`score` must be a ScoreModel, but got int"),
    (lambda: tangent_spectrum(MODEL, MEANS, 1.5), r"`rank` must be in \[1, 3\], but got 1.5"),
    (
        lambda: tangent_spectrum(MODEL, MEANS[:0], 1),
        r"points \(K, \*shape\), but it is \(0, 3\)",
    ),
    (lambda: tangent_spectrum(MODEL, MEANS, 1, max_iterations=0), "`max_iterations` must be"),
    (
        lambda: tangent_spectrum(MODEL, MEANS, 1, generator=3),
        "`generator` must be a Generator",
    ),
    (lambda: intrinsic_dimension(MODEL, None), "`x` must be .* but got NoneType"),
    (
        lambda: intrinsic_dimension(MODEL, MEANS, max_dim=1.5),
        r"`max_dim` must be in \[1, 3\]",
    ),
    (lambda: split_tangent(MODEL, MEANS, MEANS[:2]), r"`v` must be tangents .* got \(2, 3\)"),
    (
        lambda: second_fundamental_form(MODEL, MEANS, MEANS, MEANS, step=0),
        "`step` must be posi",
    ),
    (
        lambda: normal_curvature(MODEL, MEANS, MEANS, step="x"),
        "`step` must be a finite number",
    ),
]


@pytest.mark.parametrize(("use", "message"), USES)
def test_uses_that_are_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()
