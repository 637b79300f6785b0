"""Metrics that are pulled back by the residual of the denoiser and by the denoised point."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_kind, check_not_negative
from riemannian_diffusion.metrics.departures import Departure, departure_of, on_data_tangents
from riemannian_diffusion.metrics.pullback import PullbackMetric
from riemannian_diffusion.score.model import ScoreModel
from riemannian_diffusion.score.where import Where


class _ScorePullback(PullbackMetric):
    """A pullback metric with an embedding that is linear in the point and in its residuals.

    There is one residual for each shared noise.
    """

    flat_pace = True

    def __init__(self, score: ScoreModel, **weights: float):
        check_kind(ScoreModel, score=score)
        check_not_negative(**weights)
        self.score = score

    @abstractmethod
    def _combine(self, x: Tensor, residual: Tensor) -> Tensor:
        """The embedding `(K, S, C, *shape)` of points `(K, 1, *shape)` and their residuals."""

    def embed(self, x: Tensor, where: Where | None = None) -> Tensor:
        """The embedding of each point, `(K, S, C, *shape)`, for S shared noises and C parts."""
        return self._scaled(x, self.score.stack(x, where))

    def embed_jvp(self, x: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The derivative of the embedding along `v`, `(K, S, C, *shape)`."""
        return self._scaled(v, self.score.stack_jvp(x, v, where))

    def project(self, here: Tensor, there: Tensor, v: Tensor) -> Tensor:
        """Project a tangent onto the tangents of the data at the point `there`, all `shape`."""
        return on_data_tangents(self.score, there, v)

    def _departure(self, path, where, values=None):
        residual = None
        if values is not None and type(self).embed is _ScorePullback.embed:
            residual = self._residual(values)
        if residual is None:
            return departure_of(self.score, path, where)
        return Departure.of(path, residual * residual.shape[1] ** 0.5, self.score.sigma)

    @abstractmethod
    def _residual(self, values: Tensor) -> Tensor | None:
        """The residuals `(K, S, *shape)` in embeddings, or None if these do not hold them."""

    def _scaled(self, x: Tensor, scores: Tensor) -> Tensor:
        return self._combine(x[:, None], -(self.score.sigma**2) * scores) / scores.shape[1] ** 0.5


class ScoreJacobianMetric(_ScorePullback):
    """The metric `G = sigma^4 J^T J + ridge I`, pulled back by the score (arXiv 2510.05509).

    The factor `sigma^4` gives the metric the units of the data. Steps are long in the directions
    in which the residual changes. These are the directions normal to the data manifold. Steps along
    the manifold, and along surfaces parallel to it, have almost no length, so the speed along a
    path is hardly defined. `ridge` defines it.

    Args:
        score: The score, or a score under shared noises.
        ridge: Weight of the flat metric, non-negative.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore, ScoreJacobianMetric
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> tangent = torch.tensor([[0.0, 1.0]])  # at the point (1, 0)
        >>> bool(ScoreJacobianMetric(score).norm(circle[:1], tangent) < 0.1)
        True
    """

    def __init__(self, score: ScoreModel, *, ridge: float = 0.0):
        super().__init__(score, ridge=ridge)
        self.ridge = float(ridge)

    def _combine(self, x: Tensor, residual: Tensor) -> Tensor:
        parts = [-residual]
        if self.ridge:
            parts.append(self.ridge**0.5 * x.expand_as(residual))
        return torch.stack(parts, 2)

    def _residual(self, values: Tensor) -> Tensor:
        return -values[:, :, 0]


class TangentNormalMetric(_ScorePullback):
    """The metric `G = kn J_r^T J_r + kt J_D^T J_D`, which makes steps off the manifold expensive.

    Near the data, the Jacobian of the denoiser D projects onto the tangent space of the manifold,
    and that of the residual r projects onto the normal space. This holds for any codimension. The
    squared length of a normal step is multiplied by `kn`, and that of a tangent step by `kt`. A
    geodesic follows the manifold if `kn / kt` exceeds the squared ratio of the length along the
    manifold to the length of the chord.

    Args:
        score: The score, or a score under shared noises.
        normal_weight: `kn`, non-negative.
        tangent_weight: `kt`, non-negative.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore, TangentNormalMetric
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> metric = TangentNormalMetric(score)
        >>> x, across, along = circle[:1], torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> bool(metric.norm(x, across) > 5 * metric.norm(x, along))
        True
    """

    def __init__(
        self, score: ScoreModel, *, normal_weight: float = 100.0, tangent_weight: float = 1.0
    ):
        super().__init__(score, normal_weight=normal_weight, tangent_weight=tangent_weight)
        self.normal_weight, self.tangent_weight = float(normal_weight), float(tangent_weight)

    def _combine(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.stack(
            [self.normal_weight**0.5 * residual, self.tangent_weight**0.5 * (x - residual)], 2
        )

    def _residual(self, values: Tensor) -> Tensor | None:
        return values[:, :, 0] / self.normal_weight**0.5 if self.normal_weight else None
