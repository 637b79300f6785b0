"""The parts of a pipeline that depend on its model: levels, latents and pixels."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from riemannian_diffusion.adaptation import LoraMix
from riemannian_diffusion.arguments import check_points
from riemannian_diffusion.batches import BatchSize, Learned
from riemannian_diffusion.events import Event, network_called, run
from riemannian_diffusion.levels import Schedule, read_schedule
from riemannian_diffusion.pipelines.inputs import Image, to_keyframes
from riemannian_diffusion.score import Condition
from riemannian_diffusion.score.diffusion import is_flow
from riemannian_diffusion.score.network import Predict

LORA_WEIGHTS = "lora_weights"


@dataclass(frozen=True)
class MixedPrediction:
    """A prediction of a network whose LoRAs are mixed anew for each point.

    Attributes:
        predict: The prediction of the network.
        mix: Its LoRAs, whose weights are the condition "lora_weights".
    """

    predict: Predict
    mix: LoraMix

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The network's output at points `(K, C, h, w)`."""
        others = {name: value for name, value in conditions.items() if name != LORA_WEIGHTS}
        with self.mix.mixing(conditions[LORA_WEIGHTS]):
            return self.predict(x, timestep, others)


class MorphableModel:
    """The part of a pipeline that differs between models.

    Mixed into a diffusers pipeline. A model says how texts become conditions (`_encode_texts`) and
    what its network predicts under them (`_prediction`). Where it is unlike Stable Diffusion, it
    also says what its network models (`_is_flow`, `_even_levels`, `_patch_size`), how images become
    latents and back (`_encode_pixels`, `_decode_latents`, `_size_factor`, `_image_channels`),
    whether it takes IP-Adapters, and what checks its frames (`_check_safety`).
    """

    if TYPE_CHECKING:  # what diffusers' pipelines bring along
        unet: Any
        vae: Any
        transformer: Any
        scheduler: Any
        vae_scale_factor: int
        _execution_device: torch.device
        encode_prompt: Any
        prepare_ip_adapter_image_embeds: Any
        run_safety_checker: Any
        progress_bar: Any
        maybe_free_model_hooks: Any
        register_modules: Any

    _is_flow = False  # a transformer that models a rectified flow
    _even_levels = False  # for a flow: levels are even before the shift
    _patch_size = 1  # latents along each side of a patch
    _has_ip_adapters = True
    _pools_prompts = False  # the network takes pooled embeddings beside the prompt's

    # What differs between models

    @property
    def _image_channels(self) -> int:
        """The number of channels of an image."""
        return 3

    @property
    def _embeds_guidance(self) -> bool:
        """Whether guidance is an input of the network and not two evaluations of it."""
        return False

    @property
    def network(self) -> nn.Module:
        """The network that predicts noise or velocity."""
        return self.transformer if self._is_flow else self.unet

    @property
    def _size_factor(self) -> int:
        """The number of pixels of which height and width of an image must be multiples."""
        return self._patch_size * self.vae_scale_factor

    def _encode_texts(
        self,
        texts: list[str] | None,
        negatives: list[str] | None,
        guided: bool,
        embeddings: Mapping[str, Tensor],
        scale: float | None,
    ) -> tuple[dict[str, Condition], dict[str, Condition] | None]:
        """Conditions of prompts, and of the negative prompt.

        Args:
            texts: One prompt for all keyframes or one for each; None where embeddings are given.
            negatives: As many copies of the negative prompt; None where it is empty or given.
            guided: Whether negative conditions are wanted.
            embeddings: Given embeddings, by the name of their argument, as many as prompts.
            scale: The scale of LoRAs in the text encoders, or None.
        """
        raise NotImplementedError

    def _prediction(self, options: Mapping[str, Any]) -> Predict:
        """The network's prediction as a function of point, timestep and conditions alone.

        Args:
            options: Arguments for the network's attention.
        """
        raise NotImplementedError

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        """The modes of the latents' posteriors `(K, C, h, w)`, scaled, of pixels in [0, 1]."""
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        mode = self.vae.encode((2 * pixels - 1).to(self.vae.dtype)).latent_dist.mode()
        return (mode.float() - shift) * self.vae.config.scaling_factor

    def _decode_latents(self, latents: Tensor) -> Tensor:
        """Frames `(K, 3, H, W)` in about [-1, 1]."""
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        scaled = (latents / self.vae.config.scaling_factor + shift).to(self.vae.dtype)
        return self.vae.decode(scaled, return_dict=False)[0]

    @contextmanager
    def _vae_ready(self) -> Iterator[None]:
        """The autoencoder runs in float32 inside where half precision overflows in it."""
        dtype = self.vae.dtype
        upcast = dtype == torch.float16 and self.vae.config.get("force_upcast", False)
        try:
            if upcast:
                self.vae.to(torch.float32)
            yield
        finally:
            if upcast:
                self.vae.to(dtype)

    def _check_safety(self, frames: Tensor) -> tuple[Tensor, list[bool] | None]:
        """Frames `(F, 3, H, W)` in [-1, 1] and a flag for each, where there is a safety checker."""
        return frames, None

    # What is the same for all

    @property
    def device_of_work(self) -> torch.device:
        """The device on which networks run, also while they are offloaded."""
        return self._execution_device

    def pixels(self, images: Sequence[Image] | Tensor) -> Tensor:
        """Images as one tensor.

        Args:
            images: Images of one size, as `__call__` takes keyframes.

        Returns:
            `(P, 3, H, W)`, float32 in [0, 1]; 1 in place of 3 for models of grey images.

        Raises:
            ValueError: If images are none, or their sizes differ or do not fit the model.
        """
        return to_keyframes(images, self._image_channels, self._size_factor, least=1)

    @torch.no_grad()
    def encode(
        self, images: Sequence[Image] | Tensor, *, max_batch_size: int | None = None
    ) -> Tensor:
        """The clean latents of images.

        Args:
            images: Images of one size, as `__call__` takes keyframes.
            max_batch_size: Largest batch given to the autoencoder, which also gets at most
                1024 x 1024 pixels at once, but one image at least; None for no limit.

        Returns:
            `(P, C, h, w)`, float32: the modes of the posteriors, scaled as the network takes them.

        Raises:
            ValueError: If images are none, or their sizes differ or do not fit the model.
        """
        pixels = self.pixels(images)
        return run(self._encoding(pixels.to(self.device_of_work), max_batch_size))

    @torch.no_grad()
    def decode(self, latents: Tensor, *, max_batch_size: int | None = None) -> Tensor:
        """The images of clean latents.

        Args:
            latents: `(K, C, h, w)`, scaled as the network takes them.
            max_batch_size: Largest batch given to the autoencoder, which also gets at most
                1024 x 1024 pixels at once, but one image at least; None for no limit.

        Returns:
            `(K, 3, H, W)`, float32 in [0, 1]; 1 in place of 3 for models of grey images.

        Raises:
            ValueError: If latents are not finite, or what is decoded is not.
        """
        check_points(latents=latents)
        return to_unit(run(self._decoding(latents.to(self.device_of_work), max_batch_size)))

    def _encoding(
        self, pixels: Tensor, max_batch_size: int | None, learned: Learned | None = None
    ) -> Generator[Event, Any, Tensor]:
        """Events of encoding; returns clean latents."""
        size = (learned or Learned()).of_images(pixels.shape[-2:].numel(), max_batch_size)
        with self._vae_ready():
            return (yield from _batches("encode", self._encode_pixels, pixels, size))

    def _decoding(
        self, latents: Tensor, max_batch_size: int | None, learned: Learned | None = None
    ) -> Generator[Event, Any, Tensor]:
        """Events of decoding; returns frames in about [-1, 1]."""
        pixels = latents.shape[-2] * latents.shape[-1] * getattr(self, "vae_scale_factor", 1) ** 2
        size = (learned or Learned()).of_images(pixels, max_batch_size)
        with self._vae_ready():
            return (yield from _batches("decode", self._decode_latents, latents, size))

    def _read_schedule(self, num_steps: int, strength: float, size: tuple[int, int]) -> Schedule:
        """The noise levels of this pipeline's scheduler, which must be of the model's kind."""
        if is_flow(self.scheduler) != self._is_flow:
            kind = "a rectified flow" if self._is_flow else "a variance-preserving schedule"
            raise ValueError(
                f"{type(self).__name__} needs a scheduler with the levels of {kind}, but has "
                f"{type(self.scheduler).__name__}."
            )
        return read_schedule(
            self.scheduler,
            num_steps,
            strength=strength,
            num_tokens=size[0] * size[1] // self._size_factor**2,
            even=self._even_levels,
        )


