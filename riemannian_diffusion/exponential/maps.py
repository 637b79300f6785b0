"""The geometry of a metric beyond one geodesic: shooting, its inverse, transport, means.

With `G` the metric, `v` a velocity and `p = G v` its momentum, a geodesic is a path whose momentum
the discrete Euler-Lagrange equations carry from step to step (Marsden and West 2001). For a
pullback metric with embedding `phi` the discrete Lagrangian is the chord's, as in `geodesic`:

    J(x_k)^T (phi(x_{k+1}) - phi(x_k)) = h p_k
    J(x_{k+1})^T (phi(x_{k+1}) - phi(x_k)) = h p_{k+1}

so that only products with `J` and `J^T` are taken. For other metrics it is the midpoint's.
"""

from __future__ import annotations

import copy
import math
import warnings

import torch
from torch import Tensor

from riemannian_diffusion.arguments import (
    check_kind,
    check_not_negative,
    check_points,
    check_whole,
)
from riemannian_diffusion.geodesics import Solver, Start, geodesics
from riemannian_diffusion.metrics import Metric, PullbackMetric, SteinScoreMetric
from riemannian_diffusion.paths import refine

MAX_CORRECTIONS = 50  # of a step of the exponential map


@torch.inference_mode(False)
@torch.no_grad()
def exponential_map(
    metric: Metric, x: Tensor, v: Tensor, *, num_steps: int = 32, rtol: float = 1e-6
) -> Tensor:
    """The geodesic that leaves a point with a velocity, over unit time.

    The integrator is variational: of second order, reversible in time, and its speed oscillates
    within `O(h^2)` without a drift. The metric is inverted by conjugate gradients, that of
    `SteinScoreMetric` in closed form.

    Where data lie on a curved manifold, geodesics of `TangentNormalMetric` and
    `ScoreJacobianMetric` that have left it by rounding go on leaving it, exponentially in the
    angle turned through: to go on along the data itself see `extrapolate`.

    Args:
        metric: The metric.
        x: The point, `shape`.
        v: The velocity, `shape`.
        num_steps: Steps, at least 1.
        rtol: Relative tolerance of the equation solved in each step.

    Returns:
        The path, `(num_steps + 1, *shape)`; its last point is `exp_x(v)`.

    Raises:
        ValueError: If shapes differ, values are not finite, `num_steps` is less than 1, or a step
            is too long for its equation to be solved.
    """
    check_kind(Metric, metric=metric)
    _check_tangent(x, v)
    check_whole(1, num_steps=num_steps)
    check_not_negative(rtol=rtol)
    (x, v), metric, h = own(x, v), _with_gradient(metric), 1 / num_steps
    step = _chord_step if isinstance(metric, PullbackMetric) else _midpoint_step
    points, velocity, momentum = [x], v, _lower(metric, x[None], v[None])[0]
    for k in range(num_steps):
        found = step(metric, points[-1], velocity, momentum, h, rtol)
        if found is None:
            raise ValueError(
                f"exponential_map: step {k + 1} of {num_steps}, {h * float(v.norm()):.3g} long, "
                "could not be solved: take more steps, or a shorter `v`."
            )
        there, momentum = found
        velocity = (there - points[-1]) / h
        points.append(there)
    return torch.stack(points)


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
    """The velocity at a point of the geodesic that reaches another in unit time, `shape`.

    Its norm is the geodesic's length. Read off the first momentum of the path that `geodesic`
    finds, minus the energy's derivative at its start; `exponential_map` with as many steps as this
    path has (and without sub-chords) follows it back to `y`, up to what the solve leaves.

    Args:
        metric: The metric.
        x: The point, `shape`.
        y: The other, `shape`.
        num_points: As in `geodesic`, and so on.
        num_quadrature: As in `geodesic`.
        init: As in `geodesic`.
        solver: As in `geodesic`.
        rtol: As in `geodesic`.
        max_evals: As in `geodesic`.

    Raises:
        ValueError: As `geodesic`, and if no geodesic was found.
    """
    check_points(x=x, y=y)
    x, y = own(x, y)
    options = (num_points, num_quadrature, init, solver, rtol, max_evals)
    return _logarithms(metric, x[None], y[None], *options)[0][0]


