"""Frames evenly spaced in perceived change."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from riemannian_diffusion.arguments import kind_of
from riemannian_diffusion.measures import Distance, lpips_distance, rmse
from riemannian_diffusion.paths import points_at

MAX_ROUNDS = 8
EVEN = 0.05  # standard deviation of the changes over their mean, at which they are even


def find_distance(name: str | Distance, device: torch.device) -> Distance:
    """A distance of images in [0, 1]: "lpips", "rmse" or the caller's own."""
    if callable(name):
        return name
    if name == "rmse":
        return rmse
    return lpips_distance("alex", device=str(device))


def retimed(
    path: Tensor,
    carry: Callable[[Tensor, Tensor], Tensor],
    show: Callable[[Tensor], Tensor],
    distance: Distance,
    num_frames: int,
    stopped: Callable[[], bool],
) -> tuple[Tensor, Tensor]:
    """Move the points of a path along it until neighbouring frames differ equally.

    Each round takes the frames' changes for the speed between the points and moves them to equal
    shares of their sum, within every gap between keyframes. Of a distance that grows with the
    square of a step (LPIPS, structural similarity) it takes the root, as two steps in one tell.
    What changes at once, no round can divide; the round whose changes are the most even is kept.

    Args:
        path: `(F, *shape)`.
        carry: Points and their places, `(F,)` fractions of the path -> clean latents.
        show: Clean latents -> frames in [0, 1].
        distance: Of frames, `(K, 3, H, W) x2 -> (K,)`.
        num_frames: From one keyframe to the next, both included.
        stopped: Whether a round was interrupted; then the best one before it is the last.

    Returns:
        The path and its clean latents.
    """
    even = torch.linspace(0, 1, len(path), dtype=torch.float64)
    places, least, best = even, float("inf"), None
    for _ in range(MAX_ROUNDS):
        points = points_at(path, even, places)
        latents = carry(points, places)
        best = best or (points, latents)
        if stopped():
            break
        frames = show(latents)
        changes = _changes(distance, frames, 1)
        power = _power(changes, distance, frames)
        changes = changes.view(-1, num_frames - 1)
        mean = changes.mean(1).clamp(min=1e-30)
        spread = float((changes.std(1, correction=0) / mean).max())
        if spread < least:
            least, best = spread, (points, latents)
        if not EVEN < spread < float("inf"):
            break
        gaps = []
        for i, change in enumerate(changes):
            arc = torch.cat([torch.zeros(1).double(), change.pow(power).cumsum(0)])
            here = places[i * (num_frames - 1) : (i + 1) * (num_frames - 1) + 1, None]
            share = torch.linspace(0, 1, num_frames, dtype=torch.float64)
            gaps.append(points_at(here, arc, share)[:, 0] if arc[-1] > 0 else here[:, 0])
        places = torch.cat([gap if i == 0 else gap[1:] for i, gap in enumerate(gaps)])
    return best


def _power(changes: Tensor, distance: Distance, frames: Tensor) -> float:
    """The power, from 1/2 to 1, of a distance that is a length: two steps are twice as long."""
    if len(frames) < 3:
        return 1.0
    double = _changes(distance, frames, 2).mean()
    ratio = float(double / (changes[:-1] + changes[1:]).mean().clamp(min=1e-30))
    return 1 / min(2.0, max(1.0, 1 + math.log2(max(ratio, 1e-30))))


def _changes(distance: Distance, frames: Tensor, step: int) -> Tensor:
    """Of frames so many apart, float64, checked."""
    changes, num = distance(frames[:-step], frames[step:]), len(frames) - step
    known = isinstance(changes, Tensor) and changes.shape == (num,)
    if not (known and changes.isfinite().all() and (changes >= 0).all()):
        raise ValueError(
            f"`retime` must give ({num},) finite distances of at least 0 for {num} pairs of frames,"
            f" but gave {changes if known else kind_of(changes)}."
        )
    return changes.double().cpu()
