"""Tiny random models of the real architectures, their pipelines, and test data.

The weights are the same in every call: each model starts from seed 0.
"""

from __future__ import annotations

import inspect
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import models_flowa
import models_flowb
import models_vpfam
import PIL.Image
import torch
from diffusers import (
    AuraFlowPipeline,
    AutoencoderKL,
    ChromaPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    SanaPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection
from peft import LoraConfig
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from riemannian_diffusion.pipelines import (
    GeodesicInterpolationAuraFlowPipeline,
    GeodesicInterpolationChromaPipeline,
    GeodesicInterpolationDiTPipeline,
    GeodesicInterpolationFlux2KleinPipeline,
    GeodesicInterpolationFlux2Pipeline,
    GeodesicInterpolationFluxPipeline,
    GeodesicInterpolationPipeline,
    GeodesicInterpolationPixArtAlphaPipeline,
    GeodesicInterpolationPixArtSigmaPipeline,
    GeodesicInterpolationSanaPipeline,
    GeodesicInterpolationSD3Pipeline,
    GeodesicInterpolationUnconditionalPipeline,
    GeodesicInterpolationXLPipeline,
)

INVERT = {"num_inference_steps": 8, "strength": 0.5}
"""Options of the stage `invert` that take a fraction of a second."""
SOLVE = {"num_frames": 4, "max_evals": 3}
"""Options of the stage `solve` that take a fraction of a second."""
FAST = INVERT | SOLVE
"""Options of a pipeline's call that takes a fraction of a second."""
EXACT = FAST | {"fixed_point_iterations": 8}
"""Options of `morph` with which keyframes are reconstructed up to rounding."""


def flags(**options) -> list[str]:
    """Flags of the command line for the options of a pipeline's call."""
    names = {"num_frames": "frames", "num_inference_steps": "steps"}
    pairs = [(names.get(key, key.replace("_", "-")), value) for key, value in options.items()]
    return [text for name, value in pairs for text in (f"--{name}", str(value))]


# ------------------------------------------------------------------------------ tensors and images


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of random numbers on the CPU."""
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Normal numbers, drawn in float64 and then rounded to `dtype`."""
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    """Uniform numbers in [0, 1), float64."""
    return torch.rand(shape, generator=seeded(seed), dtype=torch.float64)


def vector(*values: float) -> torch.Tensor:
    """The values as a tensor in float64."""
    return torch.tensor(values, dtype=torch.float64)


def embeddings(*shape: int, seed: int = 11) -> torch.Tensor:
    """Random embeddings of prompts, `(*shape, 5, 6)`: 5 tokens of width 6."""
    return 3 * randn(*shape, 5, 6, seed=seed)


def waves(num: int) -> torch.Tensor:
    """Smooth images `(num, 3, 16, 16)` in [0, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
    images = [((k * x).sin() ** 2, (k * y).cos() ** 2, x * y) for k in range(1, num + 1)]
    return torch.stack([torch.stack(image) for image in images])


def to_pil(images: torch.Tensor) -> list[PIL.Image.Image]:
    """Images `(num, 3, H, W)` in [0, 1], rounded down to 8 bits."""
    return [PIL.Image.fromarray(i.permute(1, 2, 0).numpy()) for i in (images * 255).byte()]


# ---------------------------------------------------------------------------------------- networks


def pixel_unet(
    channels: int = 3, *, size: int = 16, dtype: torch.dtype = torch.float32
) -> UNet2DModel:
    """A network without prompts, of `(K, channels, size, size)`, with attention at half size."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return nn.Module.to(unet, dtype).eval()  # the method of diffusers warns


def prompted_unet(
    channels: int = 4,
    *,
    width: int = 16,
    heads: int = 2,
    dtype: torch.dtype = torch.float32,
    **options,
) -> UNet2DConditionModel:
    """A network with prompts, of `(K, channels, 8, 8)`, with embeddings of size `width`."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=heads,
        norm_num_groups=4,
        **options,
    )
    return nn.Module.to(unet, dtype).eval()  # the method of diffusers warns


def prompted_xl_unet(
    *, width: int = 32, pooled: int = 16, dtype: torch.dtype = torch.float32
) -> UNet2DConditionModel:
    """A network of Stable Diffusion XL, which also takes pooled embeddings and image sizes."""
    return prompted_unet(
        width=width,
        dtype=dtype,
        addition_embed_type="text_time",
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=6 * 2 + pooled,
    )


def score_unet() -> UNet2DModel:
    """A network without prompts to read as a score: `(K, 2, 8, 8)`, float64."""
    return pixel_unet(2, size=8, dtype=torch.float64)


def prompted_score_unet() -> UNet2DConditionModel:
    """A network with prompts to read as a score: `(K, 2, 8, 8)`, float64, `embeddings`."""
    return prompted_unet(2, width=6, heads=4, dtype=torch.float64)


# --------------------------------------------------------------------------- other parts of models


def tokenizer() -> CLIPTokenizer:
    """A tokenizer that spells out every text."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=12)


def text_encoder(kind=CLIPTextModel, width: int = 16):
    """A text encoder for `tokenizer`."""
    num = len(tokenizer())
    config = CLIPTextConfig(
        vocab_size=num,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        projection_dim=width,
        bos_token_id=num - 2,
        eos_token_id=num - 1,
        pad_token_id=num - 1,
    )
    return kind(config).eval()


def t5() -> tuple[T5EncoderModel, T5Tokenizer]:
    """A T5 encoder and its tokenizer."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab += [(letter, -3.0) for letter in string.ascii_lowercase]
    config = T5Config(vocab_size=30, d_model=32, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    words = T5Tokenizer(vocab=vocab, extra_ids=0)
    words.model_max_length = 12
    return T5EncoderModel(config).eval(), words


def vae(channels: int = 4, **options) -> AutoencoderKL:
    """An autoencoder for images `(K, 3, 16, 16)`."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=4.0,  # latents of size 1; group norms amplify errors of tiny ones
        **options,
    ).eval()


