"""Geodesics on the data manifold that a diffusion model has learned."""

from riemannian_diffusion.adaptation import (
    Adaptation,
    LoraMix,
    adapt,
    fit_embeddings,
    fit_lora,
    interpolated_attention,
)
from riemannian_diffusion.ddim import (
    ddim_step,
    invert,
    invert_steps,
    sample,
    sample_steps,
    sdedit,
)
from riemannian_diffusion.geodesics import (
    Adam,
    Geodesic,
    Iterate,
    PathLBFGS,
    Solver,
    geodesic,
    geodesics,
)
from riemannian_diffusion.geometry import (
    analogy,
    exponential_map,
    extrapolate,
    frechet_mean,
    logarithm_map,
    parallel_transport,
)
from riemannian_diffusion.guidance import ManifoldGuidance, ManifoldGuidedScore
from riemannian_diffusion.metrics import (
    EuclideanMetric,
    Metric,
    PullbackMetric,
    ScoreJacobianMetric,
    SteinScoreMetric,
    TangentNormalMetric,
)
from riemannian_diffusion.paths import adain, length, lerp, refine, resample, slerp, speed
from riemannian_diffusion.roadmaps import Roadmap, roadmap
from riemannian_diffusion.score import (
    DiffusionScore,
    GaussianMixtureScore,
    ScoreModel,
    SharedNoiseScore,
)
from riemannian_diffusion.tangent import (
    intrinsic_dimension,
    normal_curvature,
    second_fundamental_form,
    split_tangent,
    tangent_basis,
    tangent_spectrum,
)

__version__ = "0.1.0"

__all__ = [
    "Adam",
    "Adaptation",
    "DiffusionScore",
    "EuclideanMetric",
    "GaussianMixtureScore",
    "Geodesic",
    "Iterate",
    "LoraMix",
    "ManifoldGuidance",
    "ManifoldGuidedScore",
    "Metric",
    "PathLBFGS",
    "PullbackMetric",
    "Roadmap",
    "ScoreJacobianMetric",
    "ScoreModel",
    "SharedNoiseScore",
    "Solver",
    "SteinScoreMetric",
    "TangentNormalMetric",
    "adain",
    "adapt",
    "analogy",
    "ddim_step",
    "exponential_map",
    "extrapolate",
    "fit_embeddings",
    "fit_lora",
    "frechet_mean",
    "geodesic",
    "geodesics",
    "interpolated_attention",
    "intrinsic_dimension",
    "invert",
    "invert_steps",
    "length",
    "lerp",
    "logarithm_map",
    "normal_curvature",
    "parallel_transport",
    "refine",
    "resample",
    "roadmap",
    "sample",
    "sample_steps",
    "sdedit",
    "second_fundamental_form",
    "slerp",
    "speed",
    "split_tangent",
    "tangent_basis",
    "tangent_spectrum",
]
