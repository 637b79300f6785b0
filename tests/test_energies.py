"""Energies of many paths equal those of single paths, and take no needless network passes."""

import shutil

import pytest
import torch
from architectures import ByProducts
from diffusers import DDIMScheduler
from models import embeddings, prompted_score_unet, randn
from problems import circle
from torch.testing import assert_close

from riemannian_diffusion import (
    Adam,
    DiffusionScore,
    EuclideanMetric,
    GaussianMixtureScore,
    LikelyMetric,
    PathLBFGS,
    PullbackMetric,
    ScoreJacobianMetric,
    ScoreModel,
    SharedNoiseScore,
    SteinScoreMetric,
    TangentNormalMetric,
    geodesic,
    geodesics,
    lerp,
    refine,
    slerp,
)
from riemannian_diffusion.score import Where

SCHEDULER = DDIMScheduler()
SHAPE = (2, 8, 8)


METRICS = {
    "tangent normal": TangentNormalMetric,
    "by products": ByProducts,
    "score Jacobian": lambda score: ScoreJacobianMetric(score, ridge=0.1),
    "Stein": SteinScoreMetric,
    "Stein, full gradient": lambda score: SteinScoreMetric(score, detach_score=False),
    "likely": LikelyMetric,
}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())


def unet_score(**options) -> DiffusionScore:
    return DiffusionScore(prompted_score_unet(), SCHEDULER, 300, **options)


def count_points(score: DiffusionScore) -> list[int]:
    """A list that records the sizes of all later batches of the network."""
    sizes = []
    score.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    return sizes


def autograd_answer(metric, path, pair=0):
    path = path.clone().requires_grad_()
    energies = metric.energy(path, Where.even(len(path), pair))
    gradient = torch.autograd.grad(energies.sum(), path)[0]
    gradient[[0, -1]] = 0
    return energies.detach(), gradient


# ----------------------------------------------------------------------- chunks, ends, many paths


