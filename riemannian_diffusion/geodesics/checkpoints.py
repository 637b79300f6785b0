"""Checkpoints: the state of a solve in one file of tensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riemannian_diffusion.files import write_atomically
from riemannian_diffusion.geodesics.outcome import Geodesic

_TENSOR, _GEODESIC = "tensor", "geodesic"  # JSON keys that mark tensors and geodesics
_FORMAT = "3"  # changes with the state of the solver


def save(path: Path, problem: Mapping[str, Any], state: Any) -> None:
    """Write the state of a solve to a file, atomically.

    Args:
        path: The safetensors file.
        problem: Description of the problem: JSON values by name.
        state: Nested dicts with strings as keys, lists, numbers, strings, None, tensors and
            geodesics.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    tree = _packed(state, tensors)
    metadata = {"problem": json.dumps(problem), "state": json.dumps(tree), "format": _FORMAT}
    write_atomically(path, lambda file: save_file(tensors, file, metadata))


def load(path: Path, problem: Mapping[str, Any], device: torch.device) -> Any:
    """Read the state of a solve from a file; None if the file does not exist.

    Args:
        path: The safetensors file.
        problem: Description of the problem, as in `save`.
        device: Device of the tensors.

    Raises:
        ValueError: If the file is no checkpoint, or belongs to another problem or version.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
        found, tree = json.loads(metadata["problem"]), json.loads(metadata["state"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"`checkpoint` {path} is no checkpoint of a solve: give another path."
        ) from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"`checkpoint` {path} was written by another version of this library: delete the file, "
            "or give another path."
        )
    wanted = json.loads(json.dumps(problem))
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing or len(found) != len(wanted):
        raise ValueError(
            f"`checkpoint` {path} belongs to another problem: its {', '.join(differing)} "
            "are different. Delete the file, or give another path."
        )
    return _unpacked(tree, tensors)


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: name, "on_cpu": value.device.type == "cpu"}
    if isinstance(value, Geodesic):
        return {_GEODESIC: _packed(list(value.to_tensors()), tensors)}
    if isinstance(value, Mapping):
        return {"items": {key: _packed(one, tensors) for key, one in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_packed(one, tensors) for one in value]
    return value


def _unpacked(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpacked(one, tensors) for one in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        tensor = tensors[tree[_TENSOR]]
        return tensor.cpu() if tree["on_cpu"] else tensor
    if _GEODESIC in tree:
        return Geodesic.from_tensors(*_unpacked(tree[_GEODESIC], tensors))
    return {key: _unpacked(one, tensors) for key, one in tree["items"].items()}
