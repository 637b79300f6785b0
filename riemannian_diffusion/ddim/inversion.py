"""Inversion of DDIM: from clean points to the noise that sampling turns into them.

Sampling evaluates `eps` at the start of its step. Inversion must undo exactly that step, so it
evaluates `eps` at the end of its own step. This is an implicit equation. Its first guess
extrapolates `eps` from the last two levels. Where that is not good enough, which is at the two or
three cleanest levels, Anderson acceleration solves it (Walker and Ni, SIAM J. Numer. Anal. 49,
2011).

For the exact model of a Gaussian mixture, each step of sampling is a strictly monotone map, so the
equation has one root at most. But plain fixed-point iteration need not find it: between modes, at
clean levels, it diverges. A small residual is also no proof of a small round-trip error, because
later steps of sampling can amplify it. So points about which there is doubt are sampled back.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_not_negative, check_points, check_whole
from riemannian_diffusion.ddim.steps import (
    Factors,
    Levels,
    factors_of,
    level_of,
    sample,
    sorted_timesteps,
    step,
)
from riemannian_diffusion.score import ScoreModel, Where

MAX_ITERATIONS = 20  # evaluations per step after the first, where their number is not given
MEMORY = 2  # former iterates that Anderson acceleration uses
RIDGE = 1e-6  # keeps its least squares regular, relative to the columns of the matrix
DOUBT = 0.01  # a larger residual after the last iteration makes a point doubtful
DOUBT_AT_FIRST = 0.02  # so does a larger residual of an extrapolated guess
POOR = 0.01  # a doubtful point with a larger round-trip error is also inverted without iterations
FAILED = 0.05  # a larger round-trip error is worth a warning


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
            approximate inversion, which evaluates `eps` at the start of its step, and no point is
            sampled back.
        tol: Where `fixed_point_iterations` is None: the residual at which the iteration of a step
            ends, non-negative. The residual is the distance by which sampling misses the point
            where the step started, in units of the clean data. It is relative to the norm of the
            clean point, or to that of the noise at the cleanest timestep if that is larger.
        where: The places of the points on their paths, for scores that change along the path.

    Returns:
        Points `(K, *shape)` at the noisiest of the timesteps.

    Raises:
        ValueError: If an argument is out of range, or `model` does not return score models.

    Warns:
        UserWarning: If points were sampled back and missed their clean points by more than 5% of
            their norm, or are not finite.

    Examples:
        >>> import torch
        >>> from diffusers import DDIMScheduler
        >>> from riemannian_diffusion import GaussianMixtureScore, invert
        >>> abar = DDIMScheduler().alphas_cumprod
        >>> def level(timestep):  # the exact score of two points
        ...     a = float(abar[int(timestep)])
        ...     return GaussianMixtureScore(points, (1 - a) ** 0.5, alpha=a**0.5)
        >>> points = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> tuple(invert(level, points, [400, 200, 0]).shape)
        (2, 2)
    """
    steps = _inversion(model, x, timesteps, final_abar, fixed_point_iterations, tol, where)
    points, errors = deque(steps, maxlen=1).pop()
    failed, lost = int((errors > FAILED).sum()), int(errors.isnan().sum())
    if failed:
        warnings.warn(
            f"{failed} of {len(x)} points were not inverted well: sampled back, they miss their "
            f"clean points by up to {float(errors.nan_to_num(0.0).max()):.0%} of their norm; use "
            "more timesteps or a lower noise level.",
            stacklevel=2,
        )
    if lost:
        warnings.warn(
            f"{lost} of {len(x)} points were not inverted: the model returned non-finite values. "
            "Check the inputs, or run the network in a wider dtype.",
            stacklevel=2,
        )
    return points


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
    """Yield the points of `invert` after each of its steps, without its warning.

    Examples:
        >>> import torch
        >>> from diffusers import DDIMScheduler
        >>> from riemannian_diffusion import GaussianMixtureScore, invert_steps
        >>> abar = DDIMScheduler().alphas_cumprod
        >>> def level(timestep):  # the exact score of two points
        ...     a = float(abar[int(timestep)])
        ...     return GaussianMixtureScore(points, (1 - a) ** 0.5, alpha=a**0.5)
        >>> points = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> len(list(invert_steps(level, points, [400, 200, 0])))
        3
    """
    steps = _inversion(model, x, timesteps, final_abar, fixed_point_iterations, tol, where)
    for points, _ in steps:
        yield points


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
    round-trip error of the points that were sampled back, relative to their norm. It is NaN if the
    point or its sample is not finite.
    """
    check_points(x=clean)
    if clean.ndim < 2:
        raise ValueError(f"`x` must be points (K, *shape), but got {tuple(clean.shape)}.")
    check_not_negative(tol=tol)
    if fixed_point_iterations is not None:
        check_whole(0, fixed_point_iterations=fixed_point_iterations)
        fixed_point_iterations, tol = int(fixed_point_iterations), 0.0
    explicit = fixed_point_iterations == 0
    num = MAX_ITERATIONS if fixed_point_iterations is None else fixed_point_iterations
    x, current, norms = clean, factors_of("final_abar", final_abar), None
    sizes = _norms(clean)
    errors = clean.new_zeros(len(clean))
    doubtful, growth, expected = errors > 0, torch.ones_like(errors), torch.zeros_like(errors)
    noises: list[tuple[float, Tensor]] = []  # sigma / alpha and eps of the last two levels
    visited: dict[float, ScoreModel] = {}
    pending = sorted_timesteps(timesteps)
    for timestep in pending:
        level = visited[timestep] = level_of(model, timestep)
        target = level.alpha, level.sigma
        ratio = level.sigma / level.alpha
        if norms is None:  # where data are 0, noise gives the scale
            norms = sizes.clamp_min(ratio * clean[0].numel() ** 0.5)
            sizes = torch.where(sizes > 0, sizes, norms)
        guess = x
        if noises and not explicit:
            guess = step(x, _extrapolated(noises, ratio), current, target)
        found = _solve(_ImplicitStep(level, x, current, where, norms), guess, num, tol)
        if not explicit:
            residual, at_first = (
                one * norms / sizes for one in (found.residual, found.first_residual)
            )
            errors = errors.maximum(residual)
            # steps of sampling at cleaner levels lengthen the residual
            expected, growth = expected.hypot(growth * residual), growth * found.growth
            doubtful = doubtful | (residual > DOUBT) | (expected > FAILED)
            if len(noises) == 2:
                doubtful = doubtful | (at_first > DOUBT_AT_FIRST)
        x, current = found.points, target
        noises = [*noises[-1:], (ratio, found.noise)]
        if len(visited) == len(pending) and doubtful.any():
            which = doubtful.nonzero()[:, 0]
            here = None if where is None else where[which]
            better, error = _better(visited, clean[which], x[which], sizes[which], final_abar, here)
            x, errors = x.index_copy(0, which, better), errors.index_copy(0, which, error)
        yield x, torch.where(x.flatten(1).isfinite().all(1), errors, torch.nan)


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
        norms: Norms of the clean points, `(K,)`.
    """

    level: ScoreModel
    x: Tensor
    start: Factors
    where: Where | None
    norms: Tensor

    def __call__(self, points: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate `eps` at some of the points.

        Returns:
            The noise and the change `step(x, eps(p)) - p`, like `points`, and the residual `(K,)`.
        """
        level = self.level
        where = None if self.where is None else self.where[which]
        noise = -level.sigma * level(points, where)
        change = step(self.x[which], noise, self.start, (level.alpha, level.sigma)) - points
        # Sampling misses `x / alpha` by as much as the change, once both are divided by alpha.
        residual, rounding = (
            _norms(one) / (level.alpha * self.norms[which])
            for one in (change, points * torch.finfo(points.dtype).eps)
        )
        # An iterate can be so long that rounding errors hide the change. It is no solution.
        hidden = rounding > max(DOUBT, 100 * torch.finfo(points.dtype).eps)
        return noise, change, torch.where(hidden, residual.fmax(rounding), residual)


@dataclass(frozen=True, eq=False)
class _Solution:
    """The solution of a step of inversion.

    Attributes:
        points: Points where the step ends, `(K, *shape)`.
        noise: Their noise, `(K, *shape)`.
        first_residual: The residuals of the first guess, `(K,)`.
        residual: The residuals of the points, `(K,)`. If one more step was taken after the last
            evaluation, they are estimates.
        growth: An estimate of the factor by which the step of sampling lengthens distances, at
            least 1, `(K,)`. It is that between two points that were evaluated, or 1 if only one
            was.
    """

    points: Tensor
    noise: Tensor
    first_residual: Tensor
    residual: Tensor
    growth: Tensor


def _solve(equation: _ImplicitStep, guess: Tensor, iterations: int, tol: float) -> _Solution:
    """Solve the equation of a step, each point until its residual is `tol`."""
    tol = max(tol, 4 * torch.finfo(guess.dtype).eps)
    which = torch.arange(len(guess), device=guess.device)  # the points that have not converged
    points, history = guess, list[tuple[Tensor, Tensor]]()
    noise, change, residual = equation(points, which)
    best, least, first = [points, noise, change], residual, residual
    growth, rate = torch.ones_like(first), torch.zeros_like(first)
    for _ in range(iterations):
        going = (least[which] > tol) & residual.isfinite()
        if not going.any():
            break
        which, history = which[going], [(p[going], c[going]) for p, c in history]
        history = [*history[-MEMORY:], (points[going], change[going])]
        points = _mixed(history)
        noise, change, residual = equation(points, which)
        moved, turned = (new - old for new, old in zip((points, change), history[-1], strict=True))
        size = _norms(moved).clamp_min(torch.finfo(moved.dtype).tiny)
        for factors, one in ((growth, turned), (rate, turned + moved)):
            factors[which] = factors[which].fmax(_norms(one) / size)
        better = residual < least[which]
        chosen = which[better]
        least = least.index_copy(0, chosen, residual[better])
        found = zip(best, (points, noise, change), strict=True)
        best = [old.index_copy(0, chosen, new[better]) for old, new in found]
    points, noise, change = best
    # One more step costs nothing, but it helps only where the equation contracts.
    contracts = (least <= torch.clamp(first / 2, min=tol)) | ~first.isfinite()
    contracts = contracts | (iterations == 0)
    least = torch.where(contracts & (rate > 0), least * rate, least)
    wide = contracts.view(-1, *[1] * (points.ndim - 1))
    return _Solution(torch.where(wide, points + change, points), noise, first, least, growth)


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
    norms: Tensor,
    final_abar: float,
    where: Where | None,
) -> tuple[Tensor, Tensor]:
    """The better of inverted points and those without iterations, with their round-trip errors."""
    timesteps, model = list(visited), visited.__getitem__

    @torch.no_grad()
    def miss(noisy: Tensor, clean: Tensor, where: Where | None) -> Tensor:
        back = sample(model, noisy, timesteps, final_abar=final_abar, where=where)
        return _norms(back - clean)

    errors = miss(points, clean, where) / norms
    which = (errors > POOR).nonzero()[:, 0]
    if len(which) == 0:
        return points, errors
    some, here = clean[which], None if where is None else where[which]
    *_, (others, _) = _inversion(model, some, timesteps, final_abar, 0, 0.0, here)
    error = miss(others, some, here) / norms[which]
    wins = error < errors[which]
    which = which[wins]
    return points.index_copy(0, which, others[wins]), errors.index_copy(0, which, error[wins])


def _norms(x: Tensor) -> Tensor:
    """The norm of each point, `(K,)`."""
    return x.flatten(1).norm(dim=1)
