"""The definition, the range and the better direction of every measure."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """What a reader must know about the values of a measure.

    Attributes:
        name: Name in protocols and reports.
        definition: The definition in one sentence.
        low: Smallest possible value.
        high: Largest possible value, or infinity.
        direction: Which values are better: "lower" or "higher".
        needs: Names of networks, data and libraries that it needs, among "distance", "features",
            "inputs", "truth" and "torchmetrics".

    Examples:
        >>> from riemannian_diffusion.evaluation import MEASURES
        >>> 'ppl' in MEASURES
        True
    """

    name: str
    definition: str
    low: float
    high: float
    direction: str
    needs: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """The range as an interval."""
        left = "(-inf" if math.isinf(self.low) else f"[{self.low:g}"
        return f"{left}, " + ("inf)" if math.isinf(self.high) else f"{self.high:g}]")


MEASURES = {
    measure.name: measure
    for measure in (
        Measure(
            "ppl",
            "raw sum of LPIPS between the adjacent frames of a sequence, mean over sequences "
            "(neither the perceptual path length of StyleGAN nor the published values of "
            "DiffMorpher, which 256 LPIPS per step of 17 frames fits)",
            0,
            math.inf,
            "lower",
            ("distance",),
        ),
        Measure(
            "pdv_variance",
            "population variance (ddof 0) of raw LPIPS between adjacent frames, mean over "
            "sequences (not DiffMorpher's published PDV, which the variance of 256 LPIPS fits)",
            0,
            math.inf,
            "lower",
            ("distance",),
        ),
        Measure(
            "pdv_std",
            "population standard deviation (ddof 0) of LPIPS between adjacent frames, mean over "
            "sequences",
            0,
            math.inf,
            "lower",
            ("distance",),
        ),
        Measure(
            "smoothness",
            "1 minus the Gini coefficient of LPIPS between adjacent frames, mean over sequences",
            0,
            1,
            "higher",
            ("distance",),
        ),
        Measure(
            "consistency",
            "mean of LPIPS between adjacent frames, mean over sequences",
            0,
            math.inf,
            "lower",
            ("distance",),
        ),
        Measure(
            "fid",
            "Frechet distance of Gaussians fitted to the features of two sets of images, biased "
            "upwards for small sets",
            0,
            math.inf,
            "lower",
            ("features",),
        ),
        Measure(
            "kid",
            "squared maximum mean discrepancy of the features of two sets of images, kernel "
            "(x.y / d + 1)^3, unbiased estimate from the whole sets",
            -math.inf,
            math.inf,
            "lower",
            ("features", "torchmetrics"),
        ),
        Measure(
            "re",
            "mean squared error between the first and last frames and the input images, pixel "
            "values in [0, 1], mean over sequences",
            0,
            1,
            "lower",
            ("inputs",),
        ),
        Measure(
            "largest_step",
            "largest root mean squared difference of adjacent frames, pixel values in [0, 1], mean "
            "over sequences",
            0,
            1,
            "lower",
        ),
        Measure(
            "lpips",
            "LPIPS between the middle frames and the true ones, mean over frames, then sequences",
            0,
            math.inf,
            "lower",
            ("distance", "truth"),
        ),
        Measure(
            "mse",
            "mean squared error between the middle frames and the true ones, pixel values in "
            "[0, 1], mean over frames, then sequences",
            0,
            1,
            "lower",
            ("truth",),
        ),
        Measure(
            "psnr",
            "peak signal-to-noise ratio of the middle frames to the true ones in dB, peak value 1, "
            "mean over frames, then sequences",
            0,
            math.inf,
            "higher",
            ("truth", "torchmetrics"),
        ),
        Measure(
            "ssim",
            "structural similarity of the middle frames to the true ones, Gaussian window with "
            "sigma 1.5 inside the image, mean over frames, then sequences",
            -1,
            1,
            "higher",
            ("truth", "torchmetrics"),
        ),
    )
}
