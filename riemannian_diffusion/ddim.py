"""Deterministic DDIM between noise levels, forwards and backwards (Song et al., arXiv 2010.02502).

In the coordinates `z = x / alpha` and `tau = sigma / alpha`, a DDIM step is the Euler step
`z' = z + (tau' - tau) eps`. Sampling evaluates `eps` at the start of its step. Inversion must undo
exactly that step, so it evaluates `eps` at the end of its own step. This is an implicit equation.
Its first guess extrapolates `eps` from the last two levels; Anderson acceleration (Walker and Ni,
SIAM J. Numer. Anal. 49, 2011) solves it where that guess is not good enough, which is at the two or
three cleanest levels. For a rectified flow, `x = (1 - t) x_0 + t eps`, the same formula is the
Euler step along the velocity `v`, `x' = x + (t' - t) v`.

For the exact model of a Gaussian mixture, each step of sampling is a strictly monotone map, so the
equation has one root at most. But plain fixed-point iteration need not find it: between modes, at
clean levels, it diverges. A small residual is also no proof of a small round-trip error, because
later steps of sampling can amplify it. So points about which there is doubt are sampled back.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from riemannian_diffusion.arguments import (
    check_callable,
    check_kind,
    check_not_negative,
    check_points,
    check_tensor,
    check_whole,
    is_finite,
)
from riemannian_diffusion.score import ScoreModel, Where

Levels = Callable[[float], ScoreModel]
Factors = tuple[float, float]  # of the data and of the noise at a level

MAX_ITERATIONS = 20  # evaluations per step after the first, where their number is not given
MEMORY = 2  # former iterates that Anderson acceleration uses
RIDGE = 1e-6  # keeps its least squares regular, relative to the columns of the matrix
DOUBT = 0.01  # a larger residual after the last iteration makes a point doubtful
DOUBT_AT_FIRST = 0.05  # so does a larger residual of an extrapolated guess
POOR = 0.01  # a doubtful point with a larger round-trip error is also inverted without iterations
FAILED = 0.05  # a larger round-trip error is worth a warning


def ddim_step(x: Tensor, eps: Tensor, abar_from: float, abar_to: float) -> Tensor:
    """Take one deterministic step between two noise levels, in either direction.

    Args:
        x: Points `(K, *shape)` at the level `abar_from`.
        eps: The predicted noise, `(K, *shape)`.
        abar_from: Squared factor of the clean data at the start of the step, in (0, 1].
        abar_to: Squared factor of the clean data at the end of the step, in (0, 1].

    Returns:
        Points `(K, *shape)` at the level `abar_to`.

    Raises:
        ValueError: If a level lies outside (0, 1], or the shapes differ.
    """
    check_tensor(x=x, eps=eps)
    if x.shape != eps.shape:
        raise ValueError(
            f"`x` and `eps` must have one shape, but got {tuple(x.shape)} and {tuple(eps.shape)}."
        )
    return _step(x, eps, _factors("abar_from", abar_from), _factors("abar_to", abar_to))


def invert(
    model: Levels,
    x: Tensor,
    timesteps: Iterable[float],
    *,
    final_abar: float = 1.0,
    fixed_point_iterations: int | None = None,
    tol: float = 1e-3,
    where: Where | None = None,
) -> Tensor:
    """Turn clean points into the noise from which `sample` returns them.

    Points that have converged are not evaluated again. Points about which there is doubt are
    sampled back. Those that come back with an error above 1% are also inverted without iterations,
    and the better of the two results is returned.

    Args:
        model: A function that takes a timestep and returns the score model at that level.
        x: Clean points `(K, *shape)`.
        timesteps: The timesteps of the noisy levels to visit, in any order.
        final_abar: Squared factor of the data at the clean level: 1, or the scheduler's
            `final_alpha_cumprod`.
        fixed_point_iterations: Evaluations per step after the first guess, at least 0. None takes
            as many as each point needs to reach `tol`, at most 20. With 0 this is the usual
            approximate inversion, which evaluates `eps` at the start of its step.
        tol: Where `fixed_point_iterations` is None: the residual at which the iteration of a step
            ends, non-negative. The residual is the distance between the point from which the step
            starts and the point to which sampling returns, relative to the norm of that point.
        where: The places of the points on their paths, for scores that change along the path.

    Returns:
        Points `(K, *shape)` at the noisiest of the timesteps.

    Raises:
        ValueError: If an argument is out of range, or `model` does not return score models.

    Warns:
        UserWarning: If points were sampled back and missed their clean points by more than 5% of
            their norm.
    """
    steps = _inversion(model, x, timesteps, final_abar, fixed_point_iterations, tol, where)
    points, errors = deque(steps, maxlen=1).pop()
    failed = int((errors > FAILED).sum())
    if failed:
        warnings.warn(
            f"{failed} of {len(x)} points were not inverted well: sampled back, they miss their "
            f"clean points by up to {float(errors.max()):.0%} of their norm; use more timesteps or "
            "a lower noise level.",
            stacklevel=2,
        )
    return points


def sample(
    model: Levels,
    x: Tensor,
    timesteps: Iterable[float],
    *,
    final_abar: float = 1.0,
    where: Where | None = None,
) -> Tensor:
    """Turn noisy points into clean points.

    Args:
        model: As in `invert`.
        x: Points `(K, *shape)` at the noisiest of the timesteps.
        timesteps: As in `invert`.
        final_abar: As in `invert`.
        where: As in `invert`.

    Returns:
        Clean points `(K, *shape)`.

    Raises:
        ValueError: As in `invert`.
    """
    steps = sample_steps(model, x, timesteps, final_abar=final_abar, where=where)
    return deque(steps, maxlen=1).pop()


def sdedit(
    model: Levels,
    x: Tensor,
    timesteps: Iterable[float],
    *,
    final_abar: float = 1.0,
    generator: torch.Generator | None = None,
    where: Where | None = None,
) -> Tensor:
    """Add noise to clean points and sample back: SDEdit (Meng et al., arXiv 2108.01073).

    Args:
        model: As in `invert`.
        x: Clean points `(K, *shape)`.
        timesteps: The timesteps of the noisy levels to visit, in any order. The added noise is that
            of the noisiest level.
        final_abar: As in `invert`.
        generator: Source of the noise.
        where: As in `invert`.

    Returns:
        Samples of the model near the given points, `(K, *shape)`. More noise moves them farther.

    Raises:
        ValueError: As in `invert`.
    """
    check_points(x=x)
    levels = _checked(timesteps)
    level = _level(model, levels[-1])
    if generator is not None:
        check_kind(torch.Generator, generator=generator)
    device = x.device if generator is None else generator.device
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
    noisy = level.alpha * x + level.sigma * noise
    return sample(model, noisy, levels, final_abar=final_abar, where=where)


def invert_steps(
    model: Levels,
    x: Tensor,
    timesteps: Iterable[float],
    *,
    final_abar: float = 1.0,
    fixed_point_iterations: int | None = None,
    tol: float = 1e-3,
    where: Where | None = None,
) -> Iterator[Tensor]:
    """Yield the points of `invert` after each of its steps, without its warning."""
    steps = _inversion(model, x, timesteps, final_abar, fixed_point_iterations, tol, where)
    for points, _ in steps:
        yield points


def sample_steps(
    model: Levels,
    x: Tensor,
    timesteps: Iterable[float],
    *,
    final_abar: float = 1.0,
    where: Where | None = None,
) -> Generator[Tensor, Tensor | None, None]:
    """Yield the points of `sample` after each of its steps.

    If the caller sends points back to the generator, the next step starts from them.
    """
    check_points(x=x)
    levels = _checked(timesteps)[::-1]
    for i, timestep in enumerate(levels):
        level, target = _level(model, timestep), _factors("final_abar", final_abar)
        if i + 1 < len(levels):
            following = _level(model, levels[i + 1])
            target = following.alpha, following.sigma
        x = _step(x, -level.sigma * level(x, where), (level.alpha, level.sigma), target)
        sent = yield x
        x = x if sent is None else sent


def _inversion(
    model: Levels,
    clean: Tensor,
    timesteps: Iterable[float],
    final_abar: float,
    fixed_point_iterations: int | None,
    tol: float,
    where: Where | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the points and their errors `(K,)` after each step of `invert`.

    The error of a point is the largest residual of its steps. After the last step, it is the
    round-trip error of the points that were sampled back, relative to their norm.
    """
    check_points(x=clean)
    check_not_negative(tol=tol)
    if fixed_point_iterations is not None:
        check_whole(0, fixed_point_iterations=fixed_point_iterations)
        tol = 0.0
    explicit = fixed_point_iterations == 0
    num = MAX_ITERATIONS if fixed_point_iterations is None else fixed_point_iterations
    x, current = clean, _factors("final_abar", final_abar)
    errors = clean.new_zeros(len(clean))
    doubtful = errors > 0
    noises: list[tuple[float, Tensor]] = []  # sigma / alpha and eps of the last two levels
    visited: dict[float, ScoreModel] = {}
    pending = _checked(timesteps)
    for timestep in pending:
        level = visited[timestep] = _level(model, timestep)
        target = level.alpha, level.sigma
        ratio = level.sigma / level.alpha
        guess = x
        if noises and not explicit:
            guess = _step(x, _extrapolated(noises, ratio), current, target)
        found = _solve(_ImplicitStep(level, x, current, where), guess, num, tol)
        if not explicit:
            errors = errors.maximum(found.residual)
            doubtful = doubtful | (found.residual > DOUBT)
            if len(noises) == 2:
                doubtful = doubtful | (found.first_residual > DOUBT_AT_FIRST)
        x, current = found.points, target
        noises = [*noises[-1:], (ratio, found.noise)]
        if len(visited) == len(pending) and doubtful.any():
            which = doubtful.nonzero()[:, 0]
            here = None if where is None else where[which]
            better, error = _better(visited, clean[which], x[which], final_abar, here)
            x, errors = x.index_copy(0, which, better), errors.index_copy(0, which, error)
        yield x, errors


