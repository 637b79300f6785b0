"""How a pipeline runs a stage: progress, interruption and the state that callbacks see."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

from riemannian_diffusion.events import Event, Listener, run
from riemannian_diffusion.pipelines.callbacks import Interrupted
from riemannian_diffusion.pipelines.checks import check_listener
from riemannian_diffusion.pipelines.conditioning import ConditionedModel
from riemannian_diffusion.pipelines.progress import ProgressBars

T = TypeVar("T")


class RunningModel(ConditionedModel):
    """A model whose stages can be followed and stopped."""

    _interrupt: bool = False  # set by callbacks, listeners and other threads, as in diffusers
    _guidance_scale: float = 1.0
    _num_timesteps: int = 0

    @property
    def guidance_scale(self) -> float:
        """The guidance of the current step of sampling."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the current step of sampling is guided."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """The number of steps of the current sampling."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the current stage ends before its next step."""
        return self._interrupt

    def _run(self, events: Generator[Event, Any, T], on_event: Listener | None) -> T:
        """Run a stage to its end, shown by progress bars where nobody listens."""
        check_listener(on_event)
        bars = None if on_event is not None else ProgressBars(self)
        listener = on_event or bars
        assert listener is not None
        self._interrupt = False

        def follow(event: Event) -> Any:
            if self._interrupt and event.stage != "sample":  # a sampling ends with its step
                self._interrupt = False
                raise Interrupted(f"`pipe._interrupt` has stopped the stage {event.stage!r}.")
            return listener(event)

        try:
            return run(events, follow)
        finally:
            if bars is not None:
                bars.close()
            self.maybe_free_model_hooks()
