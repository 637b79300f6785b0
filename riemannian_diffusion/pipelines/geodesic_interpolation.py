"""Morphs between images along geodesics of a Stable Diffusion model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from riemannian_diffusion.ddim import invert, invert_steps, sample_steps
from riemannian_diffusion.geodesics import Iterate, Solver, Start
from riemannian_diffusion.guidance import ManifoldGuidedScore
from riemannian_diffusion.metrics import (
    EuclideanMetric,
    Metric,
    ScoreJacobianMetric,
    SteinScoreMetric,
    TangentNormalMetric,
)
from riemannian_diffusion.pipelines.gaps import CURVES, NOISE_CURVES, Gap, solve_gaps
from riemannian_diffusion.pipelines.inputs import Image, join_analogy, split_morphs, to_pixels
from riemannian_diffusion.pipelines.starts import carry_over, go_on, way_between
from riemannian_diffusion.score import DiffusionScore, ScoreModel

MetricFactory = Callable[[ScoreModel], Metric]

METRICS: dict[str, MetricFactory] = {
    "tangent_normal": TangentNormalMetric,
    "score_jacobian": ScoreJacobianMetric,
    "stein": SteinScoreMetric,
    "euclidean": lambda score: EuclideanMetric(),
}


@dataclass
class GeodesicInterpolationOutput(BaseOutput):
    """What `GeodesicInterpolationPipeline` returns; lists of it for a batch of morphs.

    Attributes:
        frames: The frames, first to last (and beyond, with `extrapolate`): PIL images, an array
            `(F, H, W, 3)` or a tensor `(F, 3, H, W)` in [0, 1], or clean latents `(F, C, h, w)`.
        geodesics: One `riemannian_diffusion.Geodesic` per gap between keyframes, or None where
            none was asked for.
        latents: The path `(F, C, h, w)`, float32, in the space it was solved in: noisy latents, or
            clean ones.
        reconstruction_error: Mean squared error of each keyframe's frame before pasting, of images
            in [0, 1] (of latents for `output_type="latent"`).
        nsfw_content_detected: One flag per frame, or None without a safety checker.
    """

    frames: Any
    geodesics: Any
    latents: Any
    reconstruction_error: Any
    nsfw_content_detected: Any


class GeodesicInterpolationPipeline(StableDiffusionPipeline):
    """Morph images into each other along geodesics of Stable Diffusion's data manifold.

    Loads from any Stable Diffusion 1.x or 2.x repository or directory with `from_pretrained`, and
    takes over the components of a loaded pipeline with `from_pipe`.
    """

    _callback_tensor_inputs = ["latents"]

    @torch.no_grad()
    def __call__(
        self,
        image: Sequence[Image] | Sequence[Sequence[Image]],
        prompt: str | Sequence[str] | Sequence[Sequence[str]] = "",
        *,
        negative_prompt: str = "",
        num_frames: int = 17,
        metric: str | MetricFactory = "tangent_normal",
        space: str = "noise",
        strength: float = 0.6,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        guidance_damping: float = 0.0,
        score_mode: str | None = None,
        init: Start | Sequence[Start] = "slerp",
        max_samples: int = 768,
        extrapolate: float = 0.0,
        analogy: Image | Sequence[Image] | None = None,
        solver: Solver | None = None,
        num_quadrature: int = 3,
        rtol: float = 1e-3,
        max_evals: int = 200,
        fixed_point_iterations: int = 5,
        max_batch_size: int | None = 8,
        paste_endpoints: bool = False,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> GeodesicInterpolationOutput | tuple:
        """Morph between keyframes.

        Args:
            image: Two or more keyframes, or a list of such lists for several morphs: PIL images,
                arrays `(H, W, 3)` (uint8, or floats in [0, 1]), or tensors `(3, H, W)` in [0, 1].
            prompt: One prompt, or one per keyframe; along the path their embeddings are
                interpolated. For a list of morphs: one of these for all, or a list of them.
            negative_prompt: Used by guidance and by `score_mode="difference"`.
            num_frames: Frames from each keyframe to the next, both included, at least 2; M
                keyframes give `(M - 1) (num_frames - 1) + 1` frames.
            metric: "tangent_normal", "score_jacobian", "stein", "euclidean"; or a factory
                `ScoreModel -> Metric`; or a curve that is no metric's geodesic: "slerp", "lerp"
                and, for `space="noise"`, "nao", "noise_diffusion" and "density" of
                `riemannian_diffusion.baselines`. Frames of "noise_diffusion" miss the keyframes.
            space: "noise": the keyframes are inverted to noise and the path runs there
                (arXiv 2510.05509). "clean": the path runs between the clean latents, read under one
                shared noise (arXiv 2505.11128); its ends are exact and nothing is inverted.
            strength: Noise level of the metric, as a share of the steps, in (0, 1].
            num_inference_steps: DDIM steps of the whole schedule.
            guidance_scale: Classifier-free guidance above 1, in inversion, metric and sampling
                alike.
            guidance_damping: Keeps guidance on the data manifold: above 0, up to 1, it is the
                `damping` of `riemannian_diffusion.ManifoldGuidedScore`, at 3 evaluations of the
                network for 2.
            score_mode: The metric's score: "conditional", "guided" or "difference" (see
                `DiffusionScore`); None takes the one that sampling uses, but for "density" the
                published "difference".
            init: Where a solve starts: as in `geodesic`, or "roadmap", the way along samples of the
                model between the clean latents (see `riemannian_diffusion.roadmap`), which in noise
                space is inverted. From a list of starts, the path of least energy is kept.
            max_samples: Most samples of a roadmap, for each gap.
            extrapolate: Go on beyond the last keyframe by this share of the length of the last gap,
                with frames as dense as there, by `riemannian_diffusion.extrapolate` among the clean
                latents; fewer frames come where the data end.
            analogy: An image C, or one for each morph of two keyframes A and B: the frames are not
                those of the morph but of C, changed as A changes to B, by
                `riemannian_diffusion.analogy` among the clean latents of the morphs from A to B and
                to C. Prompts for each image are those of A, B and C. The geodesics, latents and
                reconstruction errors are those of the morph from B by A to C, and so are the frames
                of an interrupted call.
            solver: As in `geodesic`.
            num_quadrature: As in `geodesic`.
            rtol: As in `geodesic`.
            max_evals: As in `geodesic`, for each gap.
            fixed_point_iterations: As in `invert`.
            max_batch_size: Largest batch the networks are given; None for no limit.
            paste_endpoints: Put the keyframes themselves in place of their reconstructions.
            generator: Source of the shared noise of `space="clean"`, and of the levels and noises
                of "density" and of a roadmap.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: Return a `GeodesicInterpolationOutput`, else a tuple of its entries.
            callback_on_step_end: Called as `callback(pipe, step, timestep, {"latents": ...})` after
                every sampling step; it may return changed latents, or set `pipe._interrupt`.
            callback_on_step_end_tensor_inputs: ["latents"] or [].

        Returns:
            The frames, the geodesics and the reconstruction errors.

        Raises:
            ValueError: If an argument is out of range, the images' sizes differ or do not divide by
                the autoencoder's factor, counts of images and prompts disagree, an image has
                non-finite values, the scheduler cannot be converted to DDIM, or "density" is to
                climb along the difference of equal prompts.
        """
        # 1. Check inputs; one morph is a batch of one
        is_analogy = analogy is not None
        if is_analogy:
            image = join_analogy(image, analogy)
        single, morphs, prompts = split_morphs(image, prompt)
        self.check_inputs(
            num_frames=num_frames,
            metric=metric,
            space=space,
            init=init,
            strength=strength,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_damping=guidance_damping,
            score_mode=score_mode,
            max_batch_size=max_batch_size,
            max_samples=max_samples,
            extrapolate=extrapolate,
            analogy=analogy,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        if is_analogy:
            morphs = [[b, a, c] for a, b, c in morphs]
            prompts = [[p[1], p[0], p[2]] if len(p) == 3 else p for p in prompts]
        morphs = [self._keyframes(images) for images in morphs]
        self._guidance_scale, self._interrupt = guidance_scale, False
        mode = "guided" if guidance_scale > 1 else "conditional"
        path_mode = score_mode or ("difference" if metric == "density" else mode)

        # 2. Levels of noise: the last `strength` of the schedule, noisiest first
        scheduler = _ddim_scheduler(self.scheduler)
        scheduler.set_timesteps(num_inference_steps)
        timesteps = scheduler.timesteps[-int(num_inference_steps * strength) :].tolist()
        final_abar = float(scheduler.final_alpha_cumprod)

        # 3. Encode prompts and keyframes
        prepared, gaps = [], []
        for keyframes, texts in zip(morphs, prompts, strict=True):
            guided = {mode, path_mode} != {"conditional"}
            difference = metric == "density" and path_mode == "difference"
            if difference and set(texts) == {negative_prompt}:
                raise ValueError(
                    "metric='density' climbs along the difference of `prompt` and "
                    f"`negative_prompt`, but both are {negative_prompt!r}: give another one of "
                    "either, or score_mode='conditional'."
                )
            positive, negative = self._encode_prompts(texts, negative_prompt, guided)
            pixels = keyframes.to(self._execution_device)  # (P, 3, H, W) in [0, 1]
            clean = self._encode_images(pixels, max_batch_size)  # (P, C, h, w)
            score_at = partial(
                _score_at,
                guidance_damping,
                self.unet,
                scheduler,
                negative_hidden_states=negative,
                guidance_scale=guidance_scale,
                max_batch_size=max_batch_size,
            )
            levels = cache(partial(score_at, encoder_hidden_states=positive, mode=mode))

            # 4. Carry the keyframes to the space of the path
            ends, noise = clean, None
            if space == "clean":
                noise = randn_tensor(clean.shape[1:], generator, clean.device, clean.dtype)
            else:
                steps = invert_steps(
                    levels,
                    clean,
                    timesteps,
                    final_abar=final_abar,
                    fixed_point_iterations=fixed_point_iterations,
                )
                *_, ends = self._with_bar(steps, "Inverting", len(timesteps))
            last = partial(score_at, encoder_hidden_states=positive[-1:], mode=mode)
            prepared.append((pixels, clean, levels, last))
            for i in range(len(ends) - 1):
                here = positive if len(positive) == 1 else positive[i : i + 2]
                levels_at = partial(score_at, mode=mode)
                carry = partial(
                    invert,
                    cache(partial(levels_at, encoder_hidden_states=here)),
                    timesteps=timesteps,
                    final_abar=final_abar,
                    fixed_point_iterations=fixed_point_iterations,
                )
                find_way = partial(
                    way_between,
                    *(clean[i], clean[i + 1], num_frames),
                    cache(partial(levels_at, encoder_hidden_states=here.mean(0, keepdim=True))),
                    scheduler.alphas_cumprod,
                    carry if space == "noise" else torch.clone,
                    final_abar=final_abar,
                    max_samples=max_samples,
                    generator=generator,
                )
                gap = Gap(
                    x0=ends[i],
                    x1=ends[i + 1],
                    clean0=clean[i],
                    clean1=clean[i + 1],
                    prompts=here,
                    noise=noise,
                    find_way=find_way,
                    levels=partial(score_at, encoder_hidden_states=here, mode=path_mode),
                    timestep=timesteps[0],
                    num_timesteps=len(scheduler.alphas_cumprod),
                    num_frames=num_frames,
                    generator=generator,
                )
                gaps.append(gap)

        # 5. Find a path through every gap
        if metric in CURVES:
            pieces = [(CURVES[metric](gap), None) for gap in gaps]
        else:
            with self.progress_bar(total=max_evals * len(gaps)) as bar:
                bar.set_description("Solving")
                geodesics = solve_gaps(
                    gaps,
                    METRICS.get(metric, metric),
                    partial(score_at, timestep=timesteps[0], mode=path_mode),
                    init,
                    num_quadrature=num_quadrature,
                    solver=solver,
                    rtol=rtol,
                    max_evals=max_evals,
                    callback=partial(_show_progress, bar, {}),
                )
            pieces = [(found.path, found) for found in geodesics]
        pieces = iter(pieces)

        results = []
        for pixels, clean, levels, last in prepared:
            filled = [next(pieces) for _ in clean[1:]]
            geodesics = [found for _, found in filled]
            path = torch.cat([p if i == 0 else p[1:] for i, (p, _) in enumerate(filled)])

            # 6. Carry the path back to clean latents
            latents = path
            if space == "noise":
                steps = sample_steps(levels, path, timesteps, final_abar=final_abar)
                latents = None  # what is sent first starts the steps
                for i, t in enumerate(self._with_bar(timesteps, "Sampling", len(timesteps))):
                    latents = steps.send(latents)
                    if callback_on_step_end is not None:
                        tensors = {"latents": latents} if callback_on_step_end_tensor_inputs else {}
                        changed = callback_on_step_end(self, i, t, tensors) or {}
                        latents = changed.get("latents", latents)
                    if self.interrupt:
                        break

            # 7. Go on beyond the last keyframe, or carry the change over to the last one
            keys = latents[:: num_frames - 1]
            if extrapolate:
                gap = latents[len(path) - num_frames :]
                beyond = go_on(gap, last, scheduler.alphas_cumprod, extrapolate)
                latents = torch.cat([latents, beyond])
            elif is_analogy and not self.interrupt:
                latents = carry_over(latents, last, scheduler.alphas_cumprod)

            # 8. Decode, measure the keyframes' reconstruction, paste
            flags = None
            if output_type == "latent":
                frames, errors = latents, (keys - clean).square().flatten(1).mean(1)
            else:
                frames, flags = self._decode(latents, max_batch_size)
                places = slice(None, len(path), num_frames - 1)
                shown = self._decode(keys, max_batch_size)[0] if is_analogy else frames[places]
                errors = (shown - pixels).square().flatten(1).mean(1)
                if paste_endpoints:
                    if is_analogy:
                        frames[0] = pixels[-1]
                    else:
                        frames[places] = pixels
                frames = self.image_processor.postprocess(
                    frames, output_type, do_denormalize=[False] * len(frames)
                )
            results.append((frames, geodesics, path, errors.tolist(), flags))

        self.maybe_free_model_hooks()
        entries = results[0] if single else tuple(map(list, zip(*results, strict=True)))
        return GeodesicInterpolationOutput(*entries) if return_dict else entries

    def check_inputs(
        self,
        *,
        num_frames,
        metric,
        space,
        init,
        strength,
        num_inference_steps,
        guidance_scale,
        guidance_damping,
        score_mode,
        max_batch_size,
        max_samples,
        extrapolate,
        analogy,
        output_type,
        callback_on_step_end_tensor_inputs,
    ) -> None:
        """Check the arguments of a call that are not images or prompts."""
        names = [*METRICS, *CURVES]
        if not callable(metric) and metric not in names:
            raise ValueError(
                f"`metric` must be one of {', '.join(names)} or a callable `ScoreModel -> Metric`, "
                f"but got {metric!r}."
            )
        if metric in NOISE_CURVES and space != "noise":
            raise ValueError(f"metric={metric!r} needs space='noise', but got {space!r}.")
        for name, value, allowed in (
            ("space", space, ("noise", "clean")),
            *(
                ("init", start, ("slerp", "lerp", "roadmap"))
                for start in (init if isinstance(init, (list, tuple)) else [init])
                if isinstance(start, str)
            ),
            ("score_mode", score_mode, (None, "conditional", "guided", "difference")),
            ("output_type", output_type, ("pil", "np", "pt", "latent")),
        ):
            if value not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, but got {value!r}.")
        for name, value, least in (
            ("num_frames", num_frames, 2),
            ("num_inference_steps", num_inference_steps, 1),
            ("max_batch_size", max_batch_size, 1),
            ("max_samples", max_samples, 1),
        ):
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"`{name}` must be at least {least}, but got {value}.")
        if not 0 <= extrapolate < math.inf:
            raise ValueError(
                f"`extrapolate` must not be negative and be finite, but got {extrapolate}."
            )
        if not 0 <= guidance_damping <= 1:
            raise ValueError(f"`guidance_damping` must be in [0, 1], but got {guidance_damping}.")
        if guidance_damping and not guidance_scale > 1:
            raise ValueError(
                f"`guidance_damping` {guidance_damping} needs a `guidance_scale` above 1, "
                f"but got {guidance_scale}."
            )
        if extrapolate and analogy is not None:
            raise ValueError("`analogy` and `extrapolate` exclude each other, but both were given.")
        if not 0 < strength <= 1:
            raise ValueError(f"`strength` must be in (0, 1], but got {strength}.")
        if int(num_inference_steps * strength) < 1:
            raise ValueError(
                f"`strength` {strength} of `num_inference_steps` {num_inference_steps} leaves no "
                "step: raise one of them."
            )
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                "`callback_on_step_end_tensor_inputs` must be among "
                f"{self._callback_tensor_inputs}, but got {sorted(unknown)}."
            )

    def _keyframes(self, images: Sequence[Image]) -> Tensor:
        """Keyframes `(P, 3, H, W)` in [0, 1], checked."""
        pixels = [to_pixels(image, i) for i, image in enumerate(images)]
        if len(pixels) < 2:
            raise ValueError(f"A morph needs at least 2 images, but got {len(pixels)}.")
        sizes = [tuple(p.shape[-2:]) for p in pixels]
        if len(set(sizes)) > 1:
            raise ValueError(
                f"All images of a morph must have one size, but got (height, width) {sizes}: "
                "resize or crop them first."
            )
        factor = self.vae_scale_factor
        if sizes[0][0] % factor or sizes[0][1] % factor:
            raise ValueError(
                f"Height and width must be multiples of {factor}, but got {sizes[0]}: resize or "
                "crop the images first."
            )
        return torch.stack(pixels)

    def _encode_prompts(
        self, texts: Sequence[str], negative_prompt: str, guided: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings of one prompt for all keyframes or one for each, and of the negative one."""
        positive, negative = self.encode_prompt(
            list(texts),
            self._execution_device,
            1,
            guided,
            [negative_prompt] * len(texts) if guided else None,
        )
        return positive, negative[:1] if guided else None

    def _encode_images(self, pixels: Tensor, max_batch_size: int | None) -> Tensor:
        """The modes of the latents' posteriors, scaled, float32."""
        images = (2 * pixels - 1).to(self.vae.dtype).split(max_batch_size or len(pixels))
        modes = [self.vae.encode(batch).latent_dist.mode() for batch in images]
        return torch.cat(modes).float() * self.vae.config.scaling_factor

    def _decode(
        self, latents: Tensor, max_batch_size: int | None
    ) -> tuple[Tensor, list[bool] | None]:
        """Frames `(F, 3, H, W)` in [0, 1], float32, and the safety checker's flags."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        batches = scaled.split(max_batch_size or len(scaled))
        frames = torch.cat([self.vae.decode(batch, return_dict=False)[0] for batch in batches])
        frames, flags = self.run_safety_checker(frames, frames.device, self.unet.dtype)
        return (frames.float() / 2 + 0.5).clamp(0, 1), flags

    def _with_bar(self, iterable: Iterable, description: str, total: int) -> Iterator:
        with self.progress_bar(total=total) as bar:
            bar.set_description(description)
            for item in iterable:
                yield item
                bar.update()


def _score_at(damping: float, *args, negative_hidden_states, guidance_scale, mode, **options):
    """A network's score at one level, guided straight on or along the manifold."""
    if mode == "guided" and damping:
        conditional = DiffusionScore(*args, **options)
        options["encoder_hidden_states"] = negative_hidden_states
        unconditional = DiffusionScore(*args, **options)
        return ManifoldGuidedScore(conditional, unconditional, guidance_scale, damping=damping)
    return DiffusionScore(
        *args,
        negative_hidden_states=negative_hidden_states,
        guidance_scale=guidance_scale,
        mode=mode,
        **options,
    )


def _show_progress(bar, spent: dict[int, int], iterate: Iterate) -> None:
    spent[iterate.pair] = iterate.num_evals
    bar.set_postfix(energy=f"{iterate.energy:.4g}", refresh=False)
    bar.update(sum(spent.values()) - bar.n)


def _ddim_scheduler(scheduler) -> DDIMScheduler:
    """The DDIM scheduler of the same schedule."""
    config = scheduler.config
    convertible = hasattr(scheduler, "alphas_cumprod") and hasattr(config, "beta_schedule")
    prediction = getattr(config, "prediction_type", "epsilon")
    if not convertible or prediction not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(
            f"The pipeline's scheduler {type(scheduler).__name__} (prediction_type={prediction!r}) "
            "cannot be converted to DDIMScheduler: it needs a variance-preserving schedule of "
            "betas with epsilon, velocity or sample prediction."
        )
    return DDIMScheduler.from_config(config)
