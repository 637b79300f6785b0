"""Checks that what a file holds fits together, before any stage uses it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_finite, check_kind, check_points, check_whole
from riemannian_diffusion.levels import Levels
from riemannian_diffusion.pipelines.checks import SPACES, check_choice
from riemannian_diffusion.score.network import NOISE_FROM

if TYPE_CHECKING:
    from riemannian_diffusion.pipelines.morph import Keyframes, MorphPath

_NEAR = 1e-6  # largest distance in time of a keyframe from its point


def check_keyframes(keys: Keyframes) -> None:
    """Refuse keyframes whose fields do not fit together, as the stage `invert` makes them.

    Raises:
        ValueError: Naming the field.
    """
    check_choice("space", keys.space, SPACES)
    check_kind(str, model=keys.model)
    if keys.fixed_point_iterations is not None:
        check_whole(0, fixed_point_iterations=keys.fixed_point_iterations)
    _check_values("pixels", keys.pixels, (None, None, None, None))
    num = len(keys)
    if num < 2:
        raise ValueError(f"there must be at least 2 keyframes, but got {num}")
    _check_values("clean", keys.clean, (num, None, None, None))
    _check_values("points", keys.points, tuple(keys.clean.shape))
    if (keys.space == "clean") != (keys.noise is not None):
        raise ValueError("`noise` belongs to keyframes in clean space, and only to them")
    if keys.noise is not None:
        _check_values("noise", keys.noise, tuple(keys.clean.shape[1:]))
    if keys.autoencoder_error is not None:
        _check_values("autoencoder_error", keys.autoencoder_error, (num,))
    _check_levels(keys.levels, num)


def check_morph(path: MorphPath) -> None:
    """Refuse a path whose fields do not fit together or do not fit its checked keyframes.

    Raises:
        ValueError: Naming the field.
    """
    check_kind(str, metric=path.metric)
    shape, num_gaps = tuple(path.keys.points.shape[1:]), path.keys.num_gaps
    _check_values("points", path.points, (None, *shape))
    _check_values("times", path.times, (len(path),), torch.float64)
    rising = all(a <= b for a, b in pairwise(path.times.tolist()))
    keys = torch.arange(num_gaps + 1, dtype=torch.float64)
    within = len(path) > num_gaps and path.times[0] == 0 and path.times[-1] == num_gaps
    if not (within and rising and (path.times[path.key_indices] - keys).abs().max() <= _NEAR):
        raise ValueError(f"`times` must rise from 0 to {num_gaps} through the keyframes")
    if len(path.geodesics) != num_gaps:
        raise ValueError(
            f"`geodesics` must be one for each of {num_gaps} gaps, but are {len(path.geodesics)}"
        )
    for i, found in enumerate(path.geodesics):
        if found is not None:
            _check_values(f"geodesics[{i}].path", found.path, (None, *shape))
    if path.latents is not None:
        _check_values("latents", path.latents, (len(path), *shape))
    elif path.beyond is not None or path.transported is not None:
        raise ValueError("`beyond` and `transported` belong to a path that was sampled")
    for name in ("beyond", "transported"):
        if getattr(path, name) is not None:
            _check_values(name, getattr(path, name), (None, *shape))
    _check_share("attention_interpolation", path.attention_interpolation)


def _check_levels(levels: Levels, num: int) -> None:
    """Refuse levels that no stage makes for this number of keyframes."""
    schedule, conditions = levels.schedule, levels.conditions
    if not schedule.levels:
        raise ValueError("`levels` must be one or more levels, but are none")
    for level in schedule.levels:
        check_finite(timestep=level.timestep)
        _check_share("alpha", level.alpha, above=True)
        check_finite(sigma=level.sigma)
        if level.sigma <= 0:
            raise ValueError(f"`sigma` must be above 0, but got {level.sigma}")
        check_choice("prediction_type", level.prediction_type, tuple(NOISE_FROM))
    if not all(a > b for a, b in pairwise(schedule.timesteps)):
        raise ValueError(f"timesteps must fall, but are {schedule.timesteps}")
    _check_share("final_abar", schedule.final_abar, above=True)
    for name, one in [*conditions.positive.items(), *(conditions.negative or {}).items()]:
        if one.num_paths != 1 or one.num_knots not in (1, num):
            raise ValueError(
                f"`{name}` must be given for 1 or {num} keyframes of one path, but is given for "
                f"{one.num_knots} of {one.num_paths}"
            )
    loras = conditions.loras or ()
    if any(not lora or lora.keys() != loras[0].keys() for lora in loras):
        raise ValueError("`loras` must be LoRAs of the same modules")


def _check_share(name: str, value: Any, *, above: bool = False) -> None:
    """Refuse what is no number in [0, 1], or with `above` in (0, 1]."""
    check_finite(**{name: value})
    if not 0 <= value <= 1 or (above and value == 0):
        raise ValueError(f"`{name}` must be in {'(' if above else '['}0, 1], but got {value}")


def _check_values(
    name: str, values: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype = torch.float32
) -> None:
    """Refuse a tensor of another shape or dtype, or with values that are not finite.

    Args:
        name: Its name.
        values: The tensor.
        shape: The size of each dimension; None for any.
        dtype: Its dtype.

    Raises:
        ValueError: If it is refused.
    """
    fits = values.ndim == len(shape) and values.dtype == dtype
    if not (fits and all(b in (a, None) for a, b in zip(values.shape, shape, strict=True))):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"`{name}` must be {dtype} of shape ({wanted}), but is {values.dtype} of shape "
            f"{tuple(values.shape)}"
        )
    check_points(**{name: values})
