"""Guidance that stays on the manifold: distance from the data against what the guidance is for.

    python benchmarks/guidance.py [--study mixtures | demo] [--methods plain rescale manifold ...]

Every method is a rule that makes one score of the conditional score, the unconditional one, and a
weight; samples are drawn with it by DDIM from the same noises, for weights from 1 to 15. Rules
that damp guidance guide less at equal weight: for mixtures, where the probability saturates only
slowly, their curves go on to 30.

"mixtures": classes of known mixtures in R^16, exact scores. Distance of samples from the classes'
manifold (the mean, in units of its radius 1) against the probability of the class given the sample,
known as well.
"demo": the shipped model. Root mean square of the difference from the nearest render, of images in
[0, 1], against the share of samples whose nearest render has the caption's hue and kind.

A curve dominates another where it is nearer to the data for every probability that the other
reaches: below each table stands each method's distance over that of plain guidance (and of
rescaled) at equal probability, the geometric mean over the other's weights and the worst of them;
"short" counts weights whose probability it does not reach within 0.002 (one sample in `demo`).

Candidates, with g = eps_c - eps_u, J_D and J_r = I - J_D the Jacobians of the unconditional
denoiser and its residual, per step beyond plain guidance's two evaluations:
    rescale         plain, its spread brought back by 0.7 (Lin et al., arXiv 2305.08891): none
    manifold        J_D g by a difference, `ManifoldGuidedScore` with `damping` 1: 1 evaluation
    half            half of it, (g + J_D g) / 2, its `damping` 0.5: 1 evaluation
    exact           J_D g exactly: 1 product
    cg 1, cg 10     (I + kn J_r^T J_r)^-1 g by 3 steps of conjugate gradients: 6 products
    along n         g - a n, n = J_r g, a = <n, J_r n> / |J_r n|^2: 2 products
A product with J costs a network about 3 evaluations, one with its transpose 2.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from machine import describe
from torch import Tensor
from transformers.utils import logging as transformers_logging

from riemannian_diffusion import (
    DiffusionScore,
    GaussianMixtureScore,
    ManifoldGuidedScore,
    ScoreModel,
    demo,
    sample,
    split_tangent,
)
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
        name: Of the problem.
        points: `(M, n)`, on the manifold.
        weights: `(C, M)`, of each class.
        spread: Of the data around their points.
        distance: Points `(K, n)` -> distance from the first class's manifold `(K,)`.
    """

    name: str
    points: Tensor
    weights: Tensor
    spread: float
    distance: Callable[[Tensor], Tensor]

    def probability(self, x: Tensor) -> Tensor:
        """Of the first class, given a sample and a noise of 0.02, `(K,)`."""
        level = [
            GaussianMixtureScore(self.points, 0.02, std=self.spread, weights=w).log_prob(x)
            for w in self.weights
        ]
        return torch.stack(level).softmax(0)[0]

    def curve(
        self, rule: Callable, weights: Sequence[float], num_samples: int, num_steps: int
    ) -> list[tuple[float, float]]:
        """(probability, distance) for every weight."""
        generator = torch.Generator().manual_seed(0)
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
    """A circle, its classes the four quarters, fading into each other."""
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
    """Two circles that cross; a fifth of each class lies on the other's."""
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
    """Circles of radius 1 and 1.15, about as far apart as their spreads, facing different ways."""
    t, basis = _angles(), _isometry(2)
    ring = torch.stack([t.cos(), t.sin()], 1)
    ways = torch.stack([t.cos().exp(), (t - math.pi / 2).cos().exp()])
    ways = ways / ways.sum(1, keepdim=True)
    weights = torch.stack([torch.cat([ways[0], 0 * t]), torch.cat([0 * t, ways[1]])])
    return Classes(
        f"concentric circles, spread {spread:g}",
        torch.cat([ring, 1.15 * ring]) @ basis.T,
        weights,
        spread,
        lambda x: torch.hypot((x @ basis).norm(dim=1) - 1, _outside(x, basis)),
    )


def mixtures(methods: list[str], num_samples: int, num_steps: int) -> dict:
    """Print the curves of every problem; they are returned by its name and the method."""
    problems = [sectors(0.01), sectors(0.1), crossing(0.01), crossing(0.1), concentric(0.06)]
    curves = {}
    for problem in problems:
        print(f"\n{problem.name}: {num_samples} samples, {num_steps} steps")
        here = {}
        for name in methods:
            weights = WEIGHTS if name in UNDAMPED else WEIGHTS + MORE_WEIGHTS
            here[name] = problem.curve(METHODS[name], weights, num_samples, num_steps)
            _print_curve(name, here[name])
        _compare(here, 0.002)
        curves |= {(problem.name, name): curve for name, curve in here.items()}
    return curves


