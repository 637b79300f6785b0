"""Paths on which a solve may start, and paths beyond and beside one that was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_takes, check_whole
from riemannian_diffusion.ddim import sdedit
from riemannian_diffusion.geodesics import Start
from riemannian_diffusion.geometry import analogy, extrapolate
from riemannian_diffusion.levels import Levels
from riemannian_diffusion.metrics import TangentNormalMetric
from riemannian_diffusion.paths import length
from riemannian_diffusion.pipelines.curves import Gap
from riemannian_diffusion.pipelines.inputs import Image, is_images, to_keyframes
from riemannian_diffusion.roadmaps import Roadmap, roadmap
from riemannian_diffusion.score import ScoreModel, SharedNoiseScore

DRAW_NOISES = (0.8, 1.6, 2.8)  # noise levels of the samples, in units of the clean latents
METRIC_NOISE = 0.5  # noise level of the metric that finds leaps
BEYOND_NOISE = 0.25  # noise level of the denoiser that keeps an extension on the data
TRANSPORT_NOISE = 0.5  # noise level of the denoiser that finds tangents for an analogy
DRAW_STEPS = 6

NAMED_STARTS = ("slerp", "lerp", "split", "roadmap")


@dataclass(frozen=True)
class RoadmapStart:
    """A start for `solve` along samples of the model; see `riemannian_diffusion.roadmap`.

    Attributes:
        max_samples: Most samples for each gap, at least 1.

    Examples:
        >>> from riemannian_diffusion.pipelines import RoadmapStart
        >>> RoadmapStart(96).max_samples
        96
    """

    max_samples: int = 768

    def __post_init__(self):
        check_whole(1, max_samples=self.max_samples)


OneStart = Start | RoadmapStart | Sequence[Image]
MorphStart = OneStart | Sequence[OneStart]


def as_starts(init: MorphStart, space: str) -> list[OneStart]:
    """The starts that an `init` stands for, checked.

    Args:
        init: One start, a list of them, or None: slerp in noise space and lerp in clean space.
        space: The space of the path.

    Raises:
        ValueError: If a name is unknown, there is no start, or "split" starts in clean space.
    """
    if init is None:
        return ["slerp" if space == "noise" else "lerp"]
    starts: list[OneStart]
    if isinstance(init, (list, tuple)) and not is_images(init):
        starts = list(init)
    else:
        starts = [cast(OneStart, init)]
    if not starts:
        raise ValueError("`init` must name at least one start, but got an empty list.")
    for one in starts:
        if isinstance(one, str):
            known = one in NAMED_STARTS
        else:
            known = isinstance(one, (Tensor, RoadmapStart)) or callable(one) or is_images(one)
        if not known:
            raise ValueError(
                f"`init` must be one of {', '.join(NAMED_STARTS)}, a path, a RoadmapStart, a list "
                f"of images or a function, but got {one!r}."
            )
        if isinstance(one, str) and one == "split" and space != "noise":
            raise ValueError(f"`init` 'split' needs `space` 'noise', but got {space!r}.")
    return starts


def check_starts(
    starts: Sequence[OneStart],
    counts: Sequence[int],
    pixels: Tensor,
    factor: int,
    shape: Sequence[int] | None = None,
) -> None:
    """Refuse starts that do not fit the keyframes.

    Args:
        starts: What `as_starts` gave.
        counts: The number of frames of every gap.
        pixels: The keyframes, `(P, C, H, W)`.
        factor: What height and width must be multiples of, in pixels.
        shape: The shape of a point; None if it is not known yet, but that its sides are in the
            ratio of the image's.

    Raises:
        ValueError: If a path or images have other sizes, images are for more than one gap, or a
            function takes other arguments.
    """
    height, width = pixels.shape[2:]
    for one in starts:
        if isinstance(one, Tensor):
            for num in counts:
                fits = one.ndim == 4 and one.shape[2] * width == one.shape[3] * height
                if shape is not None:
                    fits = one.shape[1:] == shape
                if not fits or len(one) != num:
                    wanted = (num, *(("C", "h", "w") if shape is None else shape))
                    raise ValueError(
                        f"`init` must be ({', '.join(map(str, wanted))}), but got "
                        f"{tuple(one.shape)}: a path has a point for each frame of a gap."
                    )
            if not one.isfinite().all():
                raise ValueError("`init` must be finite.")
        elif is_images(one):
            if len(counts) > 1:
                raise ValueError("`init` takes images for two keyframes only, but there are more.")
            try:
                size = tuple(to_keyframes(one, pixels.shape[1], factor).shape[1:])
            except ValueError as error:
                raise ValueError(f"The images of `init` do not fit. {error}") from error
            if size != tuple(pixels.shape[1:]):
                raise ValueError(
                    f"The images of `init` must have the keyframes' size, but are {size} and not "
                    f"{tuple(pixels.shape[1:])}."
                )
        elif callable(one):
            check_takes("x0, x1, num_points", init=one)


def roadmap_path(gap: Gap, start: RoadmapStart) -> Tensor:
    """Points between the clean latents of a gap along samples of the model, `(F, C, h, w)`."""
    levels, clean = gap.levels, gap.clean
    found = clean_roadmap(
        lambda timestep: levels(timestep, mode=levels.mode),
        levels.schedule.timestep_of,
        *clean,
        final_abar=levels.schedule.final_abar,
        max_samples=start.max_samples,
        generator=gap.generator,
    )
    return found(*clean, gap.num_frames)


def clean_roadmap(
    levels: Callable[[float], ScoreModel],
    timestep_of: Callable[[float], int],
    x0: Tensor,
    x1: Tensor,
    *,
    final_abar: float,
    max_samples: int,
    generator: torch.Generator | None,
) -> Roadmap:
    """A roadmap between clean latents `shape`, of SDEdit samples to three noise levels.

    Args:
        levels: Timestep -> score, the same for all points.
        timestep_of: A noise in units of the clean latents -> timestep.
        x0: Clean latents, `shape`.
        x1: Clean latents, `shape`.
        final_abar: See `sample`.
        max_samples: See `roadmap`.
        generator: Source of random numbers.
    """
    draws = []
    for noise in DRAW_NOISES:
        top = timestep_of(noise)
        timesteps = sorted({max(1, round(top * i / DRAW_STEPS)) for i in range(1, DRAW_STEPS + 1)})
        draws.append(
            partial(
                sdedit,
                levels,
                timesteps=timesteps,
                final_abar=final_abar,
                generator=generator,
            )
        )
    device = "cpu" if generator is None else generator.device
    seed = int(torch.randint(2**31, (), generator=generator, device=device))
    on_cpu = torch.Generator().manual_seed(seed)
    shared = torch.randn(x0.shape, generator=on_cpu, dtype=x0.dtype).to(x0.device)
    level = levels(timestep_of(METRIC_NOISE))
    metric = TangentNormalMetric(SharedNoiseScore(level, shared))
    return roadmap(draws, x0, x1, metric=metric, max_samples=max_samples, generator=on_cpu)


def continuation(latents: Tensor, levels: Levels, share: float) -> Tensor:
    """Clean latents beyond the last of `(F, C, h, w)`, by a share of their length."""
    level = levels(levels.schedule.timestep_of(BEYOND_NOISE))

    def denoise(x: Tensor) -> Tensor:
        return level.denoise(level.alpha * x) / level.alpha

    distance = share * float(length(latents))
    if not distance > 0:
        return latents[:0]
    return extrapolate(latents, distance, project=denoise)[len(latents) :]


def transported(change: Tensor, bridge: Tensor, levels: Levels) -> Tensor:
    """The change of a path, from the end of another path on.

    Args:
        change: Clean latents from A to B, `(F, C, h, w)`.
        bridge: Clean latents from A to C, `(M, C, h, w)`.
        levels: The model under the conditions of C.

    Returns:
        Clean latents from C on, `(F, C, h, w)`.
    """
    level = levels(levels.schedule.timestep_of(TRANSPORT_NOISE))
    bridge = torch.cat([change[:1], bridge[1:]])  # both start at A, up to rounding
    path, bridge = level.alpha * change, level.alpha * bridge
    return analogy(level, path, bridge[-1], bridge=bridge) / level.alpha
