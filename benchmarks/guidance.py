"""Guidance along the manifold: distance from the manifold and probability of the class.

    python benchmarks/guidance.py [--study mixtures | demo] [--methods plain rescale manifold ...]
    python benchmarks/guidance.py --curves FILE.json

Every method is a rule that makes one score from the conditional score `s_c`, the unconditional
score `s_u` and a weight `w`. Samples are drawn by DDIM from the same noises for every method and
every weight. All methods use the same weights. There are two studies:

    mixtures  classes of known mixtures in R^16 with exact scores; "probability" is that of the
              class given the sample, "distance" is the mean distance of samples from the manifold
              of the class, in units of its radius 1
    demo      the shipped model; "probability" is the share of samples whose nearest render has the
              hue and the kind of the caption, "distance" is the root mean square of the difference
              from that render, for images in [0, 1]

Rows with a weight are points of the curves. In "mixtures" the row "data" is the class itself; a
distance below that of the data is no merit. Then every method is compared with plain guidance,
and plain guidance with itself, which gives 1. A ratio is the distance of the method over the
distance of plain guidance: below 1 the method is nearer the manifold.

    at "probability"  Each curve is replaced by its lower envelope: the least distance at which it
                      reaches a probability or a higher one, with straight lines between
                      neighbouring weights. "mean" and "worst" are the geometric mean and the
                      largest of the ratios at evenly spaced probabilities, from the largest of the
                      two lowest probabilities, "from", to the lower of the two highest ones less
                      0.002, "to". "last" is the ratio at "to". "reach" is the highest probability
                      of the method.
    at "weight"       "mean" and "worst" are over the weights above 1. "change" is the mean change
                      of the probability. A method that guides less at the same weight has a lower
                      probability there, so this alone does not say which method is better.

`--curves` samples nothing. It takes the curves from the results of an earlier run and compares
them again.

Methods, and their cost per step besides the two evaluations of plain guidance. `g = s_c - s_u`;
J_D and J_r = I - J_D are the Jacobians of the unconditional denoiser and its residual; `g - [g]_a`
is the part of g across the vector a:
    rescale         plain, rescaled by 0.7 (Lin et al., arXiv 2305.08891): none
    manifold        J_D g by a difference, `ManifoldGuidedScore` with `damping` 1: 1 evaluation
    half            (g + J_D g) / 2, which is `damping` 0.5: 1 evaluation
    exact           J_D g exactly: 1 product
    cg 1, cg 10     (I + kn J_r^T J_r)^-1 g by 3 steps of conjugate gradients: 6 products
    along n         g - a n, n = J_r g, a = <n, J_r n> / |J_r n|^2: 2 products
    apg             s_c + (w - 1) (g - [g]_a), a the conditional estimate of the clean point
                    (adaptive projected guidance, arXiv 2410.02416, without momentum, without a
                    limit of the norm, eta 0): none
    apg eps         as apg, but a the conditional prediction of the noise: none
    tcfg            t + w (s_c - t), t the projection of s_u on the first right singular vector of
                    the rows s_u and s_c (tangential damping, arXiv 2503.18137): none
    mog             s_u + w (g + 4 [g]_a) / 5, a = s_u (manifold-optimal guidance, arXiv
                    2603.11509, lambda 1 along s_u and 5 across it, without the automatic weight);
                    at weight 1 it is not the conditional score: none
A product with J costs about 3 evaluations of a network, one with its transpose 2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import frame
import torch
from diffusers import StableDiffusionPipeline
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

WEIGHTS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 11.0, 15.0, 20.0, 30.0)
NUM_CG = 3
RESCALE = 0.7
MOG_ALONG, MOG_ACROSS = 1.0, 5.0
BASELINE = "plain"
TOLERANCE = 0.002  # smaller differences of a probability do not count
NUM_PROBABILITIES = 101


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


def _tcfg(conditional, unconditional, x, weight):
    own, other = conditional(x), unconditional(x)
    rows = torch.stack([other.flatten(1), own.flatten(1)], 1)
    first = torch.linalg.svd(rows, full_matrices=False).Vh[:, 0].view_as(x)
    damped = _part_along(first, other)
    return damped + weight * (own - damped)


def _mog(conditional, unconditional, x, weight):
    score = unconditional(x)
    difference = conditional(x) - score
    along = _part_along(score, difference)
    return score + weight * (along / MOG_ALONG + (difference - along) / MOG_ACROSS)


def _apg(conditional, unconditional, x, weight):
    return _across(conditional.denoise(x), conditional, unconditional, x, weight)


def _apg_of_noise(conditional, unconditional, x, weight):
    return _across(conditional(x), conditional, unconditional, x, weight)


def _across(direction, conditional, unconditional, x, weight):
    score = conditional(x)
    difference = score - unconditional(x)
    return score + (weight - 1) * (difference - _part_along(direction, difference))


def _part_along(direction: Tensor, x: Tensor) -> Tensor:
    """The part of each point along its direction, all `(K, *shape)`."""
    return _wide(_dot(direction, x) / _dot(direction, direction).clamp(min=1e-30), x) * direction


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
    "apg": _apg,
    "apg eps": _apg_of_noise,
    "tcfg": _tcfg,
    "mog": _mog,
}


class Placed(ScoreModel):
    """A score whose points lie at fixed places, for rules that give none.

    `DiffusionScore` needs the places in order to give every sample its own prompt.
    """

    def __init__(self, score: ScoreModel, where: Where):
        self.alpha, self.sigma = score.alpha, score.sigma
        self.score, self.where = score, where

    def __call__(self, x: Tensor) -> Tensor:
        """The score of all points at their places."""
        return self.score(x, self.where)


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
        spread: Standard deviation of the data around their points.
        distance: Points `(K, n)` -> distance from the manifold of the first class `(K,)`.
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

    def data(self, num_samples: int, seed: int) -> tuple[float, float]:
        """Probability and distance of the first class's own data."""
        generator = torch.Generator().manual_seed(seed)
        index = torch.multinomial(self.weights[0], num_samples, True, generator=generator)
        shape = num_samples, self.points.shape[1]
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        drawn = self.points[index] + self.spread * noise
        return float(self.probability(drawn).mean()), float(self.distance(drawn).mean())

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


