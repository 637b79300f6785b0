"""Ways to step between noise levels: their passes, round-trip errors and frames.

    python benchmarks/sampling.py [--levels 10 15 20 25 30 50] [--problems pair ...]

A method has a formula and levels. In `z = x / alpha` and `tau = sigma / alpha`, sampling solves
`dz/dtau = eps(z)`; for a flow it solves `dx/dt = v(x)`. The formulas are:

    ddim      what `invert` and `sample` do: Euler steps, which inversion undoes by iterations
    ab2       Adams-Bashforth steps of second order, the first of first order. Inversion reads the
              noise that it does not know yet off the line through the last two levels.
    midpoint  FireFlow (arXiv 2412.07517): the noise is read in the middle of the step, which is
              reached along the noise of the last step
    belm      O-BELM (arXiv 2410.07273): two levels and the noise between them. Inversion is exact,
              but only where both states at the noisiest levels are kept. Points inside a path have
              one state, so their second one comes from a DDIM step.

The levels are evenly spaced in timesteps ("even"), in tau ("tau"), or in the cube root of tau
("cube"). All have the same cleanest and the same noisiest level.

Problems: the shipped pair ("pair"), also with a prompt and guidance 3 ("guided"), pictures that the
model does not know ("unknown"), and exact mixtures of six Gaussians in R^3 ("mixture"), also as a
flow ("flow"). Images are inverted, joined by slerp and sampled, three points from each to the next.
"invert" and "sample" are passes for each image and each frame. "trip" is the error of images
sampled back, relative to their norm. "from 200" is the root mean square difference of the frames
between the images from those of 200 DDIM steps. In the same way, "from exact" compares with 100
midpoint steps, and "from 30" with 30 even DDIM levels. For mixtures, they are the medians over the
frames, relative to the norm.
"""

from __future__ import annotations

import argparse
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import frame
import torch
from diffusers import DDIMScheduler
from inversion import Counted, unknown
from PIL import Image
from torch import Tensor

from riemannian_diffusion import GaussianMixtureScore, ScoreModel, demo, invert, sample, slerp
from riemannian_diffusion.ddim.inversion import _mixed
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

PROBLEMS = ("pair", "guided", "unknown", "mixture", "flow")
NOISIEST = 581  # the timestep at 0.6 of 50 steps
BETWEEN = 3  # frames between two images
TOL = 1e-3
_SCHEDULER = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
_ABAR = _SCHEDULER.alphas_cumprod.double()
NOISES = ((1 - _ABAR) / _ABAR).sqrt().tolist()  # tau of every timestep

Velocity = Callable[[Tensor, float], Tensor]
Times = list[float]  # tau, or t of a flow: that of the data, then those of the levels, rising


@dataclass(frozen=True)
class Problem:
    """Images and a model at every noise level.

    Attributes:
        x: Clean points `(K, *shape)`.
        model: tau, or t of a flow -> the score.
        final_abar: Squared factor of the data at the clean level.
        flow: Whether it is a flow.
        frames: Points -> what is compared.
        counts: The points of every evaluation.
    """

    x: Tensor
    model: Callable[[float], ScoreModel]
    final_abar: float = 1.0
    flow: bool = False
    frames: Callable[[Tensor], Tensor] | None = None
    counts: list[int] = field(default_factory=list)

    def score(self, time: float) -> ScoreModel:
        """The score at a level; its evaluations are counted."""
        return Counted(self.model(time), self.counts)

    def velocity(self, y: Tensor, time: float) -> Tensor:
        """The right-hand side of the equation that sampling solves."""
        score = self.score(time)
        if self.flow:
            return (-score.sigma * score(y) - y) / score.alpha
        return -score.sigma * score(score.alpha * y)

    def scale(self, time: float) -> float:
        """The factor between the points and the solution of the equation."""
        return 1.0 if self.flow else (1 + time**2) ** -0.5


@dataclass(frozen=True)
class Method:
    """A formula for both directions, `(problem, points, times) -> points`."""

    invert: Callable[[Problem, Tensor, Times], Tensor]
    sample: Callable[[Problem, Tensor, Times], Tensor]


