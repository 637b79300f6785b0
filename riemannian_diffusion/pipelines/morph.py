"""The objects of a morph: keyframes in the space of a path, and the path between them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from riemannian_diffusion import files
from riemannian_diffusion.arguments import check_kind, check_whole, is_finite, is_whole, plain
from riemannian_diffusion.geodesics import Geodesic
from riemannian_diffusion.levels import Levels
from riemannian_diffusion.paths import length
from riemannian_diffusion.pipelines import storage
from riemannian_diffusion.pipelines.stored import check_keyframes, check_morph
from riemannian_diffusion.score import Conditions, Where


@dataclass(frozen=True, eq=False)
class Keyframes:
    """Images, and their points in the space of a path.

    Made by the stage `invert` of a pipeline.

    Attributes:
        pixels: The images `(P, 3, H, W)`, float32 in [0, 1]; 1 in place of 3 for grey ones.
        clean: Their clean latents `(P, C, h, w)`, float32.
        points: Their points in the space of the path `(P, C, h, w)`, float32: noisy latents, or the
            clean ones.
        space: "noise" or "clean".
        levels: The model under the keyframes' conditions; its schedule holds the steps between the
            clean latents and the points, or in clean space the level of the metric.
        noise: The noise `(C, h, w)` under which a path in clean space is read; else None.
        fixed_point_iterations: Evaluations per step of inversion after the first; None where each
            step took as many as it needed.
        frame_numbers: The number of each keyframe's frame, rising from 0; None where the keyframes
            are not placed.
        model: A digest of the model that made the points.
        autoencoder_error: Mean squared error of each image, encoded and decoded `(P,)`; None if it
            is unknown.

    Examples:
        >>> from PIL import Image
        >>> from riemannian_diffusion import demo
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
        >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
        >>> images = [Image.open(path) for path in demo.endpoint_paths()]
        >>> keys = pipe.invert(images, num_inference_steps=5)
        >>> keys.num_gaps, keys.space
        (1, 'noise')
    """

    pixels: Tensor
    clean: Tensor
    points: Tensor
    space: str
    levels: Levels
    noise: Tensor | None = None
    fixed_point_iterations: int | None = None
    frame_numbers: tuple[int, ...] | None = None
    model: str = ""
    autoencoder_error: Tensor | None = None

    def __post_init__(self):
        if is_whole(self.fixed_point_iterations):
            object.__setattr__(self, "fixed_point_iterations", plain(self.fixed_point_iterations))

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def num_gaps(self) -> int:
        """The number of gaps between neighbouring keyframes."""
        return len(self) - 1

    @property
    def where(self) -> Where:
        """The places of the keyframes on their path."""
        return Where.even(len(self))

    def placed(self, frame_numbers: Sequence[int]) -> Keyframes:
        """A copy of the keyframes, placed at chosen frames.

        Args:
            frame_numbers: The number of each keyframe's frame, rising from 0.

        Raises:
            ValueError: If there is not one number for each keyframe, or they do not rise from 0.
        """
        numbers = tuple(frame_numbers)
        for i, number in enumerate(numbers):
            check_whole(0, **{f"frame_numbers[{i}]": number})
        rising = all(a < b for a, b in zip(numbers, numbers[1:], strict=False))
        if len(numbers) != len(self) or numbers[:1] != (0,) or not rising:
            raise ValueError(
                f"`frame_numbers` must be {len(self)} rising numbers from 0, one for each "
                f"keyframe, but got {list(numbers)}."
            )
        return replace(self, frame_numbers=tuple(map(int, numbers)))

    def frames_per_gap(self, num_frames: int | Sequence[int] | None) -> list[int]:
        """The number of frames from each keyframe to the next, both included.

        Args:
            num_frames: One number for every gap, or one for each. None takes `frame_numbers`, or 17
                where the keyframes are not placed.

        Raises:
            ValueError: If a number is below 2, or there is not one for each gap.
        """
        if num_frames is None and self.frame_numbers is not None:
            numbers = self.frame_numbers
            return [b - a + 1 for a, b in zip(numbers, numbers[1:], strict=False)]
        return check_num_frames(17 if num_frames is None else num_frames, self.num_gaps)

    def save(self, path: str | os.PathLike) -> None:
        """Write everything but the model's weights to one safetensors file."""
        files.save(path, "Keyframes", *self._packed())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Keyframes:
        """Read what `save` wrote. The first stage that it is passed to connects it to its model.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged or something else.
        """
        return files.load(path, "Keyframes", cls._unpacked)

    def _packed(self) -> tuple[storage.Tensors, storage.Settings]:
        tensors, levels = storage.pack_levels(self.levels)
        tensors |= {"pixels": self.pixels, "clean": self.clean, "points": self.points}
        for name in ("noise", "autoencoder_error"):
            if getattr(self, name) is not None:
                tensors[name] = getattr(self, name)
        names = ("space", "fixed_point_iterations", "frame_numbers", "model")
        return tensors, {"levels": levels} | {name: getattr(self, name) for name in names}

    @classmethod
    def _unpacked(cls, tensors: storage.Tensors, settings: storage.Settings) -> Keyframes:
        keys = cls(
            *(tensors["pixels"], tensors["clean"], tensors["points"], settings["space"]),
            storage.unpack_levels(tensors, settings["levels"]),
            tensors.get("noise"),
            settings["fixed_point_iterations"],
            None,
            settings["model"],
            tensors.get("autoencoder_error"),
        )
        check_keyframes(keys)
        numbers = settings["frame_numbers"]
        return keys if numbers is None else keys.placed(numbers)


