"""Tiny components of Qwen-Image, Z-Image and Lumina 2."""

from __future__ import annotations

import re
import string

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
)

from riemannian_diffusion.pipelines import (
    GeodesicInterpolationLumina2Pipeline,
    GeodesicInterpolationQwenImagePipeline,
    GeodesicInterpolationZImagePipeline,
)

QWEN_WORDS = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
    "<|im_start|>user\nassistant"
)
"""The words around a prompt of Qwen-Image, 34 tokens before it."""

LUMINA_WORDS = (
    "You are an assistant designed to generate superior images with the superior degree of "
    "image-text alignment based on textual prompts or user prompts. <Prompt Start>"
)
"""The words before a prompt of Lumina 2."""


def words(text: str, **options) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word of a text, and one for each letter elsewhere."""
    pieces = dict.fromkeys(re.findall(r"<\|\w+\|>| ?\w+|\n|[,.:]", text))
    vocab = [("<pad>", 0.0), ("<unk>", -20.0), ("<bos>", 0.0)]
    vocab += [(piece, -1.0) for piece in pieces if len(piece) > 1]
    vocab += [(sign, -9.0) for sign in (*string.ascii_letters, *" ,.:\n<>|_/")]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(Unigram(vocab, unk_id=1)),
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="right",
        **options,
    )


def qwen_image() -> dict:
    """Components of Qwen-Image."""
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.01, -0.02, 0.03, 0.0],
        latents_std=[0.2, 0.3, 0.25, 0.4],
    )
    tokenizer = words(QWEN_WORDS)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [1, 1, 2],
        },
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    vision["out_hidden_size"] = 16
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return {
        "transformer": transformer.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": vae.eval(),
        "text_encoder": Qwen2_5_VLForConditionalGeneration(config).eval(),
        "tokenizer": tokenizer,
    }


def vae() -> AutoencoderKL:
    """An autoencoder for images `(K, 3, 16, 16)`."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=4.0,
        shift_factor=0.05,
    ).eval()


def z_image() -> dict:
    """Components of Z-Image."""
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 16, 16],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)  # they start as zeros
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
    )
    tokenizer = words("<|im_start|>user\n<|im_end|>assistant", chat_template=template)
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    return {
        "transformer": transformer.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": vae(),
        "text_encoder": Qwen3Model(text).eval(),
        "tokenizer": tokenizer,
    }


def lumina_2() -> dict:
    """Components of Lumina 2."""
    torch.manual_seed(0)
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 16, 16),
        cap_feat_dim=16,
    )
    with torch.no_grad():  # let the time matter more than random weights make it
        transformer.time_caption_embed.timestep_embedder.linear_2.weight.mul_(10)
    tokenizer = words(LUMINA_WORDS, bos_token="<bos>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    text = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
    )
    return {
        "transformer": transformer.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": vae(),
        "text_encoder": Gemma2Model(text).eval(),
        "tokenizer": tokenizer,
    }


KINDS = {
    "qwen": (GeodesicInterpolationQwenImagePipeline, QwenImagePipeline, qwen_image),
    "zimage": (GeodesicInterpolationZImagePipeline, ZImagePipeline, z_image),
    "lumina2": (GeodesicInterpolationLumina2Pipeline, Lumina2Pipeline, lumina_2),
}
"""Kind of model -> this library's pipeline, diffusers' own, and a function of its components."""
