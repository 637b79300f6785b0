"""Labels of the page in place of the arguments of the library."""

from __future__ import annotations

from riemannian_diffusion.arguments import reworded

LABELS = {
    "image": "Images",
    "prompt": "Prompts",
    "negative_prompt": "Negative prompt",
    "metric": "Metric",
    "init": "Start from",
    "space": "Space",
    "num_frames": "Frames",
    "strength": "Strength",
    "guidance_scale": "Guidance",
    "guidance_damping": "Guidance damping",
    "num_inference_steps": "Steps",
    "max_evals": "Evaluations at most",
    "attention_interpolation": "Attention interpolation",
    "distance": "Even out what is seen",
    "share": "Go on beyond the last image",
}
ADVICE = {  # what the library advises -> what the page advises
    "resize or crop them first": "change Width and Height",
    ", or pass a network of your own": "",
    "`adain` and `attention_interpolation` are options of sampling": (
        "`attention_interpolation` is an option of sampling"
    ),
    "Prompts, embeddings and adaptations must be one for all keyframes or one for each": (
        "“Prompts” must be one line for all images, or one for each"
    ),
    "adapt is for": "“Fit the model to the images first” is for",
    "with `safety_checker=None`": "without one, by whoever runs this page",
}


def with_labels(message: str) -> str:
    """A message of the library with the page's labels in place of the arguments that it quotes."""
    for text, advice in ADVICE.items():
        message = message.replace(text, advice)
    return reworded(message, {name: f"“{label}”" for name, label in LABELS.items()})
