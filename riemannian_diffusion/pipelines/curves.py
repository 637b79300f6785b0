"""Metrics and curves by their names, and what a curve may use of its gap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_takes
from riemannian_diffusion.baselines import density_geodesic, nao, noise_diffusion, split
from riemannian_diffusion.levels import Levels
from riemannian_diffusion.metrics import (
    EuclideanMetric,
    LikelyMetric,
    Metric,
    ScoreJacobianMetric,
    SteinScoreMetric,
    TangentNormalMetric,
)
from riemannian_diffusion.paths import lerp, slerp
from riemannian_diffusion.pipelines.morph import Keyframes
from riemannian_diffusion.score import ScoreModel

MetricFactory = Callable[[ScoreModel], Metric]

METRICS: dict[str, MetricFactory] = {
    "tangent_normal": TangentNormalMetric,
    "score_jacobian": ScoreJacobianMetric,
    "stein": SteinScoreMetric,
    "likely": LikelyMetric,
    "euclidean": lambda score: EuclideanMetric(),
}


@dataclass(frozen=True, eq=False)
class Gap:
    """Two neighbouring keyframes of a morph, and the path between them that is sought.

    Attributes:
        keys: All keyframes of the morph.
        index: The number of the gap: between keyframes `index` and `index + 1`.
        num_frames: The number of frames from one keyframe to the next, both included.
        levels: The model under the conditions of this gap.
        mode: The mode of the scores that a metric or curve reads.
        generator: Source of random numbers, or None.
    """

    keys: Keyframes
    index: int
    num_frames: int
    levels: Levels
    mode: str
    generator: torch.Generator | None

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The two keyframes in the space of the path, `(C, h, w)` each."""
        return self.keys.points[self.index], self.keys.points[self.index + 1]

    @property
    def clean(self) -> tuple[Tensor, Tensor]:
        """The clean latents of the two keyframes, `(C, h, w)` each."""
        return self.keys.clean[self.index], self.keys.clean[self.index + 1]

    @property
    def timestep(self) -> float:
        """The timestep of the path."""
        return self.levels.schedule.timesteps[0]


def _density(gap: Gap) -> Tensor:
    timestep, num = gap.timestep, gap.levels.schedule.num_timesteps
    return density_geodesic(
        lambda t: gap.levels(t, mode=gap.mode),
        timestep,
        *gap.ends,
        gap.num_frames,
        spread=max(0, int(min(100, timestep - 1, num - 1 - timestep))),
        generator=gap.generator,
    )


def split_path(gap: Gap, mode: str) -> Tensor:
    """The path of `split` through a gap, `(F, C, h, w)`, from scores of a mode."""
    return split(gap.levels(gap.timestep, mode=mode), *gap.ends, gap.num_frames)


def _noise_diffusion(gap: Gap) -> Tensor:
    clean0, clean1 = gap.clean
    alpha = gap.levels.schedule.levels[0].alpha
    return noise_diffusion(*gap.ends, gap.num_frames, clean0=clean0, clean1=clean1, alpha=alpha)


CURVES: dict[str, Callable[[Gap], Tensor]] = {  # for comparison: they are no metric's geodesics
    "slerp": lambda gap: slerp(*gap.ends, gap.num_frames),
    "lerp": lambda gap: lerp(*gap.ends, gap.num_frames),
    "split": lambda gap: split_path(gap, gap.mode),
    "nao": lambda gap: nao(*gap.ends, gap.num_frames),
    "noise_diffusion": _noise_diffusion,
    "density": _density,
}
NOISE_CURVES = ("split", "nao", "noise_diffusion", "density")  # defined in noise space only
MODEL_CURVES = ("split", "density")  # these read the score
UNIT_CURVES = ("nao", "noise_diffusion")  # where squared factors of data and noise add to 1


def check_metric(
    metric: str | MetricFactory, space: str, is_flow: bool, score_mode: str | None = None
) -> None:
    """Refuse what is no metric, or none for a space, a kind of model or a mode of the score.

    Raises:
        ValueError: Naming the argument.
    """
    names = [*METRICS, *CURVES]
    if not callable(metric) and metric not in names:
        raise ValueError(
            f"`metric` must be one of {', '.join(names)} or a function `ScoreModel -> Metric`, but "
            f"got {metric!r}."
        )
    if callable(metric):
        check_takes("score", metric=metric)
    if metric in NOISE_CURVES and space != "noise":
        raise ValueError(f"metric={metric!r} needs space='noise', but got {space!r}.")
    if metric in UNIT_CURVES and is_flow:
        raise ValueError(
            f"metric={metric!r} is for models whose squared factors of data and noise add to 1, "
            "not for rectified flows."
        )
    if metric == "split" and score_mode == "difference":
        raise ValueError(
            "metric='split' needs estimates of the noise, which score_mode='difference' does not "
            "give: pass another `score_mode`, or none."
        )
