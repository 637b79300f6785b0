"""The score of any diffusers denoiser."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from riemannian_diffusion.arguments import check_finite, check_kind, check_tensor, check_whole
from riemannian_diffusion.score.attention import forward_mode_attention
from riemannian_diffusion.score.model import ScoreModel, entries_of, even_fractions


class DiffusionScore(ScoreModel):
    """The score of a diffusers denoiser at one timestep, `score = -eps / sigma`.

    Any model called like `UNet2DModel` (`model(x, t)`) or `UNet2DConditionModel` (`model(x, t,
    encoder_hidden_states)`) and any scheduler with `alphas_cumprod` and epsilon, velocity or sample
    prediction; or a scheduler of a rectified flow, `x_t = (1 - t) x_0 + t eps`, with a model of its
    velocity `eps - x_0` (arXiv 2209.03003). The network runs in its own dtype; points, scores and
    products keep the caller's. Parameters receive no gradient.

    Args:
        model: The denoiser.
        scheduler: Gives `alpha`, `sigma` and the prediction type; it is not stepped.
        timestep: The level: an index into `scheduler.alphas_cumprod`, or of a flow any number
            between 0 and `num_train_timesteps`.
        encoder_hidden_states: `(1, L, C)` prompt embedding for every point, or `(P, L, C)`, a path
            of prompts: the K points of a call then lie at fractions `i / (K - 1)` of it,
            interpolated linearly between its knots. `(B, P, L, C)`: such a path for each of the B
            pairs of `geodesics`.
        negative_hidden_states: The same for the negative prompt, needed by modes "guided" and
            "difference".
        guidance_scale: Weight `g` of mode "guided".
        mode: "conditional" takes `eps = eps_cond`; "guided" takes `eps_neg + g (eps_cond -
            eps_neg)` (classifier-free guidance); "difference" takes `eps_cond - eps_neg`.
        max_batch_size: Largest batch given to the network. Longer calls run in chunks, and their
            reverse pass recomputes one chunk at a time, so memory does not grow with the number of
            points. A model's own `enable_gradient_checkpointing()` saves more, for more time.

    Raises:
        ValueError: If the scheduler has no such levels or an unknown prediction type, the timestep
            is outside them, or prompts and mode disagree.
    """

    def __init__(
        self,
        model: nn.Module,
        scheduler,
        timestep: float,
        *,
        encoder_hidden_states: Tensor | None = None,
        negative_hidden_states: Tensor | None = None,
        guidance_scale: float = 1.0,
        mode: str = "conditional",
        max_batch_size: int | None = None,
    ):
        check_kind(nn.Module, model=model)
        check_finite(timestep=timestep, guidance_scale=guidance_scale)
        timestep, self.alpha, self.sigma, prediction = _level(scheduler, timestep)
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
        if max_batch_size is not None:
            check_whole(1, max_batch_size=max_batch_size)
        for name, prompts in (
            ("encoder_hidden_states", encoder_hidden_states),
            ("negative_hidden_states", negative_hidden_states),
        ):
            if prompts is not None:
                check_tensor(**{name: prompts})
        self.model, self.timestep, self.prediction_type = model, timestep, prediction
        self.encoder_hidden_states = encoder_hidden_states
        self.negative_hidden_states = negative_hidden_states
        self.guidance_scale, self.mode = guidance_scale, mode
        self.max_batch_size = max_batch_size

    def __call__(self, x: Tensor) -> Tensor:
        """The score at each point, `(K, *shape) -> (K, *shape)`."""
        chunks = self._chunks(x)
        differentiated = torch.is_grad_enabled() and x.requires_grad
        if differentiated and (len(chunks) > 1 or _is_checkpointing(self.model)):
            parts = [_Recomputed.apply(points, function, self.model) for function, points in chunks]
        else:
            parts = [function(points) for function, points in chunks]
        return torch.cat(parts)

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """`J(x) v` in forward mode, whatever attention the model runs with.

        Memory is linear in the number of tokens.
        """
        with frozen(self.model), _uncompiled(), forward_mode_attention(self.model):
            tangents = v.contiguous().split(self.max_batch_size or len(v))
            pairs = zip(self._chunks(x.contiguous()), tangents, strict=True)
            return torch.cat([torch.func.jvp(f, (points,), (t,))[1] for (f, points), t in pairs])

    def vjp(self, x: Tensor, w: Tensor) -> Tensor:
        """`J(x)^T w` in reverse mode."""
        cotangents = w.split(self.max_batch_size or len(w))
        pairs = zip(self._chunks(x), cotangents, strict=True)
        with frozen(self.model), _uncompiled():
            return torch.cat([torch.func.vjp(f, points)[1](c)[0] for (f, points), c in pairs])

    @property
    def rounding(self) -> float:
        """Relative rounding in the network's dtype."""
        return torch.finfo(dtype_of(self.model)).eps

    def along(self, u: Tensor, pairs: Tensor | None = None) -> DiffusionScore:
        """The model under the prompts at fractions `u` of the paths of these pairs."""
        positive = _prompts_at(self.encoder_hidden_states, u, pairs, "encoder_hidden_states")
        negative = _prompts_at(self.negative_hidden_states, u, pairs, "negative_hidden_states")
        if positive is self.encoder_hidden_states and negative is self.negative_hidden_states:
            return self
        placed = copy.copy(self)
        placed.encoder_hidden_states, placed.negative_hidden_states = positive, negative
        return placed

    def points_at_once(self, x: Tensor) -> int:
        """`max_batch_size` of them."""
        return min(self.max_batch_size or len(x), len(x))

    def use_less_memory(self, x: Tensor) -> bool:
        """Halve the batches given to the network, with a warning; False where they are single."""
        size = self.points_at_once(x)
        if size <= 1:
            return False
        self.max_batch_size = size // 2
        warnings.warn(
            f"Out of memory with {size} points at once: going on with `max_batch_size="
            f"{self.max_batch_size}`. Give that to save the failed attempt.",
            stacklevel=2,
        )
        return True

    def _chunks(self, x: Tensor) -> list[tuple[Callable[[Tensor], Tensor], Tensor]]:
        size = self.max_batch_size or max(1, len(x))
        points, placed = x.split(size), self.along(even_fractions(len(x)))

        def parts(prompts: Tensor | None) -> Sequence[Tensor | None]:
            if prompts is None or len(prompts) == 1:
                return [prompts] * len(points)
            return prompts.split(size)

        def bind(cond: Tensor | None, neg: Tensor | None) -> Callable[[Tensor], Tensor]:
            return lambda part: self._score(part, cond, neg)

        prompts = parts(placed.encoder_hidden_states), parts(placed.negative_hidden_states)
        return [(bind(c, n), p) for c, n, p in zip(*prompts, points, strict=True)]

    def _score(self, x: Tensor, conditional: Tensor | None, negative: Tensor | None) -> Tensor:
        with frozen(self.model):
            noise = self._noise(x, conditional)
            if self.mode != "conditional":
                unconditional = self._noise(x, negative)
                noise = noise - unconditional
                if self.mode == "guided":
                    noise = unconditional + self.guidance_scale * noise
        return -noise / self.sigma

    def _noise(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        dtype = dtype_of(self.model)
        timestep = torch.tensor(self.timestep, device=x.device)
        prompt = {}
        if hidden is not None:
            hidden = hidden.to(device=x.device, dtype=dtype)
            prompt["encoder_hidden_states"] = hidden.expand(len(x), -1, -1)
        output = self.model(x.to(dtype), timestep, **prompt, return_dict=False)[0]
        if output.shape != x.shape:
            raise ValueError(
                f"The model turned {tuple(x.shape)} into {tuple(output.shape)}: a score needs "
                "equal shapes (models that also predict a variance, or are given a mask, are not "
                "supported)."
            )
        return _NOISE_FROM[self.prediction_type](output.to(x.dtype), x, self.alpha, self.sigma)


def is_flow(scheduler) -> bool:
    """Whether a scheduler's levels are those of a rectified flow."""
    config = getattr(scheduler, "config", {})
    return "shift" in config and not hasattr(scheduler, "alphas_cumprod")


def _level(scheduler, timestep: float) -> tuple[float, float, float, str]:
    """The timestep, its factors of data and noise, and what the network predicts."""
    if is_flow(scheduler):
        num = scheduler.config.num_train_timesteps
        if not 0 < timestep < num:
            raise ValueError(
                f"`timestep` of a flow must lie between 0 and {num}, where there are both data and "
                f"noise, but got {timestep}."
            )
        sigma = float(timestep) / num
        return float(timestep), 1 - sigma, sigma, "flow_prediction"
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            "`scheduler` must have `alphas_cumprod` (a variance-preserving schedule such as "
            "DDIMScheduler's) or the levels of a rectified flow, but got "
            f"{type(scheduler).__name__}."
        )
    prediction = getattr(scheduler.config, "prediction_type", "epsilon")
    known = [name for name in _NOISE_FROM if name != "flow_prediction"]
    if prediction not in known:
        raise ValueError(
            f"The scheduler's `prediction_type` must be one of {known}, but got {prediction!r}."
        )
    timestep, num = int(timestep), len(scheduler.alphas_cumprod)
    if not 0 <= timestep < num:
        raise ValueError(f"`timestep` must be in [0, {num - 1}], but got {timestep}.")
    abar = float(scheduler.alphas_cumprod[timestep])
    if not 0 < abar < 1:
        raise ValueError(
            f"`timestep` {timestep} has alphas_cumprod {abar}: a level needs both signal and noise."
        )
    return timestep, abar**0.5, (1 - abar) ** 0.5, prediction


