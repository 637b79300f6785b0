"""Progress bars and estimates of the time left, which listen to events."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from riemannian_diffusion.events import Event

USUAL_EVALS = 30  # evaluations of a gap until a solve usually converges
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


class Estimate:
    """Predicts the time left of a job of several stages from the time that its passes took so far.

    A solve ends when it converges. It is expected to take the usual number of evaluations, and a
    quarter more than it has taken once that is above it.

    Args:
        passes: The expected passes of each stage, in order. A pass is one point given to the
            network; an evaluation with its gradient counts as two.
        points: The points that the network is given at a time in "invert", the first stage.
        max_evals: Most evaluations of the solve, over all gaps.
        num_gaps: The number of gaps.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        passes: Mapping[str, float],
        *,
        points: int,
        max_evals: int,
        num_gaps: int,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._passes, self._points, self._clock = dict(passes), points, clock
        self._max_evals, self._num_gaps = max_evals, num_gaps
        self._began: dict[str, float] = {}
        self._first_calls: dict[str, int] = {}
        self._latest: Event | None = None
        self._finished = [0.0, 0.0]  # seconds and passes of the stages that have ended

    def __call__(self, event: Event) -> None:
        """Record an event."""
        if event.stage not in self._passes:
            return
        if self._latest is None or event.stage != self._latest.stage:
            if self._latest is not None:
                self._finished[0] += self._clock() - self._began[self._latest.stage]
                self._finished[1] += self._made(self._latest, True)
            self._began.setdefault(event.stage, self._clock())
            self._first_calls.setdefault(event.stage, event.calls)
        self._latest = event

    def seconds_left(self) -> float | None:
        """The time left; None before the first passes have ended."""
        now = self._latest
        if now is None:
            return None
        spent = self._clock() - self._began[now.stage]
        share = self._share(now)
        seconds, passes = self._finished[0] + spent, self._finished[1] + self._made(now, False)
        if passes <= 0:
            return None
        pace = seconds / passes
        ours = self._passes[now.stage] * (1 - share) * pace
        if now.stage != "invert" and now.done >= 2:  # the first steps of inversion are the slowest
            ours = spent * (1 - share) / share
        names = list(self._passes)
        later = names[names.index(now.stage) + 1 :]
        return ours + pace * sum(self._passes[name] for name in later)

    def _share(self, event: Event) -> float:
        """The share of its stage that has been done."""
        if event.total is not None:
            return min(1.0, event.done / max(1, event.total))
        usual = max(USUAL_EVALS * self._num_gaps, 1.25 * event.done)
        return min(1.0, event.done / max(1.0, min(usual, self._max_evals)))

    def _made(self, event: Event, has_ended: bool) -> float:
        """The passes of a stage so far."""
        if event.stage == "invert":  # its cleanest levels take several passes for each step
            return self._points * (event.calls - self._first_calls["invert"])
        if event.stage == "solve":
            return self._passes["solve"] * event.done / self._expected_at_first()
        return self._passes[event.stage] * (1.0 if has_ended else self._share(event))

    def _expected_at_first(self) -> float:
        return max(1, min(USUAL_EVALS * self._num_gaps, self._max_evals))
