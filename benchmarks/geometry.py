"""Errors of maps, transport, means, dimension and curvature where the exact values are known.

    python benchmarks/geometry.py [--data MNIST_ROOT] [--kinds 3]

Exponential and logarithm maps, transport and means are tested on a sphere in latitude and
longitude. Dimension and curvature are tested on exact scores of k-spheres in R^100 at noise 0.1.
Extrapolation by 90 degrees is tested on the exact score of a circle. Cheap estimates of dimension
are tested on and beside a 3-sphere: "mean" and "spread" are over 400 estimates, and "std error" is
the mean of the standard errors that the estimates state. The last rows have dimensions
of images that are known by construction: renders of one kind of solid have five factors, digits
rotated through all angles have one. `--data` adds the digits. "gap" is the gap in the spectrum that
the estimate found. A wide gap means a safe estimate.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import frame
import torch
from problems import HypersphereScore, circle, hypersphere
from torch import Tensor

from riemannian_diffusion import (
    DiffusionScore,
    GaussianMixtureScore,
    PullbackMetric,
    Where,
    demo,
    exponential_map,
    extrapolate,
    frechet_mean,
    intrinsic_dimension,
    logarithm_map,
    normal_curvature,
    parallel_transport,
    tangent_basis,
)
from riemannian_diffusion.tangent import Dimension

METHODS = ("spectrum", "scores", "flipd", "loss")


class Sphere(PullbackMetric):
    """The unit sphere in latitude and longitude."""

    def embed(self, x: Tensor) -> Tensor:
        """Points in space `(K, 3)` of latitudes and longitudes `(K, 2)`."""
        latitude, longitude = x[:, 0], x[:, 1]
        flat = latitude.cos()
        return torch.stack([flat * longitude.cos(), flat * longitude.sin(), latitude.sin()], 1)


def row(name: str, true: float, ours: float) -> dict:
    """One row: a known value, the computed value, and the error."""
    return {"quantity": name, "known": true, "computed": ours, "error": abs(ours - true)}


def on_a_sphere() -> Iterator[dict]:
    """Exponential and logarithm maps, transport and means in a chart of the sphere."""
    metric, wide = Sphere(), {"dtype": torch.float64}
    x, v = torch.tensor([0.3, 0.1], **wide), torch.tensor([1.0, 1.2], **wide)
    v = v / metric.norm(x[None], v[None])
    half = 0.999 * math.pi * v
    path = metric.embed(exponential_map(metric, x, half, num_steps=64))
    yield row("exp by half a turn: angle to the antipode", 0.0, _angle(path[-1], -path[0]))
    steps = (path[1:] - path[:-1]).norm(dim=1)
    yield row(
        "exp by half a turn: largest over smallest step", 1.0, float(steps.max() / steps.min())
    )
    y = exponential_map(metric, x, 1.5 * v, num_steps=32)[-1]
    back = logarithm_map(metric, x, y)
    yield row("log at distance 1.5: norm", 1.5, float(metric.norm(x[None], back[None])))
    again = exponential_map(metric, x, back, num_steps=32)[-1]
    yield row("exp of log: distance to the end point", 0.0, float((again - y).norm()))

    u = torch.linspace(0, 1, 65, **wide)
    corners = torch.tensor([[0, 0], [1.2, 0], [1.2, 1.5], [0, 1.5], [0, 0]], **wide)
    legs = [torch.lerp(a, b, u[:, None]) for a, b in zip(corners[:-1], corners[1:], strict=True)]
    loop = torch.cat([legs[0], *(leg[1:] for leg in legs[1:])])
    moved = parallel_transport(metric, loop, torch.tensor([1.0, 0.0], **wide))[-1]
    turned = abs(math.atan2(float(moved[1]), float(moved[0])))
    yield row("transport around a loop: angle of rotation", 1.5 * math.sin(1.2), turned)

    latitude = torch.linspace(0.2, 1.4, 33, **wide)
    meridian = torch.stack([latitude, torch.zeros_like(latitude)], 1)
    slanting = torch.tensor([0.6, 0.8 / math.cos(0.2)], **wide)
    north, east = parallel_transport(metric, meridian, slanting)[-1].tolist()
    angle = math.atan2(math.cos(1.4) * east, north)
    yield row("transport along a meridian: angle to it", math.atan2(0.8, 0.6), angle)

    points = torch.tensor([[0.3, 0.1], [0.5, 0.8], [-0.4, 0.5]], **wide)
    weights = torch.tensor([0.5, 0.3, 0.2], **wide)
    found = metric.embed(frechet_mean(metric, points, weights, rtol=1e-4)[None])[0]
    true = _mean(metric.embed(points), weights)
    yield row("weighted mean of three points: angle to the true mean", 0.0, _angle(found, true))


def _angle(a: Tensor, b: Tensor) -> float:
    return 2 * float(torch.atan2((a - b).norm(), (a + b).norm()))


def _mean(points: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of points on the sphere, by Karcher's iteration with closed forms."""
    mean = weights @ points
    mean = mean / mean.norm()
    for _ in range(200):
        cosines = points @ mean
        angles = cosines.clamp(-1, 1).arccos()
        normals = (points - cosines[:, None] * mean) / angles.sin()[:, None]
        step = (weights * angles) @ normals
        mean = step.norm().cos() * mean + torch.sinc(step.norm() / math.pi) * step
    return mean


