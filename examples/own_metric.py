"""A metric of your own, on the shipped model: changes outside a region of the image cost more.

    python examples/own_metric.py --output morph.gif

An embedding is all that a metric needs. Chords of the embedding are its energy, and the solver, the
exponential map and the pipelines take it like any other metric.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from riemannian_diffusion import PullbackMetric, ScoreModel, Where, demo
from riemannian_diffusion.media import write_frames
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline


class RegionMetric(PullbackMetric):
    """The tangent-normal metric with weights for the values of a point.

    Args:
        score: The score of the model at one noise level.
        weights: How much a change of each value of the denoised point counts, `shape` or what
            broadcasts to it.
        normal_weight: How much steps off the data count.
    """

    flat_pace = True  # frames are evenly spaced in flat length, as for all metrics of a score

    def __init__(self, score: ScoreModel, weights: Tensor, normal_weight: float = 100.0):
        self.score, self.weights, self.normal_weight = score, weights, normal_weight

    def embed(self, x: Tensor, where: Where | None = None) -> Tensor:
        """The residual and the weighted denoised point, `(K, *shape) -> (K, 2, *shape)`."""
        residual = -(self.score.sigma**2) * self.score(x, where)
        clean = x - residual
        return torch.stack([self.normal_weight**0.5 * residual, self.weights**0.5 * clean], 1)


def main(argv: list[str] | None = None) -> None:
    """Morph the shipped images with the metric."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("morph.gif"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--max-evals", type=int, default=200)
    args = parser.parse_args(argv)
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
    images = [Image.open(path) for path in demo.endpoint_paths()]
    weights = torch.full((16, 16), 10.0)
    weights[4:12, 4:12] = 1.0  # the middle of the latents is free to change

    keys = pipe.invert(images, num_inference_steps=args.steps)
    path = pipe.solve(keys, lambda score: RegionMetric(score, weights), max_evals=args.max_evals)
    write_frames(pipe.render(pipe.sample(path)).frames, args.output, 12)
    print(path.geodesics[0].status, path.geodesics[0].message)


if __name__ == "__main__":
    main()