_NOISE_FROM: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "epsilon": lambda output, x, alpha, sigma: output,
    "v_prediction": lambda output, x, alpha, sigma: alpha * output + sigma * x,
    "sample": lambda output, x, alpha, sigma: (x - alpha * output) / sigma,
    "flow_prediction": lambda output, x, alpha, sigma: x + alpha * output,
}


def _prompts_at(
    prompts: Tensor | None, u: Tensor, pairs: Tensor | None, name: str
) -> Tensor | None:
    """Prompt embeddings at places on paths of prompts `(K, L, C)`; one for all as it is."""
    if prompts is None:
        return None
    if prompts.ndim not in (3, 4):
        raise ValueError(
            f"`{name}` must be (1, L, C), (P, L, C) or (B, P, L, C), "
            f"but got {tuple(prompts.shape)}."
        )
    if prompts.ndim == 3 and len(prompts) == 1:
        return prompts
    if u.isnan().any():
        raise ValueError(
            f"`{name}` is a path of {prompts.shape[-3]} prompts: one point alone has no place on "
            "it."
        )
    paths = prompts[None] if prompts.ndim == 3 else prompts
    which = entries_of(paths, None if prompts.ndim == 3 else pairs, name).expand(len(u))
    place = u * (paths.shape[1] - 1)
    left = place.long().clamp(max=max(0, paths.shape[1] - 2))
    right = (left + 1).clamp(max=paths.shape[1] - 1)
    weight = (place - left).to(prompts)[:, None, None]
    which, left, right = (index.to(prompts.device) for index in (which, left, right))
    return torch.lerp(paths[which, left], paths[which, right], weight)


