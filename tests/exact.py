"""Exact answers: derivatives without autograd and spaces with geodesics in closed form."""

from __future__ import annotations

import torch
from torch.autograd.functional import jacobian

from riemannian_diffusion import Metric


@torch.no_grad()
def central_difference(function, x, v, h):
    """The derivative of `function` at `x` along `v`, of fourth order in `h`."""
    near = (function(x + h * v) - function(x - h * v)) / (2 * h)
    far = (function(x + 2 * h * v) - function(x - 2 * h * v)) / (4 * h)
    return (4 * near - far) / 3


def dense_jacobian(function, x):
    """The Jacobians `(K, d, d)` of a function of single points at the points `(K, *shape)`."""
    d = x[0].numel()
    blocks = [jacobian(lambda p: function(p[None])[0], point) for point in x]
    return torch.stack([block.reshape(d, d) for block in blocks])


def to_sphere(x):
    """The nearest points of the unit sphere about the origin."""
    return x / x.norm(dim=-1, keepdim=True)


class HalfPlane(Metric):
    """The hyperbolic plane, points (x, y) with y > 0: geodesics are half circles about y = 0."""

    def inner(self, x, u, v):
        return (u * v).sum(1) / x[:, 1].square()


def hyperbolic_distance(x, y):
    """The distance of points of the hyperbolic plane, `(..., 2)` each."""
    square = (x - y).square().sum(-1)
    return torch.acosh(1 + square / (2 * x[..., 1] * y[..., 1]))
