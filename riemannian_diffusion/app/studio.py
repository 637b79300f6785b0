"""Models that many visitors share."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import PIL.Image
import torch

from riemannian_diffusion.adaptation import Adaptation
from riemannian_diffusion.adaptation import adapt as fit
from riemannian_diffusion.adaptation.keyframes import EMBEDDING_STEPS, LORA_STEPS
from riemannian_diffusion.app.inputs import ANALOGY
from riemannian_diffusion.app.kept import KeptWork
from riemannian_diffusion.app.models import Models, native_size
from riemannian_diffusion.app.morphs import Energies, Morph
from riemannian_diffusion.events import Event, Listener
from riemannian_diffusion.pipelines import Keyframes
from riemannian_diffusion.pipelines.curves import check_metric
from riemannian_diffusion.pipelines.expected import progress_of_solve
from riemannian_diffusion.pipelines.progress import TITLES
from riemannian_diffusion.pipelines.quality import verdict
from riemannian_diffusion.pipelines.retiming import find_distance
from riemannian_diffusion.pipelines.starts import as_starts
from riemannian_diffusion.pipelines.tolerance import RTOL
from riemannian_diffusion.score import Conditions
from riemannian_diffusion.score.schedulers import is_flow

Report = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Inverted:
    """Images in the space of a path.

    Attributes:
        keys: The keyframes.
        third: An image that is to change as they do, or None.
        theirs: The conditions of this image, or None.
    """

    keys: Keyframes
    third: PIL.Image.Image | None = None
    theirs: Conditions | None = None


class Cancelled(Exception):
    """A request was stopped."""


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
        self,
        images: Sequence[PIL.Image.Image],
        third: PIL.Image.Image | None = None,
        *,
        seed: int,
        space: str = "noise",
        prompt: str | list[str] = "",
        negative_prompt: str = "",
        adapt: str | None = None,
        **options,
    ) -> Inverted:
        """Bring images into the space of a path, when it is this request's turn.

        If this visitor's images were inverted before with the same options, they are not again.

        Args:
            images: Images of one size.
            third: An image that is to change as they do, or None.
            seed: Seed of all random numbers.
            space: See the stage `invert`.
            prompt: One prompt, or one for each image, that of the third image last.
            negative_prompt: See the stage `condition`.
            adapt: What is fitted to the images first, "embeddings", "lora" or "both"; or None.
            **options: Other options of the stage `invert`.

        Raises:
            Cancelled: If `stop` was called.
            ValueError: If a stage refuses an argument.
        """
        num, shown = len(images), [*images] if third is None else [*images, third]
        if isinstance(prompt, list) and third is not None and len(prompt) != len(shown):
            raise ValueError(
                f"`prompt` must be one line, or one for each of {len(shown)} images, but got "
                f"{len(prompt)}: the last is that of “{ANALOGY}”."
            )
        kept = self._studio.kept
        with self._pipe() as pipe:
            fitted = None if adapt is None else self._fitted(pipe, shown, prompt, adapt, seed)
            conditions = pipe.condition(prompt, negative_prompt, adaptation=fitted)
            theirs = None
            if third is not None:
                theirs = conditions.at_knots([num])
                conditions = conditions.at_knots(range(num))
                prompt = prompt[:num] if isinstance(prompt, list) else prompt
            used = seed if space == "clean" else None
            settings = (space, prompt, negative_prompt, used, sorted(options.items()))
            fit = None if adapt is None else (adapt, seed)
            name = self._name(images, settings, fit)
            keys = kept.find(self._visitor, name, Keyframes)
            self.reused = keys is not None
            if keys is not None:
                keys = pipe.connect(keys)
            else:
                options |= {"space": space, "generator": _seeded(seed), "on_event": self._listen}
                keys = pipe.invert(images, conditions=conditions, **options)
                kept.keep(self._visitor, name, keys)
        if theirs is not None:  # keyframes that were kept have their own copy of the LoRAs
            theirs = replace(theirs, loras=keys.levels.conditions.loras)
        return Inverted(keys, third, theirs)

    def _fitted(
        self,
        pipe: Any,
        images: Sequence[PIL.Image.Image],
        prompt: str | list[str],
        what: str,
        seed: int,
    ) -> Adaptation:
        """What is fitted to the images, or was before."""
        kept, name = self._studio.kept, self._name(images, (what, seed, prompt))
        found = kept.find(self._visitor, name, Adaptation)
        if found is None:
            steps = {
                "embeddings": EMBEDDING_STEPS if what != "lora" else 0,
                "loras": LORA_STEPS if what != "embeddings" else 0,
            }

            def follow(part: str, image: int, step: int, loss: float) -> None:
                if self._stop.is_set():
                    raise Cancelled
                done, total = image * steps[part] + step + 1, len(images) * steps[part]
                self._report(f"Fitting {part}", done, total)

            pipe.set_progress_bar_config(disable=True)
            found = fit(
                *(pipe, images, prompt),
                embedding_steps=steps["embeddings"],
                lora_steps=steps["loras"],
                seed=seed,
                callback=follow,
            )
            kept.keep(self._visitor, name, found)
        return found

    def _name(self, images: Sequence[PIL.Image.Image], *settings: Any) -> str:
        """A name for work that depends on the model, on images and on settings."""
        name = hashlib.sha256(repr((self._model, settings)).encode())
        for image in images:
            name.update(repr((image.mode, image.size)).encode() + image.tobytes())
        return name.hexdigest()

    def morphs(
        self,
        inverted: Inverted,
        metrics: Sequence[str],
        *,
        seed: int,
        attention_interpolation: float = 0.0,
        retime: str | None = None,
        share: float = 0.0,
        paste: bool = False,
        **options,
    ) -> Iterator[Morph]:
        """Yield the morphs by several metrics, whose paths are sampled in one batch.

        Every stage waits for this request's turn. If a metric cannot be solved for, the morphs by
        those before it are yielded before its error is raised.

        Args:
            inverted: What `invert` returned.
            metrics: Names of the metrics.
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
        solved: list[tuple[Energies, float]] = []
        paths: list[Any] = []
        distance = problem = None
        if retime is not None:
            with self._pipe() as pipe:  # before the work, as its weights may be missing
                distance = find_distance(retime, pipe.device_of_work)
        for metric in metrics:
            with self._pipe() as pipe:
                energies, start = Energies(), time.perf_counter()
                given, num_gaps = options["num_frames"], inverted.keys.num_gaps
                num_frames = given if isinstance(given, list) else [given] * num_gaps
                listen = self._told_of_solve(metric, energies, num_frames, options)
                try:
                    path = pipe.solve(
                        inverted.keys, metric, generator=_seeded(seed), on_event=listen, **options
                    )
                except Exception as error:
                    if isinstance(error, Cancelled) or not paths:
                        raise
                    problem, metrics = error, metrics[: len(paths)]  # show what is solved first
                    break
                solved.append((energies, time.perf_counter() - start))
                paths.append(path)
        with self._pipe() as pipe:
            start, listen = time.perf_counter(), self._told(" and ".join(metrics))
            paths = pipe.sample(
                paths, attention_interpolation=attention_interpolation, on_event=listen
            )
            sampling = (time.perf_counter() - start) / len(paths)
        for metric, path, (energies, solving) in zip(metrics, paths, solved, strict=True):
            with self._pipe() as pipe:
                start, listen, solves = time.perf_counter(), self._told(metric), energies.solves
                if distance is not None:
                    path = pipe.retime(path, distance, on_event=listen)
                if share:
                    path = pipe.extend(path, share, on_event=listen)
                if inverted.third is not None:
                    other = Energies()
                    path = pipe.transport(
                        *(path, inverted.third),
                        conditions=inverted.theirs,
                        max_evals=options["max_evals"],
                        on_event=self._told_of_solve(metric, other, [len(path.times)], options),
                    )
                    solves = solves + other.solves
                found = pipe.render(path, paste_endpoints=paste, on_event=listen)
                seconds = solving + sampling + time.perf_counter() - start
            errors, is_analogy = found.reconstruction_error, inverted.third is not None
            if is_analogy:  # its path runs from the second image by the first to the third
                errors = [errors[1], errors[0], errors[2]]
            yield Morph(
                *(metric, found.frames, found.geodesics, solves, errors, seconds),
                *(found.warnings, verdict(found), is_analogy),
            )
        if problem is not None:
            raise problem

    def _told(self, prefix: str) -> Listener:
        """A listener that reports events after a prefix."""
        return lambda event: self._listen(event, f"{prefix}: ")

    def _told_of_solve(
        self, metric: str, energies: Energies, num_frames: list[int], options: dict[str, Any]
    ) -> Listener:
        """A listener that records energies, and reports how many evaluations are expected."""
        progress = progress_of_solve(
            metric, num_frames, options.get("init"), RTOL, options["max_evals"]
        )

        def listen(event: Event) -> None:
            energies(event)
            if progress is not None and event.stage == "solve" and event.total is None:
                progress(event)
                event = replace(event, total=progress.total())
            self._listen(event, f"{metric}: ")

        return listen

    def _listen(self, event: Event, prefix: str = "") -> None:
        """Report how far a stage is, and end it after `stop`."""
        if self._stop.is_set():
            raise Cancelled
        if event.stage in TITLES:
            energy = "" if event.energy is None else f", energy {event.energy:.4g}"
            phase = f"{prefix}{TITLES[event.stage]}{energy}"
            self._report(phase, event.done, event.total)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Studio:
    """Models that many visitors share, of whom one works at a time.

    Args:
        models: The models.
        kept: Where inverted images are kept for the next metric.

    Attributes:
        turn: Held while a model works: products with Jacobians switch flags of the network.
    """

    def __init__(self, models: Models, kept: KeptWork | None = None):
        self.models, self.kept = models, KeptWork() if kept is None else kept
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
