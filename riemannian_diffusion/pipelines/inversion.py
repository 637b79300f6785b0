"""The stage that brings images into the space of a path."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from riemannian_diffusion.arguments import check_not_negative, kind_of
from riemannian_diffusion.events import Event, Listener, run
from riemannian_diffusion.pipelines.checks import check_inversion, check_listener
from riemannian_diffusion.pipelines.finished import carrying
from riemannian_diffusion.pipelines.inputs import Image, to_keyframes
from riemannian_diffusion.pipelines.knowledge import SHIPPED, is_shipped, size_problem
from riemannian_diffusion.pipelines.model import to_unit
from riemannian_diffusion.pipelines.morph import Keyframes, learning_together
from riemannian_diffusion.pipelines.preflight import check_model
from riemannian_diffusion.pipelines.quality import ImageWarning, autoencoder_warning
from riemannian_diffusion.pipelines.running import RunningModel
from riemannian_diffusion.pipelines.stages import inverting, joined_levels, model_of
from riemannian_diffusion.pipelines.texts import warn_of_negative
from riemannian_diffusion.score import Conditions


class InvertStage(RunningModel):
    """The stage `invert`."""

    @torch.no_grad()
    def invert(
        self,
        image: Sequence[Image] | Tensor,
        prompt: str | Sequence[str] = "",
        negative_prompt: str = "",
        *,
        space: str = "noise",
        strength: float = 0.6,
        num_inference_steps: int = 50,
        spacing: str | None = None,
        guidance_scale: float = 1.0,
        true_cfg_scale: float = 1.0,
        guidance_damping: float = 0.0,
        conditions: Conditions | None = None,
        fixed_point_iterations: int | None = None,
        frame_numbers: Sequence[int] | None = None,
        max_batch_size: int | None = 8,
        generator: torch.Generator | None = None,
        on_event: Listener | None = None,
    ) -> Keyframes:
        """Bring images into the space of a path.

        Args:
            image: Two or more keyframes of one size: PIL images, arrays `(H, W, 3)` (uint8, or
                floats in [0, 1]), or tensors `(3, H, W)` in [0, 1]; 1 in place of 3 for a model of
                grey images.
            prompt: One prompt, or one for each keyframe.
            negative_prompt: Used by guidance, and by `score_mode="difference"` of `solve`.
            space: "noise": the images are inverted by DDIM and the path runs among noisy latents
                (arXiv 2510.05509). "clean": the path runs between the clean latents, read under one
                shared noise (arXiv 2505.11128); its ends are exact and nothing is inverted.
            strength: Noise level of the path, as a share of the steps, in (0, 1].
            num_inference_steps: Steps of the scheduler's whole schedule.
            spacing: "noise": inversion and sampling visit half as many levels, evenly spaced in the
                cube root of the noise (`Schedule.even_in_noise`), with about the same error.
                "scheduler": they visit the scheduler's own steps, as flows do by default.
            guidance_scale: Classifier-free guidance above 1, in every stage alike; or the input of
                networks that take guidance as one.
            true_cfg_scale: Classifier-free guidance above 1, also for networks that take
                `guidance_scale` as an input.
            guidance_damping: Damps the part of guidance that is normal to the data manifold, in
                [0, 1]. Above 0 it is the `damping` of `ManifoldGuidedScore`, and the network is
                evaluated 3 times for each point instead of 2.
            conditions: What `condition` returned, in place of the prompts.
            fixed_point_iterations: See `riemannian_diffusion.invert`.
            frame_numbers: The number of each keyframe's frame, rising from 0.
            max_batch_size: Largest batch given to the network, and to the autoencoder as in
                `decode`; None for no limit. If memory runs out in any stage, the batch is halved,
                and the stages after it keep to the smaller size.
            generator: Source of the shared noise of `space="clean"`.
            on_event: Receives events; None shows progress bars.

        Returns:
            The keyframes, which `solve` takes, and which can be saved.

        Raises:
            ValueError: If an argument is out of range, the images' sizes differ or do not fit the
                model, or the scheduler has no levels of the model's kind.

        Warns:
            ImageWarning: If the autoencoder loses more than a tenth of an image's variance, or the
                images' sides are more than twice or less than half the model's own.
            TextWarning: If `prompt` is truncated, or `negative_prompt` has no effect.

        Examples:
            >>> from PIL import Image
            >>> from riemannian_diffusion import demo
            >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
            >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
            >>> images = [Image.open(path) for path in demo.endpoint_paths()]
            >>> keys = pipe.invert(images, num_inference_steps=5)
            >>> tuple(keys.points.shape)
            (2, 4, 16, 16)
        """
        check_listener(on_event)
        draft = self._draft(
            *(image, prompt, negative_prompt, conditions, generator),
            space=space,
            strength=strength,
            num_inference_steps=num_inference_steps,
            spacing=spacing,
            guidance_scale=guidance_scale,
            true_cfg_scale=true_cfg_scale,
            guidance_damping=guidance_damping,
            fixed_point_iterations=fixed_point_iterations,
            max_batch_size=max_batch_size,
            frame_numbers=frame_numbers,
        )
        return self._run(self._inverting([draft()], [generator]), on_event)[0]

    def _draft(
        self,
        image: Sequence[Image] | Tensor,
        prompt: str | Sequence[str],
        negative_prompt: str,
        conditions: Conditions | None,
        generator: torch.Generator | None,
        *,
        space: str,
        strength: float,
        num_inference_steps: int,
        guidance_scale: float,
        fixed_point_iterations: int | None,
        max_batch_size: int | None,
        spacing: str | None = None,
        true_cfg_scale: float = 1.0,
        guidance_damping: float = 0.0,
        frame_numbers: Sequence[int] | None = None,
    ) -> Callable[[], Keyframes]:
        """Check the arguments of `invert`, without a call of a network.

        Returns:
            A function that encodes the prompts and returns keyframes that have images and levels,
            but no latents and no points.
        """
        check_inversion(
            *(space, strength, num_inference_steps, spacing, fixed_point_iterations),
            *(max_batch_size, generator),
        )
        check_not_negative(guidance_scale=guidance_scale, true_cfg_scale=true_cfg_scale)
        check_model(self)
        pixels = to_keyframes(image, self._image_channels, self._size_factor)
        known = self._conditions_for(len(pixels), prompt, negative_prompt, conditions)
        size = (pixels.shape[2], pixels.shape[3])
        schedule = self._read_schedule(num_inference_steps, strength, size)
        schedule = self._spaced(schedule, spacing)
        levels = self._levels(
            known,
            schedule,
            guidance_scale=guidance_scale,
            true_cfg_scale=true_cfg_scale,
            guidance_damping=guidance_damping,
            max_batch_size=max_batch_size,
        )
        pixels = pixels.to(self.device_of_work)
        checked = Keyframes(
            *(pixels, pixels[:0], pixels[:0], space, levels, None),
            fixed_point_iterations,
        )
        if frame_numbers is not None:
            if not isinstance(frame_numbers, Iterable):
                raise ValueError(
                    "`frame_numbers` must be a list of whole numbers, but got "
                    f"{kind_of(frame_numbers)}."
                )
            checked = checked.placed(list(frame_numbers))
        warn_of_negative(self, negative_prompt, guidance_scale, true_cfg_scale)

        def draft() -> Keyframes:
            model = self._digest()
            if conditions is not None:
                return replace(checked, model=model)
            found = self.condition(prompt, negative_prompt).with_fixed(levels.conditions.positive)
            encoded = self._connect(replace(levels, conditions=found))
            return replace(checked, levels=encoded, model=model)

        return draft

    def _inverting(
        self, drafts: Sequence[Keyframes], generators: Sequence[torch.Generator | None]
    ) -> Generator[Event, Any, list[Keyframes]]:
        """Events of encoding and inversion; returns the keyframes of drafts.

        Those of one model and one size are encoded and inverted in one batch. An error carries the
        keyframes of batches that were inverted before it.
        """
        if len(drafts) > 1:
            drafts = learning_together(drafts)
        groups: dict[tuple, list[int]] = {}
        for i, draft in enumerate(drafts):
            groups.setdefault(_inverted_with(draft), []).append(i)
        found: dict[int, Keyframes] = {}

        def finished() -> list[Keyframes | None] | None:
            return [found.get(i) for i in range(len(drafts))] if found else None

        with carrying("keys", finished, "Give those that are not None to `pipe.solve`."):
            for members in groups.values():
                mine = [drafts[i] for i in members], [generators[i] for i in members]
                keys = yield from self._inverting_together(*mine)
                found |= zip(members, keys, strict=True)
        return [found[i] for i in range(len(drafts))]

    def _inverting_together(
        self, drafts: Sequence[Keyframes], generators: Sequence[torch.Generator | None]
    ) -> Generator[Event, Any, list[Keyframes]]:
        """Encode and invert the images of all drafts in one batch."""
        first, sizes = drafts[0], [len(draft) for draft in drafts]
        batches = first.levels.max_batch_size, first.levels.learned
        pixels = torch.cat([draft.pixels for draft in drafts])
        clean = yield from self._encoding(pixels, *batches)
        decoded = to_unit(run(self._decoding(clean, *batches)))
        errors = (decoded - pixels).square().flatten(1).mean(1).split(sizes)
        for draft, error in zip(drafts, errors, strict=True):
            self._warn_of_images(draft.pixels, error)
        parts = [part.clone() for part in clean.split(sizes)]
        if first.space == "clean":
            noises = [
                randn_tensor(clean.shape[1:], generator, clean.device, clean.dtype)
                if draft.noise is None
                else draft.noise
                for draft, generator in zip(drafts, generators, strict=True)
            ]
            found = zip(drafts, parts, parts, noises, errors, strict=True)
        else:
            levels, where = joined_levels([(draft.levels, draft.where) for draft in drafts])
            points = yield from inverting(levels, clean, where, first.fixed_point_iterations)
            pieces = [piece.clone() for piece in points.split(sizes)]
            found = zip(
                drafts, parts, pieces, [draft.noise for draft in drafts], errors, strict=True
            )
        return [
            replace(draft, clean=part, points=piece, noise=noise, autoencoder_error=error)
            for draft, part, piece, noise, error in found
        ]

    def _warn_of_images(self, pixels: Tensor, error: Tensor) -> None:
        """Warn of images that the autoencoder loses, or whose size is far from the model's own."""
        known = SHIPPED if is_shipped(self) else None
        size = (pixels.shape[3], pixels.shape[2])
        lost = autoencoder_warning(error, pixels, known=known), size_problem(self, size)
        for text in filter(None, lost):
            warnings.warn(text, ImageWarning, stacklevel=2)


def _inverted_with(draft: Keyframes) -> tuple:
    """A key that is equal for keyframes that can be inverted in one batch."""
    levels = draft.levels
    return (
        *(tuple(draft.pixels.shape[1:]), draft.space, draft.fixed_point_iterations),
        *(levels.conditions.num_knots, levels.schedule.levels, levels.schedule.final_abar),
        *model_of(levels),
    )
