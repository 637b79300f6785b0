"""Flags of the command line in place of the arguments of the library."""

from __future__ import annotations

from riemannian_diffusion.arguments import reworded

FLAGS = {  # arguments of the library whose flags have other names
    "num_frames": "--frames",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "share": "--extrapolate",
    "distance": "--retime",
    "adain": "--adain",
    "load_lora_weights": "--lora",
    "load_ip_adapter": "--ip-adapter",
    "ip_adapter_image": "--ip-adapter-image",
}
SAME = (  # arguments whose flags have the same name
    *("config", "variant", "vae"),
    *("strength", "space", "metric", "init", "prompt", "negative_prompt", "max_evals"),
    *("guidance_damping", "attention_interpolation", "max_batch_size", "max_levels", "rtol"),
    "limit",
)
FLAGS |= {name: f"--{name.replace('_', '-')}" for name in SAME}

ADVICE = {  # what the library advises -> what the command line advises
    "call `pipe.vae.disable_tiling()`": "leave out --vae-tiling",
    "`safety_checker=None`": "--no-safety-checker",
    "resize `image`": "choose another --size",
    "resize or crop them first": "crop and scale them with --size, as in --size 768x512",
}


def with_flags(message: str) -> str:
    """A message of the library with flags in place of the arguments that it quotes."""
    for text, advice in ADVICE.items():
        message = message.replace(text, advice)
    return reworded(message, FLAGS)
