"""The logarithm map: the velocity of the geodesic from one point to another."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_kind, check_points
from riemannian_diffusion.geodesics import Geodesic, Solver, Start, geodesics
from riemannian_diffusion.geometry.tangents import own
from riemannian_diffusion.metrics import Metric
from riemannian_diffusion.paths import smooth
from riemannian_diffusion.score.where import Where


@torch.inference_mode(False)
@torch.no_grad()
def logarithm_map(
    metric: Metric,
    x: Tensor,
    y: Tensor,
    *,
    num_points: int = 33,
    num_quadrature: int = 1,
    init: Start = "lerp",
    solver: Solver | None = None,
    rtol: float = 1e-9,
    max_evals: int = 500,
) -> Tensor:
    """Compute the velocity at `x` of the geodesic that reaches `y` in unit time.

    Its norm in the metric is the length of the geodesic in the metric, up to the tolerance of the
    solve. This does not hold for `LikelyMetric`: its potential changes the speed along the path, so
    the norm is the speed at `x`, and `length` of the path is its length. The velocity follows from
    the first momentum of the path that `geodesic` finds, which is minus the derivative of the
    energy in the first point. With `num_quadrature=1`, `exponential_map` with `num_points - 1`
    steps leads from this velocity back to `y`, up to the tolerance of the solve.

    Args:
        metric: The metric.
        x: The start, `shape`.
        y: The end, `shape`.
        num_points: See `geodesic`.
        num_quadrature: See `geodesic`.
        init: See `geodesic`.
        solver: See `geodesic`.
        rtol: See `geodesic`.
        max_evals: See `geodesic`.

    Returns:
        The velocity, `shape`.

    Raises:
        ValueError: As in `geodesic`, or if no geodesic was found.

    Warns:
        UserWarning: If the geodesic has not converged, or leaves the data.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore
        >>> from riemannian_diffusion import TangentNormalMetric
        >>> from riemannian_diffusion import exponential_map
        >>> from riemannian_diffusion import logarithm_map
        >>> angles = torch.arange(64, dtype=torch.float64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> metric = TangentNormalMetric(score)
        >>> v = logarithm_map(metric, circle[0], circle[5])
        >>> bool((exponential_map(metric, circle[0], v)[-1] - circle[5]).norm() < 0.01)
        True
    """
    check_kind(Metric, metric=metric)
    check_points(x=x, y=y)
    x, y = own(x, y)
    options = (num_points, num_quadrature, init, solver, rtol, max_evals)
    velocities, _, found = logarithms(metric, x[None], y[None], *options)
    caution = caution_of(found)
    if caution is not None:
        warnings.warn(f"logarithm_map: {caution}", stacklevel=4)  # past two decorators
    return velocities[0]


def caution_of(found: Sequence[Geodesic]) -> str | None:
    """What is wrong with geodesics that have not converged or leave the data, else None."""
    wrong = [one for one in found if one.status == "max_evals" or one.on_data is False]
    if not wrong:
        return None
    return f"{len(wrong)} of {len(found)} geodesics may be wrong. {wrong[0].message}"


def logarithms(
    metric: Metric,
    x: Tensor,
    y: Tensor,
    num_points: int,
    num_quadrature: int,
    init: Start,
    solver: Solver | None,
    rtol: float,
    max_evals: int,
) -> tuple[Tensor, Tensor, list[Geodesic]]:
    """Velocities `(P, *shape)` at `x` of geodesics from `x` to `y`, their nodes, and the geodesics.

    The points `x` and `y` are `(P, *shape)`, and the nodes are `(P, K, *shape)`.
    """
    metric = metric.differentiable()
    found = geodesics(
        metric,
        x,
        y,
        num_points=num_points,
        num_quadrature=num_quadrature,
        init=init,
        solver=solver,
        rtol=rtol,
        max_evals=max_evals,
    )
    for pair, one in enumerate(found):
        straight = one.status == "rounding" and metric.is_straight(
            *(one.path[0], one.path[-1], Where([0.0, 1.0], pair))
        )
        if one.status in ("nonfinite", "rounding") and not straight:
            raise ValueError(f"No geodesic was found: {one.message}")
    paths = torch.stack([one.nodes for one in found])
    velocities = paths[:, -1] - paths[:, 0]  # kept where rounding errors hide the path
    rows = [i for i, one in enumerate(found) if one.status != "rounding"]
    if rows:
        momenta = [_first_momentum(metric, i, paths[i], num_quadrature) for i in rows]
        guess = (paths[rows, 1] - paths[rows, 0]) * (num_points - 1)
        where = Where([0.0] * len(rows), rows)
        velocities[rows] = metric.sharp(
            paths[rows, 0], torch.stack(momenta), where, guess=guess, rtol=0.1 * rtol**0.5
        )
    return velocities, paths, found


def _first_momentum(metric: Metric, pair: int, path: Tensor, num_quadrature: int) -> Tensor:
    """Momentum at the start of a path: minus the derivative of its energy in the first point."""
    start, num = path[0].clone().requires_grad_(), len(path) - 1
    reach = 1 if num_quadrature == 1 else min(2, num)  # the segments that the first point bends
    u = torch.linspace(0, reach / num, reach * num_quadrature + 1, dtype=torch.float64)
    with torch.enable_grad():
        first = smooth(torch.cat([start[None], path[1:4]]), num_quadrature)[: len(u)]
        energy = metric.energy(first, Where(u, pair)).sum() * num / reach
    return -torch.autograd.grad(energy, start)[0]
