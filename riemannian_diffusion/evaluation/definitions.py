"""What every measure is: its definition, its range and which direction is better."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """What a measure is: everything that a reader of its number has to know.

    Attributes:
        name: Its name in protocols and reports.
        definition: One sentence.
        low: Least value it can take.
        high: Greatest value, or infinity.
        direction: "lower" or "higher" is better.
        needs: Among "distance", "features", "inputs", "truth" and "torchmetrics".
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
            "sum of LPIPS over the adjacent frames of a sequence, mean over sequences (not the "
            "perceptual path length of StyleGAN)",
            0,
            math.inf,
            "lower",
            ("distance",),
        ),
        Measure(
            "pdv_variance",
            "population variance (ddof 0) of LPIPS between adjacent frames, mean over sequences",
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
            "upwards in small sets",
            0,
            math.inf,
            "lower",
            ("features",),
        ),
        Measure(
            "kid",
            "squared maximum mean discrepancy of the features of two sets of images, kernel "
            "(x.y / d + 1)^3, unbiased, on the whole sets",
            -math.inf,
            math.inf,
            "lower",
            ("features", "torchmetrics"),
        ),
        Measure(
            "re",
            "mean squared error of the raw first and last frames to the input images, values in "
            "[0, 1], mean over sequences",
            0,
            1,
            "lower",
            ("inputs",),
        ),
        Measure(
            "largest_step",
            "greatest root mean square difference of adjacent frames, values in [0, 1], mean over "
            "sequences",
            0,
            1,
            "lower",
        ),
        Measure(
            "lpips",
            "LPIPS of the middle frames to the true ones, mean over frames, then sequences",
            0,
            math.inf,
            "lower",
            ("distance", "truth"),
        ),
        Measure(
            "mse",
            "mean squared error of the middle frames to the true ones, values in [0, 1], mean over "
            "frames, then sequences",
            0,
            1,
            "lower",
            ("truth",),
        ),
        Measure(
            "psnr",
            "peak signal-to-noise ratio of the middle frames to the true ones in dB, peak 1, mean "
            "over frames, then sequences",
            0,
            math.inf,
            "higher",
            ("truth", "torchmetrics"),
        ),
        Measure(
            "ssim",
            "structural similarity of the middle frames to the true ones, Gaussian window of "
            "sigma 1.5 inside the image, mean over frames, then sequences",
            -1,
            1,
            "higher",
            ("truth", "torchmetrics"),
        ),
    )
}
