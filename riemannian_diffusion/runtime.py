"""Device, dtype and versions. Importing this module does not import PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__version__ = "0.1.0"


def first_device() -> str:
    """Name of the fastest device that PyTorch finds: "cuda", "mps" or "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: object) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: If nothing can be computed on it.
    """
    import torch

    try:
        torch.zeros(1, device=str(device)).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used: {error}") from error


def default_dtype(device: object) -> str:
    """Name of the default dtype of networks on a device: "float16" on CUDA, else "float32".

    With float16 the search direction of the solver deviates by less than a quarter of a degree from
    that of float64. With bfloat16 it deviates by several degrees (`benchmarks/precision.py`). Both
    are slow on a CPU.
    """
    return "float16" if str(device).startswith("cuda") else "float32"


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of the given packages, by name; missing packages are left out."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Drop what Transformers logs while its modules are imported.

    Without torchvision it recommends torchvision, which nothing here needs.
    """
    import logging

    logger = logging.getLogger("transformers.utils.import_utils")

    def drop(_: logging.LogRecord) -> bool:
        return False

    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)