def _extrapolated(noises: list[tuple[float, Tensor]], ratio: float) -> Tensor:
    """The noise at a level, on the line through those of the last two levels."""
    last, noise = noises[-1]
    if len(noises) == 1:
        return noise
    before, other = noises[-2]
    return noise + (ratio - last) / (last - before) * (noise - other)


@dataclass(frozen=True, eq=False)
class _ImplicitStep:
    """The equation `p = step(x, eps(p))` of one step of inversion.

    Attributes:
        level: The level where the step ends.
        x: Points where it starts, `(K, *shape)`.
        start: Factors of data and noise where it starts.
        where: The places of the points, or None.
    """

    level: ScoreModel
    x: Tensor
    start: Factors
    where: Where | None

    def __call__(self, points: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate `eps` at some of the points.

        Returns:
            The noise and the change `step(x, eps(p)) - p`, like `points`, and the residual: the
            distance between `x` and the points to which sampling takes `points`, relative to the
            norm of `x`, or to that of the step's noise where `x` is smaller.
        """
        level, x = self.level, self.x[which]
        where = None if self.where is None else self.where[which]
        noise = -level.sigma * level(points, where)
        change = _step(x, noise, self.start, (level.alpha, level.sigma)) - points
        scale = self.start[0] / level.alpha
        least = scale * level.sigma * x[0].numel() ** 0.5
        return noise, change, scale * _norms(change) / _norms(x).clamp_min(least)


@dataclass(frozen=True, eq=False)
class _Solution:
    """Points `(K, *shape)` where a step of inversion ends, their noise, and residuals `(K,)`."""

    points: Tensor
    noise: Tensor
    first_residual: Tensor
    residual: Tensor


def _solve(step: _ImplicitStep, guess: Tensor, iterations: int, tol: float) -> _Solution:
    """Solve the equation of a step, each point until its residual is `tol`."""
    tol = max(tol, 4 * torch.finfo(guess.dtype).eps)
    which = torch.arange(len(guess), device=guess.device)  # the points that have not converged
    points, history = guess, list[tuple[Tensor, Tensor]]()
    noise, change, residual = step(points, which)
    best, least, first = [points, noise, change], residual, residual
    for _ in range(iterations):
        going = (least[which] > tol) & residual.isfinite()
        if not going.any():
            break
        which, history = which[going], [(p[going], c[going]) for p, c in history]
        history = [*history[-MEMORY:], (points[going], change[going])]
        points = _mixed(history)
        noise, change, residual = step(points, which)
        better = residual < least[which]
        chosen = which[better]
        least = least.index_copy(0, chosen, residual[better])
        found = zip(best, (points, noise, change), strict=True)
        best = [old.index_copy(0, chosen, new[better]) for old, new in found]
    points, noise, change = best
    # One more step costs nothing, but it helps only where the equation contracts.
    contracts = (least <= torch.clamp(first / 2, min=tol)) | ~first.isfinite()
    contracts = (contracts | (iterations == 0)).view(-1, *[1] * (points.ndim - 1))
    return _Solution(torch.where(contracts, points + change, points), noise, first, least)


def _mixed(history: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The next iterate of Anderson acceleration after iterates and their changes, oldest first."""
    points, change = history[-1]
    following = points + change
    if len(history) == 1:
        return following
    dtype = torch.promote_types(points.dtype, torch.float32)
    moves, turns = (  # (K, d, M)
        torch.stack([(one - other).flatten(1).to(dtype) for other in others], 2)
        for one, others in zip(history[-1], zip(*history[:-1], strict=True), strict=True)
    )
    size = turns.norm(dim=1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)
    moves, turns = moves / size, turns / size
    gram = turns.mT @ turns
    gram = gram + RIDGE * torch.eye(gram.shape[1]).to(gram)
    weights = torch.linalg.solve(gram, turns.mT @ change.flatten(1)[..., None].to(dtype))
    return following - ((moves + turns) @ weights)[..., 0].view_as(points).to(points.dtype)


def _better(
    visited: dict[float, ScoreModel],
    clean: Tensor,
    points: Tensor,
    final_abar: float,
    where: Where | None,
) -> tuple[Tensor, Tensor]:
    """The better of inverted points and those without iterations, with their round-trip errors."""
    timesteps, model = list(visited), visited.__getitem__
    first = visited[timesteps[0]]
    least = first.sigma / first.alpha * clean[0].numel() ** 0.5

    @torch.no_grad()
    def error_of(noisy: Tensor, clean: Tensor, where: Where | None) -> Tensor:
        back = sample(model, noisy, timesteps, final_abar=final_abar, where=where)
        return _norms(back - clean) / _norms(clean).clamp_min(least)

    errors = error_of(points, clean, where)
    which = (errors > POOR).nonzero()[:, 0]
    if len(which) == 0:
        return points, errors
    some, here = clean[which], None if where is None else where[which]
    *_, (others, _) = _inversion(model, some, timesteps, final_abar, 0, 0.0, here)
    error = error_of(others, some, here)
    wins = error < errors[which]
    which = which[wins]
    return points.index_copy(0, which, others[wins]), errors.index_copy(0, which, error[wins])


def _norms(x: Tensor) -> Tensor:
    """The norm of each point, `(K,)`."""
    return x.flatten(1).norm(dim=1)


def _level(model: Levels, timestep: float) -> ScoreModel:
    check_callable(model=model)
    level = model(timestep)
    if not isinstance(level, ScoreModel):
        raise ValueError(
            f"`model` must give a ScoreModel for timestep {timestep}, but gave "
            f"{type(level).__name__}."
        )
    return level


def _factors(name: str, abar: float) -> Factors:
    """The factors of the data and of the noise at a level."""
    if not (is_finite(abar) and 0 < abar <= 1):
        raise ValueError(f"`{name}` must be in (0, 1], but got {abar}.")
    return abar**0.5, (1 - abar) ** 0.5


def _step(x: Tensor, eps: Tensor, start: Factors, end: Factors) -> Tensor:
    """One DDIM step between levels that are given by their factors of data and noise."""
    clean = (x - start[1] * eps) / start[0]
    return end[0] * clean + end[1] * eps


def _checked(timesteps: Iterable[float]) -> list[float]:
    """The timesteps as numbers, from clean to noisy."""
    if not isinstance(timesteps, Iterable):
        raise ValueError(f"`timesteps` must be one or more different levels, but got {timesteps}.")
    levels = [t.item() if isinstance(t, Tensor) else t for t in timesteps]
    if not all(map(is_finite, levels)):
        raise ValueError(f"`timesteps` must be finite numbers, but got {levels}.")
    levels.sort()
    if not levels or len(set(levels)) < len(levels):
        raise ValueError(f"`timesteps` must be one or more different levels, but got {levels}.")
    return levels
