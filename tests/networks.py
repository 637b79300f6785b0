"""Tiny networks to read as scores, random points, and derivatives without autograd."""

import torch
from diffusers import UNet2DConditionModel, UNet2DModel


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def tiny_unet() -> UNet2DModel:
    """Random, in float64, of `(K, 2, 8, 8)`, with attention at 4 x 4."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return unet.double().eval()


def tiny_conditional_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return (
        UNet2DConditionModel(
            sample_size=8,
            in_channels=2,
            out_channels=2,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=6,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        .double()
        .eval()
    )


@torch.no_grad()
def central_difference(function, x, v, h):
    """The derivative of `function` at `x` along `v`, of fourth order in `h`."""
    near = (function(x + h * v) - function(x - h * v)) / (2 * h)
    far = (function(x + 2 * h * v) - function(x - 2 * h * v)) / (4 * h)
    return (4 * near - far) / 3
