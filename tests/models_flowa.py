"""Tiny components of Flux.2, Chroma and AuraFlow."""

from __future__ import annotations

import models
import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    AutoencoderKLFlux2,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    UMT5Config,
    UMT5EncoderModel,
)

CHAT = """{%- for message in messages -%}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}
{%- endfor -%}"""
"""A template of chats."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 1024,
}
"""Options of tiny language models; their depth is that which the pipelines read."""


def chat_tokenizer() -> Qwen2TokenizerFast:
    """A tokenizer of chats that spells out every text."""
    vocab = {token: i for i, token in enumerate((*SPECIAL, *sorted(ByteLevel.alphabet())))}
    return Qwen2TokenizerFast(vocab=vocab, merges=[], chat_template=CHAT)


def flux_2_parts(width: int, guidance_embeds: bool) -> dict:
    """The network, the scheduler and the autoencoder of Flux.2, for embeddings of size `width`."""
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=width,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    vae.bn.running_mean.uniform_(-0.1, 0.1)
    vae.bn.running_var.uniform_(0.01, 0.1)
    return {
        "transformer": transformer.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": vae.eval(),
    }


def flux_2(guidance_embeds: bool = True) -> dict:
    """Components of Flux.2 [dev]."""
    parts, words = flux_2_parts(3 * 16, guidance_embeds), chat_tokenizer()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    vision |= {"num_hidden_layers": 1, "image_size": 16, "patch_size": 8, "head_dim": 8}
    config = Mistral3Config(
        text_config={"model_type": "mistral", "vocab_size": len(words), **TEXT}
        | {"num_hidden_layers": 30},
        vision_config={"model_type": "pixtral", **vision},
        image_token_index=SPECIAL.index("[IMG]"),
    )
    return parts | {
        "text_encoder": Mistral3ForConditionalGeneration(config).eval(),
        "tokenizer": PixtralProcessor(PixtralImageProcessor(), words, chat_template=CHAT),
    }


def flux_2_klein(is_distilled: bool = False) -> dict:
    """Components of Flux.2 [klein]."""
    parts, words = flux_2_parts(3 * 16, guidance_embeds=False), chat_tokenizer()
    config = Qwen3Config(vocab_size=len(words), num_hidden_layers=27, **TEXT)
    return parts | {
        "text_encoder": Qwen3ForCausalLM(config).eval(),
        "tokenizer": words,
        "is_distilled": is_distilled,
    }


def chroma() -> dict:
    """Components of Chroma."""
    torch.manual_seed(0)
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    encoder, words = models.t5()
    return {
        "transformer": transformer.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": models.vae(shift_factor=0.05),
        "text_encoder": encoder,
        "tokenizer": words,
    }


def aura_flow() -> dict:
    """Components of AuraFlow."""
    torch.manual_seed(0)
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    )
    _, words = models.t5()
    config = UMT5Config(vocab_size=30, d_model=32, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    return {
        "transformer": transformer.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.73),
        "vae": models.vae(),
        "text_encoder": UMT5EncoderModel(config).eval(),
        "tokenizer": words,
    }
