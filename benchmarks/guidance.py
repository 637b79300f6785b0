"""Guidance that stays on the manifold: distance from the data and probability of the class.

    python benchmarks/guidance.py [--study mixtures | demo] [--methods plain rescale manifold ...]

Every method is a rule that makes one score from the conditional score, the unconditional score and
a weight. DDIM draws samples with this score, from the same noises for every method, with weights
from 1 to 15. Methods that damp the guidance guide less at the same weight. For mixtures their
weights continue to 30, because the probability rises slowly there. There are two studies:

    mixtures  classes of known mixtures in R^16 with exact scores; "probability" is the probability
              of the class given the sample, "distance" is the mean distance of samples from the
              manifold of the class, which has radius 1
    demo      the shipped model; "probability" is the share of samples whose nearest render has the
              hue and the kind of the caption, "distance" is the root mean square of the difference
              from that render, for images in [0, 1]

Comparisons follow the rows of a problem. A comparison is the distance of a method over the distance
of plain or rescaled guidance at equal probability: the geometric mean and the worst value over the
weights of plain or rescaled guidance. "short" counts the weights whose probability the method does
not reach within 0.002 (within one sample in "demo").

This list has the methods and what each step costs besides the two evaluations of plain guidance.
The guidance is g = eps_c - eps_u. J_D and J_r = I - J_D are the Jacobians of the unconditional
denoiser and its residual.
    rescale         plain, rescaled by 0.7 (Lin et al., arXiv 2305.08891): none
    manifold        J_D g by a difference, `ManifoldGuidedScore` with `damping` 1: 1 evaluation
    half            (g + J_D g) / 2, which is `damping` 0.5: 1 evaluation
    exact           J_D g exactly: 1 product
    cg 1, cg 10     (I + kn J_r^T J_r)^-1 g by 3 steps of conjugate gradients: 6 products
    along n         g - a n, n = J_r g, a = <n, J_r n> / |J_r n|^2: 2 products
A product with J costs about 3 evaluations of a network. A product with its transpose costs 2.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import frame
import torch
from torch import Tensor

from riemannian_diffusion import (
    DiffusionScore,
    GaussianMixtureScore,
    ManifoldGuidedScore,
    ScoreModel,
    Where,
    demo,
    sample,
    split_tangent,
)
from riemannian_diffusion.levels import read_schedule
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

WEIGHTS = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 11.0, 15.0)
MORE_WEIGHTS = (20.0, 30.0)
NUM_CG = 3
RESCALE = 0.7


def _plain(conditional, unconditional, x, weight):
    score = unconditional(x)
    return score + weight * (conditional(x) - score)


def _rescaled(conditional, unconditional, x, weight):
    own, guided = conditional(x), _plain(conditional, unconditional, x, weight)
    ratio = own.flatten(1).std(1) / guided.flatten(1).std(1)
    return (RESCALE * _wide(ratio, x) + 1 - RESCALE) * guided


def _manifold(conditional, unconditional, x, weight):
    return ManifoldGuidedScore(conditional, unconditional, weight, damping=1.0)(x)


def _half(conditional, unconditional, x, weight):
    return ManifoldGuidedScore(conditional, unconditional, weight, damping=0.5)(x)


def _with(change: Callable) -> Callable:
    """A rule that adds `w - 1` times the changed difference."""

    def rule(conditional, unconditional, x, weight):
        score = conditional(x)
        difference = score - unconditional(x)
        return score + (weight - 1) * change(unconditional, x, difference)

    return rule


def _exact(score, x, difference):
    return split_tangent(score, x, difference)[0]


def _along_normal(score, x, difference):
    normal = split_tangent(score, x, difference)[1]
    again = split_tangent(score, x, normal)[1]
    factor = _dot(normal, again) / _dot(again, again).clamp(min=1e-30)
    return difference - _wide(factor, x) * normal


def _damped(normal_weight: float) -> Callable:
    def change(score, x, difference):
        def operator(v: Tensor) -> Tensor:
            normal = split_tangent(score, x, v)[1]
            return v + normal_weight * -(score.sigma**2) * score.vjp(x, normal)

        found = torch.zeros_like(difference)
        residual = direction = difference
        square = _dot(residual, residual)
        for _ in range(NUM_CG):
            image = operator(direction)
            step = _wide(square / _dot(direction, image).clamp(min=1e-30), x)
            found, residual = found + step * direction, residual - step * image
            before, square = square, _dot(residual, residual)
            direction = residual + _wide(square / before.clamp(min=1e-30), x) * direction
        return found

    return change


METHODS: dict[str, Callable] = {
    "plain": _plain,
    "rescale": _rescaled,
    "manifold": _manifold,
    "half": _half,
    "exact": _with(_exact),
    "cg 1": _with(_damped(1.0)),
    "cg 10": _with(_damped(10.0)),
    "along n": _with(_along_normal),
}
UNDAMPED = ("plain", "rescale")


class AtPlaces(ScoreModel):
    """A score with one prompt per point, read at the places of all points."""

    def __init__(self, score: ScoreModel, where: Where):
        self.alpha, self.sigma = score.alpha, score.sigma
        self.score, self.where = score, where

    def __call__(self, x: Tensor) -> Tensor:
        """The score of each point under its own prompt."""
        return self.score(x, self.where)

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """Products of the score's Jacobian with one tangent per point."""
        return self.score.jvp(x, v, self.where)

    def vjp(self, x: Tensor, w: Tensor) -> Tensor:
        """Products of the transposed Jacobian with one cotangent per point."""
        return self.score.vjp(x, w, self.where)


