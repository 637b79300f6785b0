"""Finished morphs, and the energies of their solves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import PIL.Image

from riemannian_diffusion.events import Event
from riemannian_diffusion.geodesics import Geodesic


class Iteration(NamedTuple):
    """The state of a solve after an iteration."""

    num_evals: int
    energy: float


@dataclass(frozen=True)
class Morph:
    """One finished morph.

    Attributes:
        name: Name of the metric.
        frames: PIL images.
        geodesics: One per gap between images; None for a curve that is no geodesic.
        solves: Iterations of the solve of each gap; empty for a curve.
        errors: Reconstruction error of each image.
        seconds: Time that the path, its sampling and its decoding took, without inversion.
        warnings: Sentences about images that the model does not know or the morph does not show.
        verdict: How good the morph is, in one sentence.
        is_analogy: Whether it shows a third image, changed as the first changes to the second.
    """

    name: str
    frames: list[PIL.Image.Image]
    geodesics: list[Geodesic | None]
    solves: list[list[Iteration]]
    errors: list[float]
    seconds: float
    warnings: list[str]
    verdict: str
    is_analogy: bool = False

    @property
    def titles(self) -> list[str]:
        """A title for each of the geodesics."""
        if self.is_analogy:
            return [f"{self.name}, to image 2", f"{self.name}, to the other image"]
        if len(self.geodesics) == 1:
            return [self.name]
        return [f"{self.name}, gap {i + 1}" for i in range(len(self.geodesics))]


class Energies:
    """Records the energies of a solve from its events."""

    def __init__(self):
        self._done = 0
        self._spent: dict[int, int] = {}  # number of the gap -> evaluations for it
        self._found: dict[int, dict[int, float]] = {}  # gap -> evaluations -> energy

    def __call__(self, event: Event) -> None:
        """Record an event. One that comes again, as before every network call, changes nothing."""
        if event.stage != "solve" or event.energy is None:
            return
        self._spent[event.gap] = self._spent.get(event.gap, 0) + event.done - self._done
        self._done = event.done
        if event.iteration:
            iterations = self._found.setdefault(event.gap, {})
            iterations[self._spent[event.gap]] = event.energy

    @property
    def solves(self) -> list[list[Iteration]]:
        """The iterations of each gap, in order."""
        return [
            [Iteration(*one) for one in iterations.items()]
            for _, iterations in sorted(self._found.items())
        ]
