"""Fixtures: a Stable Diffusion pipeline with tiny random components."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub is imported: no test asks the network

import pytest
import tiny
import torch

from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline


@pytest.fixture
def tiny_pipe() -> GeodesicInterpolationPipeline:
    """The pipeline on random components: 16 px images, 8 x 8 x 4 latents."""
    pipe = GeodesicInterpolationPipeline(**tiny.stable_diffusion())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def keyframes() -> torch.Tensor:
    """Three smooth images `(3, 3, 16, 16)` in [0, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
    waves = [torch.stack([(k * x).sin() ** 2, (k * y).cos() ** 2, x * y]) for k in (1, 2, 3)]
    return torch.stack(waves)
