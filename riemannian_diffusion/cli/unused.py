"""Options of a command line that have no effect together with others."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from riemannian_diffusion.pipelines.unused import unused_by_curves


def unused_options(args: argparse.Namespace, metrics: Sequence[str]) -> list[str]:
    """Sentences about options that change nothing; they name arguments of the library.

    Args:
        args: The command line of `interpolate` or `batch`.
        metrics: Its metrics and curves.
    """
    found = []
    of_solve = unused_by_curves(metrics, init=args.init, max_evals=args.max_evals, rtol=args.rtol)
    if of_solve is not None:
        found.append(of_solve)
    if args.adapt_cache is not None and args.adapt is None:
        found.append("--adapt-cache has no effect without --adapt: give both, or leave it out.")
    fps = getattr(args, "fps", None)  # `batch` has no such option
    if fps is not None and args.output.suffix.lower() not in (".gif", ".mp4"):
        found.append(
            "--fps has no effect on a grid or a folder of frames: name a .gif or an .mp4 as "
            "--output, or leave it out."
        )
    return found