def ddim_invert(problem: Problem, x: Tensor, times: Times) -> Tensor:
    """What `invert` does."""
    return invert(problem.score, x, times[1:], final_abar=problem.final_abar, tol=TOL)


def ddim_sample(problem: Problem, x: Tensor, times: Times) -> Tensor:
    """What `sample` does."""
    return sample(problem.score, x, times[1:], final_abar=problem.final_abar)


def scaled(function: Callable[[Velocity, Tensor, Times], Tensor], *, inverts: bool) -> Callable:
    """A solver of the equation as a function of points."""

    def solve(problem: Problem, x: Tensor, times: Times) -> Tensor:
        first, last = (times[0], times[-1]) if inverts else (times[-1], times[0])
        return problem.scale(last) * function(problem.velocity, x / problem.scale(first), times)

    return solve


def ab2_sample(v: Velocity, y: Tensor, s: Times) -> Tensor:
    """Adams-Bashforth steps of second order; the first and the last are of first order."""
    before = None
    for i in range(len(s) - 1, 0, -1):
        slope = value = v(y, s[i])
        if before is not None and i > 1:
            slope = value + (s[i] - s[i - 1]) / (s[i + 1] - s[i]) / 2 * (value - before)
        y, before = y - (s[i] - s[i - 1]) * slope, value
    return y


def ab2_invert(v: Velocity, y: Tensor, s: Times) -> Tensor:
    """The inverse of `ab2_sample`.

    The step of sampling from level i needs the value at level i + 1, which is not known yet. It is
    extrapolated at first, which gives the trapezoidal rule. As soon as it is known, it is used.
    """
    last, norms = len(s) - 1, y.flatten(1).norm(dim=1)
    values: list[Tensor] = [y]  # values[i] at level i; there is none at the clean level

    def taken(i: int, value: Tensor, following: Tensor) -> Tensor:
        """The move of sampling's step from level i."""
        h = s[i] - s[i - 1]
        slope = value if i == 1 else value + h / (s[i + 1] - s[i]) / 2 * (value - following)
        return h * slope

    for i in range(1, last + 1):
        h = s[i] - s[i - 1]

        def there(value: Tensor, i: int = i, h: float = h, y: Tensor = y) -> Tensor:
            """The point at level i, if this is the value there."""
            if i == 1:
                return y + h * value
            slope = value if i == last else (value + values[-1]) / 2
            return y + taken(i - 1, values[-1], value) + h * slope

        guess = y
        if i == 2:
            guess = there(values[-1])
        elif i > 2:
            ratio = h / (s[i - 1] - s[i - 2])
            guess = there(values[-1] + ratio * (values[-1] - values[-2]))
        value = solved(lambda p, i=i: v(p, s[i]), there, guess, norms)
        if i > 1:
            y = y + taken(i - 1, values[-1], value)
        values.append(value)
    return y + (s[-1] - s[-2]) * values[-1]


def solved(
    value_at: Callable[[Tensor], Tensor],
    there: Callable[[Tensor], Tensor],
    point: Tensor,
    norms: Tensor,
) -> Tensor:
    """The value at the solution of `point = there(value_at(point))`."""
    history: list[tuple[Tensor, Tensor]] = []
    least, best = float("inf"), point
    for _ in range(20):
        value = value_at(point)
        change = there(value) - point
        residual = float((change.flatten(1).norm(dim=1) / norms).max())
        if residual < least:
            least, best = residual, value
        if residual <= TOL:
            break
        history = [*history[-2:], (point, change)]
        point = _mixed(history)
    return best


def midpoint_sample(v: Velocity, y: Tensor, s: Times) -> Tensor:
    """Midpoint steps that reuse the value of the last step."""
    value = v(y, s[-1])
    for i in range(len(s) - 1, 0, -1):
        h = s[i] - s[i - 1]
        value = v(y - h / 2 * value, s[i] - h / 2)
        y = y - h * value
    return y


def midpoint_invert(v: Velocity, y: Tensor, s: Times) -> Tensor:
    """`midpoint_sample` in the other direction."""
    value = v(y, (s[0] + s[1]) / 2)
    for i in range(1, len(s)):
        h = s[i] - s[i - 1]
        value = v(y + h / 2 * value, s[i] - h / 2)
        y = y + h * value
    return y


