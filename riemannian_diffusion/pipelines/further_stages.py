"""The stages that follow a path: retime, extend, transport and render."""

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
from riemannian_diffusion.geodesics import RTOL
from riemannian_diffusion.levels import Levels
from riemannian_diffusion.pipelines import quality
from riemannian_diffusion.pipelines.callbacks import Step, following
from riemannian_diffusion.pipelines.checks import (
    OUTPUT_TYPES,
    check_batch_size,
    check_callback,
    check_choice,
    check_solve,
)
from riemannian_diffusion.pipelines.curves import MetricFactory, check_metric
from riemannian_diffusion.pipelines.inputs import Image, to_keyframes
from riemannian_diffusion.pipelines.model import to_unit
from riemannian_diffusion.pipelines.morph import Keyframes, MorphPath, chained, sampled_latents
from riemannian_diffusion.pipelines.morph_stages import MorphStages
from riemannian_diffusion.pipelines.output import GeodesicInterpolationOutput, stacked
from riemannian_diffusion.pipelines.retiming import Distance, find_distance, retiming
from riemannian_diffusion.pipelines.stages import replaced_times
from riemannian_diffusion.pipelines.starts import continuation, transported
from riemannian_diffusion.score import Conditions

_POSTPROCESSOR = VaeImageProcessor()


