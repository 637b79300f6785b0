"""The gaps between keyframes, and what may fill them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from riemannian_diffusion.baselines import density_geodesic, nao, noise_diffusion
from riemannian_diffusion.geodesics import Geodesic, Iterate, Start, geodesics
from riemannian_diffusion.metrics import (
    EuclideanMetric,
    Metric,
    ScoreJacobianMetric,
    SteinScoreMetric,
    TangentNormalMetric,
)
from riemannian_diffusion.paths import lerp, slerp
from riemannian_diffusion.score import ScoreModel, SharedNoiseScore

MetricFactory = Callable[[ScoreModel], Metric]

METRICS: dict[str, MetricFactory] = {
    "tangent_normal": TangentNormalMetric,
    "score_jacobian": ScoreJacobianMetric,
    "stein": SteinScoreMetric,
    "euclidean": lambda score: EuclideanMetric(),
}


@dataclass(frozen=True)
class Gap:
    """Two neighbouring keyframes, and what a path between them may use.

    Attributes:
        x0: The first, in the space of the path.
        x1: The next.
        clean0: The first's clean latents.
        clean1: The next one's.
        prompts: Embeddings `(1, L, C)` for both or `(2, L, C)`.
        noise: Shared by the whole path, in clean space.
        find_way: Gives a path along samples of the model to start from.
        levels: Timestep -> score model under these prompts.
        score: `encoder_hidden_states` and `timestep` -> a score of the network.
        adapted: What sets its network apart from others.
        timestep: Of the path.
        num_timesteps: Of the schedule.
        num_frames: From one keyframe to the next, both included.
        generator: Source of what is random.
    """

    x0: Tensor
    x1: Tensor
    clean0: Tensor
    clean1: Tensor
    prompts: Tensor
    noise: Tensor | None
    find_way: Callable[[], Tensor]
    levels: Callable[[float], ScoreModel]
    score: Callable[..., ScoreModel]
    adapted: object
    timestep: float
    num_timesteps: int
    num_frames: int
    generator: torch.Generator | None


def solve_gaps(
    gaps: Sequence[Gap],
    metric: MetricFactory,
    init: Start | Sequence[Start],
    **options,
) -> list[Geodesic]:
    """Geodesics across gaps, those of one size of image and one network side by side.

    Args:
        gaps: The gaps.
        metric: A score -> a metric.
        init: As in `geodesic`, or "roadmap".
        **options: Of `geodesics`.
    """
    kinds = [(gap.x0.shape, id(gap.adapted)) for gap in gaps]
    if len(set(kinds)) > 1:
        found = {}
        for kind in dict.fromkeys(kinds):
            here = [i for i, other in enumerate(kinds) if other == kind]
            callback = partial(_renumbered, options["callback"], here)
            mine = options | {"callback": callback}
            solved = solve_gaps([gaps[i] for i in here], metric, init, **mine)
            found |= zip(here, solved, strict=True)
        return [found[i] for i in range(len(gaps))]
    model = gaps[0].score(encoder_hidden_states=_joint_prompts(gaps), timestep=gaps[0].timestep)
    if gaps[0].noise is not None:
        noise = gaps[0].noise
        if any(gap.noise is not noise for gap in gaps):
            noise = torch.stack([gap.noise[None] for gap in gaps])  # (P, 1, C, h, w)
        model = SharedNoiseScore(model, noise)
    starts: list[Start] = []
    for one in init if isinstance(init, (list, tuple)) else [init]:
        if isinstance(one, str) and one == "roadmap":
            one = torch.stack([gap.find_way() for gap in gaps])
        elif isinstance(one, Tensor):
            one = one.expand(len(gaps), *one.shape)
        starts.append(one)
    ends = torch.stack([gap.x0 for gap in gaps]), torch.stack([gap.x1 for gap in gaps])
    return geodesics(metric(model), *ends, num_points=gaps[0].num_frames, init=starts, **options)


def _renumbered(callback: Callable[[Iterate], None], here: list[int], iterate: Iterate) -> None:
    """Tell of an iterate under its gap's number among all."""
    callback(replace(iterate, pair=here[iterate.pair]))


def _joint_prompts(gaps: Sequence[Gap]) -> Tensor:
    """The prompts of all gaps: of one as they are, of many with an entry each where they differ."""
    first = gaps[0].prompts
    same = all(g.prompts.shape == first.shape and torch.equal(g.prompts, first) for g in gaps)
    if len(gaps) == 1 or (same and len(first) == 1):
        return first
    return torch.stack([gap.prompts.expand(2, -1, -1) for gap in gaps])


def _density(gap: Gap) -> Tensor:
    spread = max(0, int(min(100, gap.timestep - 1, gap.num_timesteps - 1 - gap.timestep)))
    return density_geodesic(
        *(gap.levels, gap.timestep, gap.x0, gap.x1, gap.num_frames),
        spread=spread,
        generator=gap.generator,
    )


def _noise_diffusion(gap: Gap) -> Tensor:
    return noise_diffusion(
        *(gap.x0, gap.x1, gap.num_frames),
        clean0=gap.clean0,
        clean1=gap.clean1,
        alpha=gap.levels(gap.timestep).alpha,
    )


CURVES: dict[str, Callable[[Gap], Tensor]] = {  # no geodesics of a metric, for comparison
    "slerp": lambda gap: slerp(gap.x0, gap.x1, gap.num_frames),
    "lerp": lambda gap: lerp(gap.x0, gap.x1, gap.num_frames),
    "nao": lambda gap: nao(gap.x0, gap.x1, gap.num_frames),
    "noise_diffusion": _noise_diffusion,
    "density": _density,
}
NOISE_CURVES = ("nao", "noise_diffusion", "density")  # of noise space alone
UNIT_CURVES = ("nao", "noise_diffusion")  # where squared factors of data and noise add to 1