def belm_sample(v: Velocity, y: Tensor, s: Times, second: Tensor | None = None) -> Tensor:
    """O-BELM steps; the second state comes from a DDIM step if it is not given."""
    if second is None:
        second = y - (s[-1] - s[-2]) * v(y, s[-1])
    noisier, y = y, second
    for i in range(len(s) - 2, 0, -1):
        h, q = s[i] - s[i - 1], (s[i] - s[i - 1]) / (s[i + 1] - s[i])
        noisier, y = y, q**2 * noisier + (1 - q**2) * y - h * (1 + q) * v(y, s[i])
    return y


def belm_invert(v: Velocity, y: Tensor, s: Times) -> Tensor:
    """The exact inverse of `belm_sample` after an implicit DDIM step; drops the second state."""
    return belm_states(v, y, s)[0]


def belm_states(v: Velocity, y: Tensor, s: Times) -> tuple[Tensor, Tensor]:
    """Both states of `belm_invert` at the noisiest levels, the noisiest first."""
    h, norms = s[1] - s[0], y.flatten(1).norm(dim=1)
    value = solved(lambda p: v(p, s[1]), lambda value: y + h * value, y, norms)
    cleaner, y = y, y + h * value
    for i in range(1, len(s) - 1):
        h, q = s[i] - s[i - 1], (s[i] - s[i - 1]) / (s[i + 1] - s[i])
        value = value if i == 1 else v(y, s[i])
        cleaner, y = y, (cleaner - (1 - q**2) * y + h * (1 + q) * value) / q**2
    return y, cleaner


METHODS = {
    "ddim": Method(ddim_invert, ddim_sample),
    "ab2": Method(scaled(ab2_invert, inverts=True), scaled(ab2_sample, inverts=False)),
    "midpoint": Method(
        scaled(midpoint_invert, inverts=True), scaled(midpoint_sample, inverts=False)
    ),
    "belm": Method(scaled(belm_invert, inverts=True), scaled(belm_sample, inverts=False)),
}
COMPARED = [
    *(("ddim", spacing) for spacing in ("even", "tau", "cube")),
    *((name, spacing) for name in ("ab2", "midpoint", "belm") for spacing in ("even", "cube")),
]


def times_of(problem: Problem, spacing: str, num: int) -> Times:
    """Times of the data and of `num` levels, from clean to noisy."""
    final = 0.0 if problem.flow else ((1 - problem.final_abar) / problem.final_abar) ** 0.5
    low, high = NOISES[1], NOISES[NOISIEST]
    if spacing == "even" and not problem.flow:
        steps = [1 + (NOISIEST - 1) * i / (num - 1) for i in range(num)]
        return [final, *(noise_of(step) for step in steps)]
    if spacing == "even":
        low, high = low / (1 + low), high / (1 + high)
        return [final, *(low + (high - low) * i / (num - 1) for i in range(num))]
    power = 3.0 if spacing == "cube" else 1.0
    low, high = low ** (1 / power), high ** (1 / power)
    noises = [(low + (high - low) * i / (num - 1)) ** power for i in range(num)]
    return [final, *(noise / (1 + noise) if problem.flow else noise for noise in noises)]


def noise_of(timestep: float) -> float:
    """Noise tau of a timestep, linear between whole ones."""
    below = min(int(timestep), len(NOISES) - 2)
    return NOISES[below] + (timestep - below) * (NOISES[below + 1] - NOISES[below])


def timestep_of(noise: float) -> float:
    """The timestep of a tau."""
    below = min(max(bisect_right(NOISES, noise) - 1, 0), len(NOISES) - 2)
    step = below + (noise - NOISES[below]) / (NOISES[below + 1] - NOISES[below])
    return round(step) if abs(step - round(step)) < 1e-9 else step


@dataclass(frozen=True)
class Morph:
    """Frames `(N, ...)` between images, round-trip errors of the images, and passes of each."""

    frames: Tensor
    errors: Tensor
    inverting: float
    sampling: float


