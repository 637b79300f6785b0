"""Progress bars and estimates of the time left, which listen to events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from riemannian_diffusion.events import Event

# Fewest and most evaluations of a solve on one curve, measured between scenes by the shipped model
COARSE_EVALS = (4, 25)
FINAL_EVALS = (1, 10)  # on the last curve, after coarse curves
ONLY_EVALS = (5, 60)  # without coarse curves
TRUSTED = 10  # evaluations on a curve from which on the fall of its energies limits its end
DOUBT = 3.0  # largest factor between the predicted and the true number of evaluations left
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

    Nobody knows when a solve will converge, so the prediction is a range.

    Args:
        passes: The expected passes of each stage, in order, without those of the solve. A pass is
            one point given to the network; an evaluation with its gradient counts as two.
        points: The points that the network is given at a time in "invert", the first stage.
        solve: The progress of the solve; None if there is nothing to solve.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        passes: Mapping[str, float],
        *,
        points: int,
        solve: SolveProgress | None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._passes, self._points, self._clock = dict(passes), points, clock
        self._solve = solve
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
        if self._solve is not None:
            self._solve(event)
        self._latest = event

    def seconds_left(self) -> tuple[float, float] | None:
        """The shortest and longest time left; None before the first step has ended."""
        now = self._latest
        if now is None or (now.stage == "invert" and now.done < 1):
            return None
        spent = self._clock() - self._began[now.stage]
        seconds, passes = self._finished[0] + spent, self._finished[1] + self._made(now, False)
        if passes <= 0:
            return None
        pace = seconds / passes
        names = list(self._passes)
        later = names[names.index(now.stage) + 1 :]
        rest = pace * sum(self._passes[name] for name in later)
        solve = (0.0, 0.0) if self._solve is None else self._solve.passes_left()
        if now.stage == "solve":
            own = spent / self._made(now, False) if now.done >= 2 else pace
            return rest + own * solve[0], rest + own * solve[1]
        share = self._share(now)
        ours = self._passes[now.stage] * (1 - share) * pace
        if now.stage != "invert" and now.done >= 2:  # the first steps of inversion are the slowest
            ours = spent * (1 - share) / share
        least, most = solve if "solve" in later else (0.0, 0.0)
        return rest + ours + pace * least, rest + ours + pace * most

    def _share(self, event: Event) -> float:
        """The share of its stage that has been done."""
        return min(1.0, event.done / max(1, event.total or 1))

    def _made(self, event: Event, has_ended: bool) -> float:
        """The passes of a stage so far."""
        if event.stage == "invert":  # its cleanest levels take several passes for each step
            return self._points * (event.calls - self._first_calls["invert"])
        if event.stage == "solve":
            return 0.0 if self._solve is None else self._solve.passes
        return self._passes[event.stage] * (1.0 if has_ended else self._share(event))


class SolveProgress:
    """Predicts how much of a solve of several gaps side by side is left.

    Args:
        curves: For each gap, the numbers of points of the curves on which it is solved, coarse to
            fine (see `progress_of_solve`).
        num_quadrature: The number of chords of each segment.
        rtol: The relative tolerance of the solve.
        max_evals: Most evaluations of each gap.
    """

    def __init__(
        self, curves: Sequence[Sequence[int]], num_quadrature: int, rtol: float, max_evals: int
    ):
        self._gaps = [GapProgress(one, num_quadrature, rtol, max_evals) for one in curves]
        self._done = 0

    def __call__(self, event: Event) -> None:
        """Record an event; those of other stages and of curves change nothing."""
        if event.stage == "solve" and event.total is None:
            self._gaps[event.gap].add(event, event.done - self._done)
            self._done = event.done

    @property
    def passes(self) -> float:
        """The passes made so far; an evaluation of a point with its gradient is two."""
        return sum(gap.passes for gap in self._gaps)

    def passes_left(self) -> tuple[float, float]:
        """The fewest and the most passes left, over all gaps."""
        most = max(gap.num_evals for gap in self._gaps)
        each = [gap.passes_left() for gap in self._gaps if not gap.ended_before(most)]
        return sum(least for least, _ in each), sum(most for _, most in each)

    def total(self) -> int:
        """The evaluations at whose end the solve is expected, if all took as long as those so far.

        It is between the fewest and the most, both in the geometric mean.
        """
        left = math.prod(self.passes_left()) ** 0.5
        return max(1, self._done + math.ceil(left * self._done / max(1.0, self.passes)))


class GapProgress:
    """Predicts how much of the solve of one gap is left.

    Args:
        curves: The numbers of points of the curves, coarse to fine.
        num_quadrature: The number of chords of each segment.
        rtol: The relative tolerance of the solve.
        max_evals: Most evaluations.

    Attributes:
        num_evals: The number of evaluations so far.
        passes: The passes so far.
    """

    def __init__(self, curves: Sequence[int], num_quadrature: int, rtol: float, max_evals: int):
        self._curves, self._rtol, self._max_evals = list(curves), rtol, max_evals
        self._chords, self._is_refined = num_quadrature, False
        self.num_evals, self.passes = 0, 0.0
        self._energy, self._now = math.inf, Convergence(rtol)

    def add(self, event: Event, num_evals: int) -> None:
        """Record an event of the gap, and the evaluations since the last one."""
        if event.iteration and event.energy is not None:
            if event.energy > self._energy and len(self._curves) > 1:  # a finer curve begins
                self._curves, self._is_refined = self._curves[1:], True
                self._now = Convergence(self._rtol)
            self._energy = event.energy
        self.num_evals += num_evals
        self.passes += num_evals * self._passes_on(self._curves[0])
        self._now.add(event, num_evals)

    def ended_before(self, num_evals: int) -> bool:
        """Whether this gap has ended, when another one has made so many evaluations."""
        return num_evals > self.num_evals + 12  # a line search makes no more

    def passes_left(self) -> tuple[float, float]:
        """The fewest and the most passes left."""
        least, most = self._evals_left()
        found, budget = [0.0, 0.0], float(self._max_evals - self.num_evals)
        for i, num in enumerate(self._curves):
            if i > 0:
                least, most = FINAL_EVALS if num == self._curves[-1] else COARSE_EVALS
            found[0] += min(least, budget) * self._passes_on(num)
            found[1] += min(most, budget) * self._passes_on(num)
            budget = max(0, budget - least)
        return found[0], found[1]

    def _evals_left(self) -> tuple[float, float]:
        """The fewest and the most evaluations left on the present curve."""
        done, predicted = self._now.num_evals, self._now.evals_left()
        usual = COARSE_EVALS
        if len(self._curves) == 1:
            usual = FINAL_EVALS if self._is_refined else ONLY_EVALS
        least, most = max(0.0, usual[0] - done), float(usual[1] - done)
        if predicted is not None:
            least = max(least, predicted / DOUBT)
            if done >= TRUSTED or most <= 0:  # after fewer, energies may soon fall more slowly
                most = min(most if most > 0 else math.inf, DOUBT * predicted + AT_END)
        return least, max(least, most)

    def _passes_on(self, num: int) -> float:
        """The passes of one evaluation on a curve with a number of points; its ends are known."""
        return 2.0 * (self._chords * (num - 1) - 1)


class Convergence:
    """Predicts how many evaluations a solve on one curve still takes.

    A solve converges when an iteration is expected to lower the energy by at most `rtol`. The
    relative falls of the energy shrink from about 0.3 to their present size. They are extrapolated
    to `rtol` on a logarithmic scale, once as a line in the number of evaluations and once as a line
    in its logarithm. The prediction is the geometric mean of the two: measured solves slow down,
    but less than the second line does.

    Args:
        rtol: The relative tolerance of the solve.

    Attributes:
        num_evals: The number of evaluations so far.
    """

    def __init__(self, rtol: float):
        self._goal = math.log(max(rtol, LEAST_FALL))
        self.num_evals = 0
        self._energy = math.inf
        self._falls: list[tuple[int, float]] = []  # evaluations, logarithm of the relative fall

    def add(self, event: Event, num_evals: int) -> None:
        """Record an event, and the evaluations since the last one."""
        self.num_evals += num_evals
        if not event.iteration or event.energy is None:
            return
        if math.isfinite(self._energy) and event.energy:
            fall = (self._energy - event.energy) / abs(event.energy)
            if fall > 0:
                self._falls.append((self.num_evals, math.log(max(fall, LEAST_FALL))))
        self._energy = event.energy

    def evals_left(self) -> float | None:
        """The number of evaluations left; None if nothing is known yet."""
        done = self.num_evals
        if done <= FIRST_EVALS or not self._falls:
            return None
        recent = [one for one in self._falls if 4 * one[0] >= 3 * done] or self._falls[-1:]
        place, level = (fmean(values) for values in zip(*recent, strict=True))
        shrunk = math.log(FIRST_FALL) - level
        if shrunk <= 0 or place <= FIRST_EVALS:
            return None
        missing = max(0.0, level - self._goal) / shrunk  # relative to the way up to this place
        in_line = missing * (place - FIRST_EVALS)
        slowing = place * math.expm1(min(missing * math.log(place / FIRST_EVALS), MOST_SLOWING))
        left = math.sqrt(in_line * slowing) - (done - place)
        return max(0.0, left)
