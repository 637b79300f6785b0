"""Checks of arguments, each a `ValueError` that quotes the call and says what was wanted."""

from __future__ import annotations

import math
import reprlib
from numbers import Integral, Real
from typing import Any

from torch import Tensor


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether it is one finite real number, and no truth value."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_whole(least: int, **values: Any) -> None:
    """All must be whole numbers of at least so much."""
    for name, value in values.items():
        if not (is_whole(value) and value >= least):
            raise ValueError(
                f"`{name}` must be a whole number of at least {least}, but got "
                f"{reprlib.repr(value)}."
            )


def check_finite(**values: Any) -> None:
    """All must be finite real numbers."""
    for name, value in values.items():
        if not is_finite(value):
            raise ValueError(f"`{name}` must be a finite number, but got {reprlib.repr(value)}.")


def check_not_negative(**values: Any) -> None:
    """All must be finite real numbers of at least 0."""
    check_finite(**values)
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"`{name}` must not be negative, but got {value}.")


def check_tensor(**values: Any) -> None:
    """All must be floating-point tensors; their values may be anything."""
    for name, value in values.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(
                f"`{name}` must be a floating-point tensor of finite values, but got "
                f"{value.dtype if isinstance(value, Tensor) else kind_of(value)}."
            )


def check_points(**values: Any) -> None:
    """All must be floating-point tensors of finite values."""
    check_tensor(**values)
    for name, value in values.items():
        if not value.isfinite().all():
            raise ValueError(
                f"`{name}` must be a floating-point tensor of finite values, but "
                f"{tuple(value.shape)} has NaN or infinite ones."
            )


def check_kind(kind: type, **values: Any) -> None:
    """All must be instances of a class."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise ValueError(f"`{name}` must be a {kind.__name__}, but got {kind_of(value)}.")


def check_callable(**values: Any) -> None:
    """All must be functions, or anything else that can be called."""
    for name, value in values.items():
        if not callable(value):
            raise ValueError(f"`{name}` must be a function, but got {kind_of(value)}.")


def kind_of(value: Any) -> str:
    """What a value is, for a message."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