@torch.inference_mode(False)
@torch.no_grad()
def parallel_transport(metric: PullbackMetric, path: Tensor, v: Tensor) -> Tensor:
    """Carry a tangent along a path without turning it.

    In the embedding `phi` a tangent is an arrow at a surface. Each step takes it to the next
    tangent space by the isometry nearest to the projection `P`, `G_{k+1} P v = J_{k+1}^T J_k v`:
    its polar factor, to second order `P (3 v - P^T P v) / 2`. This is the transport of the metric's
    Levi-Civita connection to second order in the step; the projection alone, which shortens what
    lies along the path and so turns arrows, is it to first.

    Args:
        metric: A pullback metric.
        path: `(K, *shape)`, with steps short against the bends.
        v: The tangent at the first point, `shape`.

    Returns:
        The tangent at every point, `(K, *shape)`.

    Raises:
        ValueError: If the metric is no pullback, shapes differ or values are not finite.
    """
    if not isinstance(metric, PullbackMetric):
        raise ValueError(
            f"parallel_transport needs a PullbackMetric, but got {type(metric).__name__}."
        )
    check_points(path=path)
    if path.ndim < 2 or len(path) == 0:
        raise ValueError(f"`path` must be finite points (K, *shape), but got {tuple(path.shape)}.")
    _check_tangent(path[0], v)
    path, v = own(path, v)
    tangents = [v]

    def projected(here: Tensor, there: Tensor, v: Tensor) -> Tensor:
        pushed = metric.embed_jvp(here[None], v[None])
        momentum = metric.embed_vjp(there[None], pushed)
        return _raise(metric, there[None], momentum, v[None], 1e-8)[0]

    for here, there in zip(path[:-1], path[1:], strict=True):
        v = tangents[-1]
        back = projected(there, here, projected(here, there, v))
        carried = projected(here, there, 1.5 * v - 0.5 * back)
        size, before = (
            float(metric.norm(x[None], t[None])) for x, t in ((there, carried), (here, v))
        )
        tangents.append(carried * (before / size if size else 1.0))
    return torch.stack(tangents)


@torch.inference_mode(False)
@torch.no_grad()
def frechet_mean(
    metric: Metric,
    points: Tensor,
    weights: Tensor | None = None,
    *,
    init: Tensor | None = None,
    num_points: int = 17,
    num_quadrature: int = 1,
    rtol: float = 1e-3,
    max_steps: int = 20,
    max_evals: int = 200,
) -> Tensor:
    """The point of least mean squared distance from several, `shape` (Karcher 1977).

    Descends by the mean of the logarithms, `x + sum w_i log_x(p_i)`, with the geodesics of all
    points solved side by side, each from the last one's path; a step that raises the mean squared
    distance is halved, and those after it. A warning says where the steps did not suffice.

    Args:
        metric: The metric.
        points: `(N, *shape)`.
        weights: `(N,)`, non-negative, not all 0; normalised here, equal where None.
        init: Where the mean starts, `shape`; None takes the weighted mean of the coordinates. Where
            points are spread over much of a bent manifold that lies off the data: give one of them.
        num_points: Of each geodesic.
        num_quadrature: Of each geodesic.
        rtol: Ends when a step is shorter than this share of the mean distance.
        max_steps: At most.
        max_evals: Of each geodesic.

    Raises:
        ValueError: If points, weights or start are none, or no geodesic was found.
    """
    check_kind(Metric, metric=metric)
    check_points(points=points)
    check_whole(2, num_points=num_points)
    check_whole(1, max_steps=max_steps)
    check_not_negative(rtol=rtol)
    if points.ndim < 2 or len(points) == 0:
        raise ValueError(
            f"`points` must be finite (N, *shape), but they are {tuple(points.shape)}."
        )
    if weights is None:
        weights = points.new_ones(len(points))
    check_points(weights=weights)
    weights = weights.to(points)
    if weights.shape != points.shape[:1] or (weights < 0).any() or not weights.sum() > 0:
        raise ValueError(
            f"`weights` must be ({len(points)},), non-negative and not all 0, but got {weights}."
        )
    if init is not None:
        check_points(init=init)
    if init is not None and init.shape != points.shape[1:]:
        raise ValueError(
            f"`init` must be a finite point {tuple(points.shape[1:])}, but it is "
            f"{tuple(init.shape)}."
        )
    points, weights = own(points, weights)
    weights = (weights / weights.sum()).view(-1, *[1] * (points.ndim - 1))
    mean = (weights * points).sum(0) if init is None else init.detach().to(points)
    start: Start = "lerp"
    least, here, base, step = math.inf, math.inf, mean, torch.zeros_like(mean)
    factor = 1.0
    left = torch.linspace(1, 0, num_points).to(points).view(-1, *[1] * (points.ndim - 1))
    for _ in range(max_steps):
        options = (num_points, num_quadrature, start, None, 0.1 * rtol**2, max_evals)
        logarithms, paths = _logarithms(metric, mean.expand_as(points), points, *options)
        reach = metric.norm(mean.repeat(len(points), *[1] * mean.ndim), logarithms)
        spread = float((weights.flatten() * reach.square()).sum())
        if spread <= (1 + rtol) * least:
            least, base, step = spread, mean, factor * (weights * logarithms).sum(0)
        else:  # too far: half of the step before, and of all to come
            factor, step = factor / 2, step / 2
        here = float(metric.norm(base[None], step[None]))
        if here <= rtol * float((weights.flatten() * reach).sum()):
            return base + step
        start = paths + left * (base + step - mean)  # the ends stay, the start moves along
        mean = base + step
    warnings.warn(
        f"frechet_mean: after `max_steps`={max_steps} a step is still {here:.3g} long: give more "
        "steps, a larger `rtol`, or points nearer to each other.",
        stacklevel=2,
    )
    return base


