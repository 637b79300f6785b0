"""Networks that cast or move their weights layer by layer, and networks made in inference mode."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from models import FAST, SCHEDULER, embeddings, images, make, prompted_score_unet, randn, silent, waves

from riemannian_diffusion import (
    DiffusionScore,
    LikelyMetric,
    ScoreJacobianMetric,
    SteinScoreMetric,
    TangentNormalMetric,
)
