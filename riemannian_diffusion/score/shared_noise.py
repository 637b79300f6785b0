"""A score read in clean coordinates."""

from __future__ import annotations

from torch import Tensor

from riemannian_diffusion.arguments import check_kind, check_points
from riemannian_diffusion.score.model import ScoreModel
from riemannian_diffusion.score.where import Where


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
            noises in each of the P pairs of `geodesics`; then calls need `where`.
    """

    def __init__(self, score: ScoreModel, noise: Tensor):
        check_kind(ScoreModel, score=score)
        check_points(noise=noise)
        if noise.numel() == 0:
            raise ValueError(f"`noise` must have values, but is {tuple(noise.shape)}.")
        self.score, self.noise = score, noise
        self.alpha, self.sigma = 1.0, score.sigma / score.alpha

    def __call__(self, x: Tensor, where: Where | None = None) -> Tensor:
        """The mean over noises of the score at `x + sigma noise`, `(K, *shape) -> (K, *shape)`."""
        return self.stack(x, where).mean(1)

    def denoise(self, x: Tensor, where: Where | None = None) -> Tensor:
        """The estimate of the clean point, `x + sigma (sigma score(x) + noise)`, averaged."""
        noise = self._noises(x, where).mean(1)
        return x + self.sigma**2 * self(x, where) + self.sigma * noise

    def jvp(self, x: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """`J(x) v`, averaged over noises."""
        return self.stack_jvp(x, v, where).mean(1)

    def vjp(self, x: Tensor, w: Tensor, where: Where | None = None) -> Tensor:
        """`J(x)^T w`, averaged over noises."""
        points, places = self._noisy(x, where)
        cotangents = w[:, None].expand(points.shape).flatten(0, 1)
        parts = self.score.vjp(points.flatten(0, 1), cotangents, places).view_as(points)
        return self.score.alpha**2 * parts.mean(1)

    def stack(self, x: Tensor, where: Where | None = None) -> Tensor:
        """One score per noise, `(K, *shape) -> (K, S, *shape)`."""
        points, places = self._noisy(x, where)
        return self.score.alpha * self.score(points.flatten(0, 1), places).view_as(points)

    def stack_jvp(self, x: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The derivative of `stack` along `v`."""
        points, places = self._noisy(x, where)
        tangents = v[:, None].expand(points.shape).flatten(0, 1)
        parts = self.score.jvp(points.flatten(0, 1), tangents, places).view_as(points)
        return self.score.alpha**2 * parts

    def points_at_once(self, x: Tensor) -> int:
        """As the model underneath, which is given S points for one."""
        num = self._num_noises(x)
        return max(1, self.score.points_at_once(x.repeat_interleave(num, 0)) // num)

    def use_less_memory(self, x: Tensor) -> bool:
        """As the model underneath, which is given S points for one."""
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
            noise = noise[where.pair.to(noise.device)]
        if noise.shape[2:] != x.shape[1:]:
            raise ValueError(
                f"`noise` is {tuple(self.noise.shape)}, which does not fit points {tuple(x.shape)}."
            )
        return noise

    def _noisy(self, x: Tensor, where: Where | None) -> tuple[Tensor, Where | None]:
        """The noisy points `(K, S, *shape)`, and the places of all K S of them."""
        points = self.score.alpha * x[:, None] + self.score.sigma * self._noises(x, where)
        return points, None if where is None else where.repeat_interleave(points.shape[1])
