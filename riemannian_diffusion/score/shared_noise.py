"""A score read in clean coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_kind, check_points
from riemannian_diffusion.score.model import ScoreModel
from riemannian_diffusion.score.where import Where


class SharedNoiseScore(ScoreModel):
    """A score in clean coordinates: the model at `alpha x_0 + sigma noise` with a shared noise.

    In units of the clean data the noisy point is `z = x_0 + (sigma / alpha) noise`. This model is
    the score of z as a function of `x_0`. It has the attributes `alpha = 1` and `sigma / alpha` for
    `sigma`. Paths run between clean points, without inversion (arXiv 2505.11128). With several
    noises a metric is the mean of the metrics of each noise. `stack` returns one score per noise,
    and a call returns their mean.

    Args:
        score: The model at one level, in noisy coordinates.
        noise: Standard normal noise: `shape` for one noise, `(S, *shape)` for S noises, or
            `(P, S, *shape)` for S noises of each of the P pairs of `geodesics`. In the last case
            calls need `where`.

    Raises:
        ValueError: If the noise is empty or not finite.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore, SharedNoiseScore
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> shared = SharedNoiseScore(score, torch.zeros(2))
        >>> tuple(shared(circle[:3]).shape)
        (3, 2)
    """

    def __init__(self, score: ScoreModel, noise: Tensor):
        check_kind(ScoreModel, score=score)
        check_points(noise=noise)
        if noise.numel() == 0:
            raise ValueError(f"`noise` must have values, but is {tuple(noise.shape)}.")
        self.score, self.noise = score, noise
        self.alpha, self.sigma = 1.0, score.sigma / score.alpha

    def __call__(self, x: Tensor, where: Where | None = None) -> Tensor:
        """The score at `x + sigma noise`, `(K, *shape) -> (K, *shape)`, mean over the noises."""
        return self.stack(x, where).mean(1)

    def denoise(self, x: Tensor, where: Where | None = None) -> Tensor:
        """The denoised point `x + sigma (sigma score(x) + noise)`, mean over the noises."""
        noise = self._noises(x, where).mean(1)
        return x + self.sigma**2 * self(x, where) + self.sigma * noise

    def jvp(self, x: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The product `J(x) v`, mean over the noises."""
        return self.stack_jvp(x, v, where).mean(1)

    def vjp(self, x: Tensor, w: Tensor, where: Where | None = None) -> Tensor:
        """The product `J(x)^T w`, mean over the noises."""
        points, places = self._noisy(x, where)
        cotangents = w[:, None].expand(points.shape).flatten(0, 1)
        parts = self.score.vjp(points.flatten(0, 1), cotangents, places).view_as(points)
        return self.score.alpha**2 * parts.mean(1)

    def stack(self, x: Tensor, where: Where | None = None) -> Tensor:
        """One score per noise, `(K, *shape) -> (K, S, *shape)`."""
        points, places = self._noisy(x, where)
        return self.score.alpha * self.score(points.flatten(0, 1), places).view_as(points)

    def stack_jvp(self, x: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The derivative of `stack` along `v`, `(K, S, *shape)`."""
        points, places = self._noisy(x, where)
        tangents = v[:, None].expand(points.shape).flatten(0, 1)
        parts = self.score.jvp(points.flatten(0, 1), tangents, places).view_as(points)
        return self.score.alpha**2 * parts

    def points_at_once(self, x: Tensor) -> int:
        """The number of points whose S noisy points the model may differentiate in one call."""
        num = self._num_noises(x)
        return max(1, self.score.points_at_once(x.repeat_interleave(num, 0)) // num)

    def use_less_memory(self, x: Tensor) -> bool:
        """Use smaller batches of the model, which is given S noisy points for each point."""
        return self.score.use_less_memory(x.repeat_interleave(self._num_noises(x), 0))

    def _num_noises(self, x: Tensor) -> int:
        return self.noise.shape[-x.ndim] if self.noise.ndim >= x.ndim else 1

    def _noises(self, x: Tensor, where: Where | None) -> Tensor:
        """The noises of each point, `(K or 1, S, *shape)`."""
        noise = self.noise.to(x)
        if noise.ndim <= x.ndim:
            noise = noise.view(1, self._num_noises(x), *noise.shape[noise.ndim - x.ndim + 1 :])
        elif noise.ndim == x.ndim + 1 and len(noise) > 1:
            if where is None:
                raise ValueError(
                    f"`noise` {tuple(noise.shape)} differs between {len(noise)} pairs, so each "
                    "point needs its pair: pass `where=Where(u, pair)`."
                )
            if len(where) and int(where.pair.max()) >= len(noise):
                raise ValueError(
                    f"`noise` {tuple(noise.shape)} is given for {len(noise)} pairs, but a point "
                    f"belongs to pair number {int(where.pair.max()) + 1}."
                )
            noise = torch.stack([noise[i] for i in where.pair.tolist()])
        if noise.shape[2:] != x.shape[1:]:
            raise ValueError(
                f"`noise` is {tuple(self.noise.shape)}, which does not fit points {tuple(x.shape)}."
            )
        return noise

    def _noisy(self, x: Tensor, where: Where | None) -> tuple[Tensor, Where | None]:
        """The noisy points `(K, S, *shape)`, and the places of all K S of them."""
        points = self.score.alpha * x[:, None] + self.score.sigma * self._noises(x, where)
        return points, None if where is None else where.repeat_interleave(points.shape[1])
