"""Finished work that an error carries to the caller."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def carrying(name: str, finished: Callable[[], Any], advice: str) -> Iterator[None]:
    """Let an error that leaves the block carry what was finished before it.

    Any error does so: a failure, an error that a callback or a listener raises, an interrupt from
    the keyboard.

    Args:
        name: The attribute of the error that holds the finished work.
        finished: Returns the finished work, or None if there is none.
        advice: How to go on with it. From Python 3.11 on, tracebacks show it as a note.
    """
    try:
        yield
    except BaseException as error:
        found = finished()
        if found is not None:
            setattr(error, name, found)
            if sys.version_info >= (3, 11):
                error.add_note(
                    f"What was finished is not lost: it is `error.{name}` of this error (in a "
                    f"notebook `sys.last_value.{name}`). {advice}"
                )
        raise