def mixtures(methods: list[str], num_samples: int, num_steps: int, seed: int) -> Iterator[dict]:
    """The curves of every problem, and their comparisons."""
    problems = [sectors(0.01), sectors(0.1), crossing(0.01), crossing(0.1), concentric(0.06)]
    for problem in problems:
        curves = {}
        yield from _rows(problem.name, "data", [None], [problem.data(num_samples, seed)])
        for name in methods:
            curves[name] = problem.curve(METHODS[name], WEIGHTS, num_samples, num_steps, seed)
            yield from _rows(problem.name, name, WEIGHTS, curves[name])
        yield from _comparisons(problem.name, WEIGHTS, curves)


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
    pipe = StableDiffusionPipeline.from_pretrained(demo.model_path(), safety_checker=None)
    pipe.to(device, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    hues = torch.randint(len(demo.HUES), (num_samples,), generator=generator).tolist()
    kinds = [demo.KINDS[i % len(demo.KINDS)] for i in range(num_samples)]
    captions = [demo.caption(k, h / len(demo.HUES)) for k, h in zip(kinds, hues, strict=True)]
    config = pipe.unet.config
    shape = (num_samples, config.in_channels, config.sample_size, config.sample_size)
    noise = torch.randn(shape, generator=generator).to(device)
    places = Where(torch.zeros(num_samples), torch.arange(num_samples))
    prompts, empty = pipe.encode_prompt(captions, device, 1, True, [""] * num_samples)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(num_steps)
    final_abar = float(scheduler.final_alpha_cumprod)

    def found(name: str, weight: float) -> tuple[float, float]:
        file = cells and cells / f"{name}_{weight:g}_{num_samples}_{num_steps}_{seed}.json"
        return tuple(frame.kept(file, lambda: measured(METHODS[name], weight)))

    def measured(rule: Callable, weight: float) -> tuple[float, float]:
        def level(t: int) -> ScoreModel:
            conditional, unconditional = (
                DiffusionScore(
                    pipe.unet, scheduler, t, encoder_hidden_states=hidden, max_batch_size=25
                )
                for hidden in (prompts[:, None], empty[:1])  # a prompt for every sample, or one
            )
            return Guided(rule, Placed(conditional, places), unconditional, weight)

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

    problem, curves, all_weights = "shipped model", {}, [1.0, *weights]
    for name in methods:
        at_1 = found("mog" if name == "mog" else "plain", 1.0)  # the others agree at weight 1
        curves[name] = [at_1, *(found(name, weight) for weight in weights)]
        yield from _rows(problem, name, all_weights, curves[name])
    yield from _comparisons(problem, all_weights, curves)


def compared_again(rows: Sequence[dict]) -> Iterator[dict]:
    """The curves and the data among the rows of an earlier run, and their comparisons.

    Raises:
        ValueError: If two methods of a problem have different weights.
    """
    points = [row for row in rows if "weight" in row]
    for problem in dict.fromkeys(row["problem"] for row in points):
        curves, weights = {}, {}
        for row in (row for row in points if row["problem"] == problem):
            if row["weight"] is None:  # the data
                yield row
                continue
            curves.setdefault(row["method"], []).append((row["probability"], row["distance"]))
            weights.setdefault(row["method"], []).append(row["weight"])
        shared = next(iter(weights.values()))
        if any(found != shared for found in weights.values()):
            raise ValueError(f"--curves: the methods of {problem!r} have different weights.")
        for name, curve in curves.items():
            yield from _rows(problem, name, shared, curve)
        yield from _comparisons(problem, shared, curves)


def _rows(
    problem: str, method: str, weights: Sequence[float | None], curve: list[tuple[float, float]]
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
    problem: str, weights: Sequence[float], curves: dict[str, list[tuple[float, float]]]
) -> Iterator[dict]:
    """Every curve over that of plain guidance: at equal probability, then at equal weight."""
    if BASELINE not in curves:
        return
    other = curves[BASELINE]
    for name, curve in curves.items():
        head = {"problem": problem, "method": name, "at": "probability"}
        yield head | at_equal_probability(curve, other)
    for name, curve in curves.items():
        head = {"problem": problem, "method": name, "at": "weight"}
        yield head | at_equal_weight(weights, curve, other)


def at_equal_probability(
    curve: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]
) -> dict[str, float]:
    """Compare the lower envelopes of two curves of (probability, distance).

    Returns:
        The geometric mean, the largest and the last of the ratios of their distances, the range of
        probabilities, and the highest probability of the first curve. The ratios are NaN where the
        curves share no probabilities.
    """
    lowest, reaches = (
        [end(p for p, _ in points) for points in (curve, other)] for end in (min, max)
    )
    start, stop = max(lowest), min(reaches) - TOLERANCE
    found = {"from": start, "to": stop, "reach": reaches[0]}
    if stop <= start:
        return dict.fromkeys(("mean", "worst", "last"), math.nan) | found
    steps = range(NUM_PROBABILITIES)
    evenly = [start + (stop - start) * i / (NUM_PROBABILITIES - 1) for i in steps]
    ratios = [least_distance(curve, p) / least_distance(other, p) for p in evenly]
    return {"mean": _geometric_mean(ratios), "worst": max(ratios), "last": ratios[-1]} | found


