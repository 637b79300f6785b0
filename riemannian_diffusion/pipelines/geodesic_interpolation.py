"""Morphs between images along geodesics of a diffusion model, whichever it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from riemannian_diffusion.arguments import check_kind
from riemannian_diffusion.events import Listener
from riemannian_diffusion.pipelines.callbacks import Step
from riemannian_diffusion.pipelines.checks import (
    OUTPUT_TYPES,
    check_choice,
    check_inversion,
    check_listener,
    check_sampling,
    check_solve,
)
from riemannian_diffusion.pipelines.curves import MetricFactory, check_metric
from riemannian_diffusion.pipelines.finished import carrying
from riemannian_diffusion.pipelines.folders import check_complete, check_folder, read_index
from riemannian_diffusion.pipelines.further_stages import FurtherStages
from riemannian_diffusion.pipelines.hub import reaching_hub, with_dtype
from riemannian_diffusion.pipelines.inputs import Image, for_each, split_morphs, to_keyframes
from riemannian_diffusion.pipelines.morph import Keyframes, MorphPath, check_num_frames
from riemannian_diffusion.pipelines.output import GeodesicInterpolationOutput
from riemannian_diffusion.pipelines.preflight import check_parts
from riemannian_diffusion.pipelines.single_file import prepared
from riemannian_diffusion.pipelines.starts import MorphStart, as_starts, check_starts
from riemannian_diffusion.pipelines.storage import check_savable
from riemannian_diffusion.score import Conditions


class GeodesicInterpolationMixin(FurtherStages):
    """Morphs images into each other along geodesics of a diffusion model's data manifold.

    Mixed into a diffusers pipeline, whose components and ways of loading it takes over.
    """

    _callback_tensor_inputs = ["latents"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a model as diffusers does, but from safetensors alone.

        `use_safetensors=None` would also take pickles, which can run code. `dtype` and its older
        name `torch_dtype` are the same, whichever the installed diffusers takes.

        Raises:
            OSError: If a part of a folder is missing, such as weights as safetensors.
            ValueError: If the network of a folder takes inputs that this library does not give.
        """
        folder = Path(pretrained_model_name_or_path)
        checked = kwargs.setdefault("use_safetensors", True) and folder.is_dir()
        if checked:
            index, variant = read_index(folder), kwargs.get("variant")
            needed = {*cls._get_signature_keys(cls)[0]} - {*cls._optional_components}  # type: ignore[attr-defined]
            check_folder(folder, index, variant=variant, given=kwargs, needed=needed)
        with reaching_hub(pretrained_model_name_or_path):
            pipe = super().from_pretrained(  # type: ignore[misc]  # that of the diffusers pipeline
                pretrained_model_name_or_path, **with_dtype(kwargs)
            )
        if checked and kwargs.get("device_map") is None:
            options = {
                one: kwargs[one] for one in ("variant", "low_cpu_mem_usage") if one in kwargs
            }
            for name, part in pipe.components.items():
                if isinstance(part, nn.Module) and name not in kwargs:
                    check_complete(part, folder / name, **options)
        return pipe

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path, *, config=None, **kwargs):
        """Load a model from one .safetensors file, as `AutoGeodesicInterpolationPipeline` does.

        Files of other formats are refused: they can run code when they are read.

        Raises:
            OSError: If the file lacks weights.
            ValueError: If it is a model of another family.
        """
        file = pretrained_model_link_or_path
        with prepared(file, config, kwargs) as (name, options):
            if name not in [kind.__name__ for kind in cls.__mro__]:
                raise ValueError(f"{file} needs a {name}, but was given to {cls.__name__}.")
            try:
                pipe = super().from_single_file(str(file), **options | with_dtype(kwargs))  # type: ignore[misc]
            except NotImplementedError as error:  # PyTorch cannot move weights without data
                raise OSError(
                    f"{file} lacks weights of its network or autoencoder: download it again."
                ) from error
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module) and name not in kwargs:
                check_complete(part, file)
        return pipe

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save the model as diffusers does; once loaded, it gives the same levels.

        Raises:
            ValueError: If the scheduler's config does not give its levels, or a part is missing.
        """
        check_parts(self)
        check_savable(self.scheduler)
        super().save_pretrained(  # type: ignore[misc]  # that of the diffusers pipeline
            save_directory, *args, **kwargs
        )

    @torch.no_grad()
    def __call__(
        self,
        image: Sequence[Image] | Sequence[Sequence[Image]] | Tensor,
        prompt: str | Sequence[str] | Sequence[Sequence[str]] = "",
        *,
        negative_prompt: str | Sequence[str] = "",
        num_frames: int | Sequence[int] = 17,
        metric: str | MetricFactory = "tangent_normal",
        space: str = "noise",
        strength: float = 0.6,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        fixed_point_iterations: int | None = None,
        init: MorphStart = None,
        max_evals: int = 200,
        conditions: Conditions | Sequence[Conditions] | None = None,
        max_batch_size: int | None = 8,
        paste_endpoints: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Step | None = None,
        on_event: Listener | None = None,
    ) -> GeodesicInterpolationOutput | tuple:
        """Morph between keyframes: `invert`, `solve`, `sample` and `render`, one after the other.

        What is not an argument here is one of a stage: call the stages to re-time, extend or
        transport a path, to save it, or to solve again with another metric.

        Args:
            image: Two or more keyframes, or a list of such lists for several morphs, or their
                tensor `(B, P, 3, H, W)`; see `invert`.
            prompt: One prompt, or one for each keyframe; along the path their embeddings are
                interpolated. For a list of morphs: one of these for all, or a list of them.
            negative_prompt: As in `invert`; for a list of morphs also a list with one for each.
            num_frames: Frames from each keyframe to the next, both included, at least 2: one number
                or one for each gap. M keyframes give `(M - 1) (num_frames - 1) + 1` frames.
            metric: See `solve`.
            space: See `invert`.
            strength: See `invert`.
            num_inference_steps: See `invert`.
            guidance_scale: See `invert`.
            fixed_point_iterations: See `invert`.
            init: See `solve`.
            max_evals: See `solve`.
            conditions: What `condition` returned, in place of the prompts; for a list of morphs
                also a list with one entry each.
            max_batch_size: See `invert`.
            paste_endpoints: See `render`.
            generator: Source of all that is random: the shared noise of `space="clean"`, and the
                levels and noises of "density" and of roadmaps. For a list of morphs also a list
                with one for each.
            output_type: See `render`.
            return_dict: Return a `GeodesicInterpolationOutput`, else a tuple of its entries.
            callback_on_step_end: See `sample`.
            on_event: Receives the events of all stages; None shows progress bars.

        Returns:
            The frames, the geodesics, the reconstruction errors, the path and warnings.

        Raises:
            ValueError: If an argument is out of range, the images' sizes differ or do not fit the
                model, counts of images and prompts disagree, or the scheduler has no levels of the
                model's kind.
            Exception: Any error that ends the work, also one that a callback raises or a
                `KeyboardInterrupt`, has what was finished as attributes: `keys`, the keyframes, and
                `path`, the path; lists of them for several morphs, with None for those that were
                not finished. Morphs of one size are inverted in one batch and end together. Paths
                that were sampled have their latents. Go on with the stages.
        """
        # 1. Check everything before the work begins; one morph is a batch of one
        check_parts(self)
        single, morphs, prompts = split_morphs(image, prompt)
        negatives = for_each("negative_prompt", negative_prompt, len(morphs))
        generators = for_each("generator", generator, len(morphs))
        for one in generators:
            check_inversion(
                *(space, strength, num_inference_steps, None, fixed_point_iterations),
                *(max_batch_size, one),
            )
        check_metric(metric, space, self._is_flow)
        check_solve(None, max_evals, 0.0, 1, None)
        starts = as_starts(init, space)
        check_listener(on_event)
        check_sampling(False, 0.0, space, callback_on_step_end)
        check_choice("output_type", output_type, OUTPUT_TYPES)
        given = _one_each(conditions, len(morphs), single)
        for images in morphs:
            pixels = to_keyframes(images, self._image_channels, self._size_factor)
            counts = check_num_frames(num_frames, len(images) - 1)
            check_starts(starts, counts, pixels, self._size_factor)
        drafts = [
            self._draft(
                images,
                "" if mine is not None and not any(texts) else texts,
                *(negative, mine, source),
                space=space,
                strength=strength,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                fixed_point_iterations=fixed_point_iterations,
                max_batch_size=max_batch_size,
            )
            for images, texts, negative, mine, source in zip(
                *(morphs, prompts, negatives, given, generators), strict=True
            )
        ]

        # 2. Bring the keyframes of every morph into the space of the path
        keys: list[Keyframes] = []
        paths: list[MorphPath] = []

        def made(found: list) -> Any:
            return found[0] if single and found else found or None

        with (
            carrying("keys", lambda: made(keys), "Give it to `pipe.solve`."),
            carrying("path", lambda: made(paths), "Give it to `pipe.sample` and `pipe.render`."),
        ):
            encoded = [draft() for draft in drafts]
            self._gaps(encoded, metric, num_frames, None, generators)  # for what it refuses
            keys += self._run(self._inverting(encoded, generators), on_event)

            # 3. Find the paths of all morphs side by side
            paths += self.solve(
                keys,
                metric,
                num_frames=num_frames,
                init=init,
                max_evals=max_evals,
                generator=generators,
                on_event=on_event,
            )

            # 4. Sample clean latents from each path, and 5. decode them
            options: dict[str, Any] = {"callback_on_step_end": callback_on_step_end}
            paths[:] = self.sample(paths, on_event=on_event, **options)
            out = self.render(
                paths[0] if single else paths,
                output_type=output_type,
                paste_endpoints=paste_endpoints,
                max_batch_size=max_batch_size,
                on_event=on_event,
            )
        return out if return_dict else tuple(getattr(out, field.name) for field in fields(out))


def _one_each(
    conditions: Conditions | Sequence[Conditions] | None, num: int, single: bool
) -> list[Conditions | None]:
    """The conditions of every morph."""
    if conditions is None or isinstance(conditions, Conditions):
        return [conditions] * num
    check_kind(Sequence, conditions=conditions)
    found: list[Conditions | None] = list(conditions)
    if single or len(found) != num or not all(isinstance(one, Conditions) for one in found):
        raise ValueError(
            f"`conditions` must be what `condition` returned, or a list of one for each of {num} "
            f"morphs, but got {len(found)} of {sorted({type(one).__name__ for one in found})}."
        )
    return found