def morph(problem: Problem, name: str, spacing: str, num: int) -> Morph:
    """Invert images, join them by slerp, and sample."""
    times, x, method = times_of(problem, spacing, num), problem.x, METHODS[name]
    problem.counts.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        noisy = method.invert(problem, x, times)
    inverting = sum(problem.counts) / len(x)
    between = [slerp(a, b, BETWEEN + 2)[1:-1] for a, b in zip(noisy, noisy[1:], strict=False)]
    points = torch.cat([noisy, *between])
    problem.counts.clear()
    clean = method.sample(problem, points, times)
    errors = (clean[: len(x)] - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    frames = clean[len(x) :]
    if problem.frames is not None:
        frames = problem.frames(frames)
    return Morph(frames, errors, inverting, sum(problem.counts) / len(points))


@torch.no_grad()
def measure(args: argparse.Namespace) -> Iterator[dict]:
    """A row for each problem, method, spacing and number of levels."""
    for name in args.problems:
        problems = list(made(name, args))
        exact = [morph(one, "midpoint", "cube", 100) for one in problems]
        fine = [morph(one, "ddim", "even", 117) for one in problems]
        usual = [morph(one, "ddim", "even", 30) for one in problems]
        for method, spacing in COMPARED:
            for num in args.levels:
                found = [morph(one, method, spacing, num) for one in problems]
                errors = torch.cat([one.errors for one in found])
                yield {
                    "problem": name,
                    "method": method,
                    "spacing": spacing,
                    "levels": num,
                    "invert": sum(one.inverting for one in found) / len(found),
                    "sample": sum(one.sampling for one in found) / len(found),
                    "trip": float(errors.median()),
                    "greatest trip": float(errors.max()),
                    "from 200": difference(problems, found, fine),
                    "from exact": difference(problems, found, exact),
                    "from 30": difference(problems, found, usual),
                }


def difference(problems: list[Problem], some: list[Morph], others: list[Morph]) -> float:
    """How far frames are from other ones."""
    a, b = (torch.cat([one.frames for one in morphs]) for morphs in (some, others))
    if problems[0].frames is not None:
        return float((a - b).square().mean().sqrt())
    return float(((a - b).norm(dim=1) / b.norm(dim=1)).median())


def made(name: str, args: argparse.Namespace) -> Iterator[Problem]:
    """The problems of a name."""
    if name in ("mixture", "flow"):
        for i in range(args.mixtures):
            yield of_a_mixture(args.seed + i, name == "flow")
        return
    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path()).to(args.device)
    pixels = pipe.pixels([Image.open(path) for path in demo.endpoint_paths()])
    if name == "unknown":
        pixels = unknown(args.seed)
    schedule = pipe._read_schedule(50, 0.6, (64, 64))
    levels = pipe._levels(
        *(pipe.condition("a red cube" if name == "guided" else ""), schedule),
        guidance_scale=3.0 if name == "guided" else 1.0,
        true_cfg_scale=1.0,
        guidance_damping=0.0,
        max_batch_size=None,
    )
    yield Problem(
        *(pipe.encode(pixels), lambda noise: levels(timestep_of(noise)), schedule.final_abar),
        frames=pipe.decode,
    )


def of_a_mixture(seed: int, flow: bool) -> Problem:
    """Twelve draws of a mixture of six Gaussians in R^3, in float64."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    draws = means.repeat(2, 1)
    draws = draws + 0.1 * torch.randn(draws.shape, generator=generator, dtype=torch.float64)

    def model(time: float) -> ScoreModel:
        alpha, sigma = (1 - time, time) if flow else ((1 + time**2) ** -0.5, 0.0)
        return GaussianMixtureScore(means, sigma or alpha * time, std=0.1, alpha=alpha)

    return Problem(draws, model, flow=flow)


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure; return the rows."""
    parser = frame.parser(__doc__)
    parser.add_argument("--levels", type=int, nargs="+", default=[10, 15, 20, 25, 30, 50])
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=PROBLEMS)
    parser.add_argument("--mixtures", type=int, default=6, help="mixtures (default: 6)")
    return frame.run(measure, parser, argv)


if __name__ == "__main__":
    main()
