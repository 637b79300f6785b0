"""What layers of a network keep or move: weights, and results of earlier calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only


class Layers:
    """What the layers of a network hold at present, found by one look at all of them.

    A look takes a few hundredths of the time of an evaluation of a small network, so an evaluation
    looks once.

    Args:
        network: The network.

    Attributes:
        parameters: Its parameters; one that is shared may be there twice.
        checkpointing: The modules with gradient checkpointing.
        hooks: The hooks of diffusers by which layers cast or move their weights, or keep results
            of earlier calls.
    """

    def __init__(self, network: nn.Module):
        self._network = network
        self.parameters: list[nn.Parameter] = []
        self.checkpointing: list[Any] = []
        self.hooks: list[Any] = []
        found, seen = [network], {network}
        for module in found:
            own = module.__dict__  # `getattr` takes a long time for missing attributes of modules
            for child in own["_modules"].values():
                if child is not None and child not in seen:
                    found.append(child)
                    seen.add(child)
            for parameter in own["_parameters"].values():
                if parameter is not None:
                    self.parameters.append(parameter)
            if own.get("gradient_checkpointing"):
                self.checkpointing.append(module)
            if own.get("_diffusers_hook"):
                self.hooks.append(own["_diffusers_hook"])

    @property
    def moves_weights(self) -> bool:
        """Whether the network casts or moves the weights of each layer around its evaluation.

        diffusers does so with hooks for layerwise casting and for group offloading.
        """
        return bool(self.hooks)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the network computes; parameters may be stored in a narrower one."""
        plain = not (getattr(self._network, "_keep_in_fp32_modules", True) or self.hooks)
        if not plain:  # the dtype of plain networks of diffusers takes long
            dtype = getattr(self._network, "dtype", None)
            if isinstance(dtype, torch.dtype):
                return dtype
        return next((p.dtype for p in self.parameters if p.is_floating_point()), torch.float32)

    def check(self) -> None:
        """Refuse a network that cannot be differentiated, or that depends on its earlier calls.

        Raises:
            ValueError: If weights were made in inference mode, or the network has a cache.
        """
        name = type(self._network).__name__
        if any(parameter.is_inference() for parameter in self.parameters):
            raise ValueError(
                f"The weights of {name} were loaded under torch.inference_mode, so PyTorch cannot "
                "differentiate the network: load the model outside of it. The rest may run in that "
                "mode."
            )
        config = getattr(self._network, "_cache_config", None)
        stateful = {
            type(hook).__name__
            for registry in self.hooks
            for hook in registry.hooks.values()
            if hook._is_stateful
        }
        if config is None and not stateful:
            return
        cache = type(config).__name__ if config is not None else sorted(stateful)[0]
        raise ValueError(
            f"{name} has a cache ({cache}), which reuses results of earlier calls, so its output "
            "is no function of its input. Remove it by `disable_cache()` of the network, or load "
            "the model again."
        )

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let no parameter require a gradient inside the context; restore the flags on exit.

        Enter it before the transforms of torch.func, because no flag can be changed inside them.
        """
        changed = [p for p in self.parameters if p.requires_grad]
        try:
            for parameter in changed:
                parameter.requires_grad = False
            yield
        finally:
            for parameter in changed:
                parameter.requires_grad = True

    @contextmanager
    def uncheckpointed(self) -> Iterator[None]:
        """Run without gradient checkpointing, which the transforms of torch.func do not support."""
        try:
            for module in self.checkpointing:
                module.gradient_checkpointing = False
            yield
        finally:
            for module in self.checkpointing:
                module.gradient_checkpointing = True

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Let reverse passes use the weights of the evaluation, also if they are moved after it.

        Autograd saves the parameters themselves, whose data are cast or moved before the reverse
        pass. This includes the blocks that gradient checkpointing evaluates again in that pass.
        """
        if not (torch.is_grad_enabled() and self.moves_weights):
            yield
            return
        found = [(module, module._gradient_checkpointing_func) for module in self.checkpointing]
        try:
            for module, checkpoint in found:
                module._gradient_checkpointing_func = partial(_checkpointed, checkpoint)
            with _DetachedWeights():
                yield
        finally:
            for module, checkpoint in found:
                module._gradient_checkpointing_func = checkpoint


def _checkpointed(checkpoint: Callable, block: Callable, *args):
    """Gradient checkpointing of a block, whose weights are kept in both of its evaluations."""

    def evaluate(*args):
        with _DetachedWeights():
            return block(*args)

    return checkpoint(evaluate, *args)


class _DetachedWeights(TorchFunctionMode):
    """Gives functions detached parameters, which keep their data when the parameters get others."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = func.__name__
        in_place = name.endswith("_") and not name.endswith("__")
        if not (in_place or name in ("__get__", "__set__")):  # those change the parameter itself
            args, kwargs = tree_map_only(nn.Parameter, Tensor.detach, (args, kwargs))
        return func(*args, **(kwargs or {}))
