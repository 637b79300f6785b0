"""How diffusers is asked to load a model, and what its errors mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import diffusers
from huggingface_hub.errors import LocalEntryNotFoundError

_VERSION = tuple(int(number) for number in diffusers.__version__.split(".")[:2])
DTYPE = "dtype" if _VERSION >= (0, 40) else "torch_dtype"  # the newer name ends the older one


def with_dtype(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `from_pretrained` with the dtype under the name that diffusers takes.

    Args:
        given: The arguments, with `dtype` or `torch_dtype` or neither.

    Raises:
        ValueError: If both are there.
    """
    options = dict(given)
    found = [options.pop(name) for name in ("dtype", "torch_dtype") if name in options]
    if len(found) == 2:
        raise ValueError("`dtype` and `torch_dtype` are the same: give `dtype` alone.")
    if found:
        options[DTYPE] = found[0]
    return options


@contextmanager
def reaching_hub(model: object) -> Iterator[None]:
    """Name the Hub in errors where it cannot be reached; diffusers says that a file is missing.

    Args:
        model: What the user gave: a folder or a repository.

    Raises:
        OSError: If the model is no folder, was not downloaded before, and the Hub is out of reach.
    """
    try:
        yield
    except OSError as error:
        cause: BaseException | None = error
        while cause and not isinstance(cause, (LocalEntryNotFoundError, ConnectionError)):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise OSError(
            f"{model} is no folder here and was not downloaded before, and the Hub cannot be "
            "reached: check its name and the connection, and unset HF_HUB_OFFLINE if it is set."
        ) from error