def chained(parts: Sequence[tuple[Keyframes, int]], conditions: Conditions) -> Keyframes:
    """Single keyframes of several, in order, under conditions of their own."""
    first = parts[0][0]

    def stacked(name: str) -> Tensor | None:
        values = [getattr(keys, name) for keys, _ in parts]
        if any(value is None for value in values):
            return None
        return torch.stack([one[i] for one, (_, i) in zip(values, parts, strict=True)])

    names = ("pixels", "clean", "points", "autoencoder_error")
    own: dict[str, Any] = {name: stacked(name) for name in names}
    levels = replace(first.levels, conditions=conditions)
    return replace(first, levels=levels, frame_numbers=None, **own)


def learning_together(several: Sequence[Keyframes]) -> list[Keyframes]:
    """Keyframes that share what their stages have learned about memory."""
    shared = several[0].levels.learned
    for keys in several[1:]:
        shared.join(keys.levels.learned)
    return [replace(keys, levels=replace(keys.levels, learned=shared)) for keys in several]


def check_num_frames(num_frames: Any, num_gaps: int) -> list[int]:
    """The number of frames of every gap, from one number or a list.

    Raises:
        ValueError: If a number is below 2, or there is not one for each gap.
    """
    if isinstance(num_frames, (list, tuple)):
        for i, number in enumerate(num_frames):
            check_whole(2, **{f"num_frames[{i}]": number})
        if len(num_frames) != num_gaps:
            raise ValueError(
                f"`num_frames` must be one number or one for each of {num_gaps} gaps, but got "
                f"{len(num_frames)}."
            )
        return list(map(int, num_frames))
    check_whole(2, num_frames=num_frames)
    return [int(num_frames)] * num_gaps


