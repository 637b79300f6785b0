"""Warnings of a run, for the user and for the report."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from riemannian_diffusion.cli.flags import with_flags

PACKAGE = Path(__file__).parents[1]


class Notes:
    """Prints warnings for the user, each once, and keeps them for the report.

    As a context it also takes the warnings that this library raises through `warnings`. Warnings of
    other libraries are for developers, and are dropped.

    Args:
        silent: Keep the sentences for the report, and print none.

    Attributes:
        texts: The sentences, with flags in place of arguments.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.texts: list[str] = []
        self._silent = silent
        self._catching = warnings.catch_warnings()

    def tell(self, text: str) -> None:
        """Print sentences and keep them, without those that were told before."""
        text = with_flags(text)
        for known in self.texts:
            text = text.replace(f" {known}", "")
        if text not in self.texts:
            self.texts.append(text)
            if not self._silent:
                clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # the line of progress
                print(f"{clear}riemannian-diffusion: warning: {text}", file=sys.stderr)

    def __enter__(self) -> Notes:
        """Begin to take warnings."""
        self._catching.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self._take
        return self

    def _take(self, message: Any, category: type, filename: str, *_: Any, **__: Any) -> None:
        is_ours = category.__module__.startswith("riemannian_diffusion.")
        if is_ours or (category is UserWarning and PACKAGE in Path(filename).parents):
            self.tell(str(message))

    def __exit__(self, *error: Any) -> None:
        """End."""
        self._catching.__exit__(*error)