@torch.no_grad()
def captioned(
    methods: list[str],
    num_samples: int,
    num_steps: int,
    weights: list[float],
    device: str,
    cells: Path | None,
) -> dict:
    """Print the curves of the shipped model; they are returned by the method."""
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
    pipe.to(device, torch.float32)
    generator = torch.Generator().manual_seed(0)
    hues = torch.randint(len(demo.HUES), (num_samples,), generator=generator).tolist()
    kinds = [demo.KINDS[i % len(demo.KINDS)] for i in range(num_samples)]
    captions = [demo.caption(k, h / len(demo.HUES)) for k, h in zip(kinds, hues, strict=True)]
    config = pipe.unet.config
    shape = (num_samples, config.in_channels, config.sample_size, config.sample_size)
    noise = torch.randn(shape, generator=generator).to(device)
    prompts, empty = pipe.encode_prompt(captions, device, 1, True, [""] * num_samples)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(num_steps)
    final_abar = float(scheduler.final_alpha_cumprod)

    def found(name: str, weight: float) -> tuple[float, float]:
        file = cells and cells / f"{name}_{weight:g}_{num_samples}_{num_steps}.json"
        if file and file.exists():
            return tuple(json.loads(file.read_text()))
        value = measured(METHODS[name], weight)
        if file:
            partial = file.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(value))
            partial.rename(file)
        return value

    def measured(rule: Callable, weight: float) -> tuple[float, float]:
        def level(t: int) -> ScoreModel:
            scores = [
                DiffusionScore(
                    pipe.unet, scheduler, t, encoder_hidden_states=hidden, max_batch_size=25
                )
                for hidden in (prompts, empty[:1])
            ]
            return Guided(rule, *scores, weight)

        clean = sample(level, noise, scheduler.timesteps.tolist(), final_abar=final_abar)
        images = torch.cat(
            [
                pipe.vae.decode(part / pipe.vae.config.scaling_factor, return_dict=False)[0]
                for part in clean.split(25)
            ]
        )
        nearest = demo.nearest_render((images / 2 + 0.5).clamp(0, 1).cpu())
        right = sum(a == b for a, b in zip(captions, nearest.captions, strict=True))
        return right / num_samples, float(nearest.mse.mean().sqrt())

    print(f"\nthe shipped model: {num_samples} samples, {num_steps} steps", flush=True)
    first = found("plain", 1.0)
    print(f"no guidance: {first[0]:.3f}/{first[1]:.4f}   (weights {weights})", flush=True)
    curves = {}
    for name in methods:
        curves[name] = [first, *(found(name, weight) for weight in weights)]
        _print_curve(name, curves[name])
    _compare(curves, 1 / num_samples)
    return curves


def _print_curve(name: str, curve: list[tuple[float, float]]) -> None:
    cells = " ".join(f"{probability:.3f}/{distance:.4f}" for probability, distance in curve)
    print(f"  {name:10} {cells}", flush=True)


def _compare(curves: dict[str, list[tuple[float, float]]], tolerance: float) -> None:
    """Print every curve's distances over those of plain and rescaled guidance."""
    for other in UNDAMPED:
        if other not in curves:
            continue
        for name, curve in curves.items():
            if name in UNDAMPED:
                continue
            ratios, short = ratios_at_equal(curve, curves[other], tolerance)
            mean = math.exp(sum(map(math.log, ratios)) / max(1, len(ratios)))
            worst = max(ratios, default=math.nan)
            verdict = "dominates" if worst <= 1 and not short else ""
            print(
                f"  {name:10} over {other:8} mean {mean:.2f} worst {worst:.2f} short {short} "
                f"{verdict}"
            )


def ratios_at_equal(
    curve: list[tuple[float, float]], other: list[tuple[float, float]], tolerance: float
) -> tuple[list[float], int]:
    """A curve's least distance over the other's at each of the other's probabilities.

    Between neighbouring weights a curve is straight; its first point, without guidance, is shared
    and left out.
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


def main(argv: list[str] | None = None) -> dict:
    """Print the curves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", choices=("mixtures", "demo"), default="mixtures")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--weights", type=float, nargs="+", default=[2, 3, 5, 8, 15], help="demo's")
    parser.add_argument("--cells", type=Path, help="folder that keeps what demo has measured")
    parser.add_argument("--device", default="cpu", help="demo's")
    args = parser.parse_args(argv)
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    print(describe(args.device))
    methods = args.methods or list(METHODS)
    if args.study == "mixtures":
        print(f"probability/distance at weights {WEIGHTS}, damped ones {MORE_WEIGHTS} too")
        return mixtures(methods, args.samples, args.steps)
    if args.cells:
        args.cells.mkdir(parents=True, exist_ok=True)
    return captioned(methods, args.samples, args.steps, args.weights, args.device, args.cells)


if __name__ == "__main__":
    main()
