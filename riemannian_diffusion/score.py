"""Scores: a diffusion model read at one noise level.

At a fixed level a noisy point is `x = alpha x_0 + sigma eps`, and a `ScoreModel` gives `grad log
p(x)`, the denoiser that goes with it (Tweedie's formula) and products with the score's Jacobian.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import (
    AttnAddedKVProcessor,
    AttnAddedKVProcessor2_0,
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnAddedKVProcessor,
    SlicedAttnProcessor,
    XFormersAttnAddedKVProcessor,
    XFormersAttnProcessor,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint


class ScoreModel(ABC):
    """The score `grad log p(x)` of the data at one noise level, `x = alpha x_0 + sigma eps`.

    Points are `(K, *shape)`: the points of a path are the batch. Calls are differentiable in `x`.

    Attributes:
        alpha: Factor of the clean data at this level, in (0, 1].
        sigma: Standard deviation of the noise at this level, positive.
    """

    alpha: float
    sigma: float

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The score at each point, `(K, *shape) -> (K, *shape)`."""

    def denoise(self, x: Tensor) -> Tensor:
        """`E[alpha x_0 | x] = x + sigma^2 score(x)`, `(K, *shape) -> (K, *shape)` (Tweedie)."""
        return x + self.sigma**2 * self(x)

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """`J(x) v` with `J` the Jacobian of the score: one tangent per point, all `(K, *shape)`."""
        return torch.func.jvp(self.__call__, (x,), (v,))[1]

    def vjp(self, x: Tensor, w: Tensor) -> Tensor:
        """`J(x)^T w`: one cotangent per point, all `(K, *shape)`."""
        return torch.func.vjp(self.__call__, x)[1](w)[0]

    def stack(self, x: Tensor) -> Tensor:
        """Every score this model consists of, `(K, *shape) -> (K, S, *shape)`.

        S is 1 but for `SharedNoiseScore`. Metrics average over S, so that a model read under
        several noises gives the mean of their metrics.
        """
        return self(x)[:, None]

    def stack_jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """The derivative of `stack` along `v`, `(K, S, *shape)`."""
        return self.jvp(x, v)[:, None]


