"""Warnings of a run, for the user and for the report."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from riemannian_diffusion.cli.flags import with_flags

PACKAGE = Path(__file__).parents[1]


class Notes:
    """Collects the warnings for users inside a context, and prints them once at its end.

    They are printed at the end, because progress bars are on the same stream, and also if the work
    fails: they may say why. Warnings of other libraries are for developers, and are dropped.

    Attributes:
        texts: The sentences, each once.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._catching = warnings.catch_warnings()

    def add(self, *texts: str) -> None:
        """Add sentences that are not there yet."""
        self.texts = list(dict.fromkeys([*self.texts, *texts]))

    def __enter__(self) -> Notes:
        """Begin to collect."""
        self._catching.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self._note
        return self

    def _note(self, message: Any, category: type, filename: str, *_: Any, **__: Any) -> None:
        is_ours = category.__module__.startswith("riemannian_diffusion.")
        if is_ours or (category is UserWarning and PACKAGE in Path(filename).parents):
            self.add(str(message))

    def __exit__(self, *error: Any) -> None:
        """Print what was collected."""
        self._catching.__exit__(*error)
        for text in self.texts:
            print(f"riemannian-diffusion: warning: {with_flags(text)}", file=sys.stderr)
