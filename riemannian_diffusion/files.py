"""Files that are written atomically, and tensors with settings in safetensors files.

Importing this module does not import PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from riemannian_diffusion.arguments import is_finite, plain
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

    def finite(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: finite(one) for name, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(report), indent=2, allow_nan=False) + "\n"


def save(
    path: str | os.PathLike, kind: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> None:
    """Write tensors and settings to one safetensors file.

    Args:
        path: The file.
        kind: Name of the class of the saved object, such as "Keyframes".
        tensors: The tensors, on any device.
        settings: All other fields, as values that JSON can hold, and numbers of any class.

    Raises:
        ValueError: If JSON cannot hold a setting.
    """
    from safetensors.torch import save_file

    try:
        text = json.dumps(settings, default=_plain)
    except TypeError as error:
        raise ValueError(f"{kind} cannot be saved: {error}.") from error
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    metadata = {"format": FORMAT, "kind": kind, "version": __version__, "settings": text}
    metadata["digest"] = _digest_of_contents(own, metadata)
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
        ValueError: If the file is damaged, holds another class, or is a folder, or if a newer
            version of this library wrote it.
    """
    from safetensors import SafetensorError, safe_open

    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file.")
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
    version = metadata.get("version", "")
    if _release(version) > _release(__version__):
        raise ValueError(
            f"{path} was written by riemannian-diffusion {version}, but {__version__} is "
            "installed: install the newer one."
        )
    try:
        found = unpack(dict(tensors), json.loads(metadata["settings"]))
        if metadata["digest"] != _digest_of_contents(tensors, metadata):
            raise ValueError("its contents have changed since it was written")
    except KeyError as error:
        raise ValueError(f"{path} is damaged: it lacks {error}.") from error
    except (json.JSONDecodeError, *_UNREADABLE) as error:
        raise ValueError(f"{path} is damaged: its settings cannot be read.") from error
    except ValueError as error:
        why = str(error).removesuffix(".")
        raise ValueError(f"{path} is damaged or something else: {why}.") from error
    return found


# What code that reads settings raises if they have another structure than it expects.
_UNREADABLE = (TypeError, AttributeError, IndexError, ArithmeticError, RuntimeError)


def _plain(value: Any) -> int | float:
    """A number of another class, such as one of NumPy, for JSON.

    Raises:
        TypeError: If it is no number.
    """
    if not is_finite(value):
        raise TypeError(f"{type(value).__name__} is no value that JSON can hold")
    return plain(value)


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version, with which the format of files may change."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _digest_of_contents(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Compute a hash of all that a file holds, but for the hash itself."""
    names = sorted(tensors)
    texts = sorted((name, text) for name, text in metadata.items() if name != "digest")
    described = json.dumps([texts, names, fingerprint([tensors[name] for name in names])])
    return hashlib.sha256(described.encode()).hexdigest()


def fingerprint(tensors: Sequence[Tensor]) -> str:
    """Compute a hash of the values, shapes and dtypes of tensors."""
    import torch

    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
