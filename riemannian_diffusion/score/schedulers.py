"""The noise levels of diffusers' schedulers, read from the objects.

A config says less than the object: it also keeps arguments of other classes from which the
scheduler was made, and values that were changed after construction are not in it.
"""

from __future__ import annotations

import inspect
import math
from bisect import bisect_left
from functools import cache
from typing import Any

from riemannian_diffusion.arguments import check_finite
from riemannian_diffusion.score.network import NOISE_FROM, Level

NOISIEST = 0.999  # noisiest level of a flow, because a level of 1 contains no data

FLOWS = (  # their sigmas are those of a rectified flow, whatever their options are
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
)

_OTHER_MODELS = "use a model that was trained with DDPMScheduler or FlowMatchEulerDiscreteScheduler"
_REFUSED = {
    f"is for models that scale their inputs as in EDM: {_OTHER_MODELS}": (
        "CosineDPMSolverMultistepScheduler",
        "EDMDPMSolverMultistepScheduler",
        "EDMEulerScheduler",
    ),
    f"is for models with a continuous time or growing variance: {_OTHER_MODELS}": (
        "DDPMWuerstchenScheduler",
        "IPNDMScheduler",
        "KarrasVeScheduler",
        "ScoreSdeVeScheduler",
        "ScoreSdeVpScheduler",
    ),
    f"is for models that predict no score, but jump along a whole trajectory: {_OTHER_MODELS}": (
        "CMStochasticIterativeScheduler",
        "ConsistencyDecoderScheduler",
        "FlowMapEulerDiscreteScheduler",
        "PiflowScheduler",
        "SCMScheduler",
    ),
    f"is for models of discrete tokens, which have no score: {_OTHER_MODELS}": (
        "AmusedScheduler",
        "BlockRefinementScheduler",
        "DiscreteDDIMScheduler",
        "EntropyBoundScheduler",
        "VQDiffusionScheduler",
    ),
    "does not sample images of one size along one schedule: use FlowMatchEulerDiscreteScheduler": (
        "HeliosDMDScheduler",
        "HeliosScheduler",
        "LTXEulerAncestralRFScheduler",
        "MiniMaxH3Scheduler",
        "RFD4ProteinaScheduler",
    ),
    "does not sample from noise to data: use DDIMScheduler with the same betas": (
        "DDIMInverseScheduler",
        "DPMSolverMultistepInverseScheduler",
        "RePaintScheduler",
    ),
}
_REASONS = {name: reason for reason, names in _REFUSED.items() for name in names}


def option(scheduler: Any, name: str) -> Any:
    """The value of an argument of a scheduler's class; None if its class has no such argument."""
    known = name in _arguments_of(type(scheduler))  # type: ignore[arg-type]  # it is hashable
    return getattr(scheduler.config, name, None) if known else None


@cache
def _arguments_of(kind: type) -> frozenset[str]:
    """The names of the arguments of a class and of the classes that it inherits from."""
    inits = (vars(one).get("__init__", lambda: None) for one in kind.__mro__)
    return frozenset(name for init in inits for name in inspect.signature(init).parameters)


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler's levels are those of a rectified flow, `x_t = (1 - t) x_0 + t eps`."""
    names = {kind.__name__ for kind in type(scheduler).__mro__}
    return not names.isdisjoint(FLOWS) or bool(option(scheduler, "use_flow_sigmas"))


def check_scheduler(scheduler: Any) -> None:
    """Refuse schedulers whose levels are not those of a score.

    Raises:
        ValueError: If the class has no such levels, or its options contradict each other.
    """
    name = type(scheduler).__name__
    for kind in type(scheduler).__mro__:
        if kind.__name__ in _REASONS:
            raise ValueError(f"`scheduler` {name} {_REASONS[kind.__name__]}.")
    flow = is_flow(scheduler)
    if not flow and not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            "`scheduler` must have `alphas_cumprod` (a variance-preserving schedule such as "
            f"DDIMScheduler's) or the levels of a rectified flow, but got {name}."
        )
    prediction = _prediction_type(scheduler)
    if flow != (prediction == "flow_prediction"):
        raise ValueError(
            f"`scheduler` {name} has `prediction_type` {prediction!r}, but use_flow_sigmas={flow}: "
            "a rectified flow needs 'flow_prediction' and True, other models neither."
        )
    known = list(NOISE_FROM)
    if prediction not in known:
        raise ValueError(
            f"The scheduler's `prediction_type` must be one of {known}, but got {prediction!r}."
        )
    if option(scheduler, "invert_sigmas"):
        raise ValueError(
            f"`scheduler` {name} has invert_sigmas=True, so its models count time backwards: use a "
            "model whose scheduler has invert_sigmas=False."
        )
    if option(scheduler, "timestep_type") == "continuous" and prediction == "v_prediction":
        raise ValueError(
            f"`scheduler` {name} has timestep_type='continuous', so its models scale their time as "
            "in EDM: use a model whose scheduler has timestep_type='discrete'."
        )


