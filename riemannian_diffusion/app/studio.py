"""A pipeline that many visitors share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import PIL.Image
import torch

from riemannian_diffusion.events import Event
from riemannian_diffusion.geodesics import Geodesic
from riemannian_diffusion.pipelines import Keyframes
from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin
from riemannian_diffusion.pipelines.progress import TITLES

Report = Callable[[str, int, int | None], None]


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
    """

    name: str
    frames: list[PIL.Image.Image]
    geodesics: list[Geodesic | None]
    solves: list[list[Iteration]]
    errors: list[float]
    seconds: float
    warnings: list[str]


class Cancelled(Exception):
    """A request was stopped."""


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


class Request:
    """The work that one visitor asks for; `Studio.request` makes it.

    Args:
        pipe: The pipeline.
        turn: Held while the pipeline works.
        report: Receives the name of a phase, its steps done, and its steps in all or None.
    """

    def __init__(self, pipe: GeodesicInterpolationMixin, turn: threading.Lock, report: Report):
        self.pipe, self._turn, self._report = pipe, turn, report
        self._stop = threading.Event()

    def stop(self) -> None:
        """End the request at the next event or network call."""
        self._stop.set()

    def invert(self, images: Sequence, *, seed: int, **options) -> Keyframes:
        """Bring images into the space of a path, when it is this request's turn.

        Args:
            images: Images of one size.
            seed: Seed of all random numbers.
            **options: Options of the stage `invert`.

        Raises:
            Cancelled: If `stop` was called.
            ValueError: If the stage `invert` refuses an argument.
        """
        generator = torch.Generator().manual_seed(seed)
        with self._turn:
            return self.pipe.invert(images, generator=generator, on_event=self._listen, **options)

    def morph(self, keys: Keyframes, metric: str, *, seed: int, **options) -> Morph:
        """Find the path between keyframes, sample and decode it, when it is this request's turn.

        Args:
            keys: The keyframes.
            metric: Name of the metric.
            seed: Seed of all random numbers.
            **options: Options of the stage `solve`.

        Raises:
            Cancelled: If `stop` was called.
            ValueError: If a stage refuses an argument.
        """
        energies = Energies()

        def listen(event: Event) -> None:
            self._listen(event, f"{metric}: ")
            energies(event)

        generator = torch.Generator().manual_seed(seed)
        with self._turn:
            start = time.perf_counter()
            path = self.pipe.solve(keys, metric, generator=generator, on_event=listen, **options)
            path = self.pipe.sample(path, on_event=listen)
            found = self.pipe.render(path, on_event=listen)
            seconds = time.perf_counter() - start
        return Morph(
            *(metric, found.frames, found.geodesics, energies.solves),
            *(found.reconstruction_error, seconds, found.warnings),
        )

    def _listen(self, event: Event, prefix: str = "") -> None:
        """Report how far a stage is, and end it after `stop`."""
        if self._stop.is_set():
            raise Cancelled
        if event.stage in TITLES:
            energy = "" if event.energy is None else f", energy {event.energy:.4g}"
            phase = f"{prefix}{TITLES[event.stage]}{energy}"
            self._report(phase, event.done, event.total)


class Studio:
    """A pipeline that many visitors share, of whom one works at a time.

    Args:
        pipe: The pipeline.
    """

    def __init__(self, pipe: GeodesicInterpolationMixin):
        self.pipe = pipe
        self._turn = threading.Lock()  # products with Jacobians switch flags of the network
        self._requests: dict[str | None, Request] = {}

    @property
    def native_size(self) -> int:
        """Side of the images that the model was trained on, in pixels."""
        pipe: Any = self.pipe
        side = pipe.network.config.get("sample_size") or pipe.default_sample_size
        return side * getattr(pipe, "vae_scale_factor", 1)

    def stop(self, visitor: str | None) -> None:
        """Stop a visitor's request, if there is one."""
        request = self._requests.get(visitor)
        if request is not None:
            request.stop()

    @contextmanager
    def request(self, visitor: str | None, report: Report) -> Iterator[Request]:
        """A request of a visitor, which `stop` ends.

        Args:
            visitor: Whose it is.
            report: As in `Request`.
        """
        request = self._requests[visitor] = Request(self.pipe, self._turn, report)
        try:
            yield request
        finally:
            if self._requests.get(visitor) is request:  # and not a later one
                del self._requests[visitor]
