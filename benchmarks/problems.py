"""Manifolds whose geodesics are known, with the exact score of points spread over them.

The points form a lattice, or they are random samples. Noise sigma blurs a lattice of points at
distance `h` to a share `exp(-2 (pi sigma / h)^2)` of its height. Here the share is less than 1e-8
at sigma = 0.1, so the score is that of the manifold. The score of random samples is that of a data
set: it also has their chance clusters and gaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from riemannian_diffusion import GaussianMixtureScore, ScoreModel

SIGMA = 0.1
NUM_RANDOM = 4000  # number of random samples of a manifold


class HypersphereScore(ScoreModel):
    """The exact score of a uniform unit k-sphere in a (k + 1)-dimensional subspace.

    With y the part of x in the subspace, `kappa = alpha |y| / sigma^2` and `nu = (k - 1) / 2`, the
    density is `exp(-(|x|^2 + alpha^2) / (2 sigma^2)) I_nu(kappa) kappa^-nu` up to a factor, and the
    score `(alpha A y / |y| - x) / sigma^2` with `A = I_(nu + 1)(kappa) / I_nu(kappa)` (the mean of
    a von Mises-Fisher distribution; Mardia and Jupp, 2000).

    Args:
        basis: `(n, k + 1)`, orthonormal columns.
        centre: `(n,)`.
        sigma: Standard deviation of the noise, positive.
        alpha: Factor of the clean data.
    """

    def __init__(self, basis: Tensor, centre: Tensor, sigma: float, *, alpha: float = 1.0):
        self.basis, self.centre, self.sigma, self.alpha = basis, centre, sigma, alpha

    def __call__(self, x: Tensor) -> Tensor:
        """The score at each point, `(K, n) -> (K, n)`."""
        offset, norm, direction = self._parts(x)
        mean = self.alpha * self._ratio(norm) * direction
        return ((mean - offset) / self.sigma**2).to(x.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density at each point, `(K, n) -> (K,)`; without a gradient."""
        from scipy.special import gammaln, ive

        offset, norm, _ = self._parts(x)
        n, dim = self.basis.shape
        order = dim / 2 - 1
        kappa = (self.alpha * norm / self.sigma**2).squeeze(1).detach().numpy()
        bessel = torch.from_numpy(ive(order, kappa)).log() + torch.from_numpy(kappa)
        constant = order * math.log(2) + float(gammaln(dim / 2))
        constant -= n / 2 * math.log(2 * math.pi * self.sigma**2)
        exponent = (offset.detach().square().sum(1) + self.alpha**2) / (2 * self.sigma**2)
        return constant - exponent + bessel - order * torch.from_numpy(kappa).log()

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        offset = x.double() - self.alpha * self.centre
        inside = offset @ self.basis  # (K, k + 1)
        norm = inside.square().sum(1, keepdim=True).clamp(min=1e-24).sqrt()
        return offset, norm, inside / norm @ self.basis.T

    def _ratio(self, norm: Tensor) -> Tensor:
        """`I_(nu + 1) / I_nu` by its continued fraction, from Amos' bound for a high order."""
        kappa, half = self.alpha * norm / self.sigma**2, self.basis.shape[1] / 2
        top = half + 60
        ratio = kappa / (top + 0.5 + ((top + 0.5) ** 2 + kappa.square()).sqrt())
        for step in reversed(range(60)):
            ratio = kappa / (2 * (half + step) + kappa * ratio)
        return ratio


@dataclass(frozen=True)
class Problem:
    """Two points on a manifold in R^n, and the geodesic between them.

    Attributes:
        name: Name in tables.
        level: Function from `(alpha, sigma)` to the exact score of `alpha x_0 + sigma eps`.
        points: Points of the manifold `(M, n)`.
        geodesic: Function from fractions `(K,)` of its length to points `(K, n)`.
        length: Length of the geodesic.
        distance: Function from points `(K, n)` to their distances `(K,)` from the manifold.
        plane: Two axes `(n, 2)` in which a picture shows the manifold.
        weights: Weights of the points; None if they are equal.
    """

    name: str
    level: Callable[[float, float], ScoreModel]
    points: Tensor
    geodesic: Callable[[Tensor], Tensor]
    length: float
    distance: Callable[[Tensor], Tensor]
    plane: Tensor
    weights: Tensor | None = None

    @cached_property
    def score(self) -> ScoreModel:
        """The score at noise sigma = 0.1, where the clean data have factor 1."""
        return self.level(1.0, SIGMA)

    @cached_property
    def _ends(self) -> Tensor:
        return self.geodesic(torch.tensor([0.0, 1.0]))

    @property
    def x0(self) -> Tensor:
        """First point `(n,)`."""
        return self._ends[0]

    @property
    def x1(self) -> Tensor:
        """Last point `(n,)`."""
        return self._ends[1]


