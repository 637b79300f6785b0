"""Morphs between images along geodesics of a diffusion model, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from riemannian_diffusion.adaptation import Adaptation
from riemannian_diffusion.arguments import check_kind
from riemannian_diffusion.ddim import invert, invert_steps, sample_steps
from riemannian_diffusion.geodesics import Iterate, Solver, Start
from riemannian_diffusion.guidance import ManifoldGuidedScore
from riemannian_diffusion.paths import adain as matched
from riemannian_diffusion.pipelines.checks import (
    check_arguments,
    check_embeddings,
    latents_of,
)
from riemannian_diffusion.pipelines.gaps import (
    CURVES,
    METRICS,
    UNIT_CURVES,
    Gap,
    MetricFactory,
    solve_gaps,
)
from riemannian_diffusion.pipelines.inputs import Image, join_analogy, split_morphs
from riemannian_diffusion.pipelines.model import MorphableModel, to_unit
from riemannian_diffusion.pipelines.retiming import Distance, find_distance, retimed
from riemannian_diffusion.pipelines.sampling import InterpolatedAttentionScore, over_gaps
from riemannian_diffusion.pipelines.starts import carry_over, go_on, way_between
from riemannian_diffusion.score import DiffusionScore, ScoreModel
from riemannian_diffusion.score.diffusion import is_flow


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


class GeodesicInterpolationMixin(MorphableModel):
    """Morphs images into each other along geodesics of a diffusion model's data manifold.

    Mixed into a diffusers pipeline, whose components and ways of loading it takes over.
    """

    _callback_tensor_inputs = ["latents"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in diffusers, but from safetensors alone.

        `use_safetensors=None` would also take pickles, which can run code.
        """
        kwargs.setdefault("use_safetensors", True)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

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
        retime: str | Distance | None = None,
        adaptation: Adaptation | Sequence[Adaptation] | None = None,
        adain: bool = False,
        attention_interpolation: float = 0.0,
        solver: Solver | None = None,
        num_quadrature: int = 3,
        rtol: float = 1e-3,
        max_evals: int = 200,
        fixed_point_iterations: int = 5,
        max_batch_size: int | None = 8,
        paste_endpoints: bool = False,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Sequence[Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> GeodesicInterpolationOutput | tuple:
        """Morph between keyframes.

        Args:
            image: Two or more keyframes, or a list of such lists for several morphs: PIL images,
                arrays `(H, W, 3)` (uint8, or floats in [0, 1]), or tensors `(3, H, W)` in [0, 1];
                with 1 in place of 3 for a model of grey images.
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
            retime: Move frames along the path until neighbours differ equally by a distance of
                images: "lpips" (needs the package lpips), "rmse", or a function of two batches
                `(K, 3, H, W)` in [0, 1] -> `(K,)`. Keyframes stay where they are. Up to 8 rounds,
                each of which samples the whole path again.
            adaptation: What `riemannian_diffusion.adapt` has fitted to the keyframes, or a list of
                one for each morph: their prompts' embeddings, and LoRAs mixed point by point.
            adain: Give noisy points means and spreads between those of the keyframes before they
                are sampled (`riemannian_diffusion.adain`, arXiv 2312.07409).
            attention_interpolation: Share of the sampling steps, the first ones, in which the
                network's self-attention reads keys and values interpolated between those of the
                keyframes (`riemannian_diffusion.interpolated_attention`, arXiv 2312.07409, there
                0.6). The frames of a gap then are one batch, whatever `max_batch_size`.
            solver: As in `geodesic`.
            num_quadrature: As in `geodesic`.
            rtol: As in `geodesic`.
            max_evals: As in `geodesic`, for each gap.
            fixed_point_iterations: As in `invert`.
            max_batch_size: Largest batch the networks are given; None for no limit.
            paste_endpoints: Put the keyframes themselves in place of their reconstructions.
            num_images_per_prompt: 1; anything else is refused.
            generator: Source of the shared noise of `space="clean"`, and of the levels and noises
                of "density" and of a roadmap.
            prompt_embeds: In place of prompts, as `encode_prompt` gives them: `(1, L, C)` for all
                keyframes or one for each.
            negative_prompt_embeds: The same for the negative prompt, alike for all.
            pooled_prompt_embeds: The same for the pooled embeddings of models that take them.
            negative_pooled_prompt_embeds: The same for the negative prompt, alike for all.
            ip_adapter_image: Images for IP-Adapters, as in the model's own pipeline.
            ip_adapter_image_embeds: Their embeddings, one tensor per adapter: `(1, N, D)` for all
                keyframes or one for each, interpolated along the path; behind as many negative ones
                where there is guidance or the metric's score needs a negative prompt.
            cross_attention_kwargs: For the network's attention, such as `{"scale": 0.5}` for LoRAs.
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
                non-finite values, the scheduler cannot be converted to DDIM (or to the levels of a
                rectified flow), or the metric is to read the difference of equal prompts.
        """
        # 1. Check inputs; one morph is a batch of one
        is_analogy = analogy is not None
        if is_analogy:
            image = join_analogy(image, analogy)
        single, morphs, prompts = split_morphs(image, prompt)
        check_arguments(
            negative_prompt=negative_prompt,
            num_frames=num_frames,
            metric=metric,
            space=space,
            init=init,
            strength=strength,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_damping=guidance_damping,
            score_mode=score_mode,
            solver=solver,
            num_quadrature=num_quadrature,
            rtol=rtol,
            max_evals=max_evals,
            fixed_point_iterations=fixed_point_iterations,
            max_batch_size=max_batch_size,
            max_samples=max_samples,
            extrapolate=extrapolate,
            analogy=analogy,
            retime=retime,
            adain=adain,
            attention_interpolation=attention_interpolation,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            cross_attention_kwargs=cross_attention_kwargs,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            known_tensor_inputs=self._callback_tensor_inputs,
        )
        if is_analogy:
            morphs = [[images[i] for i in ANALOGY] for images in morphs]
        morphs = [self._keyframes(images) for images in morphs]
        self._guidance_scale, self._interrupt = guidance_scale, False
        self._cross_attention_kwargs = cross_attention_kwargs
        guides = guidance_scale > 1 and not self._embeds_guidance
        mode = "guided" if guides else "conditional"
        path_mode = score_mode or ("difference" if metric == "density" else mode)
        embeddings = {
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "pooled_prompt_embeds": pooled_prompt_embeds,
            "negative_pooled_prompt_embeds": negative_pooled_prompt_embeds,
        }
        embeddings = {name: value for name, value in embeddings.items() if value is not None}
        adaptations = _one_each(adaptation, len(morphs), single)
        if self._embeds_guidance and (guidance_damping or (negative_prompt and not score_mode)):
            raise ValueError(
                "This model takes `guidance_scale` as an input of its network: there is no "
                "`negative_prompt` and nothing to damp."
            )
        check_embeddings(embeddings, self._network.config, self._pools_prompts)
        compare = retime and find_distance(retime, self._execution_device)

        prepared, gaps = [], []
        for keyframes, texts, fitted in zip(morphs, prompts, adaptations, strict=True):
            # 2. Levels of noise: the last `strength` of the schedule, noisiest first
            schedule = self._schedule(num_inference_steps, tuple(keyframes.shape[-2:]))
            timesteps = schedule.timesteps[-int(num_inference_steps * strength) :]
            final_abar = schedule.final_abar
            if metric in UNIT_CURVES and is_flow(schedule.scheduler):
                raise ValueError(
                    f"metric={metric!r} is for models whose squared factors of data and noise add "
                    "to 1, not for rectified flows."
                )

            # 3. Encode prompts and keyframes
            guided = {mode, path_mode} != {"conditional"}
            given = (ip_adapter_image, ip_adapter_image_embeds)
            bare = not embeddings and given == (None, None) and fitted is None
            if path_mode == "difference" and bare and set(texts) == {negative_prompt}:
                raise ValueError(
                    f"metric={metric!r} reads the difference of `prompt` and `negative_prompt`, "
                    f"but both are {negative_prompt!r}: give another one of either, or "
                    "score_mode='conditional'."
                )
            denoiser, positive, negative = self._condition(
                *(texts, negative_prompt, guided, embeddings, given, fitted, len(keyframes))
            )
            if is_analogy and len(positive) == 3:
                positive = positive[ANALOGY]
            pixels = keyframes.to(self._execution_device)  # (P, 3, H, W) in [0, 1]
            clean = self._encode(pixels, max_batch_size)  # (P, C, h, w)
            _check_finite(clean, "Encoding the images")
            score_at = partial(
                _score_at,
                guidance_damping,
                denoiser,
                schedule.scheduler,
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
                _check_finite(ends, "Inverting the images")
            last = partial(score_at, encoder_hidden_states=positive[-1:], mode=mode)
            prepared.append((pixels, clean, levels, last, schedule, timesteps))
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
                    schedule.timestep_of,
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
                    score=partial(score_at, mode=path_mode),
                    adapted=denoiser.mix,
                    timestep=timesteps[0],
                    num_timesteps=schedule.num_timesteps,
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
        for pixels, clean, levels, last, schedule, timesteps in prepared:
            filled = [next(pieces) for _ in clean[1:]]
            geodesics = [found for _, found in filled]
            path = torch.cat([p if i == 0 else p[1:] for i, (p, _) in enumerate(filled)])

            # 6. Carry the path back to clean latents
            places = torch.linspace(0, 1, len(path), dtype=torch.float64)
            if adain:
                path = over_gaps(lambda points, _: matched(points), path, places, num_frames)
            if space == "clean":
                carry_back = _as_it_is
            else:
                carry_back = partial(
                    self._sample,
                    levels,
                    timesteps=timesteps,
                    final_abar=schedule.final_abar,
                    num_frames=num_frames,
                    attention_interpolation=attention_interpolation,
                    callback=callback_on_step_end,
                    inputs=callback_on_step_end_tensor_inputs,
                )
            if retime:
                show = partial(self._show, max_batch_size=max_batch_size)
                stopped = partial(getattr, self, "_interrupt")
                path, latents = retimed(path, carry_back, show, compare, num_frames, stopped)
            else:
                latents = carry_back(path, places)

            _check_finite(latents, "Sampling")
            carried = is_analogy and not self._interrupt

            # 7. Go on beyond the last keyframe, or carry the change over to the last one
            keys = latents[:: num_frames - 1]
            if extrapolate and not self._interrupt:
                gap = latents[len(path) - num_frames :]
                beyond = go_on(gap, last, schedule.timestep_of, extrapolate)
                latents = torch.cat([latents, beyond])
            elif carried:
                latents = carry_over(latents, last, schedule.timestep_of)

            # 8. Decode, measure the keyframes' reconstruction, paste
            flags = None
            if output_type == "latent":
                frames, errors = latents, (keys - clean).square().flatten(1).mean(1)
            else:
                decoded = self._decode(latents, max_batch_size)
                _check_finite(decoded, "Decoding the latents")
                frames, flags = self._check_safety(decoded)
                frames = to_unit(frames)
                places = slice(None, len(path), num_frames - 1)
                shown = self._show(keys, max_batch_size) if carried else frames[places]
                errors = (shown - pixels).square().flatten(1).mean(1)
                if paste_endpoints:
                    if carried:
                        frames[0] = pixels[-1]
                    else:
                        frames[places] = pixels
                frames = _POSTPROCESSOR.postprocess(
                    frames, output_type, do_denormalize=[False] * len(frames)
                )
            results.append((frames, geodesics, path, errors.tolist(), flags))

        self.maybe_free_model_hooks()
        entries = results[0] if single else tuple(map(list, zip(*results, strict=True)))
        return GeodesicInterpolationOutput(*entries) if return_dict else entries

    def _sample(
        self,
        levels,
        path: Tensor,
        places: Tensor,
        *,
        timesteps,
        final_abar,
        num_frames,
        attention_interpolation,
        callback,
        inputs,
    ) -> Tensor:
        """Clean latents of noisy ones at these places of the path; the callback sees every step."""
        shared = set(timesteps[: round(attention_interpolation * len(timesteps))])

        @lru_cache(maxsize=2)  # one step needs two; each holds embeddings of every point
        def level_at(timestep: float) -> ScoreModel:
            if timestep not in shared:
                return levels(timestep).along(places)
            whole = levels(timestep, max_batch_size=None)
            return InterpolatedAttentionScore(whole, self._network, places, num_frames)

        steps = sample_steps(level_at, path, timesteps, final_abar=final_abar)
        latents = None  # what is sent first starts the steps
        for i, t in enumerate(self._with_bar(timesteps, "Sampling", len(timesteps))):
            latents = steps.send(latents)
            if callback is not None:
                changed = callback(self, i, t, {"latents": latents} if inputs else {}) or {}
                latents = latents_of(changed, latents)
            if self._interrupt:
                break
        return latents

    def _with_bar(self, iterable: Iterable, description: str, total: int) -> Iterator:
        with self.progress_bar(total=total) as bar:
            bar.set_description(description)
            for item in iterable:
                yield item
                bar.update()


_POSTPROCESSOR = VaeImageProcessor()
ANALOGY = [1, 0, 2]  # the way from B by A to C


def _one_each(adaptation, num: int, single: bool) -> list[Adaptation | None]:
    """The adaptation of every morph."""
    if adaptation is None or single:
        found = [adaptation] * num
    else:
        check_kind(Sequence, adaptation=adaptation)
        found = list(adaptation)
    if len(found) != num or not all(isinstance(one, (Adaptation, type(None))) for one in found):
        raise ValueError(
            f"`adaptation` must be an Adaptation, or a list of one for each of {num} morphs, but "
            f"got {len(found)} of {sorted({type(one).__name__ for one in found})}."
        )
    return found


def _as_it_is(path: Tensor, places: Tensor) -> Tensor:
    return path


def _check_finite(values: Tensor, what: str) -> None:
    if not values.isfinite().all():
        raise ValueError(
            f"{what} gave NaN or infinite values: the model's weights are broken, or its dtype is "
            "too narrow for it."
        )


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
