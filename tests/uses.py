"""Points, scores and metrics for the tests of refused arguments."""

from __future__ import annotations

import math

import torch
from models import randn, scheduler

from riemannian_diffusion import EuclideanMetric, GaussianMixtureScore, TangentNormalMetric, lerp

NAN_, INF = math.nan, math.inf
MEANS = randn(6, 3)
MODEL, PLAIN = GaussianMixtureScore(MEANS, 0.5), EuclideanMetric()
BENT, P, Q = TangentNormalMetric(MODEL), MEANS[0], MEANS[1]
PATH = lerp(P, Q, 5)
NET, STEPS = torch.nn.Linear(1, 1), scheduler()


def levels(timestep):
    """The same score at every timestep."""
    return MODEL


def same(x):
    """The points themselves."""
    return x
