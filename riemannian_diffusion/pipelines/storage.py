"""Levels as tensors and settings, which files hold, and schedulers as configs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from riemannian_diffusion.levels import Levels, Schedule
from riemannian_diffusion.score import Condition, Conditions, Level

Tensors = dict[str, Tensor]
Settings = dict[str, Any]


def select(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """The tensors whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def pack_levels(levels: Levels) -> tuple[Tensors, Settings]:
    """Levels without their network as tensors and settings."""
    conditions, tensors, kinds = levels.conditions, {}, {}
    for sign in ("positive", "negative"):
        for name, condition in (getattr(conditions, sign) or {}).items():
            tensors[f"{sign}.{name}"] = condition.values
            kinds[f"{sign}.{name}"] = condition.kind
    for i, lora in enumerate(conditions.loras or ()):
        tensors |= {f"lora.{i}.{name}": value for name, value in lora.items()}
    settings = {
        "kinds": kinds,
        "has_negative": conditions.negative is not None,
        "num_loras": len(conditions.loras or ()),
        "options": dict(conditions.options),
        "levels": [list(level) for level in levels.schedule.levels],
        "final_abar": levels.schedule.final_abar,
        "guidance_scale": levels.guidance_scale,
        "guidance_damping": levels.guidance_damping,
        "max_batch_size": levels.max_batch_size,
    }
    return tensors, settings


def unpack_levels(tensors: Mapping[str, Tensor], settings: Settings) -> Levels:
    """The levels again, without a network."""
    signs: dict[str, dict[str, Condition]] = {"positive": {}, "negative": {}}
    for key, kind in settings["kinds"].items():
        sign, _, name = key.partition(".")
        signs[sign][name] = Condition(tensors[key], kind)
    loras = tuple(select(tensors, f"lora.{i}.") for i in range(settings["num_loras"])) or None
    conditions = Conditions(
        signs["positive"],
        signs["negative"] if settings["has_negative"] else None,
        loras,
        dict(settings["options"]),
    )
    schedule = Schedule(
        tuple(Level(*level) for level in settings["levels"]), settings["final_abar"]
    )
    options = ("guidance_scale", "guidance_damping", "max_batch_size")
    return Levels(None, None, schedule, conditions, **{name: settings[name] for name in options})


def check_savable(scheduler: Any) -> None:
    """Refuse a scheduler whose config, which is all that is saved of it, gives other levels.

    Raises:
        ValueError: If it was changed after it was built, or its config has values that JSON cannot
            hold.
    """
    name = type(scheduler).__name__
    try:
        config = json.loads(scheduler.to_json_string())
    except TypeError as error:
        raise ValueError(
            f"The config of this {name} cannot be saved ({error}): build it with numbers and lists."
        ) from error
    again = type(scheduler).from_config(config)
    names = ("alphas_cumprod", "final_alpha_cumprod", "_shift", "sigma_min", "sigma_max")
    for attribute in names:
        ours, theirs = (
            torch.as_tensor(vars(one).get(attribute, 0.0)).double().cpu()
            for one in (scheduler, again)
        )
        if not torch.equal(ours, theirs):
            raise ValueError(
                f"`{attribute.strip('_')}` of this {name} was changed after it was built, and "
                "would be lost in the file: build the scheduler with its values as arguments "
                "(`trained_betas`, `shift`, ...)."
            )
