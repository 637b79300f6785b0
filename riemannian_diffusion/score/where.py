"""The places of points on their paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, init=False)
class Where:
    """The place of each of K points: a fraction of its path, and which path that is.

    Prompts and other conditions that change along a path are evaluated at these places.

    Attributes:
        u: Fractions of the path, `(K,)`, float64 on the CPU, from 0 at its start to 1 at its end.
        pair: Index of the path, or of the pair of points that it joins, `(K,)`, int64 on the CPU.

    Raises:
        ValueError: If a fraction lies outside [0, 1], an index is negative, or `u` and `pair` have
            different numbers of entries.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import Where
        >>> places = Where([0.0, 0.5, 1.0])  # three points of one path
        >>> places.u.tolist(), places.pair.tolist()
        ([0.0, 0.5, 1.0], [0, 0, 0])
    """

    u: Tensor
    pair: Tensor

    def __init__(self, u: Tensor | Sequence[float] | float, pair: Tensor | Sequence[int] | int = 0):
        u = torch.as_tensor(u, dtype=torch.float64, device="cpu").reshape(-1)
        pair = torch.as_tensor(pair, device="cpu")
        if pair.dtype.is_floating_point or pair.dtype == torch.bool or pair.ndim > 1:
            raise ValueError(f"`pair` must be whole numbers (K,), but got {pair}.")
        pair = pair.long().expand(len(u)) if pair.numel() == 1 else pair.long()
        if len(pair) != len(u):
            raise ValueError(
                f"`u` and `pair` must have one entry for each point, but got {len(u)} and "
                f"{len(pair)}."
            )
        if not ((u >= 0) & (u <= 1)).all():
            raise ValueError(f"`u` must be fractions in [0, 1], but got {u.tolist()}.")
        if (pair < 0).any():
            raise ValueError(f"`pair` must not be negative, but got {pair.tolist()}.")
        object.__setattr__(self, "u", u)
        object.__setattr__(self, "pair", pair)

    def __len__(self) -> int:
        return len(self.u)

    def __getitem__(self, index: slice | Tensor | Sequence[int] | int) -> Where:
        """The places of some of the points."""
        if isinstance(index, Tensor):
            index = index.cpu()
        some = object.__new__(Where)  # a part of valid places is valid
        object.__setattr__(some, "u", self.u[index].reshape(-1))
        object.__setattr__(some, "pair", self.pair[index].reshape(-1))
        return some

    def repeat_interleave(self, num: int) -> Where:
        """A copy in which each place is repeated `num` times."""
        return Where(self.u.repeat_interleave(num), self.pair.repeat_interleave(num))

    @classmethod
    def even(cls, num: int, pair: int = 0) -> Where:
        """The places of a path of `num` points at even fractions from 0 to 1."""
        return cls(torch.linspace(0, 1, num, dtype=torch.float64), pair)

    @classmethod
    def cat(cls, parts: Sequence[Where]) -> Where:
        """The places of several groups of points, one group after the other."""
        return cls(torch.cat([p.u for p in parts]), torch.cat([p.pair for p in parts]))