def scheduler() -> DDIMScheduler:
    """The DDIM scheduler of Stable Diffusion."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


# ------------------------------------------------------------------------- components of pipelines


def stable_diffusion() -> dict:
    """Components of Stable Diffusion."""
    return {
        "unet": prompted_unet(),
        "vae": vae(),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(),
        "scheduler": scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def stable_diffusion_xl() -> dict:
    """Components of Stable Diffusion XL."""
    return {
        "unet": prompted_xl_unet(),
        "vae": vae(),
        "text_encoder": text_encoder(),
        "text_encoder_2": text_encoder(CLIPTextModelWithProjection),
        "tokenizer": tokenizer(),
        "tokenizer_2": tokenizer(),
        "scheduler": scheduler(),
    }


def unconditional(channels: int = 3) -> dict:
    """Components of an unconditional model of pixels."""
    return {
        "unet": pixel_unet(channels),
        "scheduler": DDPMScheduler(beta_end=0.002, clip_sample=False),
    }


def stable_diffusion_3() -> dict:
    """Components of Stable Diffusion 3."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    encoder, words = t5()
    return {
        "transformer": transformer.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": vae(shift_factor=0.05),
        "text_encoder": text_encoder(CLIPTextModelWithProjection),
        "text_encoder_2": text_encoder(CLIPTextModelWithProjection),
        "text_encoder_3": encoder,
        "tokenizer": tokenizer(),
        "tokenizer_2": tokenizer(),
        "tokenizer_3": words,
    }


def flux(guidance_embeds: bool = False) -> dict:
    """Components of Flux."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    encoder, words = t5()
    return {
        "transformer": transformer.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": vae(shift_factor=0.05),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(),
        "text_encoder_2": encoder,
        "tokenizer_2": words,
    }


# --------------------------------------------------------------------------------------- pipelines

KINDS = {
    "sd": (GeodesicInterpolationPipeline, StableDiffusionPipeline, stable_diffusion),
    "xl": (GeodesicInterpolationXLPipeline, StableDiffusionXLPipeline, stable_diffusion_xl),
    "sd3": (GeodesicInterpolationSD3Pipeline, StableDiffusion3Pipeline, stable_diffusion_3),
    "flux": (GeodesicInterpolationFluxPipeline, FluxPipeline, flux),
    "flux2": (GeodesicInterpolationFlux2Pipeline, Flux2Pipeline, models_flowa.flux_2),
    "klein": (
        GeodesicInterpolationFlux2KleinPipeline,
        Flux2KleinPipeline,
        models_flowa.flux_2_klein,
    ),
    "chroma": (GeodesicInterpolationChromaPipeline, ChromaPipeline, models_flowa.chroma),
    "aura": (GeodesicInterpolationAuraFlowPipeline, AuraFlowPipeline, models_flowa.aura_flow),
    "alpha": (
        *(GeodesicInterpolationPixArtAlphaPipeline, PixArtAlphaPipeline),
        models_vpfam.pixart_alpha,
    ),
    "sigma": (
        *(GeodesicInterpolationPixArtSigmaPipeline, PixArtSigmaPipeline),
        models_vpfam.pixart_sigma,
    ),
    "sana": (GeodesicInterpolationSanaPipeline, SanaPipeline, models_vpfam.sana),
    "dit": (GeodesicInterpolationDiTPipeline, DiTPipeline, models_vpfam.dit),
    "pixels": (GeodesicInterpolationUnconditionalPipeline, DDIMPipeline, unconditional),
    **models_flowb.KINDS,
}
"""Kind of model -> this library's pipeline, diffusers' own, and a function of its components."""
PROMPTED = [kind for kind in KINDS if kind not in ("dit", "pixels")]


def make(kind: str, **options):
    """A pipeline of one kind of model; its function of components takes the options."""
    return silent(KINDS[kind][0](**KINDS[kind][2](**options)))


def _to_tokens(pipe, latents):
    return pipe._pack_latents(latents, *latents.shape)


def _from_tokens(pipe, tokens):
    return pipe._unpack_latents(tokens, 16, 16, pipe.vae_scale_factor)


def _as_they_are(pipe, latents):
    return latents


def _from_patches(pipe, tokens):
    return tokens.mT.reshape(len(tokens), -1, 4, 4)


TOKENS = {
    **dict.fromkeys(("flux", "chroma", "qwen"), (_to_tokens, _from_tokens)),
    **dict.fromkeys(("flux2", "klein"), (_as_they_are, _from_patches)),
}
"""Kind of model -> latents as diffusers' own pipeline takes them, and as its callback sees them."""


