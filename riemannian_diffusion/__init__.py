"""Geodesics on the data manifold that a diffusion model has learned."""

from typing import TYPE_CHECKING

from riemannian_diffusion.lazy import lazy_names
from riemannian_diffusion.runtime import __version__

if TYPE_CHECKING:
    from riemannian_diffusion.adaptation import (
        Adaptation,
        LoraMix,
        adapt,
        fit_embeddings,
        fit_lora,
        interpolated_attention,
    )
    from riemannian_diffusion.baselines import split
    from riemannian_diffusion.ddim import (
        ddim_step,
        invert,
        invert_steps,
        sample,
        sample_steps,
        sdedit,
    )
    from riemannian_diffusion.events import Event
    from riemannian_diffusion.geodesics import (
        Adam,
        Geodesic,
        Iterate,
        Iteration,
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
        pace_by_samples,
        parallel_transport,
    )
    from riemannian_diffusion.guidance import ManifoldGuidance, ManifoldGuidedScore
    from riemannian_diffusion.levels import Levels, Schedule, read_schedule
    from riemannian_diffusion.metrics import (
        EuclideanMetric,
        LikelyMetric,
        Metric,
        PullbackMetric,
        ScoreJacobianMetric,
        SteinScoreMetric,
        TangentNormalMetric,
    )
    from riemannian_diffusion.paths import adain, length, lerp, refine, resample, slerp, speed
    from riemannian_diffusion.relaxing import relax
    from riemannian_diffusion.roadmaps import Roadmap, roadmap
    from riemannian_diffusion.score import (
        Condition,
        Conditions,
        DenoiserScore,
        DiffusionScore,
        GaussianMixtureScore,
        ScoreModel,
        SharedNoiseScore,
        Where,
    )
    from riemannian_diffusion.tangent import (
        intrinsic_dimension,
        normal_curvature,
        second_fundamental_form,
        split_tangent,
        tangent_basis,
        tangent_spectrum,
    )
else:  # `geodesics` is not listed: it is the subpackage, callable like the function
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "adaptation": (
                "Adaptation",
                "LoraMix",
                "adapt",
                "fit_embeddings",
                "fit_lora",
                "interpolated_attention",
            ),
            "baselines": ("split",),
            "ddim": ("ddim_step", "invert", "invert_steps", "sample", "sample_steps", "sdedit"),
            "events": ("Event",),
            "geodesics": (
                "Adam",
                "Geodesic",
                "Iterate",
                "Iteration",
                "PathLBFGS",
                "Solver",
                "geodesic",
            ),
            "geometry": (
                "analogy",
                "exponential_map",
                "extrapolate",
                "frechet_mean",
                "logarithm_map",
                "pace_by_samples",
                "parallel_transport",
            ),
            "guidance": ("ManifoldGuidance", "ManifoldGuidedScore"),
            "levels": ("Levels", "Schedule", "read_schedule"),
            "metrics": (
                "EuclideanMetric",
                "LikelyMetric",
                "Metric",
                "PullbackMetric",
                "ScoreJacobianMetric",
                "SteinScoreMetric",
                "TangentNormalMetric",
            ),
            "paths": ("adain", "length", "lerp", "refine", "resample", "slerp", "speed"),
            "relaxing": ("relax",),
            "roadmaps": ("Roadmap", "roadmap"),
            "score": (
                "Condition",
                "Conditions",
                "DenoiserScore",
                "DiffusionScore",
                "GaussianMixtureScore",
                "ScoreModel",
                "SharedNoiseScore",
                "Where",
            ),
            "tangent": (
                "intrinsic_dimension",
                "normal_curvature",
                "second_fundamental_form",
                "split_tangent",
                "tangent_basis",
                "tangent_spectrum",
            ),
        },
    )

__all__ = [
    "Adam",
    "Adaptation",
    "Condition",
    "Conditions",
    "DenoiserScore",
    "DiffusionScore",
    "EuclideanMetric",
    "Event",
    "GaussianMixtureScore",
    "Geodesic",
    "Iterate",
    "Iteration",
    "Levels",
    "LikelyMetric",
    "LoraMix",
    "ManifoldGuidance",
    "ManifoldGuidedScore",
    "Metric",
    "PathLBFGS",
    "PullbackMetric",
    "Roadmap",
    "Schedule",
    "ScoreJacobianMetric",
    "ScoreModel",
    "SharedNoiseScore",
    "Solver",
    "SteinScoreMetric",
    "TangentNormalMetric",
    "Where",
    "__version__",
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
    "read_schedule",
    "refine",
    "relax",
    "resample",
    "roadmap",
    "sample",
    "sample_steps",
    "sdedit",
    "second_fundamental_form",
    "slerp",
    "speed",
    "split",
    "split_tangent",
    "tangent_basis",
    "tangent_spectrum",
]