class GaussianMixtureScore(ScoreModel):
    """The exact score of `x = alpha x_0 + sigma eps`, `x_0` from a mixture of isotropic Gaussians.

    The mixture may be a set of points (`std = 0`): the empirical distribution of a data set, whose
    diffusion model is then known exactly. Logits are taken from inner products with centred means,
    so no `(K, M, *shape)` tensor is formed and points far from every mean get finite scores.

    Args:
        means: `(M, *shape)`, the means of the clean data's components.
        sigma: Standard deviation of the noise, non-negative; `sigma` and `alpha * std` must not
            both be 0.
        std: Standard deviation of every component of the clean data.
        weights: `(M,)` non-negative, normalised here; equal where None.
        alpha: Factor of the clean data.
    """

    max_logits = 2**24  # entries of the (points, means) table held at once

    def __init__(
        self,
        means: Tensor,
        sigma: float,
        *,
        std: float = 0.0,
        weights: Tensor | None = None,
        alpha: float = 1.0,
    ):
        if means.ndim < 2 or not means.is_floating_point() or len(means) == 0:
            raise ValueError(
                "`means` must be a floating-point tensor (M, *shape), "
                f"but got {tuple(means.shape)}, {means.dtype}."
            )
        if sigma < 0 or std < 0 or alpha <= 0 or sigma + alpha * std == 0:
            raise ValueError(
                "`sigma` and `std` must not be negative nor both 0, and `alpha` must be positive, "
                f"but got sigma={sigma}, std={std}, alpha={alpha}."
            )
        if weights is not None and (
            weights.shape != means.shape[:1] or (weights < 0).any() or weights.sum() <= 0
        ):
            raise ValueError(
                f"`weights` must be ({len(means)},), non-negative and not all 0, but got {weights}."
            )
        self.means, self.sigma, self.std, self.alpha = means, float(sigma), float(std), float(alpha)
        if weights is None:
            weights = means.new_ones(len(means))
        self.log_weights = (weights / weights.sum()).to(means).log()
        self.variance = self.sigma**2 + (self.alpha * self.std) ** 2

    def __call__(self, x: Tensor) -> Tensor:
        """The score at each point, `(K, *shape) -> (K, *shape)`."""
        return self._in_chunks(self._score, x)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density at each point, `(K, *shape) -> (K,)`."""
        return self._in_chunks(self._log_prob, x)

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """`J(x) v` in closed form, from the posterior covariance of the means."""
        return self._in_chunks(self._jvp, x, v)

    def vjp(self, x: Tensor, w: Tensor) -> Tensor:
        """`J(x)^T w`: the Jacobian of an exact score is symmetric."""
        return self.jvp(x, w)

    def _in_chunks(self, function: Callable[..., Tensor], x: Tensor, *more: Tensor) -> Tensor:
        if x.shape[1:] != self.means.shape[1:]:
            raise ValueError(
                f"`x` must be (K, {str(tuple(self.means.shape[1:]))[1:]}, but got {tuple(x.shape)}."
            )
        size = max(1, self.max_logits // len(self.means))
        inputs = [a.split(size) for a in (x, *more)]
        return torch.cat([function(*chunk) for chunk in zip(*inputs, strict=True)])

    def _centred(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points and scaled means about the means' centre; log posterior up to a constant."""
        dtype = torch.promote_types(x.dtype, self.means.dtype)
        means = self.means.to(dtype).flatten(1) * self.alpha  # (M, d)
        centre = means.mean(0)
        means, points = means - centre, x.to(dtype).flatten(1) - centre  # (K, d)
        logits = (points @ means.T - 0.5 * means.square().sum(1)) / self.variance
        return points, means, logits + self.log_weights.to(dtype)  # (K, d), (M, d), (K, M)

    def _score(self, x: Tensor) -> Tensor:
        points, means, logits = self._centred(x)
        return ((logits.softmax(1) @ means - points) / self.variance).view_as(x).to(x.dtype)

    def _log_prob(self, x: Tensor) -> Tensor:
        points, means, logits = self._centred(x)
        constant = 0.5 * points.shape[1] * math.log(2 * math.pi * self.variance)
        log_prob = logits.logsumexp(1) - 0.5 * points.square().sum(1) / self.variance - constant
        return log_prob.to(x.dtype)

    def _jvp(self, x: Tensor, v: Tensor) -> Tensor:
        points, means, logits = self._centred(x)
        tangents = v.to(points).flatten(1)
        posterior = logits.softmax(1)  # (K, M)
        along = tangents @ means.T  # (K, M)
        along = along - (posterior * along).sum(1, keepdim=True)
        out = (posterior * along) @ means / self.variance**2 - tangents / self.variance
        return out.view_as(x).to(x.dtype)


