"""A metric that lengthens steps along the score (arXiv 2505.11128)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_kind, check_not_negative
from riemannian_diffusion.metrics.base import Metric, dot
from riemannian_diffusion.metrics.departures import departure_of, on_data_tangents
from riemannian_diffusion.score.model import ScoreModel
from riemannian_diffusion.score.where import Where


class SteinScoreMetric(Metric):
    """The metric `G = I + lam s s^T`, in which steps across level sets of the density are long.

    It is the metric of arXiv 2505.11128. One eigenvalue is `1 + lam |s|^2`, and all others are 1.
    So it penalises one normal direction, whatever the codimension of the data. `|s|^2` grows like
    `d / sigma^2` with the number d of values. Therefore the effect of `lam` depends on the size of
    a point and on the noise level. `normalize` removes this dependence: it measures the score in
    units of its size for pure noise.

    Args:
        score: The score. With several shared noises, the metric takes the mean of `s s^T`.
        lam: Weight of the direction of the score, non-negative. The paper uses 1000.
        detach_score: Whether the gradient of an energy treats the score as a constant field, as in
            the paper. False gives the full gradient.
        normalize: Replace `s` by `sigma s / sqrt(d)`, whose square is about 1 at typical noisy
            points.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore, SteinScoreMetric
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> metric = SteinScoreMetric(score)
        >>> x, v = 1.2 * circle[:1], torch.tensor([[1.0, 0.0]])
        >>> bool(metric.norm(x, v) > 1)  # steps towards more likely points are long
        True
    """

    flat_pace = True

    def __init__(
        self,
        score: ScoreModel,
        *,
        lam: float = 1000.0,
        detach_score: bool = True,
        normalize: bool = False,
    ):
        check_kind(ScoreModel, score=score)
        check_not_negative(lam=lam)
        self.score, self.lam = score, float(lam)
        self.detach_score, self.normalize = detach_score, normalize

    def inner(self, x: Tensor, u: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The inner products `<u, v> + lam (s . u)(s . v)`, `(K,)`, of tangents `(K, *shape)`."""
        normals = self._normals(x, where)  # (K, S, d)
        return dot(u, v) + dot(_along(normals, u), _along(normals, v))

    def sharp(
        self,
        x: Tensor,
        p: Tensor,
        where: Where | None = None,
        *,
        guess: Tensor | None = None,
        rtol: float = 1e-6,
    ) -> Tensor:
        """The tangents `G^-1 p`, `(K, *shape)`, by the formula of Sherman, Morrison and Woodbury.

        A subclass that overrides `inner` uses conjugate gradients.

        Args:
            x: See `Metric.sharp`.
            p: See `Metric.sharp`.
            where: See `Metric.sharp`.
            guess: See `Metric.sharp`.
            rtol: See `Metric.sharp`.
        """
        if type(self).inner is not SteinScoreMetric.inner:
            return super().sharp(x, p, where, guess=guess, rtol=rtol)
        normals = self._normals(x, where)
        gram = normals @ normals.mT
        gram = gram + torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        weights = torch.linalg.solve(gram, _along(normals, p))  # (K, S)
        return p - (weights[:, None] @ normals).view_as(p)

    def project(self, here: Tensor, there: Tensor, v: Tensor) -> Tensor:
        """Project a tangent onto the tangents of the data at the point `there`, all `shape`."""
        return on_data_tangents(self.score, there, v)

    def _departure(self, path, where, values=None):
        return departure_of(self.score, path, where)

    def differentiable(self) -> SteinScoreMetric:
        """The metric, or a copy of it that differentiates its score."""
        if not self.detach_score:
            return self
        metric = copy.copy(self)
        metric.detach_score = False
        return metric

    def _normals(self, x: Tensor, where: Where | None) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_score):
            scores = self.score.stack(x, where).flatten(2)  # (K, S, d)
        num_scores, size = scores.shape[1:]
        unit = self.score.sigma / size**0.5 if self.normalize else 1.0
        return (self.lam / num_scores) ** 0.5 * unit * scores


def _along(normals: Tensor, v: Tensor) -> Tensor:  # (K, S, d), (K, *shape) -> (K, S)
    return (normals @ v.flatten(1)[..., None]).squeeze(-1)
