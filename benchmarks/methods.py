"""Methods that find paths between two points of a manifold with a diffusion model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from riemannian_diffusion import (
    Adam,
    Geodesic,
    LikelyMetric,
    Metric,
    Roadmap,
    ScoreJacobianMetric,
    ScoreModel,
    SharedNoiseScore,
    SteinScoreMetric,
    TangentNormalMetric,
    extrapolate,
    geodesic,
    invert,
    length,
    lerp,
    pace_by_samples,
    relax,
    resample,
    roadmap,
    sample,
    sdedit,
    slerp,
    smooth,
)
from riemannian_diffusion.baselines import density_geodesic, nao, noise_diffusion, split

STRENGTH, NUM_STEPS = 0.6, 50  # settings of noise space, as in arXiv 2510.05509
NUM_RELAXATIONS = 10
STEIN_TIMESTEP = 290  # here abar is 0.42, as at Stable Diffusion's t = 400 of arXiv 2505.11128
RECIPE = {"solver": Adam(lr=1e-3, final_lr=1e-4), "max_evals": 500, "num_quadrature": 1}
WITH_GRADIENT = 2.1  # cost of a point through which the network is differentiated, in passes

Levels = Callable[[int], ScoreModel]


@dataclass
class Count:
    """Numbers of points at which scores were evaluated.

    Attributes:
        points: All points.
        with_gradient: The points at which the score was evaluated for a reverse pass.
    """

    points: int = 0
    with_gradient: int = 0

    @property
    def passes(self) -> float:
        """Point-passes: 1 for a point, and 2.1 for a point with gradient."""
        return self.points + (WITH_GRADIENT - 1) * self.with_gradient

    def reset(self) -> None:
        """Count again from zero."""
        self.points = self.with_gradient = 0


def count_passes(network: nn.Module) -> Count:
    """Count the points at which a network is evaluated from now on."""
    count = Count()

    def add(_, inputs: tuple) -> None:
        count.points += len(inputs[0])
        if torch.is_grad_enabled() and inputs[0].requires_grad:
            count.with_gradient += len(inputs[0])

    network.register_forward_pre_hook(add)
    return count


class Counting(ScoreModel):
    """A score model that counts the points at which it is evaluated."""

    def __init__(self, score: ScoreModel, count: Count):
        self.score, self.count = score, count
        self.alpha, self.sigma = score.alpha, score.sigma

    def __call__(self, x: Tensor) -> Tensor:
        """The score, `(K, *shape) -> (K, *shape)`."""
        self.count.points += len(x)
        if torch.is_grad_enabled() and x.requires_grad:
            self.count.with_gradient += len(x)
        return self.score(x)


@dataclass(frozen=True)
class Found:
    """What a method found.

    Attributes:
        path: The path, `(K, *shape)`.
        status: The status of the geodesic's solve; "formula" for a path without a solve, and "own
            rule" for a method that ends by its own rule.
        nodes: The points that the method moved, in the space where it moved them; None takes
            `path`.
    """

    path: Tensor
    status: str = "formula"
    nodes: Tensor | None = None


@dataclass
class Case:
    """Two points on a manifold, and the scores and settings with which a method joins them.

    Attributes:
        levels: Function from a timestep of diffusers' usual schedule to the score at that level.
        x0: First clean point, `shape`.
        x1: Last clean point, `shape`.
        num_frames: Number of points of the path.
        metric_timestep: Timestep of a metric in clean space.
        draw_timesteps: Timesteps up to which samples of a roadmap are noised.
        num_noises: Number of shared noises of a metric in clean space. With 0, points are read
            without noise.
        draw_steps: Number of steps in which a noised sample of a roadmap is denoised.
        max_samples: Largest number of samples of a roadmap.
        generator: Source of random numbers.
    """

    levels: Levels
    x0: Tensor
    x1: Tensor
    num_frames: int
    metric_timestep: int
    draw_timesteps: tuple[int, ...]
    num_noises: int = 4
    draw_steps: int = 6
    max_samples: int = 4096
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @property
    def timesteps(self) -> list[int]:
        """Timesteps between clean points and noise space, noisiest first."""
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(NUM_STEPS)
        return scheduler.timesteps[-int(STRENGTH * NUM_STEPS) :].tolist()

    def clean_score(self, timestep: int, num_noises: int | None = None) -> ScoreModel:
        """The score at a timestep, read at clean points under shared noises."""
        num = self.num_noises if num_noises is None else num_noises
        noise = torch.zeros_like(self.x0)
        if num:
            noise = torch.randn(num, *self.x0.shape, generator=self.generator).to(self.x0)
        return SharedNoiseScore(self.levels(timestep), noise)


Method = Callable[[Case], Found]
Extension = Callable[[Case, Tensor, int], Tensor]


def in_noise_space(make_path: Callable[[Case, Tensor, Tensor], Found]) -> Method:
    """A method that draws its path between inverted end points and then samples it back."""

    def frames(case: Case) -> Found:
        ends = torch.stack([case.x0, case.x1])
        ends = invert(case.levels, ends, case.timesteps, fixed_point_iterations=5)
        found = make_path(case, *ends)
        nodes = found.path if found.nodes is None else found.nodes
        return replace(found, path=sample(case.levels, found.path, case.timesteps), nodes=nodes)

    return frames


def curve(function, status: str = "formula") -> Method:
    """A method whose path between inverted end points needs no model."""
    return in_noise_space(
        lambda case, x0, x1: Found(function(x0, x1, num_points=case.num_frames), status)
    )


def density(case: Case, x0: Tensor, x1: Tensor) -> Found:
    """A probability-density geodesic. Without prompts, its direction is half the noise."""
    timestep = max(case.timesteps)
    options = {"generator": case.generator}
    path = density_geodesic(case.levels, timestep, x0, x1, case.num_frames, **options)
    return Found(path, "own rule")


def split_path(case: Case, x0: Tensor, x1: Tensor) -> Found:
    """The path of clean estimates by lerp and noise estimates by slerp."""
    return Found(split(case.levels(max(case.timesteps)), x0, x1, case.num_frames))


def noisy_blend(case: Case, x0: Tensor, x1: Tensor) -> Found:
    """The path of NoiseDiffusion."""
    alpha = case.levels(max(case.timesteps)).alpha
    options = {"clean0": case.x0, "clean1": case.x1, "alpha": alpha}
    return Found(noise_diffusion(x0, x1, case.num_frames, **options))


def solved(metric: Callable[[ScoreModel], Metric], *, even: bool = True, **options) -> Method:
    """A method that solves for a geodesic in noise space, from slerp (arXiv 2510.05509).

    If its points are evenly spaced, they are so by `pace_by_samples`, as in a pipeline.
    """

    def path(case: Case, x0: Tensor, x1: Tensor) -> Found:
        score, num = case.levels(max(case.timesteps)), case.num_frames
        solve = geodesic(metric(score), x0, x1, num_points=num, init="slerp", **options)
        if even:
            (solve,) = pace_by_samples(case.levels, [solve], case.timesteps)
        return found_by(solve, even)

    return in_noise_space(path)


def found_by(solve: Geodesic, even: bool = True) -> Found:
    """The path and the status of a solve.

    Args:
        solve: The solve.
        even: Whether the points of the path are evenly spaced. If not, they are the optimiser's
            own, as in the papers.
    """
    return Found(solve.path if even else solve.nodes, solve.status, solve.nodes)


def clean_scores(case: Case, timesteps: Sequence[int]) -> list[ScoreModel]:
    """Scores in clean space at several timesteps, under the same noises."""
    state, scores = case.generator.get_state(), []
    for timestep in timesteps:
        case.generator.set_state(state)
        scores.append(case.clean_score(timestep))
    return scores


def solve_clean(
    case: Case,
    metric: Callable[[ScoreModel], Metric],
    init="lerp",
    *,
    timesteps: Sequence[int] | None = None,
    even: bool = True,
    **options,
) -> Found:
    """A geodesic in clean space, at the case's timestep or at several timesteps in turn."""
    metrics = [metric(score) for score in clean_scores(case, timesteps or [case.metric_timestep])]
    num = case.num_frames
    solve = geodesic(metrics, case.x0, case.x1, num_points=num, init=init, **options)
    return found_by(solve, even)


