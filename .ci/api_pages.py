"""Build the API pages from the docstrings.

python .ci/api_pages.py --output pages
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pdoc

# The subpackages whose names are public. A page lists the names in `__all__`.
PACKAGES = (
    "riemannian_diffusion",
    "riemannian_diffusion.pipelines",
    "riemannian_diffusion.evaluation",
    "riemannian_diffusion.measures",
    "riemannian_diffusion.adaptation",
    "riemannian_diffusion.media",
    "riemannian_diffusion.demo",
    "riemannian_diffusion.plotting",
)


def main(argv: list[str] | None = None) -> None:
    """Write one page for each package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="a folder")
    args = parser.parse_args(argv)
    for package in PACKAGES:  # names are imported lazily: pdoc reads those that are there
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            getattr(module, name)
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*PACKAGES, output_directory=args.output)


if __name__ == "__main__":
    main()