def _embedding(k: int, n: int) -> Tensor:  # an isometry R^k -> R^n
    generator = torch.Generator().manual_seed(100 * k + n)
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0][:, :k]


def _problem(
    name, points, geodesic, n, length, distance, *, shift=0.0, axes=(0, 1), **more
) -> Problem:
    """A manifold that is given in R^k, embedded in R^n and moved off the origin by `shift`."""
    isometry = _embedding(points.shape[1], n)
    centre = shift * isometry[:, 0]

    def distance_in_rn(x: Tensor) -> Tensor:
        inside = (x.double() - centre) @ isometry
        outside = (x.double() - centre - inside @ isometry.T).norm(dim=1)
        return torch.hypot(distance(inside), outside)

    weights = more.get("weights")
    embedded = points @ isometry.T + centre
    level = more.get("level") or (
        lambda alpha, sigma: GaussianMixtureScore(embedded, sigma, alpha=alpha, weights=weights)
    )
    return Problem(
        name=name,
        level=level,
        points=embedded,
        geodesic=lambda u: geodesic(u.double()[:, None]) @ isometry.T + centre,
        length=length,
        distance=distance_in_rn,
        plane=isometry[:, list(axes)],
        weights=weights,
    )


def _around(num: int) -> Tensor:  # (num, 1), angles
    return torch.arange(num, dtype=torch.float64)[:, None] * (2 * math.pi / num)


def _uniform(seed: int, k: int = 1) -> Tensor:  # (NUM_RANDOM, k) in [0, 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(NUM_RANDOM, k, generator=generator, dtype=torch.float64)


def _directions(seed: int, k: int) -> Tensor:  # (NUM_RANDOM, k), uniform on the unit sphere in R^k
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(NUM_RANDOM, k, generator=generator, dtype=torch.float64)
    return points / points.norm(dim=1, keepdim=True)


def _circle(t: Tensor) -> Tensor:  # (K, 1) -> (K, 2)
    return torch.cat([t.cos(), t.sin()], 1)


def _off_circle(p: Tensor) -> Tensor:
    return (p.norm(dim=1) - 1).abs()


def circle(
    n: int,
    *,
    start: float = 0.3,
    angle: float = 2.2,
    num: int = 400,
    shift: float = 0.0,
    seed: int | None = None,
) -> Problem:
    """The unit circle in R^n. Here and below, a seed replaces the lattice by random samples."""
    return _problem(
        f"circle in R^{n}",
        _circle(_around(num) if seed is None else 2 * math.pi * _uniform(seed)),
        lambda u: _circle(start + angle * u),
        n,
        angle,
        _off_circle,
        shift=shift,
    )


def uneven_circle(
    n: int, *, angle: float = 2.2, num: int = 400, shift: float = 1.0, seed: int | None = None
) -> Problem:
    """The unit circle in R^n. It is twenty times as dense on one side as on the other.

    Points of the lattice have weights. Random samples are drawn from the density and have none.
    """

    def density(t: Tensor) -> Tensor:
        return (1.5 * (t - 1.2).cos()).exp().squeeze(1)

    t, weights = _around(num), None
    if seed is None:
        weights = density(t)
    else:
        dense = _around(200_000)
        shares = density(dense).cumsum(0)
        index = torch.searchsorted(shares, shares[-1] * _uniform(seed)[:, 0])
        t = dense[index]
    return _problem(
        f"uneven circle in R^{n}",
        _circle(t),
        lambda u: _circle(1.2 + angle * u),
        n,
        angle,
        _off_circle,
        shift=shift,
        weights=weights,
    )


def sphere(
    n: int, *, angle: float = 2.2, num: int = 2400, shift: float = 0.0, seed: int | None = None
) -> Problem:
    """The unit 2-sphere in R^n, covered by a Fibonacci spiral or by random samples."""
    i = torch.arange(num, dtype=torch.float64) + 0.5
    z, longitude = 1 - 2 * i / num, math.pi * (1 + 5**0.5) * i
    radius = (1 - z * z).sqrt()
    spiral = torch.stack([radius * longitude.cos(), radius * longitude.sin(), z], 1)

    def great_circle(u: Tensor) -> Tensor:
        t = 0.4 + angle * u
        return torch.cat([t.cos(), 0.6 * t.sin(), 0.8 * t.sin()], 1)

    return _problem(
        f"2-sphere in R^{n}",
        spiral if seed is None else _directions(seed, 3),
        great_circle,
        n,
        angle,
        _off_circle,
        shift=shift,
    )