def meaning_of(scheduler: Any) -> dict[str, Any]:
    """What a scheduler says of its model, whatever its class and its steps, as values of JSON.

    Raises:
        ValueError: If the scheduler is refused.
    """
    check_scheduler(scheduler)
    flow = is_flow(scheduler)
    return {
        "prediction_type": _prediction_type(scheduler),
        "num_timesteps": num_timesteps(scheduler),
        "alphas_cumprod": None if flow else scheduler.alphas_cumprod.tolist(),
    }


def num_timesteps(scheduler: Any) -> int:
    """The number of timesteps of training."""
    if is_flow(scheduler):
        return scheduler.config.num_train_timesteps
    return len(scheduler.alphas_cumprod)


def level_at(scheduler: Any, timestep: float, **options: Any) -> Level:
    """The noise level of a timestep in training.

    Between two timesteps, the noise in units of the clean data is linear, as in EulerDiscrete.

    Args:
        scheduler: The scheduler.
        timestep: The timestep.
        **options: Options of `make_level`.

    Raises:
        ValueError: If the scheduler is refused, or the timestep is out of range.
    """
    check_scheduler(scheduler)
    check_finite(timestep=timestep)
    num = num_timesteps(scheduler)
    if is_flow(scheduler):
        if not 0 < timestep < num:
            raise ValueError(
                f"`timestep` of a flow must lie between 0 and {num}, where there are both data and "
                f"noise, but got {timestep}."
            )
        return make_level(
            scheduler, timestep, factors_of_noise(scheduler, timestep / num), **options
        )
    if not 0 <= timestep <= num - 1:
        raise ValueError(f"`timestep` must be in [0, {num - 1}], but got {timestep}.")
    below, above = math.floor(timestep), math.ceil(timestep)
    if below == above:
        return make_level(scheduler, below, _trained_factors(scheduler, below), **options)
    low, high = (
        sigma / alpha if alpha else math.inf
        for alpha, sigma in (_trained_factors(scheduler, t) for t in (below, above))
    )
    noise = low + (timestep - below) * (high - low)
    return make_level(scheduler, timestep, factors_of_noise(scheduler, noise), **options)


def timestep_of(scheduler: Any, noise: float) -> float:
    """The timestep at which `level_at` has a noise, in units of the clean data.

    Of a noise beyond the last timestep with data, it is this timestep.
    """
    if is_flow(scheduler):
        return num_timesteps(scheduler) * noise / (1 + noise)
    abar = scheduler.alphas_cumprod.cpu().double()
    noises = ((1 - abar) / abar).sqrt().tolist()
    above = bisect_left(noises, noise)
    if above == 0 or above == len(noises) or math.isinf(noises[above]):
        return max(above - 1, 0)
    low, high = noises[above - 1], noises[above]
    return above - (high - noise) / (high - low)


def make_level(
    scheduler: Any,
    timestep: float,
    factors: tuple[float, float],
    advice: tuple[str, str] = ("a lower `timestep`", "a higher `timestep`"),
) -> Level:
    """A level with the scheduler's prediction type.

    Args:
        scheduler: The scheduler.
        timestep: The timestep of the level.
        factors: The factors of data and noise.
        advice: What to choose where there is nothing of the data, and where there is no noise.

    Raises:
        ValueError: If it lacks data or noise.
    """
    if not min(factors) > 0:
        lacking, chosen = (
            ("no noise", advice[1]) if factors[0] else ("nothing of the data", advice[0])
        )
        raise ValueError(
            f"Timestep {timestep} of {type(scheduler).__name__} has {lacking}, but a level needs "
            f"both signal and noise: choose {chosen}."
        )
    return Level(timestep, *factors, _prediction_type(scheduler))


def _trained_factors(scheduler: Any, timestep: int) -> tuple[float, float]:
    """The factors of data and noise of a timestep in training."""
    abar = float(scheduler.alphas_cumprod[timestep])
    return max(abar, 0.0) ** 0.5, max(1 - abar, 0.0) ** 0.5


def factors_of_noise(scheduler: Any, noise: float) -> tuple[float, float]:
    """The factors of data and noise at a scheduler's sigma.

    A sigma is the noise in units of the clean data, and for a flow the factor of the noise.
    """
    if is_flow(scheduler):
        return 1 - noise, noise
    if math.isinf(noise):
        return 0.0, 1.0
    alpha = 1 / math.sqrt(1 + noise**2)
    return alpha, alpha * noise


def _prediction_type(scheduler: Any) -> str:
    if not {kind.__name__ for kind in type(scheduler).__mro__}.isdisjoint(FLOWS):
        return "flow_prediction"
    return getattr(scheduler.config, "prediction_type", "epsilon")
