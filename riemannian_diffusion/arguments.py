"""Checks of arguments. Each raises a `ValueError` that names the argument and what it must be.

Importing this module does not import PyTorch.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import reprlib
import sys
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor. Without PyTorch loaded, nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_finite(value: Any) -> bool:
    """Whether a value is one finite real number; True and False are not."""
    if is_tensor(value) and value.numel() == 1:
        value = value.item()
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def plain(value: Any) -> int | float:
    """A number that `is_whole` or `is_finite` accepts, of any class, as an int or a float.

    Examples:
        >>> from fractions import Fraction
        >>> from riemannian_diffusion.arguments import plain
        >>> plain(2), plain(Fraction(5, 2))
        (2, 2.5)
    """
    if is_tensor(value):
        value = value.item()
    return int(value) if is_whole(value) else float(value)


def check_whole(least: int, **values: Any) -> None:
    """Raise a `ValueError` unless all values are whole numbers of at least `least`."""
    for name, value in values.items():
        if not (is_whole(value) and value >= least):
            raise ValueError(
                f"`{name}` must be a whole number of at least {least}, but got "
                f"{reprlib.repr(value)}."
            )


def check_finite(**values: Any) -> None:
    """Raise a `ValueError` unless all values are finite real numbers."""
    for name, value in values.items():
        if not is_finite(value):
            raise ValueError(f"`{name}` must be a finite number, but got {reprlib.repr(value)}.")


def check_not_negative(**values: Any) -> None:
    """Raise a `ValueError` unless all values are finite real numbers of at least 0."""
    check_finite(**values)
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"`{name}` must not be negative, but got {value}.")


def check_tensor(**values: Any) -> None:
    """Raise a `ValueError` unless all values are floating-point tensors, finite or not."""
    for name, value in values.items():
        if not is_tensor(value) or not value.is_floating_point():
            raise ValueError(
                f"`{name}` must be a floating-point tensor of finite values, but got "
                f"{value.dtype if is_tensor(value) else kind_of(value)}."
            )


def check_points(**values: Any) -> None:
    """Raise a `ValueError` unless all values are floating-point tensors of finite numbers."""
    check_tensor(**values)
    for name, value in values.items():
        if not value.isfinite().all():
            raise ValueError(
                f"`{name}` must be a floating-point tensor of finite values, but "
                f"{tuple(value.shape)} has NaN or infinite ones."
            )


def check_path(path: Any) -> None:
    """Raise a `ValueError` unless `path` is a floating-point tensor of at least 2 points."""
    check_tensor(path=path)
    if path.ndim < 2 or len(path) < 2:
        raise ValueError(
            f"`path` must be at least 2 points (K, *shape), but got {tuple(path.shape)}."
        )


def check_kind(kind: type, **values: Any) -> None:
    """Raise a `ValueError` unless all values are instances of `kind`."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise ValueError(f"`{name}` must be a {kind.__name__}, but got {kind_of(value)}.")


def check_callable(**values: Any) -> None:
    """Raise a `ValueError` unless all values can be called."""
    for name, value in values.items():
        if not callable(value):
            raise ValueError(f"`{name}` must be a function, but got {kind_of(value)}.")


def check_takes(arguments: str, **functions: Any) -> None:
    """Raise a `ValueError` unless all values are functions of positional arguments.

    Args:
        arguments: Their names, such as "x0, x1, num_points".
        **functions: The functions.
    """
    check_callable(**functions)
    for name, function in functions.items():
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # a function without a signature, written in C
            continue
        try:
            signature.bind(*arguments.split(", "))
        except TypeError as error:
            raise ValueError(
                f"`{name}` must be a function of ({arguments}), but it is one of {signature}."
            ) from error


def check_file(**paths: Any) -> None:
    """Raise a `ValueError` unless all values name files, made or not, in folders that exist."""
    for name, path in paths.items():
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"`{name}` must be the path of a file, but got {kind_of(path)}.")
        file = Path(path)
        if file.is_dir():
            raise ValueError(f"`{name}` must be the path of a file, but {file} is a folder.")
        if not file.parent.is_dir():
            raise ValueError(
                f"`{name}` {file} cannot be written, for the folder {file.parent} does not exist: "
                "make it first."
            )


def kind_of(value: Any) -> str:
    """The name of a value's class, for an error message."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def reworded(message: str, names: Mapping[str, str]) -> str:
    """A message with other names in place of the arguments that it quotes.

    Args:
        message: A message that quotes arguments as `name`, `name=value` or name='value'.
        names: The other name of each argument; arguments without one stay.
    """
    message = re.sub(r"`(\w+)`", lambda found: names.get(found[1], found[0]), message)

    def with_value(found: re.Match[str]) -> str:
        return f"{names[found[1]]} {found[2]}" if found[1] in names else found[0]

    message = re.sub(r"`(\w+)=([^`]+)`", with_value, message)
    return re.sub(r"\b(\w+)='(\w+)'", with_value, message)
