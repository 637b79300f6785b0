"""Measures of images and of frame sequences, and the networks behind perceptual distances."""

from riemannian_diffusion.measures.frames import (
    Distance,
    adjacent_distances,
    consistency,
    distances,
    in_float64,
    largest_step,
    mse,
    pdv_std,
    pdv_variance,
    ppl,
    psnr,
    rmse,
    smoothness,
    ssim,
)
from riemannian_diffusion.measures.networks import (
    ImageFeatures,
    LPIPSDistance,
    inception_features,
    lpips_distance,
)

__all__ = [
    "Distance",
    "ImageFeatures",
    "LPIPSDistance",
    "adjacent_distances",
    "consistency",
    "distances",
    "in_float64",
    "inception_features",
    "largest_step",
    "lpips_distance",
    "mse",
    "pdv_std",
    "pdv_variance",
    "ppl",
    "psnr",
    "rmse",
    "smoothness",
    "ssim",
]
