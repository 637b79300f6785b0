"""Checks of a pipeline's parts that run before any work.

Every field of a config that changes what a network computes is either handled elsewhere or refused
here in one sentence.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from riemannian_diffusion.score.weights import Layers

DISTILLED = ("turbo", "lightning", "lcm", "hyper-sd", "schnell", "sprint", "distill", "dmd", "pcm")
"""Parts of the names of models that were distilled to a few steps."""

CLASSES = ("class_embed_type", "num_class_embeds")
"""Config fields of networks of classes."""

EMBEDDINGS = {
    "addition_embed_type": (None, "text"),  # "text" reads the prompt embeddings
    "encoder_hid_dim_type": (None, "text_proj", "ip_image_proj"),
    "use_additional_t_cond": (None, False),
    "siglip_feat_dim": (None,),
}
"""Config fields of further embeddings, and the values for which a network needs none."""


class DistilledModelWarning(UserWarning):
    """A model was distilled to a few steps, so that it is not the score of its data."""


def check_parts(pipe: Any, *, texts: bool = False) -> None:
    """Refuse a pipeline without a part that its stages need.

    Args:
        pipe: The pipeline.
        texts: Whether texts are encoded; else the parts for them may be absent.

    Raises:
        ValueError: Naming the part.
    """
    absent = [name for name, part in pipe.components.items() if part is None]
    for name in absent:
        is_text = name.startswith(("text_encoder", "tokenizer"))
        optional = name in pipe._optional_components or name.endswith("_3")  # T5 of SD 3
        if not optional and (texts or not is_text):
            advice = ", or give `prompt_embeds`" if is_text else ""
            raise ValueError(
                f"`pipe.{name}` is None: load the model with its {name}, or set it{advice}."
            )


def check_model(pipe: Any) -> None:
    """Refuse a model with an input or output that its family's pipeline does not handle.

    Raises:
        ValueError: Naming the part and the field of its config, or the cache of its network.

    Warns:
        DistilledModelWarning: If the model's name or config says that it was distilled.
    """
    check_parts(pipe)
    Layers(pipe.network).check()
    _check_network(pipe)
    _check_autoencoder(pipe)
    _warn_of_distillation(pipe)


def check_tiling(vae: Any) -> None:
    """Refuse tiles where diffusers computes their size for another autoencoder.

    Raises:
        ValueError: If an `AutoencoderTiny` with tiling has not 8 pixels along a latent.
    """
    if type(vae).__name__ == "AutoencoderTiny" and vae.use_tiling:
        num = 2 ** (len(vae.config["decoder_block_out_channels"]) - 1)
        assumed = getattr(vae, "spatial_scale_factor", num)
        if num != assumed:
            raise ValueError(
                f"The tiles of {type(vae).__name__} in diffusers need {assumed} pixels along each "
                f"side of a latent, but it has {num}: call `pipe.vae.disable_tiling()`."
            )


def _check_network(pipe: Any) -> None:
    config: Mapping[str, Any] = pipe.network.config
    kind = type(pipe.network).__name__
    if config.get("time_cond_proj_dim") is not None:
        raise ValueError(
            f"The {kind} has a `time_cond_proj_dim`: it was distilled to a few steps with guidance "
            "as an input (a latent consistency model), so it is not the score of its data. Load "
            "the model from which it was distilled."
        )
    if config.get("guidance_embeds") and not pipe._embeds_guidance:
        raise ValueError(
            f"The {kind} takes guidance as an input (`guidance_embeds` in its config), which "
            f"{type(pipe).__name__} does not give: load a model without it."
        )
    channels = config.get("in_channels")
    wanted = pipe._input_channels
    if channels is not None and wanted is not None and channels != wanted:
        raise ValueError(
            f"The {kind} takes {channels} channels, but the images have {wanted}: the other "
            "channels hold a mask, an image or a depth map, which this pipeline does not give. "
            "Load a model without such inputs."
        )
    out = config.get("out_channels") or channels
    if channels is not None and out not in (channels, 2 * channels, pipe._output_channels):
        raise ValueError(
            f"The {kind} turns {channels} channels into {out}: a score needs as many, or twice as "
            "many if the model also predicts a variance."
        )
    if not pipe._takes_classes and any(config.get(name) is not None for name in CLASSES):
        raise ValueError(
            f"The {kind} needs class labels, a noise level or a resolution beside the prompt "
            "(`class_embed_type` or `num_class_embeds` in its config), which this pipeline does "
            "not give."
        )
    for field, values in EMBEDDINGS.items():
        value = config.get(field)
        if value not in (*values, *pipe._additions):
            raise ValueError(
                f"The {kind} needs further embeddings (`{field}` {value!r} in its config), which "
                f"{type(pipe).__name__} does not give."
            )
    if config.get("addition_embed_type") == "text_time":
        _check_time_ids(pipe, config)


def _check_time_ids(pipe: Any, config: Mapping[str, Any]) -> None:
    """Refuse the refiner of Stable Diffusion XL, which takes 5 numbers and not 6."""
    width = config["addition_time_embed_dim"]
    encoder = getattr(pipe, "text_encoder_2", None) or getattr(pipe, "text_encoder", None)
    pooled = getattr(getattr(encoder, "config", None), "projection_dim", None)
    if pooled is None:
        return
    num = (config["projection_class_embeddings_input_dim"] - pooled) / width
    if num != 6:
        raise ValueError(
            "This is a refiner of Stable Diffusion XL, or a network with other inputs: it takes an "
            f"aesthetic score ({num:g} numbers and not 6). Load the base model."
        )


def _check_autoencoder(pipe: Any) -> None:
    vae = getattr(pipe, "vae", None)
    if vae is None:
        return
    given = [name for name in ("latents_mean", "latents_std") if vae.config.get(name) is not None]
    if len(given) == 1:
        raise ValueError(
            f"The autoencoder's config has `{given[0]}` alone: `latents_mean` and `latents_std` "
            "belong together."
        )
    num = vae.config.get("latent_channels") or vae.config.get("z_dim")
    for name in given:
        found = torch.as_tensor(vae.config[name]).numel()
        if num is not None and found != num:
            raise ValueError(
                f"The autoencoder's config has {found} numbers as `{name}`, but {num} channels of "
                "latents: correct the config, or download it again."
            )


def _warn_of_distillation(pipe: Any) -> None:
    parts = (pipe, pipe.network, pipe.scheduler)
    names = " ".join(str(getattr(p.config, "_name_or_path", "")) for p in parts)
    names += " ".join(str(p.config.get("_name_or_path", "")) for p in parts)
    words = [word for word in DISTILLED if re.search(rf"(?<![a-z]){word}", names.lower())]
    if pipe.config.get("is_distilled") or words:
        why = f"its name has {words[0]!r}" if words else "its config says so"
        warnings.warn(
            f"This model was distilled to a few steps ({why}). It is not the score of its data, so "
            "geodesics and inversion are less exact. Prefer the model from which it was distilled.",
            DistilledModelWarning,
            stacklevel=4,
        )