def by_scores(seed: int) -> Iterator[dict]:
    """Dimension and curvature of k-spheres, and extrapolation along a circle."""
    generator = torch.Generator().manual_seed(seed)
    wrong = {"spectrum": 0, "scores": 0}
    for k in range(1, 11):
        normal = torch.randn(100, k + 1, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(normal)[0]
        score = HypersphereScore(basis, torch.zeros(100, dtype=torch.float64), 0.1)
        x = torch.randn(10, k + 1, generator=generator, dtype=torch.float64)
        x = x / x.norm(dim=1, keepdim=True) @ basis.T
        for method in wrong:
            found = intrinsic_dimension(score, x, method=method)
            wrong[method] += int((found.dimension != k).sum())
        if k in (1, 2, 5):
            direction = tangent_basis(score, x, k)[:, 0]
            bend = float(normal_curvature(score, x, direction).mean())
            yield row(f"curvature of a {k}-sphere at noise 0.1", 1.0, bend)
    for method, number in wrong.items():
        yield row(f"dimension of k-spheres by {method}: wrong of 100", 0, number)
    nowhere = torch.zeros(6, dtype=torch.float64)
    for name, known, spread in (("a point of R^6", 0, 0.0), ("a Gaussian in R^6", 6, 1.0)):
        score = GaussianMixtureScore(nowhere[None], 0.1, std=spread)
        for method in METHODS:
            found = intrinsic_dimension(score, nowhere[None], method=method, num_samples=100)
            yield row(f"dimension of {name} by {method}", known, int(found.dimension))
    problem = circle(8, angle=1.0)
    path = problem.geodesic(torch.linspace(0, 1, 17))
    longer = extrapolate(path, math.pi / 2, project=problem.score.denoise)
    true = problem.geodesic(torch.tensor([1 + math.pi / 2]))[0]
    yield row("extrapolation by 90 degrees: distance", 0.0, float((longer[-1] - true).norm()))


def by_probes(seed: int, *, num_points: int = 400, num_probes: int = 8) -> Iterator[dict]:
    """Cheap estimates of the dimension of a 3-sphere in R^100, on it and beside it."""
    sphere = hypersphere(3, 100)
    normal = (sphere.points - sphere.score.centre)[:num_points]
    for noise in (0.1, 0.05):
        score = sphere.level(1.0, noise)
        for method in ("flipd", "loss"):
            for distance in (0.0, 0.1, 0.2):
                x = score.centre + (1 + distance) * normal
                generator = torch.Generator().manual_seed(seed)
                options = {"method": method, "num_samples": num_probes, "generator": generator}
                found = intrinsic_dimension(score, x, **options)
                yield {
                    "estimate": method,
                    "noise": noise,
                    "distance": distance,
                    "known": 3 + (distance / noise) ** 2,
                    "mean": float(found.estimate.mean()),
                    "spread": float(found.estimate.std()),
                    "std error": float(found.std_error.mean()),
                }


def of_images(data: str | None, num_kinds: int, seed: int) -> Iterator[dict]:
    """Dimensions of images, where they are known by construction."""

    def rows(names: list[str], known: int, found: Dimension) -> Iterator[dict]:
        columns = found.dimension.tolist(), found.gap.tolist()
        for name, dimension, gap in zip(names, *columns, strict=True):
            yield {"image": name, "known": known, "dimension": dimension, "gap": gap}

    score, points = _encoded_renders(seed)
    places = Where.even(len(points))
    found = intrinsic_dimension(score, points, max_dim=48, where=places)
    names = [f"a {kind}, shipped model" for kind in demo.KINDS]
    yield from rows(names, len(demo.FACTORS), found)
    if data is not None:
        from digits import load_mnist, rotate

        images, labels = load_mnist(data)
        angles = torch.linspace(0, 2 * math.pi, 721)[:-1]
        for kind in range(num_kinds):
            image = images[labels == kind][:1].expand(720, -1, -1)
            curve = rotate(image, angles).flatten(1).double()
            step = float((curve[1:] - curve[:-1]).norm(dim=1).mean())
            score = GaussianMixtureScore(curve, 2 * step)
            names = [f"digit {kind} at {angle} degrees, exact score" for angle in (0, 120, 240)]
            yield from rows(names, 1, intrinsic_dimension(score, curve[::240], max_dim=16))


def _encoded_renders(seed: int) -> tuple[DiffusionScore, Tensor]:
    """The shipped model's score under captions of held-out scenes, and their scaled latents.

    There is one scene per kind.
    """
    from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

    pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
    factors = demo.random_factors(len(demo.KINDS), torch.Generator().manual_seed(2000 + seed))
    texts = [demo.caption(k, float(f[1])) for k, f in zip(demo.KINDS, factors, strict=True)]
    with torch.no_grad():
        latents = pipe.encode(demo.render(demo.KINDS, factors))
        hidden = pipe.encode_prompt(texts, "cpu", 1, False)[0]
    score = DiffusionScore(pipe.unet, pipe.scheduler, 400, encoder_hidden_states=hidden)
    return score, score.alpha * latents


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure all errors and dimensions; return the rows."""
    parser = frame.parser(__doc__, cpu_only=True)
    parser.add_argument("--data", help="root folder of MNIST")
    parser.add_argument("--kinds", type=int, default=3, help="number of digits from --data")
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Rows with errors of known values, then rows with dimensions of images."""
    yield from on_a_sphere()
    yield from by_scores(args.seed)
    yield from by_probes(args.seed)
    yield from of_images(args.data, args.kinds, args.seed)


if __name__ == "__main__":
    main()
