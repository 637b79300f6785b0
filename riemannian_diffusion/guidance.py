"""Classifier-free guidance that stays on the data manifold.

Plain guidance `eps_c + (w - 1) g`, `g = eps_c - eps_u`, moves the estimate of the clean point by
`w - 1` times the difference of two estimates, straight on, and so off the manifold the farther the
larger `w`. Here the difference is made tangent first: near the data the Jacobian `J_D` of the
unconditional denoiser projects on the manifold's tangent space, so `J_D g` is what is left of `g`
there. It is taken as the difference that one unit of guidance makes to the unconditional estimate,

    D_u(x + D_c(x) - D_u(x)) - D_u(x)  =  J_D (D_c - D_u) + O(|D_c - D_u|^2),

which costs one evaluation more, three for two. A `damping` of 1 takes that; of 1/2, the default,
the mean of that and `g`, which is `(I + J_r^T J_r)^-1 g` near the data, `J_r = I - J_D`; of 0,
plain guidance. A half loses nowhere more than 1 % of the distance from the data at equal effect.
Guidance 1 is the conditional model as it was.
Splitting guidance by the score's Jacobian is proposed in arXiv 2510.05509, version 2; the form here
is this library's own, one of the candidates of `benchmarks/guidance.py`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import ClassifierFreeGuidance
from torch import Tensor, nn

from riemannian_diffusion.arguments import check_finite, check_kind
from riemannian_diffusion.score import ScoreModel


class ManifoldGuidedScore(ScoreModel):
    """A conditional score guided along the data manifold.

    Three evaluations of a score for two of plain guidance.

    Args:
        conditional: The score under the condition.
        unconditional: The score without it, or under a negative one, at the same level.
        guidance_scale: Weight `w`, at least 1; 1 leaves the conditional score.
        damping: How much of what leaves the manifold is taken off the difference, in [0, 1]; more
            is better at high guidance.

    Raises:
        ValueError: If the levels differ, the weight is below 1 or the damping outside [0, 1].
    """

    def __init__(
        self,
        conditional: ScoreModel,
        unconditional: ScoreModel,
        guidance_scale: float,
        *,
        damping: float = 0.5,
    ):
        check_kind(ScoreModel, conditional=conditional, unconditional=unconditional)
        check_finite(guidance_scale=guidance_scale)
        if not guidance_scale >= 1:
            raise ValueError(f"`guidance_scale` must be at least 1, but got {guidance_scale}.")
        _check_damping(damping)
        levels = [(score.alpha, score.sigma) for score in (conditional, unconditional)]
        if levels[0] != levels[1]:
            raise ValueError(
                f"Both scores must be of one level (alpha, sigma), but they are of {levels}."
            )
        self.alpha, self.sigma = levels[0]
        self.conditional, self.unconditional = conditional, unconditional
        self.guidance_scale, self.damping = guidance_scale, damping

    def __call__(self, x: Tensor) -> Tensor:
        """The score at each point, `(K, *shape) -> (K, *shape)`."""
        conditional, unconditional = self.conditional(x), self.unconditional(x)
        difference = conditional - unconditional
        moved = self.unconditional(x + self.sigma**2 * difference)
        damped = difference + self.damping * (moved - unconditional)
        return conditional + (self.guidance_scale - 1) * damped

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """`J(x) v`, by the products of both scores."""
        there = x + self.sigma**2 * (self.conditional(x) - self.unconditional(x))
        conditional, unconditional = self.conditional.jvp(x, v), self.unconditional.jvp(x, v)
        difference = conditional - unconditional
        moved = self.unconditional.jvp(there, v + self.sigma**2 * difference)
        damped = difference + self.damping * (moved - unconditional)
        return conditional + (self.guidance_scale - 1) * damped

    def vjp(self, x: Tensor, w: Tensor) -> Tensor:
        """`J(x)^T w`, by the products of both scores."""
        there = x + self.sigma**2 * (self.conditional(x) - self.unconditional(x))
        guided = (self.guidance_scale - 1) * w
        damped = self.damping * guided
        moved = self.unconditional.vjp(there, damped)
        difference = guided + self.sigma**2 * moved
        conditional = self.conditional.vjp(x, w + difference)
        return conditional - self.unconditional.vjp(x, difference + damped) + moved


class ManifoldGuidance(ClassifierFreeGuidance):
    """The same as a guider of diffusers' modular pipelines.

    One evaluation of the network more for each guided step: 3 for 2. Build it with
    `from_scheduler`, which copies the levels of noise; the defaults are Stable Diffusion's. For
    pipelines that give the network the noisy point alone and hand its prediction to the guider as
    it is, as those of Stable Diffusion XL do: not for those that join images or masks to the point
    (inpainting, editing) or crop or negate the prediction.

    Args:
        guidance_scale: As in `ClassifierFreeGuidance`, and so on.
        guidance_rescale: As in `ClassifierFreeGuidance`.
        use_original_formulation: As in `ClassifierFreeGuidance`.
        start: As in `ClassifierFreeGuidance`.
        stop: As in `ClassifierFreeGuidance`.
        enabled: As in `ClassifierFreeGuidance`.
        prediction_type: What the network predicts: "epsilon", "v_prediction", "sample", or
            "flow_prediction", the velocity `noise - data` of rectified flows, where timestep `t` is
            the noise level `t / num_train_timesteps`.
        num_train_timesteps: Of the schedule, as in `DDPMScheduler`, and so on.
        beta_start: Of the schedule.
        beta_end: Of the schedule.
        beta_schedule: Of the schedule.
        rescale_betas_zero_snr: Of the schedule.
        damping: As in `ManifoldGuidedScore`.

    Raises:
        ValueError: If the prediction type is unknown or the damping outside [0, 1].
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
        _check_damping(damping)
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
        schedule = DDPMScheduler(
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
        """A guider for models sampled with a scheduler.

        Args:
            scheduler: Any of diffusers' for models with a schedule of betas, or of rectified flows.
            **kwargs: Arguments of the guider.

        Raises:
            ValueError: If the scheduler has neither kind of levels.
        """
        config = scheduler.config
        if config.get("timestep_type") == "continuous" or config.get("invert_sigmas"):
            raise ValueError(
                f"{type(scheduler).__name__} with timestep_type='continuous' or invert_sigmas=True "
                "gives timesteps that are not indices of its levels of noise."
            )
        if "shift" in config and "num_train_timesteps" in config and "beta_start" not in config:
            levels = {"prediction_type": "flow_prediction"}
            names: tuple[str, ...] = ("num_train_timesteps",)
        else:
            levels = {}
            names = ("prediction_type", "num_train_timesteps", "beta_start", "beta_end")
            names += ("beta_schedule", "rescale_betas_zero_snr")
            if "beta_start" not in config or config.get("trained_betas") is not None:
                raise ValueError(
                    f"{type(scheduler).__name__} has no schedule of betas given by its start and "
                    "end, and is none of a rectified flow: there is no level of noise to read."
                )
        levels |= {name: config[name] for name in names if name in config}
        return cls(**levels | kwargs)

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Remember the next call of the network, in order to repeat it elsewhere."""
        super().prepare_models(denoiser)
        if self.num_conditions == 1 or self.is_conditional:
            return

        def remember(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self._forget()  # one call is enough, also where it fails
            self._call = module, args, kwargs

        self._forget()
        self._hook = denoiser.register_forward_pre_hook(remember, with_kwargs=True)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Stop remembering."""
        self._forget()
        super().cleanup_models(denoiser)

    def _forget(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None):
        """Guide along the manifold; `pred_uncond` comes back as `pred_cond` less the tangent."""
        if pred_uncond is None:
            return super().forward(pred_cond)
        if self._call is None:
            raise ValueError(
                "ManifoldGuidance needs to see the network's unconditional call: call "
                "`prepare_models(network)` before it and `cleanup_models(network)` after it, as "
                "diffusers' modular pipelines do."
            )
        (network, args, kwargs), self._call = self._call, None
        keep, factor = _ESTIMATES[self.config.prediction_type](*self._level())
        difference = pred_cond - pred_uncond
        args, kwargs = _moved(args, kwargs, -factor * difference)
        context = getattr(network, "cache_context", lambda name: nullcontext())
        with context("pred_manifold"):  # what is cached of the other evaluations is not of this one
            output = network(*args, **kwargs)
        moved = output[0] if isinstance(output, tuple) else output.sample
        tangential = keep * difference + moved - pred_uncond
        damped = torch.lerp(difference, tangential, self.config.damping)
        return super().forward(pred_cond, pred_cond - damped)

    def _level(self) -> tuple[float, float]:
        """Alpha and sigma at the timestep, between two of the schedule where it is no integer."""
        timestep = float(torch.as_tensor(self._timestep).flatten()[0])
        if self.config.prediction_type == "flow_prediction":
            sigma = timestep / self.config.num_train_timesteps
            return 1 - sigma, sigma
        last = len(self._abar) - 1
        place = min(max(timestep, 0.0), float(last))
        left = min(int(place), last - 1) if last else 0
        right = min(left + 1, last)
        abar = float(torch.lerp(self._abar[left], self._abar[right], place - left))
        return abar**0.5, (1 - abar) ** 0.5


# The estimate `alpha x_0 = a x - b prediction` of each kind of prediction, as (a, b). Moving x by
# `-b g` moves the prediction p so that `(D(x - b g) - D(x)) / -b = a g + p(x - b g) - p(x)`.
_ESTIMATES = {
    "epsilon": lambda alpha, sigma: (1.0, sigma),
    "v_prediction": lambda alpha, sigma: (alpha**2, alpha * sigma),
    "sample": lambda alpha, sigma: (0.0, -alpha),
    "flow_prediction": lambda alpha, sigma: (alpha, alpha * sigma),
}


def _check_damping(damping: float) -> None:
    check_finite(damping=damping)
    if not 0 <= damping <= 1:
        raise ValueError(f"`damping` must be in [0, 1], but got {damping}.")


def _moved(args: tuple, kwargs: dict, step: Tensor) -> tuple[tuple, dict]:
    """A network's arguments with its point moved: the first, `sample` or `hidden_states`."""
    names = [name for name in ("sample", "hidden_states") if name in kwargs]
    point = args[0] if args else kwargs[names[0]] if names else None
    if not isinstance(point, Tensor) or point.shape != step.shape:
        found = tuple(point.shape) if isinstance(point, Tensor) else type(point).__name__
        raise ValueError(
            "ManifoldGuidance needs a network whose first argument, `sample` or `hidden_states` "
            f"is the noisy point alone, {tuple(step.shape)} like its prediction, but it is {found}."
        )
    if args:
        return (point + step.to(point), *args[1:]), kwargs
    return args, kwargs | {names[0]: point + step.to(point)}
