"""The arguments of a call that are neither images nor prompts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from riemannian_diffusion.arguments import (
    check_callable,
    check_finite,
    check_kind,
    check_not_negative,
    check_points,
    check_whole,
    kind_of,
)
from riemannian_diffusion.geodesics import Solver
from riemannian_diffusion.pipelines.gaps import CURVES, METRICS, NOISE_CURVES


def check_arguments(
    *,
    negative_prompt,
    num_frames,
    metric,
    space,
    init,
    strength,
    num_inference_steps,
    guidance_scale,
    guidance_damping,
    score_mode,
    solver,
    num_quadrature,
    rtol,
    max_evals,
    fixed_point_iterations,
    max_batch_size,
    max_samples,
    extrapolate,
    analogy,
    retime,
    adain,
    attention_interpolation,
    num_images_per_prompt,
    generator,
    cross_attention_kwargs,
    output_type,
    callback_on_step_end,
    callback_on_step_end_tensor_inputs,
    known_tensor_inputs,
) -> None:
    """Check them, and how they go together.

    Raises:
        ValueError: If one is out of range, or two exclude each other.
    """
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
    check_whole(2, num_frames=num_frames)
    check_whole(
        1,
        num_inference_steps=num_inference_steps,
        max_samples=max_samples,
        num_quadrature=num_quadrature,
        max_evals=max_evals,
    )
    check_whole(0, fixed_point_iterations=fixed_point_iterations)
    if max_batch_size is not None:
        check_whole(1, max_batch_size=max_batch_size)
    check_finite(strength=strength, guidance_damping=guidance_damping)
    check_finite(attention_interpolation=attention_interpolation)
    check_not_negative(guidance_scale=guidance_scale, extrapolate=extrapolate, rtol=rtol)
    for name, value, kind in (
        ("solver", solver, Solver),
        ("generator", generator, torch.Generator),
        ("cross_attention_kwargs", cross_attention_kwargs, dict),
        ("negative_prompt", negative_prompt, str),
    ):
        if value is not None:
            check_kind(kind, **{name: value})
    if callback_on_step_end is not None:
        check_callable(callback_on_step_end=callback_on_step_end)
    if not 0 <= guidance_damping <= 1:
        raise ValueError(f"`guidance_damping` must be in [0, 1], but got {guidance_damping}.")
    if guidance_damping and not guidance_scale > 1:
        raise ValueError(
            f"`guidance_damping` {guidance_damping} needs a `guidance_scale` above 1, "
            f"but got {guidance_scale}."
        )
    if num_images_per_prompt != 1:
        raise ValueError(
            f"`num_images_per_prompt` must be 1, but got {num_images_per_prompt}: between two "
            "keyframes there is one geodesic. For other ones vary `generator` or `init`."
        )
    if retime is not None and not callable(retime) and retime not in ("lpips", "rmse"):
        raise ValueError(
            "`retime` must be 'lpips', 'rmse', a distance of two batches of images or None, but "
            f"got {retime!r}."
        )
    if not 0 <= attention_interpolation <= 1:
        raise ValueError(
            f"`attention_interpolation` must be in [0, 1], but got {attention_interpolation}."
        )
    if space == "clean" and (adain or attention_interpolation):
        raise ValueError(
            "`adain` and `attention_interpolation` are options of sampling, which space='clean' "
            "does without."
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
    if not isinstance(callback_on_step_end_tensor_inputs, (list, tuple)):
        raise ValueError(
            "`callback_on_step_end_tensor_inputs` must be a list, but got "
            f"{callback_on_step_end_tensor_inputs!r}."
        )
    unknown = set(callback_on_step_end_tensor_inputs) - set(known_tensor_inputs)
    if unknown:
        raise ValueError(
            "`callback_on_step_end_tensor_inputs` must be among "
            f"{list(known_tensor_inputs)}, but got {sorted(unknown)}."
        )


def check_embeddings(embeddings: Mapping[str, Tensor], config: Mapping, pooled: bool) -> None:
    """Check embeddings that are given in place of texts.

    Args:
        embeddings: Those given, by name.
        config: The network's, which knows how wide they are.
        pooled: Whether the model needs pooled ones beside them.

    Raises:
        ValueError: If one has another shape than the network takes, or lacks its counterpart.
    """
    check_points(**embeddings)
    width = config.get("joint_attention_dim") or config.get("cross_attention_dim")
    for prefix in ("", "negative_"):
        name, other = f"{prefix}prompt_embeds", f"{prefix}pooled_prompt_embeds"
        if (other in embeddings) != (pooled and name in embeddings):
            need = f"needs `{other}` with `{name}`" if pooled else f"takes no `{other}`"
            raise ValueError(f"This model {need}, but got {sorted(embeddings)}.")
        for key, rank in ((name, 3), (other, 2)):
            one = embeddings.get(key)
            if one is not None and (one.ndim != rank or one.numel() == 0):
                shape = "(1, L, C) or (P, L, C)" if rank == 3 else "(1, C) or (P, C)"
                raise ValueError(f"`{key}` must be {shape}, but got {tuple(one.shape)}.")
        one = embeddings.get(name)
        if prefix and one is not None and not torch.equal(one, one[:1].expand_as(one)):
            raise ValueError(f"`{name}` must be the same for all keyframes, but got {len(one)}.")
        if one is not None and isinstance(width, int) and one.shape[2] != width:
            raise ValueError(
                f"`{name}` must be {width} wide for this model, but got {tuple(one.shape)}."
            )


def latents_of(changed, before: Tensor) -> Tensor:
    """The latents that a callback has returned, or those before it.

    Raises:
        ValueError: If it has returned something else.
    """
    latents = changed.get("latents", before) if isinstance(changed, dict) else changed
    if not isinstance(latents, Tensor) or latents.shape != before.shape:
        shape = tuple(latents.shape) if isinstance(latents, Tensor) else kind_of(latents)
        raise ValueError(
            '`callback_on_step_end` must return a dict, whose "latents" are '
            f"{tuple(before.shape)}, but gave {shape}."
        )
    return latents
