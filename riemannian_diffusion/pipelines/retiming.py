"""Frames evenly spaced in perceived change."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor

from riemannian_diffusion.arguments import kind_of
from riemannian_diffusion.batches import PIXELS_AT_ONCE, BatchSize
from riemannian_diffusion.events import Event
from riemannian_diffusion.measures import Distance, in_float64, lpips_distance, rmse
from riemannian_diffusion.paths import points_at

MAX_ROUNDS = 8
EVEN = 0.05  # changes are even where their standard deviation is this share of their mean

Shown = tuple[Any, Tensor, bool]  # what was made at some times, its frames, whether to go on


def check_distance(name: str | Distance) -> None:
    """Refuse what is no distance of images.

    Raises:
        ValueError: If it is neither a name nor a function.
    """
    if not callable(name) and name not in ("lpips", "rmse"):
        raise ValueError(
            f"`distance` must be 'lpips', 'rmse' or a function of two batches of images, but got "
            f"{name!r}."
        )


def find_distance(name: str | Distance, device: torch.device) -> Distance:
    """A distance of images in [0, 1]: "lpips", "rmse" or the caller's own."""
    check_distance(name)
    if callable(name):
        return name
    return rmse if name == "rmse" else lpips_distance("alex", device=str(device))


def retiming(
    times: Tensor,
    num_per_gap: list[int],
    show: Callable[[Tensor], Generator[Event, Any, Shown]],
    distance: Distance,
) -> Generator[Event, Any, Any]:
    """Move points along a path until neighbouring frames differ equally within each gap.

    Each round takes the frames' changes for the speed between the points and moves them to equal
    shares of their sum, within every gap between keyframes. If a distance grows with the square of
    a step (LPIPS, structural similarity), as two steps in one show, its root is taken. What changes
    at once, no round can divide; the round whose changes are the most even is kept.

    Args:
        times: The times of the points at first, `(F,)` float64.
        num_per_gap: The number of points of each gap, both keyframes included.
        show: Times -> what lies there, its frames in [0, 1], and whether to go on. Where it says
            no, the best round before it is the last.
        distance: The distance of frames, `(K, 3, H, W) x2 -> (K,)`.

    Returns:
        What lies at the best times.
    """
    least, best = float("inf"), None
    for number in range(MAX_ROUNDS):
        yield Event("retime", number, None)
        made, frames, proceeds = yield from show(times)
        best = made if best is None else best
        if not proceeds:
            break
        changes = _changes(distance, frames, 1)
        power = _power(changes, distance, frames)
        by_gap = changes.split([num - 1 for num in num_per_gap])
        spread = max(
            float(change.std(correction=0) / change.mean().clamp(min=1e-30)) for change in by_gap
        )
        if spread < least:
            least, best = spread, made
        if not EVEN < spread < float("inf"):
            break
        gaps, start = [], 0
        for change in by_gap:
            arc = torch.cat([torch.zeros(1).double(), change.pow(power).cumsum(0)])
            here = times[start : start + len(change) + 1, None]
            share = torch.linspace(0, 1, len(here), dtype=torch.float64)
            gaps.append(points_at(here, arc, share)[:, 0] if arc[-1] > 0 else here[:, 0])
            start += len(change)
        times = torch.cat([gap if i == 0 else gap[1:] for i, gap in enumerate(gaps)])
    return best


def _power(changes: Tensor, distance: Distance, frames: Tensor) -> float:
    """The power, from 1/2 to 1, of a distance that is a length: two steps are twice as long."""
    if len(frames) < 3:
        return 1.0
    double = _changes(distance, frames, 2).mean()
    ratio = float(double / (changes[:-1] + changes[1:]).mean().clamp(min=1e-30))
    return 1 / min(2.0, max(1.0, 1 + math.log2(max(ratio, 1e-30))))


def _changes(distance: Distance, frames: Tensor, step: int) -> Tensor:
    """The distances of frames that are `step` apart, float64 on the CPU, checked."""

    def measured(chunk: slice) -> Tensor:
        before, after = frames[chunk], frames[step:][chunk]
        changes, num = distance(before, after), len(after)
        known = isinstance(changes, Tensor) and changes.shape == (num,)
        if not (known and changes.isfinite().all() and (changes >= 0).all()):
            raise ValueError(
                f"`distance` must give ({num},) finite values of at least 0 for {num} pairs of "
                f"frames, but gave {changes if known else kind_of(changes)}."
            )
        return in_float64(changes)

    at_once = max(1, PIXELS_AT_ONCE // frames.shape[-2:].numel())
    size = BatchSize(at_once, argument=None)
    return torch.cat(list(size.run(len(frames) - step, measured)))
