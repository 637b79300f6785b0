"""Flags of the command line in place of the arguments of the library."""

from __future__ import annotations

import re

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
)
FLAGS |= {name: f"--{name.replace('_', '-')}" for name in SAME}

ADVICE = {  # what the library advises -> what the command line advises
    "`safety_checker=None`": "--no-safety-checker",
    "resize or crop them first": "crop and scale them with --size, as in --size 768x512",
}


def with_flags(message: str) -> str:
    """A message of the library with flags in place of the arguments that it quotes."""
    for text, advice in ADVICE.items():
        message = message.replace(text, advice)
    message = re.sub(r"`(\w+)`", lambda found: FLAGS.get(found[1], found[0]), message)

    def typed(found: re.Match[str]) -> str:
        return f"{FLAGS[found[1]]} {found[2]}" if found[1] in FLAGS else found[0]

    return re.sub(r"\b(\w+)='(\w+)'", typed, message)