def _batches(
    stage: str, function: Callable[[Tensor], Tensor], values: Tensor, size: BatchSize
) -> Generator[Event, Any, Tensor]:
    """Events of a function of batches; returns what it gives, in order, checked to be finite."""

    def apply(chunk: slice) -> Tensor:
        network_called()
        return function(values[chunk])

    pieces, done = list[Tensor](), 0
    yield Event(stage, 0, len(values))
    for piece in size.run(len(values), apply):
        pieces.append(piece)
        done += len(piece)
        if done == len(values):
            break
        yield Event(stage, done, len(values))
    found = torch.cat(pieces).contiguous()  # in memory as it will be after loading from a file
    what = {"encode": "Encoding the images", "decode": "Decoding the latents"}[stage]
    check_finite_values(found, what)
    yield Event(stage, len(values), len(values))
    return found


def check_finite_values(values: Tensor, what: str) -> None:
    """Refuse values that a model has made of finite ones, if they are not finite.

    Raises:
        ValueError: If one is not.
    """
    if not values.isfinite().all():
        raise ValueError(
            f"{what} gave NaN or infinite values: the model's weights are broken, or its dtype is "
            "too narrow for it."
        )


def to_unit(frames: Tensor) -> Tensor:
    """Frames in [-1, 1] as float32 in [0, 1]."""
    return (frames.float() / 2 + 0.5).clamp(0, 1)
