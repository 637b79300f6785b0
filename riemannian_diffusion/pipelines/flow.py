"""Geodesics of rectified-flow transformers: Stable Diffusion 3 and Flux.

With `x_t = (1 - t) x_0 + t eps` the network predicts the velocity `v = eps - x_0`, so that
`eps = x_t + (1 - t) v` and the score is `-eps / t`.
"""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline, FluxPipeline, StableDiffusion3Pipeline
from torch import Tensor, nn

from riemannian_diffusion.pipelines.conditioning import Conditions
from riemannian_diffusion.pipelines.geodesic_interpolation import GeodesicInterpolationMixin
from riemannian_diffusion.pipelines.inputs import lora_scale
from riemannian_diffusion.pipelines.schedules import Schedule, flow_schedule

MAX_TOKENS = 512  # of Flux's T5, padded to as many


class GeodesicInterpolationFlowPipeline(GeodesicInterpolationMixin):
    """Morph images into each other along geodesics of a rectified-flow transformer.

    Made from the components, a repository or a loaded pipeline of Stable Diffusion 3 or of Flux, it
    is the one of its two subclasses that fits.
    """

    def __new__(cls, *args, **components):
        """One of the subclasses, by the components."""
        if cls is GeodesicInterpolationFlowPipeline:
            cls = _KINDS["StableDiffusion3" if "tokenizer_3" in components else "Flux"]
        return super().__new__(cls)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in diffusers, from safetensors alone."""
        if cls is not GeodesicInterpolationFlowPipeline:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        config = DiffusionPipeline.load_config(pretrained_model_name_or_path, **kwargs)
        kind = cls._kind_of(str(config.get("_class_name")))
        return kind.from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs):
        """As in diffusers."""
        if cls is not GeodesicInterpolationFlowPipeline:
            return super().from_pipe(pipeline, **kwargs)
        return cls._kind_of(type(pipeline).__name__).from_pipe(pipeline, **kwargs)

    @staticmethod
    def _kind_of(name: str) -> type[GeodesicInterpolationFlowPipeline]:
        for part, kind in _KINDS.items():
            if part in name:
                return kind
        raise ValueError(
            f"GeodesicInterpolationFlowPipeline is for Stable Diffusion 3 and Flux, not for {name}."
        )

    @property
    def _network(self) -> nn.Module:
        return self.transformer

    @property
    def _size_factor(self) -> int:
        return 2 * self.vae_scale_factor  # patches of 2 x 2 latents

    def _schedule(self, num_inference_steps: int, size: tuple[int, int]) -> Schedule:
        num_tokens = size[0] * size[1] // self._size_factor**2
        return flow_schedule(
            self.scheduler, num_inference_steps, num_tokens, even=self._even_levels
        )

    _even_levels = False
    _pools_prompts = True


class GeodesicInterpolationSD3Pipeline(GeodesicInterpolationFlowPipeline, StableDiffusion3Pipeline):
    """The same of Stable Diffusion 3 and 3.5."""

    _callback_tensor_inputs = ["latents"]
    _has_ip_adapters = False

    def _encode_texts(self, texts, negatives, guided: bool, embeddings: dict[str, Tensor]):
        hidden, negative, pooled, negative_pooled = self.encode_prompt(
            *(texts, None, None),
            device=self._execution_device,
            do_classifier_free_guidance=guided,
            negative_prompt=negatives,
            lora_scale=lora_scale(self._cross_attention_kwargs),
            **embeddings,
        )
        return (
            {"encoder_hidden_states": hidden, "pooled_projections": pooled},
            {"encoder_hidden_states": negative, "pooled_projections": negative_pooled},
        )

    def _predict(self, x: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        return self.transformer(
            hidden_states=x,
            timestep=timestep.expand(len(x)),
            joint_attention_kwargs=self._cross_attention_kwargs,
            return_dict=False,
            **conditions,
        )[0]


class GeodesicInterpolationFluxPipeline(GeodesicInterpolationFlowPipeline, FluxPipeline):
    """The same of Flux.

    Of a network that takes guidance as an input (Flux.1-dev), `guidance_scale` is that input, as in
    `FluxPipeline`; 1 follows the data most closely. Otherwise it is classifier-free guidance.
    """

    _callback_tensor_inputs = ["latents"]
    _has_ip_adapters = False
    _even_levels = True

    @property
    def _embeds_guidance(self) -> bool:
        return self.transformer.config.guidance_embeds

    def _encode_texts(self, texts, negatives, guided: bool, embeddings: dict[str, Tensor]):
        positive = self._encode_one(texts, embeddings, "", MAX_TOKENS)
        if not guided:
            return positive, {}
        length = positive["encoder_hidden_states"].shape[1]
        return positive, self._encode_one(negatives, embeddings, "negative_", length)

    def _encode_one(self, texts, embeddings, prefix: str, length: int) -> Conditions:
        names = ("prompt_embeds", "pooled_prompt_embeds")
        given = {n: embeddings[prefix + n] for n in names if prefix + n in embeddings}
        hidden, pooled, _ = self.encode_prompt(
            *(None if given else texts or "", None),
            device=self._execution_device,
            max_sequence_length=length,
            lora_scale=lora_scale(self._cross_attention_kwargs),
            **given,
        )
        return {"encoder_hidden_states": hidden, "pooled_projections": pooled}

    def _predict(self, x: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        num, channels, height, width = x.shape
        hidden = conditions["encoder_hidden_states"]
        guidance = None
        if self._embeds_guidance:
            guidance = torch.full((num,), float(self._guidance_scale), device=x.device)
        output = self.transformer(
            hidden_states=self._pack_latents(x, num, channels, height, width),
            timestep=(timestep / self.scheduler.config.num_train_timesteps).expand(num),
            guidance=guidance,
            txt_ids=torch.zeros(hidden.shape[1], 3, device=x.device, dtype=x.dtype),
            img_ids=self._prepare_latent_image_ids(num, height // 2, width // 2, x.device, x.dtype),
            joint_attention_kwargs=self._cross_attention_kwargs,
            return_dict=False,
            **conditions,
        )[0]
        output = output.view(num, height // 2, width // 2, channels, 2, 2)
        return output.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


_KINDS = {
    "StableDiffusion3": GeodesicInterpolationSD3Pipeline,
    "SD3": GeodesicInterpolationSD3Pipeline,
    "Flux": GeodesicInterpolationFluxPipeline,
}
