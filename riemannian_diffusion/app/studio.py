"""A pipeline that many visitors share."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import PIL.Image
import torch

from riemannian_diffusion.geodesics import Geodesic, PathLBFGS
from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin

Report = Callable[[str, int, int], None]


class Iteration(NamedTuple):
    """Where a solve was after an iteration."""

    num_evals: int
    energy: float


@dataclass(frozen=True)
class Morph:
    """One finished morph.

    Attributes:
        name: Of the metric.
        frames: PIL images.
        geodesics: One per gap between images; None for a curve that is no geodesic.
        solves: Iterations of each solve.
        errors: Reconstruction error of each image.
        seconds: It took.
    """

    name: str
    frames: list[PIL.Image.Image]
    geodesics: list[Geodesic | None]
    solves: list[list[Iteration]]
    errors: list[float]
    seconds: float


class Cancelled(Exception):
    """A request was told to stop."""


class _Bar:
    """What the pipeline takes for a progress bar: tells of every step."""

    def __init__(self, report: Report, total: int):
        self.n, self._total, self._report, self._text, self._more = 0, total, report, "", ""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def set_description(self, text: str) -> None:
        self._text = text

    def set_postfix(self, energy: str, refresh: bool) -> None:
        self._more = f", energy {energy}"

    def update(self, steps: int = 1) -> None:
        self.n += steps
        self._report(self._text + self._more, self.n, self._total)


class _RecordingLBFGS(PathLBFGS):
    """The default solver; keeps energies against evaluations, one list for each solve."""

    def __init__(self):
        super().__init__()
        self.solves: list[list[Iteration]] = []

    def iterate(self, points, flat_energy, max_evals):
        iterates: list[Iteration] = []
        self.solves.append(iterates)
        steps = super().iterate(points, flat_energy, max_evals)
        told, num_evals = None, 0
        while True:
            try:
                step = steps.send(told)
            except StopIteration:
                return
            if isinstance(step, tuple):
                iterates.append(Iteration(num_evals, step[1]))
            else:
                num_evals += 1
            told = yield step


class Studio:
    """A pipeline that many visitors share: one morph at a time, none mixed with another.

    Args:
        pipe: The pipeline; it is never called itself.
    """

    def __init__(self, pipe: GeodesicInterpolationMixin):
        self.pipe = pipe
        self._turn = threading.Lock()  # products with Jacobians switch flags of the network
        self._stops: dict[str, threading.Event] = {}

    @property
    def native_size(self) -> int:
        """Side of the images that the model was trained on, in pixels."""
        pipe = self.pipe
        side = pipe._network.config.get("sample_size") or pipe.default_sample_size
        return side * getattr(pipe, "vae_scale_factor", 1)

    def stop(self, visitor: str) -> None:
        """Tell the visitor's morph to stop, where there is one."""
        stop = self._stops.get(visitor)
        if stop is not None:
            stop.set()

    def morph(
        self, visitor: str, metric: str, report: Report, *, images: Sequence, seed: int, **options
    ) -> Morph:
        """Morph images, when it is this one's turn.

        Args:
            visitor: Whose it is, for `stop`.
            metric: A name.
            report: Told of a phase, its steps done and its steps in all.
            images: Of one size.
            seed: Of what is random.
            **options: Of the pipeline.

        Raises:
            Cancelled: If `stop` was called.
            ValueError: As the pipeline.
        """
        stop = self._stops[visitor] = threading.Event()
        try:
            with self._turn:
                solver, start = _RecordingLBFGS(), time.perf_counter()
                with self._for_request(report, stop) as pipe:
                    output = pipe(
                        images,
                        metric=metric,
                        solver=solver,
                        generator=torch.Generator().manual_seed(seed),
                        **options,
                    )
                seconds = time.perf_counter() - start
        finally:
            if self._stops.get(visitor) is stop:  # and not that of a later morph
                del self._stops[visitor]
        errors = output.reconstruction_error
        return Morph(metric, output.frames, output.geodesics, solver.solves, errors, seconds)

    @contextmanager
    def _for_request(self, report: Report, stop: threading.Event) -> Iterator:
        """The pipeline with a state of its own: tells how far it is, and stops when told to."""

        def check(*_) -> None:  # bars would stop a solve between iterations, and curves not at all
            if stop.is_set():
                raise Cancelled

        pipe = copy.copy(self.pipe)
        pipe.progress_bar = lambda iterable=None, total=None: _Bar(report, total)
        hook = pipe._network.register_forward_pre_hook(check)
        try:
            yield pipe
        finally:
            hook.remove()
