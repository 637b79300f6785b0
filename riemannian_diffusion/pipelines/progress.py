"""Progress bars that listen to events."""

from __future__ import annotations

from typing import Any

from riemannian_diffusion.events import Event

TITLES = {"invert": "Inverting", "solve": "Solving", "sample": "Sampling", "retime": "Re-timing"}


class ProgressBars:
    """Shows the bars of a diffusers pipeline, one for each stage.

    A solve ends when it converges, so its bar counts evaluations and predicts no end.

    Args:
        pipe: The pipeline, whose `progress_bar` is used.
    """

    def __init__(self, pipe: Any):
        self.pipe = pipe
        self._bar: Any = None
        self._stage = ""

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if event.stage not in TITLES:
            return
        starts_again = self._bar is not None and event.done < self._bar.n
        if event.stage != self._stage or starts_again:
            self.close()
            options = {"iterable": iter(())} if event.total is None else {"total": event.total}
            self._bar = self.pipe.progress_bar(**options)
            self._bar.set_description_str(TITLES[event.stage])
            self._stage = event.stage
        if event.energy is not None:
            self._bar.set_postfix(energy=f"{event.energy:.4g}", refresh=False)
        self._bar.update(event.done - self._bar.n)

    def close(self) -> None:
        """Finish the bar in progress."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ""
