"""The weights of a network: whether they can be differentiated, and whether they move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only


def check_weights(network: nn.Module) -> None:
    """Refuse weights that cannot be differentiated.

    Raises:
        ValueError: If weights were made in inference mode.
    """
    if any(parameter.is_inference() for parameter in network.parameters()):
        raise ValueError(
            f"The weights of {type(network).__name__} were loaded under torch.inference_mode, so "
            "PyTorch cannot differentiate the network: load the model outside of it. The rest may "
            "run in that mode."
        )


def moves_weights(network: nn.Module) -> bool:
    """Whether a network casts or moves the weights of each layer around its evaluation.

    diffusers does so with hooks for layerwise casting and for group offloading.
    """
    return any(hasattr(module, "_diffusers_hook") for module in network.modules())


@contextmanager
def kept_weights(network: nn.Module) -> Iterator[None]:
    """Let reverse passes use the weights of the evaluation, also if they are moved after it.

    Autograd saves the parameters themselves, whose data are cast or moved before the reverse pass.
    This includes the blocks that gradient checkpointing evaluates again in the reverse pass.
    """
    if not (torch.is_grad_enabled() and moves_weights(network)):
        yield
        return
    found: list[tuple[Any, Callable]] = [
        (module, module._gradient_checkpointing_func)  # type: ignore[misc]
        for module in network.modules()
        if getattr(module, "gradient_checkpointing", False)
    ]
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
