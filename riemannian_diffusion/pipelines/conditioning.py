"""What networks are conditioned on besides the noisy point, as one tensor.

A path of prompts is interpolated linearly, and so is all else that belongs to a keyframe: pooled
embeddings, embeddings of images for IP-Adapters. Packed into further rows of the prompt's
embedding, all of it follows the path as one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from riemannian_diffusion.adaptation import LoraMix
from riemannian_diffusion.score.diffusion import dtype_of

Conditions = dict[str, Tensor]


def pack(conditions: Conditions) -> tuple[Tensor, dict[str, torch.Size]]:
    """Conditions as one tensor.

    Args:
        conditions: `(P, *shape)` each, P the same or 1; the first is the prompt's `(P, L, C)`.

    Returns:
        `(P, R, C)`, and each one's shape.
    """
    num = max(len(value) for value in conditions.values())
    hidden = next(iter(conditions.values()))
    width, rows = hidden.shape[-1], []
    for value in conditions.values():
        flat = value.to(hidden).expand(num, *value.shape[1:]).flatten(1)
        flat = nn.functional.pad(flat, (0, -flat.shape[1] % width))
        rows.append(flat.view(num, -1, width))
    return torch.cat(rows, 1), {name: value.shape[1:] for name, value in conditions.items()}


def unpack(packed: Tensor, shapes: dict[str, torch.Size]) -> Conditions:
    """The conditions again, `(K, *shape)` each, of their packing `(K, R, C)`."""
    conditions, start = {}, 0
    for name, shape in shapes.items():
        num_rows = -(-shape.numel() // packed.shape[-1])
        flat = packed[:, start : start + num_rows].flatten(1)
        conditions[name] = flat[:, : shape.numel()].view(-1, *shape)
        start += num_rows
    return conditions


class Denoiser(nn.Module):
    """A network called like `UNet2DConditionModel`, whatever it is conditioned on.

    Args:
        network: The network.
        predict: A point `(K, *shape)`, a timestep and its conditions -> the prediction.
        shapes: The conditions' shapes, as `pack` gives them.
        mix: LoRAs of the network, whose weights are the condition "lora_weights".
    """

    def __init__(
        self,
        network: nn.Module,
        predict: Callable[[Tensor, Tensor, Conditions], Tensor],
        shapes: dict[str, torch.Size],
        mix: LoraMix | None = None,
    ):
        super().__init__()
        self.network, self.predict, self.shapes, self.mix = network, predict, shapes, mix

    @property
    def dtype(self) -> torch.dtype:
        """The network's."""
        return dtype_of(self.network)

    def forward(
        self, x: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """The prediction alone in a tuple."""
        conditions = unpack(encoder_hidden_states, self.shapes)
        if self.mix is None:
            return (self.predict(x, timestep, conditions),)
        with self.mix.mixing(conditions.pop("lora_weights")):
            return (self.predict(x, timestep, conditions),)