class _Recomputed(torch.autograd.Function):
    """A function of points whose reverse pass evaluates it again.

    Unlike `torch.utils.checkpoint` it keeps the parameters frozen for the whole reverse pass, in
    which a network with checkpoints of its own evaluates its blocks once more.
    """

    @staticmethod
    def forward(ctx, points: Tensor, function: Callable[[Tensor], Tensor], model: nn.Module):
        ctx.save_for_backward(points)
        ctx.function, ctx.model, ctx.kind = function, model, points.device.type
        ctx.cast = torch.is_autocast_enabled(ctx.kind), torch.get_autocast_dtype(ctx.kind)
        return function(points)

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent: Tensor):
        (points,), (enabled, dtype) = ctx.saved_tensors, ctx.cast
        points = points.detach().requires_grad_()
        with frozen(ctx.model), torch.enable_grad():
            with torch.autocast(ctx.kind, dtype, enabled):
                value = ctx.function(points)
            return torch.autograd.grad(value, points, cotangent)[0], None, None


def _is_checkpointing(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _uncompiled() -> AbstractContextManager:
    """Compiled functions run as they were written: torch.func's transforms reject them."""
    return torch.compiler.set_stance("force_eager")


def dtype_of(model: nn.Module) -> torch.dtype:
    """What a model computes in, which its first parameter may be stored narrower than."""
    dtype = getattr(model, "dtype", None)
    if isinstance(dtype, torch.dtype):
        return dtype
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient inside; afterwards each is as it was.

    Entered before torch.func's transforms: inside them no flag can be changed.
    """
    changed = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in changed:
            parameter.requires_grad = False
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad = True
