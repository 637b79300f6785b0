"""The exact score of a mixture of Gaussians, or of a data set."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_finite, check_kind, check_points
from riemannian_diffusion.score.model import ScoreModel
from riemannian_diffusion.score.where import Where


class GaussianMixtureScore(ScoreModel):
    """The exact score of noisy points whose clean data are a mixture of isotropic Gaussians.

    A noisy point is `x = alpha x_0 + sigma eps`. With `std=0` the mixture is a set of points, such
    as a data set, and this is its exact diffusion model. Logits come from inner products with
    centred means. No `(K, M, *shape)` tensor is formed, and points far from every mean have finite
    scores.

    Args:
        means: Means of the M components of the clean data, `(M, *shape)`.
        sigma: Standard deviation of the noise, non-negative; `sigma` and `alpha * std` must not
            both be 0.
        std: Standard deviation of every component of the clean data, non-negative.
        weights: Weights of the components, `(M,)`, non-negative and not all 0. They are normalised
            here. None gives equal weights.
        alpha: Factor of the clean data, positive.

    Raises:
        ValueError: If an argument is out of range or has another shape.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> bool((score.denoise(2 * circle[:1]).norm() - 1).abs() < 0.05)  # back onto the circle
        True
    """

    max_logits = 2**24  # largest (points, means) table in memory

    def __init__(
        self,
        means: Tensor,
        sigma: float,
        *,
        std: float = 0.0,
        weights: Tensor | None = None,
        alpha: float = 1.0,
    ):
        check_points(means=means)
        check_finite(sigma=sigma, std=std, alpha=alpha)
        if means.ndim < 2 or len(means) == 0:
            raise ValueError(
                "`means` must be a floating-point tensor (M, *shape), "
                f"but got {tuple(means.shape)}."
            )
        if sigma < 0 or std < 0 or alpha <= 0 or sigma + alpha * std == 0:
            raise ValueError(
                "`sigma` and `std` must not be negative nor both 0, and `alpha` must be positive, "
                f"but got sigma={sigma}, std={std}, alpha={alpha}."
            )
        if weights is not None:
            check_kind(Tensor, weights=weights)
        if weights is not None and (
            weights.shape != means.shape[:1]
            or (weights < 0).any()
            or not 0 < weights.sum() < math.inf
        ):
            raise ValueError(
                f"`weights` must be ({len(means)},), non-negative and not all 0, but got {weights}."
            )
        self.means, self.sigma, self.std, self.alpha = means, float(sigma), float(std), float(alpha)
        if weights is None:
            weights = means.new_ones(len(means))
        self.log_weights = (weights / weights.sum()).to(means).log()
        self.variance = self.sigma**2 + (self.alpha * self.std) ** 2

    def __call__(self, x: Tensor, where: Where | None = None) -> Tensor:
        """The score at each point, `(K, *shape) -> (K, *shape)`."""
        return self._in_chunks(self._score, x)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density at each point, `(K, *shape) -> (K,)`."""
        return self._in_chunks(self._log_prob, x)

    def jvp(self, x: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """`J(x) v` in closed form, from the posterior covariance of the means."""
        return self._in_chunks(self._jvp, x, v)

    def vjp(self, x: Tensor, w: Tensor, where: Where | None = None) -> Tensor:
        """`J(x)^T w`: the Jacobian of an exact score is symmetric."""
        return self.jvp(x, w)

    def _in_chunks(self, function: Callable[..., Tensor], x: Tensor, *more: Tensor) -> Tensor:
        check_kind(Tensor, x=x)
        if x.shape[1:] != self.means.shape[1:] or any(a.shape != x.shape for a in more):
            raise ValueError(
                f"`x` must be (K, {str(tuple(self.means.shape[1:]))[1:]}, but got "
                f"{' and '.join(str(tuple(a.shape)) for a in (x, *more))}."
            )
        size = max(1, self.max_logits // len(self.means))
        inputs = [a.split(size) for a in (x, *more)]
        return torch.cat([function(*chunk) for chunk in zip(*inputs, strict=True)])

    def _centred(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points and scaled means relative to the centre of the means, and log posteriors.

        The log posteriors lack a constant.
        """
        dtype = torch.promote_types(x.dtype, self.means.dtype)
        means = self.means.to(dtype).flatten(1) * self.alpha  # (M, d)
        centre = means.mean(0)
        means, points = means - centre, x.to(dtype).flatten(1) - centre  # (K, d)
        logits = (points @ means.T - 0.5 * means.square().sum(1)) / self.variance
        return points, means, logits + self.log_weights.to(dtype)  # (K, d), (M, d), (K, M)

    def _score(self, x: Tensor) -> Tensor:
        points, means, logits = self._centred(x)
        return ((logits.softmax(1) @ means - points) / self.variance).view_as(x).to(x.dtype)

    def _log_prob(self, x: Tensor) -> Tensor:
        points, means, logits = self._centred(x)
        constant = 0.5 * points.shape[1] * math.log(2 * math.pi * self.variance)
        log_prob = logits.logsumexp(1) - 0.5 * points.square().sum(1) / self.variance - constant
        return log_prob.to(x.dtype)

    def _jvp(self, x: Tensor, v: Tensor) -> Tensor:
        points, means, logits = self._centred(x)
        tangents = v.to(points).flatten(1)
        posterior = logits.softmax(1)  # (K, M)
        along = tangents @ means.T  # (K, M)
        along = along - (posterior * along).sum(1, keepdim=True)
        out = (posterior * along) @ means / self.variance**2 - tangents / self.variance
        return out.view_as(x).to(x.dtype)
