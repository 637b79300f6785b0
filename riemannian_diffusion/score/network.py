"""The score of a network under conditions, at one noise level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from riemannian_diffusion.arguments import check_finite
from riemannian_diffusion.batches import BatchSize
from riemannian_diffusion.events import network_called
from riemannian_diffusion.score.attention import ReadableVectors, forward_mode_attention
from riemannian_diffusion.score.conditions import Conditions, Named, values_at
from riemannian_diffusion.score.model import ScoreModel, outside_inference, pulled, pushed
from riemannian_diffusion.score.weights import Layers
from riemannian_diffusion.score.where import Where

MODES = ("conditional", "guided", "difference")

# Output of a network at points (K, *shape), from a timestep and conditions (K, ...) by name. An
# object with a method `guide(positive, negative, scale)` sets its own rule of guidance.
Predict = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]


class Level(NamedTuple):
    """One noise level of a model.

    Attributes:
        timestep: The timestep that the network receives.
        alpha: Factor of the clean data.
        sigma: Standard deviation of the noise.
        prediction_type: What the network predicts: "epsilon", "v_prediction", "sample" or
            "flow_prediction", the velocity `eps - x_0` of a rectified flow.

    Examples:
        >>> from riemannian_diffusion.score import Level
        >>> Level(300, alpha=0.8, sigma=0.6, prediction_type='epsilon').sigma
        0.6
    """

    timestep: float
    alpha: float
    sigma: float
    prediction_type: str


NOISE_FROM: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "epsilon": lambda output, x, alpha, sigma: output,
    "v_prediction": lambda output, x, alpha, sigma: alpha * output + sigma * x,
    "sample": lambda output, x, alpha, sigma: (x - alpha * output) / sigma,
    "flow_prediction": lambda output, x, alpha, sigma: x + alpha * output,
}


class NetworkScore(ScoreModel):
    """The score `-eps / sigma` of a network under fixed conditions at one noise level.

    The network runs in its own dtype. Points, scores and products keep the dtype of the caller.
    Parameters receive no gradient.

    Args:
        network: The network.
        predict: A pure function `(x, timestep, conditions) -> prediction` that calls the network.
        level: The noise level.
        conditions: The conditions of the network along the path.
        guidance_scale: Weight `g` of mode "guided".
        mode: "conditional" takes `eps = eps_cond`; "guided" takes `eps_neg + g (eps_cond -
            eps_neg)` (classifier-free guidance); "difference" takes `eps_cond - eps_neg`.
        max_batch_size: Largest batch given to the network; None for no limit. Longer calls run in
            chunks, and the reverse pass recomputes one chunk at a time. Memory then does not grow
            with the number of points. If memory runs out, batches are halved. A `BatchSize` shares
            this with other scores.

    Raises:
        ValueError: If the mode is unknown, or needs negative conditions that are missing, or the
            weights were made in inference mode.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import Conditions
        >>> from riemannian_diffusion.score import Level, NetworkScore
        >>> network = torch.nn.Linear(2, 2)
        >>> level = Level(300, alpha=0.8, sigma=0.6, prediction_type='epsilon')
        >>> score = NetworkScore(network, lambda x, t, _: network(x), level, Conditions({}))
        >>> x = torch.zeros(3, 2)
        >>> torch.allclose(score(x), -network(x) / 0.6)
        True
    """

    def __init__(
        self,
        network: nn.Module,
        predict: Predict,
        level: Level,
        conditions: Conditions,
        *,
        guidance_scale: float = 1.0,
        mode: str = "conditional",
        max_batch_size: int | BatchSize | None = None,
    ):
        check_finite(guidance_scale=guidance_scale)
        Layers(network).check()
        if mode not in MODES:
            raise ValueError(f"`mode` must be one of {MODES}, but got {mode!r}.")
        if mode != "conditional" and conditions.negative is None:
            raise ValueError(
                f"mode={mode!r} needs negative conditions, such as those of a negative prompt, "
                "beside the positive ones."
            )
        self.network, self.predict, self.level = network, predict, level
        self.alpha, self.sigma = level.alpha, level.sigma
        self.conditions, self.mode = conditions, mode
        self.guidance_scale = float(guidance_scale)
        if not isinstance(max_batch_size, BatchSize):
            max_batch_size = BatchSize(max_batch_size)
        self.batch_size = max_batch_size

    @property
    def max_batch_size(self) -> int | None:
        """Largest batch given to the network; None for no limit."""
        return self.batch_size.largest

    @max_batch_size.setter
    def max_batch_size(self, size: int | None) -> None:
        self.batch_size = BatchSize(size)

    def __call__(self, x: Tensor, where: Where | None = None) -> Tensor:
        """The score at each point, `(K, *shape) -> (K, *shape)`."""
        layers = Layers(self.network)
        if _is_transformed(x):
            with layers.uncheckpointed():
                return self._in_batches(
                    lambda chunk: self._at(layers, where, chunk)(x[chunk]), x, where
                )
        differentiated = torch.is_grad_enabled() and x.requires_grad

        def call(chunk: slice) -> Tensor:
            function, points = self._at(layers, where, chunk), x[chunk]
            if differentiated and (layers.checkpointing or len(points) < len(x)):
                return _Recomputed.apply(points, function, layers)
            return function(points)

        return self._in_batches(call, x, where)

    def jvp(self, x: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The product `J(x) v` in forward mode, with any attention of the model.

        Memory is linear in the number of tokens.
        """
        layers = Layers(self.network)
        push = _pushed_by_dual_numbers if layers.moves_weights else pushed

        def call(chunk: slice) -> Tensor:
            return push(self._at(layers, where, chunk), x[chunk], v[chunk])

        plain = layers.uncheckpointed()  # so that a reverse pass can follow
        with layers.frozen(), plain, _uncompiled(), forward_mode_attention(self.network):
            return self._in_batches(call, x, where)

    def vjp(self, x: Tensor, w: Tensor, where: Where | None = None) -> Tensor:
        """The product `J(x)^T w` in reverse mode."""
        layers, inside = Layers(self.network), any(map(_is_transformed, (x, w)))
        by_autograd = layers.moves_weights or (layers.checkpointing and not inside)
        pull = _pulled_by_autograd if by_autograd else pulled

        def call(chunk: slice) -> Tensor:
            return pull(self._at(layers, where, chunk), x[chunk], w[chunk])

        plain = layers.uncheckpointed() if inside else nullcontext()
        with layers.frozen(), plain, _uncompiled(), ReadableVectors():
            return self._in_batches(call, x, where)

    @property
    def rounding(self) -> float:
        """Relative rounding error in the network's dtype."""
        return torch.finfo(Layers(self.network).dtype).eps

    def points_at_once(self, x: Tensor) -> int:
        """The smaller of the number of points and `max_batch_size`."""
        return self.batch_size.of(len(x))

    def use_less_memory(self, x: Tensor) -> bool:
        """Halve the batches; return False if they hold one point already."""
        return self.batch_size.halve(self.points_at_once(x))

    def _in_batches(
        self, call: Callable[[slice], Tensor], x: Tensor, where: Where | None
    ) -> Tensor:
        """The results `(K, *shape)` of a function of consecutive slices of the points."""
        if where is not None and len(where) != len(x):
            raise ValueError(
                f"`where` must have a place for each of {len(x)} points, but has {len(where)}."
            )
        pieces = list(self.batch_size.run(len(x), call)) or [torch.zeros_like(x)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _at(self, layers: Layers, where: Where | None, chunk: slice) -> Callable[[Tensor], Tensor]:
        """The score as a function of the points of a chunk."""
        places = None if where is None else where[chunk]
        return lambda points: self._score(layers, points, places)

    def _score(self, layers: Layers, x: Tensor, where: Where | None) -> Tensor:
        noise_from = NOISE_FROM[self.level.prediction_type]

        def noise(output: Tensor) -> Tensor:
            return noise_from(output, x, self.alpha, self.sigma)

        dtype, freeze = layers.dtype, layers.frozen() if torch.is_grad_enabled() else nullcontext()
        with freeze, layers.kept():
            positive = self._output(x, where, self.conditions.positive, dtype)
            if self.mode == "conditional":
                return -noise(positive) / self.sigma
            negative = self._output(x, where, self.conditions.negative or {}, dtype)
        if self.mode == "difference":
            return (noise(negative) - noise(positive)) / self.sigma
        guide = getattr(self.predict, "guide", linear_guidance)
        return -noise(guide(positive, negative, self.guidance_scale)) / self.sigma

    def _output(self, x: Tensor, where: Where | None, named: Named, dtype: torch.dtype) -> Tensor:
        conditions = {}
        for name, value in values_at(named, where, len(x)).items():
            value = value.to(x.device)
            value = value.to(dtype) if value.is_floating_point() else value
            conditions[name] = value.expand(len(x), *value.shape[1:])
        network_called()
        timestep = torch.full((), self.level.timestep, device=x.device)  # copies nothing there
        output = self.predict(x.to(dtype), timestep, conditions)
        if output.ndim == x.ndim and output.shape[1] == 2 * x.shape[1]:
            output = output[:, : x.shape[1]]  # the other half is a variance
        if output.shape != x.shape:
            raise ValueError(
                f"The model turned {tuple(x.shape)} into {tuple(output.shape)}: a score needs "
                "equal shapes, or twice the channels if the model also predicts a variance. Models "
                "that are given a mask are not supported."
            )
        return output.to(x.dtype)


def linear_guidance(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of two predictions (arXiv 2207.12598)."""
    return negative + scale * (positive - negative)


class _Recomputed(torch.autograd.Function):
    """A function of points that the reverse pass evaluates again.

    Unlike `torch.utils.checkpoint`, it keeps the parameters frozen for the whole reverse pass. A
    network with its own gradient checkpointing evaluates its blocks again in that pass.
    """

    @staticmethod
    def forward(ctx, points: Tensor, function: Callable[[Tensor], Tensor], layers: Layers):
        ctx.save_for_backward(points)
        ctx.function, ctx.layers, ctx.kind = function, layers, points.device.type
        ctx.cast = torch.is_autocast_enabled(ctx.kind), torch.get_autocast_dtype(ctx.kind)
        return function(points)

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent: Tensor):
        (points,), (enabled, dtype) = ctx.saved_tensors, ctx.cast
        points = points.detach().requires_grad_()
        with ctx.layers.frozen(), torch.enable_grad():
            with torch.autocast(ctx.kind, dtype, enabled):
                value = ctx.function(points)
            return torch.autograd.grad(value, points, cotangent)[0], None, None


def _pushed_by_dual_numbers(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """The product `J(x) v` as in `pushed`, without the transforms of `torch.func`.

    A network cannot move or cast its weights inside these transforms.
    """
    with torch.inference_mode(False), fwAD.dual_level():
        primal, tangent = (outside_inference(one).contiguous() for one in (x, v))
        value = function(fwAD.make_dual(primal, tangent))
        return fwAD.unpack_dual(value).tangent


def _pulled_by_autograd(function: Callable[[Tensor], Tensor], x: Tensor, w: Tensor) -> Tensor:
    """The product `J(x)^T w` as in `pulled`, without the transforms of `torch.func`.

    These transforms do not support hooks on saved tensors, on which gradient checkpointing relies.
    """
    with torch.inference_mode(False), torch.enable_grad():
        points = outside_inference(x).detach().requires_grad_()
        return torch.autograd.grad(function(points), points, outside_inference(w))[0]


def _is_transformed(x: Tensor) -> bool:
    """Whether a tensor belongs to a transform of torch.func around this call."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def _uncompiled() -> AbstractContextManager:
    """Run compiled functions uncompiled, because the transforms of torch.func reject them."""
    return torch.compiler.set_stance("force_eager")
