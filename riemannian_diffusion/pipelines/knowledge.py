"""What a model knows: images of which kind, and of which size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHIPPED = (
    "The shipped model only knows renders of five solids (cube, sphere, cylinder, cone, torus) at "
    "64 x 64 pixels: it cannot show photographs. Give `model` for those, for example a folder or "
    "repository of Stable Diffusion."
)
FOLDER = Path(__file__).parents[1] / "demo" / "model"
FAR = 2  # a size is far from that of a model if its sides differ by more than this factor


def is_shipped(pipe: Any) -> bool:
    """Whether a pipeline was loaded from the model that ships with the package."""
    name = getattr(pipe.config, "_name_or_path", None)
    return name is not None and Path(name).resolve() == FOLDER.resolve()


def native_size(pipe: Any) -> int | None:
    """The side in pixels of the square images that a model was trained on; None if unknown."""
    side = pipe.network.config.get("sample_size") or getattr(pipe, "default_sample_size", None)
    if isinstance(side, (list, tuple)):
        side = round((side[0] * side[1]) ** 0.5)
    return None if side is None else side * getattr(pipe, "vae_scale_factor", 1)


def size_problem(pipe: Any, size: tuple[int, int]) -> str | None:
    """What is wrong with a size that is far from a model's own; None if it is near.

    A size is far if the square root of its area is more than twice the model's own side, or less
    than half of it.

    Args:
        pipe: The pipeline.
        size: Width and height of the images in pixels.
    """
    native = native_size(pipe)
    if native is None or 1 / FAR <= (size[0] * size[1]) ** 0.5 / native <= FAR:
        return None
    return (
        f"The images have {size[0]} x {size[1]} pixels, but the model was trained on about "
        f"{native} x {native}: far from that, its images fall apart; resize `image`."
    )