class Guided(ScoreModel):
    """A conditional score guided by one of the rules."""

    def __init__(self, rule, conditional: ScoreModel, unconditional: ScoreModel, weight: float):
        self.alpha, self.sigma = conditional.alpha, conditional.sigma
        self.rule, self.weight = rule, weight
        self.conditional, self.unconditional = conditional, unconditional

    def __call__(self, x: Tensor) -> Tensor:
        """The guided score."""
        return self.rule(self.conditional, self.unconditional, x, self.weight)


@dataclass(frozen=True)
class Classes:
    """Classes of points near a manifold.

    Attributes:
        name: Name of the problem.
        points: Points on the manifold, `(M, n)`.
        weights: Weights of the points in each class, `(C, M)`.
        spread: Standard deviation of the data around the points.
        distance: Function from points `(K, n)` to their distances `(K,)` from the manifold of the
            first class.
    """

    name: str
    points: Tensor
    weights: Tensor
    spread: float
    distance: Callable[[Tensor], Tensor]

    def probability(self, x: Tensor) -> Tensor:
        """Probability of the first class given each sample, at noise 0.02, `(K,)`."""
        level = [
            GaussianMixtureScore(self.points, 0.02, std=self.spread, weights=w).log_prob(x)
            for w in self.weights
        ]
        return torch.stack(level).softmax(0)[0]

    def curve(
        self, rule: Callable, weights: Sequence[float], num_samples: int, num_steps: int, seed: int
    ) -> list[tuple[float, float]]:
        """Probability and distance for every weight."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(num_samples, self.points.shape[1], generator=generator).double()
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        abar = (1 - betas).cumprod(0)
        timesteps = torch.linspace(999, 1, num_steps + 1)[:-1].long().tolist()
        first, every = self.weights[0], self.weights.mean(0)
        curve = []
        for weight in weights:

            def level(t: int, weight=weight) -> ScoreModel:
                alpha, sigma = float(abar[t]) ** 0.5, float(1 - abar[t]) ** 0.5
                scores = [
                    GaussianMixtureScore(
                        self.points, sigma, std=self.spread, weights=w, alpha=alpha
                    )
                    for w in (first, every)
                ]
                return Guided(rule, *scores, weight)

            drawn = sample(level, x, timesteps)
            distance, probability = self.distance(drawn), self.probability(drawn)
            curve.append((float(probability.mean()), float(distance.mean())))
        return curve


def sectors(spread: float) -> Classes:
    """A circle whose classes are the four quarters, which fade into each other."""
    t, basis = _angles(), _isometry(2)
    centres = torch.arange(4).double() * (math.pi / 2)
    weights = (3 * (t - centres[:, None]).cos()).exp()
    return Classes(
        f"quarters of a circle, spread {spread:g}",
        torch.stack([t.cos(), t.sin()], 1) @ basis.T,
        weights / weights.sum(1, keepdim=True),
        spread,
        lambda x: torch.hypot((x @ basis).norm(dim=1) - 1, _outside(x, basis)),
    )


def crossing(spread: float) -> Classes:
    """Two circles that cross. A fifth of each class lies on the circle of the other class."""
    t, basis = _angles(), _isometry(3)
    zero, share = torch.zeros_like(t), torch.tensor([[0.8, 0.2], [0.2, 0.8]]).double()
    rings = [
        torch.stack([t.cos(), t.sin(), zero], 1),
        torch.stack([1 + t.cos(), zero, t.sin()], 1),
    ]

    def distance(x: Tensor) -> Tensor:
        a, b, c = (x @ basis).unbind(1)
        first = torch.hypot(torch.hypot(a, b) - 1, c)
        second = torch.hypot(torch.hypot(a - 1, c) - 1, b)
        return torch.hypot(torch.minimum(first, second), _outside(x, basis))

    return Classes(
        f"two crossing circles, spread {spread:g}",
        torch.cat(rings) @ basis.T,
        share.repeat_interleave(len(t), 1) / len(t),
        spread,
        distance,
    )


def concentric(spread: float) -> Classes:
    """Circles of radius 1 and 1.15, about as far apart as their spreads.

    The two classes are densest in directions that are a quarter turn apart.
    """
    t, basis = _angles(), _isometry(2)
    ring = torch.stack([t.cos(), t.sin()], 1)
    densities = torch.stack([t.cos().exp(), (t - math.pi / 2).cos().exp()])
    densities = densities / densities.sum(1, keepdim=True)
    weights = torch.stack([torch.cat([densities[0], 0 * t]), torch.cat([0 * t, densities[1]])])
    return Classes(
        f"concentric circles, spread {spread:g}",
        torch.cat([ring, 1.15 * ring]) @ basis.T,
        weights,
        spread,
        lambda x: torch.hypot((x @ basis).norm(dim=1) - 1, _outside(x, basis)),
    )


def mixtures(methods: list[str], num_samples: int, num_steps: int, seed: int) -> Iterator[dict]:
    """The curves of every problem, and their comparisons."""
    problems = [sectors(0.01), sectors(0.1), crossing(0.01), crossing(0.1), concentric(0.06)]
    for problem in problems:
        curves = {}
        for name in methods:
            weights = WEIGHTS if name in UNDAMPED else WEIGHTS + MORE_WEIGHTS
            curves[name] = problem.curve(METHODS[name], weights, num_samples, num_steps, seed)
            yield from _rows(problem.name, name, weights, curves[name])
        yield from _comparisons(problem.name, curves, 0.002)


@torch.no_grad()
def captioned(
    methods: list[str],
    num_samples: int,
    num_steps: int,
    weights: list[float],
    device: str,
    cells: Path | None,
    seed: int,
) -> Iterator[dict]:
    """The curves of the shipped model, and their comparisons."""
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
    pipe.to(device, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    hues = torch.randint(len(demo.HUES), (num_samples,), generator=generator).tolist()
    kinds = [demo.KINDS[i % len(demo.KINDS)] for i in range(num_samples)]
    captions = [demo.caption(k, h / len(demo.HUES)) for k, h in zip(kinds, hues, strict=True)]
    config = pipe.unet.config
    shape = (num_samples, config.in_channels, config.sample_size, config.sample_size)
    noise = torch.randn(shape, generator=generator).to(device)
    prompts, empty = pipe.encode_prompt(captions, device, 1, True, [""] * num_samples)
    schedule, where = read_schedule(pipe.scheduler, num_steps), Where.even(num_samples)

    def found(name: str, weight: float) -> tuple[float, float]:
        file = cells and cells / f"{name}_{weight:g}_{num_samples}_{num_steps}_{seed}.json"
        if file and file.exists():
            return tuple(json.loads(file.read_text()))
        value = measured(METHODS[name], weight)
        if file:
            partial = file.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(value))
            partial.rename(file)
        return value

    def measured(rule: Callable, weight: float) -> tuple[float, float]:
        def level(t: float) -> ScoreModel:
            scores = [
                DiffusionScore(
                    pipe.unet, pipe.scheduler, t, encoder_hidden_states=hidden, max_batch_size=25
                )
                for hidden in (prompts, empty[:1])
            ]
            return Guided(rule, *(AtPlaces(score, where) for score in scores), weight)

        clean = sample(level, noise, schedule.timesteps, final_abar=schedule.final_abar)
        images = pipe.decode(clean, max_batch_size=25)
        nearest = demo.nearest_render(images.cpu())
        right = sum(a == b for a, b in zip(captions, nearest.captions, strict=True))
        return right / num_samples, float(nearest.mse.mean().sqrt())

    problem, first = "shipped model", found("plain", 1.0)  # all methods agree at weight 1
    curves = {}
    for name in methods:
        curves[name] = [first, *(found(name, weight) for weight in weights)]
        yield from _rows(problem, name, [1.0, *weights], curves[name])
    yield from _comparisons(problem, curves, 1 / num_samples)


def _rows(
    problem: str, method: str, weights: Sequence[float], curve: list[tuple[float, float]]
) -> Iterator[dict]:
    for weight, (probability, distance) in zip(weights, curve, strict=True):
        yield {
            "problem": problem,
            "method": method,
            "weight": weight,
            "probability": probability,
            "distance": distance,
        }


def _comparisons(
    problem: str, curves: dict[str, list[tuple[float, float]]], tolerance: float
) -> Iterator[dict]:
    """Compare the distances of every curve with those of plain and of rescaled guidance."""
    for other in UNDAMPED:
        if other not in curves:
            continue
        for name, curve in curves.items():
            if name in UNDAMPED:
                continue
            ratios, short = ratios_at_equal(curve, curves[other], tolerance)
            logs = [math.log(ratio) for ratio in ratios]
            yield {
                "problem": problem,
                "method": name,
                "over": other,
                "mean": math.exp(sum(logs) / len(logs)) if logs else math.nan,
                "worst": max(ratios, default=math.nan),
                "short": short,
            }


def ratios_at_equal(
    curve: list[tuple[float, float]], other: list[tuple[float, float]], tolerance: float
) -> tuple[list[float], int]:
    """Least distance of a curve over the distance of another curve, at equal probabilities.

    Each point of the other curve gives one probability. The curve is interpolated linearly between
    neighbouring weights. The first point of the other curve has no guidance. It is the same for all
    curves, so it is left out.

    Returns:
        The ratios, and the number of probabilities that the curve does not reach.
    """
    ratios, short = [], 0
    for probability, distance in other[1:]:
        least = math.inf
        for (p0, d0), (p1, d1) in zip(curve[:-1], curve[1:], strict=True):
            for p, d in ((p0, d0), (p1, d1)):
                if p >= probability - tolerance:
                    least = min(least, d)
            if min(p0, p1) < probability < max(p0, p1):
                least = min(least, d0 + (d1 - d0) * (probability - p0) / (p1 - p0))
        if least == math.inf:
            short += 1
        else:
            ratios.append(least / distance)
    return ratios, short


def _angles(num: int = 600) -> Tensor:
    return torch.arange(num).double() * (2 * math.pi / num)


def _isometry(dim: int, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(size, size, generator=generator).double())[0][:, :dim]


def _outside(x: Tensor, basis: Tensor) -> Tensor:
    return (x - x @ basis @ basis.T).norm(dim=1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _wide(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 1))


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure the curves; return the rows."""
    parser = frame.parser(__doc__)
    parser.add_argument("--study", choices=("mixtures", "demo"), default="mixtures")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        default=[2, 3, 5, 8, 15],
        help="weights of the study demo; weight 1 is always measured",
    )
    parser.add_argument(
        "--cells",
        type=Path,
        help="folder that keeps measurements of demo",
    )
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """The rows of the study."""
    methods = args.methods or list(METHODS)
    if args.study == "mixtures":
        yield from mixtures(methods, args.samples, args.steps, args.seed)
        return
    if args.cells:
        args.cells.mkdir(parents=True, exist_ok=True)
    yield from captioned(
        methods, args.samples, args.steps, args.weights, args.device, args.cells, args.seed
    )


if __name__ == "__main__":
    main()
