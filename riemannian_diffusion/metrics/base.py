"""The interface of metrics."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping, Sequence
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from riemannian_diffusion.metrics.departures import Departure
from riemannian_diffusion.metrics.energies import (
    PathBatch,
    PathEnergy,
    chunks_of,
    middle,
    own_energies,
    pull_back,
    same_places,
    within_memory,
)
from riemannian_diffusion.metrics.methods import prepare_methods
from riemannian_diffusion.metrics.rounding import at_rounding, point_resolution
from riemannian_diffusion.score.model import Composite, outside_inference
from riemannian_diffusion.score.where import Where

MAX_CORRECTIONS = 50  # largest number in one step of the exponential map
MOST_BENT = 0.05  # largest relative change of the momentum along a step that counts as straight

M = TypeVar("M", bound="Metric")
# For each pair of ends, entries of the end points `(2, *shape)` and their embedding.
Ends = MutableMapping[int, list[list[Tensor]]]


class Metric(Composite, ABC):
    """A Riemannian metric: an inner product of tangents at every point.

    The scores and metrics that a metric uses are its attributes, or elements of attributes that are
    lists, tuples or dicts. `where` gives the places of points on their paths, for scores that
    change along the path. A subclass defines `inner`. It may leave out `where` if its metric does
    not change along the path. It may override `energy`, and then the solver minimises that energy.

    Examples:
        >>> import torch, riemannian_diffusion
        >>> class HalfPlane(riemannian_diffusion.Metric):
        ...     inner = lambda self, x, u, v, where=None: (u * v).sum(1) / x[:, 1] ** 2
        >>> HalfPlane().norm(torch.tensor([[0.0, 2.0]]), torch.ones(1, 2))
        tensor([0.7071])
    """

    # Whether the points of a geodesic are paced by flat length instead of length in the metric.
    # Metrics that read a score do so. Such a metric keeps a path on the data, but it also lengthens
    # tangents where the denoiser's Jacobian is no exact projection, as between scattered data.
    flat_pace = False
    # First and last fraction of a path whose places are not given, and its pair.
    _stretch: tuple[float, float, int] = (0.0, 1.0, 0)

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        prepare_methods(cls)

    @abstractmethod
    def inner(self, x: Tensor, u: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The inner products `<u, v>_x`, `(K,)`, of tangents at points, all `(K, *shape)`."""

    def norm(self, x: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The norms `|v|_x` of tangents, `(K, *shape) -> (K,)`."""
        return self.inner(x, v, v, where).clamp(min=0).sqrt()

    def as_matrix(self, x: Tensor, where: Where | None = None) -> Tensor:
        """The dense matrix of the metric at each point, `(K, d, d)`, for tests and plots only."""
        flat = x.flatten(1)
        basis = torch.eye(flat.shape[1], dtype=x.dtype, device=x.device)
        vectors = [e.view_as(x[0]).expand_as(x) for e in basis]
        columns = [torch.stack([self.inner(x, u, v, where) for u in vectors], 1) for v in vectors]
        return torch.stack(columns, 2)

    # ------------------------------------------------------------------------------------- paths

    def energy(self, path: Tensor, where: Where | None = None) -> Tensor:
        """The energy of each segment, `(K, *shape) -> (K - 1,)`, differentiable in the path.

        A segment `dx` with midpoint `m` has the energy `1/2 (K - 1) <dx, dx>_m`. With more points,
        the sum over the segments tends to the energy of the curve over unit time. The squared
        length is at most twice the sum.

        Args:
            path: The points, `(K, *shape)`.
            where: The places of the points; None for a path whose points lie at even fractions.
        """
        step, where = path[1:] - path[:-1], self._places(path, where)
        return 0.5 * len(step) * self.inner((path[1:] + path[:-1]) / 2, step, step, middle(where))

    def length(self, path: Tensor, where: Where | None = None) -> Tensor:
        """The length of a path, a scalar.

        Args:
            path: See `energy`.
            where: See `energy`.
        """
        return self.lengths_from(path, self.energy(path, where)).sum()

    def lengths_from(self, path: Tensor, energies: Tensor) -> Tensor:
        """The length of each segment of a path from its energy, `(K - 1,)`.

        A subclass whose energy is not half a squared length overrides it.

        Args:
            path: The points, `(K, *shape)`.
            energies: The energy of each segment, `(K - 1,)`.
        """
        return (2 * energies / len(energies)).clamp(min=0).sqrt()

    def hop_lengths(self, hops: Tensor) -> Tensor:
        """The length of each segment of many short paths, `(H, K, *shape) -> (H, K - 1)`.

        All hops are evaluated together. They have no places on a path, so a score that changes
        along the path raises a `ValueError`.
        """
        steps, middles = hops[:, 1:] - hops[:, :-1], (hops[:, 1:] + hops[:, :-1]) / 2
        v = steps.flatten(0, 1)
        squares = self.inner(middles.flatten(0, 1), v, v).view(steps.shape[:2])
        if type(self).energy is not Metric.energy:
            return self._own_lengths(hops, squares)
        return squares.clamp(min=0).sqrt()

    def _own_lengths(self, hops: Tensor, values: Tensor) -> Tensor:
        """The lengths of hops under an overridden energy, from known values of each hop."""
        batch = PathBatch(hops.unbind(), [0] * len(hops))
        found = own_energies(type(self).energy, self, batch, values.unbind(), differentiate=False)
        pairs = zip(hops, found, strict=True)
        return torch.stack([self.lengths_from(hop, energies) for hop, (energies, _, _) in pairs])

    @torch.inference_mode(False)
    def energies(
        self,
        paths: Sequence[Tensor],
        pairs: Sequence[int] | None = None,
        *,
        differentiate: bool = False,
        departures: bool = False,
        ends: Ends | None = None,
    ) -> list[PathEnergy]:
        """Compute the energies of many paths, and their gradients, in common batches.

        Points lie at even fractions of their path. They are evaluated in chunks of at most
        `points_at_once` points, and in smaller chunks after memory ran out. The result for each
        path equals that of `energy`, also if a subclass overrides `energy`.

        Args:
            paths: Paths `(K_i, *shape)` of at least 2 points.
            pairs: For each path, the index of the pair of ends that it joins. None gives each path
                its own index.
            differentiate: Whether to return gradients.
            departures: Whether to return how far the paths depart from the data. It costs no
                evaluation if the metric is pulled back by the denoiser, else one for each point.
            ends: A dict in which this metric stores values at the ends of each pair, in order to
                evaluate them only once. Each metric needs its own dict.

        Returns:
            One `PathEnergy` for each path.
        """
        batch = PathBatch(paths, range(len(paths)) if pairs is None else pairs)
        ends = {} if ends is None else ends
        asked = differentiate, departures
        return within_memory(self, batch, lambda: self._energies(batch, *asked, ends))

    def _energies(
        self, batch: PathBatch, differentiate: bool, departures: bool, ends: Ends
    ) -> list[PathEnergy]:
        middles, steps, places = batch.segments()
        numbers = [len(path) - 1 for path in batch.paths]
        rows = [slice(end - n, end) for n, end in zip(numbers, accumulate(numbers), strict=True)]
        weights = torch.cat([steps.new_full((n,), n / 2) for n in numbers])
        table = steps.new_empty(len(steps))  # <dx, dx> at the midpoints

        def inner(chunk: slice, x: Tensor, v: Tensor) -> Tensor:
            return self.inner(x, v, v, places[chunk])

        def own(energy: Callable[..., Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
            return own_energies(energy, self, batch, [table[row] for row in rows], differentiate)

        found: list[tuple[Tensor, Tensor, Tensor]] = []

        def cotangents() -> tuple[Tensor, Tensor]:
            found.extend(own(type(self).energy))
            usual = torch.cat([by_value for _, by_value, _ in own(Metric.energy)])
            return torch.cat([by_value for _, by_value, _ in found]), usual

        chunks, overridden = chunks_of(self, steps), type(self).energy is not Metric.energy
        by_middle = by_step = steps[:0]
        if differentiate:
            by_middle, by_step = pull_back(
                inner,
                (middles, steps),
                chunks,
                table,
                lambda chunk: weights[chunk],
                cotangents if overridden else None,
            )
        else:
            with torch.no_grad():
                for chunk in chunks:
                    table[chunk] = inner(chunk, middles[chunk], steps[chunk])
        if overridden and not found:
            found = own(type(self).energy)
        answers = []
        for i, (path, row) in enumerate(zip(batch.paths, rows, strict=True)):
            gradient = torch.zeros_like(path) if differentiate else None
            if gradient is not None:
                at_middle, at_step = by_middle[row], by_step[row]
                gradient[1:-1] = (at_middle[:-1] + at_middle[1:]) / 2 + at_step[:-1] - at_step[1:]
                if overridden:
                    gradient[1:-1] += found[i][2][1:-1]
            segments = found[i][0] if overridden else weights[row] * table[row]
            departure = self._departure(path, batch.places[i]) if departures else None
            squares = table[row].clamp(min=0)
            resolution = point_resolution(path, gradient, batch.places[i], squares, self.norm)
            answers.append(PathEnergy(segments, gradient, resolution, departure))
        return answers

    def _departure(
        self, path: Tensor, where: Where, values: Tensor | None = None
    ) -> Departure | None:
        """How far a path departs from the data; None if the metric reads no score.

        `values` are the embeddings of its points, for metrics with an embedding.
        """
        return None

    def _serving(self, path: Tensor, places: Where, values: Tensor) -> dict[str, Callable]:
        """An `inner` with known values on the segments of a path; it evaluates all others."""
        step = path[1:] - path[:-1]
        known, between = ((path[1:] + path[:-1]) / 2, step, step), middle(places)

        def inner(x: Tensor, u: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
            if all(map(torch.equal, (x, u, v), known)) and same_places(where, between):
                return values
            return self.inner(x, u, v, where)

        return {"inner": inner}

    def lower_bound(
        self, x0: Tensor, x1: Tensor, pair: int = 0, *, ends: Ends | None = None
    ) -> Tensor:
        """A lower bound of the energy of all paths from `x0` to `x1`, a scalar; 0 if unknown.

        If energies may be negative, an unknown bound is minus infinity.

        Args:
            x0: The first point, `shape`.
            x1: The last point, `shape`.
            pair: The index of this pair of points.
            ends: As in `energies`. After a call of `energies` with the same dict, this call costs
                nothing.
        """
        return x0.new_zeros(())

    # ---------------------------------------------------------------------- tangents and momenta

    def flat(self, x: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The momenta `G v` of tangents, `(K, *shape) -> (K, *shape)`."""
        with torch.inference_mode(False), torch.enable_grad():
            x, v = outside_inference(x), outside_inference(v).detach().requires_grad_()
            energy = 0.5 * self.inner(x, v, v, where).sum()
            if not energy.requires_grad:  # no tangent has a length
                return torch.zeros_like(v)
            return torch.autograd.grad(energy, v)[0]

    def sharp(
        self,
        x: Tensor,
        p: Tensor,
        where: Where | None = None,
        *,
        guess: Tensor | None = None,
        rtol: float = 1e-6,
    ) -> Tensor:
        """The tangents `G^-1 p` of momenta, `(K, *shape)`, by conjugate gradients.

        The method is that of Hestenes and Stiefel (1952), applied to each point separately. A point
        that has converged does not change while the others go on.

        Args:
            x: Points, `(K, *shape)`.
            p: Momenta, `(K, *shape)`.
            where: The places of the points.
            guess: Tangents to start from, `(K, *shape)`; None starts from 0.
            rtol: A point has converged when the norm of its residual is at most this share of the
                norm of `p`. Values below 100 times the rounding error of the dtype are raised to
                that.
        """

        def products(a: Tensor, b: Tensor) -> Tensor:
            return dot(a, b).view(-1, *[1] * (a.ndim - 1))

        goal = max(rtol, 100 * torch.finfo(p.dtype).eps) ** 2 * products(p, p)
        v = torch.zeros_like(p) if guess is None else guess
        residual = p - self.flat(x, v, where) if v.any() else p
        direction, square = residual, products(residual, residual)
        for _ in range(p[0].numel() + 10):
            left = square > goal
            if not left.any():
                break
            image = self.flat(x, direction, where)
            along = products(direction, image)
            left &= along > 0
            if not left.any():
                break
            step = torch.where(left, square / along, 0.0)
            v, residual = v + step * direction, residual - step * image
            before, square = square, products(residual, residual)
            direction = residual + torch.where(left, square / before, 0.0) * direction
        return v

    def force(self, x: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The derivative of `1/2 <v, v>_x` in the point x, `(K, *shape)`."""
        with torch.inference_mode(False), torch.enable_grad():
            x, v = outside_inference(x).detach().requires_grad_(), outside_inference(v)
            energy = 0.5 * self.inner(x, v, v, where).sum()
            if not energy.requires_grad:  # the metric is the same at every point
                return torch.zeros_like(x)
            return torch.autograd.grad(energy, x)[0]

    def differentiable(self: M) -> M:
        """The metric, or a copy of it, whose energy has the full gradient in the points."""
        return self

    def is_straight(self, x0: Tensor, x1: Tensor, where: Where | None = None) -> bool:
        """Whether the momentum of the straight step between two points hardly changes on it."""
        first, last = self.flat(torch.stack([x0, x1]), torch.stack([x1 - x0] * 2), where)
        return float((last - first).norm()) <= MOST_BENT * float(first.norm())

    # --------------------------------------------------------------------- steps of a geodesic

    def step(
        self, x: Tensor, velocity: Tensor, momentum: Tensor, h: float, rtol: float
    ) -> tuple[Tensor, Tensor] | None:
        """One step of the exponential map, from the metric at the middle of the step.

        Args:
            x: The point, `shape`.
            velocity: The velocity of the previous step, `shape`, as a first guess.
            momentum: The momentum at the point, `shape`.
            h: Length of the step in time.
            rtol: Relative tolerance of the equation to be solved.

        Returns:
            The next point and its momentum, or None if the equation could not be solved.
        """
        scale = float(velocity.norm())
        before = math.inf
        for _ in range(MAX_CORRECTIONS):
            middle = (x + h / 2 * velocity)[None]
            changed = momentum[None] + h / 2 * self.force(middle, velocity[None])
            new = self.sharp(middle, changed, guess=velocity[None], rtol=0.1 * rtol)[0]
            size, velocity = float((new - velocity).norm()), new
            if size <= rtol * scale or at_rounding(size, before, scale):
                middle, moved = (x + h / 2 * velocity)[None], velocity[None]
                there = self.flat(middle, moved) + h / 2 * self.force(middle, moved)
                return x + h * velocity, there[0]
            if not size < 10 * before:
                return None
            before = size
        return None

    def project(self, here: Tensor, there: Tensor, v: Tensor) -> Tensor:
        """Project a tangent at the point `here` onto the tangents at the point `there`.

        All tensors are `shape`.

        Raises:
            ValueError: If the metric has no embedding in which tangents can be compared.
        """
        raise ValueError(f"parallel_transport needs a PullbackMetric, but got {kind(self)}.")

    def _places(self, path: Tensor, where: Where | None) -> Where:
        """The places of the points of a path; even fractions if `where` is None."""
        if where is not None:
            return where
        first, last, pair = self._stretch
        return Where(torch.linspace(first, last, len(path), dtype=torch.float64), pair)


def kind(metric: Metric) -> str:
    """The name of a metric's class."""
    return type(metric).__name__


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The flat inner products of the rows of two tensors, `(K, ...) -> (K,)`."""
    return (a * b).flatten(1).sum(1)
