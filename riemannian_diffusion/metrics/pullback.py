"""Metrics that are pulled back from flat space by an embedding."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

from riemannian_diffusion.metrics.base import MAX_CORRECTIONS, Ends, Metric, dot
from riemannian_diffusion.metrics.energies import (
    PathBatch,
    PathEnergy,
    chunks_of,
    own_energies,
    pull_back,
    same_places,
)
from riemannian_diffusion.metrics.rounding import (
    at_rounding,
    point_resolution,
    ratio,
    rounding_errors,
)
from riemannian_diffusion.score.model import outside_inference, pushed
from riemannian_diffusion.score.where import Where


class PullbackMetric(Metric):
    """The metric of flat space pulled back by an embedding `phi`: `G = J_phi^T J_phi`.

    The energy is that of the chords of `phi`. It takes one evaluation per point and an ordinary
    reverse pass. `inner` takes forward-mode products. Energies from `inner` and from chords agree
    in the limit of many points. A subclass defines `embed`.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import PullbackMetric
        >>> class Stretched(PullbackMetric):
        ...     def embed(self, x, where=None):
        ...         return x * torch.tensor([1.0, 2.0])
        >>> v = torch.tensor([[0.0, 1.0]])
        >>> Stretched().norm(torch.zeros(1, 2), v)
        tensor([2.])
    """

    @abstractmethod
    def embed(self, x: Tensor, where: Where | None = None) -> Tensor:
        """The embedding `phi` of each point, `(K, *shape) -> (K, *embedding shape)`."""

    def embed_jvp(self, x: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The derivative of `phi` along `v`, `(K, *embedding shape)`."""
        return pushed(lambda points: self.embed(points, where), x, v)

    def embed_vjp(self, x: Tensor, w: Tensor, where: Where | None = None) -> Tensor:
        """The products `J_phi^T w`, `(K, *embedding shape) -> (K, *shape)`."""
        with torch.inference_mode(False), torch.enable_grad():
            x = outside_inference(x).detach().requires_grad_()
            embedded = self.embed(x, where)
            if not embedded.requires_grad:  # all points have one embedding
                return torch.zeros_like(x)
            return torch.autograd.grad(embedded, x, outside_inference(w))[0]

    def inner(self, x: Tensor, u: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The inner products `<J_phi u, J_phi v>` of tangents, `(K, *shape) -> (K,)`."""
        pushed = self.embed_jvp(x, u, where)
        return dot(pushed, pushed if v is u else self.embed_jvp(x, v, where))

    def energy(self, path: Tensor, where: Where | None = None) -> Tensor:
        """The energy of the chord of each segment, `1/2 (K - 1) |phi(x1) - phi(x0)|^2`, `(K - 1,)`.

        Args:
            path: See `Metric.energy`.
            where: See `Metric.energy`.
        """
        embedded = self.embed(path, self._places(path, where))
        chord = embedded[1:] - embedded[:-1]
        return 0.5 * len(chord) * dot(chord, chord)

    def hop_lengths(self, hops: Tensor) -> Tensor:
        """The length of the chord of each segment, `(H, K, *shape) -> (H, K - 1)`."""
        if type(self).energy is Metric.energy:
            return super().hop_lengths(hops)
        embedded = self.embed(hops.flatten(0, 1)).unflatten(0, hops.shape[:2])
        if type(self).energy is not PullbackMetric.energy:
            return self._own_lengths(hops, embedded)
        return (embedded[:, 1:] - embedded[:, :-1]).flatten(2).norm(dim=2)

    def lower_bound(
        self, x0: Tensor, x1: Tensor, pair: int = 0, *, ends: Ends | None = None
    ) -> Tensor:
        """A lower bound of the energy: that of the single chord, `1/2 |phi(x1) - phi(x0)|^2`.

        It is 0 if a subclass overrides `energy` with another energy than that of the chords.
        """
        batch = PathBatch([torch.stack([x0, x1])], [pair])
        embedded = self._embedded_ends(batch, {} if ends is None else ends)[0]
        chord = embedded[1:] - embedded[:1]
        bound = 0.5 * dot(chord, chord)[0]
        energy = type(self).energy
        if energy is PullbackMetric.energy:
            return bound
        if energy is Metric.energy or not self._keeps_chords(x0, x1, embedded, pair):
            return torch.zeros_like(bound)
        return bound

    def flat(self, x: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The momenta `J_phi^T J_phi v` of tangents, `(K, *shape) -> (K, *shape)`."""
        return self.embed_vjp(x, self.embed_jvp(x, v, where), where)

    def is_straight(self, x0: Tensor, x1: Tensor, where: Where | None = None) -> bool:
        """Whether a network cannot tell two points apart, or their geodesic is a straight step."""
        first, second = self.embed(torch.stack([x0, x1]), where).flatten(1)
        same = float((second - first).norm()) <= 4 * self.rounding * float(first.norm())
        return same or super().is_straight(x0, x1, where)

    def step(
        self, x: Tensor, velocity: Tensor, momentum: Tensor, h: float, rtol: float
    ) -> tuple[Tensor, Tensor] | None:
        """One step of the exponential map as in `Metric.step`, from the chord of the embedding."""
        x, momentum = x[None], momentum[None]
        phi = self.embed(x)
        there, scale = x + h * velocity, h * float(momentum.norm())
        before = math.inf
        for _ in range(MAX_CORRECTIONS):
            chord = self.embed(there) - phi
            missing = h * momentum - self.embed_vjp(x, chord)
            size = float(missing.norm())
            if size <= rtol * scale or at_rounding(size, before, scale):
                return there[0], self.embed_vjp(there, chord)[0] / h
            if not size < 10 * before:
                return None
            before = size
            there = there + self.sharp(x, missing, rtol=0.1)
        return None

    def project(self, here: Tensor, there: Tensor, v: Tensor) -> Tensor:
        """Project a tangent at the point `here` onto the tangents at the point `there`.

        In the space of the embedding both are arrows, so the result is
        `G(there)^-1 J(there)^T J(here) v`. All tensors are `shape`.
        """
        momentum = self.embed_vjp(there[None], self.embed_jvp(here[None], v[None]))
        return self.sharp(there[None], momentum, guess=v[None], rtol=1e-8)[0]

    # ------------------------------------------------------------------------------ many paths

    def _energies(
        self, batch: PathBatch, differentiate: bool, departures: bool, ends: Ends
    ) -> list[PathEnergy]:
        if type(self).energy is Metric.energy:  # a subclass chose the energy from `inner`
            return super()._energies(batch, differentiate, departures, ends)
        points, places = batch.between()  # (n, *shape)
        num, numbers = len(points), [len(path) - 2 for path in batch.paths]
        embedded_ends = self._embedded_ends(batch, ends)  # (A, 2, *embedding shape)
        table = embedded_ends.new_empty(num + 2 * len(batch), *embedded_ends.shape[2:])
        table[num:] = embedded_ends.flatten(0, 1)
        starts = list(accumulate(numbers[:-1], initial=0))
        rows = [  # the rows of the table for each path, made on the device
            torch.cat([torch.arange(*ends, device=points.device) for ends in slices])
            for slices in (
                (
                    (num + 2 * i, num + 2 * i + 1),
                    (start, start + n),
                    (num + 2 * i + 1, num + 2 * i + 2),
                )
                for i, (start, n) in enumerate(zip(starts, numbers, strict=True))
            )
        ]

        def own(energy: Callable[..., Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
            return own_energies(energy, self, batch, [table[row] for row in rows], differentiate)

        found: list[tuple[Tensor, Tensor, Tensor]] = []

        def cotangents() -> tuple[Tensor, Tensor]:
            found.extend(own(type(self).energy))
            usual = torch.cat([by_value[1:-1] for _, by_value, _ in own(PullbackMetric.energy)])
            return torch.cat([by_value[1:-1] for _, by_value, _ in found]), usual

        overridden, gradient = type(self).energy is not PullbackMetric.energy, points[:0]
        if differentiate:
            left, right = torch.cat([r[:-2] for r in rows]), torch.cat([r[2:] for r in rows])
            weights = torch.cat([points.new_full((n,), n + 1.0) for n in numbers])
            weights = weights.view(-1, *[1] * (table.ndim - 1))
            chunks = chunks_of(self, points)
            if len(chunks) > 1:  # the chord that leaves a chunk needs the first point after it
                firsts = slice(chunks[1].start, num, chunks[1].start)
                with torch.no_grad():
                    table[firsts] = self.embed(points[firsts], places[firsts])

            def pull(chunk: slice) -> Tensor:
                value = table[chunk]
                behind, ahead = value - table[left[chunk]], table[right[chunk]] - value
                return weights[chunk] * (behind - ahead)

            (gradient,) = pull_back(
                lambda chunk, x: self.embed(x, places[chunk]),
                (points,),
                chunks,
                table,
                pull,
                cotangents if overridden else None,
            )
        elif num:
            with torch.no_grad():
                table[:num] = self.embed(points, places)
        if overridden and not found:
            found = own(type(self).energy)
        answers = []
        rounding = self.rounding
        for i, (path, row) in enumerate(zip(batch.paths, rows, strict=True)):
            embedded, whole = table[row].flatten(1), None
            squares = (embedded[1:] - embedded[:-1]).square().sum(1)
            if differentiate:
                whole = torch.zeros_like(path)
                whole[1:-1] = gradient[starts[i] : starts[i] + numbers[i]]
                if overridden:
                    whole[1:-1] += found[i][2][1:-1]
            segments = found[i][0] if overridden else 0.5 * len(squares) * squares
            resolution = min(
                point_resolution(path, whole, batch.places[i], squares, self._chord_norm),
                ratio(squares, rounding_errors(embedded).square().sum()[None]),
                ratio(squares, embedded.square().sum(1) * rounding**2),
            )
            departure = None
            if departures:
                departure = self._departure(path, batch.places[i], table[row])
            answers.append(PathEnergy(segments, whole, resolution, departure))
        return answers

    def _chord_norm(self, x: Tensor, v: Tensor, where: Where) -> Tensor:
        """The lengths of the chords of the embedding from `x` to `x + v`, `(K,)`."""
        here, there = self.embed(torch.cat([x, x + v]), Where.cat([where] * 2)).chunk(2)
        return (there - here).flatten(1).norm(dim=1)

    @torch.no_grad()
    def _embedded_ends(self, batch: PathBatch, ends: Ends) -> Tensor:
        """The embedded ends of each path, `(A, 2, *embedding shape)`."""

        def known(pair: int, points: Tensor) -> Tensor | None:
            entries = ends.get(pair, [])
            return next((both for given, both in entries if torch.equal(given, points)), None)

        of_paths = [
            (pair, path[[0, -1]]) for pair, path in zip(batch.pairs, batch.paths, strict=True)
        ]
        new: dict[int, list[Tensor]] = {}
        for pair, points in of_paths:
            seen = any(torch.equal(points, other) for other in new.get(pair, []))
            if not seen and known(pair, points) is None:
                new.setdefault(pair, []).append(points)
        if new:
            unknown = [(pair, points) for pair, several in new.items() for points in several]
            pairs = torch.tensor([pair for pair, _ in unknown]).repeat_interleave(2)
            places = Where([0.0, 1.0] * len(unknown), pairs)
            embedded = self.embed(torch.cat([points for _, points in unknown]), places)
            for (pair, points), both in zip(unknown, embedded.split(2), strict=True):
                ends.setdefault(pair, []).append([points, both])
        found = (known(pair, points) for pair, points in of_paths)
        return torch.stack([both for both in found if both is not None])

    def _serving(self, path: Tensor, places: Where, values: Tensor) -> dict[str, Callable]:
        """An `embed` with known values on the points of a path; it evaluates all others."""

        def embed(x: Tensor, where: Where | None = None) -> Tensor:
            if torch.equal(x, path) and same_places(where, places):
                return values
            return self.embed(x, where)

        return {"embed": embed}

    def _keeps_chords(self, x0: Tensor, x1: Tensor, ends: Tensor, pair: int) -> bool:
        """Whether an overridden `energy` equals that of the chords.

        The test uses a path with a made-up embedding. It costs no evaluation of the network if the
        override only calls the energy of the chords.
        """
        u = torch.linspace(0, 1, 4).to(x0)
        batch = PathBatch([torch.lerp(x0, x1, u.view(-1, *[1] * x0.ndim))], [pair])
        batch.paths[0][[0, -1]] = torch.stack([x0, x1])
        values = ends[[0, 1, 0, 1]]  # back and forth: all chords have one length

        (own,), (usual,) = (
            own_energies(energy, self, batch, [values], differentiate=False)
            for energy in (type(self).energy, PullbackMetric.energy)
        )
        return torch.equal(own[0], usual[0])


class EuclideanMetric(PullbackMetric):
    """Flat space: `G = I`.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import EuclideanMetric
        >>> x, v = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
        >>> EuclideanMetric().norm(x, v)
        tensor([5.])
    """

    def embed(self, x: Tensor, where: Where | None = None) -> Tensor:
        """The points themselves, `(K, *shape)`."""
        return x

    def embed_jvp(self, x: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The tangents themselves, `(K, *shape)`."""
        return v
