"""A score read in clean coordinates."""

from __future__ import annotations

import copy

from torch import Tensor

from riemannian_diffusion.arguments import check_kind, check_points
from riemannian_diffusion.score.model import ScoreModel, entries_of, even_fractions


class SharedNoiseScore(ScoreModel):
    """A score in clean coordinates: the model at `alpha x_0 + sigma noise`, one noise for all.

    In units of the clean data the level is `z = x_0 + (sigma / alpha) noise`; this model is the
    score of z as a function of `x_0`, so it has `alpha = 1` and `sigma / alpha` for its sigma, and
    paths run between clean points without inversion (the first paper's construction, arXiv
    2505.11128). Several noises give the mean of their metrics: `stack` keeps their scores apart,
    and a plain call is their mean.

    Args:
        score: The model at one level, in noisy coordinates.
        noise: Standard normal, `shape`, or `(S, *shape)` for S noises, or `(P, S, *shape)` for S
            noises in each of the P pairs of `geodesics`.
    """

    def __init__(self, score: ScoreModel, noise: Tensor):
        check_kind(ScoreModel, score=score)
        check_points(noise=noise)
        if noise.numel() == 0:
            raise ValueError(f"`noise` must have values, but is {tuple(noise.shape)}.")
        self.score, self.noise = score, noise
        self.alpha, self.sigma = 1.0, score.sigma / score.alpha
        self._u: Tensor | None = None
        self._pairs: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The mean over noises of the score at `x + sigma noise`, `(K, *shape) -> (K, *shape)`."""
        return self.stack(x).mean(1)

    def denoise(self, x: Tensor) -> Tensor:
        """The estimate of the clean point, `x + sigma (sigma score(x) + noise)`, averaged."""
        return x + self.sigma**2 * self(x) + self.sigma * self._noises(x).mean(1)

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """`J(x) v`, averaged over noises."""
        return self.stack_jvp(x, v).mean(1)

    def vjp(self, x: Tensor, w: Tensor) -> Tensor:
        """`J(x)^T w`, averaged over noises."""
        score, points = self._noisy(x)
        cotangents = w[:, None].expand(points.shape).flatten(0, 1)
        parts = score.vjp(points.flatten(0, 1), cotangents).view_as(points)
        return self.score.alpha**2 * parts.mean(1)

    def stack(self, x: Tensor) -> Tensor:
        """One score per noise, `(K, *shape) -> (K, S, *shape)`."""
        score, points = self._noisy(x)
        return self.score.alpha * score(points.flatten(0, 1)).view_as(points)

    def stack_jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """The derivative of `stack` along `v`."""
        score, points = self._noisy(x)
        tangents = v[:, None].expand(points.shape).flatten(0, 1)
        parts = score.jvp(points.flatten(0, 1), tangents).view_as(points)
        return self.score.alpha**2 * parts

    def along(self, u: Tensor, pairs: Tensor | None = None) -> SharedNoiseScore:
        """The model for points at fractions `u` of the paths of these pairs."""
        placed = copy.copy(self)
        if pairs is None and self._pairs is not None and len(self._pairs.unique()) == 1:
            pairs = self._pairs[:1].expand(len(u))  # other points of the path it was placed on
        placed._u, placed._pairs = u, pairs
        return placed

    def points_at_once(self, x: Tensor) -> int:
        """As the model underneath, which is given S points for one."""
        num = self._num_noises(x)
        return max(1, self.score.points_at_once(x.repeat_interleave(num, 0)) // num)

    def use_less_memory(self, x: Tensor) -> bool:
        """As the model underneath, which is given S points for one."""
        return self.score.use_less_memory(x.repeat_interleave(self._num_noises(x), 0))

    def _num_noises(self, x: Tensor) -> int:
        return self.noise.shape[-x.ndim] if self.noise.ndim >= x.ndim else 1

    def _noises(self, x: Tensor) -> Tensor:
        """The noises of each point, `(K or 1, S, *shape)`."""
        noise = self.noise.to(x)
        if noise.ndim == x.ndim + 1:
            noise = noise[entries_of(noise, self._pairs, "noise").to(noise.device)]
        elif noise.ndim == x.ndim:
            noise = noise[None]
        else:
            noise = noise[None, None]
        if noise.shape[2:] != x.shape[1:]:
            raise ValueError(
                f"`noise` is {tuple(self.noise.shape)}, which does not fit points {tuple(x.shape)}."
            )
        return noise

    def _noisy(self, x: Tensor) -> tuple[ScoreModel, Tensor]:
        """The model underneath in the places of the noisy points, and these, `(K, S, *shape)`."""
        points = self.score.alpha * x[:, None] + self.score.sigma * self._noises(x)
        num = points.shape[1]
        u = even_fractions(len(x)) if self._u is None else self._u
        pairs = None if self._pairs is None else self._pairs.repeat_interleave(num)
        return self.score.along(u.repeat_interleave(num), pairs), points
