"""What a morph asks of a model, whichever it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from riemannian_diffusion.adaptation import Adaptation, LoraMix
from riemannian_diffusion.arguments import check_kind, check_points
from riemannian_diffusion.pipelines.conditioning import Conditions, Denoiser, pack
from riemannian_diffusion.pipelines.inputs import Image, given_texts, to_pixels
from riemannian_diffusion.pipelines.schedules import Schedule, ddim_schedule


class MorphableModel:
    """The part of a pipeline that differs between models.

    Mixed into a diffusers pipeline. A model says how texts become conditions (`_encode_texts`) and
    what its network predicts under them (`_predict`), and where it is not as Stable Diffusion: its
    network, its levels of noise (`_schedule`), how images become latents and back (`_encode`,
    `_decode`, `_size_factor`, `_image_channels`), whether IP-Adapters fit it, and what checks its
    frames (`_check_safety`).
    """

    _image_channels = 3
    _has_ip_adapters = True
    _pools_prompts = False  # the network takes pooled embeddings beside the prompt's
    _embeds_guidance = False  # guidance is an input of the network, not two evaluations

    @property
    def _network(self) -> nn.Module:
        return self.unet

    @property
    def _size_factor(self) -> int:
        return self.vae_scale_factor

    def _schedule(self, num_inference_steps: int, size: tuple[int, int]) -> Schedule:
        return ddim_schedule(self.scheduler, num_inference_steps)

    def _encode_texts(self, texts, negatives, guided: bool, embeddings: dict[str, Tensor]):
        """Conditions of prompts, and of negative ones where there is guidance.

        Args:
            texts: One for all keyframes or one for each; None where embeddings are given.
            negatives: As many, all the same; None where they are given, or empty.
            guided: Whether negative ones are needed.
            embeddings: Those given, by the name of their argument, as many.
        """
        raise NotImplementedError

    def _predict(self, x: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        """The network's prediction at points `(K, C, h, w)`."""
        raise NotImplementedError

    def _image_conditions(
        self, images, embeddings, guided: bool, num_keyframes: int
    ) -> tuple[Conditions, Conditions]:
        """Conditions of images for IP-Adapters, and negative ones."""
        if images is None and embeddings is None:
            return {}, {}
        if not self._has_ip_adapters:
            raise ValueError(f"{type(self).__name__} takes no `ip_adapter_image`.")
        if getattr(self._network, "encoder_hid_proj", None) is None:
            raise ValueError(
                "`ip_adapter_image` and its embeddings need an IP-Adapter: call `load_ip_adapter`."
            )
        if embeddings is not None:
            check_kind(Sequence, ip_adapter_image_embeds=embeddings)
            check_points(**{f"ip_adapter_image_embeds[{i}]": e for i, e in enumerate(embeddings)})
            allowed = {num * (2 if guided else 1) for num in (1, num_keyframes)}
            if any(len(one) not in allowed for one in embeddings):
                half = " behind as many negative ones" if guided else ""
                raise ValueError(
                    "`ip_adapter_image_embeds` must have one entry for all keyframes or one for "
                    f"each{half}, {' or '.join(map(str, sorted(allowed)))}, but got "
                    f"{[len(one) for one in embeddings]}."
                )
        found = self.prepare_ip_adapter_image_embeds(
            images, embeddings, self._execution_device, 1, guided
        )
        halves = [one.chunk(2) if guided else (one, one) for one in found]
        negative, positive = ({f"image_{i}": h[n] for i, h in enumerate(halves)} for n in (0, 1))
        return positive, negative

    def _encode(self, pixels: Tensor, max_batch_size: int | None) -> Tensor:
        """The modes of the latents' posteriors, scaled, float32."""
        with self._vae_as_configured() as dtype:
            images = (2 * pixels - 1).to(dtype).split(max_batch_size or len(pixels))
            modes = [self.vae.encode(batch).latent_dist.mode() for batch in images]
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return (torch.cat(modes).float() - shift) * self.vae.config.scaling_factor

    def _decode(self, latents: Tensor, max_batch_size: int | None) -> Tensor:
        """Frames `(F, 3, H, W)` in [-1, 1]."""
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        with self._vae_as_configured() as dtype:
            scaled = (latents / self.vae.config.scaling_factor + shift).to(dtype)
            batches = scaled.split(max_batch_size or len(scaled))
            return torch.cat([self.vae.decode(batch, return_dict=False)[0] for batch in batches])

    def _check_safety(self, frames: Tensor) -> tuple[Tensor, list[bool] | None]:
        """Frames and a flag for each, where there is a safety checker."""
        return frames, None

    # What is the same for all

    def _condition(
        self,
        texts: Sequence[str],
        negative_prompt: str,
        guided: bool,
        embeddings: dict[str, Tensor],
        images: tuple[Any, Any],
        adaptation: Adaptation | None,
        num_keyframes: int,
    ) -> tuple[Denoiser, Tensor, Tensor | None]:
        """The network under all its conditions, these for the keyframes, and negative ones."""
        prompts, negatives = given_texts(texts, negative_prompt, embeddings)
        num = len(texts) if prompts else len(embeddings["prompt_embeds"])
        embeddings = {
            name: value[:1].expand(num, *value.shape[1:]) if "negative" in name else value
            for name, value in embeddings.items()
        }
        positive, negative = self._encode_texts(prompts, negatives, guided, embeddings)
        shown, unlike = self._image_conditions(*images, guided, num_keyframes)
        mix = None
        if adaptation is not None:
            if adaptation.num_images != num_keyframes:
                raise ValueError(
                    f"`adaptation` was fitted to {adaptation.num_images} images, but there are "
                    f"{num_keyframes} keyframes: fit it again with `adapt`."
                )
            device = self._execution_device
            if adaptation.embeddings is not None:
                positive["encoder_hidden_states"] = adaptation.embeddings.to(device)
            if adaptation.loras is not None:
                loras = [{n: w.to(device) for n, w in one.items()} for one in adaptation.loras]
                mix = LoraMix(self._network, loras)
                shown["lora_weights"] = torch.eye(num_keyframes, device=device)
                # along the path guidance's other half has the LoRAs in equal parts
                unlike["lora_weights"] = shown["lora_weights"].mean(0, keepdim=True)
        packed, shapes = pack(positive | shown)
        if len(packed) not in (1, num_keyframes):
            raise ValueError(
                "Embeddings must be one for all keyframes or one for each, but there are "
                f"{len(packed)} for {num_keyframes} keyframes."
            )
        other = None
        if guided:
            other, found = pack(negative | unlike)
            if found != shapes:
                raise ValueError(
                    "Positive and negative conditions must have one shape each, but they have "
                    f"{_readable(shapes)} and {_readable(found)}."
                )
            other = other[:1]
        return Denoiser(self._network, self._predict, shapes, mix), packed, other

    @contextmanager
    def _vae_as_configured(self) -> Iterator[torch.dtype]:
        """The dtype to run the autoencoder in: float32 where half precision overflows in it."""
        dtype = self.vae.dtype
        upcast = dtype == torch.float16 and self.vae.config.get("force_upcast", False)
        try:
            if upcast:
                self.vae.to(torch.float32)
            yield self.vae.dtype
        finally:
            if upcast:
                self.vae.to(dtype)

    def _show(self, latents: Tensor, max_batch_size: int | None) -> Tensor:
        """Frames `(F, 3, H, W)` in [0, 1], float32."""
        return to_unit(self._decode(latents, max_batch_size))

    def _keyframes(self, images: Sequence[Image]) -> Tensor:
        """Keyframes `(P, 3, H, W)` in [0, 1], checked."""
        pixels = [to_pixels(image, i, self._image_channels) for i, image in enumerate(images)]
        if len(pixels) < 2:
            raise ValueError(f"A morph needs at least 2 images, but got {len(pixels)}.")
        sizes = [tuple(p.shape[-2:]) for p in pixels]
        if len(set(sizes)) > 1:
            raise ValueError(
                f"All images of a morph must have one size, but got (height, width) {sizes}: "
                "resize or crop them first."
            )
        factor = self._size_factor
        if sizes[0][0] % factor or sizes[0][1] % factor:
            raise ValueError(
                f"Height and width must be multiples of {factor}, but got {sizes[0]}: resize or "
                "crop the images first."
            )
        return torch.stack(pixels)


def to_unit(frames: Tensor) -> Tensor:
    """Frames in [-1, 1] as float32 in [0, 1]."""
    return (frames.float() / 2 + 0.5).clamp(0, 1)


def _readable(shapes: dict[str, torch.Size]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in shapes.items()}