def _logarithms(
    metric, x: Tensor, y: Tensor, num_points, num_quadrature, init, solver, rtol, max_evals
) -> tuple[Tensor, Tensor]:
    """The logarithms of pairs of points `(P, *shape)`, and the paths `(P, K, *shape)`."""
    options = {"num_points": num_points, "num_quadrature": num_quadrature}
    options |= {"init": init, "solver": solver, "rtol": rtol, "max_evals": max_evals}
    metric = _with_gradient(metric)
    found = geodesics(metric, x, y, **options)
    for one in found:
        if one.status == "nonfinite":
            raise ValueError(f"No geodesic was found: {one.message}")
        if one.status == "rounding" and not _indistinct(metric, one.path[[0, -1]]):
            raise ValueError(f"No geodesic was found: {one.message}")
    paths = torch.stack([one.path for one in found])
    velocities = paths[:, -1] - paths[:, 0]  # where no network can tell the two points apart
    rows = [i for i, one in enumerate(found) if one.status != "rounding"]
    if rows:
        momenta = [_first_momentum(metric, i, paths[i], num_quadrature) for i in rows]
        guess = (paths[rows, 1] - paths[rows, 0]) * (num_points - 1)
        there = metric.along(torch.zeros(len(rows)), torch.tensor(rows))
        velocities[rows] = _raise(
            there, paths[rows, 0], torch.stack(momenta), guess, 0.1 * rtol**0.5
        )
    return velocities, paths


def _first_momentum(metric: Metric, pair: int, path: Tensor, num_quadrature: int) -> Tensor:
    """At the start of a path run through in unit time: minus its energy's derivative there."""
    start = path[0].clone().requires_grad_()
    u = torch.linspace(0, 1 / (len(path) - 1), num_quadrature + 1, dtype=torch.float64)
    there = metric.along(u, torch.full((len(u),), pair))
    with torch.enable_grad():
        first = refine(torch.stack([start, path[1]]), num_quadrature)
        energy = there.energy(first).sum() * (len(path) - 1)
    return -torch.autograd.grad(energy, start)[0]


def _chord_step(metric: PullbackMetric, x, velocity, momentum, h, rtol):
    """The next point and momentum by chords of the embedding, or None."""
    phi = metric.embed(x[None])
    there, scale = x + h * velocity, h * float(momentum.norm())
    before = math.inf
    for _ in range(MAX_CORRECTIONS):
        chord = metric.embed(there[None]) - phi
        missing = h * momentum - metric.embed_vjp(x[None], chord)[0]
        size = float(missing.norm())
        if size <= rtol * scale or _at_rounding(size, before, scale):
            return there, metric.embed_vjp(there[None], chord)[0] / h
        if not size < 10 * before:
            return None
        before = size
        zero = torch.zeros_like(missing)
        there = there + _raise(metric, x[None], missing[None], zero[None], 0.1)[0]
    return None