def hypersphere(
    k: int, n: int, *, angle: float = 2.2, shift: float = 1.0, seed: int | None = None
) -> Problem:
    """The unit k-sphere in R^n, with its score in closed form or with that of random samples."""
    basis = _embedding(k + 1, n)

    def whole(alpha: float, sigma: float) -> ScoreModel:
        return HypersphereScore(basis, shift * basis[:, 0], sigma, alpha=alpha)

    def great_circle(u: Tensor) -> Tensor:
        rest = torch.zeros(len(u), k - 1, dtype=torch.float64)
        return torch.cat([_circle(0.3 + angle * u), rest], 1)

    return _problem(
        f"{k}-sphere in R^{n}",
        _directions(k if seed is None else seed, k + 1),
        great_circle,
        n,
        angle,
        _off_circle,
        shift=shift,
        level=whole if seed is None else None,
    )


def torus(
    n: int,
    *,
    angles: tuple[float, float] = (1.7, 1.3),
    num: int = 64,
    shift: float = 0.0,
    seed: int | None = None,
) -> Problem:
    """The flat torus in R^n, a product of two unit circles. Geodesics are straight in angles."""

    def at(a: Tensor) -> Tensor:  # (K, 2) -> (K, 4)
        return torch.stack([a.cos(), a.sin()], 2).flatten(1)

    t = _around(num)[:, 0]
    start, turn = torch.tensor([[0.2, 0.5], angles], dtype=torch.float64)

    def distance(p: Tensor) -> Tensor:
        return torch.hypot(p[:, :2].norm(dim=1) - 1, p[:, 2:].norm(dim=1) - 1)

    return _problem(
        f"flat torus in R^{n}",
        at(torch.cartesian_prod(t, t) if seed is None else 2 * math.pi * _uniform(seed, 2)),
        lambda u: at(start + turn * u),
        n,
        math.hypot(*angles),
        distance,
        shift=shift,
    )


def _nearest(curve: Tensor) -> Callable[[Tensor], Tensor]:
    """Distance to a curve that is given by dense points."""
    return lambda p: torch.cdist(p, curve.to(p)).min(1).values


def c_shape(*, num: int = 600, seed: int | None = None) -> Problem:
    """Three quarters of the unit circle in the plane. Its tips are nearer in a straight line."""

    def at(u: Tensor) -> Tensor:
        return _circle(math.pi * (0.25 + 1.5 * u))

    dense = at(torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None])
    lattice = torch.linspace(0, 1, num, dtype=torch.float64)[:, None]
    return _problem(
        "C-shape",
        at(lattice if seed is None else _uniform(seed)),
        lambda u: at(0.05 + 0.9 * u),
        2,
        0.9 * 1.5 * math.pi,
        _nearest(dense),
    )


def two_moons(*, num: int = 400, seed: int | None = None) -> Problem:
    """Two half circles that interlock. The geodesic follows one, past the tip of the other."""
    t = torch.linspace(0, math.pi, num, dtype=torch.float64)[:, None]
    shift = torch.tensor([0.5, 0.25], dtype=torch.float64)

    def moons(t: Tensor) -> tuple[Tensor, Tensor]:
        upper = _circle(t)
        return upper - shift, torch.tensor([1, 0.5], dtype=torch.float64) - upper - shift

    points = torch.cat(moons(t))
    if seed is not None:
        place, side = _uniform(seed, 2).split(1, dim=1)
        points = torch.where(side < 0.5, *moons(math.pi * place))
    dense = torch.linspace(0, math.pi, 10001, dtype=torch.float64)[:, None]
    return _problem(
        "two moons",
        points,
        lambda u: moons(math.pi * (0.9 - 0.8 * u))[0],
        2,
        0.8 * math.pi,
        _nearest(torch.cat(moons(dense))),
    )


