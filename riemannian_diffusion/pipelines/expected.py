"""How much work a solve is expected to take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from riemannian_diffusion.geodesics import NUM_QUADRATURE
from riemannian_diffusion.geodesics.coarse import numbers_of_points
from riemannian_diffusion.metrics import PullbackMetric
from riemannian_diffusion.pipelines.curves import METRICS
from riemannian_diffusion.pipelines.progress import SolveProgress

LEAST_BUDGET = 40  # evaluations with which a solve begins on coarse curves (see `geodesic`)
ANGLE = 1.4  # usual angle between two inverted images, in radians


def progress_of_solve(
    metric: str, num_frames: Sequence[int], init: Sequence[Any] | None, rtol: float, max_evals: int
) -> SolveProgress | None:
    """The progress of a solve by the name of its metric; None for a curve, which needs no solve.

    Args:
        metric: The name of the metric or curve.
        num_frames: The number of frames of each gap.
        init: The starts; None for the default.
        rtol: The relative tolerance of the solve.
        max_evals: Most evaluations of each gap.
    """
    if metric not in METRICS:
        return None
    kind, starts = METRICS[metric], [None] if init is None else init
    curves: list[list[int]] = [[] for _ in num_frames]
    for start in starts:
        is_smooth = start in (None, "slerp", "lerp")
        coarse = is_smooth and isinstance(kind, type) and issubclass(kind, PullbackMetric)
        for found, num in zip(curves, num_frames, strict=True):
            found += curves_of(num, max_evals // len(starts), coarse_first=coarse)
    return SolveProgress(curves, NUM_QUADRATURE, rtol, max_evals)


def curves_of(num_frames: int, max_evals: int, *, coarse_first: bool) -> list[int]:
    """The numbers of points of the curves on which a solve from a smooth start usually runs.

    Args:
        num_frames: The number of points of the path.
        max_evals: Most evaluations.
        coarse_first: Whether the metric and the start allow coarse curves.
    """
    if not coarse_first or max_evals < LEAST_BUDGET:
        return [num_frames]
    angles = torch.linspace(0, ANGLE, num_frames, dtype=torch.float64)
    return numbers_of_points(torch.stack([angles.cos(), angles.sin()], dim=1))
