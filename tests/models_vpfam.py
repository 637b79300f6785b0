"""Tiny random models of PixArt, Sana and DiT, and of networks of classes."""

from __future__ import annotations

import string

import models
import torch
from diffusers import (
    AutoencoderDC,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    UNet2DModel,
)
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer


def pixart(sample_size: int, **options) -> dict:
    """Components of PixArt."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=sample_size,
        num_layers=2,
        patch_size=2,
        attention_head_dim=12,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=24,
        caption_channels=32,
        **options,
    )
    encoder, words = models.t5()
    return {
        "transformer": transformer.eval(),
        "scheduler": models.scheduler(),
        "vae": models.vae(),
        "text_encoder": encoder,
        "tokenizer": words,
    }


def pixart_alpha() -> dict:
    """Components of PixArt-alpha, whose network is conditioned on the size of the images."""
    return pixart(128)


def pixart_sigma() -> dict:
    """Components of PixArt-Sigma."""
    return pixart(8, use_additional_conditions=False)


def gemma() -> tuple[Gemma2Model, GemmaTokenizer]:
    """A Gemma encoder and a tokenizer that spells out every text."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *string.ascii_letters]
    words = GemmaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    config = Gemma2Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=4096,
    )
    return Gemma2Model(config).eval(), words


def sana(solver_order: int | None = None) -> dict:
    """Components of Sana; with an order, those of its published versions with DPM-Solver++."""
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
        timestep_scale=0.5,
    )
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.5,
    )
    encoder, words = gemma()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    if solver_order is not None:
        options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
        scheduler = DPMSolverMultistepScheduler(solver_order=solver_order, **options)
    return {
        "transformer": transformer.eval(),
        "scheduler": scheduler,
        "vae": vae.eval(),
        "text_encoder": encoder,
        "tokenizer": words,
    }


def dit(num_classes: int = 6) -> dict:
    """Components of a DiT."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=num_classes,
    )
    names = {0: "cat, tabby", 1: "dog", 2: "fox", 3: "hen", 4: "owl", 5: "cow"}
    return {
        "transformer": transformer.eval(),
        "scheduler": models.scheduler(),
        "vae": models.vae(),
        "id2label": names,
    }


def class_unet(**options) -> UNet2DModel:
    """A network of classes in the space of pixels, `(K, 3, 16, 16)`."""
    unet = models.pixel_unet()
    torch.manual_seed(0)
    return UNet2DModel.from_config(unet.config, **options).eval()
