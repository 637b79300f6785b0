"""How each denoiser of diffusers is called: the names of its arguments, its time, its sign."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from riemannian_diffusion.score.labels import MixedLabels

PROMPT = "encoder_hidden_states"
LABELS = "class_labels"

# The time that a network takes, from a timestep, the number of timesteps, and its config.
Time = Callable[[Tensor, int, Any], Tensor]


def _timestep(timestep: Tensor, num: int, config: Any) -> Tensor:
    return timestep


def _fraction(timestep: Tensor, num: int, config: Any) -> Tensor:
    return timestep / num


def _fraction_of_data(timestep: Tensor, num: int, config: Any) -> Tensor:
    return 1 - timestep / num


def _scaled(timestep: Tensor, num: int, config: Any) -> Tensor:
    return timestep * config.timestep_scale


def _from_zero(timestep: Tensor, num: int, config: Any) -> Tensor:
    return timestep - 1


@dataclass(frozen=True)
class Calling:
    """How a class of networks is called, as its own pipeline in diffusers calls it.

    Points are its first argument. All others are given by name.

    Attributes:
        time: The time that it takes.
        sign: The sign of its output: -1 where a flow predicts `x_0 - eps`.
        needs: Arguments without which it fails, although its signature has a default for them.
        unbatched: Arguments that it takes once for all points.
        casts: Whether it needs the time in the dtype of points.
    """

    time: Time = _timestep
    sign: int = 1
    needs: tuple[str, ...] = ()
    unbatched: tuple[str, ...] = ()
    casts: bool = False


_IDS = ("img_ids", "txt_ids")  # the places of tokens: (number of tokens, axes)
_TOKENS = Calling(time=_fraction, needs=(PROMPT, *_IDS), unbatched=_IDS)

CALLED: dict[str, Calling] = {
    "AuraFlowTransformer2DModel": Calling(time=_fraction, needs=(PROMPT,)),
    "BriaFibo2Transformer2DModel": Calling(time=_fraction),
    "BriaTransformer2DModel": Calling(needs=(PROMPT, *_IDS), unbatched=_IDS),
    "ChromaTransformer2DModel": _TOKENS,
    "CogView3PlusTransformer2DModel": Calling(),
    "CogView4Transformer2DModel": Calling(),
    "DiTTransformer2DModel": Calling(needs=(LABELS,)),
    "ErnieImageTransformer2DModel": Calling(),
    "Flux2Transformer2DModel": _TOKENS,
    "Flux3Transformer2DModel": _TOKENS,
    "FluxTransformer2DModel": Calling(
        time=_fraction, needs=(PROMPT, "pooled_projections", *_IDS), unbatched=_IDS
    ),
    "GlmImageTransformer2DModel": Calling(time=_from_zero),
    "HunyuanImageTransformer2DModel": Calling(casts=True),
    "Kandinsky3UNet": Calling(needs=(PROMPT, "encoder_attention_mask")),
    "Krea2Transformer2DModel": Calling(time=_fraction, unbatched=("position_ids",)),
    "LongCatImageTransformer2DModel": _TOKENS,
    "Lumina2Transformer2DModel": Calling(time=_fraction_of_data, sign=-1),
    "OvisImageTransformer2DModel": _TOKENS,
    "PRXTransformer2DModel": Calling(time=_fraction),
    "PixArtTransformer2DModel": Calling(needs=(PROMPT,)),
    "PriorTransformer": Calling(),
    "SD3Transformer2DModel": Calling(needs=(PROMPT, "pooled_projections")),
    "SanaTransformer2DModel": Calling(time=_scaled),
    "Transformer2DModel": Calling(),
    "UNet1DModel": Calling(),
    "UNet2DConditionModel": Calling(needs=(PROMPT,)),
    "UNet2DModel": Calling(),
}
"""The classes of denoisers that `DiffusionScore` calls."""

REFUSED: dict[str, tuple[str, ...]] = {
    "is for videos": (
        *("AllegroTransformer3DModel", "AnyFlowFARTransformer3DModel", "AnyFlowTransformer3DModel"),
        *("ChronoEditTransformer3DModel", "CogVideoXTransformer3DModel"),
        *("ConsisIDTransformer3DModel", "Cosmos3OmniTransformer", "CosmosTransformer3DModel"),
        *("EasyAnimateTransformer3DModel", "HeliosTransformer3DModel", "I2VGenXLUNet"),
        *("HunyuanVideo15Transformer3DModel", "HunyuanVideoFramepackTransformer3DModel"),
        *("HunyuanVideoTransformer3DModel", "Kandinsky5Transformer3DModel"),
        *("Kandinsky6SRTransformer3DModel", "Kandinsky6Transformer3DModel"),
        *("LTX2VideoTransformer3DModel", "LTXVideoTransformer3DModel", "LatteTransformer3DModel"),
        *("MiniMaxH3Transformer3DModel", "MochiTransformer3DModel", "MotifVideoTransformer3DModel"),
        *("SanaVideoTransformer3DModel", "SanaWMLTX2RefinerTransformer3DModel"),
        *("SanaWMTransformer3DModel", "SkyReelsV2Transformer3DModel", "TransformerTemporalModel"),
        *("UNet3DConditionModel", "UNetMotionModel", "UNetSpatioTemporalConditionModel"),
        *("WanAnimate2Transformer3DModel", "WanAnimateTransformer3DModel"),
        *("WanTransformer3DModel", "WanVACETransformer3DModel"),
    ),
    "is for sound": (
        *("AceStepTransformer1DModel", "AudioLDM2UNet2DConditionModel"),
        *("LongCatAudioDiTTransformer", "MiniMaxMusic3Transformer1DModel"),
        *("StableAudio3DiTModel", "StableAudioDiTModel", "T5FilmDecoder"),
    ),
    "is for molecules": ("RFD4ProteinaTransformer",),
    "predicts discrete tokens, which have no score": ("UVit2DModel",),
    "takes lists, and not one tensor for each argument": (
        *("BriaFiboTransformer2DModel", "OmniGenTransformer2DModel", "ZImageTransformer2DModel"),
    ),
    "takes tokens whose places are given by lists of sizes": (
        *("JoyImageEditPlusTransformer3DModel", "NucleusMoEImageTransformer2DModel"),
        *("QwenImage21Transformer2DModel", "QwenImageTransformer2DModel"),
    ),
    "takes embeddings that are stacked by layers, and not by points": (
        "HiDreamImageTransformer2DModel",
    ),
    "takes rotary embeddings that its pipeline computes from the image size": (
        *("HunyuanDiT2DModel", "LuminaNextDiT2DModel"),
    ),
    "takes texts and images as one sequence": (
        *("Ideogram4Transformer2DModel", "UniDiffuserModel"),
    ),
    "takes a source image beside the noise": (
        *("DreamLiteTransformer2DModel", "DreamLiteUNetModel", "JoyImageEditTransformer3DModel"),
    ),
    "takes a continuous time of its own schedule": ("StableCascadeUNet",),
}
"""Why `DiffusionScore` refuses the other classes of denoisers."""

_REASONS = {name: reason for reason, names in REFUSED.items() for name in names}


class Call:
    """Calls a network with points, a timestep and conditions by name.

    Args:
        network: The network.
        num_timesteps: The number of timesteps of training.

    Attributes:
        calling: How its class is called; None for a network that is not of diffusers, which is
            called `network(x, timestep, **conditions, return_dict=False)`. The name of the second
            argument does not matter unless one is named `timestep`.

    Raises:
        ValueError: If its class is refused.
    """

    def __init__(self, network: nn.Module, num_timesteps: int):
        kind: Any = type(getattr(network, "_orig_mod", network))  # without torch.compile's wrapper
        names = [one.__name__ for one in kind.__mro__]
        self.network, self.num_timesteps, self.name = network, num_timesteps, kind.__name__
        self.calling = next((CALLED[name] for name in names if name in CALLED), None)
        self._parameters = inspect.signature(kind.forward).parameters
        if self.calling is None and kind.__module__.startswith("diffusers."):
            why = _REASONS.get(self.name, "is not a known denoiser of images")
            raise ValueError(
                f"DiffusionScore cannot call a {self.name}: it {why}. Wrap it in a module that is "
                "called `model(x, timestep, return_dict=False)` and returns a tuple."
            )

    def check(self, names: set[str]) -> None:
        """Refuse conditions that the network does not take, and calls that lack one.

        Raises:
            ValueError: Naming them.
        """
        if self.calling is None:
            return
        own = {*list(self._parameters)[:2], "timestep", "return_dict"}  # the first is `self`
        known = self._parameters.keys() - own
        unknown = names & own if "added_cond_kwargs" in known else names - known
        if unknown:
            raise ValueError(
                f"A {self.name} takes no conditions {sorted(unknown)}: it takes {sorted(known)}."
            )
        needed = {n for n, one in self._parameters.items() if one.default is one.empty} - own
        missing = (needed | set(self.calling.needs)) - names
        if missing:
            raise ValueError(f"A {self.name} needs further `conditions`: {sorted(missing)}.")

    def is_unbatched(self, name: str) -> bool:
        """Whether the network takes a condition once for all points."""
        return self.calling is not None and name in self.calling.unbatched

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The prediction at points `(K, *shape)`, with conditions `(K, ...)`."""
        calling = self.calling
        if calling is None:
            others = {**conditions, "return_dict": False}
            if "timestep" in self._parameters:
                return self.network(x, timestep=timestep, **others)[0]
            return self.network(x, timestep, **others)[0]
        config = getattr(self.network, "config", None)
        time = calling.time(timestep, self.num_timesteps, config).expand(len(x))
        given: dict[str, Any] = {"timestep": time.to(x.dtype) if calling.casts else time}
        added = {}
        for name, value in conditions.items():
            if name not in self._parameters:
                added[name] = value
            elif name in calling.unbatched:
                given[name] = value[0]
            elif name == LABELS and _are_weights(value, config):
                given[name] = MixedLabels(value)
            else:
                given[name] = value
        if added:
            given["added_cond_kwargs"] = added
        return calling.sign * self.network(x, **given, return_dict=False)[0]


def _are_weights(labels: Tensor, config: Any) -> bool:
    """Whether labels are weights of classes, `(K, num_classes)`."""
    table = getattr(config, "class_embed_type", None) is None
    return table and labels.ndim == 2 and labels.is_floating_point()
