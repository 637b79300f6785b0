"""The score of any diffusers denoiser."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from riemannian_diffusion.arguments import check_kind, check_tensor
from riemannian_diffusion.score.conditions import Condition, Conditions
from riemannian_diffusion.score.network import MODES, NetworkScore
from riemannian_diffusion.score.schedulers import level_at

PROMPT = "encoder_hidden_states"


class DiffusionScore(NetworkScore):
    """The score of a diffusers denoiser at one timestep, `score = -eps / sigma`.

    The model is called like `UNet2DModel` (`model(x, t)`) or `UNet2DConditionModel` (`model(x, t,
    encoder_hidden_states)`). The scheduler has `alphas_cumprod` and epsilon, velocity or sample
    prediction. Or it is the scheduler of a rectified flow, `x_t = (1 - t) x_0 + t eps`, and the
    model predicts the velocity `eps - x_0` (arXiv 2209.03003). The network runs in its own dtype.
    Points, scores and products keep the dtype of the caller. Parameters receive no gradient.

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
        guidance_scale: Weight `g` of mode "guided".
        mode: "conditional" takes `eps = eps_cond`; "guided" takes `eps_neg + g (eps_cond -
            eps_neg)` (classifier-free guidance); "difference" takes `eps_cond - eps_neg`.
        max_batch_size: Largest batch given to the network; None for no limit. Longer calls run in
            chunks, and the reverse pass recomputes one chunk at a time. Memory then does not grow
            with the number of points. If memory runs out, batches are halved.
            `model.enable_gradient_checkpointing()` saves more memory and takes more time.

    Raises:
        ValueError: If the scheduler has no such levels or an unknown prediction type, the timestep
            is out of range, or the mode needs prompts that are missing.
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
        if mode not in MODES:
            raise ValueError(f"`mode` must be one of {MODES}, but got {mode!r}.")
        prompts = {
            "encoder_hidden_states": encoder_hidden_states,
            "negative_hidden_states": negative_hidden_states,
        }
        if mode != "conditional" and None in prompts.values():
            raise ValueError(f"mode={mode!r} needs both {' and '.join(f'`{n}`' for n in prompts)}.")
        named = {name: _as_condition(value, name) for name, value in prompts.items()}
        positive, negative = named.values()
        super().__init__(
            model,
            self._predict,
            level_at(scheduler, timestep),
            Conditions(positive, negative if mode != "conditional" else None),
            guidance_scale=guidance_scale,
            mode=mode,
            max_batch_size=max_batch_size,
        )
        self.model = model

    def _predict(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        return self.network(x, timestep, **conditions, return_dict=False)[0]


def _as_condition(value: Tensor | None, name: str) -> dict[str, Condition]:
    if value is None:
        return {}
    check_tensor(**{name: value})
    if value.ndim not in (3, 4):
        raise ValueError(
            f"`{name}` must be (1, L, C), (P, L, C) or (B, P, L, C), but got {tuple(value.shape)}."
        )
    return {PROMPT: Condition(value[None] if value.ndim == 3 else value)}
