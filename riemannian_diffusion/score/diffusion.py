"""The score of a denoiser of diffusers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from riemannian_diffusion.arguments import check_kind, check_tensor
from riemannian_diffusion.score.calling import PROMPT, Call
from riemannian_diffusion.score.conditions import Condition, Conditions
from riemannian_diffusion.score.network import MODES, NetworkScore
from riemannian_diffusion.score.schedulers import level_at, num_timesteps


class DiffusionScore(NetworkScore):
    """The score of a diffusers denoiser at one timestep, `score = -eps / sigma`.

    The classes of diffusers in `riemannian_diffusion.score.calling.CALLED` are called as their own
    pipelines call them, with their names of conditions, their time and their sign. Points have the
    shape that the class takes: `(K, C, h, w)`, or tokens `(K, T, C)` for classes such as
    `FluxTransformer2DModel`. Any other module is called
    `model(x, timestep, **conditions, return_dict=False)`.

    The scheduler has `alphas_cumprod` and epsilon, velocity or sample prediction. Or it is the
    scheduler of a rectified flow, `x_t = (1 - t) x_0 + t eps`, and the model predicts the velocity
    `eps - x_0` (arXiv 2209.03003). The network runs in its own dtype. Points, scores and products
    keep the dtype of the caller. Parameters receive no gradient.

    Args:
        model: The denoiser.
        scheduler: The scheduler, which gives `alpha`, `sigma` and the prediction type. It is not
            changed.
        timestep: Timestep of the noise level, in [0, `len(scheduler.alphas_cumprod) - 1`], or for a
            flow between 0 and `num_train_timesteps`.
        encoder_hidden_states: Prompt embeddings. `(1, L, C)` is one prompt for all points.
            `(P, L, C)` are prompts at P evenly spaced knots of a path, with linear interpolation
            between them. `(B, P, L, C)` are such knots for each of the B pairs of `geodesics`. If
            there are several, calls need `where`.
        negative_hidden_states: Embeddings of the negative prompts, with the shapes of
            `encoder_hidden_states`. The modes "guided" and "difference" need them.
        conditions: Further tensors by the network's own names of its arguments, such as
            `pooled_projections`, or of the entries of its `added_cond_kwargs`. `(1, ...)` is one
            value for all points, `(P, ...)` are values at P knots, and a `Condition` says more.
            Floating-point values are interpolated. Masks (names with "mask", or boolean) and
            lengths (names that end in "lens") are combined: a point between two knots has the
            larger one. Other whole numbers must be the same at all knots. `img_ids`, `txt_ids` and
            `position_ids` of tokens are `(T, axes)`, as the network takes them. Classes that change
            along the path are floating-point `class_labels`, the weights `(P, num_classes)` of
            rows in the network's table of classes.
        negative_conditions: The same under the negative prompt. The modes "guided" and
            "difference" need all that `conditions` has, except the places of tokens.
        guidance_scale: Weight `g` of mode "guided".
        mode: "conditional" takes `eps = eps_cond`; "guided" takes `eps_neg + g (eps_cond -
            eps_neg)` (classifier-free guidance); "difference" takes `eps_cond - eps_neg`.
        max_batch_size: Largest batch given to the network; None for no limit. Longer calls run in
            chunks, and the reverse pass recomputes one chunk at a time. Memory then does not grow
            with the number of points. If memory runs out, batches are halved.
            `model.enable_gradient_checkpointing()` saves more memory and takes more time.

    Raises:
        ValueError: If the class of the model is refused, or lacks a condition, or does not take
            one; the scheduler has no such levels or an unknown prediction type; the timestep is out
            of range; or the mode needs negative conditions that are missing.

    Examples:
        >>> import torch
        >>> from diffusers import DDIMScheduler, UNet2DModel
        >>> unet = UNet2DModel(
        ...     sample_size=8,
        ...     block_out_channels=(8,),
        ...     down_block_types=("DownBlock2D",),
        ...     up_block_types=("UpBlock2D",),
        ...     norm_num_groups=4,
        ... )
        >>> from riemannian_diffusion import DiffusionScore
        >>> score = DiffusionScore(unet, DDIMScheduler(), 400)
        >>> tuple(score.denoise(torch.randn(2, 3, 8, 8)).shape)
        (2, 3, 8, 8)
    """

    def __init__(
        self,
        model: nn.Module,
        scheduler,
        timestep: float,
        *,
        encoder_hidden_states: Tensor | None = None,
        negative_hidden_states: Tensor | None = None,
        conditions: Mapping[str, Tensor | Condition] | None = None,
        negative_conditions: Mapping[str, Tensor | Condition] | None = None,
        guidance_scale: float = 1.0,
        mode: str = "conditional",
        max_batch_size: int | None = None,
    ):
        check_kind(nn.Module, model=model)
        if mode not in MODES:
            raise ValueError(f"`mode` must be one of {MODES}, but got {mode!r}.")
        level = level_at(scheduler, timestep)
        self.model, self._call = model, Call(model, num_timesteps(scheduler))
        positive = _prompt(encoder_hidden_states, "encoder_hidden_states")
        negative = _prompt(negative_hidden_states, "negative_hidden_states")
        positive |= self._named(conditions, "conditions")
        negative |= self._named(negative_conditions, "negative_conditions")
        if mode != "conditional":
            shared = {n: c for n, c in positive.items() if self._call.is_unbatched(n)}
            negative = shared | negative
            if not positive or positive.keys() != negative.keys():
                raise ValueError(
                    f"mode={mode!r} needs both `encoder_hidden_states` and "
                    "`negative_hidden_states`, and `negative_conditions` with the names of "
                    f"`conditions`, but got {sorted(positive)} and {sorted(negative)}."
                )
        self._call.check(set(positive))
        super().__init__(
            model,
            self._call,
            level,
            Conditions(positive, negative if mode != "conditional" else None),
            guidance_scale=guidance_scale,
            mode=mode,
            max_batch_size=max_batch_size,
        )

    def _named(
        self, given: Mapping[str, Tensor | Condition] | None, argument: str
    ) -> dict[str, Condition]:
        """Further conditions by name."""
        if given is None:
            return {}
        check_kind(Mapping, **{argument: given})
        return {
            name: value
            if isinstance(value, Condition)
            else _condition(value, f"{argument}[{name!r}]", name, self._call.is_unbatched(name))
            for name, value in given.items()
        }


def _prompt(value: Tensor | None, argument: str) -> dict[str, Condition]:
    """Prompt embeddings as a condition."""
    if value is None:
        return {}
    check_tensor(**{argument: value})
    if value.ndim not in (3, 4):
        raise ValueError(
            f"`{argument}` must be (1, L, C), (P, L, C) or (B, P, L, C), but got "
            f"{tuple(value.shape)}."
        )
    return {PROMPT: Condition(value[None] if value.ndim == 3 else value)}


def _condition(value: Tensor, argument: str, name: str, unbatched: bool) -> Condition:
    """A further condition, of the kind that its name and its dtype say."""
    check_kind(Tensor, **{argument: value})
    if unbatched:
        return Condition(value[None, None], "fixed")
    if value.ndim == 0 or len(value) == 0:
        raise ValueError(
            f"`{argument}` must be (1, ...) or (P, ...), but got {tuple(value.shape)}."
        )
    if value.dtype == torch.bool or "mask" in name or name.endswith("lens"):
        return Condition.of(value, "mask")
    if value.is_floating_point():
        return Condition.of(value)
    if not torch.equal(value, value[:1].expand_as(value)):
        raise ValueError(
            f"`{argument}` has whole numbers, which cannot be interpolated: give one value for all "
            "knots."
        )
    return Condition.of(value[:1], "fixed")
