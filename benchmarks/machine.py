"""The line every benchmark prints first: date, machine and versions."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def describe(device: str = "cpu") -> str:
    """Date, processor or accelerator, and versions, in one line."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    elif info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "diffusers", "transformers"))
    today = datetime.date.today().isoformat()
    return f"{today} | {name}, {torch.get_num_threads()} threads | {versions}"