def least_distance(curve: Sequence[tuple[float, float]], probability: float) -> float:
    """The lower envelope of a curve: its least distance at this probability or a higher one.

    The curve is straight between neighbouring points. The result is infinite where it does not
    reach the probability.
    """
    least = min((d for p, d in curve if p >= probability), default=math.inf)
    for (p0, d0), (p1, d1) in itertools.pairwise(curve):
        if min(p0, p1) < probability < max(p0, p1):
            least = min(least, d0 + (d1 - d0) * (probability - p0) / (p1 - p0))
    return least


def at_equal_weight(
    weights: Sequence[float],
    curve: Sequence[tuple[float, float]],
    other: Sequence[tuple[float, float]],
) -> dict[str, float]:
    """Compare two curves of (probability, distance) at their common weights above 1.

    Returns:
        The geometric mean and the largest of the ratios of their distances, and the mean of the
        differences of their probabilities.
    """
    pairs = [pair for w, *pair in zip(weights, curve, other, strict=True) if w > 1]
    ratios = [ours[1] / theirs[1] for ours, theirs in pairs]
    change = sum(ours[0] - theirs[0] for ours, theirs in pairs) / len(pairs)
    return {"mean": _geometric_mean(ratios), "worst": max(ratios), "change": change}


def _geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))


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
        help="weights of the study demo, besides 1",
    )
    parser.add_argument("--cells", type=Path, help="folder that keeps finished weights of demo")
    parser.add_argument(
        "--curves", type=Path, metavar="FILE.json", help="results whose curves to compare again"
    )
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """The rows of the study."""
    if args.curves:
        yield from compared_again(json.loads(args.curves.read_text())["rows"])
        return
    methods = args.methods or list(METHODS)
    if args.study == "mixtures":
        yield from mixtures(methods, args.samples, args.steps, args.seed)
        return
    yield from captioned(
        methods, args.samples, args.steps, args.weights, args.device, args.cells, args.seed
    )


if __name__ == "__main__":
    main()