@dataclass(frozen=True, eq=False)
class MorphPath:
    """The morph between keyframes.

    Made by the stage `solve` of a pipeline; other stages turn it into another one.

    Attributes:
        keys: The keyframes.
        points: Points `(F, C, h, w)`, float32, in the space of the path, the keyframes' among them.
        times: Where each point lies, `(F,)` float64: 0 at the first keyframe, 1 at the second, and
            so on.
        geodesics: One geodesic per gap between keyframes; None for a curve that is no geodesic.
        metric: The name of the metric or curve.
        latents: The clean latents of the points `(F, C, h, w)`, once sampled.
        attention_interpolation: The share of the sampling steps with interpolated attention.
        beyond: Clean latents `(M, C, h, w)` beyond the last keyframe, once extended.
        transported: Clean latents `(T, C, h, w)` that are shown in place of the path's own, once
            transported to another image.

    Examples:
        >>> from PIL import Image
        >>> from riemannian_diffusion import demo
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
        >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
        >>> images = [Image.open(path) for path in demo.endpoint_paths()]
        >>> path = pipe.solve(pipe.invert(images, num_inference_steps=5), 'slerp', num_frames=3)
        >>> tuple(path.points.shape)
        (3, 4, 16, 16)
    """

    keys: Keyframes
    points: Tensor
    times: Tensor
    geodesics: tuple[Geodesic | None, ...]
    metric: str
    latents: Tensor | None = None
    attention_interpolation: float = 0.0
    beyond: Tensor | None = None
    transported: Tensor | None = None

    def __post_init__(self):
        if is_finite(self.attention_interpolation):
            object.__setattr__(self, "attention_interpolation", plain(self.attention_interpolation))

    def __len__(self) -> int:
        return len(self.points)

    @property
    def where(self) -> Where:
        """The places of the points on the path through all keyframes."""
        return Where((self.times / self.keys.num_gaps).clamp(0, 1))

    @property
    def key_indices(self) -> list[int]:
        """The indices of the keyframes among the points."""
        return [int((self.times - k).abs().argmin()) for k in range(len(self.keys))]

    @property
    def gaps(self) -> list[slice]:
        """The points of each gap, its two keyframes included."""
        keys = self.key_indices
        return [slice(a, b + 1) for a, b in zip(keys, keys[1:], strict=False)]

    @property
    def speeds(self) -> list[float]:
        """The mean flat length of a step in each gap, in the space of the path.

        At a keyframe the speed jumps from that of the gap before it to that of the gap after it.
        """
        return [float(length(self.points[gap])) / (gap.stop - gap.start - 1) for gap in self.gaps]

    @property
    def shown(self) -> Tensor:
        """The clean latents of all frames `(N, C, h, w)`.

        Raises:
            ValueError: If the path has not been sampled.
        """
        if self.latents is None:
            raise ValueError("This path has no clean latents yet: call `pipe.sample(path)` first.")
        if self.transported is not None:
            return self.transported
        return self.latents if self.beyond is None else torch.cat([self.latents, self.beyond])

    def save(self, path: str | os.PathLike) -> None:
        """Write everything but the model's weights to one safetensors file."""
        keys, settings = self.keys._packed()
        tensors = {f"keys.{name}": value for name, value in keys.items()}
        for name in ("points", "times", "latents", "beyond", "transported"):
            if getattr(self, name) is not None:
                tensors[name] = getattr(self, name)
        described: list[Any] = []
        for i, found in enumerate(self.geodesics):
            if found is None:
                described.append(None)
                continue
            parts, plain = found.to_tensors()
            tensors |= {f"geodesic.{i}.{name}": value for name, value in parts.items()}
            described.append(plain)
        files.save(
            path,
            "MorphPath",
            tensors,
            {
                "keys": settings,
                "geodesics": described,
                "metric": self.metric,
                "attention_interpolation": self.attention_interpolation,
            },
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> MorphPath:
        """Read what `save` wrote. The first stage that it is passed to connects it to its model.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged or something else.
        """
        return files.load(path, "MorphPath", cls._unpacked)

    @classmethod
    def _unpacked(cls, tensors: storage.Tensors, settings: storage.Settings) -> MorphPath:
        geodesics = tuple(
            None
            if plain is None
            else Geodesic.from_tensors(storage.select(tensors, f"geodesic.{i}."), plain)
            for i, plain in enumerate(settings["geodesics"])
        )
        path = cls(
            Keyframes._unpacked(storage.select(tensors, "keys."), settings["keys"]),
            tensors["points"],
            tensors["times"],
            geodesics,
            settings["metric"],
            tensors.get("latents"),
            settings["attention_interpolation"],
            tensors.get("beyond"),
            tensors.get("transported"),
        )
        check_morph(path)
        return path


def untransported(path: MorphPath) -> MorphPath:
    """A path whose frames are those of its points.

    Raises:
        ValueError: If it is no path, or a transported one.
    """
    check_kind(MorphPath, path=path)
    if path.transported is not None:
        raise ValueError("A transported path can be rendered and saved, but not changed further.")
    return path


def sampled_latents(path: MorphPath) -> Tensor:
    """The clean latents of a path's points.

    Raises:
        ValueError: If it has not been sampled.
    """
    if path.latents is None:
        raise ValueError("This path has no clean latents yet: call `pipe.sample(path)` first.")
    return path.latents
