"""Progress bars and estimates of the time left, which listen to events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from riemannian_diffusion.events import Event

USUAL_EVALS = 30  # evaluations of a gap until a solve usually converges
AT_END = 3  # iterations in a row that are close to the minimum when a solve converges
FIRST_EVALS, FIRST_FALL = 2, 0.3  # when the first iteration ends, and its fall of the energy
LEAST_FALL = 1e-12  # smallest relative fall of the energy that is told from none
MOST_SLOWING = 2.5  # largest logarithm of how many times the evaluations so far are predicted
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

    A solve ends when it converges, which `Convergence` predicts from the fall of its energies.

    Args:
        passes: The expected passes of each stage, in order. A pass is one point given to the
            network; an evaluation with its gradient counts as two.
        points: The points that the network is given at a time in "invert", the first stage.
        max_evals: Most evaluations of the solve, over all gaps.
        num_gaps: The number of gaps.
        rtol: The relative tolerance of the solve.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        passes: Mapping[str, float],
        *,
        points: int,
        max_evals: int,
        num_gaps: int,
        rtol: float,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._passes, self._points, self._clock = dict(passes), points, clock
        self._solve = SolveProgress(rtol, max_evals, num_gaps)
        self._expected_at_first = num_gaps * min(USUAL_EVALS, max(1, max_evals // num_gaps))
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
        self._solve(event)
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
        return event.done / max(1.0, event.done + self._solve.evals_left())

    def _made(self, event: Event, has_ended: bool) -> float:
        """The passes of a stage so far."""
        if event.stage == "invert":  # its cleanest levels take several passes for each step
            return self._points * (event.calls - self._first_calls["invert"])
        if event.stage == "solve":
            return self._passes["solve"] * event.done / self._expected_at_first
        return self._passes[event.stage] * (1.0 if has_ended else self._share(event))


class SolveProgress:
    """Predicts how many evaluations a solve of several gaps side by side still takes.

    Args:
        rtol: The relative tolerance of the solve.
        max_evals: Most evaluations, over all gaps.
        num_gaps: The number of gaps.
    """

    def __init__(self, rtol: float, max_evals: int, num_gaps: int):
        self._gaps = [Convergence(rtol, max(1, max_evals // num_gaps)) for _ in range(num_gaps)]
        self._done = 0

    def __call__(self, event: Event) -> None:
        """Record an event; those of other stages and of curves change nothing."""
        if event.stage == "solve" and event.total is None:
            self._gaps[event.gap].add(event, event.done - self._done)
            self._done = event.done

    def evals_left(self) -> float:
        """The number of evaluations left, over all gaps."""
        most = max(gap.num_evals for gap in self._gaps)
        return sum(gap.evals_left() for gap in self._gaps if not gap.ended_before(most))


class Convergence:
    """Predicts how many evaluations the solve of one gap still takes.

    A solve converges when an iteration is expected to lower the energy by at most `rtol`. The
    relative falls of the energy shrink from about 0.3 to their present size. They are extrapolated
    to `rtol` on a logarithmic scale, once as a line in the number of evaluations and once as a line
    in its logarithm. The prediction is the geometric mean of the two: measured solves slow down,
    but less than the second line does.

    Args:
        rtol: The relative tolerance of the solve.
        max_evals: Most evaluations.

    Attributes:
        num_evals: The number of evaluations so far.
    """

    def __init__(self, rtol: float, max_evals: int):
        self._goal, self._max_evals = math.log(max(rtol, LEAST_FALL)), max_evals
        self.num_evals = 0
        self._energy = math.inf
        self._falls: list[tuple[int, float]] = []  # evaluations, logarithm of the relative fall

    def add(self, event: Event, num_evals: int) -> None:
        """Record an event of the gap, and the evaluations since the last one."""
        self.num_evals += num_evals
        if not event.iteration or event.energy is None:
            return
        if math.isfinite(self._energy) and event.energy:
            fall = (self._energy - event.energy) / abs(event.energy)
            if fall > 0:  # the energy rises where a finer curve begins
                self._falls.append((self.num_evals, math.log(max(fall, LEAST_FALL))))
        self._energy = event.energy

    def ended_before(self, num_evals: int) -> bool:
        """Whether this gap has ended, when another one has made so many evaluations."""
        return num_evals > self.num_evals + 12  # a line search makes no more

    def evals_left(self) -> float:
        """The number of evaluations left."""
        done, most = self.num_evals, self._max_evals - self.num_evals
        if done <= FIRST_EVALS or not self._falls:
            return min(USUAL_EVALS, most)
        recent = [one for one in self._falls if 4 * one[0] >= 3 * done] or self._falls[-1:]
        place, level = (fmean(values) for values in zip(*recent, strict=True))
        shrunk = math.log(FIRST_FALL) - level
        if shrunk <= 0 or place <= FIRST_EVALS:
            return min(USUAL_EVALS, most)
        missing = max(0.0, level - self._goal) / shrunk  # relative to the way up to this place
        in_line = missing * (place - FIRST_EVALS)
        slowing = place * math.expm1(min(missing * math.log(place / FIRST_EVALS), MOST_SLOWING))
        left = math.sqrt(in_line * slowing) - (done - place)
        return min(max(0.0, left) + AT_END, most)
