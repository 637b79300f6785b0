"""Options that have no effect together with others.

Importing this module does not import PyTorch, so the command line can say it before the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from riemannian_diffusion.pipelines.tolerance import RTOL

CURVE_NAMES = ("slerp", "lerp", "split", "nao", "noise_diffusion", "density")
OF_SOLVES = {  # options of the stage `solve` that not every curve reads, and their defaults
    "init": None,
    "solver": None,
    "max_evals": 200,
    "rtol": RTOL,
    "num_quadrature": 2,
    "score_mode": None,
    "checkpoint": None,
}
OF_CURVES = {"score_mode": ("split", "density")}  # the curves that read one of these options


class UnusedWarning(UserWarning):
    """An option has no effect together with another one.

    Examples:
        >>> import warnings
        >>> from riemannian_diffusion.pipelines import UnusedWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter('error', UnusedWarning)  # stop at options without effect
    """


def unused_by_curves(metrics: Sequence[Any], **options: Any) -> str | None:
    """A sentence about options that are not read, because all metrics are curves without a solve.

    Args:
        metrics: Names of metrics and curves, or factories of metrics.
        options: Options of `OF_SOLVES`; those at their defaults are left out.

    Returns:
        The sentence, or None if every option is read.
    """
    changed = [
        f"`{name}`"
        for name, value in options.items()
        if value is not None
        and not (type(value) in (int, float) and value == OF_SOLVES[name])
        and not any(isinstance(one, str) and one in OF_CURVES.get(name, ()) for one in metrics)
    ]
    if not changed or not all(isinstance(one, str) and one in CURVE_NAMES for one in metrics):
        return None
    curves = " and ".join(f"metric={one!r}" for one in metrics)
    return (
        f"{' and '.join(changed)} {'has' if len(changed) == 1 else 'have'} no effect on {curves}: "
        "a curve is not solved for. Leave it out, or choose a metric such as tangent_normal."
    )
