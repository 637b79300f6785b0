"""Options of sampling a path, one gap between keyframes at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from riemannian_diffusion.adaptation import interpolated_attention
from riemannian_diffusion.score import ScoreModel


def over_gaps(
    function: Callable[[Tensor, Tensor], Tensor], path: Tensor, places: Tensor, num_frames: int
) -> Tensor:
    """A function of the points of one gap `(num_frames, *shape)` and their places, for each gap.

    Keyframes belong to two gaps; the second's value of it is dropped.
    """
    pieces = []
    for start in range(0, len(path) - 1, num_frames - 1):
        here = slice(start, start + num_frames)
        value = function(path[here], places[here])
        pieces.append(value[1:] if start else value)
    return torch.cat(pieces)


class InterpolatedAttentionScore(ScoreModel):
    """A score whose network reads keys and values interpolated between those of two keyframes.

    Args:
        score: Of the whole path; it must take a gap's points as one batch.
        network: That the score evaluates.
        places: Of the path's points, `(F,)`, fractions of it.
        num_frames: From one keyframe to the next, both included.
    """

    def __init__(self, score: ScoreModel, network: nn.Module, places: Tensor, num_frames: int):
        self.alpha, self.sigma = score.alpha, score.sigma
        self.score, self.network, self.places = score, network, places
        self.num_frames = num_frames

    def __call__(self, x: Tensor) -> Tensor:
        """The score at every point of the path."""

        def evaluate(points: Tensor, places: Tensor) -> Tensor:
            fractions = (places - places[0]) / (places[-1] - places[0])
            with interpolated_attention(self.network, fractions):
                return self.score.along(places)(points)

        return over_gaps(evaluate, x, self.places, self.num_frames)
