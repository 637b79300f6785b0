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
from riemannian_diffusion.levels import Schedule, even_sigmas, linear_shift, read_schedule
from riemannian_diffusion.pipelines.inputs import Image, to_keyframes
from riemannian_diffusion.pipelines.latents import decode_images, encode_images, statistics
from riemannian_diffusion.pipelines.preflight import check_parts, check_tiling
from riemannian_diffusion.pipelines.prompts import Encoded, TextRequest
from riemannian_diffusion.score.network import Predict, linear_guidance
from riemannian_diffusion.score.schedulers import check_scheduler, is_flow

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

    def guide(self, positive: Tensor, negative: Tensor, scale: float) -> Tensor:
        """Guidance by the rule of the prediction."""
        return getattr(self.predict, "guide", linear_guidance)(positive, negative, scale)


class MorphableModel:
    """The part of a pipeline that differs between models.

    Mixed into a diffusers pipeline. A family of models says three things where it is unlike the
    others: how texts become conditions (`_encode_texts`), how latents are scaled for the network
    (`_normalise`, `_denormalise`), and what the network predicts at a time under conditions
    (`_prediction`). A family of flows also says how its levels are shifted (`_mu`, `_sigmas`). The
    attributes below say the rest.
    """

    if TYPE_CHECKING:  # what diffusers' pipelines bring along
        unet: Any
        vae: Any
        transformer: Any
        scheduler: Any
        text_encoder: Any
        config: Any
        vae_scale_factor: int
        _execution_device: torch.device
        encode_prompt: Any
        prepare_ip_adapter_image_embeds: Any
        run_safety_checker: Any
        progress_bar: Any
        maybe_free_model_hooks: Any
        register_modules: Any

    _is_flow = False  # the network models a rectified flow
    _even_levels = False  # for a flow: levels are even before the shift
    _patch_size = 1  # latents along each side of a patch
    _has_ip_adapters = False
    _takes_classes = False
    _additions: tuple[str, ...] = ()  # further embeddings that the network is given
    _repeats_masks = False  # masks may be (P, L C), one number per number of the embeddings
    _masks_texts = False  # embeddings have masks, though `encode_prompt` takes none
    _overflows_in_half = False  # the autoencoder may overflow in float16: `force_upcast` counts

    # What differs between models

    @property
    def _image_channels(self) -> int:
        """The number of channels of an image."""
        return 3

    @property
    def _input_channels(self) -> int | None:
        """The number of channels that the network must take for the autoencoder's latents."""
        config = self.vae.config
        return config.get("latent_channels") or config.get("z_dim")

    @property
    def _output_channels(self) -> int | None:
        """The number of channels that the network's config states for its output."""
        return self._input_channels

    @property
    def _embeds_guidance(self) -> bool:
        """Whether guidance is an input of the network and not two evaluations of it."""
        return False

    @property
    def network(self) -> nn.Module:
        """The network that predicts noise or velocity."""
        return self.unet if hasattr(self, "unet") else self.transformer

    @property
    def _size_factor(self) -> int:
        """The number of pixels of which height and width of an image must be multiples."""
        return self._patch_size * self.vae_scale_factor

    def _mu(self, size: tuple[int, int], num_steps: int) -> float:
        """The shift of a flow, for schedulers that shift by the image size."""
        return linear_shift(self.scheduler, size[0] * size[1] // self._size_factor**2)

    def _sigmas(self, num_steps: int) -> Sequence[float] | None:
        """The levels of a flow before the shift; None for the scheduler's own."""
        return even_sigmas(num_steps) if self._even_levels else None

    def _encode_texts(self, request: TextRequest) -> Encoded:
        """The conditions of prompts, and of the negative prompt; None if none are wanted."""
        raise NotImplementedError

    def _prediction(self, options: Mapping[str, Any]) -> Predict:
        """The network's prediction as a function of point, timestep and conditions alone.

        Args:
            options: Arguments for the network's attention.
        """
        raise NotImplementedError

    def _normalise(self, latents: Tensor) -> Tensor:
        """The autoencoder's latents, scaled as the network takes them."""
        mean, std = statistics(self.vae, latents.device)
        return (latents - mean) / std

    def _denormalise(self, latents: Tensor) -> Tensor:
        """The inverse of `_normalise`."""
        mean, std = statistics(self.vae, latents.device)
        return latents * std + mean

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        """Latents `(K, C, h, w)`, scaled as the network takes them, of pixels in [0, 1]."""
        return self._normalise(encode_images(self.vae, 2 * pixels - 1))

    def _decode_latents(self, latents: Tensor) -> Tensor:
        """Frames `(K, 3, H, W)` in about [-1, 1]."""
        return decode_images(self.vae, self._denormalise(latents))

    @contextmanager
    def _vae_ready(self) -> Iterator[None]:
        """The autoencoder runs in float32 inside where half precision overflows in it.

        Raises:
            ValueError: If there is no autoencoder, or it cannot work in tiles as it was told to.
        """
        check_parts(self)
        check_tiling(self.vae)
        dtype = self.vae.dtype
        wide = self._overflows_in_half and self.vae.config.get("force_upcast")
        upcast = dtype == torch.float16 and wide
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

    def _spaced(self, schedule: Schedule, spacing: str | None) -> Schedule:
        """The levels that inversion and sampling visit; see `spacing` of `invert`.

        Raises:
            ValueError: If the network has embeddings of whole timesteps alone, and `spacing` asks
                for others.
        """
        config: Any = self.network.config
        whole = config.get("time_embedding_type") == "learned"
        if whole and spacing == "noise":
            raise ValueError(
                "`spacing` 'noise' needs timesteps between whole ones, for which this network has "
                "learned no embeddings: leave `spacing` out."
            )
        if spacing is None:
            spacing = "scheduler" if whole or schedule.is_flow else "noise"
        return schedule.even_in_noise() if spacing == "noise" else schedule

    def _read_schedule(self, num_steps: int, strength: float, size: tuple[int, int]) -> Schedule:
        """The noise levels of this pipeline's scheduler, which must be of the model's kind."""
        check_scheduler(self.scheduler)
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
            mu=self._mu(size, num_steps),
            sigmas=self._sigmas(num_steps),
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
