"""A small Stable Diffusion model that ships with the package, its renderer and its images."""

from pathlib import Path
from typing import TYPE_CHECKING

from riemannian_diffusion.lazy import lazy_names

if TYPE_CHECKING:
    from riemannian_diffusion.demo.nearest import NearestRender, nearest_render
    from riemannian_diffusion.demo.renderer import (
        FACTOR_RANGES,
        FACTORS,
        HUES,
        KINDS,
        caption,
        hue_name,
        random_factors,
        render,
    )
else:  # the paths of the shipped files need no PyTorch
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "nearest": ("NearestRender", "nearest_render"),
            "renderer": (
                *("FACTORS", "FACTOR_RANGES", "HUES", "KINDS"),
                *("caption", "hue_name", "random_factors", "render"),
            ),
        },
    )

__all__ = [
    "FACTORS",
    "FACTOR_RANGES",
    "HUES",
    "KINDS",
    "NearestRender",
    "caption",
    "endpoint_paths",
    "hue_name",
    "model_path",
    "nearest_render",
    "random_factors",
    "render",
]

_FOLDER = Path(__file__).parent


def model_path() -> str:
    """The directory of the shipped Stable Diffusion model, for `from_pretrained`.

    From captions such as "a red cube" (see `caption`), the model draws 64 x 64 px scenes like those
    of `render`.

    Raises:
        FileNotFoundError: If this installation lacks the model.

    Examples:
        >>> from riemannian_diffusion import demo
        >>> demo.model_path().endswith('model')
        True
    """
    return str(Path(_shipped("model/model_index.json", "The shipped model")).parent)


def endpoint_paths() -> tuple[str, str]:
    """Two 64 x 64 px PNG files, between which the command line morphs by default.

    Raises:
        FileNotFoundError: If this installation lacks the images.

    Examples:
        >>> from riemannian_diffusion import demo
        >>> [path.rsplit('/', 1)[-1] for path in demo.endpoint_paths()]
        ['endpoint_0.png', 'endpoint_1.png']
    """
    first, second = (_shipped(f"endpoint_{i}.png", "A shipped image") for i in range(2))
    return first, second


def _shipped(name: str, what: str) -> str:
    path = _FOLDER / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{what} is missing from this installation: there is no {path}. Install the package "
            "again, or make a model with examples/train_demo_model.py and pass its directory."
        )
    return path.as_posix()
