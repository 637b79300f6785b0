"""A model under fixed conditions at every noise level.

A `Schedule` is read from the given scheduler object. A scheduler rebuilt from its config would lose
the values that were left at their defaults.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from riemannian_diffusion.arguments import check_finite, check_not_negative, check_whole, plain
from riemannian_diffusion.batches import Learned
from riemannian_diffusion.guidance.score import ManifoldGuidedScore
from riemannian_diffusion.score.conditions import Condition, Conditions
from riemannian_diffusion.score.model import ScoreModel
from riemannian_diffusion.score.network import Level, NetworkScore, Predict
from riemannian_diffusion.score.schedulers import (
    NOISIEST,
    check_scheduler,
    factors_of_noise,
    is_flow,
    level_at,
    make_level,
    num_timesteps,
    option,
    timestep_of,
)
from riemannian_diffusion.score.weights import Layers

_FEWEST_EVEN = 10  # number of levels that are evenly spaced in the noise, where there are as many


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise levels that sampling visits, and access to all other levels of a scheduler.

    Attributes:
        levels: The levels of the steps, noisiest first.
        final_abar: Squared factor of the data at the clean level, in (0, 1].
        scheduler: The scheduler object, for other levels; None after loading from a file.
    """

    levels: tuple[Level, ...]
    final_abar: float
    scheduler: Any = None

    @property
    def timesteps(self) -> list[float]:
        """The timesteps of the steps, noisiest first."""
        return [level.timestep for level in self.levels]

    @property
    def num_timesteps(self) -> int:
        """The number of timesteps of training."""
        return num_timesteps(self.scheduler)

    @property
    def is_flow(self) -> bool:
        """Whether the levels are those of a rectified flow."""
        return self.levels[0].prediction_type == "flow_prediction"

    def at(self, timestep: float) -> Level:
        """The level of a timestep, which need not be one of the steps.

        Raises:
            ValueError: If the scheduler has no such level.
        """
        for level in self.levels:
            if level.timestep == timestep:
                return level
        return level_at(self.scheduler, timestep)

    def timestep_of(self, noise: float) -> int:
        """The whole timestep whose noise, in units of the clean data, is about `noise`."""
        return round(timestep_of(self.scheduler, noise))

    def even_in_noise(self) -> Schedule:
        """The schedule with half as many levels, but at least 10 if it has as many.

        They lie between its cleanest and its noisiest level, evenly in the cube root of the noise
        in units of the clean data. DDIM steps then err about as little as twice as many steps that
        are even in the timestep, because the noise of the cleanest levels grows by smaller factors.
        """
        num = len(self.levels)
        if num <= 2:
            return self
        num = max((num + 1) // 2, min(num, _FEWEST_EVEN))
        high, low = (
            (one.sigma / one.alpha) ** (1 / 3) for one in (self.levels[0], self.levels[-1])
        )
        shares = torch.linspace(0, 1, num, dtype=torch.float64).tolist()[1:-1]
        noises = [(high + share * (low - high)) ** 3 for share in shares]
        between = [level_at(self.scheduler, timestep_of(self.scheduler, n)) for n in noises]
        return replace(self, levels=_falling((self.levels[0], *between, self.levels[-1])))


def read_schedule(
    scheduler: Any,
    num_steps: int,
    *,
    strength: float = 1.0,
    mu: float | None = None,
    sigmas: Sequence[float] | None = None,
) -> Schedule:
    """The levels that a scheduler visits in a number of steps, or in the last of them.

    Sampling takes DDIM steps between these levels. This is what first-order samplers do (DDIM with
    eta 0, Euler, DPM-Solver of order 1, Euler for flows). Of other samplers, also stochastic and
    distilled ones (LCM, TCD), only the levels are read. No step clips or thresholds what the
    network predicts, because inversion could not undo that.

    Args:
        scheduler: A scheduler of diffusers with `alphas_cumprod`, or one of a rectified flow. It
            is copied and not changed.
        num_steps: The number of steps, at least 1.
        strength: The share of the steps, in (0, 1], whose levels are read: the last ones.
        mu: The shift of a flow whose scheduler has `use_dynamic_shifting`, such as that of
            `linear_shift`. Other schedulers do not use it.
        sigmas: The levels of a flow before the shift: `num_steps` falling numbers in (0, 1]. None
            takes the scheduler's own. Schedulers with `use_flow_sigmas` do not use them, as in
            FluxPipeline.

    Raises:
        ValueError: If the scheduler is refused, the share leaves no step, a level lacks data or
            noise, or `mu` is missing.
    """
    check_whole(1, num_inference_steps=num_steps)
    check_scheduler(scheduler)
    own = _prepared(scheduler, num_steps, mu, sigmas)
    timesteps = own.timesteps.cpu().tolist()
    noises = _noises(own)
    # Samplers of second order repeat a level; they reach it with another timestep at first.
    found = dict(zip(timesteps if noises is None else noises, timesteps, strict=False))
    levels = list[Level]()
    for key in _last(sorted(found, reverse=True), strength):
        factors = None if noises is None else factors_of_noise(own, key)
        levels.append(_level(own, found[key], factors, num_steps))
    return Schedule(_falling(levels), _final_abar(own, noises), scheduler)


def _falling(levels: Sequence[Level]) -> tuple[Level, ...]:
    """Levels, noisiest first, with timesteps that fall.

    Levels may share a timestep. In the network's float32, the difference made here disappears.
    """
    found, timestep = list[Level](), math.inf
    for level in levels:
        shared = level.timestep >= timestep
        timestep = math.nextafter(timestep, -math.inf) if shared else level.timestep
        found.append(level._replace(timestep=timestep))
    return tuple(found)


def linear_shift(scheduler: Any, num_tokens: int) -> float:
    """The `mu` of a flow: linear in the number of image tokens, as in diffusers' FluxPipeline."""
    config = scheduler.config
    first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (high - low) / (last - first)
    return num_tokens * slope + low - slope * first


def even_sigmas(num_steps: int) -> list[float]:
    """Even levels of a flow before the shift, from 1 to `1 / num_steps`, as in FluxPipeline."""
    return torch.linspace(1.0, 1 / num_steps, num_steps, dtype=torch.float64).tolist()


def _prepared(
    scheduler: Any, num_steps: int, mu: float | None, sigmas: Sequence[float] | None
) -> Any:
    """A copy of a scheduler, after its `set_timesteps`."""
    own, options = copy.deepcopy(scheduler), dict[str, Any](num_inference_steps=num_steps)
    if is_flow(own):
        if option(own, "use_dynamic_shifting"):
            if mu is None:
                raise ValueError(
                    f"The shift of this {type(own).__name__} depends on the image size: give `mu`, "
                    "for example that of `linear_shift`."
                )
            options["mu"] = mu
        accepted = inspect.signature(own.set_timesteps).parameters
        if sigmas is not None and "sigmas" in accepted and not option(own, "use_flow_sigmas"):
            options["sigmas"] = torch.as_tensor(sigmas, dtype=torch.float64).numpy()
    try:
        own.set_timesteps(**options)
    except ValueError as error:
        most = num_timesteps(own)
        if num_steps <= most:
            raise
        raise ValueError(
            f"`num_inference_steps` must be at most {most}, the number of timesteps for which this "
            f"{type(own).__name__} was made, but got {num_steps}."
        ) from error
    return own


def _noises(own: Any) -> list[float] | None:
    """The noise of each step of a prepared scheduler and after the last one.

    It is in units of the clean data, or for a flow between 0 and `NOISIEST`. None for schedulers
    whose noise is that of the timestep in training.

    Raises:
        ValueError: If a flow has other sigmas.
    """
    if getattr(own, "sigmas", None) is None:
        return None
    noises = own.sigmas.double().tolist()[: len(own.timesteps) + 1]
    if is_flow(own):
        if not all(0 <= noise <= 1 for noise in noises):
            raise ValueError(
                f"The sigmas of {type(own).__name__} must lie between 0 and 1 for a flow, but they "
                f"reach {max(noises):.4g}: set its use_karras_sigmas, use_exponential_sigmas, "
                "use_beta_sigmas and use_lu_lambdas to False."
            )
        return [min(noise, NOISIEST) for noise in noises]
    return noises


def _level(own: Any, timestep: float, factors: tuple[float, float] | None, num_steps: int) -> Level:
    """The level of a step."""
    advice = ("a lower `strength`", "fewer `num_inference_steps`")
    if is_flow(own):
        timestep = min(timestep, NOISIEST * num_timesteps(own))
    if factors is not None:
        return make_level(own, timestep, factors, advice)
    last = num_timesteps(own) - 1
    if timestep > last:
        raise ValueError(
            f"`num_inference_steps` {num_steps} makes this {type(own).__name__} visit timestep "
            f"{timestep}, but its last one is {last}: lower `num_inference_steps` or `strength`."
        )
    return level_at(own, timestep, advice=advice)


def _final_abar(own: Any, noises: list[float] | None) -> float:
    """The squared factor of the data at the level on which a scheduler's last step ends.

    Raises:
        ValueError: If this level does not preserve the variance.
    """
    if noises is None:
        return float(getattr(own, "final_alpha_cumprod", 1.0))
    noise = noises[-1]
    scales = hasattr(own, "scale_model_input") and own.scale_model_input(
        torch.ones(1), own.timesteps[0]
    ) != torch.ones(1)
    if noise and (is_flow(own) or scales):
        other = "FlowMatchEulerDiscreteScheduler" if is_flow(own) else "DDIMScheduler"
        raise ValueError(
            f"The last step of this {type(own).__name__} ends at sigma {noise:.4g} and not at "
            f"clean data: use {other}, or options such as final_sigmas_type='zero'."
        )
    return factors_of_noise(own, noise)[0] ** 2


def _last(steps: list[float], strength: float) -> list[float]:
    """A share of steps, the last ones.

    Raises:
        ValueError: If that leaves none.
    """
    num = int(len(steps) * strength)
    if num < 1:
        raise ValueError(
            f"`strength` {strength} of `num_inference_steps` {len(steps)} leaves no step: "
            "raise one of them."
        )
    return steps[-num:]


@dataclass(frozen=True, eq=False)
class Levels:
    """A model under fixed conditions at any noise level: it maps timesteps to score models.

    It reads nothing from a pipeline, so later calls of the pipeline do not change its scores.

    Attributes:
        network: The network; None after loading from a file, until `pipe.connect` sets it.
        predict: A function `(x, timestep, conditions) -> prediction` that calls the network.
        schedule: The noise levels.
        conditions: What the network is conditioned on along the path.
        guidance_scale: Classifier-free guidance above 1.
        guidance_damping: Damps the part of guidance that is normal to the data manifold, in
            [0, 1]. Above 0 it is the `damping` of `ManifoldGuidedScore`, and the network is
            evaluated 3 times for each point instead of 2.
        max_batch_size: Largest batch given to the network; None for no limit.
        learned: The batch sizes that fit into memory, as far as stages have learned them.

    Raises:
        ValueError: If a number is out of range, guidance lacks negative conditions, the network's
            weights were made in inference mode, or it has a cache.
    """

    network: nn.Module | None
    predict: Predict | None
    schedule: Schedule
    conditions: Conditions
    guidance_scale: float = 1.0
    guidance_damping: float = 0.0
    max_batch_size: int | None = None
    learned: Learned = field(default_factory=Learned)

    def __post_init__(self):
        if self.network is not None:
            Layers(self.network).check()
        check_not_negative(guidance_scale=self.guidance_scale)
        check_finite(guidance_damping=self.guidance_damping)
        if self.max_batch_size is not None:
            check_whole(1, max_batch_size=self.max_batch_size)
        for name in ("guidance_scale", "guidance_damping", "max_batch_size"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, plain(getattr(self, name)))
        scale, damping = self.guidance_scale, self.guidance_damping
        if not 0 <= damping <= 1:
            raise ValueError(f"`guidance_damping` must be in [0, 1], but got {damping}.")
        if damping and not self.guides:
            raise ValueError(
                f"`guidance_damping` {damping} needs a `guidance_scale` above 1, but got {scale}."
            )
        if self.guides and self.conditions.negative is None:
            raise ValueError(
                f"`guidance_scale` {scale} needs negative conditions, but these conditions have "
                "none."
            )

    @property
    def guides(self) -> bool:
        """Whether scores are guided."""
        return self.guidance_scale > 1

    @property
    def mode(self) -> str:
        """The mode of the scores that sampling uses, "conditional" or "guided"."""
        return "guided" if self.guides else "conditional"

    def __call__(self, timestep: float, *, mode: str | None = None) -> ScoreModel:
        """The score at the level of a timestep.

        Args:
            timestep: A timestep of the schedule, or any other of the scheduler.
            mode: "conditional", "guided" or "difference", as in `DiffusionScore`. None takes the
                mode that sampling uses.

        Raises:
            ValueError: If there is no such level or mode, no model is connected, or the mode is
                "difference" and the positive and negative conditions are equal.
        """
        if self.network is None or self.predict is None:
            raise ValueError(
                "These levels come from a file and have no model yet: pass the loaded object to a "
                "stage of the pipeline, or to `pipe.connect`."
            )
        mode = self.mode if mode is None else mode
        if mode == "difference":
            self._check_difference()
        level = self.schedule.at(timestep)
        if mode == "guided" and self.guidance_damping:
            conditions = self.conditions
            negative = Conditions(conditions.negative or {}, None, conditions.loras)
            return ManifoldGuidedScore(
                self._score(level, conditions, mode="conditional"),
                self._score(level, negative, mode="conditional"),
                self.guidance_scale,
                damping=self.guidance_damping,
            )
        return self._score(level, self.conditions, mode=mode, guidance_scale=self.guidance_scale)

    def _score(self, level: Level, conditions: Conditions, **options) -> NetworkScore:
        assert self.network is not None and self.predict is not None
        options["max_batch_size"] = self.learned.network.limited(self.max_batch_size)
        return NetworkScore(self.network, self.predict, level, conditions, **options)

    def _check_difference(self) -> None:
        positive, negative = self.conditions.positive, self.conditions.negative
        if negative is None:
            raise ValueError(
                "mode='difference' reads the difference of a prompt and a negative prompt, but "
                "these conditions have no negative prompt."
            )
        if all(_agree(one, negative[name]) for name, one in positive.items()):
            raise ValueError(
                "The metric reads the difference of `prompt` and `negative_prompt`, but both are "
                "the same: change one of them, or pass score_mode='conditional'."
            )


def _agree(one: Condition, other: Condition) -> bool:
    """Whether two conditions have the same values at every knot."""
    if one.values.shape[2:] != other.values.shape[2:]:
        return False
    return torch.equal(one.values, other.values.expand(one.values.shape))
