"""Full-size networks of the supported model families, with random weights.

Cost and memory of a network do not depend on its weights. Each architecture says where its config
comes from:

    published       a config that the library ships for models in one file
    defaults        the defaults of the class in diffusers, which are those of the published model
    stated          the defaults, except for the values that stand here; the published config has
                    them, but no file of it is at hand
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

from riemannian_diffusion import Condition, Conditions, Metric, TangentNormalMetric, demo
from riemannian_diffusion.pipelines.families.aura_flow import AuraFlowPrediction
from riemannian_diffusion.pipelines.families.chroma import ChromaPrediction
from riemannian_diffusion.pipelines.families.flux import FluxPrediction
from riemannian_diffusion.pipelines.families.flux_2 import Flux2Prediction
from riemannian_diffusion.pipelines.families.lumina_2 import Lumina2Prediction
from riemannian_diffusion.pipelines.families.pixart import PixArtPrediction
from riemannian_diffusion.pipelines.families.prediction import TransformerPrediction
from riemannian_diffusion.pipelines.families.qwen_image import QwenImagePrediction
from riemannian_diffusion.pipelines.families.sana import SanaPrediction
from riemannian_diffusion.pipelines.families.stable_diffusion import UNetPrediction
from riemannian_diffusion.pipelines.families.stable_diffusion_3 import SD3Prediction
from riemannian_diffusion.pipelines.families.z_image import ZImagePrediction
from riemannian_diffusion.pipelines.prompts import MASK
from riemannian_diffusion.pipelines.single_file import DATA
from riemannian_diffusion.score.network import NetworkScore, Predict
from riemannian_diffusion.score.schedulers import level_at

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NUM_TIMESTEPS = 1000
HIDDEN = "encoder_hidden_states"


class ByProducts(TangentNormalMetric):
    """The tangent-normal metric whose energy uses forward-mode products at midpoints."""

    energy = Metric.energy


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make networks in a dtype from the start: in float32, large ones need twice the memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _transformer(kind: type[TransformerPrediction]) -> Callable[[nn.Module], Predict]:
    return lambda network: kind(network, NUM_TIMESTEPS)


@dataclass(frozen=True)
class Architecture:
    """A network, how it is called, and what it receives.

    Attributes:
        title: Name of the model.
        kind: Class of the network in diffusers.
        config: Its arguments.
        source: Where the config comes from: "published", "defaults" or "stated".
        predict: Function from the network to the function that calls it.
        channels: Channels of a point.
        factor: Pixels per value of a point, along each side.
        conditions: Shapes of conditions for one point, by name.
        encoders: Names of its text encoders, as in `ENCODERS`.
        pixels: Usual side of its images, in pixels.
        flow: Whether it is a rectified flow.
    """

    title: str
    kind: str
    config: Mapping[str, Any]
    source: str
    predict: Callable[[nn.Module], Predict]
    channels: int
    factor: int
    conditions: Mapping[str, tuple[int, ...]]
    encoders: tuple[str, ...]
    pixels: int = 1024
    flow: bool = True
    folder: str | None = field(default=None)

    def network(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> nn.Module:
        """The network, with random weights that receive no gradient."""
        kind: Any = getattr(diffusers, self.kind)
        if self.folder is not None:
            made = kind.from_pretrained(self.folder, subfolder="unet", torch_dtype=dtype)
            return made.to(device).eval().requires_grad_(False)
        with default_dtype(dtype), torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            made = kind(**self.config)
        return made.to(dtype).eval().requires_grad_(False)

    def shape(self, pixels: int) -> tuple[int, int, int]:
        """The shape of a point for images of `pixels` x `pixels`."""
        return self.channels, pixels // self.factor, pixels // self.factor

    def score(
        self,
        network: nn.Module,
        *,
        timestep: int = 581,
        max_batch_size: int | None = None,
        seed: int = 0,
    ) -> NetworkScore:
        """The score of the network under one random prompt."""
        first = next(network.parameters())
        generator = torch.Generator().manual_seed(seed)
        values = {}
        for name, shape in self.conditions.items():
            if "mask" in name:
                mask = torch.ones(1, 1, *shape, dtype=torch.bool, device=first.device)
                values[name] = Condition(mask, "mask")
            else:
                value = torch.randn(1, 1, *shape, generator=generator)
                values[name] = Condition(value.to(first.device, first.dtype))
        scheduler: Any = DDIMScheduler(**SCHEDULE)
        if self.flow:
            scheduler = FlowMatchEulerDiscreteScheduler()
        return NetworkScore(
            network,
            self.predict(network),
            level_at(scheduler, timestep),
            Conditions(values),
            max_batch_size=max_batch_size,
        )


@cache
def _published() -> dict[str, dict[str, Any]]:
    return json.loads((DATA / "configs.json").read_text())["parts"]


def _config(name: str) -> dict[str, Any]:
    return {key: value for key, value in _published()[name].items() if key != "_class_name"}


def _unet(
    title: str,
    part: str,
    width: int,
    encoders: tuple[str, ...],
    pixels: int,
    pooled: int | None = None,
) -> Architecture:
    extra = {} if pooled is None else {"text_embeds": (pooled,)}
    return Architecture(
        title,
        "UNet2DConditionModel",
        _config(part),
        "published",
        partial(UNetPrediction, pixels_per_latent=None if pooled is None else 8),
        *(4, 8, {HIDDEN: (77, width)} | extra, encoders, pixels, False),
    )


def _sd3(title: str, part: str) -> Architecture:
    return Architecture(
        *(title, "SD3Transformer2DModel", _config(part), "published", _transformer(SD3Prediction)),
        *(16, 8, {HIDDEN: (333, 4096), "pooled_projections": (2048,)}),
        ("CLIP L, projected", "CLIP G", "T5-XXL"),
    )


def _flux_2(
    title: str, config: Mapping[str, Any], source: str, width: int, encoder: str
) -> Architecture:
    guidance = {"guidance": ()} if config.get("guidance_embeds", True) else {}
    return Architecture(
        *(title, "Flux2Transformer2DModel", config, source, _transformer(Flux2Prediction)),
        *(128, 16, {HIDDEN: (512, width)} | guidance, (encoder,)),
    )


def _masked(
    title: str,
    kind: str,
    config: Mapping[str, Any],
    source: str,
    predicts: type[TransformerPrediction],
    latents: tuple[int, int],
    text: tuple[int, int],
    encoder: str,
    *,
    mask: str = MASK,
    flow: bool = True,
) -> Architecture:
    """A transformer that receives the embeddings of a prompt and their mask."""
    conditions = {HIDDEN: text, mask: text[:1]}
    return Architecture(
        *(title, kind, config, source, _transformer(predicts), *latents, conditions, (encoder,)),
        flow=flow,
    )


KLEIN = {"guidance_embeds": False}
FLUX_TEXT = {HIDDEN: (512, 4096), "pooled_projections": (768,), "guidance": ()}
ARCHITECTURES: dict[str, Architecture] = {
    "sd15": _unet("Stable Diffusion 1.5", "unet v1", 768, ("CLIP L",), 512),
    "sd21": _unet("Stable Diffusion 2.1", "unet v2", 1024, ("CLIP H",), 512),
    "sdxl": _unet(
        *("Stable Diffusion XL", "unet xl", 2048, ("CLIP L", "CLIP G"), 1024), pooled=1280
    ),
    "sd3": _sd3("Stable Diffusion 3 medium", "transformer sd3"),
    "sd35_medium": _sd3("Stable Diffusion 3.5 medium", "transformer sd35 medium"),
    "sd35_large": _sd3("Stable Diffusion 3.5 large", "transformer sd35 large"),
    "flux": Architecture(
        *("Flux.1 dev", "FluxTransformer2DModel", {"guidance_embeds": True}, "stated"),
        *(_transformer(FluxPrediction), 16, 8, FLUX_TEXT, ("CLIP L", "T5-XXL")),
    ),
    "flux2_klein_4b": _flux_2(
        "Flux.2 klein 4B",
        KLEIN
        | {"num_layers": 5, "num_single_layers": 20}
        | {"num_attention_heads": 24, "joint_attention_dim": 7680},
        *("stated", 7680, "Qwen3 4B"),
    ),
    "flux2_klein_9b": _flux_2(
        "Flux.2 klein 9B",
        KLEIN
        | {"num_layers": 8, "num_single_layers": 24}
        | {"num_attention_heads": 32, "joint_attention_dim": 12288},
        *("stated", 12288, "Qwen3 8B"),
    ),
    "flux2": _flux_2("Flux.2 dev", {}, "defaults", 15360, "Mistral Small 24B"),
    "qwen_image": _masked(
        *("Qwen-Image", "QwenImageTransformer2DModel", {}, "defaults", QwenImagePrediction),
        *((16, 8), (128, 3584), "Qwen2.5-VL 7B"),
    ),
    "z_image": _masked(
        *("Z-Image", "ZImageTransformer2DModel", {}, "defaults", ZImagePrediction),
        *((16, 8), (128, 2560), "Qwen3 4B"),
    ),
    "sana": _masked(
        *("Sana 1.6B", "SanaTransformer2DModel", {}, "defaults", SanaPrediction),
        *((32, 32), (300, 2304), "Gemma 2 2B"),
    ),
    "pixart": _masked(
        *("PixArt-Sigma", "PixArtTransformer2DModel", {"caption_channels": 4096}, "stated"),
        *(PixArtPrediction, (4, 8), (300, 4096), "T5-XXL"),
        flow=False,
    ),
    "lumina2": _masked(
        *("Lumina 2", "Lumina2Transformer2DModel", {"cap_feat_dim": 2304}, "stated"),
        *(Lumina2Prediction, (16, 8), (256, 2304), "Gemma 2 2B"),
    ),
    "chroma": _masked(
        *("Chroma", "ChromaTransformer2DModel", {}, "defaults", ChromaPrediction),
        *((16, 8), (512, 4096), "T5-XXL"),
        mask="attention_mask",
    ),
    "aura_flow": Architecture(
        *("AuraFlow", "AuraFlowTransformer2DModel", {}, "defaults"),
        *(_transformer(AuraFlowPrediction), 4, 8, {HIDDEN: (256, 2048)}, ("Pile-T5-XL",)),
    ),
}
SHIPPED = Architecture(
    *("shipped model", "UNet2DConditionModel", {}, "published", UNetPrediction),
    *(4, 8, {HIDDEN: (77, 64)}, (), 128, False),
    folder=str(demo.model_path()),
)
TWO_HEADS = {"num_layers": 1, "num_attention_heads": 2}
SMALL: dict[str, Architecture] = {  # the same classes with few and narrow layers, for rehearsals
    f"small_{name}": replace(
        ARCHITECTURES[name], config=dict(ARCHITECTURES[name].config) | config, pixels=64
    )
    for name, config in {
        "sd15": {"layers_per_block": 1, "block_out_channels": [64, 64]}
        | {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}
        | {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]},
        "sdxl": {"layers_per_block": 1, "block_out_channels": 3 * [64]}
        | {"attention_head_dim": 8, "transformer_layers_per_block": 1},
        "flux": TWO_HEADS | {"num_single_layers": 1},
        "sd35_medium": TWO_HEADS | {"caption_projection_dim": 128, "dual_attention_layers": [0]},
        "qwen_image": TWO_HEADS,
        "z_image": {"n_layers": 1, "n_refiner_layers": 1, "dim": 256, "n_heads": 2}
        | {"n_kv_heads": 2},
    }.items()
}
NAMES = ("shipped", *ARCHITECTURES, *SMALL)

T5_XXL = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "d_kv": 64}
PILE_T5 = {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "d_kv": 64}
GATED = {"feed_forward_proj": "gated-gelu", "vocab_size": 32128}
QWEN3 = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8}
QWEN_VL = {
    **{"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28},
    **{"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064},
}
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {  # class, class of the config, config
    "CLIP L": ("CLIPTextModel", "CLIPTextConfig", _config("clip l")),
    "CLIP L, projected": ("CLIPTextModelWithProjection", "CLIPTextConfig", _config("clip l")),
    "CLIP H": ("CLIPTextModel", "CLIPTextConfig", _config("clip h")),
    "CLIP G": ("CLIPTextModelWithProjection", "CLIPTextConfig", _config("clip g")),
    "T5-XXL": ("T5EncoderModel", "T5Config", T5_XXL | GATED),
    "Pile-T5-XL": ("UMT5EncoderModel", "UMT5Config", PILE_T5 | GATED),
    "Gemma 2 2B": ("Gemma2Model", "Gemma2Config", {}),
    "Qwen3 4B": (
        "Qwen3Model",
        "Qwen3Config",
        QWEN3 | {"hidden_size": 2560, "intermediate_size": 9728},
    ),
    "Qwen3 8B": ("Qwen3ForCausalLM", "Qwen3Config", QWEN3 | {"intermediate_size": 12288}),
    "Qwen2.5-VL 7B": (
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        {
            "text_config": QWEN_VL,
            "vision_config": {"hidden_size": 1280, "out_hidden_size": 3584, "depth": 32},
        },
    ),
    "Mistral Small 24B": ("Mistral3ForConditionalGeneration", "Mistral3Config", {}),
}


@cache
def encoder_parameters(name: str) -> int:
    """Number of parameters of a text encoder."""
    kind, config, options = ENCODERS[name]
    with torch.device("meta"):
        model = getattr(transformers, kind)(getattr(transformers, config)(**options))
    return num_parameters(model)


def num_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def architecture_of(name: str) -> Architecture:
    """The architecture with one of `NAMES`."""
    return SHIPPED if name == "shipped" else (ARCHITECTURES | SMALL)[name]


def score_of(
    name: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    timestep: int = 581,
    max_batch_size: int | None = None,
    size: int | None = None,
    seed: int = 0,
    drawn_in: torch.dtype | None = None,
) -> tuple[NetworkScore, tuple[int, ...]]:
    """The score of a network under one random prompt, and the shape of a point.

    Args:
        name: "shipped" (with its trained weights), or another of `NAMES` (random weights).
        device: Device of the network.
        dtype: Type of the network's weights.
        timestep: Timestep of the score.
        max_batch_size: See `NetworkScore`.
        size: Side of the latents; None takes that of the model's usual images.
        seed: Seed of the prompt and of random weights.
        drawn_in: Type in which random weights are drawn, since a seed gives other numbers in each
            type; None is `dtype`.
    """
    architecture = architecture_of(name)
    network = architecture.network(drawn_in or dtype, device, seed).to(dtype)
    options: dict[str, Any] = {"timestep": timestep, "max_batch_size": max_batch_size}
    score = architecture.score(network, seed=seed, **options)
    shape = architecture.shape(architecture.pixels)
    return score, shape if size is None else (architecture.channels, size, size)


def compiled(name: str, score: NetworkScore) -> NetworkScore:
    """A score whose network is compiled."""
    architecture = architecture_of(name)
    network: Any = torch.compile(score.network)
    return NetworkScore(
        *(network, architecture.predict(network), score.level, score.conditions),
        max_batch_size=score.max_batch_size,
    )
