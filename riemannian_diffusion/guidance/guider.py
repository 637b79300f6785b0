"""A guider of diffusers' modular pipelines that guides along the data manifold."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import ClassifierFreeGuidance
from torch import Tensor, nn

from riemannian_diffusion.guidance.score import check_damping
from riemannian_diffusion.score.schedulers import is_flow


class ManifoldGuidance(ClassifierFreeGuidance):
    """Guider of diffusers' modular pipelines that guides along the data manifold.

    Each guided step takes three evaluations of the network instead of two. Build the guider with
    `from_scheduler`, which copies the noise levels; the defaults are those of Stable Diffusion. The
    pipeline must give the network the noisy point alone and hand its prediction to the guider
    unchanged, as Stable Diffusion XL does. Pipelines that join images or masks to the point
    (inpainting, editing), or that crop or negate the prediction, do not work.

    Args:
        guidance_scale: See `ClassifierFreeGuidance`.
        guidance_rescale: See `ClassifierFreeGuidance`.
        use_original_formulation: See `ClassifierFreeGuidance`.
        start: See `ClassifierFreeGuidance`.
        stop: See `ClassifierFreeGuidance`.
        enabled: See `ClassifierFreeGuidance`.
        prediction_type: What the network predicts: "epsilon", "v_prediction", "sample", or
            "flow_prediction", the velocity `noise - data` of rectified flows, where timestep `t` is
            the noise level `t / num_train_timesteps`.
        num_train_timesteps: See `DDPMScheduler`.
        beta_start: See `DDPMScheduler`.
        beta_end: See `DDPMScheduler`.
        beta_schedule: See `DDPMScheduler`.
        rescale_betas_zero_snr: See `DDPMScheduler`.
        damping: See `ManifoldGuidedScore`.

    Raises:
        ValueError: If `prediction_type` is unknown or `damping` is outside [0, 1].

    Examples:
        >>> from diffusers import DDIMScheduler
        >>> from riemannian_diffusion import ManifoldGuidance
        >>> guider = ManifoldGuidance.from_scheduler(DDIMScheduler(), guidance_scale=8.0)
        >>> guider.guidance_scale
        8.0
    """

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        use_original_formulation: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        rescale_betas_zero_snr: bool = False,
        damping: float = 0.5,
    ):
        check_damping(damping)
        if prediction_type not in _ESTIMATES:
            raise ValueError(
                f"`prediction_type` must be one of {list(_ESTIMATES)}, but got {prediction_type!r}."
            )
        super().__init__(
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            use_original_formulation=use_original_formulation,
            start=start,
            stop=stop,
            enabled=enabled,
        )
        schedule: Any = DDPMScheduler(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        self._abar = schedule.alphas_cumprod.double()
        self._hook: Any = None
        self._call: tuple[nn.Module, tuple, dict] | None = None

    @classmethod
    def from_scheduler(cls, scheduler, **kwargs) -> ManifoldGuidance:
        """Build a guider with the noise levels of a scheduler.

        Args:
            scheduler: A scheduler of diffusers with a schedule of betas or for rectified flows.
            **kwargs: Further arguments of the guider.

        Raises:
            ValueError: If the noise levels of the scheduler are of another kind.
        """
        config = scheduler.config
        if config.get("timestep_type") == "continuous" or config.get("invert_sigmas"):
            raise ValueError(
                f"{type(scheduler).__name__} with timestep_type='continuous' or invert_sigmas=True "
                "gives timesteps that are not indices of its levels of noise."
            )
        if is_flow(scheduler):
            levels: dict[str, Any] = {"prediction_type": "flow_prediction"}
            names: tuple[str, ...] = ("num_train_timesteps",)
        else:
            levels = {}
            names = ("prediction_type", "num_train_timesteps", "beta_start", "beta_end")
            names += ("beta_schedule", "rescale_betas_zero_snr")
            if "beta_start" not in config or config.get("trained_betas") is not None:
                raise ValueError(
                    f"`scheduler` must have a schedule of betas given by its start and end, or be "
                    "one for rectified flows, but "
                    f"{type(scheduler).__name__} is neither."
                )
        levels |= {name: config[name] for name in names if name in config}
        return cls(**levels | kwargs)

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Record the next call of the network, which `forward` repeats at another point."""
        super().prepare_models(denoiser)
        if self.num_conditions == 1 or self.is_conditional:
            return

        def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self._forget()  # records one call only, even if it fails
            self._call = module, args, kwargs

        self._forget()
        self._hook = denoiser.register_forward_pre_hook(record, with_kwargs=True)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Stop recording calls of the network."""
        self._forget()
        super().cleanup_models(denoiser)

    def _forget(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None):
        """Combine two predictions into the guided prediction.

        The field `pred_uncond` of the output is `pred_cond` minus the damped difference.
        """
        if pred_uncond is None:
            return super().forward(pred_cond)
        if self._call is None:
            raise ValueError(
                "ManifoldGuidance needs to see the network's unconditional call: call "
                "`prepare_models(network)` before it and `cleanup_models(network)` after it, as "
                "diffusers' modular pipelines do."
            )
        (network, args, kwargs), self._call = self._call, None
        keep, factor = _ESTIMATES[self.config["prediction_type"]](*self._level())
        difference = pred_cond - pred_uncond
        args, kwargs = _moved(args, kwargs, -factor * difference)
        context = getattr(network, "cache_context", lambda name: nullcontext())
        with context("pred_manifold"):  # must not use caches of the other evaluations
            output = network(*args, **kwargs)
        moved = output[0] if isinstance(output, tuple) else output.sample
        tangential = keep * difference + moved - pred_uncond
        damped = torch.lerp(difference, tangential, self.config["damping"])
        return super().forward(pred_cond, pred_cond - damped)

    def _level(self) -> tuple[float, float]:
        """Alpha and sigma at the timestep, interpolated between integer timesteps."""
        timestep = float(torch.as_tensor(self._timestep).flatten()[0])
        if self.config["prediction_type"] == "flow_prediction":
            sigma = timestep / self.config["num_train_timesteps"]
            return 1 - sigma, sigma
        last = len(self._abar) - 1
        place = min(max(timestep, 0.0), float(last))
        left = min(int(place), last - 1) if last else 0
        right = min(left + 1, last)
        abar = float(torch.lerp(self._abar[left], self._abar[right], place - left))
        return abar**0.5, (1 - abar) ** 0.5


# For each prediction type, (a, b) such that `alpha x_0 = a x - b prediction`. A step of x by `-b g`
# changes the prediction p so that `(D(x - b g) - D(x)) / -b = a g + p(x - b g) - p(x)`.
_ESTIMATES = {
    "epsilon": lambda alpha, sigma: (1.0, sigma),
    "v_prediction": lambda alpha, sigma: (alpha**2, alpha * sigma),
    "sample": lambda alpha, sigma: (0.0, -alpha),
    "flow_prediction": lambda alpha, sigma: (alpha, alpha * sigma),
}


def _moved(args: tuple, kwargs: dict, step: Tensor) -> tuple[tuple, dict]:
    """The arguments of a network, with `step` added to the noisy point."""
    names = [name for name in ("sample", "hidden_states") if name in kwargs]
    point = args[0] if args else kwargs[names[0]] if names else None
    if not isinstance(point, Tensor) or point.shape != step.shape:
        found = tuple(point.shape) if isinstance(point, Tensor) else type(point).__name__
        raise ValueError(
            "ManifoldGuidance needs a network whose first argument (`sample` or `hidden_states`) "
            f"is the noisy point alone, {tuple(step.shape)} like its prediction, but got {found}."
        )
    if args:
        return (point + step.to(point), *args[1:]), kwargs
    return args, kwargs | {names[0]: point + step.to(point)}
