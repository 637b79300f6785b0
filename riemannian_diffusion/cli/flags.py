"""Flags of the command line in place of the arguments of the library."""

from __future__ import annotations

import argparse
from functools import cache

from riemannian_diffusion.arguments import reworded

RENAMED = {  # arguments of the library whose flags have other names
    "num_frames": "--frames",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "share": "--extrapolate",
    "distance": "--retime",
    "adaptation": "--adapt",
    "cache_dir": "--adapt-cache",
    "checkpoint": "--keep",
    "num_resamples": "--resamples",
    "skip_missing": "--strict",
    "image": "IMAGE",
    "prompts": "--prompt",
    "load_lora_weights": "--lora",
    "load_ip_adapter": "--ip-adapter",
}
ADVICE = {  # what the library advises -> what the command line advises
    "call `pipe.vae.disable_tiling()`": "leave out --vae-tiling",
    "`safety_checker=None`": "--no-safety-checker",
    ", or pass a network of your own": "",
    "resize `image`": "choose another --size",
    "`image` must have the keyframes' size": "--analogy must have the size of the images",
    "`checkpoint` ": "--keep: ",
    "(`lora_steps=0`)": "(--adapt embeddings)",
    ", or guide by `true_cfg_scale`": "",
    ", or pass score_mode='conditional'": "",
    "give `class_labels` to `condition`, and what that returns to `invert`": (
        "use it in Python, for the command line takes no classes"
    ),
    "resize or crop them first": "crop and scale them with --size WIDTHxHEIGHT",
    "`guidance_scale` and `true_cfg_scale` are ignored: leave them at 1": (
        "--guidance is ignored: leave it at 1"
    ),
}


@cache
def flags() -> dict[str, str]:
    """The flag of each argument of the library that the command line offers."""
    from riemannian_diffusion.cli.parser import parser

    found: dict[str, str] = {}
    whole = parser()._subparsers
    assert whole is not None
    for commands in whole._group_actions:
        assert isinstance(commands, argparse._SubParsersAction)
        for command in commands.choices.values():
            found |= {
                one.dest: one.option_strings[-1] for one in command._actions if one.option_strings
            }
    return found | RENAMED


def with_flags(message: str) -> str:
    """A message of the library with flags in place of the arguments that it quotes."""
    names = flags()
    for text, advice in ADVICE.items():
        message = message.replace(text, advice)
    return reworded(message, names)
