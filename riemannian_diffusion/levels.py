"""A model under fixed conditions at every noise level.

A `Schedule` is read from the given scheduler object. A scheduler rebuilt from its config would lose
the values that were left at their defaults.
"""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from riemannian_diffusion.arguments import check_finite, check_not_negative, check_whole
from riemannian_diffusion.guidance.score import ManifoldGuidedScore
from riemannian_diffusion.score.conditions import Condition, Conditions
from riemannian_diffusion.score.diffusion import is_flow, level_at
from riemannian_diffusion.score.model import ScoreModel
from riemannian_diffusion.score.network import Level, NetworkScore, Predict

NOISIEST = 0.999  # noisiest level of a flow, because a level of 1 contains no data


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
        if is_flow(self.scheduler):
            return self.scheduler.config.num_train_timesteps
        return len(self.scheduler.alphas_cumprod)

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
        """The timestep whose noise level, in units of the clean data, is nearest to `noise`."""
        if self.is_flow:
            return round(self.num_timesteps * noise / (1 + noise))
        abar = self.scheduler.alphas_cumprod.cpu().double()
        return int((((1 - abar) / abar).sqrt() - noise).abs().argmin())


def read_schedule(
    scheduler: Any,
    num_steps: int,
    *,
    strength: float = 1.0,
    num_tokens: int | None = None,
    even: bool = False,
) -> Schedule:
    """The levels that a scheduler visits in a number of steps, or in the last of them.

    Args:
        scheduler: A scheduler of diffusers with `alphas_cumprod`, or one of a rectified flow. It
            is copied and not changed.
        num_steps: The number of steps, at least 1.
        strength: The share of the steps, in (0, 1], whose levels are read: the last ones.
        num_tokens: The number of image tokens, on which the shift of some flows depends.
        even: For a flow, whether levels are even before the shift, down to `1 / num_steps`.

    Raises:
        ValueError: If the scheduler has no such levels, or the share leaves no step.
    """
    check_whole(1, num_inference_steps=num_steps)
    if is_flow(scheduler):
        timesteps = _flow_timesteps(scheduler, num_steps, num_tokens, even)
        visited = _last(timesteps, strength)
        return Schedule(tuple(level_at(scheduler, t) for t in visited), 1.0, scheduler)
    level_at(scheduler, 0)  # refuses schedulers without levels of the known kinds
    own = copy.deepcopy(scheduler)
    own.set_timesteps(num_steps)
    index: dict[float, int] = {}
    for i, timestep in enumerate(own.timesteps.cpu().double().tolist()):
        index.setdefault(timestep, i)  # multistep schedulers visit some levels twice
    visited = _last(sorted(index, reverse=True), strength)
    levels = tuple(_level_of_step(own, index[timestep], timestep) for timestep in visited)
    return Schedule(levels, _final_abar(own), scheduler)


def _final_abar(scheduler: Any) -> float:
    """The squared factor of the data at the level on which a scheduler's last step ends."""
    if hasattr(scheduler, "final_alpha_cumprod"):
        return float(scheduler.final_alpha_cumprod)
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or len(sigmas) != len(scheduler.timesteps) + 1:
        return 1.0
    return 1 / (1 + float(sigmas[-1]) ** 2)  # its noise is in units of the clean data


def _last(timesteps: list[float], strength: float) -> list[float]:
    """A share of timesteps, the last ones.

    Raises:
        ValueError: If that leaves none.
    """
    num = int(len(timesteps) * strength)
    if num < 1:
        raise ValueError(
            f"`strength` {strength} of `num_inference_steps` {len(timesteps)} leaves no step: "
            "raise one of them."
        )
    return timesteps[-num:]


def _level_of_step(scheduler: Any, index: int, timestep: float) -> Level:
    """The level of one step, from the training schedule or from the sigma of the step."""
    if timestep == int(timestep) and not _has_own_sigmas(scheduler):
        return level_at(scheduler, timestep)
    noise = float(scheduler.sigmas[index])  # in units of the clean data
    alpha = 1 / math.sqrt(1 + noise**2)
    prediction = level_at(scheduler, int(timestep)).prediction_type
    return Level(timestep, alpha, alpha * noise, prediction)


def _has_own_sigmas(scheduler: Any) -> bool:
    """Whether the noise of a step may differ from that of its timestep in training."""
    config = scheduler.config
    names = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
    return any(config.get(name) for name in names)


def _flow_timesteps(
    scheduler: Any, num_steps: int, num_tokens: int | None, even: bool
) -> list[float]:
    """The timesteps that a flow visits, noisiest first."""
    own, options = copy.deepcopy(scheduler), dict[str, Any]()
    if own.config.get("use_dynamic_shifting"):
        options["mu"] = _shift(own.config, num_tokens)
    if even and "sigmas" in inspect.signature(own.set_timesteps).parameters:
        options["sigmas"] = torch.linspace(
            1.0, 1 / num_steps, num_steps, dtype=torch.float64
        ).numpy()
        own.set_timesteps(**options)
    else:
        own.set_timesteps(num_steps, **options)
    timesteps = own.timesteps.double().clamp(max=NOISIEST * own.config.num_train_timesteps)
    return torch.unique(timesteps).flip(0).tolist()


def _shift(config: Any, num_tokens: int | None) -> float:
    """The shift of a flow, linear in the number of image tokens as in diffusers' FluxPipeline."""
    if num_tokens is None:
        raise ValueError("This flow's shift depends on the image size: give `num_tokens`.")
    slope = (config.max_shift - config.base_shift) / (
        config.max_image_seq_len - config.base_image_seq_len
    )
    return num_tokens * slope + config.base_shift - slope * config.base_image_seq_len


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

    Raises:
        ValueError: If a number is out of range, or guidance lacks negative conditions.
    """

    network: nn.Module | None
    predict: Predict | None
    schedule: Schedule
    conditions: Conditions
    guidance_scale: float = 1.0
    guidance_damping: float = 0.0
    max_batch_size: int | None = None

    def __post_init__(self):
        check_not_negative(guidance_scale=self.guidance_scale)
        check_finite(guidance_damping=self.guidance_damping)
        if self.max_batch_size is not None:
            check_whole(1, max_batch_size=self.max_batch_size)
        if not 0 <= self.guidance_damping <= 1:
            raise ValueError(
                f"`guidance_damping` must be in [0, 1], but got {self.guidance_damping}."
            )
        if self.guidance_damping and not self.guides:
            raise ValueError(
                f"`guidance_damping` {self.guidance_damping} needs a `guidance_scale` above 1, "
                f"but got {self.guidance_scale}."
            )
        if self.guides and self.conditions.negative is None:
            raise ValueError(
                f"`guidance_scale` {self.guidance_scale} needs negative conditions, but these "
                "conditions have none."
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
        options["max_batch_size"] = self.max_batch_size
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