class DiffusionScore(ScoreModel):
    """The score of a diffusers denoiser at one timestep, `score = -eps / sigma`.

    Any model called like `UNet2DModel` (`model(x, t)`) or `UNet2DConditionModel` (`model(x, t,
    encoder_hidden_states)`) and any scheduler with `alphas_cumprod` and epsilon, velocity or sample
    prediction. The network runs in its own dtype; points, scores and products keep the caller's.
    Parameters receive no gradient.

    Args:
        model: The denoiser.
        scheduler: Gives `alpha`, `sigma` and the prediction type; it is not stepped.
        timestep: The level, an index into `scheduler.alphas_cumprod`.
        encoder_hidden_states: `(1, L, C)` prompt embedding for every point, or `(P, L, C)`, a path
            of prompts: the K points of a call then lie at fractions `i / (K - 1)` of it,
            interpolated linearly between its knots.
        negative_hidden_states: The same for the negative prompt, needed by modes "guided" and
            "difference".
        guidance_scale: Weight `g` of mode "guided".
        mode: "conditional" takes `eps = eps_cond`; "guided" takes `eps_neg + g (eps_cond -
            eps_neg)` (classifier-free guidance); "difference" takes `eps_cond - eps_neg`.
        max_batch_size: Largest batch given to the network. Longer calls run in chunks, and their
            reverse pass recomputes one chunk at a time, so memory does not grow with the number of
            points.

    Raises:
        ValueError: If the scheduler has no `alphas_cumprod` or an unknown prediction type, the
            timestep is outside it, or prompts and mode disagree.
    """

    def __init__(
        self,
        model: nn.Module,
        scheduler,
        timestep: int,
        *,
        encoder_hidden_states: Tensor | None = None,
        negative_hidden_states: Tensor | None = None,
        guidance_scale: float = 1.0,
        mode: str = "conditional",
        max_batch_size: int | None = None,
    ):
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(
                "`scheduler` must have `alphas_cumprod` (a variance-preserving schedule such as "
                f"DDIMScheduler's), but got {type(scheduler).__name__}."
            )
        prediction = getattr(scheduler.config, "prediction_type", "epsilon")
        if prediction not in _NOISE_FROM:
            raise ValueError(
                f"The scheduler's `prediction_type` must be one of {list(_NOISE_FROM)}, "
                f"but got {prediction!r}."
            )
        timestep, num = int(timestep), len(scheduler.alphas_cumprod)
        if not 0 <= timestep < num:
            raise ValueError(f"`timestep` must be in [0, {num - 1}], but got {timestep}.")
        if mode not in ("conditional", "guided", "difference"):
            raise ValueError(
                f"`mode` must be 'conditional', 'guided' or 'difference', but got {mode!r}."
            )
        if mode != "conditional" and (
            encoder_hidden_states is None or negative_hidden_states is None
        ):
            raise ValueError(
                f"mode={mode!r} needs both `encoder_hidden_states` and `negative_hidden_states`."
            )
        if max_batch_size is not None and max_batch_size < 1:
            raise ValueError(
                f"`max_batch_size` must be at least 1 or None, but got {max_batch_size}."
            )
        abar = float(scheduler.alphas_cumprod[timestep])
        if not 0 < abar < 1:
            raise ValueError(
                f"`timestep` {timestep} has alphas_cumprod {abar}: a level needs both signal and "
                "noise."
            )
        self.alpha, self.sigma = abar**0.5, (1 - abar) ** 0.5
        self.model, self.timestep, self.prediction_type = model, timestep, prediction
        self.encoder_hidden_states = encoder_hidden_states
        self.negative_hidden_states = negative_hidden_states
        self.guidance_scale, self.mode = guidance_scale, mode
        self.max_batch_size = max_batch_size

    def __call__(self, x: Tensor) -> Tensor:
        """The score at each point, `(K, *shape) -> (K, *shape)`."""
        chunks = self._chunks(x)
        if len(chunks) == 1 or not (torch.is_grad_enabled() and x.requires_grad):
            return torch.cat([function(points) for function, points in chunks])
        parts = [checkpoint(f, p, use_reentrant=False, preserve_rng_state=False) for f, p in chunks]
        return torch.cat(parts)

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """`J(x) v` in forward mode, whatever attention the model runs with.

        Memory is linear in the number of tokens.
        """
        with _frozen(self.model), _forward_mode_attention(self.model):
            tangents = v.split(self.max_batch_size or len(v))
            pairs = zip(self._chunks(x), tangents, strict=True)
            return torch.cat([torch.func.jvp(f, (points,), (t,))[1] for (f, points), t in pairs])

    def vjp(self, x: Tensor, w: Tensor) -> Tensor:
        """`J(x)^T w` in reverse mode."""
        cotangents = w.split(self.max_batch_size or len(w))
        pairs = zip(self._chunks(x), cotangents, strict=True)
        with _frozen(self.model):
            return torch.cat([torch.func.vjp(f, points)[1](c)[0] for (f, points), c in pairs])

    def _chunks(self, x: Tensor) -> list[tuple[Callable[[Tensor], Tensor], Tensor]]:
        size = self.max_batch_size or len(x)
        points = x.split(size)
        conditional = _prompts_along(
            self.encoder_hidden_states, len(x), size, "encoder_hidden_states"
        )
        negative = [None] * len(points)
        if self.mode != "conditional":
            negative = _prompts_along(
                self.negative_hidden_states, len(x), size, "negative_hidden_states"
            )

        def bind(cond: Tensor | None, neg: Tensor | None) -> Callable[[Tensor], Tensor]:
            return lambda part: self._score(part, cond, neg)

        return [(bind(c, n), p) for c, n, p in zip(conditional, negative, points, strict=True)]

    def _score(self, x: Tensor, conditional: Tensor | None, negative: Tensor | None) -> Tensor:
        with _frozen(self.model):
            noise = self._noise(x, conditional)
            if self.mode != "conditional":
                unconditional = self._noise(x, negative)
                noise = noise - unconditional
                if self.mode == "guided":
                    noise = unconditional + self.guidance_scale * noise
        return -noise / self.sigma

    def _noise(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        parameter = next(self.model.parameters())
        timestep = torch.tensor(self.timestep, device=x.device)
        prompt = {}
        if hidden is not None:
            prompt["encoder_hidden_states"] = hidden.to(device=x.device, dtype=parameter.dtype)
        output = self.model(x.to(parameter.dtype), timestep, **prompt, return_dict=False)[0]
        if output.shape != x.shape:
            raise ValueError(
                f"The model turned {tuple(x.shape)} into {tuple(output.shape)}: a score needs "
                "equal shapes (models that also predict a variance, or are given a mask, are not "
                "supported)."
            )
        return _NOISE_FROM[self.prediction_type](output.to(x.dtype), x, self.alpha, self.sigma)


_NOISE_FROM: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "epsilon": lambda output, x, alpha, sigma: output,
    "v_prediction": lambda output, x, alpha, sigma: alpha * output + sigma * x,
    "sample": lambda output, x, alpha, sigma: (x - alpha * output) / sigma,
}


