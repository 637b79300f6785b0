"""Copies and checks of points and tangents."""

from __future__ import annotations

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_points
from riemannian_diffusion.metrics import Metric


def own(*tensors: Tensor) -> list[Tensor]:
    """Copies of tensors that autograd may use, in one dtype, which is at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.detach().to(dtype, copy=True) for tensor in tensors]


def check_tangent(x: Tensor, v: Tensor) -> None:
    """Raise a `ValueError` if a point and its tangent are not finite or differ in shape."""
    check_points(x=x, v=v)
    if x.shape != v.shape or x.ndim == 0:
        raise ValueError(
            "A point and its tangent must be finite and of one shape, but they are "
            f"{tuple(x.shape)} and {tuple(v.shape)}."
        )


def paced_norm(metric: Metric, x: Tensor, v: Tensor) -> Tensor:
    """The length of a tangent, `shape`: flat if the metric paces geodesics by flat length."""
    return v.norm() if metric.flat_pace else metric.norm(x[None], v[None])[0]
