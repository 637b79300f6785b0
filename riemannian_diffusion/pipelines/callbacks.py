"""Callbacks of sampling, as diffusers calls them, and what they may change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from riemannian_diffusion.arguments import kind_of
from riemannian_diffusion.levels import Levels
from riemannian_diffusion.score import Condition

Step = Callable[[Any, int, float, dict], Any]

CONDITIONS = {
    "prompt_embeds": ("encoder_hidden_states",),
    "pooled_prompt_embeds": ("pooled_projections", "text_embeds"),
    "add_text_embeds": ("text_embeds",),
}
"""Conditions by the names under which callbacks of diffusers ask for them."""


class Interrupted(RuntimeError):
    """A stage was stopped by `pipe._interrupt` before it had a result."""


class Stepped(NamedTuple):
    """How sampling goes on after a step.

    Attributes:
        latents: The latents `(F, C, h, w)` from which it goes on.
        levels: The model under its conditions and guidance.
        proceeds: Whether it goes on.
    """

    latents: Tensor
    levels: Levels
    proceeds: bool


OnStep = Callable[[int, float, Tensor, Levels], Stepped]


def following(pipe: Any, callback: Step | None) -> OnStep:
    """A function to be called after each step of sampling; it calls the callback.

    Args:
        pipe: The pipeline, whose `_guidance_scale` and `_interrupt` the callback may set.
        callback: Called as `callback(pipe, step, timestep, tensors)`, or None. It is given the
            latents, or what its `tensor_inputs` name, as `PipelineCallback` of diffusers.
    """

    def on_step(index: int, timestep: float, latents: Tensor, levels: Levels) -> Stepped:
        if callback is not None:
            scale = pipe._guidance_scale = levels.guidance_scale
            pipe._num_timesteps = len(levels.schedule.levels)
            names = getattr(callback, "tensor_inputs", ())
            was_finite = bool(latents.isfinite().all())
            given = {"latents": latents}
            given |= {name: _asked(pipe, name, latents, levels) for name in names}
            changed = callback(pipe, index, timestep, dict(given)) or {}
            _check_unchanged(changed, given)
            latents = latents_of(changed, latents)
            if was_finite and not latents.isfinite().all():
                raise ValueError("`callback_on_step_end` made NaN or infinite latents.")
            if pipe._guidance_scale != scale:
                levels = _reguided(pipe, levels, pipe._guidance_scale)
        return Stepped(latents, levels, not pipe._interrupt)

    return on_step


def _asked(pipe: Any, name: str, latents: Tensor, levels: Levels) -> Tensor:
    """A tensor that a callback asks for; negative values come first where guidance uses them."""
    if name == "latents":
        return latents
    positive = levels.conditions.positive
    negative = levels.conditions.negative if levels.guides else None
    if name == "add_time_ids" and "text_embeds" in positive:
        size = [side * pipe.vae_scale_factor for side in latents.shape[-2:]]
        ids = torch.tensor([[*size, 0, 0, *size]], device=latents.device, dtype=latents.dtype)
        return ids if negative is None else torch.cat([ids, ids])
    for condition in CONDITIONS.get(name, ()):
        if condition in positive:
            mine = _at_knots(positive[condition])
            if negative is None:
                return mine
            return torch.cat([_at_knots(negative[condition]).expand_as(mine), mine])
    raise ValueError(
        f"The callback's `tensor_inputs` name {name!r}, which {type(pipe).__name__} does not have. "
        f"It has 'latents'{''.join(f', {n!r}' for n in CONDITIONS)} where its network takes them."
    )


def _at_knots(condition: Condition) -> Tensor:
    return condition.values[0]


def _check_unchanged(changed: Any, given: Mapping[str, Tensor]) -> None:
    """Refuse other tensors than latents that a callback has changed.

    The last rows alone, to which callbacks cut where they end guidance, count as unchanged.
    """
    if not isinstance(changed, dict):
        return
    for name, value in changed.items():
        known = given.get(name)
        if name == "latents" or known is None:
            continue
        if not isinstance(value, Tensor) or not torch.equal(
            value, known[len(known) - len(value) :]
        ):
            raise ValueError(
                f"`callback_on_step_end` has changed {name!r}, but the conditions belong to the "
                "path: pass other conditions to `invert`. A callback may change 'latents', "
                "`pipe._guidance_scale` and `pipe._interrupt`."
            )


def _reguided(pipe: Any, levels: Levels, scale: float) -> Levels:
    """The levels with the guidance that a callback has set."""
    if pipe._embeds_guidance:
        raise ValueError(
            "`callback_on_step_end` has changed `pipe._guidance_scale`, but this model takes "
            "guidance as an input that is fixed before sampling."
        )
    damping = levels.guidance_damping if scale > 1 else 0.0
    return replace(levels, guidance_scale=scale, guidance_damping=damping)


def latents_of(changed: Any, before: Tensor) -> Tensor:
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
