"""The models that whoever runs the page offers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from riemannian_diffusion import demo
from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin

SHIPPED = "shipped"
SHIPPED_KNOWS = (
    "It knows only renders of five solids (sphere, cube, cone, torus, cylinder) and prompts such "
    "as “a red cube”. Photographs come back changed: they need another model."
)
OTHERS_KNOW = (
    "It knows the kind of images that it was trained on. Others come back changed; the result says "
    "by how much."
)


@dataclass(frozen=True)
class Offer:
    """A model that visitors may choose.

    Attributes:
        name: What visitors read.
        load: Makes the pipeline, on its device.
        num_bytes: Size of the files of its weights, or None if that is unknown.
    """

    name: str
    load: Callable[[], GeodesicInterpolationMixin]
    num_bytes: int | None = None


class Models:
    """The models that are offered, of which one at a time is in memory.

    Args:
        offers: The models; the first is the one that a visitor finds.

    Raises:
        ValueError: If there is none, or two have one name.
    """

    def __init__(self, offers: Sequence[Offer]):
        names = [offer.name for offer in offers]
        if not names or len({*names}) < len(names):
            raise ValueError(f"`offers` must be models of different names, but got {names}.")
        self._offers = {offer.name: offer for offer in offers}
        self._loaded: tuple[str, GeodesicInterpolationMixin] | None = None

    @property
    def names(self) -> list[str]:
        """The names of all models."""
        return [*self._offers]

    def is_loaded(self, name: str) -> bool:
        """Whether a model is the one in memory."""
        return self._loaded is not None and self._loaded[0] == name

    def get(self, name: str) -> GeodesicInterpolationMixin:
        """A model's pipeline; it is loaded, in place of another, if it is not in memory.

        Raises:
            ValueError: If it is not offered.
        """
        if name not in self._offers:
            raise ValueError(f"Model must be one of {', '.join(self.names)}, but got {name!r}.")
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None
            gc.collect()  # the old model must be gone before the new one comes
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._loaded = name, self._offers[name].load()
        return self._loaded[1]

    def describe(self, name: str) -> str:
        """What visitors should know about a model, in Markdown."""
        offer, loaded = self._offers[name], self._loaded
        if loaded is None or loaded[0] != name:
            size = "" if offer.num_bytes is None else f" ({in_bytes(offer.num_bytes)} of files)"
            wait = (
                f"**Model: {name}.** It is loaded with the first morph{size}, which takes a while"
            )
            return f"{wait}. {SHIPPED_KNOWS if name == SHIPPED else OTHERS_KNOW}"
        pipe: Any = loaded[1]
        parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
        size = in_bytes(
            sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
        )
        reads = getattr(pipe, "tokenizer", None) is not None
        prompts = "" if reads else " It reads no prompts."
        knows = SHIPPED_KNOWS if is_shipped(pipe) else OTHERS_KNOW
        dtype, device = str(pipe.dtype).removeprefix("torch."), pipe.device_of_work
        side = native_size(pipe)
        return (
            f"**Model: {name}**, {size} in {dtype} on {device}, for images of about "
            f"{side} x {side} px. {knows}{prompts}"
        )


def is_shipped(pipe: Any) -> bool:
    """Whether a pipeline is that of the shipped model."""
    path = pipe.config.get("_name_or_path") or ""
    return Path(path).exists() and Path(path).samefile(demo.model_path())


def native_size(pipe: Any) -> int:
    """Side of the images that a model was trained on, in pixels."""
    side = pipe.network.config.get("sample_size") or pipe.default_sample_size
    return side * getattr(pipe, "vae_scale_factor", 1)


def in_bytes(num: int) -> str:
    """A number of bytes in words."""
    return f"{num / 1e9:.1f} GB" if num >= 1e9 else f"{max(1, round(num / 1e6))} MB"
