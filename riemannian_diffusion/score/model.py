"""What every score offers."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import TypeVar

import torch
from torch import Tensor

P = TypeVar("P", bound="Placed")


class Placed:
    """What depends on where on its path a point lies, and on memory and dtype, by its parts.

    The parts are the attributes that are scores or metrics, or lists or tuples of these.
    """

    def along(self: P, u: Tensor, pairs: Tensor | None = None) -> P:
        """The same for points of paths, where it depends on the place (prompts do); else itself.

        Args:
            u: `(K,)`, the fraction of its path at which each point lies.
            pairs: `(K,)`, the pair of ends that each point's path belongs to; None where all
                share prompts and noises.
        """

        def place(value):
            if isinstance(value, Placed):
                return value.along(u, pairs)
            if type(value) in (list, tuple):
                there = type(value)(place(one) for one in value)
                return value if all(a is b for a, b in zip(there, value, strict=True)) else there
            return value

        there = {name: place(value) for name, value in vars(self).items()}
        if all(there[name] is value for name, value in vars(self).items()):
            return self
        placed = copy.copy(self)
        vars(placed).update(there)
        return placed

    def points_at_once(self, x: Tensor) -> int:
        """How many of these points may be differentiated in one call."""
        return min([len(x), *(part.points_at_once(x) for part in _parts_of(self))])

    def use_less_memory(self, x: Tensor) -> bool:
        """Called where memory ran out on these points: True if a call on them now needs less."""
        return any([part.use_less_memory(x) for part in _parts_of(self)])

    @property
    def rounding(self) -> float:
        """Relative rounding of its values by a network's dtype; 0 where there is no network."""
        return max([0.0, *(part.rounding for part in _parts_of(self))])


class ScoreModel(Placed, ABC):
    """The score `grad log p(x)` of the data at one noise level, `x = alpha x_0 + sigma eps`.

    Points are `(K, *shape)`: the points of a path are the batch. Calls are differentiable in `x`.

    Attributes:
        alpha: Factor of the clean data at this level, in (0, 1].
        sigma: Standard deviation of the noise at this level, positive.
    """

    alpha: float
    sigma: float

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The score at each point, `(K, *shape) -> (K, *shape)`."""

    def denoise(self, x: Tensor) -> Tensor:
        """`E[alpha x_0 | x] = x + sigma^2 score(x)`, `(K, *shape) -> (K, *shape)` (Tweedie)."""
        return x + self.sigma**2 * self(x)

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """`J(x) v` with `J` the Jacobian of the score: one tangent per point, all `(K, *shape)`."""
        return torch.func.jvp(self.__call__, (x.contiguous(),), (v.contiguous(),))[1]

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


def even_fractions(num: int) -> Tensor:
    """Where the points of a path lie on it, `(num,)` float64; NaN for one point alone."""
    u = torch.linspace(0, 1, num, dtype=torch.float64)
    return u if num > 1 else torch.full_like(u, torch.nan)


def entries_of(values: Tensor, pairs: Tensor | None, name: str) -> Tensor:
    """The index into values `(P, ...)`, one for each pair, that each point takes; or `[0]`.

    Raises:
        ValueError: If there are several and no pairs are named, or fewer than pairs.
    """
    if len(values) == 1:
        return torch.zeros(1 if pairs is None else len(pairs), dtype=torch.long)
    if pairs is None:
        raise ValueError(
            f"`{name}` {tuple(values.shape)} belongs to {len(values)} pairs: solve them with "
            "`geodesics`, or say by `along(u, pairs)` which pair each point belongs to."
        )
    if len(pairs) and int(pairs.max()) >= len(values):
        raise ValueError(
            f"`{name}` {tuple(values.shape)} has {len(values)} entries, too few for pair number "
            f"{int(pairs.max()) + 1}: give one for each pair, or one for all."
        )
    return pairs


def _parts_of(whole: Placed) -> list[Placed]:
    values = []
    for value in vars(whole).values():
        values += value if type(value) in (list, tuple) else [value]
    return [value for value in values if isinstance(value, Placed)]
