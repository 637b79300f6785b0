"""What every score offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class ScoreModel(ABC):
    """The score `grad log p(x)` of the data at one noise level, `x = alpha x_0 + sigma eps`.

    Points are `(K, *shape)`: the points of a path are the batch. Calls are differentiable in `x`.

    Attributes:
        alpha: Factor of the clean data at this level, in (0, 1].
        sigma: Standard deviation of the noise at this level, positive.
        eps: Relative rounding of its values, where coarser than that of the points; else 0.
    """

    alpha: float
    sigma: float
    eps: float = 0.0

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The score at each point, `(K, *shape) -> (K, *shape)`."""

    def denoise(self, x: Tensor) -> Tensor:
        """`E[alpha x_0 | x] = x + sigma^2 score(x)`, `(K, *shape) -> (K, *shape)` (Tweedie)."""
        return x + self.sigma**2 * self(x)

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """`J(x) v` with `J` the Jacobian of the score: one tangent per point, all `(K, *shape)`."""
        return torch.func.jvp(self.__call__, (x,), (v,))[1]

    def vjp(self, x: Tensor, w: Tensor) -> Tensor:
        """`J(x)^T w`: one cotangent per point, all `(K, *shape)`."""
        return torch.func.vjp(self.__call__, x)[1](w)[0]

    def stack(self, x: Tensor) -> Tensor:
        """Every score this model consists of, `(K, *shape) -> (K, S, *shape)`.

        S is 1 but for `SharedNoiseScore`. Metrics average over S, so that a model read under
        several noises gives the mean of their metrics.
        """
        return self(x)[:, None]

    def stack_jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """The derivative of `stack` along `v`, `(K, S, *shape)`."""
        return self.jvp(x, v)[:, None]

    def along(self, u: Tensor, pairs: Tensor | None = None) -> ScoreModel:
        """The model for points of paths, where it depends on the place; else itself.

        Args:
            u: `(K,)`, the fraction of its path at which each point lies.
            pairs: `(K,)`, the pair of ends that each point's path belongs to; None where all
                share prompts and noises.
        """
        return self

    def points_at_once(self, x: Tensor) -> int:
        """How many of these points may be differentiated in one call."""
        return len(x)

    def use_less_memory(self, x: Tensor) -> bool:
        """Called where memory ran out on these points: True if a call on them now needs less."""
        return False


def even_fractions(num: int) -> Tensor:
    """Where the points of a path lie on it, `(num,)` float64; NaN for one point alone."""
    u = torch.linspace(0, 1, num, dtype=torch.float64)
    return u if num > 1 else torch.full_like(u, torch.nan)