def visited(kind: str, theirs, start: torch.Tensor, **options) -> list[torch.Tensor]:
    """Latents after each step of diffusers' own pipeline, from `start` on, with prompt "a"."""
    into, out = TOKENS.get(kind, (_as_they_are, _as_they_are))
    found, step = [], theirs.scheduler.step

    def look(*args, **kwargs):
        result = step(*args, **kwargs)
        found.append(out(theirs, result[0]))
        return result

    theirs.scheduler.step = look
    kept = {"prompt": "a", "output_type": "latent", "height": 16, "width": 16}
    kept |= {"use_resolution_binning": False, "latents": into(theirs, start)}
    theirs(**only(theirs.__call__, kept | options))
    return found


def silent(pipe):
    """The same pipeline, without progress bars."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def only(function: Callable, options: dict) -> dict:
    """The options that are arguments of a function."""
    return {n: value for n, value in options.items() if n in inspect.signature(function).parameters}


def morph(pipe, image, prompt="", negative_prompt="", **options):
    """The output of all stages in order. Each stage receives the options that it has.

    This function also takes options that the call of a pipeline does not have.
    """
    stages = (pipe.condition, pipe.invert, pipe.solve, pipe.sample, pipe.render)
    taken = [only(stage, options) for stage in stages]
    assert set(options) == set().union(*taken), options
    conditions, invert, solve, sample, render = taken
    if conditions:
        found = pipe.condition(prompt, negative_prompt, **conditions)
        keys = pipe.invert(image, conditions=found, **invert)
    else:
        keys = pipe.invert(image, prompt, negative_prompt, **invert)
    path = pipe.sample(pipe.solve(keys, **solve), **sample)
    return pipe.render(path, **{"output_type": "latent"} | render)


class Counter:
    """The number of calls of networks, and the number of their points."""

    def __init__(self):
        self.calls = self.points = 0

    def __call__(self, module, args, kwargs):
        given = args[0] if args else next(iter(kwargs.values()))
        self.calls += 1
        self.points += len(given)


@contextmanager
def counting(*networks: nn.Module) -> Iterator[Counter]:
    """Count the calls and the points of networks inside the context."""
    counter = Counter()
    hooks = [one.register_forward_pre_hook(counter, with_kwargs=True) for one in networks]
    try:
        yield counter
    finally:
        for hook in hooks:
            hook.remove()


def ip_adapter(unet: UNet2DConditionModel) -> dict:
    """The state of a random IP-Adapter with one embedding `(1, 6)` for each image."""
    torch.manual_seed(3)
    width, layers, key = unet.config.cross_attention_dim, {}, 1
    for name in unet.attn_processors:
        if name.endswith("attn2.processor"):
            attention = unet.get_submodule(name.removesuffix(".processor"))
            state = IPAdapterAttnProcessor2_0(attention.inner_dim, width).state_dict()
            layers[f"{key}.to_k_ip.weight"] = state["to_k_ip.0.weight"]
            layers[f"{key}.to_v_ip.weight"] = state["to_v_ip.0.weight"]
            key += 2
    state = ImageProjection(6, width, num_image_text_embeds=4).state_dict()
    names = {"proj.weight": "image_embeds.weight", "proj.bias": "image_embeds.bias"}
    names |= {"norm.weight": "norm.weight", "norm.bias": "norm.bias"}
    return {"image_proj": {n: state[m] for n, m in names.items()}, "ip_adapter": layers}


def with_ip_adapter(pipe):
    """The same pipeline, with a random IP-Adapter."""
    pipe.unet._load_ip_adapter_weights([ip_adapter(pipe.unet)])
    pipe.set_ip_adapter_scale(1.0)
    return pipe


def with_lora(pipe, scale: float = 0.25):
    """The same pipeline, with a random LoRA in its network."""
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe.unet.add_adapter(config)
    with torch.no_grad():
        for name, parameter in pipe.unet.named_parameters():
            if "lora" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=seeded(1)))
    return pipe
