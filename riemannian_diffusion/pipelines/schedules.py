"""The noise levels that a pipeline visits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from riemannian_diffusion.score.diffusion import is_flow

NOISIEST = 0.999  # share of noise in place of 1, at which a flow has no data left


@dataclass(frozen=True)
class Schedule:
    """A scheduler's levels for a number of steps.

    Attributes:
        scheduler: Gives `DiffusionScore` its levels.
        timesteps: Noisiest first.
        final_abar: Squared factor of the data at the clean level.
        num_timesteps: Of training.
    """

    scheduler: Any
    timesteps: list[float]
    final_abar: float
    num_timesteps: int

    def timestep_of(self, noise: float) -> int:
        """The timestep of a noise in units of the clean data."""
        if is_flow(self.scheduler):
            return round(self.num_timesteps * noise / (1 + noise))
        abar = self.scheduler.alphas_cumprod.cpu().double()
        return int((((1 - abar) / abar).sqrt() - noise).abs().argmin())


def ddim_schedule(scheduler, num_steps: int) -> Schedule:
    """The levels of the DDIM scheduler with the same betas.

    Raises:
        ValueError: If the scheduler cannot be converted to it.
    """
    config = scheduler.config
    convertible = hasattr(scheduler, "alphas_cumprod") and hasattr(config, "beta_schedule")
    prediction = getattr(config, "prediction_type", "epsilon")
    if not convertible or prediction not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(
            f"The pipeline's scheduler {type(scheduler).__name__} (prediction_type={prediction!r}) "
            "cannot be converted to DDIMScheduler: it needs a variance-preserving schedule of "
            "betas with epsilon, velocity or sample prediction."
        )
    ddim = DDIMScheduler.from_config(config)
    ddim.set_timesteps(num_steps)
    final_abar = float(ddim.final_alpha_cumprod)
    return Schedule(ddim, ddim.timesteps.tolist(), final_abar, len(ddim.alphas_cumprod))


def flow_schedule(scheduler, num_steps: int, num_tokens: int, *, even: bool = False) -> Schedule:
    """The levels of a rectified flow, shifted as the scheduler says for so many image tokens.

    Args:
        scheduler: Any with the levels of a rectified flow.
        num_steps: Steps.
        num_tokens: Of an image, which a dynamic shift depends on.
        even: Whether levels are even before the shift, down to `1 / num_steps`, as Flux takes them.

    Raises:
        ValueError: If the scheduler has no such levels.
    """
    if not is_flow(scheduler):
        raise ValueError(
            f"The pipeline's scheduler {type(scheduler).__name__} cannot be converted to "
            "FlowMatchEulerDiscreteScheduler: it needs the levels of a rectified flow."
        )
    flow = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    config, options = flow.config, {}
    if config.use_dynamic_shifting:
        shift = (config.base_image_seq_len, config.max_image_seq_len)
        shift += (config.base_shift, config.max_shift)
        options["mu"] = calculate_shift(num_tokens, *shift)
    if even:
        flow.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), **options)
    else:
        flow.set_timesteps(num_steps, **options)
    num = config.num_train_timesteps
    timesteps = flow.timesteps.double().clamp(max=NOISIEST * num)
    return Schedule(flow, torch.unique(timesteps).flip(0).tolist(), 1.0, num)
