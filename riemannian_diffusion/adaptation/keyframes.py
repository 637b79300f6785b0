"""Fit embeddings and LoRAs to the keyframes of one morph, and store them in a file."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riemannian_diffusion import files
from riemannian_diffusion.adaptation.fitting import fit_embeddings, fit_lora
from riemannian_diffusion.runtime import __version__
from riemannian_diffusion.score.schedulers import meaning_of

EMBEDDING_STEPS, LORA_STEPS = 50, 100  # by default, for each image


@dataclass(frozen=True)
class Adaptation:
    """Embeddings and LoRAs that were fitted to the P keyframes of a morph.

    Attributes:
        embeddings: Prompt embeddings of the keyframes, `(P, L, C)`, or None.
        loras: One LoRA for each keyframe, as `fit_lora` returns them, or None.

    Raises:
        ValueError: If both are None, or their numbers of keyframes differ.

    Examples:
        >>> from PIL import Image
        >>> from riemannian_diffusion import adapt, demo
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
        >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
        >>> images = [Image.open(path) for path in demo.endpoint_paths()]
        >>> adaptation = adapt(pipe, images, "a torus", embedding_steps=1, lora_steps=0)
        >>> conditions = pipe.condition(adaptation=adaptation)
        >>> len(adaptation.embeddings)  # one for each image
        2
    """

    embeddings: Tensor | None = None
    loras: list[dict[str, Tensor]] | None = None

    def __post_init__(self):
        counts = {len(part) for part in (self.embeddings, self.loras) if part is not None}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(
                "An Adaptation needs embeddings, LoRAs or both, for the same images, but got "
                f"them for {sorted(counts)} images."
            )

    @property
    def num_images(self) -> int:
        """The number of images to which the model was fitted."""
        return len(self.loras or ()) if self.embeddings is None else len(self.embeddings)

    def save(self, path: str | os.PathLike) -> None:
        """Write the adaptation to one safetensors file, atomically."""
        tensors = {} if self.embeddings is None else {"embeddings": self.embeddings}
        for i, lora in enumerate(self.loras or []):
            tensors |= {f"lora.{i}.{name}": value for name, value in lora.items()}
        files.save(path, "Adaptation", tensors, {"num_loras": len(self.loras or [])})

    @classmethod
    def load(cls, path: str | os.PathLike) -> Adaptation:
        """Read a file that `save` wrote; the tensors are on the CPU.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or holds another class.
        """
        return files.load(path, "Adaptation", cls._unpacked)

    @classmethod
    def _unpacked(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Adaptation:
        embeddings = tensors.pop("embeddings", None)
        loras: list[dict[str, Tensor]] = [{} for _ in range(settings["num_loras"])]
        for key, value in tensors.items():
            _, index, name = key.split(".", 2)
            loras[int(index)][name] = value
        return cls(embeddings, loras or None)


def adapt(
    pipe: Any,
    images: Sequence,
    prompts: str | Sequence[str] = "",
    *,
    embedding_steps: int = EMBEDDING_STEPS,
    embedding_lr: float = 3e-2,
    lora_steps: int = LORA_STEPS,
    lora_lr: float = 1e-3,
    rank: int = 16,
    batch_size: int = 4,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
    callback: Callable[[str, int, int, float], None] | None = None,
) -> Adaptation:
    """Fit the model of a pipeline to the keyframes of one morph: embeddings, and then LoRAs.

    Args:
        pipe: A `GeodesicInterpolationPipeline`; it is not changed.
        images: The keyframes, in any form that the pipeline takes.
        prompts: One prompt, or one per keyframe. Their embeddings are the first embeddings.
        embedding_steps: Steps per image for its embedding; 0 fits no embeddings.
        embedding_lr: Learning rate of the embeddings.
        lora_steps: Steps per image for its LoRA; 0 fits no LoRAs.
        lora_lr: Learning rate of the LoRAs.
        rank: See `fit_lora`.
        batch_size: Number of noises per step.
        seed: Seed of all random numbers.
        cache_dir: A folder in which the result is stored under a hash of everything on which it
            depends. A later call with equal arguments reads it. If the file is damaged, the call
            warns and fits again.
        callback: A function that is called as `callback(part, image, step, loss)` after every step;
            `part` is "embeddings" or "loras".

    Returns:
        The adaptation, on the CPU.

    Raises:
        ImportError: If `lora_steps` is above 0 and peft is not installed.
        ValueError: If an argument is out of range, or the numbers of images and prompts disagree.

    Examples:
        >>> from PIL import Image
        >>> from riemannian_diffusion import adapt, demo
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
        >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
        >>> images = [Image.open(path) for path in demo.endpoint_paths()]
        >>> adaptation = adapt(pipe, images, "a torus", embedding_steps=1, lora_steps=0)
        >>> conditions = pipe.condition(adaptation=adaptation)
        >>> len(adaptation.embeddings)  # one for each image
        2
    """
    from diffusers import StableDiffusionPipeline  # not at the top, because it takes seconds

    kind: Any = StableDiffusionPipeline  # Any, because mypy does not know this library's methods
    if not isinstance(pipe, kind):
        raise ValueError(
            f"adapt is for pipelines of Stable Diffusion 1 and 2, but got {type(pipe).__name__}."
        )
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if embedding_steps < 0 or lora_steps < 0 or embedding_steps + lora_steps == 0:
        raise ValueError(
            "adapt needs `embedding_steps` or `lora_steps` above 0, "
            f"but got {embedding_steps} and {lora_steps}."
        )
    settings = {
        "embeddings": [embedding_steps, embedding_lr],
        "loras": [lora_steps, lora_lr, rank],
        "batch_size": batch_size,
        "seed": seed,
    }
    pixels = pipe.pixels(images)  # raises if the pipeline does not take the images
    if len(texts) not in (1, len(pixels)):
        raise ValueError(
            f"`prompts` must be one prompt or one per image, but got {len(texts)} prompts for "
            f"{len(pixels)} images."
        )
    file = cache_dir and Path(cache_dir, f"{_digest(pipe, pixels, texts, settings)}.safetensors")
    if file and file.exists():
        try:
            return Adaptation.load(file)
        except ValueError as error:
            warnings.warn(f"Fitting again: {error}", stacklevel=2)
    latents = pipe.encode(pixels)
    conditions = pipe.condition(texts, do_classifier_free_guidance=False)
    embeddings = conditions.positive["encoder_hidden_states"].values[0]  # (1 or P, L, C)

    total = (embedding_steps + lora_steps) * len(pixels)
    fitted, loras = None, None
    with pipe.progress_bar(total=total) as bar:

        def report(part: str, image: int, step: int, loss: float) -> None:
            bar.set_description(f"Fitting {part}")
            bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            bar.update()
            if callback is not None:
                callback(part, image, step, loss)

        def options(part: str) -> dict[str, Any]:
            generator = torch.Generator().manual_seed(seed)
            shared = {"batch_size": batch_size, "generator": generator}
            return shared | {"callback": partial(report, part)}

        given = (pipe.unet, pipe.scheduler, latents)
        if embedding_steps:
            fitted = embeddings = fit_embeddings(
                *given,
                embeddings,
                num_steps=embedding_steps,
                lr=embedding_lr,
                **options("embeddings"),
            )
        if lora_steps:
            loras = fit_lora(
                *given,
                embeddings,
                rank=rank,
                num_steps=lora_steps,
                lr=lora_lr,
                **options("loras"),
            )
    pipe.maybe_free_model_hooks()
    adaptation = Adaptation(None if fitted is None else fitted.cpu(), loras)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        adaptation.save(file)
    return adaptation


def _digest(pipe: Any, pixels: Tensor, texts: list[str], settings: dict[str, Any]) -> str:
    """A hash of everything on which an adaptation depends."""
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    configs = [
        {name: value for name, value in part.config.items() if not name.startswith("_")}
        for part in (pipe.unet, pipe.vae)
    ]
    configs.append(meaning_of(pipe.scheduler))
    shown = [tuple(pixels.shape), hashlib.sha256(pixels.cpu().numpy().tobytes()).hexdigest()]
    return files.digest_of(parts, __version__, texts, settings, configs, shown)
