"""Models that many visitors share."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import PIL.Image
import torch

from riemannian_diffusion.app.kept import KeptKeyframes
from riemannian_diffusion.app.models import Models, native_size
from riemannian_diffusion.events import Event
from riemannian_diffusion.geodesics import Geodesic
from riemannian_diffusion.pipelines import Keyframes
from riemannian_diffusion.pipelines.curves import check_metric
from riemannian_diffusion.pipelines.progress import TITLES
from riemannian_diffusion.pipelines.quality import verdict
from riemannian_diffusion.pipelines.starts import as_starts
from riemannian_diffusion.score.schedulers import is_flow

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
        verdict: How good the morph is, in one sentence.
    """

    name: str
    frames: list[PIL.Image.Image]
    geodesics: list[Geodesic | None]
    solves: list[list[Iteration]]
    errors: list[float]
    seconds: float
    warnings: list[str]
    verdict: str


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
        studio: Whose models work.
        visitor: Whose it is.
        model: The name of the model.
        report: Receives the name of a phase, its steps done, and its steps in all or None.

    Attributes:
        reused: Whether `invert` found what it had inverted before.
    """

    def __init__(self, studio: Studio, visitor: str | None, model: str, report: Report):
        self._studio, self._visitor, self._model, self._report = studio, visitor, model, report
        self._stop = threading.Event()
        self.reused = False

    def stop(self) -> None:
        """End the request at the next event or network call."""
        self._stop.set()

    @contextmanager
    def _pipe(self) -> Iterator[Any]:
        """The pipeline, when it is this request's turn; the model is loaded if need be."""
        with self._studio.turn:
            if self._stop.is_set():
                raise Cancelled
            models = self._studio.models
            if not models.is_loaded(self._model):
                self._report(f"Loading {self._model}", 0, None)
            yield models.get(self._model)

    def native_size(self) -> int:
        """Side of the images that the model was trained on, in pixels."""
        with self._pipe() as pipe:
            return native_size(pipe)

    def check(self, metrics: Sequence[str], space: str, starts: list[str] | None) -> None:
        """Refuse what the model cannot do, before any work.

        Raises:
            ValueError: If a metric, the space and the starts do not fit.
        """
        with self._pipe() as pipe:
            for metric in metrics:
                check_metric(metric, space, is_flow(pipe.scheduler))
        as_starts(starts, space)

    def invert(
        self, images: Sequence[PIL.Image.Image], *, seed: int, space: str = "noise", **options
    ) -> Keyframes:
        """Bring images into the space of a path, when it is this request's turn.

        If this visitor's images were inverted before with the same options, they are not again.

        Args:
            images: Images of one size.
            seed: Seed of all random numbers.
            space: See the stage `invert`.
            **options: Other options of the stage `invert`.

        Raises:
            Cancelled: If `stop` was called.
            ValueError: If the stage `invert` refuses an argument.
        """
        used = seed if space == "clean" else None
        name = hashlib.sha256(repr((self._model, space, used, sorted(options.items()))).encode())
        for image in images:
            name.update(repr((image.mode, image.size)).encode() + image.tobytes())
        kept, found = self._studio.kept, name.hexdigest()
        with self._pipe() as pipe:
            keys = kept.find(self._visitor, found)
            self.reused = keys is not None
            if keys is not None:
                return pipe.connect(keys)
            generator = torch.Generator().manual_seed(seed)
            options |= {"space": space, "generator": generator, "on_event": self._listen}
            keys = pipe.invert(images, **options)
            kept.keep(self._visitor, found, keys)
            return keys

    def morph(
        self,
        keys: Keyframes,
        metric: str,
        *,
        seed: int,
        attention_interpolation: float = 0.0,
        retime: str | None = None,
        share: float = 0.0,
        paste: bool = False,
        **options,
    ) -> Morph:
        """Find the path between keyframes, sample and decode it, when it is this request's turn.

        Args:
            keys: The keyframes.
            metric: Name of the metric.
            seed: Seed of all random numbers.
            attention_interpolation: See the stage `sample`.
            retime: The distance of the stage `retime`, or None.
            share: How far to go beyond the last keyframe, as in the stage `extend`.
            paste: Put the images in place of their reconstructions.
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
        with self._pipe() as pipe:
            start = time.perf_counter()
            path = pipe.solve(keys, metric, generator=generator, on_event=listen, **options)
            path = pipe.sample(
                path, attention_interpolation=attention_interpolation, on_event=listen
            )
            if retime is not None:
                path = pipe.retime(path, retime, on_event=listen)
            if share:
                path = pipe.extend(path, share, on_event=listen)
            found = pipe.render(path, paste_endpoints=paste, on_event=listen)
            seconds = time.perf_counter() - start
        return Morph(
            *(metric, found.frames, found.geodesics, energies.solves),
            *(found.reconstruction_error, seconds, found.warnings, verdict(found)),
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
    """Models that many visitors share, of whom one works at a time.

    Args:
        models: The models.
        kept: Where inverted images are kept for the next metric.

    Attributes:
        turn: Held while a model works: products with Jacobians switch flags of the network.
    """

    def __init__(self, models: Models, kept: KeptKeyframes | None = None):
        self.models, self.kept = models, KeptKeyframes() if kept is None else kept
        self.turn = threading.Lock()
        self._requests: dict[str | None, Request] = {}

    def stop(self, visitor: str | None) -> None:
        """Stop a visitor's request, if there is one."""
        request = self._requests.get(visitor)
        if request is not None:
            request.stop()

    def leave(self, visitor: str | None) -> None:
        """Stop a visitor's request and delete what was kept for them."""
        self.stop(visitor)
        self.kept.forget(visitor)

    @contextmanager
    def request(
        self, visitor: str | None, report: Report, model: str | None = None
    ) -> Iterator[Request]:
        """A request of a visitor, which `stop` ends.

        Args:
            visitor: Whose it is.
            report: See `Request`.
            model: The name of the model; None is the first.
        """
        model = self.models.names[0] if model is None else model
        request = self._requests[visitor] = Request(self, visitor, model, report)
        try:
            yield request
        finally:
            if self._requests.get(visitor) is request:  # and not a later one
                del self._requests[visitor]
