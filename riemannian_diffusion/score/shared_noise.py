"""A score read in clean coordinates."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from riemannian_diffusion.score.model import ScoreModel


class SharedNoiseScore(ScoreModel):
    """A score in clean coordinates: the model at `alpha x_0 + sigma noise`, one noise for all.

    In units of the clean data the level is `z = x_0 + (sigma / alpha) noise`; this model is the
    score of z as a function of `x_0`, so it has `alpha = 1` and `sigma / alpha` for its sigma, and
    paths run between clean points without inversion (the first paper's construction, arXiv
    2505.11128). Several noises give the mean of their metrics: `stack` keeps their scores apart,
    and a plain call is their mean.

    Args:
        score: The model at one level, in noisy coordinates.
        noise: `shape`, or `(S, *shape)` for S noises, standard normal.
    """

    def __init__(self, score: ScoreModel, noise: Tensor):
        self.score, self.noise = score, noise
        self.alpha, self.sigma = 1.0, score.sigma / score.alpha

    def __call__(self, x: Tensor) -> Tensor:
        """The mean over noises of the score at `x + sigma noise`, `(K, *shape) -> (K, *shape)`."""
        return self.stack(x).mean(1)

    def denoise(self, x: Tensor) -> Tensor:
        """The estimate of the clean point, `x + sigma (sigma score(x) + noise)`, averaged."""
        return x + self.sigma**2 * self(x) + self.sigma * self._noises(x).mean(0)

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """`J(x) v`, averaged over noises."""
        return self.stack_jvp(x, v).mean(1)

    def vjp(self, x: Tensor, w: Tensor) -> Tensor:
        """`J(x)^T w`, averaged over noises."""
        parts = [self.score.vjp(point, w) for point in self._noisy(x)]
        return self.score.alpha**2 * torch.stack(parts).mean(0)

    def stack(self, x: Tensor) -> Tensor:
        """One score per noise, `(K, *shape) -> (K, S, *shape)`."""
        return self.score.alpha * torch.stack([self.score(point) for point in self._noisy(x)], 1)

    def stack_jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """The derivative of `stack` along `v`."""
        return self.score.alpha**2 * torch.stack(
            [self.score.jvp(point, v) for point in self._noisy(x)], 1
        )

    def use_less_memory(self) -> bool:
        """As the model underneath."""
        return self.score.use_less_memory()

    def _noises(self, x: Tensor) -> Tensor:
        noise = self.noise if self.noise.ndim == x.ndim else self.noise[None]
        if noise.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"`noise` is {tuple(self.noise.shape)}, which does not fit points {tuple(x.shape)}."
            )
        return noise.to(x)

    def _noisy(self, x: Tensor) -> Iterator[Tensor]:
        for noise in self._noises(x):
            yield self.score.alpha * x + self.score.sigma * noise
