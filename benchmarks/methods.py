"""Ways from one point of a manifold to another, each given a diffusion model at every level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from riemannian_diffusion import (
    Adam,
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
    resample,
    roadmap,
    sample,
    sdedit,
    slerp,
)
from riemannian_diffusion.baselines import density_geodesic, nao, noise_diffusion

STRENGTH, NUM_STEPS = 0.6, 50  # of noise space, as in arXiv 2510.05509
NUM_RELAXATIONS = 10
STEIN_TIMESTEP = 290  # here abar is 0.42, as at Stable Diffusion's t = 400 of arXiv 2505.11128


class Counting(ScoreModel):
    """A score model that counts the points it is asked for."""

    def __init__(self, score: ScoreModel, counter: list[int]):
        self.score, self.counter = score, counter
        self.alpha, self.sigma = score.alpha, score.sigma

    def __call__(self, x: Tensor) -> Tensor:
        """The score, `(K, *shape) -> (K, *shape)`."""
        self.counter[0] += len(x)
        return self.score(x)


@dataclass
class Case:
    """Two points on a manifold, a model's levels, and where to use them.

    Attributes:
        levels: Timestep of diffusers' usual schedule -> score model.
        x0: `shape`, clean.
        x1: Another.
        num_frames: Points to draw.
        metric_timestep: The level of a metric in clean space.
        draw_timesteps: Levels to which a roadmap's samples are carried and back.
        num_noises: Shared noises of a metric in clean space; with 0 points are read as they are.
        draw_steps: Of sampling back from those levels.
        max_samples: Of a roadmap.
    """

    levels: Callable[[int], ScoreModel]
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
        """The levels of noise space, noisiest first."""
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(NUM_STEPS)
        return scheduler.timesteps[-int(STRENGTH * NUM_STEPS) :].tolist()

    def clean_score(self, timestep: int, num_noises: int | None = None) -> ScoreModel:
        """The score of clean space under shared noises."""
        num = self.num_noises if num_noises is None else num_noises
        noise = torch.zeros_like(self.x0)
        if num:
            noise = torch.randn(num, *self.x0.shape, generator=self.generator).to(self.x0)
        return SharedNoiseScore(self.levels(timestep), noise)


Method = Callable[[Case], Tensor]
WayOn = Callable[[Case, Tensor, int], Tensor]


def in_noise_space(make_path: Callable[[Case, Tensor, Tensor], Tensor]) -> Method:
    """A method that draws its path between inverted ends; the path is sampled back."""

    def frames(case: Case) -> Tensor:
        ends = torch.stack([case.x0, case.x1])
        ends = invert(case.levels, ends, case.timesteps, fixed_point_iterations=5)
        return sample(case.levels, make_path(case, *ends), case.timesteps)

    return frames


def curve(function) -> Method:
    """A curve between inverted ends that needs no model."""
    return in_noise_space(lambda case, x0, x1: function(x0, x1, case.num_frames))


def density(case: Case, x0: Tensor, x1: Tensor) -> Tensor:
    """A probability-density geodesic; without prompts its direction is half the noise removed."""
    timestep = max(case.timesteps)
    options = {"generator": case.generator}
    return density_geodesic(case.levels, timestep, x0, x1, case.num_frames, **options)


def noisy_blend(case: Case, x0: Tensor, x1: Tensor) -> Tensor:
    """NoiseDiffusion's."""
    alpha = case.levels(max(case.timesteps)).alpha
    return noise_diffusion(x0, x1, case.num_frames, clean0=case.x0, clean1=case.x1, alpha=alpha)


def solved(metric: Callable[[ScoreModel], Metric]) -> Method:
    """A metric's geodesic in noise space from slerp, as in arXiv 2510.05509."""

    def path(case: Case, x0: Tensor, x1: Tensor) -> Tensor:
        score = case.levels(max(case.timesteps))
        return geodesic(metric(score), x0, x1, num_points=case.num_frames).path

    return in_noise_space(path)


def solve_clean(
    case: Case,
    metric: Callable[[ScoreModel], Metric],
    init="lerp",
    *,
    timesteps: Sequence[int] | None = None,
    solver=None,
    max_evals=200,
) -> Tensor:
    """A metric's geodesic in clean space, at the case's level or at several in turn."""
    state = case.generator.get_state()
    metrics = []
    for timestep in timesteps or [case.metric_timestep]:
        case.generator.set_state(state)  # one set of noises for all
        metrics.append(metric(case.clean_score(timestep)))
    found = geodesic(
        metrics,
        case.x0,
        case.x1,
        num_points=case.num_frames,
        init=init,
        solver=solver,
        max_evals=max_evals,
    )
    return found.path


def half_as_noisy(timestep: int) -> int:
    """The level with half of a level's noise, in units of the clean data."""
    abar = DDIMScheduler().alphas_cumprod
    noises = ((1 - abar) / abar).sqrt()
    return int((noises - noises[timestep] / 2).abs().argmin())


def both_starts(case: Case, timesteps: Sequence[int] | None = None) -> Tensor:
    """The tangent-normal geodesic of least energy from a straight start and from the roadmap."""
    starts = ["lerp", way(case)]
    return solve_clean(case, TangentNormalMetric, starts, timesteps=timesteps, max_evals=400)


def finer(case: Case) -> Tensor:
    """The same at the case's level, then at half its noise."""
    return both_starts(case, [case.metric_timestep, half_as_noisy(case.metric_timestep)])


