"""The line every benchmark prints first: date, machine and versions."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path

import torch

from riemannian_diffusion.runtime import installed_versions


def describe(device: str = "cpu") -> str:
    """Date, processor or accelerator, and versions, in one line."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    elif info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    found = installed_versions(("torch", "diffusers", "transformers"))
    versions = ", ".join(f"{name} {number}" for name, number in found.items() if name != "python")
    today = datetime.date.today().isoformat()
    return f"{today} | {name}, {torch.get_num_threads()} threads | {versions}"
