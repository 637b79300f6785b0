"""Stable Diffusion 1 in the original layout, by the renaming rules of its authors' script.

The rules are those of scripts/convert_diffusers_to_original_stable_diffusion.py. They are
written in the other direction than the loader that they test, and independently of it.
"""

from __future__ import annotations

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from models import tokenizer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.resnets.1": "middle_block.2",
}
VAE = {"mid_block.attentions.0": "mid.attn_1", "conv_norm_out": "norm_out"}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
for i in range(4):
    for j in range(2):
        UNET[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{3 * i + j + 1}.0"
        UNET[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{3 * i + j + 1}.1"
        VAE[f"encoder.down_blocks.{i}.resnets.{j}"] = f"encoder.down.{i}.block.{j}"
    for j in range(3):
        UNET[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{3 * i + j}.0"
        UNET[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{3 * i + j}.1"
        VAE[f"decoder.up_blocks.{i}.resnets.{j}"] = f"decoder.up.{3 - i}.block.{j}"
    UNET[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{3 * i + 3}.0.op"
    UNET[f"up_blocks.{i}.upsamplers.0"] = f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}"
    VAE[f"encoder.down_blocks.{i}.downsamplers.0"] = f"encoder.down.{i}.downsample"
    VAE[f"decoder.up_blocks.{i}.upsamplers.0"] = f"decoder.up.{3 - i}.upsample"
for i in range(2):
    for half in ("encoder", "decoder"):
        VAE[f"{half}.mid_block.resnets.{i}"] = f"{half}.mid.block_{i + 1}"


def renamed(name: str, rules: dict[str, str]) -> str:
    """A name with the longest part that has a rule replaced."""
    for part in sorted(rules, key=len, reverse=True):
        if f"{part}." in name:
            return name.replace(part, rules[part])
    return name


def original(parts: dict) -> dict[str, Tensor]:
    """The weights of Stable Diffusion 1 under their original names."""
    found = {}
    for name, value in parts["unet"].state_dict().items():
        new = renamed(name, UNET)
        found["model.diffusion_model." + (renamed(new, RESNET) if "resnets" in name else new)] = (
            value
        )
    for name, value in parts["vae"].state_dict().items():
        new = renamed(name, VAE).replace("conv_shortcut", "nin_shortcut")
        if "attentions" in name:
            new = renamed(new, ATTENTION)
            value = value[:, :, None, None] if value.ndim == 2 else value
        found["first_stage_model." + new] = value
    for name, value in parts["text_encoder"].state_dict().items():
        new = "text_model." + name.removeprefix("text_model.")
        found["cond_stage_model.transformer." + new] = value
    return {name: value.contiguous() for name, value in found.items()}


def parts_of_version_1() -> dict:
    """Components with the blocks of Stable Diffusion 1, each of 4 or 8 channels."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 4, 8, 8),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=4,
    )
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    parts: dict[str, nn.Module] = {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(config)}
    return {
        **{name: module.eval() for name, module in parts.items()},
        "tokenizer": tokenizer(),
        "scheduler": DDIMScheduler(clip_sample=False),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
