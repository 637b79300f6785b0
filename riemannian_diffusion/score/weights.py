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


def modules_of(network: nn.Module) -> list[nn.Module]:
    """The modules of a network.

    It takes a small part of the time of `network.modules()`, which counts because every evaluation
    of a score looks at all modules.
    """
    found, seen = [network], {network}
    for module in found:
        for child in module._modules.values():
            if child is not None and child not in seen:
                found.append(child)
                seen.add(child)
    return found


def value_of(module: nn.Module, name: str) -> Any:
    """An attribute that is neither a weight nor a module; None if there is none.

    `getattr` takes a long time for missing attributes of modules.
    """
    return module.__dict__.get(name) or getattr(type(module), name, None)


def parameters_of(network: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of a network; one that is shared may be there twice."""
    for module in modules_of(network):
        for parameter in module._parameters.values():
            if parameter is not None:
                yield parameter


def check_weights(network: nn.Module) -> None:
    """Refuse weights that cannot be differentiated.

    Raises:
        ValueError: If weights were made in inference mode.
    """
    if any(parameter.is_inference() for parameter in parameters_of(network)):
        raise ValueError(
            f"The weights of {type(network).__name__} were loaded under torch.inference_mode, so "
            "PyTorch cannot differentiate the network: load the model outside of it. The rest may "
            "run in that mode."
        )


def check_uncached(network: nn.Module) -> None:
    """Refuse a network whose output depends on its earlier calls.

    The caches of diffusers do so with hooks that have a state.

    Raises:
        ValueError: Naming the cache.
    """
    config = getattr(network, "_cache_config", None)
    stateful = {
        type(hook).__name__
        for module in modules_of(network)
        for hook in getattr(value_of(module, "_diffusers_hook"), "hooks", {}).values()
        if hook._is_stateful
    }
    if config is None and not stateful:
        return
    cache = type(config).__name__ if config is not None else sorted(stateful)[0]
    raise ValueError(
        f"{type(network).__name__} has a cache ({cache}), which reuses results of earlier calls, "
        "so its output is no function of its input. Remove it by `disable_cache()` of the network, "
        "or load the model again."
    )


def moves_weights(network: nn.Module) -> bool:
    """Whether a network casts or moves the weights of each layer around its evaluation.

    diffusers does so with hooks for layerwise casting and for group offloading.
    """
    return any(value_of(module, "_diffusers_hook") for module in modules_of(network))


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
        for module in modules_of(network)
        if value_of(module, "gradient_checkpointing")
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
