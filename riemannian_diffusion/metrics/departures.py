"""Whether a path leaves the data, and the tangents of the data, from the denoiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from riemannian_diffusion.score.model import ScoreModel
from riemannian_diffusion.score.where import Where

_LARGEST_EXCESS = 1.0  # of the residual over that at the ends, in standard deviations of the noise
_LARGEST_SHARE = 0.1  # the same, as a share of the residual at the ends
_LARGEST_STRETCH = 3.5
_ROUNDING = 16.0  # rounding error of a denoised point, relative to its dtype's
_LARGEST_MOVE = 2.0  # of a denoised point between neighbours, in standard deviations of the noise
_LARGEST_PART = 0.125  # the same, as a share of the mean distance between the points of a path


@dataclass(frozen=True, eq=False)
class Departure:
    """How far the points of a path lie from the data, and how far the denoiser moves between them.

    A path leaves the data in two ways. Its points may move away from the data: the residual grows.
    Or it may leap from one part of the data to another: the denoised points then move much farther
    than the points. Between two points at distance `d`, the largest stretch is `d^2 / (4 sigma^2)`
    and the largest residual is about `d / 2`. Data with gaps narrower than about four standard
    deviations of the noise count as connected, because the noise fills these gaps.

    Attributes:
        residuals: Norm of the residual `x - D(x)` at each point in standard deviations of the
            noise, `(K,)`.
        stretches: For each segment, the distance between the denoised points, less their rounding
            error, divided by the distance between the points, `(K - 1,)`.
        moves: For each segment, the distance between the denoised points in standard deviations of
            the noise, `(K - 1,)`.
    """

    residuals: Tensor
    stretches: Tensor
    moves: Tensor

    @classmethod
    def of(cls, path: Tensor, residual: Tensor, sigma: float) -> Departure:
        """The departure of a path.

        Args:
            path: The points, `(K, *shape)`.
            residual: Their residuals under S shared noises, `(K, S, *shape)`.
            sigma: Standard deviation of the noise, positive.
        """
        denoised = (path[:, None] - residual).flatten(2)
        moved = (denoised[1:] - denoised[:-1]).norm(dim=2).mean(1)
        steps = (path[1:] - path[:-1]).flatten(1).norm(dim=1)
        # between nearly equal points, rounding errors of the values would look like leaps
        moved = moved - _ROUNDING * torch.finfo(path.dtype).eps * path[1:].flatten(1).norm(dim=1)
        stretches = torch.where(steps > 0, moved.clamp(min=0) / steps.clamp(min=1e-30), 1.0)
        return cls(residual.flatten(2).norm(dim=2).mean(1) / sigma, stretches, moved / sigma)

    @property
    def on_data(self) -> bool | None:
        """Whether the path stays on the data; None unless the score is finite at all its points.

        The residual may exceed the larger one at the ends by one standard deviation and a tenth of
        that residual. The stretch may be up to 3.5. The benchmark of departures chose these limits.
        """
        if not (self.residuals.isfinite().all() and self.stretches.isfinite().all()):
            return None
        at_ends = float(self.residuals[[0, -1]].max())
        excess = float(self.residuals.max()) - at_ends
        small = excess <= _LARGEST_EXCESS + _LARGEST_SHARE * at_ends
        return small and bool((self.stretches <= _LARGEST_STRETCH).all())

    def shows_leaps(self, num_points: int) -> bool:
        """Whether the segments are short enough to show a leap, or show one.

        A segment that is longer than a leap hides it. So no denoised point may move farther than
        two standard deviations of the noise, or an eighth of the mean distance between the points
        of the path, if that is more. This hides no leap of twice that size, even where a point lies
        in its middle. If values are not finite, shorter segments would show no more.

        Args:
            num_points: Number of points of the path, at least 2.
        """
        mean = float(self.moves.sum()) / (num_points - 1)
        hidden = (self.moves > max(_LARGEST_MOVE, _LARGEST_PART * mean)).any()
        return self.on_data is False or not bool(hidden)


@torch.no_grad()
def departure_of(score: ScoreModel, path: Tensor, where: Where) -> Departure:
    """The departure of a path `(K, *shape)`, with one evaluation of the score for each point."""
    return Departure.of(path, -(score.sigma**2) * score.stack(path, where), score.sigma)


def on_data_tangents(score: ScoreModel, x: Tensor, v: Tensor) -> Tensor:
    """Project a tangent at a point onto the tangents of the data, all `shape`.

    Near the data, the Jacobian J of the denoiser is close to this projection. Where it is not
    exactly one, `3 J^2 - 2 J^3` is closer: its eigenvalues near 0 and 1 are nearer to 0 and 1
    (McWeeny, Rev. Mod. Phys. 32, 335, 1960).
    """

    def denoised(v: Tensor) -> Tensor:
        return v + score.sigma**2 * score.stack_jvp(x[None], v[None]).mean(1)[0]

    twice = denoised(denoised(v))
    return 3 * twice - 2 * denoised(twice)
