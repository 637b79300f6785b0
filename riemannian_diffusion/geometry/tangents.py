"""Tangents and their momenta: the flat map `v -> G v`, the sharp map `p -> G^-1 p`, the force."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_points
from riemannian_diffusion.metrics import Metric, PullbackMetric, SteinScoreMetric


def own(*tensors: Tensor) -> list[Tensor]:
    """Copies that autograd may use, all in one dtype, which is at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.detach().to(dtype, copy=True) for tensor in tensors]


def with_gradient(metric: Metric) -> Metric:
    """The metric with a gradient in the point, also if its energy leaves the gradient out."""
    if isinstance(metric, SteinScoreMetric) and metric.detach_score:
        metric = copy.copy(metric)
        metric.detach_score = False
    return metric


def force(metric: Metric, x: Tensor, v: Tensor) -> Tensor:
    """Derivative `d/dx 1/2 <v, v>_x` at one point, `shape`."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        energy = 0.5 * metric.inner(x[None], v[None], v[None]).sum()
    if not energy.requires_grad:  # the metric is the same at every point
        return torch.zeros_like(x)
    return torch.autograd.grad(energy, x)[0]


def flat(metric: Metric, x: Tensor, v: Tensor) -> Tensor:
    """Momenta `G v` of tangents `v` at points `x`, all `(P, *shape)`."""
    if isinstance(metric, PullbackMetric):
        return metric.embed_vjp(x, metric.embed_jvp(x, v))
    v = v.detach().requires_grad_()
    with torch.enable_grad():
        energy = 0.5 * metric.inner(x, v, v).sum()
    return torch.autograd.grad(energy, v)[0]


def sharp(metric: Metric, x: Tensor, p: Tensor, guess: Tensor, rtol: float) -> Tensor:
    """Tangents `G^-1 p`, all `(P, *shape)`, in closed form or by conjugate gradients.

    The conjugate gradients (Hestenes and Stiefel 1952) run on each row by itself; a row that has
    converged waits for the others.
    """
    if isinstance(metric, SteinScoreMetric) and type(metric).inner is SteinScoreMetric.inner:
        return metric.inverse(x, p)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))

    goal = max(rtol, 100 * torch.finfo(p.dtype).eps) ** 2 * dot(p, p)
    v = guess
    residual = p - flat(metric, x, v) if guess.any() else p
    direction, square = residual, dot(residual, residual)
    for _ in range(p[0].numel() + 10):
        left = square > goal
        if not left.any():
            break
        image = flat(metric, x, direction)
        along = dot(direction, image)
        left &= along > 0
        if not left.any():
            break
        step = torch.where(left, square / along, 0.0)
        v, residual = v + step * direction, residual - step * image
        before, square = square, dot(residual, residual)
        direction = residual + torch.where(left, square / before, 0.0) * direction
    return v


def check_tangent(x: Tensor, v: Tensor) -> None:
    """Refuse a point and a tangent that are not finite or differ in shape."""
    check_points(x=x, v=v)
    if x.shape != v.shape or x.ndim == 0:
        raise ValueError(
            "A point and its tangent must be finite and of one shape, but they are "
            f"{tuple(x.shape)} and {tuple(v.shape)}."
        )
