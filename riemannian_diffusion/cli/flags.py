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
    *("guidance_damping", "attention_interpolation", "max_batch_size", "rtol", "limit"),
)
FLAGS |= {name: f"--{name.replace('_', '-')}" for name in SAME}

ADVICE = {  # what the library advises -> what the command line advises
    "call `pipe.vae.disable_tiling()`": "leave out --vae-tiling",
    "`safety_checker=None`": "--no-safety-checker",
    "resize `image`": "choose another --size",
    "`image` must have the keyframes' size": "--analogy must have the size of the images",
    "`checkpoint` ": "--keep: ",
    "(`lora_steps=0`)": "(--adapt embeddings)",
    ", or guide by `true_cfg_scale`": "",
    ", or pass score_mode='conditional'": "",
    "give `class_labels` to `condition`, and what that returns to `invert`": (
        "use it in Python, for the command line takes no classes"
    ),
    "resize or crop them first": "crop and scale them with --size, as in --size 768x512",
}


def with_flags(message: str) -> str:
    """A message of the library with flags in place of the arguments that it quotes."""
    for text, advice in ADVICE.items():
        message = message.replace(text, advice)
    return reworded(message, FLAGS)