class SharedNoiseScore(ScoreModel):
    """A score in clean coordinates: the model at `alpha x_0 + sigma noise`, one noise for all.

    In units of the clean data the level is `z = x_0 + (sigma / alpha) noise`; this model is the
    score of z as a function of `x_0`, so it has `alpha = 1` and `sigma / alpha` for its sigma, and
    paths run between clean points without inversion (the first paper's construction, arXiv
    2505.11128). Several noises give the mean of their metrics: `stack` keeps their scores apart,
    and a plain call is their mean.

    Args:
        score: The model at one level, in noisy coordinates.
        noise: `shape`, or `(S, *shape)` for S noises, standard normal.
    """

    def __init__(self, score: ScoreModel, noise: Tensor):
        self.score, self.noise = score, noise
        self.alpha, self.sigma = 1.0, score.sigma / score.alpha

    def __call__(self, x: Tensor) -> Tensor:
        """The mean over noises of the score at `x + sigma noise`, `(K, *shape) -> (K, *shape)`."""
        return self.stack(x).mean(1)

    def denoise(self, x: Tensor) -> Tensor:
        """The estimate of the clean point, `x + sigma (sigma score(x) + noise)`, averaged."""
        return x + self.sigma**2 * self(x) + self.sigma * self._noises(x).mean(0)

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """`J(x) v`, averaged over noises."""
        return self.stack_jvp(x, v).mean(1)

    def vjp(self, x: Tensor, w: Tensor) -> Tensor:
        """`J(x)^T w`, averaged over noises."""
        parts = [self.score.vjp(point, w) for point in self._noisy(x)]
        return self.score.alpha**2 * torch.stack(parts).mean(0)

    def stack(self, x: Tensor) -> Tensor:
        """One score per noise, `(K, *shape) -> (K, S, *shape)`."""
        return self.score.alpha * torch.stack([self.score(point) for point in self._noisy(x)], 1)

    def stack_jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """The derivative of `stack` along `v`."""
        return self.score.alpha**2 * torch.stack(
            [self.score.jvp(point, v) for point in self._noisy(x)], 1
        )

    def _noises(self, x: Tensor) -> Tensor:
        noise = self.noise if self.noise.ndim == x.ndim else self.noise[None]
        if noise.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"`noise` is {tuple(self.noise.shape)}, which does not fit points {tuple(x.shape)}."
            )
        return noise.to(x)

    def _noisy(self, x: Tensor) -> Iterator[Tensor]:
        for noise in self._noises(x):
            yield self.score.alpha * x + self.score.sigma * noise


