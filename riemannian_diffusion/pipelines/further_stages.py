"""The stages that follow a path: retime, extend and render."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from riemannian_diffusion.arguments import check_kind, check_not_negative
from riemannian_diffusion.events import Event, Listener
from riemannian_diffusion.pipelines import quality
from riemannian_diffusion.pipelines.callbacks import Step, following
from riemannian_diffusion.pipelines.checks import (
    OUTPUT_TYPES,
    check_batch_size,
    check_callback,
    check_choice,
)
from riemannian_diffusion.pipelines.knowledge import SHIPPED, is_shipped, size_problem
from riemannian_diffusion.pipelines.model import to_unit
from riemannian_diffusion.pipelines.morph import MorphPath, sampled_latents, untransported
from riemannian_diffusion.pipelines.output import GeodesicInterpolationOutput, stacked
from riemannian_diffusion.pipelines.retiming import Distance, find_distance, retiming
from riemannian_diffusion.pipelines.stages import replaced_times
from riemannian_diffusion.pipelines.starts import continuation
from riemannian_diffusion.pipelines.transport import TransportStage

_POSTPROCESSOR = VaeImageProcessor()


class FurtherStages(TransportStage):
    """Stages that change, continue or show a path that was found."""

    @torch.no_grad()
    def retime(
        self,
        path: MorphPath,
        distance: str | Distance = "lpips",
        *,
        max_batch_size: int | None = 8,
        callback_on_step_end: Step | None = None,
        on_event: Listener | None = None,
    ) -> MorphPath:
        """Move frames along a path until neighbours differ equally by a distance of images.

        Keyframes stay where they are. Up to 8 rounds, of which each but the first samples the whole
        path again.

        Args:
            path: The path.
            distance: "lpips" (needs the package lpips), "rmse", or a function of two batches
                `(K, 3, H, W)` in [0, 1] -> `(K,)`.
            max_batch_size: See `decode`.
            callback_on_step_end: As in `sample`. An interrupted round is dropped.
            on_event: Receives events; None shows progress bars.

        Returns:
            The path with other points and times, sampled. An extension of the path is dropped,
            because its points would no longer continue it.

        Raises:
            ValueError: If `distance` is no distance of images.

        Examples:
            >>> from PIL import Image
            >>> from riemannian_diffusion import demo
            >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
            >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
            >>> images = [Image.open(path) for path in demo.endpoint_paths()]
            >>> keys = pipe.invert(images, num_inference_steps=5)
            >>> path = pipe.sample(pipe.solve(keys, "lerp", num_frames=4))
            >>> path = pipe.retime(path, "rmse")
            >>> float(path.times[-1])
            1.0
        """
        path = replace(self.connect(untransported(path)), beyond=None)
        check_batch_size(max_batch_size)
        check_callback(callback_on_step_end)
        compare = find_distance(distance, self.device_of_work)
        on_step, learned = following(self, callback_on_step_end), path.keys.levels.learned

        def show(times: Tensor) -> Generator[Event, Any, tuple[MorphPath, Tensor, bool]]:
            moved = path if torch.equal(times, path.times) else replaced_times(path, times)
            proceeds = True
            if moved.latents is None:
                (moved,), proceeds = yield from self._sampling([moved], on_step)
            if not proceeds:
                return moved, moved.points[:0], False
            frames = yield from self._decoding(sampled_latents(moved), max_batch_size, learned)
            return moved, to_unit(frames), True

        counts = [gap.stop - gap.start for gap in path.gaps]
        return self._run(retiming(path.times, counts, show, compare), on_event)

    @torch.no_grad()
    def extend(
        self, path: MorphPath, share: float, *, on_event: Listener | None = None
    ) -> MorphPath:
        """Continue a morph beyond its last keyframe.

        Goes on among the clean latents by `riemannian_diffusion.extrapolate`, with frames as dense
        as in the last gap; fewer frames come where the data end.

        Args:
            path: The path, sampled.
            share: How far, as a share of the length of the last gap, non-negative.
            on_event: Receives events; None shows progress bars.

        Returns:
            The path with clean latents beyond it. Its points and keyframes stay.

        Raises:
            ValueError: If the path has not been sampled, or the share is negative.

        Examples:
            >>> from PIL import Image
            >>> from riemannian_diffusion import demo
            >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
            >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
            >>> images = [Image.open(path) for path in demo.endpoint_paths()]
            >>> keys = pipe.invert(images, num_inference_steps=5)
            >>> path = pipe.sample(pipe.solve(keys, "lerp", num_frames=5))
            >>> longer = pipe.extend(path, 0.5)
            >>> len(longer.shown) >= len(path.shown)
            True
        """
        check_not_negative(share=share)
        path = self.connect(untransported(path))
        latents = sampled_latents(path)[path.gaps[-1]]
        return self._run(self._extending(path, latents, share), on_event)

    def _extending(
        self, path: MorphPath, latents: Tensor, share: float
    ) -> Generator[Event, Any, MorphPath]:
        """Events of an extension; returns the path with it."""
        yield Event("extend", 0, 1)
        levels = path.keys.levels
        last = replace(levels, conditions=levels.conditions.at_knots([-1]))
        beyond = continuation(latents, last, share) if share else latents[:0]
        yield Event("extend", 1, 1, beyond)
        return replace(path, beyond=beyond)

    @torch.no_grad()
    def render(
        self,
        path: MorphPath | Sequence[MorphPath],
        *,
        output_type: str = "pil",
        paste_endpoints: bool = False,
        max_batch_size: int | None = 8,
        on_event: Listener | None = None,
    ) -> GeodesicInterpolationOutput:
        """Decode a path into frames.

        Args:
            path: A path, sampled, or a list of them.
            output_type: "pil", "np", "pt" or "latent".
            paste_endpoints: Put the keyframes themselves in place of their reconstructions.
            max_batch_size: See `decode`.
            on_event: Receives events; None shows progress bars.

        Returns:
            The frames, the reconstruction errors of the keyframes, and warnings about them.

        Raises:
            ValueError: If a path has not been sampled, or an argument is out of range.

        Warns:
            ImageWarning: If over a tenth of a keyframe's variance is lost, or frames are blanked.

        Examples:
            >>> from PIL import Image
            >>> from riemannian_diffusion import demo
            >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
            >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
            >>> images = [Image.open(path) for path in demo.endpoint_paths()]
            >>> keys = pipe.invert(images, num_inference_steps=5)
            >>> out = pipe.render(pipe.sample(pipe.solve(keys, "slerp", num_frames=3)))
            >>> [frame.size for frame in out.frames]
            [(64, 64), (64, 64), (64, 64)]
        """
        check_choice("output_type", output_type, OUTPUT_TYPES)
        check_batch_size(max_batch_size)
        several: list[Any] = list(path) if isinstance(path, (list, tuple)) else [path]
        if not several:
            raise ValueError("`path` must be a path or a list of them, but got an empty list.")
        for one in several:
            check_kind(MorphPath, path=one)
        several = [self.connect(one) for one in several]
        options = (output_type, paste_endpoints, max_batch_size)
        made = [self._run(self._rendering(one, *options), on_event) for one in several]
        if isinstance(path, MorphPath):
            return GeodesicInterpolationOutput(*made[0])
        frames, *others = map(list, zip(*made, strict=True))
        return GeodesicInterpolationOutput(stacked(frames), *others)

    def _rendering(
        self, path: MorphPath, output_type: str, paste: bool, max_batch_size: int | None
    ) -> Generator[Event, Any, tuple]:
        """Events of decoding; returns the entries of the output."""
        keys, latents, learned = path.keys, path.shown, path.keys.levels.learned
        mine = sampled_latents(path)[path.key_indices]  # the keyframes' clean latents
        alone, flags, dark = keys.autoencoder_error, None, None
        missed = (mine - keys.clean).flatten(1).norm(dim=1)
        of_latents = missed.square() / keys.clean[0].numel()
        if output_type == "latent":
            frames, errors = latents, of_latents
        else:
            decoded = yield from self._decoding(latents, max_batch_size, learned)
            frames, flags = self._check_safety(decoded)
            frames = to_unit(frames)
            if path.transported is None:  # errors are those of frames before a checker blanks them
                places: Any = path.key_indices
                shown, pasted = to_unit(decoded[places]), keys.pixels
            else:
                places = [0]
                shown = to_unit((yield from self._decoding(mine, max_batch_size, learned)))
                pasted = keys.pixels[-1:]
            errors = (shown - keys.pixels).square().flatten(1).mean(1)
            dark = quality.safety_warning(flags)
            if paste:
                frames[places] = pasted
            scaling = [False] * len(frames)
            frames = _POSTPROCESSOR.postprocess(frames, output_type, do_denormalize=scaling)
        numbers = quality.numbers_of(path, len(keys))
        share = missed / keys.clean.flatten(1).norm(dim=1)
        if output_type == "latent" or alone is None:
            given = of_latents, torch.zeros_like(of_latents), keys.clean, share
        else:
            given = errors, alone, keys.pixels, share
        lost = quality.inversion_warning(*given, numbers=numbers)
        for text in filter(None, (lost, dark)):
            warnings.warn(text, quality.ImageWarning, stacklevel=2)
        known = SHIPPED if is_shipped(self) else None
        size = size_problem(self, (keys.pixels.shape[3], keys.pixels.shape[2]))
        alien = quality.autoencoder_warning(alone, keys.pixels, known=known, numbers=numbers)
        found = alien, size, lost, dark
        return (
            *(frames, list(path.geodesics), path.points, errors.tolist(), flags, path),
            None if alone is None else alone.tolist(),
            [text for text in found if text is not None],
        )
