"""The exponential map: the geodesic from a point with a given velocity.

Let `G` be the metric, `v` a velocity and `p = G v` its momentum. The discrete Euler-Lagrange
equations give the momentum of a geodesic after each step (Marsden and West 2001). For a pullback
metric with embedding `phi`, the discrete Lagrangian is that of the chord, as in `geodesic`:

    J(x_k)^T (phi(x_{k+1}) - phi(x_k)) = h p_k
    J(x_{k+1})^T (phi(x_{k+1}) - phi(x_k)) = h p_{k+1}

These equations need only products with `J` and `J^T`. Other metrics use the Lagrangian of the
midpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_kind, check_not_negative, check_whole
from riemannian_diffusion.geometry.tangents import check_tangent, own
from riemannian_diffusion.metrics import Metric


@torch.inference_mode(False)
@torch.no_grad()
def exponential_map(
    metric: Metric, x: Tensor, v: Tensor, *, num_steps: int = 32, rtol: float = 1e-6
) -> Tensor:
    """Compute the geodesic that leaves a point with a velocity, over unit time.

    The integrator is variational. It has second order, it is reversible in time, and its speed
    oscillates within `O(h^2)` without a drift. The metric is inverted by conjugate gradients;
    `SteinScoreMetric` has an inverse in closed form.

    Near a curved data manifold, geodesics of `TangentNormalMetric` and `ScoreJacobianMetric` are
    unstable: rounding errors normal to the manifold grow exponentially with the angle through which
    the path turns. Use `extrapolate` to continue a path along the data manifold.

    Args:
        metric: The metric.
        x: The point, `shape`.
        v: The velocity, `shape`.
        num_steps: Number of steps, at least 1.
        rtol: Relative tolerance of the equation that each step solves.

    Returns:
        The path, `(num_steps + 1, *shape)`; its last point is `exp_x(v)`.

    Raises:
        ValueError: If shapes differ, values are not finite, `num_steps` is less than 1, or a step
            is too long for its equation to be solved.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore
        >>> from riemannian_diffusion import TangentNormalMetric
        >>> from riemannian_diffusion import exponential_map
        >>> angles = torch.arange(64, dtype=torch.float64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> metric = TangentNormalMetric(score)
        >>> v = torch.tensor([0.0, 0.5], dtype=torch.float64)  # along the circle, at (1, 0)
        >>> end = exponential_map(metric, circle[0], v)[-1]
        >>> bool((end.norm() - 1).abs() < 0.05)
        True
    """
    check_kind(Metric, metric=metric)
    check_tangent(x, v)
    check_whole(1, num_steps=num_steps)
    check_not_negative(rtol=rtol)
    (x, v), metric, h = own(x, v), metric.differentiable(), 1 / num_steps
    points, velocity, momentum = [x], v, metric.flat(x[None], v[None])[0]
    for k in range(num_steps):
        found = metric.step(points[-1], velocity, momentum, h, rtol)
        if found is None:
            raise ValueError(
                f"exponential_map: step {k + 1} of {num_steps}, {h * float(v.norm()):.3g} long, "
                "could not be solved: give a larger `num_steps` or a shorter `v`."
            )
        point, momentum = found
        velocity = (point - points[-1]) / h
        points.append(point)
    return torch.stack(points)