def swiss_roll(n: int, *, seed: int | None = None) -> Problem:
    """A rolled-up strip in R^n, `r = t / 10` over a turn and a half, width 1.

    It is flat: geodesics are straight in its arc length and its width.
    """
    t = torch.linspace(1.5 * math.pi, 4.5 * math.pi, 40001, dtype=torch.float64)
    root = (1 + t * t).sqrt()
    arc = 0.05 * (t * root + torch.asinh(t))  # int of sqrt(r^2 + r'^2)
    arc = arc - arc[0]

    def at(coordinates: Tensor) -> Tensor:  # arc length and width (K, 2) -> (K, 3)
        place = (coordinates[:, 0].contiguous() / arc[-1]).clamp(0, 1)
        index = torch.searchsorted(arc, place * arc[-1]).clamp(1, len(arc) - 1)
        share = (place * arc[-1] - arc[index - 1]) / (arc[index] - arc[index - 1])
        angle = torch.lerp(t[index - 1], t[index], share)
        around = [0.1 * angle * angle.cos(), 0.1 * angle * angle.sin()]
        return torch.stack([*around, coordinates[:, 1] - 0.5], 1)

    total = float(arc[-1])
    start, end = torch.tensor([[0.2 * total, 0.2], [0.8 * total, 0.8]], dtype=torch.float64)
    grid = torch.cartesian_prod(
        torch.linspace(0, total, round(total / 0.05), dtype=torch.float64),
        torch.linspace(0, 1, 21, dtype=torch.float64),
    )
    if seed is not None:
        grid = _uniform(seed, 2) * torch.tensor([total, 1.0], dtype=torch.float64)
    spiral = torch.stack([0.1 * t * t.cos(), 0.1 * t * t.sin()], 1)[::4]

    def distance(p: Tensor) -> Tensor:
        return torch.hypot(_nearest(spiral)(p[:, :2]), (p[:, 2].abs() - 0.5).clamp(min=0))

    return _problem(
        f"swiss roll in R^{n}",
        at(grid),
        lambda u: at(start + u * (end - start)),
        n,
        float((end - start).norm()),
        distance,
    )


def all_problems() -> list[Problem]:
    """Smooth manifolds, centred on the origin."""
    return [circle(2), circle(8), circle(32), sphere(10), torus(6)]


def benchmark_problems(seed: int | None = None) -> Iterator[Problem]:
    """All manifolds of the benchmark.

    Circles, spheres and tori are moved off the origin, because slerp would be exact otherwise.

    Args:
        seed: Seed of random samples, uniform in the measure of each manifold. None takes lattices,
            and closed forms of the scores of k-spheres.
    """
    yield c_shape(seed=seed)
    yield two_moons(seed=seed)
    yield swiss_roll(20, seed=seed)
    yield circle(32, shift=1.0, seed=seed)
    yield uneven_circle(8, seed=seed)
    yield torus(6, shift=1.0, seed=seed)
    for k in range(1, 11):
        yield hypersphere(k, 100, seed=seed)


def _curve(
    name: str, function: Callable[[Tensor], Tensor], *, span: tuple[float, float], seed: int | None
) -> Problem:
    """A curve in its own coordinates, from parameters `(K,)` to points `(K, n)`.

    The geodesic joins two points of the curve at fractions `span` of its length. Points are evenly
    spaced, or, with a seed, random.
    """
    t = torch.linspace(0, 1, 40001, dtype=torch.float64)
    dense = function(t)
    arc = torch.cat([t[:1], (dense[1:] - dense[:-1]).norm(dim=1).cumsum(0)])

    def at(u: Tensor) -> Tensor:  # fractions of the length (K,) -> (K, n)
        place = u.contiguous() * arc[-1]
        index = torch.searchsorted(arc, place).clamp(1, len(arc) - 1)
        share = (place - arc[index - 1]) / (arc[index] - arc[index - 1])
        return function(torch.lerp(t[index - 1], t[index], share))

    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    if seed is not None:
        u = _uniform(seed)[:, 0]
    start, end = span
    return _problem(
        name,
        at(u),
        lambda u: at(start + (end - start) * u[:, 0]),
        dense.shape[1],
        (end - start) * float(arc[-1]),
        _nearest(dense[::4]),
    )


def _columns(*columns: Tensor) -> Tensor:
    return torch.stack(columns, 1)


def figure_eight(*, around: float, half: float) -> Problem:
    """The curve `(sin t, sin t cos t)`, which crosses itself at the origin, at `t = 0` and at pi.

    The geodesic has a share `2 half` of the length, with its middle at `t = around`.
    """

    def at(u: Tensor) -> Tensor:
        t = 2 * math.pi * (u - 0.5) + around
        return _columns(t.sin(), t.sin() * t.cos())

    return _curve("figure eight", at, span=(0.5 - half, 0.5 + half), seed=None)


