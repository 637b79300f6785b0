"""Conditions of a morph, the model under them, and what was loaded from files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from riemannian_diffusion.adaptation import Adaptation, LoraMix
from riemannian_diffusion.arguments import check_kind, check_points
from riemannian_diffusion.files import digest_of
from riemannian_diffusion.levels import Levels, Schedule
from riemannian_diffusion.pipelines.classes import Label
from riemannian_diffusion.pipelines.model import LORA_WEIGHTS, MixedPrediction, MorphableModel
from riemannian_diffusion.pipelines.morph import Keyframes, MorphPath
from riemannian_diffusion.pipelines.preflight import check_model, check_parts
from riemannian_diffusion.pipelines.prompts import (
    TextRequest,
    check_embeddings,
    given_prompts,
    given_texts,
    padded,
    read_options,
    text_width,
)
from riemannian_diffusion.pipelines.texts import warn_of_texts
from riemannian_diffusion.score import Condition, Conditions
from riemannian_diffusion.score.schedulers import meaning_of


class ConditionedModel(MorphableModel):
    """A model with conditions: prompts, embeddings, images for IP-Adapters, adaptations."""

    @torch.no_grad()
    def condition(
        self,
        prompt: str | Sequence[str] = "",
        negative_prompt: str = "",
        *,
        prompt_2: str | Sequence[str] | None = None,
        prompt_3: str | Sequence[str] | None = None,
        negative_prompt_2: str | None = None,
        negative_prompt_3: str | None = None,
        max_sequence_length: int | None = None,
        clip_skip: int | None = None,
        class_labels: Label | Sequence[Label] | None = None,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] | None = None,
        target_size: tuple[int, int] | None = None,
        prompt_embeds: Tensor | Sequence[Tensor] | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | Sequence[Tensor] | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Sequence[Tensor] | None = None,
        adaptation: Adaptation | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        do_classifier_free_guidance: bool = True,
    ) -> Conditions:
        """Everything that the network is conditioned on, for one morph.

        Args:
            prompt: One prompt for all keyframes, or one for each: along the path their embeddings
                are interpolated.
            negative_prompt: Used by guidance above 1, and by `score_mode="difference"` of `solve`.
            prompt_2: Prompts for the second text encoder; None takes those of the first.
            prompt_3: Prompts for the third text encoder; None takes those of the first.
            negative_prompt_2: The negative prompt for the second text encoder.
            negative_prompt_3: The negative prompt for the third text encoder.
            max_sequence_length: The number of tokens to which long-text encoders pad or cut.
            clip_skip: The number of last layers of CLIP that are left out.
            class_labels: Classes, for models of classes, as numbers or as names that the model
                has: one for all keyframes or one for each, interpolated along the path in the space
                of the network's embeddings.
            original_size: Height and width before resizing, on which Stable Diffusion XL is
                conditioned; None takes the size of the images.
            crops_coords_top_left: Top and left edge of the crop, for Stable Diffusion XL; None is
                `(0, 0)`.
            target_size: Target height and width, for Stable Diffusion XL; None takes the size of
                the images.
            prompt_embeds: Embeddings in place of prompts, as `encode_prompt` gives them: `(1, L,
                C)` for all keyframes or `(P, L, C)`; for Z-Image also a list of `(L, C)`.
            prompt_attention_mask: The mask of `prompt_embeds`, `(1, L)` or `(P, L)`, for models
                that take one: 1 for a token, 0 for padding.
            negative_prompt_embeds: Embeddings in place of the negative prompt, the same for all
                keyframes.
            negative_prompt_attention_mask: The mask of `negative_prompt_embeds`.
            pooled_prompt_embeds: Pooled embeddings `(1, C)` or `(P, C)`, for models that take them.
            negative_pooled_prompt_embeds: Pooled embeddings in place of the negative prompt.
            ip_adapter_image: Images for IP-Adapters, as in the model's own pipeline.
            ip_adapter_image_embeds: Embeddings of such images, one tensor per adapter: `(1, N, D)`
                for all keyframes or `(P, N, D)`, interpolated along the path; after as many
                negative ones, unless `do_classifier_free_guidance` is False.
            adaptation: What `riemannian_diffusion.adapt` has fitted to the keyframes: embeddings of
                their prompts, and LoRAs that are mixed for each point.
            cross_attention_kwargs: Arguments of the network's attention, such as `{"scale": 0.5}`
                for LoRAs.
            do_classifier_free_guidance: Whether negative conditions are prepared. Guidance and
                differences need them.

        Returns:
            The conditions, for `invert` or `__call__`.

        Raises:
            ValueError: If an argument has a wrong shape, two exclude each other, or the model does
                not take one.

        Warns:
            TextWarning: If a text encoder does not read a prompt to its end.

        Examples:
            >>> from riemannian_diffusion import demo
            >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
            >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
            >>> conditions = pipe.condition(["a red cube", "a blue cube"])
            >>> tuple(conditions.positive["encoder_hidden_states"].values.shape)
            (1, 2, 16, 64)
        """
        check_model(self)
        texts = given_prompts(prompt)
        check_kind(str, negative_prompt=negative_prompt)
        if cross_attention_kwargs is not None:
            check_kind(dict, cross_attention_kwargs=cross_attention_kwargs)
        options = dict(cross_attention_kwargs or {})
        given: dict[str, Any] = {
            "prompt_embeds": prompt_embeds,
            "prompt_attention_mask": prompt_attention_mask,
            "negative_prompt_embeds": negative_prompt_embeds,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
            "pooled_prompt_embeds": pooled_prompt_embeds,
            "negative_pooled_prompt_embeds": negative_pooled_prompt_embeds,
        }
        embeddings = {name: value for name, value in given.items() if value is not None}
        if self._masks_texts:
            embeddings = padded(embeddings)
        check_embeddings(self, embeddings)
        prompts, negatives = given_texts(texts, negative_prompt, embeddings)
        num = len(texts) if prompts else len(embeddings["prompt_embeds"])
        embeddings = {
            name: value[:1].expand(num, *value.shape[1:]) if "negative" in name else value
            for name, value in embeddings.items()
        }
        further = {
            "prompt_2": prompt_2,
            "prompt_3": prompt_3,
            "negative_prompt_2": negative_prompt_2,
            "negative_prompt_3": negative_prompt_3,
        }
        numbers = {"max_sequence_length": max_sequence_length, "clip_skip": clip_skip}
        found = read_options(self, num, further, numbers, options.get("scale"))
        if negatives is None and (negative_prompt_2 or negative_prompt_3):
            negatives = [""] * num
        guided = do_classifier_free_guidance
        if prompts is not None or (guided and "negative_prompt_embeds" not in embeddings):
            check_parts(self, texts=True)
        warn_of_texts(self, [*(prompts or ()), *(negatives or ())], max_sequence_length)
        request = TextRequest(prompts, negatives, guided, embeddings, found)
        positive, negative = self._encode_texts(request)
        labelled, unlabelled = self._class_conditions(class_labels)
        sizes = self._size_conditions(original_size, crops_coords_top_left, target_size)
        shown, unlike = self._image_conditions(ip_adapter_image, ip_adapter_image_embeds, guided)
        shown, unlike = shown | labelled | sizes, unlike | unlabelled | sizes
        if guided and unlabelled:
            negative = negative or {}
        loras = None
        if adaptation is not None:
            check_kind(Adaptation, adaptation=adaptation)
            if adaptation.embeddings is not None:
                fitted = adaptation.embeddings.to(self.device_of_work)
                positive["encoder_hidden_states"] = Condition.of(fitted)
            if adaptation.loras is not None:
                loras = adaptation.loras
                weights = torch.eye(adaptation.num_images, device=self.device_of_work)
                shown[LORA_WEIGHTS] = Condition.of(weights)
                # the negative prompt has all LoRAs in equal parts, everywhere on the path
                unlike[LORA_WEIGHTS] = Condition.of(weights.mean(0, keepdim=True))
        knots = {c.num_knots for c in (positive | shown).values()} - {1}
        if len(knots) > 1:
            raise ValueError(
                "Prompts, embeddings and `adaptation` must be one for all keyframes or one for "
                f"each, but there are some for {' and some for '.join(map(str, sorted(knots)))}."
            )
        if negative is not None:
            negative = {
                name: c.map(lambda values: values[:, :1]) for name, c in (negative | unlike).items()
            }
        return Conditions(positive | shown, negative, loras, options).to(self.device_of_work)

    def _class_conditions(
        self, labels: Label | Sequence[Label] | None
    ) -> tuple[dict[str, Condition], dict[str, Condition]]:
        """Conditions of class labels, and those without a class."""
        if labels is not None:
            raise ValueError(f"{type(self).__name__} takes no `class_labels`.")
        return {}, {}

    def _size_conditions(
        self,
        original: tuple[int, int] | None,
        crop: tuple[int, int] | None,
        target: tuple[int, int] | None,
    ) -> dict[str, Condition]:
        """Conditions of the sizes and the crop of the images."""
        given = {"original_size": original, "crops_coords_top_left": crop, "target_size": target}
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{type(self).__name__} takes no `{name}`.")
        return {}

    def _image_conditions(
        self, images: Any, embeddings: Sequence[Tensor] | None, guided: bool
    ) -> tuple[dict[str, Condition], dict[str, Condition]]:
        """Conditions of images for IP-Adapters, and negative ones."""
        if images is None and embeddings is None:
            return {}, {}
        if not self._has_ip_adapters:
            raise ValueError(f"{type(self).__name__} takes no `ip_adapter_image`.")
        if getattr(self.network, "encoder_hid_proj", None) is None:
            raise ValueError(
                "`ip_adapter_image` and its embeddings need an IP-Adapter: call `load_ip_adapter`."
            )
        if embeddings is not None:
            check_kind(Sequence, ip_adapter_image_embeds=embeddings)
            check_points(**{f"ip_adapter_image_embeds[{i}]": e for i, e in enumerate(embeddings)})
            if guided and any(len(one) % 2 for one in embeddings):
                raise ValueError(
                    "`ip_adapter_image_embeds` must have as many negative ones before the positive "
                    f"ones, but got {[len(one) for one in embeddings]}; without negative ones pass "
                    "do_classifier_free_guidance=False."
                )
        found = self.prepare_ip_adapter_image_embeds(
            images, embeddings, self.device_of_work, 1, guided
        )
        halves = [one.chunk(2) if guided else (one, one) for one in found]
        negative, positive = (
            {f"image_{i}": Condition.of(half[n]) for i, half in enumerate(halves)} for n in (0, 1)
        )
        return positive, negative

    def _levels(
        self,
        conditions: Conditions,
        schedule: Schedule,
        *,
        guidance_scale: float,
        true_cfg_scale: float,
        guidance_damping: float,
        max_batch_size: int | None,
    ) -> Levels:
        """The model under conditions, connected to this pipeline's network."""
        if true_cfg_scale > 1 and guidance_scale > 1 and not self._embeds_guidance:
            raise ValueError(
                "`guidance_scale` and `true_cfg_scale` mean the same for this model: give one."
            )
        if self._embeds_guidance:
            value = torch.full((1, 1), float(guidance_scale), device=self.device_of_work)
            guidance = {"guidance": Condition(value, "fixed")}
            conditions = conditions.with_fixed(guidance)
            guidance_scale = 1.0
            if guidance_damping and true_cfg_scale <= 1:
                raise ValueError(
                    "This model takes `guidance_scale` as an input of its network, so there is "
                    "nothing to damp: leave `guidance_damping` at 0, or guide by `true_cfg_scale`."
                )
        if guidance_damping and hasattr(self._prediction(conditions.options), "guide"):
            raise ValueError(
                f"`guidance_damping` damps linear guidance, but {type(self).__name__} has another "
                "rule of guidance: leave `guidance_damping` at 0."
            )
        scale = max(guidance_scale, true_cfg_scale) if true_cfg_scale > 1 else guidance_scale
        options = (scale, guidance_damping, max_batch_size)
        return self._connect(Levels(None, None, schedule, conditions, *options))

    def _connect(self, levels: Levels) -> Levels:
        """Levels with this pipeline's network and scheduler, on its device."""
        conditions = levels.conditions.to(self.device_of_work)
        predict = self._prediction(conditions.options)
        if conditions.loras is not None:
            predict = MixedPrediction(predict, LoraMix(self.network, conditions.loras))
        schedule = replace(levels.schedule, scheduler=self.scheduler)
        return replace(
            levels,
            network=self.network,
            predict=predict,
            schedule=schedule,
            conditions=conditions,
        )

    @overload
    def connect(self, made: Keyframes) -> Keyframes: ...
    @overload
    def connect(self, made: MorphPath) -> MorphPath: ...
    def connect(self, made: Keyframes | MorphPath) -> Keyframes | MorphPath:
        """Connect what was loaded from a file to this pipeline's model.

        Stages do so with whatever they are given; what is connected already stays as it is.

        Args:
            made: Keyframes or a path.

        Returns:
            The same on this pipeline's device, with its network.

        Raises:
            ValueError: If another model made them.
        """
        if isinstance(made, MorphPath):
            if made.keys.levels.network is not None:
                return made
            names = ("points", "latents", "beyond", "transported")
            moved = {name: getattr(made, name) for name in names}
            moved = {n: v if v is None else v.to(self.device_of_work) for n, v in moved.items()}
            return replace(made, keys=self.connect(made.keys), **moved)
        check_kind(Keyframes, keys=made)
        if made.levels.network is not None:
            return made
        check_parts(self)
        if made.model != self._digest():
            raise ValueError(
                "These keyframes were made with another model, or with a scheduler of other "
                "levels: load that model, or invert the images again."
            )
        names = ("pixels", "clean", "points", "noise")
        moved = {name: getattr(made, name) for name in names}
        moved = {n: v if v is None else v.to(self.device_of_work) for n, v in moved.items()}
        return replace(made, levels=self._connect(made.levels), **moved)

    def _conditions_for(
        self,
        num: int,
        prompt: str | Sequence[str],
        negative_prompt: str,
        conditions: Conditions | None,
    ) -> Conditions:
        """Conditions that fit a number of keyframes; without `conditions`, empty ones.

        Prompts are checked, but not encoded.
        """
        check_kind(str, negative_prompt=negative_prompt)
        if conditions is None:
            texts = given_prompts(prompt)
            num_knots, conditions = len(texts), Conditions({}, {})
        else:
            check_kind(Conditions, conditions=conditions)
            if negative_prompt or (any(prompt) if isinstance(prompt, (list, tuple)) else prompt):
                raise ValueError("Give `prompt` and `negative_prompt`, or `conditions`, not both.")
            embeds = conditions.positive.get("encoder_hidden_states")
            width = text_width(self.network)
            if embeds is not None and width is not None and embeds.values.shape[-1] != width:
                raise ValueError(
                    f"`conditions` have embeddings of width {embeds.values.shape[-1]}, but this "
                    f"model takes {width}: make them with `condition` of the same pipeline."
                )
            num_knots = conditions.num_knots
        if num_knots not in (1, num):
            raise ValueError(
                "Prompts, embeddings and adaptations must be one for all keyframes or one for "
                f"each, but there are {num_knots} for {num} keyframes."
            )
        return conditions

    def _digest(self) -> str:
        """A digest of everything of the model on which points depend."""
        vae = getattr(self, "vae", None)
        return digest_of((self.network, vae), meaning_of(self.scheduler))
