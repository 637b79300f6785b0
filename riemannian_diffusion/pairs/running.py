"""The loop of each process of a batch: claim a pair, make its morphs, write them."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from riemannian_diffusion.pairs.claims import Claim
from riemannian_diffusion.pairs.folder import Made, PairFolder
from riemannian_diffusion.pairs.manifest import Pair

POLL = 2.0  # seconds between looks at pairs that other processes work on


class Work(Protocol):
    """How the morphs of a pair are made."""

    def prepare(self, pair: Pair) -> Any:
        """What all methods share for a pair, such as its inverted images."""

    def make(self, pair: Pair, prepared: Any, method: str) -> Made:
        """The morph of a pair by a method."""

    def explain(self, error: Exception) -> str:
        """The sentence that is recorded about an error.

        It raises an error if no further morph can be made, for example if the device is lost.
        """


def in_order(pairs: Sequence[Pair], rank: int, num_processes: int) -> list[Pair]:
    """All pairs, first the share of the process with this rank, then the others'."""
    first = rank * len(pairs) // num_processes
    return [*pairs[first:], *pairs[:first]]


def run_pairs(
    pairs: Sequence[Pair],
    folder: PairFolder,
    load: Callable[[], Work],
    *,
    tell: Callable[[str], None],
    poll: float = POLL,
) -> None:
    """Make the morphs that are still to be made, together with other processes.

    It returns once all morphs of all pairs have been made or have failed. While other processes
    work on the last ones, it waits, and takes over the pairs of those that die.

    Args:
        pairs: The pairs, in the order in which this process tries them.
        folder: The folder of the results.
        load: Returns how the morphs of a pair are made; it is called once if one is missing.
        tell: Receives a sentence after each pair, with the progress of all processes.
        poll: Seconds between looks at pairs that other processes work on.
    """
    progress = Progress([pair.name for pair in pairs], folder)
    process, todo, waiting = folder.process, list(pairs), False
    work = None
    while todo := [pair for pair in todo if folder.missing(pair)]:
        work = work or load()
        idle = True
        for pair in todo:
            claim = process.take(pair.name) if folder.missing(pair) else None
            if claim is None:
                continue
            if missing := folder.missing(pair):  # another process may have just made them
                _work_on(pair, missing, claim, folder, work)
                idle = waiting = False
            process.finish(claim)
            if not idle:
                tell(progress.sentence())
        if idle:
            if not waiting:
                tell(f"waiting for other processes. {progress.sentence()}")
            waiting = True
            time.sleep(poll)
    names = {pair.name for pair in pairs}
    process.finish_dead(lambda name: name in names)


def _work_on(
    pair: Pair,
    methods: Sequence[str],
    claim: Claim,
    folder: PairFolder,
    work: Work,
) -> None:
    """Make the morphs of a pair, or record why they failed."""
    prepared, problem = None, None
    try:
        prepared = work.prepare(pair)
    except Exception as error:  # any error is recorded, and the other pairs follow
        problem = error
    for method in methods:
        found = problem
        if problem is None:
            try:
                folder.write(pair, method, work.make(pair, prepared, method))
            except Exception as error:
                found = error
        if not folder.process.holds(claim):
            raise RuntimeError(
                "another process took this one for dead, because it had not touched its file for "
                "long; run this again, and finished pairs are kept."
            )
        if found is not None:
            trace = "".join(traceback.format_exception(found))
            folder.fail(pair, method, work.explain(found), trace)


class Progress:
    """How far all processes are, counted from their folder.

    Args:
        names: The names of the pairs.
        folder: The folder of the results.
    """

    def __init__(self, names: Sequence[str], folder: PairFolder):
        self._names, self._folder = set(names), folder
        self._before = len(folder.ended()[0] & self._names)
        self._start = time.monotonic()

    def sentence(self) -> str:
        """Pairs done of all, and if some were done since the start, the rate and the time left."""
        ended, failed = (names & self._names for names in self._folder.ended())
        text = f"{len(ended)} of {len(self._names)} pairs done"
        if failed:
            text += f", {len(failed)} with failures"
        new, seconds = len(ended) - self._before, time.monotonic() - self._start
        if new > 0 and seconds > 0:
            left = (len(self._names) - len(ended)) * seconds / new
            text += f", {60 * new / seconds:.3g} pairs per minute, {as_time(left)} left"
        return text


def as_time(seconds: float) -> str:
    """A duration such as 45 s, 12 min or 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
