"""Batches of networks, which become smaller where memory runs out."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from riemannian_diffusion.arguments import check_whole

T = TypeVar("T")

PIXELS_AT_ONCE = 2**20  # largest number of pixels of a batch of images: those of one large image

# What messages of PyTorch say when memory runs out and the error has no type of its own.
_MESSAGES = (
    *("out of memory", "not enough memory", "can't allocate memory", "Invalid buffer size"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device or of the computer ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)


class BatchSize:
    """The largest batch of a network. It is halved when memory runs out.

    A warning says so once, when a smaller batch has succeeded.

    Args:
        largest: The largest batch, at least 1; None for no limit.
        divisible: Whether smaller batches give the same results.
        argument: The argument that sets the largest batch and is named in the warning, or None.
    """

    def __init__(
        self,
        largest: int | None = None,
        *,
        divisible: bool = True,
        argument: str | None = "max_batch_size",
    ):
        if largest is not None:
            check_whole(1, max_batch_size=largest)
        self.divisible, self.argument = divisible, argument
        self._own = largest
        self._shared: BatchSize | None = None
        self._failed = 0  # the first size that failed since the last success
        self._retried = False  # a batch of one was tried twice

    @property
    def largest(self) -> int | None:
        """The largest batch; None for no limit."""
        limits = [self._own, None if self._shared is None else self._shared.largest]
        return min((size for size in limits if size is not None), default=None)

    def limited(self, largest: int | None) -> BatchSize:
        """A batch size with a limit of its own, which shares with this one what either learns."""
        other = BatchSize(largest, divisible=self.divisible, argument=self.argument)
        other._shared = self
        return other

    def lower(self, largest: int | None) -> None:
        """Allow no larger batches than this, here and where this one shares what it learns."""
        if largest is not None:
            self._own = min(largest, self._own or largest)
            if self._shared is not None:
                self._shared.lower(largest)

    def of(self, num: int) -> int:
        """The size of the next batch, of at most `num`."""
        return min(num, self.largest or num)

    def run(self, num: int, function: Callable[[slice], T]) -> Iterator[T]:
        """Yield the results of a function for consecutive slices of `range(num)`.

        If memory runs out, the slice is tried again with half its size. A slice of size 1 is tried
        twice, because other work may have freed memory.

        Raises:
            RuntimeError: That of `function`, if memory runs out twice for a slice of size 1.
        """
        start = 0
        while start < num:
            size = self.of(num - start)
            try:
                value = function(slice(start, start + size))
            except (RuntimeError, MemoryError) as error:
                if not (is_out_of_memory(error) and self.halve(size)):
                    raise
                continue  # by now the traceback no longer holds the tensors of the failed attempt
            start += size
            self._succeed()
            yield value

    def halve(self, size: int) -> bool:
        """Note that a batch failed; return whether another attempt may succeed."""
        if not self.divisible or (size == 1 and self._retried):
            return False
        self._failed = self._failed or size
        self._retried = size == 1
        self.lower(max(1, size // 2))
        free_memory()
        return True

    def _succeed(self) -> None:
        failed, self._failed, self._retried = self._failed, 0, False
        if failed > 1:
            text = f"Out of memory with a batch of {failed}: continued with {self.largest} at once."
            if self.argument is not None:
                text += f" Pass `{self.argument}={self.largest}` to avoid the failed attempts."
            warnings.warn(text, stacklevel=4)


@dataclass(frozen=True, eq=False)
class Learned:
    """The batch sizes that stages have learned, for the stages after them.

    Attributes:
        network: The batch size of the network.
        autoencoder: The batch size of the autoencoder.
    """

    network: BatchSize = field(default_factory=BatchSize)
    autoencoder: BatchSize = field(default_factory=lambda: BatchSize(argument=None))

    def of_images(self, num_pixels: int, largest: int | None) -> BatchSize:
        """The batch size of the autoencoder for images of so many pixels.

        Args:
            num_pixels: The number of pixels of each image.
            largest: The largest batch. A batch then also has at most `PIXELS_AT_ONCE` pixels, but
                one image at least. None for no limit.
        """
        if largest is not None:
            largest = min(largest, max(1, PIXELS_AT_ONCE // num_pixels))
        return self.autoencoder.limited(largest)

    def join(self, other: Learned) -> None:
        """Learn what another object has learned."""
        self.network.lower(other.network.largest)
        self.autoencoder.lower(other.autoencoder.largest)


def free_memory() -> None:
    """Free tensors in reference cycles, and the memory that PyTorch holds in reserve."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
