"""Riemannian metrics read off a score; no d x d matrix is ever formed.

Arguments come in the order `(x, u, v)`, points and tangents are `(K, *shape)`, and each returns one
value per point.
Notation: `s` the score, `J` its Jacobian, `r = -sigma^2 s` the residual (`x` minus its denoised
    version), `D = x - r`
the denoised point.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_kind, check_not_negative
from riemannian_diffusion.paths import length
from riemannian_diffusion.score.model import Placed, ScoreModel, even_fractions


class Metric(Placed, ABC):
    """A Riemannian metric: an inner product of tangents at every point.

    Scores and metrics of which it is made are attributes of its own, or lists of them, so that they
    can be put in their places on a path of prompts, and be given fewer points at once.
    """

    @abstractmethod
    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`<u, v>_x`, one value per point: `(K, *shape)` three times -> `(K,)`."""

    def norm(self, x: Tensor, v: Tensor) -> Tensor:
        """`|v|_x`, `(K,)`."""
        return self.inner(x, v, v).clamp(min=0).sqrt()

    def energy(self, path: Tensor) -> Tensor:
        """The energy of each segment, `(K, *shape) -> (K - 1,)`, differentiable in the path.

        A segment `dx` with midpoint `m` has energy `1/2 (K - 1) <dx, dx>_m`, so that their sum
        tends to the energy of the curve run through in unit time, and length^2 <= 2 sum.
        """
        step, u = path[1:] - path[:-1], even_fractions(len(path))
        there = self.along((u[1:] + u[:-1]) / 2)
        return 0.5 * len(step) * there.inner((path[1:] + path[:-1]) / 2, step, step)

    def length(self, path: Tensor) -> Tensor:
        """The length of the path, a scalar."""
        return length(path, self)

    def as_matrix(self, x: Tensor) -> Tensor:
        """The dense metric `(K, d, d)` at each point: for tests and plots only."""
        flat = x.flatten(1)
        basis = torch.eye(flat.shape[1], dtype=x.dtype, device=x.device)
        vectors = [e.view_as(x[0]).expand_as(x) for e in basis]
        columns = [torch.stack([self.inner(x, u, v) for u in vectors], 1) for v in vectors]
        return torch.stack(columns, 2)


class PullbackMetric(Metric):
    """The metric of flat space pulled back by an embedding `phi`: `G = J_phi^T J_phi`.

    Energies are chords of `phi`, one evaluation per point and an ordinary reverse pass; `inner`
    takes forward-mode products. Both agree as the points of a path grow dense.
    """

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """`phi` at each point, `(K, *shape) -> (K, *embedding shape)`."""

    def embed_jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """The derivative of `phi` along `v`, `(K, *embedding shape)`."""
        return torch.func.jvp(self.embed, (x,), (v,))[1]

    def embed_vjp(self, x: Tensor, w: Tensor) -> Tensor:
        """`J_phi^T w`, `(K, *shape)`, of one cotangent `(K, *embedding shape)` per point."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            embedded = self.embed(x)
        return torch.autograd.grad(embedded, x, w)[0]

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`<J_phi u, J_phi v>`, `(K,)`."""
        pushed = self.embed_jvp(x, u)
        return _dot(pushed, pushed if v is u else self.embed_jvp(x, v))

    def energy(self, path: Tensor) -> Tensor:
        """The energy of each segment by chords, `1/2 (K - 1) |phi(x1) - phi(x0)|^2`, `(K - 1,)`."""
        embedded = self.embed(path)
        chord = embedded[1:] - embedded[:-1]
        return 0.5 * len(chord) * _dot(chord, chord)

    def lower_bound(self, x0: Tensor, x1: Tensor) -> Tensor:
        """`1/2 |phi(x1) - phi(x0)|^2`, a scalar: no path between the two points has less energy."""
        return self.energy(torch.stack([x0, x1]))[0]


class EuclideanMetric(PullbackMetric):
    """Flat space: `G = I`."""

    def embed(self, x: Tensor) -> Tensor:
        """The point itself."""
        return x

    def embed_jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """The tangent itself."""
        return v


class SteinScoreMetric(Metric):
    """`G = I + lam s s^T`: steps across level sets of the density are long (arXiv 2505.11128).

    Its eigenvalues are `1 + lam |s|^2`, once, and 1: one normal direction is penalised, whatever
    the codimension of the data. Since `|s|^2` grows like d / sigma^2 with the number d of values, a
    raw `lam` means something else at every size and noise level; `normalize` measures the score in
    units of its size for pure noise.

    Args:
        score: The score; with several shared noises, `s s^T` is their mean.
        lam: Weight of the score's direction, non-negative; the paper's is 1000.
        detach_score: Treat the score as a constant field when differentiating an energy, as
            published. False gives the full gradient.
        normalize: Replace `s` by `sigma s / sqrt(d)`, whose square is about 1 at typical noisy
            points.
    """

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
        self.score, self.lam = score, lam
        self.detach_score, self.normalize = detach_score, normalize

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`<u, v> + lam (s . u)(s . v)`, `(K,)`."""
        normals = self._normals(x)  # (K, S, d)
        return _dot(u, v) + _dot(_along(normals, u), _along(normals, v))

    def inverse(self, x: Tensor, v: Tensor) -> Tensor:
        """`G^-1 v`, `(K, *shape)`, by the formula of Sherman, Morrison and Woodbury."""
        normals = self._normals(x)
        gram = normals @ normals.mT
        gram = gram + torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        weights = torch.linalg.solve(gram, _along(normals, v))  # (K, S)
        return v - (weights[:, None] @ normals).view_as(v)

    def _normals(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_score):
            scores = self.score.stack(x).flatten(2)  # (K, S, d)
        num_scores, size = scores.shape[1:]
        unit = self.score.sigma / size**0.5 if self.normalize else 1.0
        return (self.lam / num_scores) ** 0.5 * unit * scores


class _ScorePullback(PullbackMetric):
    """A pullback whose embedding is linear in the point and its residuals, one per shared noise."""

    def __init__(self, score: ScoreModel, **weights: float):
        check_kind(ScoreModel, score=score)
        check_not_negative(**weights)
        self.score = score

    @abstractmethod
    def _combine(self, x: Tensor, residual: Tensor) -> Tensor:
        """The embedding `(K, S, C, *shape)` of points `(K, 1, *shape)` and their residuals."""

    def embed(self, x: Tensor) -> Tensor:
        """`phi` at each point, `(K, S, C, *shape)`: S shared noises, C parts."""
        return self._scaled(x, self.score.stack(x))

    def embed_jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """The derivative of `phi` along `v`."""
        return self._scaled(v, self.score.stack_jvp(x, v))

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
        self.ridge = ridge

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
        self.normal_weight, self.tangent_weight = normal_weight, tangent_weight

    def _combine(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.stack(
            [self.normal_weight**0.5 * residual, self.tangent_weight**0.5 * (x - residual)], 2
        )


def _dot(a: Tensor, b: Tensor) -> Tensor:  # (K, ...) -> (K,)
    return (a * b).flatten(1).sum(1)


def _along(normals: Tensor, v: Tensor) -> Tensor:  # (K, S, d), (K, *shape) -> (K, S)
    return (normals @ v.flatten(1)[..., None]).squeeze(-1)
