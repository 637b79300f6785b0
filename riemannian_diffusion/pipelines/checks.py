"""The arguments of a call that are neither images nor prompts."""

from __future__ import annotations

import math
from numbers import Real

from riemannian_diffusion.pipelines.gaps import CURVES, METRICS, NOISE_CURVES


def check_arguments(
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
    retime,
    adain,
    attention_interpolation,
    num_images_per_prompt,
    output_type,
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
    for name, value, least in (
        ("num_frames", num_frames, 2),
        ("num_inference_steps", num_inference_steps, 1),
        ("max_batch_size", max_batch_size, 1),
        ("max_samples", max_samples, 1),
    ):
        if name == "max_batch_size" and value is None:
            continue
        if not isinstance(value, int) or value < least:
            raise ValueError(
                f"`{name}` must be a whole number of at least {least}, but got {value!r}."
            )
    for name, value in (
        ("strength", strength),
        ("guidance_scale", guidance_scale),
        ("guidance_damping", guidance_damping),
        ("extrapolate", extrapolate),
        ("attention_interpolation", attention_interpolation),
    ):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"`{name}` must be a finite number, but got {value!r}.")
    if extrapolate < 0:
        raise ValueError(f"`extrapolate` must not be negative, but got {extrapolate}.")
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
    unknown = set(callback_on_step_end_tensor_inputs) - set(known_tensor_inputs)
    if unknown:
        raise ValueError(
            "`callback_on_step_end_tensor_inputs` must be among "
            f"{list(known_tensor_inputs)}, but got {sorted(unknown)}."
        )
