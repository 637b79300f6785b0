"""Packages whose names are imported from their submodules on first access (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.util import find_spec


def lazy_names(
    package: str,
    names: Mapping[str, Sequence[str]],
    importing: Callable[[], AbstractContextManager] = nullcontext,
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Build `__getattr__` and `__dir__` for a package that imports its names lazily.

    Submodules that are not imported yet can also be accessed as attributes of the package.

    Args:
        package: `__name__` of the package.
        names: For each submodule, the public names that it defines.
        importing: Makes the context in which submodules are imported.
    """
    modules = {name: module for module, group in names.items() for name in group}

    def getattr_(name: str) -> object:
        if name in modules:
            with importing():
                value = getattr(import_module(f"{package}.{modules[name]}"), name)
            setattr(sys.modules[package], name, value)  # later accesses do not call this function
            return value
        if not name.startswith("_") and find_spec(f"{package}.{name}") is not None:
            with importing():
                return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return getattr_, dir_