def stein(case: Case) -> Tensor:
    """As in arXiv 2505.11128: one shared noise, a geodesic from slerp, and a denoising pass."""
    level, score = case.levels(STEIN_TIMESTEP), case.clean_score(STEIN_TIMESTEP, 1)
    metric = SteinScoreMetric(score)
    path = geodesic(metric, case.x0, case.x1, num_points=case.num_frames).path
    timesteps = [t for t in case.timesteps if t <= STEIN_TIMESTEP]
    frames = sample(case.levels, level.alpha * path + level.sigma * score.noise, timesteps)
    return torch.cat([path[:1], frames[1:-1], path[-1:]])


def way(case: Case) -> Roadmap:
    """The roadmap between the ends of a case; the tangent-normal metric finds its leaps."""
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


def relaxed(case: Case) -> Tensor:
    """The roadmap's way, smoothed and denoised in turn: curve shortening on the manifold."""
    score, path = (
        case.clean_score(case.metric_timestep),
        way(case)(case.x0, case.x1, case.num_frames),
    )
    for _ in range(NUM_RELAXATIONS):
        smooth = path[1:-1] / 2 + path[:-2] / 4 + path[2:] / 4
        path = torch.cat([path[:1], score.denoise(smooth), path[-1:]])
        path = resample(path, case.num_frames)
    return path


def continuation(case: Case) -> Tensor:
    """From a straight line, the tangent-normal metric at ever weaker noise, from t = 600."""
    tops = [round(t) for t in torch.linspace(600, case.metric_timestep, 11).tolist()]
    return solve_clean(case, TangentNormalMetric, timesteps=tops)


def straight_on(x0: Tensor, x1: Tensor, u: Tensor) -> Tensor:
    """The line through two points at fractions `(U,)`."""
    return torch.lerp(x0, x1, u.view(-1, *[1] * x0.ndim).to(x0))


def circle_on(x0: Tensor, x1: Tensor, u: Tensor) -> Tensor:
    """The great circle of slerp at fractions `(U,)`, beyond its ends too."""
    u = u.view(-1, *[1] * x0.ndim).to(x0)
    norm0, norm1 = x0.norm(), x1.norm()
    angle = torch.acos((x0 * x1).sum() / (norm0 * norm1))
    arc = torch.sin((1 - u) * angle) * x0 / norm0 + torch.sin(u * angle) * x1 / norm1
    return arc / torch.sin(angle) * torch.lerp(norm0, norm1, u)


def noise_on(function) -> WayOn:
    """A curve between inverted ends, beyond the second."""

    def points(case: Case, path: Tensor, num_steps: int) -> Tensor:
        u = 1 + torch.arange(num_steps + 1) / (len(path) - 1)
        return in_noise_space(lambda _, x0, x1: function(x0, x1, u))(case)

    return points


def walk(case: Case, path: Tensor, num_steps: int) -> Tensor:
    """The last direction kept, and every point denoised."""
    steps = torch.arange(1, num_steps + 1).view(-1, *[1] * case.x0.ndim).to(path)
    points = path[-1] + steps * (path[-1] - path[-2])
    return torch.cat([path[-1:], case.clean_score(case.metric_timestep).denoise(points)])


def geodesic_on(case: Case, path: Tensor, num_steps: int) -> Tensor:
    """The geodesic of the data manifold."""
    project = case.clean_score(case.metric_timestep).denoise
    distance = num_steps * float(length(path)) / (len(path) - 1)
    return extrapolate(path, distance, project=project, max_residual=math.inf)[len(path) - 1 :]


WAYS_ON: dict[str, WayOn] = {  # from the last point of a path: `(num_steps + 1, *shape)`
    "lerp": noise_on(straight_on),
    "slerp": noise_on(circle_on),
    "walk": walk,
    "extrapolate": geodesic_on,
}
METHODS: dict[str, Method] = {
    "lerp": curve(lerp),
    "slerp": curve(slerp),
    "nao": curve(nao),
    "noise_diffusion": in_noise_space(noisy_blend),
    "density": in_noise_space(density),
    "stein": stein,
    "score_jacobian": solved(ScoreJacobianMetric),
    "tangent_normal": solved(TangentNormalMetric),
    "clean": lambda case: solve_clean(case, TangentNormalMetric),
    "continuation": continuation,
    "roadmap": lambda case: way(case)(case.x0, case.x1, case.num_frames),
    "roadmap, relaxed": relaxed,
    "both starts": both_starts,
}
CLEAN_METHODS: dict[str, Method] = {  # in clean space: straight starts, metric by metric
    "straight": lambda case: lerp(case.x0, case.x1, case.num_frames),
    "clean stein": lambda case: solve_clean(case, SteinScoreMetric),
    "clean stein, full gradient": lambda case: solve_clean(
        case, partial(SteinScoreMetric, detach_score=False)
    ),
    "clean score_jacobian": lambda case: solve_clean(case, ScoreJacobianMetric),
    "clean score_jacobian, Adam": lambda case: solve_clean(
        case, ScoreJacobianMetric, solver=Adam(), max_evals=500
    ),
    "clean tangent_normal, Adam": lambda case: solve_clean(
        case, TangentNormalMetric, solver=Adam(), max_evals=500
    ),
    "both starts, then finer": finer,
}
