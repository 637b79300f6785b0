"""What each supported model costs: work and memory of a morph at 512 and 1024 px.

    python benchmarks/model_costs.py [--models sd15 sdxl ...] [--pixels 512 1024] [--rate 989]
        [--share 0.4] [--points N --with-gradient N]
    python benchmarks/model_costs.py --measure [--device cuda] [--batches 1 8] [--dtype bfloat16]

Without `--measure`, all rows are estimates: each network is built at its full size without memory
(torch's device "meta"), with 16-bit weights, and its operations and saved tensors are counted.
There is one row per model and size of the images:

    config          where the network's config comes from, as in `architectures.py`
    billions        parameters of the network
    TFLOP           operations of one evaluation of one point
    gradient        operations of an evaluation with gradient, over those without
    weights GB      weights of the network
    encoders GB     weights of the text encoders, which can leave the device before a solve
    GB per point    tensors that are saved for the reverse pass of one point; with fused attention
    memory GB       weights of the network, and the saved tensors of one point (batches of 1)
    all GB          the same with the text encoders
    seconds         work of a morph of 17 frames at --share of --rate (TFLOP/s)

The work of a morph is that of the shipped pair at the pipeline's defaults, whose points are counted
here unless --points and --with-gradient give them. A prompt is as long as its pipeline pads it, and
has 128 tokens for Qwen-Image and Z-Image. Autoencoders, the time to encode and decode, and
temporary tensors are not counted. GB is 1e9 bytes. The default rate is the data sheet's dense rate
of an H100 (SXM) in bfloat16; the default share is an assumption.

With `--measure`, each network runs with random weights after its estimate, and rows of the kind
"measured" follow, one per number of points in a batch (--batches):

    forward, gradient   seconds per point of an evaluation without and with gradient
    TFLOP/s, share      rate of evaluations without gradient, and its share of the rate of a square
                        matrix product on this device in this dtype
    GB, GB gradient     peak memory with the weights, without and with gradient
    seconds             time of the network for the same morph; autoencoders and texts come on top
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import frame
import torch
import torch.fx.experimental._config
import torch.nn.functional as F
from architectures import (
    ARCHITECTURES,
    NAMES,
    Architecture,
    architecture_of,
    encoder_parameters,
    num_parameters,
)
from device import forget_peak, least_seconds, matrix_rate, peak_gib
from methods import count_passes
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from riemannian_diffusion import demo
from riemannian_diffusion.batches import free_memory, is_out_of_memory
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

BYTES = 2  # of a weight in 16 bits


class _Fused(torch.autograd.Function):
    """Attention whose reverse pass saves what fused kernels save, and computes the rest again.

    Only shapes and operations are those of attention, so it is for tensors without data.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = (query @ key.mT) @ value
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1]))
        return output

    @staticmethod
    def backward(ctx, cotangent: Tensor):
        query, key, value, *_ = ctx.saved_tensors
        weights = query @ key.mT
        change = cotangent @ value.mT
        return change @ key, change.mT @ query, weights.mT @ cotangent


class WithoutData(TorchFunctionMode):
    """Runs networks on tensors without data: attention is `_Fused`, and all tokens count."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Call a function, or what stands in its place."""
        if func is Tensor.sum and not args[0].is_floating_point():  # the tokens of a mask
            return torch.full(args[0].shape[:1], args[0].shape[-1])
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3] if len(args) >= 3 else _named(args, kwargs or {})
        heads = query.shape[1] // key.shape[1]  # queries may share keys
        if heads > 1:
            key, value = (one.repeat_interleave(heads, 1) for one in (key, value))
        return _Fused.apply(query, key, value)


