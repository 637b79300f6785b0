"""Attention with a forward-mode derivative, for products with the Jacobian of a network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Attention processors of diffusers that do not use torch's scaled_dot_product_attention. The value
# is the processor that computes the same result with that function.
_PROCESSOR_WITH_SDPA = {
    "AttnProcessor": "AttnProcessor2_0",
    "SlicedAttnProcessor": "AttnProcessor2_0",
    "XFormersAttnProcessor": "AttnProcessor2_0",
    "AttnAddedKVProcessor": "AttnAddedKVProcessor2_0",
    "SlicedAttnAddedKVProcessor": "AttnAddedKVProcessor2_0",
    "XFormersAttnAddedKVProcessor": "AttnAddedKVProcessor2_0",
}


def _processors_with_sdpa() -> dict[type, type]:
    """The classes of `_PROCESSOR_WITH_SDPA`; empty if diffusers is not loaded."""
    # This module must not import diffusers. If diffusers is not loaded, no processor exists.
    module = sys.modules.get("diffusers.models.attention_processor")
    if module is None:
        return {}
    return {getattr(module, a): getattr(module, b) for a, b in _PROCESSOR_WITH_SDPA.items()}


@contextmanager
def forward_mode_attention(model: nn.Module) -> Iterator[None]:
    """Give attention a forward-mode derivative inside the context.

    Fused attention kernels have no such derivative. Therefore torch's function that calls them is
    intercepted in this thread. Attention processors that do not use this function are replaced by
    equivalent processors that do. On exit, also after an exception, the model is restored.
    """
    exchanged: list[tuple[Any, str, Any]] = []
    replacements = _processors_with_sdpa()
    try:
        for module in model.modules():
            processor: Any = getattr(module, "processor", None)
            if type(processor) in replacements:
                exchanged.append((module, "processor", processor))
                module.processor = replacements[type(processor)]()
            elif getattr(processor, "_attention_backend", None) is not None:
                exchanged.append((processor, "_attention_backend", processor._attention_backend))
                processor._attention_backend = "native"
        with BlockwiseAttention():
            yield
    finally:
        for owner, name, value in exchanged:
            setattr(owner, name, value)


def _repeated(heads: Tensor, repeats: int) -> Tensor:
    """Each of the heads `(..., heads, L, C)` repeated, `(..., heads repeats, L, C)`.

    It is `repeat_interleave`, which has no forward-mode derivative in PyTorch 2.8.
    """
    shape = [-1] * heads.ndim
    shape.insert(-2, repeats)
    return heads.unsqueeze(-3).expand(shape).flatten(-4, -3)


def _numbers(values: Tensor) -> list:
    """The entries of a tensor; those of a vector also where PyTorch below 2.10 refuses to."""
    try:
        return values.tolist()
    except RuntimeError:  # inside of a transform of torch.func, where numbers alone can be read
        return [value.item() for value in values.unbind()]


class ReadableVectors(TorchFunctionMode):
    """Lets a network read vectors as lists inside of a transform of torch.func."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.tolist:
            return _numbers(*args)
        return func(*args, **(kwargs or {}))


class BlockwiseAttention(ReadableVectors):
    """Replaces `scaled_dot_product_attention` by its formula, evaluated in blocks of queries.

    Every operation of the formula has a forward-mode derivative. No reverse pass follows, so memory
    is linear in the number of tokens.
    """

    max_scores = 2**23  # largest (batch, heads, queries, keys) table in memory

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        if func is F.group_norm:  # its forward derivative fails for channels-last memory
            args = (args[0].contiguous(), *args[1:])
        return super().__torch_function__(func, types, args, kwargs)

    def _attend(
        self,
        query,
        key,
        value,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        enable_gqa=False,
    ) -> Tensor:
        if dropout_p:
            raise ValueError(
                f"Attention dropout is {dropout_p}: call `model.eval()` before taking derivatives."
            )
        if enable_gqa:
            repeats = query.shape[-3] // key.shape[-3]
            key, value = (_repeated(one, repeats) for one in (key, value))
        num_queries, num_keys = query.shape[-2], key.shape[-2]
        if is_causal:
            attn_mask = torch.ones(
                num_queries, num_keys, dtype=torch.bool, device=query.device
            ).tril()
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        per_query = max(1, query.shape[:-2].numel() * num_keys)
        size = max(1, self.max_scores // per_query)
        blocks = []
        for start in range(0, num_queries, size):
            block = slice(start, start + size)
            scores = (query[..., block, :] * scale) @ key.transpose(-1, -2)
            if attn_mask is not None:
                mask = attn_mask if attn_mask.shape[-2] == 1 else attn_mask[..., block, :]
                if mask.dtype == torch.bool:
                    mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
                scores = scores + mask
            weights = _softmax(scores)
            if attn_mask is not None:  # a query without keys gives 0, as in torch
                weights = weights.masked_fill(scores.isneginf().all(-1, keepdim=True), 0.0)
            blocks.append(weights @ value)
        return torch.cat(blocks, -2)


def _softmax(scores: Tensor) -> Tensor:
    """The softmax over the last dimension, with a forward derivative that can be differentiated.

    The forward derivative of torch's own softmax works in place, so no reverse pass can follow it.
    """
    if not scores.requires_grad:
        return scores.softmax(-1)
    powers = (scores - scores.detach().amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)
