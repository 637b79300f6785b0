"""Flags of the command line in place of the arguments of the library."""

from __future__ import annotations

import re

FLAGS = {  # arguments of the library whose flags have other names
    "num_frames": "--frames",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "share": "--extrapolate",
    "distance": "--retime",
}
SAME = (  # arguments whose flags have the same name
    *("strength", "space", "metric", "init", "prompt", "negative_prompt", "max_evals"),
    *("guidance_damping", "attention_interpolation", "adain", "max_batch_size"),
)
FLAGS |= {name: f"--{name.replace('_', '-')}" for name in SAME}


def with_flags(message: str) -> str:
    """A message of the library with flags in place of the arguments that it quotes."""
    return re.sub(r"`(\w+)`", lambda found: FLAGS.get(found[1], found[0]), message)
