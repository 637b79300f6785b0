"""Time, memory and speed of a device, in the same way on a CPU and on a GPU."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

SIDES = {"cuda": 8192, "cpu": 2048}  # of the matrices whose product shows the rate of a device
HALF_SIDE = 256  # in 16 bits on a CPU, which may be a hundred times slower


def is_gpu(device: str) -> bool:
    """Whether a device of torch is a GPU, such as "cuda:1"."""
    return device.startswith("cuda")


def synchronize(device: str) -> None:
    """Wait until a device has finished its work."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


def least_seconds(function: Callable[[], object], repeats: int, device: str) -> float:
    """The least time of several runs, after a first run that is not counted."""
    times = []
    for _ in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def matrix_rate(dtype: torch.dtype, device: str) -> float:
    """TFLOP/s of a square matrix product."""
    size = SIDES["cuda" if is_gpu(device) else "cpu"]
    if not is_gpu(device) and dtype.itemsize < 4:
        size = HALF_SIDE
    a = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / least_seconds(lambda: a @ a, 5, device) / 1e12


def used_gib(device: str) -> float:
    """Memory that is used now: by torch on a GPU, or by this process on a CPU."""
    return torch.cuda.memory_allocated(device) / 2**30 if is_gpu(device) else _resident("VmRSS")


def peak_gib(device: str) -> float:
    """Memory that was used at the peak, on a GPU since the last `forget_peak`."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if is_gpu(device) else _resident("VmHWM")


def forget_peak(device: str) -> None:
    """Let the peak begin now. On a CPU, it is that of the whole process."""
    if is_gpu(device):
        torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def limit_memory(device: str, gigabytes: float) -> Iterator[None]:
    """Let torch take at most so many GB (1e9 bytes) of a GPU, as on a smaller card.

    On a CPU, nothing is limited.
    """
    if not is_gpu(device):
        yield
        return
    number = torch.device(device).index  # None, for the current one; "cuda" itself is refused
    whole = torch.cuda.get_device_properties(number).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 1e9 * gigabytes / whole), number)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, number)


def _resident(field: str) -> float:
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) / 2**20