def half_as_noisy(timestep: int) -> int:
    """The timestep with half the noise of another timestep, in units of the clean data."""
    abar = DDIMScheduler().alphas_cumprod
    noises = ((1 - abar) / abar).sqrt()
    return int((noises - noises[timestep] / 2).abs().argmin())


def both_starts(case: Case, timesteps: Sequence[int] | None = None) -> Found:
    """The tangent-normal geodesic of least energy from a straight start and from the roadmap."""
    starts = ["lerp", roadmap_of(case)]
    return solve_clean(case, TangentNormalMetric, starts, timesteps=timesteps, max_evals=400)


def finer(case: Case) -> Found:
    """The path of `both_starts`, solved at the case's timestep and then at half its noise."""
    return both_starts(case, [case.metric_timestep, half_as_noisy(case.metric_timestep)])


def stein(case: Case, *, even: bool = True, **options) -> Found:
    """The method of arXiv 2505.11128.

    It solves for a geodesic from slerp under one shared noise, then denoises its points.
    """
    level, score = case.levels(STEIN_TIMESTEP), case.clean_score(STEIN_TIMESTEP, 1)
    metric, num = SteinScoreMetric(score), case.num_frames
    found = found_by(
        geodesic(metric, case.x0, case.x1, num_points=num, init="slerp", **options), even
    )
    path = found.path
    timesteps = [t for t in case.timesteps if t <= STEIN_TIMESTEP]
    frames = sample(case.levels, level.alpha * path + level.sigma * score.noise, timesteps)
    return replace(found, path=torch.cat([path[:1], frames[1:-1], path[-1:]]))


