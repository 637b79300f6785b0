"""Problems: two points, and first paths between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_points, check_whole, kind_of
from riemannian_diffusion.paths import lerp, slerp

Start = str | Tensor | Callable[[Tensor, Tensor, int], Tensor] | None

_CURVES: dict[str | None, Callable[[Tensor, Tensor, int], Tensor]] = {
    None: lerp,
    "lerp": lerp,
    "slerp": slerp,
}


@dataclass(frozen=True, eq=False)
class Problem:
    """Two points that a geodesic is to join, and the paths from which the solver starts.

    The points and the starts are copied in float64 if one of the points is float64, else in
    float32.

    Attributes:
        x0: The first point, `shape`.
        x1: The last point, `shape`.
        starts: Paths of at least 2 points, `(K, *shape)`. Their end points are replaced by `x0` and
            `x1`. The solution is the geodesic of least energy among those from all starts.
        pair: Index of this pair of points, for scores that differ between pairs.
        guessed: For each start, whether it is only a guess, such as a straight line. The solve may
            then begin on coarse curves through it. Empty if no start is a guess.

    Raises:
        ValueError: If points or starts are not finite or differ in shape, or there is no start.
    """

    x0: Tensor
    x1: Tensor
    starts: Sequence[Tensor]
    pair: int = 0
    guessed: Sequence[bool] = ()

    def __post_init__(self):
        check_ends(self.x0, self.x1)
        check_whole(0, pair=self.pair)
        if not self.starts:
            raise ValueError("`init` must name at least one start, but got an empty list.")
        wide = torch.float64 in (self.x0.dtype, self.x1.dtype)
        dtype = torch.float64 if wide else torch.float32
        with torch.inference_mode(False):
            x0, x1 = (x.detach().to(dtype, copy=True) for x in (self.x0, self.x1))
            starts = tuple(self._held(start, x0, x1) for start in self.starts)
        for name, value in (("x0", x0), ("x1", x1), ("starts", starts)):
            object.__setattr__(self, name, value)

    @staticmethod
    def _held(path: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
        if not isinstance(path, Tensor):
            raise ValueError(f"`init` must return a path, but gave {kind_of(path)}.")
        path = path.detach().to(x0)
        if path.ndim != x0.ndim + 1 or path.shape[1:] != x0.shape or len(path) < 2:
            raise ValueError(
                f"`init` must be at least 2 points (K, *{tuple(x0.shape)}), but got "
                f"{tuple(path.shape)}."
            )
        if not path.isfinite().all():
            raise ValueError("`init` must be finite.")
        return torch.cat([x0[None], path[1:-1], x1[None]])

    @classmethod
    def between(
        cls,
        x0: Tensor,
        x1: Tensor,
        *,
        num_points: int = 17,
        init: Start | Sequence[Start] = None,
        pair: int = 0,
    ) -> Problem:
        """Build a problem whose starts are names, paths or functions.

        Args:
            x0: The first point, `shape`.
            x1: The last point, `shape`.
            num_points: Number of points of each path, at least 2.
            init: "lerp", "slerp", a path `(num_points, *shape)`, a function `(x0, x1, num_points)
                -> path`, or a list of these. None takes "lerp".
            pair: Index of this pair of points.

        Raises:
            ValueError: As in the class, or if `num_points` or `init` is invalid.
        """
        check_ends(x0, x1)
        check_whole(2, num_points=num_points)
        wide = torch.float64 if torch.float64 in (x0.dtype, x1.dtype) else torch.float32
        with torch.inference_mode(False):
            x0, x1 = (x.detach().to(wide, copy=True) for x in (x0, x1))
            starts = [_start(one, x0, x1, num_points) for one in listed(init)]
        return cls(x0, x1, starts, pair, [not isinstance(one, Tensor) for one in listed(init)])


def listed(init: Start | Sequence[Start]) -> list[Start]:
    """One start or several, as a list."""
    return list(init) if isinstance(init, (list, tuple)) else [init]  # type: ignore[list-item]


def check_ends(x0: Tensor, x1: Tensor) -> None:
    """Raise a `ValueError` if points are not finite or differ in shape."""
    check_points(x0=x0, x1=x1)
    if x0.shape != x1.shape or x0.ndim == 0 or x0.numel() == 0:
        raise ValueError(
            "`x0` and `x1` must be points of one shape, "
            f"but got {tuple(x0.shape)} and {tuple(x1.shape)}."
        )


def _start(init: Start, x0: Tensor, x1: Tensor, num_points: int) -> Tensor:
    if init is None or isinstance(init, str):
        init = _CURVES.get(init, init)
    if not (isinstance(init, Tensor) or callable(init)):
        raise ValueError(f"`init` must be 'slerp', 'lerp', a path or a callable, but got {init!r}.")
    path = init if isinstance(init, Tensor) else init(x0, x1, num_points)
    if isinstance(path, Tensor) and path.shape != (num_points, *x0.shape):
        raise ValueError(f"`init` must be {(num_points, *x0.shape)}, but got {tuple(path.shape)}.")
    return path
