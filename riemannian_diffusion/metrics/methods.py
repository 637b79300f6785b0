"""The methods that a class of metrics defines: places reach them, and their results are checked."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import isfunction
from typing import Any

import torch
from torch import Tensor

from riemannian_diffusion.arguments import kind_of
from riemannian_diffusion.metrics.energies import served
from riemannian_diffusion.score.model import accepts_places
from riemannian_diffusion.score.where import Where


def prepare_methods(cls: type) -> None:
    """Let `energy` of a new class of metrics take places, and check what others return.

    Its `inner` and `embed` then raise a `ValueError` if they return another shape than they must,
    or values that PyTorch cannot differentiate.
    """
    own = vars(cls).get("energy")
    if own is not None and not accepts_places(own):

        def energy(self, path: Tensor, where: Where | None = None) -> Tensor:
            return own(self if where is None else served(self, where), path)

        energy.__doc__ = own.__doc__
        setattr(cls, "energy", energy)  # noqa: B010
    for name, checked in (("inner", _checked_inner), ("embed", _checked_embed)):
        method = vars(cls).get(name)
        if isfunction(method) and not getattr(method, "__isabstractmethod__", False):
            setattr(cls, name, checked(method))


def _checked_inner(method: Callable[..., Any]) -> Callable[..., Tensor]:
    """A method `inner` that returns a number for each point, differentiable in the tangents."""

    @wraps(method)
    def inner(self, x: Tensor, u: Tensor, v: Tensor, *args: Any, **options: Any) -> Tensor:
        found = method(self, x, u, v, *args, **options)
        num = max(len(x), len(u), len(v))
        if not isinstance(found, Tensor) or found.shape != (num,):
            raise ValueError(
                f"`inner` of {kind_of(self)} must give one number for each of {num} points, "
                f"({num},), but gave {_shown(found)}."
            )
        watched = torch.is_grad_enabled() and (u.requires_grad or v.requires_grad)
        if watched and not found.requires_grad and found.any():
            raise _undifferentiable(self, "inner", "tangents")
        return found

    return inner


def _checked_embed(method: Callable[..., Any]) -> Callable[..., Tensor]:
    """A method `embed` that returns a row for each point, differentiable unless all are equal."""

    @wraps(method)
    def embed(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        found = method(self, x, *args, **options)
        if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(x):
            raise ValueError(
                f"`embed` of {kind_of(self)} must give a row for each of {len(x)} points, "
                f"({len(x)}, *embedding shape), but gave {_shown(found)}."
            )
        watched = torch.is_grad_enabled() and x.requires_grad
        if watched and not found.requires_grad and (found != found[:1]).any():
            raise _undifferentiable(self, "embed", "points")
        return found

    return embed


def _undifferentiable(metric: Any, name: str, what: str) -> ValueError:
    return ValueError(
        f"`{name}` of {kind_of(metric)} must be differentiable in the {what} by PyTorch: compute "
        "it by operations on tensors, without `detach`, `no_grad` or NumPy."
    )


def _shown(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else kind_of(value)