@every_metric
@pytest.mark.parametrize("noises", [None, 2])
@pytest.mark.parametrize("max_batch_size", [None, 4, 3, 1])
def test_energies_and_gradients_are_those_of_autograd(metric, noises, max_batch_size):
    """Prompts change along the path, so chunks must keep the places of their points."""
    score = unet_score(encoder_hidden_states=embeddings(3), max_batch_size=max_batch_size)
    read = score if noises is None else SharedNoiseScore(score, randn(noises, *SHAPE, seed=5))
    metric = metric(read)
    paths = [randn(7, *SHAPE, seed=1), randn(5, *SHAPE, seed=2)]
    answers = metric.energies(paths, differentiate=True)
    for i, (path, answer) in enumerate(zip(paths, answers, strict=True)):
        energies, gradient = autograd_answer(metric, path, i)
        assert_close(answer.segments, energies, rtol=1e-9, atol=1e-9)
        assert_close(answer.gradient, gradient, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("max_batch_size", [None, 4])
def test_a_solve_embeds_its_ends_once_and_no_point_twice(max_batch_size):
    """The first point of each later chunk is an exception: it is also embedded without a graph."""
    score = unet_score(encoder_hidden_states=embeddings(1), max_batch_size=max_batch_size)
    sizes = count_points(score)
    found = geodesic(
        TangentNormalMetric(score), *randn(2, *SHAPE, seed=1), num_points=5, max_evals=3
    )
    assert found.num_evals == 3
    inner, finer = 4 * 2 - 1, 4 * 4 - 1
    ahead = 0 if max_batch_size is None else 1  # chunks of 4 and 3 points
    assert sum(sizes) == 2 + 3 * (inner + ahead) + finer


def test_chunks_are_differentiated_one_at_a_time():
    """The forward pass of a chunk follows the reverse pass of the chunk before it."""
    score = unet_score(encoder_hidden_states=embeddings(1), max_batch_size=2)
    events = []
    score.model.register_forward_pre_hook(
        lambda _, inputs: events.append("forward" if inputs[0].requires_grad else "ahead")
    )
    path = randn(8, *SHAPE, seed=1)

    class Watched(TangentNormalMetric):
        def embed(self, x, where=None):
            if x.requires_grad:
                x.register_hook(lambda _: events.append("backward"))
            return super().embed(x, where)

    Watched(score).energies([path], differentiate=True)
    assert events == ["ahead"] * 2 + ["forward", "backward"] * 3  # the ends, two points; 6 points


# ------------------------------------------------------------------------------------ many pairs


PAIRED = {
    "one prompt": ({"encoder_hidden_states": embeddings(1)}, None),
    "a path of prompts for all": ({"encoder_hidden_states": embeddings(3)}, None),
    "prompts of each pair": ({"encoder_hidden_states": embeddings(3, 2)}, None),
    "guided": (
        {
            "encoder_hidden_states": embeddings(3, 2),
            "negative_hidden_states": embeddings(1, seed=12),
            "mode": "guided",
            "guidance_scale": 2.0,
        },
        None,
    ),
    "noises of each pair": ({"encoder_hidden_states": embeddings(3, 2)}, (3, 2)),
    "noises for all": ({"encoder_hidden_states": embeddings(1)}, (2,)),
}


@pytest.mark.parametrize("metric", [TangentNormalMetric, SteinScoreMetric, LikelyMetric])
@pytest.mark.parametrize("options, noise", PAIRED.values(), ids=PAIRED.keys())
def test_pairs_side_by_side_are_single_pairs(metric, options, noise):
    score = unet_score(**options, max_batch_size=7)
    x0, x1 = randn(3, *SHAPE, seed=1), randn(3, *SHAPE, seed=2)
    noises = None if noise is None else randn(*noise, *SHAPE, seed=3)
    read = score if noises is None else SharedNoiseScore(score, noises)
    solve = {"num_points": 4, "num_quadrature": 2, "max_evals": 3, "init": ["lerp", "slerp"]}
    together = geodesics(metric(read), x0, x1, **solve)
    for i, found in enumerate(together):
        mine = dict(options)
        if options["encoder_hidden_states"].ndim == 4:
            mine["encoder_hidden_states"] = options["encoder_hidden_states"][i]
        alone = DiffusionScore(score.model, SCHEDULER, 300, **mine)
        if noises is not None:
            alone = SharedNoiseScore(alone, noises[i] if len(noise) == 2 else noises)
        expected = geodesic(metric(alone), x0[i], x1[i], **solve)
        assert_close(found.path, expected.path, rtol=1e-7, atol=1e-7)
        assert_close(found.energy, expected.energy, rtol=1e-8, atol=0)
        assert found.num_evals == expected.num_evals and found.status == expected.status
        assert found.lower_bound == pytest.approx(expected.lower_bound, rel=1e-8)


@pytest.mark.parametrize("solver", [PathLBFGS(), Adam(0.05, 0.05)], ids=["L-BFGS", "Adam"])
def test_every_pair_ends_when_it_has_converged(solver):
    problem = circle(8)
    metric = [TangentNormalMetric(problem.score), TangentNormalMetric(problem.score)]
    near = problem.geodesic(torch.tensor([0.3], dtype=torch.float64))[0]
    x0, x1 = torch.stack([problem.x0, problem.x0]), torch.stack([problem.x1, near])
    seen = []
    options = {"init": "lerp", "solver": solver, "max_evals": 60}
    together = geodesics(metric, x0, x1, callback=seen.append, **options)
    alone = [geodesic(metric, *ends, **options) for ends in zip(x0, x1, strict=True)]
    for i, (found, expected) in enumerate(zip(together, alone, strict=True)):
        assert_close(found.path, expected.path, rtol=1e-6, atol=1e-7)
        assert found.num_evals == expected.num_evals and found.status == expected.status
        mine = [iterate for iterate in seen if iterate.pair == i]
        assert mine[-1].num_evals <= found.num_evals
        assert torch.equal(mine[0].path[-1], x1[i])
    if isinstance(solver, PathLBFGS):
        assert together[0].num_evals != together[1].num_evals


def test_pairs_side_by_side_share_the_networks_calls():
    score = unet_score(encoder_hidden_states=embeddings(1))
    sizes = count_points(score)
    x0, x1 = randn(4, *SHAPE, seed=1), randn(4, *SHAPE, seed=2)
    geodesics(TangentNormalMetric(score), x0, x1, num_points=4, num_quadrature=1, max_evals=3)
    # the ends, 3 evaluations, a finer sampling, and a still finer one until the energy settles
    assert sizes[:5] == [8, 8, 8, 8, 4 * 5]
    assert all(size in (11, 22, 33, 44) for size in sizes[5:6])


def test_starts_of_every_pair():
    x0, x1 = randn(2, 3, seed=1), randn(2, 3, seed=2)
    paths = torch.stack([slerp(*ends, 5) for ends in zip(x0, x1, strict=True)])
    calls = []

    def start(a, b, num_points):
        calls.append((a, b))
        return lerp(a, b, num_points)

    found = geodesics(EuclideanMetric(), x0, x1, num_points=5, init=[paths, start], max_evals=2)
    for i, one in enumerate(found):
        assert torch.equal(calls[i][0], x0[i]) and torch.equal(calls[i][1], x1[i])
        assert_close(one.path, lerp(x0[i], x1[i], 5))


class Sum(PullbackMetric):
    """A metric that is made of other metrics, in a list, a dict or a tuple."""

    def __init__(self, *parts, container=list):
        self.parts = dict(enumerate(parts)) if container is dict else container(parts)

    def embed(self, x, where=None):
        parts = self.parts.values() if isinstance(self.parts, dict) else self.parts
        return torch.cat([part.embed(x, where).flatten(1) for part in parts], 1)


class Doubled(TangentNormalMetric):
    """A metric with its own energy."""

    def energy(self, path):
        return 2 * super().energy(path)


class Counting(ScoreModel):
    """A score that wraps another score."""

    def __init__(self, score):
        self.score, self.alpha, self.sigma = score, score.alpha, score.sigma

    def __call__(self, x, where=None):
        return self.score(x, where)


@pytest.mark.parametrize(
    "metric",
    [
        lambda score: Sum(TangentNormalMetric(score)),
        lambda score: Sum(TangentNormalMetric(score), container=dict),
        Doubled,
        lambda score: TangentNormalMetric(Counting(score)),
    ],
    ids=["of a list", "of a dict", "with an energy of its own", "of a wrapped score"],
)
@pytest.mark.parametrize("noises", [None, (2, 1)])
def test_custom_metrics_keep_prompts_noises_and_limits(metric, noises):
    score = unet_score(encoder_hidden_states=embeddings(2, 2), max_batch_size=5)
    sizes = count_points(score)
    read = score if noises is None else SharedNoiseScore(score, randn(*noises, *SHAPE, seed=3))
    x0, x1 = randn(2, *SHAPE, seed=1), randn(2, *SHAPE, seed=2)
    options = {"num_points": 4, "num_quadrature": 2, "max_evals": 2}
    found = geodesics(metric(read), x0, x1, **options)
    expected = geodesics(TangentNormalMetric(read), x0, x1, **options)
    factor = 2 if metric is Doubled else 1
    for one, other in zip(found, expected, strict=True):
        assert one.energy == pytest.approx(factor * other.energy, rel=1e-6)
        assert_close(one.nodes, other.nodes, rtol=1e-5, atol=1e-6)
    assert max(sizes) == 5 and metric(read).rounding == score.rounding


def test_a_score_may_have_any_attribute_names():
    class Own(GaussianMixtureScore):
        def _parts(self):
            return None

        parts = _points = _parts

    metric = TangentNormalMetric(Own(torch.randn(3, 2).double(), 1.0))
    x = torch.zeros(4, 2).double()
    assert metric.points_at_once(x) == 4 and metric.rounding == 0
    assert not metric.use_less_memory(x)


def test_only_energies_by_chords_have_a_lower_bound():
    problem = circle(8)
    found = geodesic(ByProducts(problem.score), problem.x0, problem.x1, init="lerp", max_evals=30)
    assert found.lower_bound == 0 and found.num_evals > 5
    assert found.energy < 0.1 * found.iterates[0][1]


def test_a_start_that_fails_in_an_early_stage_loses():
    class Grained(EuclideanMetric):
        rounding = 0.01

        def embed(self, x):
            return 0.01 * x

    x0, x1 = torch.tensor([1.0, 0.0]), torch.tensor([1.2, 0.0])
    bent = lerp(x0, x1, 17) + torch.linspace(0, torch.pi, 17).sin()[:, None] * torch.tensor([0, 2])
    found = geodesic([Grained(), EuclideanMetric()], x0, x1, init=["lerp", bent])
    assert found.status == "converged"
    alone = geodesic([Grained(), EuclideanMetric()], x0, x1, init="lerp")
    assert alone.status == "rounding" and alone.energy == pytest.approx(0.02, rel=1e-3)


@pytest.mark.parametrize("size", [1, 2])
def test_one_noise_or_prompt_for_all_pairs_or_one_for_each(size):
    x0, x1 = randn(3, 4, seed=1), randn(3, 4, seed=2)
    mixture = GaussianMixtureScore(randn(5, 4), 0.5)
    metric = TangentNormalMetric(SharedNoiseScore(mixture, randn(size, 2, 4)))
    if size == 1:
        assert len(geodesics(metric, x0, x1, max_evals=1)) == 3
    else:
        with pytest.raises(ValueError, match="given for 2 pairs, but a point .* pair number 3"):
            geodesics(metric, x0, x1, max_evals=1)


ONE, TWO = torch.zeros(1, 3), torch.zeros(2, 3)


@pytest.mark.parametrize(
    "x0, x1, options, message",
    [
        (ONE, TWO, {}, r"\(P, \*shape\) of one shape, but got \(1, 3\) and \(2, 3\)"),
        (ONE[0], ONE[0], {}, r"`x0` and `x1` must be points \(P, \*shape\)"),
        (ONE[:0], ONE[:0], {}, r"`x0` and `x1` must be points \(P, \*shape\)"),
        (TWO, TWO + 1, {"init": torch.zeros(17, 3)}, r"`init` must be \(2, 17, 3\), but got"),
        (TWO, TWO + 1, {"init": torch.zeros(2, 4, 3)}, r"`init` must be \(17, 3\), but got"),
        (TWO, TWO + 1, {"num_points": [5]}, "`num_points` must be one number, or one for each"),
        (TWO, TWO / 0, {}, "`x1` must be a floating-point tensor of finite values"),
    ],
)
def test_bad_pairs(x0, x1, options, message):
    with pytest.raises(ValueError, match=message):
        geodesics(EuclideanMetric(), x0, x1, **options)


def test_prompts_and_noises_of_pairs_need_to_know_the_pair():
    score = unet_score(encoder_hidden_states=embeddings(3, 2))
    with pytest.raises(ValueError, match="`encoder_hidden_states` changes along the path"):
        score(randn(4, *SHAPE))
    mixture = GaussianMixtureScore(randn(5, 3), 0.5)
    with pytest.raises(ValueError, match=r"`noise` \(3, 2, 3\) differs between 3 pairs"):
        SharedNoiseScore(mixture, randn(3, 2, 3))(randn(4, 3))


# -------------------------------------------------------------------------------------- rounding


class Coarse(GaussianMixtureScore):
    """A score whose values are rounded to bfloat16, like those of a network in that dtype."""

    rounding = torch.finfo(torch.bfloat16).eps

    def __call__(self, x, where=None):
        exact = super().__call__(x)
        return exact + (exact.bfloat16() - exact).detach()


def test_differences_below_the_networks_rounding_are_refused():
    problem = circle(8)
    exact = problem.score
    coarse = Coarse(exact.means, exact.sigma, std=exact.std, alpha=exact.alpha)
    metric = ScoreJacobianMetric(coarse, ridge=1.0)
    near = problem.geodesic(torch.tensor([0.01], dtype=torch.float64))[0]
    refused = geodesic(metric, problem.x0, near, init="lerp")
    assert refused.status == "rounding" and refused.num_evals == 1
    assert "wider dtype" in refused.message
    assert torch.equal(refused.nodes, lerp(problem.x0, near, 17))
    assert geodesic(metric, problem.x0, problem.x1, init="lerp").status == "converged"
    same = geodesic(
        metric, problem.x0, problem.x0
    )  # equal end points have no difference to resolve
    assert same.status == "converged"
    assert_close(refine(same.path, 2), problem.x0.expand(33, -1))


# ----------------------------------------------------------------------------------- compilation


def test_a_compiled_network_is_compiled_once_and_gives_the_same():
    """There is no graph break, and only another batch size or kind of call compiles again."""
    torch._dynamo.reset()
    eager = unet_score(encoder_hidden_states=embeddings(1), max_batch_size=8)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    network = torch.compile(eager.model, backend=count, fullgraph=True)
    prompt = {"encoder_hidden_states": embeddings(1), "max_batch_size": 8}
    compiled = DiffusionScore(network, SCHEDULER, 300, **prompt)
    x0, x1 = randn(2, *SHAPE, seed=1)
    options = {"num_points": 4, "max_evals": 4}  # 8 inner points: one chunk
    expected = geodesic(TangentNormalMetric(eager), x0, x1, **options)
    once = geodesic(TangentNormalMetric(compiled), x0, x1, **options | {"max_evals": 1})
    num_graphs = len(graphs)
    assert 1 <= num_graphs <= 4  # the ends, the points, the finer sampling and its last chunk
    found = geodesic(TangentNormalMetric(compiled), x0, x1, **options)
    assert len(graphs) == num_graphs
    assert once.num_evals == 1 and found.num_evals == 4
    assert_close(found.path, expected.path, rtol=1e-9, atol=1e-9)
    v = randn(2, *SHAPE, seed=3)
    x = torch.stack([x0, x1])
    assert_close(compiled.jvp(x, v), eager.jvp(x, v), rtol=1e-9, atol=1e-9)
    assert_close(compiled.vjp(x, v), eager.vjp(x, v), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler of C++")
def test_a_network_that_is_compiled_to_machine_code_gives_the_same():
    """The path has a prompt at each end, and is one batch or several chunks.

    Compiled code adds in another order, and energies are differences of nearly equal embeddings.
    """
    torch._dynamo.reset()
    prompt = {"encoder_hidden_states": embeddings(2)}
    eager = unet_score(**prompt)
    compiled = DiffusionScore(torch.compile(eager.model), SCHEDULER, 300, **prompt)
    path = randn(5, *SHAPE, seed=1)
    for size in (None, 2):
        eager.max_batch_size = compiled.max_batch_size = size
        expected, found = (
            TangentNormalMetric(score).energies([path], differentiate=True)[0]
            for score in (eager, compiled)
        )
        assert_close(found.segments, expected.segments, rtol=1e-7, atol=1e-7)
        assert_close(found.gradient, expected.gradient, rtol=1e-6, atol=1e-6)
    options = {"num_points": 4, "max_evals": 4}
    expected, found = (
        geodesic(TangentNormalMetric(score), path[0], path[-1], **options)
        for score in (eager, compiled)
    )
    assert found.num_evals == expected.num_evals
    assert_close(found.path, expected.path, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------- energies of one's own


class AsItsParent(TangentNormalMetric):
    """It only calls the energy that it overrides."""

    def energy(self, path):
        return super().energy(path)


class WithPlaces(TangentNormalMetric):
    def energy(self, path, where=None):
        return super().energy(path, where)


class SteinAsItsParent(SteinScoreMetric):
    def energy(self, path):
        return super().energy(path)


class OwnFormula(TangentNormalMetric):
    """Chords of its embedding to the fourth power, and a pull to the origin."""

    def energy(self, path, where=None):
        embedded = self.embed(path, where)
        quartic = (embedded[1:] - embedded[:-1]).flatten(1).square().sum(1).square()
        return quartic + 0.1 * path[1:].flatten(1).square().sum(1)


class OtherPoints(TangentNormalMetric):
    """Its energy asks for the embedding of points that are not on the path."""

    def energy(self, path):
        return super().energy(path) + self.embed(
            path[1:] + 1, Where([0.5] * (len(path) - 1))
        ).flatten(1).square().sum(1)


class SteinWeighted(SteinScoreMetric):
    def energy(self, path, where=None):
        return 3 * super().energy(path, where) + path[1:].flatten(1).square().sum(1)


@pytest.mark.parametrize(
    "child, parent",
    [
        (AsItsParent, TangentNormalMetric),
        (WithPlaces, TangentNormalMetric),
        (SteinAsItsParent, SteinScoreMetric),
    ],
)
@pytest.mark.parametrize("max_batch_size", [None, 5])
def test_an_override_that_calls_its_parent_costs_and_gives_what_its_parent_does(
    child, parent, max_batch_size
):
    x0, x1 = randn(3, *SHAPE, seed=1), randn(3, *SHAPE, seed=2)
    found, sizes = [], []
    for metric in (parent, child):
        prompts = embeddings(3, 2)  # those of each pair
        score = unet_score(encoder_hidden_states=prompts, max_batch_size=max_batch_size)
        sizes.append(count_points(score))
        options = {"num_points": 4, "num_quadrature": 2, "max_evals": 4}
        found.append(geodesics(metric(score), x0, x1, **options))
    assert sizes[1] == sizes[0]
    for one, other in zip(*found, strict=True):
        assert_close(one.path, other.path, rtol=1e-9, atol=1e-9)
        assert one.energy == pytest.approx(other.energy, rel=1e-9)
        assert one.num_evals == other.num_evals and one.lower_bound == other.lower_bound
        assert (one.lower_bound > 0) == (parent is TangentNormalMetric)


@pytest.mark.parametrize("metric", [Doubled, OwnFormula, OtherPoints, SteinWeighted])
@pytest.mark.parametrize("max_batch_size", [None, 3])
def test_an_energy_of_ones_own_is_the_one_that_is_solved(metric, max_batch_size):
    score = unet_score(encoder_hidden_states=embeddings(2, 3), max_batch_size=max_batch_size)
    metric = metric(score)
    if isinstance(metric, SteinScoreMetric):
        metric = metric.differentiable()
    paths = [randn(7, *SHAPE, seed=1), randn(5, *SHAPE, seed=2)]
    for i, answer in enumerate(metric.energies(paths, differentiate=True)):
        energies, gradient = autograd_answer(metric, paths[i], i)
        assert_close(answer.segments, energies, rtol=1e-9, atol=1e-9)
        assert_close(answer.gradient, gradient, rtol=1e-8, atol=1e-8 * float(gradient.abs().max()))
        (alone,) = metric.energies([paths[i]], [i])
        assert_close(alone.segments, energies, rtol=1e-9, atol=1e-9) and alone.gradient is None
    assert metric.lower_bound(*paths[0][[0, -1]]) == 0
    hops = torch.stack([paths[0][:3], paths[1][:3]])
    single = type(metric)(unet_score(encoder_hidden_states=embeddings(1)))
    expected = torch.stack([(2 * single.energy(hop) / 2).sqrt() for hop in hops])
    if metric.__class__ is not OtherPoints:
        assert_close(single.hop_lengths(hops), expected, rtol=1e-9, atol=1e-9)


def test_ends_are_remembered_by_their_points():
    """Paths of one pair may join different points."""
    score = unet_score(encoder_hidden_states=embeddings(1))
    metric, sizes, ends = TangentNormalMetric(score), count_points(score), {}
    paths = [randn(3, *SHAPE, seed=1), randn(3, *SHAPE, seed=2)]
    for _ in range(2):
        for path, answer in zip(paths, metric.energies(paths, [0, 0], ends=ends), strict=True):
            assert_close(answer.segments, metric.energy(path), rtol=1e-9, atol=1e-9)
    bound = metric.lower_bound(*paths[1][[0, -1]], ends=ends)
    assert sizes == [4, 2, 3, 3, 2, 3, 3]
    assert_close(bound, metric.energy(paths[1][[0, -1]])[0])


def test_a_batch_of_paths_needs_a_pair_for_each():
    with pytest.raises(ValueError, match="one index for each path, but there are 2 paths and 1"):
        EuclideanMetric().energies([randn(3, 2), randn(3, 2)], [0])