def roadmap_of(case: Case) -> Roadmap:
    """The roadmap between the end points of a case. The tangent-normal metric finds its leaps."""
    draws = [
        partial(
            sdedit,
            case.levels,
            timesteps=[round(top * i / case.draw_steps) for i in range(1, case.draw_steps + 1)],
            generator=case.generator,
        )
        for top in case.draw_timesteps
    ]
    return roadmap(
        draws,
        case.x0,
        case.x1,
        metric=TangentNormalMetric(case.clean_score(case.metric_timestep)),
        max_samples=case.max_samples,
        generator=case.generator,
    )


def along_roadmap(case: Case) -> Found:
    """The path of the roadmap."""
    return Found(roadmap_of(case)(case.x0, case.x1, case.num_frames), "own rule")


def relaxed(case: Case) -> Found:
    """The path of the roadmap, smoothed and denoised in turn. This shortens it on the manifold."""
    score = case.clean_score(case.metric_timestep)
    path = along_roadmap(case).path
    for _ in range(NUM_RELAXATIONS):
        smooth = path[1:-1] / 2 + path[:-2] / 4 + path[2:] / 4
        path = torch.cat([path[:1], score.denoise(smooth), path[-1:]])
        path = resample(path, case.num_frames)
    return Found(path, "own rule")


def relaxed_starts(case: Case) -> Found:
    """A straight path and the roadmap's, both relaxed; the one of less energy."""
    timesteps = [case.metric_timestep, half_as_noisy(case.metric_timestep)]
    scores = clean_scores(case, timesteps)
    metric = TangentNormalMetric(scores[-1])
    straight = lerp(case.x0, case.x1, case.num_frames)
    starts = [straight, roadmap_of(case)(case.x0, case.x1, case.num_frames)]
    paths = [relax(scores, start) for start in starts]
    with torch.no_grad():
        best = min(paths, key=lambda path: float(metric.energy(smooth(path, 3)).sum()))
    return Found(best, "own rule")


def continuation(case: Case) -> Found:
    """The tangent-normal geodesic from a straight start, at ever weaker noise from t = 600."""
    tops = [round(t) for t in torch.linspace(600, case.metric_timestep, 11).tolist()]
    return solve_clean(case, TangentNormalMetric, timesteps=tops)


def straight_on(x0: Tensor, x1: Tensor, u: Tensor) -> Tensor:
    """Points at fractions `(U,)` of the line through two points."""
    return torch.lerp(x0, x1, u.view(-1, *[1] * x0.ndim).to(x0))


def circle_on(x0: Tensor, x1: Tensor, u: Tensor) -> Tensor:
    """Points at fractions `(U,)` of the great circle of slerp. Fractions may exceed 1."""
    u = u.view(-1, *[1] * x0.ndim).to(x0)
    norm0, norm1 = x0.norm(), x1.norm()
    angle = torch.acos((x0 * x1).sum() / (norm0 * norm1))
    arc = torch.sin((1 - u) * angle) * x0 / norm0 + torch.sin(u * angle) * x1 / norm1
    return arc / torch.sin(angle) * torch.lerp(norm0, norm1, u)


def noise_on(function) -> Extension:
    """A method that continues a curve between inverted end points beyond the second one."""

    def points(case: Case, path: Tensor, num_steps: int) -> Tensor:
        u = 1 + torch.arange(num_steps + 1) / (len(path) - 1)
        return in_noise_space(lambda _, x0, x1: Found(function(x0, x1, u)))(case).path

    return points


def walk(case: Case, path: Tensor, num_steps: int) -> Tensor:
    """Continue in the last direction, and denoise every point at the end."""
    steps = torch.arange(1, num_steps + 1).view(-1, *[1] * case.x0.ndim).to(path)
    points = path[-1] + steps * (path[-1] - path[-2])
    return torch.cat([path[-1:], case.clean_score(case.metric_timestep).denoise(points)])


def geodesic_on(case: Case, path: Tensor, num_steps: int) -> Tensor:
    """Continue along the geodesic of the data manifold."""
    project = case.clean_score(case.metric_timestep).denoise
    distance = num_steps * float(length(path)) / (len(path) - 1)
    return extrapolate(path, distance, project=project, max_residual=math.inf)[len(path) - 1 :]


EXTENSIONS: dict[str, Extension] = {  # each gives `(num_steps + 1, *shape)`, last point first
    "lerp": noise_on(straight_on),
    "slerp": noise_on(circle_on),
    "walk": walk,
    "extrapolate": geodesic_on,
}
METHODS: dict[str, Method] = {
    "lerp": curve(lerp),
    "slerp": curve(slerp),
    "split": in_noise_space(split_path),
    "nao": curve(nao, "own rule"),
    "noise_diffusion": in_noise_space(noisy_blend),
    "density": in_noise_space(density),
    "stein": stein,
    "likely": solved(LikelyMetric),
    "score_jacobian": solved(ScoreJacobianMetric),
    "tangent_normal": solved(TangentNormalMetric),
    "clean": lambda case: solve_clean(case, TangentNormalMetric),
    "continuation": continuation,
    "roadmap": along_roadmap,
    "roadmap, relaxed": relaxed,
    "both starts": both_starts,
    "relax": relaxed_starts,
}
