"""Files that are written atomically, and tensors with settings in safetensors files.

Importing this module does not import PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from riemannian_diffusion.runtime import __version__

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = "riemannian_diffusion"

T = TypeVar("T")

_unfinished: set[Path] = set()


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Name a temporary file or folder, and delete it at the end if it is still there.

    `delete_unfinished` deletes it before the process is ended at once.
    """
    _unfinished.add(path)
    try:
        yield path
    finally:
        _delete(path)
        _unfinished.discard(path)


def delete_unfinished() -> None:
    """Delete all temporary files and folders that are being written."""
    for path in [*_unfinished]:
        _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary path beside `path`, then move the file to `path`.

    Raises:
        OSError: If `path` is a folder, or its own folder does not exist.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: make it first.")
    with unfinished(path.with_name(f".{os.getpid()}-{path.name}")) as temporary:
        write(temporary)
        temporary.replace(path)


def as_json(report: Any) -> str:
    """A report as the text of a JSON file; numbers that are not finite become null.

    Examples:
        >>> from riemannian_diffusion.files import as_json
        >>> as_json([1.5, float("nan")]).split()
        ['[', '1.5,', 'null', ']']
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(one) for name, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(report), indent=2, allow_nan=False) + "\n"


def save(
    path: str | os.PathLike, kind: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> None:
    """Write tensors and settings to one safetensors file.

    Args:
        path: The file.
        kind: Name of the class of the saved object, such as "Keyframes".
        tensors: The tensors, on any device.
        settings: All other fields, as values that JSON can hold.

    Raises:
        ValueError: If JSON cannot hold a setting.
    """
    from safetensors.torch import save_file

    try:
        text = json.dumps(settings)
    except TypeError as error:
        raise ValueError(f"{kind} cannot be saved: {error}.") from error
    metadata = {"format": FORMAT, "kind": kind, "version": __version__, "settings": text}
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_atomically(Path(path), lambda file: save_file(own, file, metadata))


def load(
    path: str | os.PathLike,
    kind: str,
    unpack: Callable[[dict[str, Tensor], dict[str, Any]], T],
) -> T:
    """Read a file that `save` wrote.

    Args:
        path: The file.
        kind: Name of the class that the file must hold, such as "Keyframes".
        unpack: A function that makes the object from the tensors, on the CPU, and the settings.

    Returns:
        The object that `unpack` returns.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or holds another class.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # The copies are aligned in memory. The last bits of a product can depend on that.
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


def digest_of(modules: Sequence[nn.Module | None], *described: Any) -> str:
    """Compute a hash of networks and of values.

    It reads at most 2,047 evenly spread entries of each weight, which suffices to tell networks
    apart.

    Args:
        modules: The networks; entries that are None are left out.
        described: Values that JSON can hold; others are described by `str`.
    """
    import torch

    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for module in modules:
        if module is None:
            continue
        weights = module.state_dict()
        if any(weight.is_meta for weight in weights.values()):  # they are offloaded one by one
            from accelerate.utils.modeling import get_state_dict_offloaded_model

            weights = get_state_dict_offloaded_model(module)
        for name, weight in sorted(weights.items()):
            entries = weight.flatten()[:: max(1, weight.numel() // 1024)].cpu().contiguous()
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(entries.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