def _prompts_along(prompts: Tensor | None, num: int, size: int, name: str) -> list[Tensor | None]:
    """Prompt embeddings at `num` equal fractions of a path of prompts, in chunks of `size`."""
    if prompts is None:
        return [None] * math.ceil(num / size)
    if prompts.ndim != 3:
        raise ValueError(
            f"`{name}` must be (1, L, C) or (P, L, C), but got {tuple(prompts.shape)}."
        )
    if len(prompts) == 1:
        prompts = prompts.expand(num, -1, -1)
    elif len(prompts) != num:
        if num == 1:
            raise ValueError(
                f"`{name}` is a path of {len(prompts)} prompts: one point alone has no place on it."
            )
        place = torch.linspace(0, len(prompts) - 1, num, dtype=torch.float64)
        left = place.long().clamp(max=len(prompts) - 2)
        weight = (place - left).to(prompts)[:, None, None]
        prompts = torch.lerp(prompts[left], prompts[left + 1], weight)
    return list(prompts.split(size))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient inside; afterwards each is as it was.

    Entered before torch.func's transforms: inside them no flag can be changed.
    """
    changed = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in changed:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)


# Processors that bypass torch's scaled_dot_product_attention, and those that do the same with it.
_PROCESSOR_WITH_SDPA = {
    AttnProcessor: AttnProcessor2_0,
    SlicedAttnProcessor: AttnProcessor2_0,
    XFormersAttnProcessor: AttnProcessor2_0,
    AttnAddedKVProcessor: AttnAddedKVProcessor2_0,
    SlicedAttnAddedKVProcessor: AttnAddedKVProcessor2_0,
    XFormersAttnAddedKVProcessor: AttnAddedKVProcessor2_0,
}


@contextmanager
def _forward_mode_attention(model: nn.Module) -> Iterator[None]:
    """Attention inside has a forward-mode derivative.

    Fused attention kernels have none, so torch's entry point to them is intercepted for this
    thread; processors that bypass it are exchanged for their equals that do not. Afterwards, also
    after an exception, the model is as it was.
    """
    exchanged = []
    try:
        for module in model.modules():
            processor = getattr(module, "processor", None)
            if type(processor) in _PROCESSOR_WITH_SDPA:
                exchanged.append((module, "processor", processor))
                module.processor = _PROCESSOR_WITH_SDPA[type(processor)]()
            elif getattr(processor, "_attention_backend", None) is not None:
                exchanged.append((processor, "_attention_backend", processor._attention_backend))
                processor._attention_backend = "native"
        with _BlockwiseAttention():
            yield
    finally:
        for owner, name, value in exchanged:
            setattr(owner, name, value)


class _BlockwiseAttention(TorchFunctionMode):
    """Replaces `scaled_dot_product_attention` by its formula over blocks of queries.

    Every primitive operation has a forward-mode derivative, and without a reverse pass over it
    memory is linear in the number of tokens.
    """

    max_scores = 2**23  # entries of the (batch, heads, queries, keys) table held at once

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        if func is F.group_norm:  # its forward derivative fails where the memory is channels-last
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query,
        key,
        value,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        enable_gqa=False,
    ) -> Tensor:
        if dropout_p:
            raise ValueError(
                f"Attention dropout is {dropout_p}: call `model.eval()` before taking derivatives."
            )
        if enable_gqa:
            repeats = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
        num_queries, num_keys = query.shape[-2], key.shape[-2]
        if is_causal:
            attn_mask = torch.ones(
                num_queries, num_keys, dtype=torch.bool, device=query.device
            ).tril()
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        per_query = max(1, query.shape[:-2].numel() * num_keys)
        size = max(1, self.max_scores // per_query)
        blocks = []
        for start in range(0, num_queries, size):
            block = slice(start, start + size)
            scores = (query[..., block, :] * scale) @ key.transpose(-1, -2)
            if attn_mask is not None:
                mask = attn_mask if attn_mask.shape[-2] == 1 else attn_mask[..., block, :]
                if mask.dtype == torch.bool:
                    mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
                scores = scores + mask
            weights = scores.softmax(-1)
            if attn_mask is not None:  # a query without any key attends to nothing, as in torch
                weights = weights.masked_fill(scores.isneginf().all(-1, keepdim=True), 0.0)
            blocks.append(weights @ value)
        return torch.cat(blocks, -2)