class FurtherStages(MorphStages):
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
            max_batch_size: As in `decode`.
            callback_on_step_end: As in `sample`. An interrupted round is dropped.
            on_event: Receives events; None shows progress bars.

        Returns:
            The path with other points and times, sampled.

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
        path = self.connect(_untransported(path))
        check_batch_size(max_batch_size)
        check_callback(callback_on_step_end)
        compare = find_distance(distance, self.device_of_work)
        on_step, learned = following(self, callback_on_step_end), path.keys.levels.learned

        def show(times: Tensor) -> Generator[Event, Any, tuple[MorphPath, Tensor, bool]]:
            moved = path if torch.equal(times, path.times) else replaced_times(path, times)
            proceeds = True
            if moved.latents is None:
                moved, proceeds = yield from self._sampling(moved, on_step)
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
        path = self.connect(_untransported(path))
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
    def transport(
        self,
        path: MorphPath,
        image: Image,
        prompt: str | None = None,
        *,
        conditions: Conditions | None = None,
        metric: str | MetricFactory | None = None,
        max_evals: int = 200,
        rtol: float = RTOL,
        num_quadrature: int | None = None,
        callback_on_step_end: Step | None = None,
        on_event: Listener | None = None,
    ) -> MorphPath:
        """Change an image C as a path changes its first keyframe A into its last one B.

        The path from A to C is found and sampled, and the change is moved along it among the
        clean latents (`riemannian_diffusion.analogy`).

        Args:
            path: The path from A to B, two keyframes, sampled.
            image: The image C, of the keyframes' size.
            prompt: The prompt of C. None takes that of the keyframes, if they share one.
            conditions: What `condition` returned for C, in place of the prompt.
            metric: As in `solve`, for the path from A to C. None takes the path's own.
            max_evals: As in `solve`.
            rtol: As in `solve`.
            num_quadrature: As in `solve`.
            callback_on_step_end: As in `sample`, for the path from A to C. If it interrupts, the
                path from B by A to C comes back as it is.
            on_event: Receives events; None shows progress bars.

        Returns:
            The path from B by A to C, whose `transported` latents are the frames: C first.

        Raises:
            ValueError: If the path has not two keyframes or has not been sampled, or C does not
                fit.

        Examples:
            >>> from PIL import Image
            >>> from riemannian_diffusion import demo
            >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
            >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
            >>> a, b = (Image.open(path) for path in demo.endpoint_paths())
            >>> keys = pipe.invert([a, b], num_inference_steps=5)
            >>> path = pipe.sample(pipe.solve(keys, "lerp", num_frames=3))
            >>> changed = pipe.transport(path, b)
            >>> tuple(changed.shown.shape)
            (3, 4, 16, 16)
        """
        path = self.connect(_untransported(path))
        sampled_latents(path)
        keys = path.keys
        if len(keys) != 2:
            raise ValueError(
                f"`path` must lead from one keyframe to another, but has {len(keys)} keyframes."
            )
        metric = path.metric if metric is None else metric
        check_metric(metric, keys.space, keys.levels.schedule.is_flow)
        check_solve(None, max_evals, rtol, num_quadrature, None)
        check_callback(callback_on_step_end)
        pixels = to_keyframes([image], self._image_channels, self._size_factor, least=1)
        if pixels.shape[1:] != keys.pixels.shape[1:]:
            raise ValueError(
                f"`image` must have the keyframes' size, but is {tuple(pixels.shape[1:])} and not "
                f"{tuple(keys.pixels.shape[1:])}."
            )
        theirs = self._conditions_of_third(keys, prompt, conditions)
        alone = replace(keys.levels, conditions=theirs)
        draft = replace(keys, pixels=pixels.to(keys.pixels.device), levels=alone)
        third = self._run(self._inverting(draft, None), on_event)
        ours = keys.levels.conditions
        first = ours.at_knots([0])
        bridge = chained([(keys, 0), (third, 0)], Conditions.through([(first, 1), (theirs, 1)]))
        options = {"max_evals": max_evals, "rtol": rtol, "num_quadrature": num_quadrature}
        solved = self.solve(bridge, metric, num_frames=len(path), on_event=on_event, **options)
        found = self.sample(
            solved,
            attention_interpolation=path.attention_interpolation,
            callback_on_step_end=callback_on_step_end,
            on_event=on_event,
        )
        turned = ours.at_knots([1, 0])
        three = chained(
            [(keys, 1), (keys, 0), (third, 0)], Conditions.through([(turned, 2), (theirs, 1)])
        )
        whole = MorphPath(
            three,
            torch.cat([path.points.flip(0), found.points[1:]]),
            torch.cat([(1 - path.times).flip(0), 1 + found.times[1:]]),
            (*path.geodesics, *found.geodesics),
            found.metric,
            torch.cat([sampled_latents(path).flip(0), sampled_latents(found)[1:]]),
            path.attention_interpolation,
        )
        if self._interrupt:
            return whole
        return self._run(self._transporting(whole, path, found, alone), on_event)

    def _transporting(
        self, whole: MorphPath, path: MorphPath, bridge: MorphPath, levels: Levels
    ) -> Generator[Event, Any, MorphPath]:
        """Events of the last step of transport; returns the whole path with its frames."""
        yield Event("transport", 0, 1)
        latents = transported(sampled_latents(path), sampled_latents(bridge), levels)
        yield Event("transport", 1, 1, latents)
        return replace(whole, transported=latents)

    def _conditions_of_third(
        self, keys: Keyframes, prompt: str | None, conditions: Conditions | None
    ) -> Conditions:
        """Conditions of an image beside two keyframes, under their negative prompt."""
        shared = keys.levels.conditions
        if conditions is None and prompt is None:
            if shared.num_knots > 1:
                raise ValueError(
                    "The keyframes have prompts of their own: give the `prompt` of `image`."
                )
            return shared
        if conditions is None:
            check_kind(str, prompt=prompt)
            conditions = replace(self.condition(prompt or ""), options=shared.options)
        elif prompt is not None:
            raise ValueError("Give `prompt` or `conditions`, not both.")
        check_kind(Conditions, conditions=conditions)
        if conditions.num_knots > 1:
            raise ValueError(
                "`conditions` must be those of one image, but are given for "
                f"{conditions.num_knots}."
            )
        positive = dict(conditions.positive)
        if "guidance" in shared.positive:  # an input of the network, which keyframes share
            positive["guidance"] = shared.positive["guidance"]
        return replace(conditions, positive=positive, negative=shared.negative)

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
            max_batch_size: As in `decode`.
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
        if output_type == "latent":
            frames, errors = latents, (mine - keys.clean).square().flatten(1).mean(1)
            lost = quality.inversion_warning(errors, torch.zeros_like(errors), keys.clean)
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
            lost = None if alone is None else quality.inversion_warning(errors, alone, keys.pixels)
            dark = quality.safety_warning(flags)
            if paste:
                frames[places] = pasted
            scaling = [False] * len(frames)
            frames = _POSTPROCESSOR.postprocess(frames, output_type, do_denormalize=scaling)
        for text in filter(None, (lost, dark)):
            warnings.warn(text, quality.ImageWarning, stacklevel=2)
        found = quality.autoencoder_warning(alone, keys.pixels), lost, dark
        return (
            *(frames, list(path.geodesics), path.points, errors.tolist(), flags, path),
            None if alone is None else alone.tolist(),
            [text for text in found if text is not None],
        )


def _untransported(path: MorphPath) -> MorphPath:
    """A path whose frames are those of its points.

    Raises:
        ValueError: If it is no path, or a transported one.
    """
    check_kind(MorphPath, path=path)
    if path.transported is not None:
        raise ValueError("A transported path can be rendered and saved, but not changed further.")
    return path