def _named(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    return tuple(dict(zip(("query", "key", "value"), args, strict=False), **kwargs).values())[:3]


@dataclass(frozen=True)
class Work:
    """Work and memory of one point.

    Attributes:
        forward: Floating-point operations of an evaluation.
        both: Floating-point operations of an evaluation with its gradient.
        saved: Bytes of the tensors that are saved for the reverse pass, without the weights.
    """

    forward: int
    both: int
    saved: int


def work_of(function: Callable[[Tensor], Tensor], x: Tensor, known: list[Tensor]) -> Work:
    """Count the operations and the saved tensors of a function at points.

    Args:
        function: The function.
        x: The points, perhaps without data.
        known: Tensors that do not count, such as weights.
    """
    kept: dict[int, Tensor] = {}
    skipped = {one.untyped_storage()._cdata for one in known}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in skipped:
            kept[storage] = tensor  # while it is kept, its storage is no other's
        return tensor

    x = x.detach().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = function(x.clone())  # a module that is counted takes no leaf
        forward = counter.get_total_flops()
        torch.autograd.grad(out.sum(), x)
    saved = sum(one.untyped_storage().nbytes() for one in kept.values())
    return Work(forward, counter.get_total_flops(), saved)


def _all_nonzero() -> AbstractContextManager:
    """Let a mask without data select all values."""
    return torch.fx.experimental._config.patch(meta_nonzero_assume_all_nonzero=True)


def counted(architecture: Architecture, pixels: int) -> tuple[int, Work]:
    """Parameters of a network, and the work of one point; without memory and without data."""
    network = architecture.network(torch.bfloat16, "meta")
    score = architecture.score(network)
    x = torch.zeros(1, *architecture.shape(pixels), device="meta")
    with WithoutData(), _all_nonzero():
        found = work_of(score, x, [*network.parameters(), *network.buffers()])
    return num_parameters(network), found


def main(argv: list[str] | None = None) -> list[dict]:
    """Estimate the costs; return the rows."""
    parser = frame.parser(__doc__)
    add = parser.add_argument
    add("--models", nargs="+", choices=NAMES[1:], default=list(ARCHITECTURES), metavar="NAME")
    add("--pixels", type=int, nargs="+", default=[512, 1024])
    add("--rate", type=float, default=989.0, help="TFLOP/s of the card (default: 989)")
    add("--share", type=float, default=0.4, help="share of the rate (default: 0.4)")
    add("--points", type=int, help="points of a morph at which the network is evaluated")
    add("--with-gradient", type=int, help="those of them with gradient")
    add("--measure", action="store_true", help="run the networks, too")
    add("--batches", type=int, nargs="+", default=[1, 8], help="points in a measured batch")
    add("--dtype", default="bfloat16", help="dtype of measured networks (default: bfloat16)")
    return frame.run(measure, parser, argv)


def points_of_a_morph(device: str = "cpu") -> tuple[int, int]:
    """Points of the shipped pair's morph at the pipeline's defaults, and those with gradient."""
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path()).to(device)
    count = count_passes(pipe.network)
    pipe([Image.open(path).convert("RGB") for path in demo.endpoint_paths()])
    return count.points, count.with_gradient


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """One row for each model and size."""
    points, gradient = args.points, args.with_gradient
    if points is None or gradient is None:
        points, gradient = points_of_a_morph(args.device)
    for name in args.models:
        architecture = architecture_of(name)
        encoders = sum(map(encoder_parameters, architecture.encoders))
        for pixels in args.pixels:
            parameters, work = counted(architecture, pixels)
            total = (points - gradient) * work.forward + gradient * work.both
            weights, texts = BYTES * parameters / 1e9, BYTES * encoders / 1e9
            yield {
                "model": architecture.title,
                "pixels": pixels,
                "kind": "estimate",
                "config": architecture.source,
                "billions": parameters / 1e9,
                "TFLOP": work.forward / 1e12,
                "gradient": work.both / work.forward,
                "weights GB": weights,
                "encoders GB": texts,
                "GB per point": work.saved / 1e9,
                "memory GB": weights + work.saved / 1e9,
                "all GB": weights + texts + work.saved / 1e9,
                "points": points,
                "with gradient": gradient,
                "morph TFLOP": total / 1e12,
                "TFLOP/s": args.rate * args.share,
                "seconds": total / (args.rate * args.share * 1e12),
            }
            if args.measure:
                options = {"dtype": getattr(torch, args.dtype), "device": args.device}
                sizes = args.batches, pixels, points, gradient
                yield from measured(architecture, *sizes, work=work, **options)


def measured(
    architecture: Architecture,
    batches: Sequence[int],
    pixels: int,
    points: int,
    gradient: int,
    *,
    work: Work,
    dtype: torch.dtype,
    device: str,
) -> Iterator[dict]:
    """One row for each number of points in a batch, until memory runs out."""
    free_memory()  # of the network before
    network = architecture.network(dtype, device)
    rate = matrix_rate(dtype, device)
    score = architecture.score(network)
    for batch in batches:
        x = torch.randn(batch, *architecture.shape(pixels), device=device)

        def forward(x: Tensor = x) -> Tensor:
            with torch.no_grad():
                return score(x)

        def both(x: Tensor = x) -> Tensor:
            y = x.detach().requires_grad_()
            return torch.autograd.grad(score(y).sum(), y)[0]

        seconds, peaks = [], []
        try:
            for function in (forward, both):
                forget_peak(device)
                seconds.append(least_seconds(function, 2, device) / batch)
                peaks.append(peak_gib(device) * 2**30 / 1e9)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if len(peaks) < 2 or score.points_at_once(x) < batch:
            print(f"{architecture.title}, {pixels} px: no memory for {batch} points")
            return
        speed = work.forward / seconds[0] / 1e12
        yield {
            "model": architecture.title,
            "pixels": pixels,
            "kind": "measured",
            "dtype": str(dtype).removeprefix("torch."),
            "batch": batch,
            "forward": seconds[0],
            "gradient": seconds[1],
            "TFLOP/s": speed,
            "share": speed / rate,
            "GB": peaks[0],
            "GB gradient": peaks[1],
            "points": points,
            "with gradient": gradient,
            "seconds": (points - gradient) * seconds[0] + gradient * seconds[1],
        }


if __name__ == "__main__":
    main()
