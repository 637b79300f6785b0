"""Fit a model to the keyframes of one morph: a prompt embedding and a LoRA for each keyframe.

DiffMorpher (Zhang et al., arXiv 2312.07409) fits a LoRA to each image and mixes the LoRAs along the
path. IMPUS (Yang et al., arXiv 2311.06792) fits a prompt embedding to each image. Both minimise the
denoising loss of the image alone. Images are fitted one after the other with the same random
numbers, so the result for one image does not depend on the others. Fitting LoRAs needs peft; using
them does not.
"""

from riemannian_diffusion.adaptation.fitting import (
    LORA_TARGETS,
    denoising_losses,
    fit_embeddings,
    fit_lora,
)
from riemannian_diffusion.adaptation.keyframes import Adaptation, adapt
from riemannian_diffusion.adaptation.mixing import LoraMix, interpolated_attention

__all__ = [
    "LORA_TARGETS",
    "Adaptation",
    "LoraMix",
    "adapt",
    "denoising_losses",
    "fit_embeddings",
    "fit_lora",
    "interpolated_attention",
]
