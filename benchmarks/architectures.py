"""Networks of Stable Diffusion with random weights, and the energy that the papers differentiate.

The cost of a network does not depend on its weights.
"""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from riemannian_diffusion import DiffusionScore, Metric, TangentNormalMetric, demo

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD15 = {"cross_attention_dim": 768}  # everything else has the default of the class
SDXL = {
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
NAMES = ("shipped", "sd15", "sdxl")


class ByProducts(TangentNormalMetric):
    """The tangent-normal metric whose energy uses forward-mode products at midpoints."""

    energy = Metric.energy


class WithSize(nn.Module):
    """The network of SDXL, with zeros for the pooled prompt and for the image size."""

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **options):
        """The output of the network for the arguments of `UNet2DConditionModel`."""
        extra = {"text_embeds": x.new_zeros(len(x), 1280), "time_ids": x.new_zeros(len(x), 6)}
        return self.unet(x, timestep, encoder_hidden_states, added_cond_kwargs=extra, **options)


def score_of(
    name: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    timestep: int = 581,
    max_batch_size: int | None = None,
    size: int | None = None,
    seed: int = 0,
) -> tuple[DiffusionScore, tuple[int, ...]]:
    """The score of a network under one random prompt, and the shape of a point.

    Args:
        name: "shipped" (with its trained weights), "sd15" or "sdxl" (with random weights).
        device: Device of the network.
        dtype: Type of the network's weights.
        timestep: Timestep of the score.
        max_batch_size: As in `DiffusionScore`.
        size: Side of the latents; None takes the architecture's own: 16, 64 or 128.
        seed: Seed of the prompt and of random weights.
    """
    generator = torch.Generator().manual_seed(seed)
    if name == "shipped":
        folder = demo.model_path()
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype)
        unet = unet.to(device)
        scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        width, channels = unet.config.cross_attention_dim, unet.config.in_channels
        size = size or unet.config.sample_size
    else:
        config = SD15 if name == "sd15" else SDXL
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            unet = UNet2DConditionModel(**config).to(dtype)
        unet = unet if name == "sd15" else WithSize(unet)
        scheduler, width = DDIMScheduler(**SCHEDULE), config["cross_attention_dim"]
        size, channels = size or (64 if name == "sd15" else 128), 4
    prompt = torch.randn(1, 77, width, generator=generator).to(device)
    score = DiffusionScore(
        unet.eval(),
        scheduler,
        timestep,
        encoder_hidden_states=prompt,
        max_batch_size=max_batch_size,
    )
    return score, (channels, size, size)