def limacon(seed: int | None = None) -> Problem:
    """A heart-shaped curve without a cusp, `r = 1.2 + 0.8 cos t`."""

    def at(u: Tensor) -> Tensor:
        t = 2 * math.pi * u
        return (1.2 + 0.8 * t.cos())[:, None] * _columns(t.cos(), t.sin())

    return _curve("limacon", at, span=(0.2, 0.65), seed=seed)


def spiral(seed: int | None = None) -> Problem:
    """An Archimedean spiral in the plane with a distance of 0.63 between its turns."""

    def at(u: Tensor) -> Tensor:
        t = math.pi * (1 + 3 * u)
        return 0.1 * t[:, None] * _columns(t.cos(), t.sin())

    return _curve("spiral", at, span=(0.1, 0.9), seed=seed)


def tennis_ball(seed: int | None = None) -> Problem:
    """The seam of a tennis ball, a curve on the unit sphere."""

    def at(u: Tensor) -> Tensor:
        t, a, b = 2 * math.pi * u, 0.75, 0.25
        x, y = a * t.cos() + b * (3 * t).cos(), a * t.sin() - b * (3 * t).sin()
        return _columns(x, y, 2 * math.sqrt(a * b) * (2 * t).sin())

    return _curve("tennis ball", at, span=(0.05, 0.45), seed=seed)


def lissajous(seed: int | None = None) -> Problem:
    """A Lissajous curve with frequencies 1, 1 and 3, a crown."""

    def at(u: Tensor) -> Tensor:
        t = 2 * math.pi * u
        return _columns(1.3 * t.cos(), 1.3 * t.sin(), 0.5 * (3 * t).cos())

    return _curve("Lissajous curve", at, span=(0.05, 0.45), seed=seed)


def torus_knot(seed: int | None = None) -> Problem:
    """The (2, 5) torus knot on a torus of radii 2 and 0.8."""

    def at(u: Tensor) -> Tensor:
        t = 2 * math.pi * u
        around = 2 + 0.8 * (5 * t).cos()
        return _columns(around * (2 * t).cos(), around * (2 * t).sin(), 0.8 * (5 * t).sin())

    return _curve("(2, 5) torus knot", at, span=(0.05, 0.35), seed=seed)


def helix(seed: int | None = None) -> Problem:
    """Two turns of a helix of radius 1 and pitch pi / 2. Its ends are 2.2 apart along it."""

    def at(u: Tensor) -> Tensor:
        t = 4 * math.pi * u
        return _columns(t.cos(), t.sin(), t / 4)

    return _curve("helix", at, span=(0.3, 0.3 + 2.2 / 12.953), seed=seed)


def trefoil(seed: int | None = None) -> Problem:
    """The trefoil knot, a third of its usual size. Its ends are 2.2 apart along it."""

    def at(u: Tensor) -> Tensor:
        t = 2 * math.pi * u
        x, y = t.sin() + 2 * (2 * t).sin(), t.cos() - 2 * (2 * t).cos()
        return _columns(x, y, -(3 * t).sin()) / 3

    return _curve("trefoil", at, span=(0.1, 0.1 + 2.2 / 9.6088), seed=seed)


def random_fourier(seed: int | None = None) -> Problem:
    """A closed curve in R^20 whose four harmonics have random coefficients."""
    generator = torch.Generator().manual_seed(20)
    j = torch.arange(1, 5, dtype=torch.float64)
    parts = torch.randn(2, 4, 20, generator=generator, dtype=torch.float64) / (3 * j[:, None])

    def at(u: Tensor) -> Tensor:
        t = 2 * math.pi * u[:, None] * j
        return t.cos() @ parts[0] + t.sin() @ parts[1]

    return _curve("random Fourier curve in R^20", at, span=(0.05, 0.45), seed=seed)


TEST_CURVES = (limacon, spiral, tennis_ball, lissajous, torus_knot, random_fourier)


def held_out_problems(seed: int | None = None) -> Iterator[Problem]:
    """Six curves that are set aside for testing. No setting of any method was chosen on them.

    Args:
        seed: See `benchmark_problems`.
    """
    for make in (limacon, spiral, tennis_ball, lissajous, torus_knot, random_fourier):
        yield make(seed)
