"""Events: reports of a long computation to its caller while it runs.

Stages yield events. A listener receives every event. Before every evaluation of a network it also
receives the latest event again. A listener ends a stage by raising an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # the command listens before it imports PyTorch
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Event:
    """The progress of a stage.

    Attributes:
        stage: Name of the stage: "encode", "invert", "solve", "sample", "retime", "extend",
            "transport" or "decode".
        done: Number of steps done; in "solve", the number of evaluations of energy and gradient
            over all gaps.
        total: Number of all steps; None if it is unknown, as in "solve", which ends when it
            converges.
        latents: Points after this step, `(K, *shape)`, or None.
        energy: In "solve", the optimised energy of the gap after this evaluation or iteration.
        gap: In "solve", the number of the gap among all that are solved side by side.
        iteration: In "solve", whether this event ends an iteration of the solver.
        timestep: In "invert" and "sample", the timestep of the step.
        calls: Number of evaluations of networks since the stage began.
    """

    stage: str
    done: int = 0
    total: int | None = None
    latents: Tensor | None = None
    energy: float | None = None
    gap: int = 0
    iteration: bool = False
    timestep: float | None = None
    calls: int = 0


Listener = Callable[[Event], Any]

_on_call: ContextVar[Callable[[], None] | None] = ContextVar("on_call", default=None)


def network_called() -> None:
    """Report to the listener of this thread, if there is one, that a network is about to run."""
    on_call = _on_call.get()
    if on_call is not None:
        on_call()


@contextmanager
def _calling(on_call: Callable[[], None] | None) -> Iterator[None]:
    token = _on_call.set(on_call)
    try:
        yield
    finally:
        _on_call.reset(token)


def run(events: Generator[Event, Any, T], listener: Listener | None = None) -> T:
    """Run a stage to its end.

    Args:
        events: The stage, a generator of events. Results of the listener are sent back to it.
        listener: Receives every event, and the latest one with a new count of `calls` before every
            evaluation of a network. It ends the stage by raising an exception, which the stage sees
            where it stands.

    Returns:
        The result of the stage.
    """
    if listener is None:
        while True:
            try:
                next(events)
            except StopIteration as end:
                return end.value
    latest, calls = Event(""), 0

    def on_call() -> None:
        nonlocal calls
        calls += 1
        listener(replace(latest, calls=calls, iteration=False))  # an iteration ends only once

    answer = None
    with _calling(on_call):
        try:
            while True:
                try:
                    latest = replace(events.send(answer), calls=calls)
                except StopIteration as end:
                    return end.value
                try:
                    answer = listener(latest)
                except BaseException as error:
                    events.throw(error)  # the stage adds to it what was finished
                    raise
        finally:
            events.close()
