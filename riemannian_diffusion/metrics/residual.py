"""Metrics pulled back by what the denoiser takes off a point, and by what it leaves."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_kind, check_not_negative
from riemannian_diffusion.metrics.pullback import PullbackMetric
from riemannian_diffusion.score.model import ScoreModel
from riemannian_diffusion.score.where import Where


class _ScorePullback(PullbackMetric):
    """A pullback whose embedding is linear in the point and its residuals, one per shared noise."""

    def __init__(self, score: ScoreModel, **weights: float):
        check_kind(ScoreModel, score=score)
        check_not_negative(**weights)
        self.score = score

    @abstractmethod
    def _combine(self, x: Tensor, residual: Tensor) -> Tensor:
        """The embedding `(K, S, C, *shape)` of points `(K, 1, *shape)` and their residuals."""

    def embed(self, x: Tensor, where: Where | None = None) -> Tensor:
        """`phi` at each point, `(K, S, C, *shape)`: S shared noises, C parts."""
        return self._scaled(x, self.score.stack(x, where))

    def embed_jvp(self, x: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The derivative of `phi` along `v`."""
        return self._scaled(v, self.score.stack_jvp(x, v, where))

    def _scaled(self, x: Tensor, scores: Tensor) -> Tensor:
        return self._combine(x[:, None], -(self.score.sigma**2) * scores) / scores.shape[1] ** 0.5


class ScoreJacobianMetric(_ScorePullback):
    """`G = sigma^4 J^T J + ridge I`: pulled back by the score (arXiv 2510.05509).

    The factor `sigma^4` puts it in the data's units. Steps are long where the residual changes:
    across the data manifold, in every normal direction. Along it, and on surfaces parallel to it,
    steps cost next to nothing and speed is hardly defined; `ridge` defines it.

    Args:
        score: The score, or a score under shared noises.
        ridge: Weight of the flat metric, non-negative.
    """

    def __init__(self, score: ScoreModel, *, ridge: float = 0.0):
        super().__init__(score, ridge=ridge)
        self.ridge = float(ridge)

    def _combine(self, x: Tensor, residual: Tensor) -> Tensor:
        parts = [-residual]
        if self.ridge:
            parts.append(self.ridge**0.5 * x.expand_as(residual))
        return torch.stack(parts, 2)


class TangentNormalMetric(_ScorePullback):
    """`G = kn J_r^T J_r + kt J_D^T J_D`: normal steps cost `kn`, tangent ones keep their length.

    Near the data the Jacobian of the denoiser D projects on the manifold's tangent space and that
    of the residual r on its normal space, whatever its codimension. A geodesic follows the manifold
    where `kn / kt` exceeds the square of the ratio of its length there to its chord.

    Args:
        score: The score, or a score under shared noises.
        normal_weight: `kn`, non-negative.
        tangent_weight: `kt`, non-negative.
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
