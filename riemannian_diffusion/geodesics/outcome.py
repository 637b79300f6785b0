"""The result of a solve: a geodesic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from riemannian_diffusion.arguments import check_path
from riemannian_diffusion.paths import points_at, segment_lengths

SETTLED = 0.05  # largest relative change of a settled energy when its sampling is doubled
MESSAGES = {
    "converged": "By the solver's estimate, the energy is close to its minimum near this path.",
    "max_evals": "The energy was still falling when `max_evals` was reached: raise it.",
    "nonfinite": "The model returned a non-finite value; the path is the best finite one before "
    "that. Check the inputs, or run the network in a wider dtype.",
    "rounding": "Neighbouring points differ by less than the dtype of the points or of the network "
    "resolves; the path is that of the start, or a rough one. Use a wider dtype, or give the path "
    "fewer points.",
}


OFF_DATA = (
    "The path leaves the data: along it, the model's denoised points jump, or the points move away "
    "from them. Its middle shows what the model does not know. Start from another path, such as a "
    "roadmap, or solve at a higher noise level."
)
UNSETTLED = "The energy is too {}: it still changed by {:.0%} when its sampling was last doubled."


@dataclass(frozen=True, eq=False)
class Geodesic:
    """A path of least energy between two points, and how it was found.

    Attributes:
        path: Points at equal distances along the path, `(K, *shape)`. The first and the last point
            are the given points bit for bit. For metrics that read a score, distances are flat
            lengths along the smooth curve through the nodes; for others, lengths in the metric (see
            `Metric.flat_pace`).
        energy: Energy of the smooth curve through the nodes (see `smooth`). An optimised energy can
            miss high energies between its points. This energy is evaluated on more and more chords,
            until it changes by at most 5 % and the chords are short against the noise of the score
            (see `Departure.shows_leaps`).
        lower_bound: A lower bound of the energy of all paths between these points. If it is
            unknown, 0, or minus infinity if energies may be negative.
        num_evals: Number of evaluations of energy and gradient, over all starts and metrics.
        status: "converged", "max_evals", "nonfinite" or "rounding"; `message` says what to do.
        iterates: Number of evaluations and optimised energy, at the start and after every
            iteration. They belong to the last metric that was solved, and to the best start. The
            energies of coarse curves are somewhat too low.
        curve: The path with more points, `(N, *shape)`; None takes `path`.
        arc: Length up to each point of the curve, `(N,)`, float64 on the CPU; None takes the flat
            length.
        nodes: The points that the solver found, `(K, *shape)`, which are not evenly spaced; None
            takes `path`.
        on_data: Whether the path stays on the data (see `Departure.on_data`); None if the metric
            reads no score, or the score is not finite.
        energy_change: Relative change of the energy when its sampling was last doubled. Above 5 %,
            the energy is only a lower estimate, and below -5 % an upper one.

    Raises:
        ValueError: If `path` has fewer than 2 points, `status` is unknown, or the shapes of
            `curve`, `arc`, `nodes` and `path` do not fit.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import GaussianMixtureScore
        >>> from riemannian_diffusion import TangentNormalMetric
        >>> from riemannian_diffusion import geodesic
        >>> angles = torch.arange(64) * 2 * torch.pi / 64
        >>> circle = torch.stack([angles.cos(), angles.sin()], 1)
        >>> score = GaussianMixtureScore(circle, 0.2)
        >>> metric = TangentNormalMetric(score)
        >>> found = geodesic(metric, circle[0], circle[9], num_points=9)
        >>> tuple(found.path.shape), tuple(found(0.5).shape)
        ((9, 2), (2,))
        >>> found.energy >= found.lower_bound
        True
    """

    path: Tensor
    energy: float
    lower_bound: float = 0.0
    num_evals: int = 0
    status: str = "converged"
    iterates: tuple[tuple[int, float], ...] = ()
    curve: Tensor = field(default=None, repr=False)  # type: ignore[assignment]
    arc: Tensor = field(default=None, repr=False)  # type: ignore[assignment]
    nodes: Tensor = field(default=None, repr=False)  # type: ignore[assignment]
    on_data: bool | None = None
    energy_change: float = 0.0

    def __post_init__(self):
        check_path(self.path)
        if self.status not in MESSAGES:
            raise ValueError(f"`status` must be one of {list(MESSAGES)}, but got {self.status!r}.")
        if self.curve is None and self.arc is not None:
            raise ValueError("`arc` is the length along `curve`: give both, or neither.")
        for name in ("curve", "nodes"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.path)
        if self.arc is None:
            lengths = segment_lengths(self.curve.detach()).cpu().double()
            arc = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
            object.__setattr__(self, "arc", arc)
        if self.curve.shape[1:] != self.path.shape[1:] or self.arc.shape != self.curve.shape[:1]:
            raise ValueError(
                f"`curve` must be (N, *shape) and `arc` (N,), but got {tuple(self.curve.shape)} "
                f"and {tuple(self.arc.shape)} for a path {tuple(self.path.shape)}."
            )
        if self.nodes.shape != self.path.shape:
            raise ValueError(
                f"`nodes` must be {tuple(self.path.shape)} like `path`, but got "
                f"{tuple(self.nodes.shape)}."
            )
        for name in ("energy", "lower_bound", "energy_change"):
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "num_evals", int(self.num_evals))
        records = tuple((int(num), float(energy)) for num, energy in self.iterates)
        object.__setattr__(self, "iterates", records)

    @property
    def message(self) -> str:
        """What the result means, and what to do if it is not good."""
        sentences = [MESSAGES[self.status]]
        if abs(self.energy_change) > SETTLED:
            wrong = "low" if self.energy_change > 0 else "high", abs(self.energy_change)
            sentences.append(UNSETTLED.format(*wrong))
        if self.on_data is False:
            sentences.append(OFF_DATA)
        return " ".join(sentences)

    @property
    def length(self) -> float:
        """Length of the path, as `arc` measures it; NaN if the energy is not finite."""
        return float(self.arc[-1]) if math.isfinite(self.energy) else math.nan

    def __call__(self, u: Tensor | Sequence[float] | float) -> Tensor:
        """Points at fractions of the length.

        Args:
            u: Fractions `(U,)` or a single number, in [0, 1]. Fractions 0 and 1 give the end points
                bit for bit.

        Returns:
            Points `(U, *shape)`, or one point `shape` for a single number.

        Raises:
            ValueError: If a fraction lies outside [0, 1].
        """
        try:
            fractions = torch.as_tensor(u, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"`u` must be numbers in [0, 1], but got {u!r}.") from error
        if fractions.ndim > 1:
            raise ValueError(f"`u` must be one number or (U,), but got {tuple(fractions.shape)}.")
        if not ((fractions >= 0) & (fractions <= 1)).all():
            raise ValueError(f"`u` must lie in [0, 1], but got {u}.")
        points = points_at(self.curve, self.arc, fractions.reshape(-1))
        return points if fractions.ndim else points[0]

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The geodesic as tensors and JSON values, for a file.

        Returns:
            Tensors by name, and the other fields by name.
        """
        tensors = {"path": self.path, "arc": self.arc}
        if self.curve is not self.path:
            tensors["curve"] = self.curve
        if self.nodes is not self.path:
            tensors["nodes"] = self.nodes
        values = {
            "energy": self.energy,
            "lower_bound": self.lower_bound,
            "num_evals": self.num_evals,
            "status": self.status,
            "iterates": [list(record) for record in self.iterates],
            "on_data": self.on_data,
            "energy_change": self.energy_change,
        }
        return tensors, values

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Geodesic:
        """The geodesic from which `to_tensors` made these, bit for bit."""
        path = tensors["path"]
        curve, nodes = (tensors.get(name, path) for name in ("curve", "nodes"))
        return cls(path=path, curve=curve, arc=tensors["arc"], nodes=nodes, **values)
