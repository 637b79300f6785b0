"""Keyframes and paths in safetensors files: tensors, and settings as JSON in the metadata."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from riemannian_diffusion.levels import Levels, Schedule
from riemannian_diffusion.media import write_atomically
from riemannian_diffusion.runtime import __version__
from riemannian_diffusion.score import Condition, Conditions, Level

FORMAT = "riemannian_diffusion"

Tensors = dict[str, Tensor]
Settings = dict[str, Any]
T = TypeVar("T")


def save(path: str | os.PathLike, kind: str, tensors: Mapping[str, Tensor], settings: Settings):
    """Write tensors and settings to one safetensors file, under a temporary name first.

    Args:
        path: The file.
        kind: What it holds, such as "Keyframes".
        tensors: The tensors, on any device.
        settings: Everything else, plain values that JSON can hold.

    Raises:
        ValueError: If a setting is not plain.
    """
    try:
        text = json.dumps(settings)
    except TypeError as error:
        raise ValueError(f"{kind} cannot be saved: {error}.") from error
    metadata = {"format": FORMAT, "kind": kind, "version": __version__, "settings": text}
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_atomically(Path(path), lambda file: save_file(own, file, metadata))


def load(path: str | os.PathLike, kind: str, unpack: Callable[[Tensors, Settings], T]) -> T:
    """Read what `save` wrote, on the CPU.

    Args:
        path: The file.
        kind: What it must hold, such as "Keyframes".
        unpack: Tensors and settings -> what they were made of.

    Returns:
        What `unpack` returns.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or holds something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # copies are aligned in memory, on which the last bits of a product can depend
            tensors = {n: file.get_tensor(n).clone() for n in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no safetensors file ({error}).") from error
    if metadata.get("format") != FORMAT or metadata.get("kind") != kind:
        found = metadata.get("kind", "something else")
        raise ValueError(f"{path} holds {found}, not {kind}: it was not written by {kind}.save.")
    try:
        return unpack(tensors, json.loads(metadata["settings"]))
    except KeyError as error:
        raise ValueError(f"{path} is damaged: it lacks {error}.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: its settings cannot be read.") from error


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
        settings["options"],
    )
    schedule = Schedule(
        tuple(Level(*level) for level in settings["levels"]), settings["final_abar"]
    )
    options = ("guidance_scale", "guidance_damping", "max_batch_size")
    return Levels(None, None, schedule, conditions, **{name: settings[name] for name in options})


def digest_of(modules: Sequence[nn.Module | None], *described: Any) -> str:
    """A hash of networks, and of whatever else can be described in JSON.

    At most 2,047 entries of each weight are read, evenly spread: another network differs in them.
    """
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for module in modules:
        if module is None:
            continue
        for name, weight in module.state_dict().items():
            entries = weight.flatten()[:: max(1, weight.numel() // 1024)].cpu().contiguous()
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(entries.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
