"""Networks whose LoRAs and attention differ from point to point of a path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from riemannian_diffusion.score.weights import Layers


class LoraMix(nn.Module):
    """A network that mixes LoRAs with different weights for each point of the batch.

    For point k the weights of the network are `W + sum_p weights[k, p] B_p A_p`, as on the paths of
    DiffMorpher (arXiv 2312.07409). Reverse mode, `torch.func` and gradient checkpointing work.
    Compiled networks run uncompiled. Between calls the network has its own weights.

    Args:
        unet: The network, called as in `fit_embeddings`.
        loras: P LoRAs as `fit_lora` returns them, on the device of the points.

    Raises:
        ValueError: If there is no LoRA, or the network lacks a module of a LoRA.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import LoraMix, demo, fit_lora
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
        >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
        >>> latents = torch.zeros(2, 4, 16, 16)  # of two images
        >>> start = torch.zeros(1, 7, pipe.unet.config.cross_attention_dim)
        >>> loras = fit_lora(pipe.unet, pipe.scheduler, latents, start, num_steps=1)
        >>> LoraMix(pipe.unet, loras).num_loras
        2
    """

    def __init__(self, unet: nn.Module, loras: Sequence[Mapping[str, Tensor]]):
        super().__init__()
        if not loras or any(lora.keys() != loras[0].keys() for lora in loras):
            raise ValueError(
                f"`loras` must be one or more LoRAs of the same modules, but got {len(loras)}: fit "
                "them together with `fit_lora`."
            )
        self.unet, self.num_loras = original(unet), len(loras)
        self._names = [k.removesuffix(".lora_A.weight") for k in loras[0] if ".lora_A." in k]
        dtype = Layers(unet).dtype
        for i, name in enumerate(self._names):
            try:
                self.unet.get_submodule(name)
            except AttributeError as error:
                raise ValueError(
                    f"The network has no module {name!r}: the LoRAs were fitted to another one."
                ) from error
            down = torch.cat([lora[f"{name}.lora_A.weight"] for lora in loras])  # (P r, in)
            up = torch.cat([lora[f"{name}.lora_B.weight"] for lora in loras], 1)  # (out, P r)
            self.register_buffer(f"_down{i}", down.to(dtype), persistent=False)
            self.register_buffer(f"_up{i}", up.to(dtype), persistent=False)
        self._weights: Tensor | None = None  # weights of the call in progress

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        encoder_hidden_states: Tensor,
        weights: Tensor,
        return_dict: bool = False,
    ):
        """The output of the network.

        Args:
            x: Noisy points, `(K, C, h, w)`.
            t: One timestep, or timesteps `(K,)`.
            encoder_hidden_states: Prompt embeddings, `(K, L, C)`.
            weights: Weights of the LoRAs, `(K, P)`, or `(1, P)` for all points.
            return_dict: As in diffusers.

        Raises:
            ValueError: If `weights` has another shape.
        """
        if (
            weights.ndim != 2
            or weights.shape[1] != self.num_loras
            or len(weights) not in (1, len(x))
        ):
            raise ValueError(
                f"`weights` must be ({len(x)}, {self.num_loras}), points by LoRAs, but got "
                f"{tuple(weights.shape)}."
            )
        with self.mixing(weights):
            return self.unet(
                x, t, encoder_hidden_states=encoder_hidden_states, return_dict=return_dict
            )

    @contextmanager
    def mixing(self, weights: Tensor) -> Iterator[None]:
        """Mix the LoRAs with weights `(K, P)` in every call of the network inside the context."""
        with self._hooked(weights), ExitStack() as stack:
            for module in self.unet.modules():
                if getattr(module, "gradient_checkpointing", False):
                    theirs: Any = module._gradient_checkpointing_func
                    checkpoint = partial(self._checkpoint, theirs)
                    stack.enter_context(
                        _exchanged(module, "_gradient_checkpointing_func", checkpoint)
                    )
            yield

    @contextmanager
    def _hooked(self, weights: Tensor) -> Iterator[None]:
        """Attach the LoRAs to the network inside the context, unless they are attached already."""
        if self._weights is not None:
            yield
            return
        with ExitStack() as stack:
            # compiled code would not see the hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(_exchanged(self, "_weights", weights))
            for i, name in enumerate(self._names):
                add = partial(self._add, i)
                # before `interpolated_attention`, which must see keys with their LoRAs
                stack.enter_context(
                    self.unet.get_submodule(name).register_forward_hook(add, prepend=True)
                )
            yield

    def _add(self, index: int, module: nn.Module, args: tuple[Tensor, ...], output: Tensor):
        down, up = getattr(self, f"_down{index}"), getattr(self, f"_up{index}")
        inner = args[0] @ down.to(args[0]).T  # (K, tokens, P r)
        assert self._weights is not None  # the hooks act during a call alone
        weights = self._weights.to(inner).repeat_interleave(len(down) // self.num_loras, 1)
        return output + (inner * weights[:, None]) @ up.to(inner).T

    def _checkpoint(self, checkpoint: Callable, block: Callable, *args):
        """Gradient checkpointing whose reverse pass evaluates a block with the same weights."""
        weights = self._weights
        assert weights is not None

        def evaluate(*args):
            with self._hooked(weights):
                return block(*args)

        return checkpoint(evaluate, *args)


@contextmanager
def interpolated_attention(
    unet: nn.Module, weights: Tensor, *, blocks: str = "up_blocks"
) -> Iterator[None]:
    """Interpolate keys and values of self-attention inside the context, as DiffMorpher does.

    The keys of point k become `(1 - weights[k]) K_first + weights[k] K_last`, where `K_first` and
    `K_last` are the keys of the first and the last point of the batch. Values are interpolated in
    the same manner (arXiv 2312.07409). The batch must therefore be a whole path. DiffMorpher uses
    this in the first 60 % of the sampling steps. Compiled networks run uncompiled. On exit, the
    network is restored.

    Args:
        unet: A diffusers network.
        weights: Fractions of the path, `(K,)`, from 0 to 1.
        blocks: Beginning of the names of the modules that are changed. DiffMorpher changes the
            blocks that sample up.

    Raises:
        ValueError: If these modules have no self-attention, its projections are fused, or a batch
            inside the context has another length than `weights`.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import demo, interpolated_attention
        >>> from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
        >>> pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
        >>> path = torch.zeros(5, 4, 16, 16)
        >>> text = torch.zeros(5, 7, pipe.unet.config.cross_attention_dim)
        >>> with torch.no_grad(), interpolated_attention(pipe.unet, torch.linspace(0, 1, 5)):
        ...     pipe.unet(path, 500, encoder_hidden_states=text).sample.shape
        torch.Size([5, 4, 16, 16])
    """
    found = [
        module
        for name, module in original(unet).named_modules()
        if name.startswith(blocks) and isinstance(module, Attention)
        if not module.is_cross_attention
    ]
    if not found:
        raise ValueError(f"The network has no self-attention below blocks={blocks!r}.")
    if any(getattr(module, "fused_projections", False) for module in found):
        raise ValueError(
            "The network's projections are fused: call unet.unfuse_qkv_projections() first."
        )

    def interpolate(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if len(output) != len(weights):
            raise ValueError(
                f"interpolated_attention has `weights` for {len(weights)} points, but the network "
                f"was given a batch of {len(output)}: it needs the whole path at once."
            )
        fractions = weights.to(output).view(-1, *[1] * (output.ndim - 1))
        return torch.lerp(output[:1], output[-1:], fractions)

    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in found:
            for projection in (module.to_k, module.to_v):
                stack.enter_context(projection.register_forward_hook(interpolate))
        yield


@contextmanager
def _exchanged(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def original(model: nn.Module) -> nn.Module:
    """The network without the wrapper of `torch.compile`."""
    return getattr(model, "_orig_mod", model)
