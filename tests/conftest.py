"""Fixtures: tiny random models, the shipped model, and images."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker for each core: more threads would wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub is imported: no test asks the network

import pytest
import torch
from models import make, silent, waves

from riemannian_diffusion import demo
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline


@pytest.fixture
def tiny_pipe() -> GeodesicInterpolationPipeline:
    """A Stable Diffusion of random weights: 16 px images, 8 x 8 x 4 latents."""
    return make("sd")


@pytest.fixture(scope="module")
def shipped_pipe() -> GeodesicInterpolationPipeline:
    """The pipeline of the shipped model."""
    return silent(GeodesicInterpolationPipeline.from_pretrained(demo.model_path()))


@pytest.fixture
def keyframes() -> torch.Tensor:
    """Three smooth images `(3, 3, 16, 16)` in [0, 1]."""
    return waves(3)
