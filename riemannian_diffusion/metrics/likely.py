"""Flat space with the log-density as a potential (arXiv 2510.26266)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from riemannian_diffusion.arguments import check_kind, check_not_negative
from riemannian_diffusion.metrics.base import MOST_BENT, Ends, Metric, dot
from riemannian_diffusion.metrics.departures import Departure, on_data_tangents
from riemannian_diffusion.metrics.energies import PathBatch, PathEnergy, own_energies, same_places
from riemannian_diffusion.metrics.rounding import point_resolution
from riemannian_diffusion.score.model import ScoreModel
from riemannian_diffusion.score.where import Where


class LikelyMetric(Metric):
    """Flat space with a potential: paths are stationary points of `int 1/2 |x'|^2 - lam log p`.

    The paths are those of arXiv 2510.26266. They satisfy `x'' = -lam s`, so a path that has to turn
    runs beside the data, where the score is `|x''| / lam`. No pass runs backward through the
    network: it suits models whose backward pass does not fit in memory.

    It is flat space and a potential, not a Riemannian metric. `inner`, `norm` and lengths are flat.
    Only `energy` contains the potential, so solvers find the paths. By conservation of
    `H = 1/2 |x'|^2 + lam log p`, each path is also a geodesic of the conformal metric
    `2 (H - lam log p)`, with an H of its own (the principle of Maupertuis). There is no
    exponential map, because paths from a point and a velocity are unstable: rounding errors normal
    to the data grow like `exp(sqrt(lam) u / sigma)`.

    The log-density along a path is the line integral of the score from its start, by the
    trapezoidal rule. It is 0 at the start, so energies may be negative. The score of a network is
    no exact gradient, and then the integral depends on the path.

    Args:
        score: The score. With several shared noises, the log-density is the mean over them.
        lam: Weight of the log-density in squared units of the points, non-negative. The default is
            for points of variance about 1. The effect of `lam` across the data grows with
            `1 / sigma^2`, and that along the data does not depend on the noise level. A large value
            gathers the solver's nodes where the density is high, and leads paths there. At high
            noise in many dimensions it pulls paths towards the mean of the data.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore, LikelyMetric, geodesic
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> found = geodesic(LikelyMetric(score), circle[0], circle[9])
        >>> tuple(found.path.shape)
        (17, 2)
    """

    flat_pace = True

    def __init__(self, score: ScoreModel, *, lam: float = 10.0):
        check_kind(ScoreModel, score=score)
        check_not_negative(lam=lam)
        self.score, self.lam = score, float(lam)

    def inner(self, x: Tensor, u: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The flat inner products `<u, v>`, `(K,)`, of tangents `(K, *shape)`."""
        return dot(u, v)

    def energy(self, path: Tensor, where: Where | None = None) -> Tensor:
        """The action of each segment, `(K - 1,)`; it may be negative.

        A segment `dx` from point i has `1/2 (K - 1) |dx|^2 - lam (l_i + l_{i+1}) / (2 (K - 1))`.
        Here `l_i` is the log-density of point i relative to the first point. Its gradient in the
        points is the score, which is not differentiated. If `where` covers a share T of the path,
        that part takes the time T, and `lam` becomes `T^2 lam`.

        Args:
            path: See `Metric.energy`.
            where: See `Metric.energy`.
        """
        step, num, where = path[1:] - path[:-1], len(path) - 1, self._places(path, where)
        gains: Tensor = _Gains.apply(path, self._scores(path, where).mean(1))
        lam = self.lam * float(where.u[-1] - where.u[0]) ** 2
        return 0.5 * num * dot(step, step) - lam * (gains[1:] + gains[:-1]) / (2 * num)

    def lengths_from(self, path: Tensor, energies: Tensor) -> Tensor:
        """The flat length of each segment, `(K - 1,)`; the energies are not used."""
        return (path[1:] - path[:-1]).flatten(1).norm(dim=1)

    def hop_lengths(self, hops: Tensor) -> Tensor:
        """The flat length of each segment, `(H, K, *shape) -> (H, K - 1)`."""
        return (hops[:, 1:] - hops[:, :-1]).flatten(2).norm(dim=2)

    def lower_bound(
        self, x0: Tensor, x1: Tensor, pair: int = 0, *, ends: Ends | None = None
    ) -> Tensor:
        """Minus infinity: how likely the most likely point is, is unknown."""
        return x0.new_full((), -torch.inf)

    def is_straight(self, x0: Tensor, x1: Tensor, where: Where | None = None) -> bool:
        """Whether the score hardly turns a straight step between two points."""
        ends = torch.stack([x0, x1])
        turns = self.lam * self._scores(ends, self._places(ends, where)).mean(1)
        return float(turns.norm()) <= MOST_BENT * float((x1 - x0).norm())

    def step(self, *args: Any) -> None:
        """Refuse a step of the exponential map.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "LikelyMetric has no exponential map, because its paths from a point and a velocity "
            "are unstable: solve between two points, or use extrapolate."
        )

    def project(self, here: Tensor, there: Tensor, v: Tensor) -> Tensor:
        """Project a tangent onto the tangents of the data at the point `there`, all `shape`."""
        return on_data_tangents(self.score, there, v)

    def _energies(
        self, batch: PathBatch, differentiate: bool, departures: bool, ends: Ends
    ) -> list[PathEnergy]:
        scores = self._scores(torch.cat(batch.paths), Where.cat(batch.places))
        known = scores.split([len(path) for path in batch.paths])
        found = own_energies(type(self).energy, self, batch, known, differentiate)
        answers = []
        parts = zip(batch.paths, batch.places, known, found, strict=True)
        for path, where, values, (segments, _, by_path) in parts:
            departure, gradient = None, None
            if departures:
                sigma = self.score.sigma
                departure = Departure.of(path, -(sigma**2) * values, sigma)
            if differentiate:
                gradient = by_path
                gradient[[0, -1]] = 0  # the ends are fixed
            step = path[1:] - path[:-1]
            resolution = point_resolution(path, gradient, where, dot(step, step), self.norm)
            answers.append(PathEnergy(segments, gradient, resolution, departure))
        return answers

    def _serving(self, path: Tensor, places: Where, values: Tensor) -> dict[str, Callable]:
        """The scores, known at the points of a path; all others are evaluated."""

        def scores(x: Tensor, where: Where) -> Tensor:
            if torch.equal(x, path) and same_places(where, places):
                return values
            return self._scores(x, where)

        return {"_scores": scores}

    @torch.no_grad()
    def _scores(self, x: Tensor, where: Where) -> Tensor:
        """All S scores at each point, `(K, S, *shape)`, without a graph."""
        return self.score.stack(x.detach(), where)


class _Gains(torch.autograd.Function):
    """Log-densities of a path's points relative to the first, `(K,)`, with the score as gradient.

    It takes the points and their scores, `(K, *shape)` each.
    """

    @staticmethod
    def forward(ctx, path: Tensor, scores: Tensor) -> Tensor:
        ctx.save_for_backward(scores)
        gains = dot(path[1:] - path[:-1], (scores[1:] + scores[:-1]) / 2)
        return torch.cat([gains.new_zeros(1), gains.cumsum(0)])

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent: Tensor):
        (scores,) = ctx.saved_tensors
        return cotangent.view(-1, *[1] * (scores.ndim - 1)) * scores, None
