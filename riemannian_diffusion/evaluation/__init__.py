"""Measures of morphs and of sets of morphs, and the protocols that define each number."""

from riemannian_diffusion.evaluation.definitions import MEASURES, Measure
from riemannian_diffusion.evaluation.distributions import (
    Features,
    frechet_distance,
    kernel_distance,
)
from riemannian_diffusion.evaluation.evaluator import evaluate
from riemannian_diffusion.evaluation.intervals import jackknife_interval, mean_interval
from riemannian_diffusion.evaluation.protocols import PROTOCOLS, Protocol
from riemannian_diffusion.evaluation.results import Evaluation, Result
from riemannian_diffusion.evaluation.sequences import (
    FrameSequence,
    SequenceFiles,
    find_sequences,
)
from riemannian_diffusion.measures import (
    Distance,
    ImageFeatures,
    LPIPSDistance,
    adjacent_distances,
    consistency,
    distances,
    inception_features,
    largest_step,
    lpips_distance,
    mse,
    pdv_std,
    pdv_variance,
    ppl,
    psnr,
    rmse,
    smoothness,
    ssim,
)

__all__ = [
    "MEASURES",
    "PROTOCOLS",
    "Distance",
    "Evaluation",
    "Features",
    "FrameSequence",
    "ImageFeatures",
    "LPIPSDistance",
    "Measure",
    "Protocol",
    "Result",
    "SequenceFiles",
    "adjacent_distances",
    "consistency",
    "distances",
    "evaluate",
    "find_sequences",
    "frechet_distance",
    "inception_features",
    "jackknife_interval",
    "kernel_distance",
    "largest_step",
    "lpips_distance",
    "mean_interval",
    "mse",
    "pdv_std",
    "pdv_variance",
    "ppl",
    "psnr",
    "rmse",
    "smoothness",
    "ssim",
]