def _midpoint_step(metric: Metric, x, velocity, momentum, h, rtol):
    """The next point and momentum by the metric at the middle of the step, or None."""
    scale = float(velocity.norm())
    before = math.inf
    for _ in range(MAX_CORRECTIONS):
        middle = x + h / 2 * velocity
        force = _force(metric, middle, velocity)
        changed = momentum + h / 2 * force
        new = _raise(metric, middle[None], changed[None], velocity[None], 0.1 * rtol)[0]
        size, velocity = float((new - velocity).norm()), new
        if size <= rtol * scale or _at_rounding(size, before, scale):
            middle = x + h / 2 * velocity
            lowered = _lower(metric, middle[None], velocity[None])[0]
            return x + h * velocity, lowered + h / 2 * _force(metric, middle, velocity)
        if not size < 10 * before:
            return None
        before = size
    return None


def _at_rounding(size: float, before: float, scale: float) -> bool:
    """A correction that is small and no longer falls: all that the dtype can do."""
    return 0.9 * before <= size <= 1e-3 * scale


def _indistinct(metric: Metric, ends: Tensor) -> bool:
    """Whether a network cannot tell two points apart, so that a straight way is as good as any."""
    embedded = metric.embed(ends).flatten(1)
    return float((embedded[1] - embedded[0]).norm()) <= 4 * metric.rounding * float(
        embedded[0].norm()
    )


def own(*tensors: Tensor) -> list[Tensor]:
    """Copies that autograd may use, in one dtype, float32 at the least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.detach().to(dtype, copy=True) for tensor in tensors]


def _with_gradient(metric: Metric) -> Metric:
    """The metric, differentiable in the point also where its energy is not by choice."""
    if isinstance(metric, SteinScoreMetric) and metric.detach_score:
        metric = copy.copy(metric)
        metric.detach_score = False
    return metric


def _force(metric: Metric, x: Tensor, v: Tensor) -> Tensor:
    """`d/dx 1/2 <v, v>_x`."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        energy = 0.5 * metric.inner(x[None], v[None], v[None]).sum()
    if not energy.requires_grad:  # the same everywhere
        return torch.zeros_like(x)
    return torch.autograd.grad(energy, x)[0]


def _lower(metric: Metric, x: Tensor, v: Tensor) -> Tensor:
    """`G v` of tangents at points, all `(P, *shape)`."""
    if isinstance(metric, PullbackMetric):
        return metric.embed_vjp(x, metric.embed_jvp(x, v))
    v = v.detach().requires_grad_()
    with torch.enable_grad():
        energy = 0.5 * metric.inner(x, v, v).sum()
    return torch.autograd.grad(energy, v)[0]


def _raise(metric: Metric, x: Tensor, p: Tensor, guess: Tensor, rtol: float) -> Tensor:
    """`G^-1 p`, all `(P, *shape)`, in closed form or by conjugate gradients.

    Hestenes and Stiefel (1952), every row by itself; one that is done waits for the others.
    """
    if type(metric).inner is SteinScoreMetric.inner:
        return metric.inverse(x, p)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))

    goal = max(rtol, 100 * torch.finfo(p.dtype).eps) ** 2 * dot(p, p)
    v = guess
    residual = p - _lower(metric, x, v) if guess.any() else p
    direction, square = residual, dot(residual, residual)
    for _ in range(p[0].numel() + 10):
        left = square > goal
        if not left.any():
            break
        image = _lower(metric, x, direction)
        along = dot(direction, image)
        left &= along > 0
        if not left.any():
            break
        step = torch.where(left, square / along, 0.0)
        v, residual = v + step * direction, residual - step * image
        before, square = square, dot(residual, residual)
        direction = residual + torch.where(left, square / before, 0.0) * direction
    return v


def _check_tangent(x: Tensor, v: Tensor) -> None:
    check_points(x=x, v=v)
    if x.shape != v.shape or x.ndim == 0:
        raise ValueError(
            "A point and its tangent must be finite and of one shape, but they are "
            f"{tuple(x.shape)} and {tuple(v.shape)}."
        )
