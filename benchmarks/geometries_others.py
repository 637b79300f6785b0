"""Published geometries of diffusion models that are compared with the library's and not part of it.

In formulas, a path has N segments `dx`, `s` is the score, `l` is the log-density and `D` is the
denoiser. Paths are `(N + 1, *shape)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riemannian_diffusion import Metric, ScoreModel, slerp
from riemannian_diffusion.metrics import PathEnergy


class OwnEnergy(Metric):
    """A metric that is defined by the energy of a path. It is differentiated path by path."""

    def __init__(self, score: ScoreModel):
        self.score = score

    def energies(
        self,
        paths: Sequence[Tensor],
        pairs=None,
        *,
        differentiate: bool = False,
        departures: bool = False,
        ends=None,
    ) -> list[PathEnergy]:
        """The energies of many paths, and their gradients, as in `Metric.energies`."""
        answers = []
        for path in paths:
            path, gradient = path.detach().requires_grad_(differentiate), None
            with torch.set_grad_enabled(differentiate):
                segments = self.energy(path)
            if differentiate:
                (gradient,) = torch.autograd.grad(segments.sum(), path)
                gradient[[0, -1]] = 0.0
            answers.append(PathEnergy(segments.detach(), gradient))
        return answers


class MixtureMetric(OwnEnergy):
    """The score Jacobian and the size of the score, mixed with fixed weights.

    The energy is `N/2 sum [(1 - w) |ds|^2 / T_H + w |s|^2 |dx|^2 / T_s]`. `T_H` and `T_s` are the
    values of `N sum |ds|^2` and `N sum |s|^2 |dx|^2` on the starting path. `|s|^2` is the mean over
    both ends of a segment. It is the metric of a master's thesis by M. Burmester (2026,
    github.com/moritzburmester/score-based-riemannian-metrics).

    Args:
        score: The score.
        start: The starting path.
        weight: The weight w of the size of the score, in [0, 1].
    """

    def __init__(self, score: ScoreModel, start: Tensor, *, weight: float = 0.1):
        super().__init__(score)
        self.weight, self.totals = float(weight), (1.0, 1.0)
        with torch.no_grad():
            self.totals = tuple(float(len(part) * part.sum()) for part in self._parts(start))

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The inner products `(1 - w) (J u) . (J v) / T_H + w |s|^2 u . v / T_s`, `(K,)`."""
        turned = _dot(self.score.jvp(x, u), self.score.jvp(x, v)) / self.totals[0]
        sized = _dot(self.score(x), self.score(x)) * _dot(u, v) / self.totals[1]
        return (1 - self.weight) * turned + self.weight * sized

    def energy(self, path: Tensor, where=None) -> Tensor:
        """The energy of each segment, `(N + 1, *shape) -> (N,)`."""
        turned, sized = (part / t for part, t in zip(self._parts(path), self.totals, strict=True))
        return len(turned) / 2 * ((1 - self.weight) * turned + self.weight * sized)

    def _parts(self, path: Tensor) -> tuple[Tensor, Tensor]:
        score, step = self.score(path), path[1:] - path[:-1]
        size, change = _dot(score, score), score[1:] - score[:-1]
        return _dot(change, change), (size[1:] + size[:-1]) / 2 * _dot(step, step)


class DensityMetric(OwnEnergy):
    """Flat space, in which steps are short where the density is high: `G = exp(-2 a l) I`.

    The energy is `N/2 sum exp(-a (l_i + l_(i+1))) |dx|^2`. The log-density `l` relative to the
    first point is the integral of the score along the path, by the trapezoidal rule. Its gradient
    is taken to be the score, so no network is differentiated. Conformal metrics of the density are
    used by arXiv 2504.06675 and by others.

    Args:
        score: The score.
        exponent: The exponent a, non-negative. None takes one over the number of values of a point.
    """

    def __init__(self, score: ScoreModel, *, exponent: float | None = None):
        super().__init__(score)
        self.exponent = exponent

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Not defined, because a score gives the log-density only relative to another point."""
        raise NotImplementedError("Only the energy of a whole path is defined.")

    def energy(self, path: Tensor, where=None) -> Tensor:
        """The energy of each segment, `(N + 1, *shape) -> (N,)`."""
        step = path[1:] - path[:-1]
        exponent = 1 / path[0].numel() if self.exponent is None else self.exponent
        density = log_density_along(self.score, path)
        weights = torch.exp(-exponent * (density[1:] + density[:-1]))
        return len(step) / 2 * weights * _dot(step, step)


class FisherRaoMetric(OwnEnergy):
    """The Fisher-Rao metric of the clean data given a noisy point, at one level: `J_D / sigma^2`.

    The energy is `N/2 sum dx . (D(x') - D(x)) / sigma^2`. Tangent steps are as long as their share
    of the noise, and normal steps are free. arXiv 2505.17517 defines the metric over all levels.
    """

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The inner products `u . J_D v / sigma^2`, `(K,)`."""
        return _dot(u, v / self.score.sigma**2 + self.score.jvp(x, v))

    def energy(self, path: Tensor, where=None) -> Tensor:
        """The energy of each segment, `(N + 1, *shape) -> (N,)`."""
        step, clean = path[1:] - path[:-1], self.score.denoise(path)
        return len(step) / 2 * _dot(step, clean[1:] - clean[:-1]) / self.score.sigma**2


def log_density_along(score: ScoreModel, path: Tensor) -> Tensor:
    """The log-density of each point relative to the first, `(N + 1, *shape) -> (N + 1,)`.

    Its value is the integral of the score along the path. Its gradient is the score at each point.
    """
    with torch.no_grad():
        scores, step = score(path), path[1:] - path[:-1]
        changes = _dot(step, scores[1:] + scores[:-1]) / 2
        values = torch.cat([changes.new_zeros(1), changes.cumsum(0)])
    return values + _dot(scores, path - path.detach())


def cog(x0: Tensor, x1: Tensor, num_points: int) -> Tensor:
    """Combine two Gaussian noises (COG; Bodin et al., arXiv 2408.08558).

    `sum w x / sqrt(sum w^2)` is again noise of the same variance if the mean of the noise is 0.

    Args:
        x0: The first noise, `shape`.
        x1: The last noise, `shape`.
        num_points: Number of points of the path, at least 2.

    Returns:
        The path, `(num_points, *shape)`, with the weights `1 - u` and `u`.
    """
    u = torch.linspace(0, 1, num_points, dtype=x0.dtype, device=x0.device)
    u = u.view(-1, *[1] * x0.ndim)
    return ((1 - u) * x0 + u * x1) / ((1 - u).square() + u.square()).sqrt()


@torch.no_grad()
def force_matching(
    score: ScoreModel,
    x0: Tensor,
    x1: Tensor,
    num_points: int,
    *,
    lam: float = 1.0,
    lr: float = 1e-3,
    num_steps: int = 800,
) -> Tensor:
    """Fit the equation of motion of a likely geometry (arXiv 2510.26266) by least squares.

    Adam minimises the mean square of `P x'' + lam P s` from slerp. `x''` is the second difference
    times N^2, and P projects across the point. The score s is treated as a constant field. The
    settings are those of the script for Stable Diffusion 3 of github.com/taka2223/GFM-release.

    Args:
        score: The score.
        x0: The first point, `shape`.
        x1: The last point, `shape`.
        num_points: Number of points of the path, at least 3.
        lam: Weight of the force.
        lr: Adam's learning rate.
        num_steps: Number of steps.

    Returns:
        The path, `(num_points, *shape)`. It may be far off or not finite.
    """
    path = slerp(x0, x1, num_points)
    inner = path[1:-1].clone().requires_grad_()
    optimizer = torch.optim.Adam([inner], lr=lr, eps=1e-5)
    for _ in range(num_steps):
        force = score(inner.detach())
        with torch.enable_grad():
            loss = misfit(torch.cat([x0[None], inner, x1[None]]), force, lam)
            (inner.grad,) = torch.autograd.grad(loss, inner)
        optimizer.step()
    return torch.cat([x0[None], inner.detach(), x1[None]])


def misfit(path: Tensor, force: Tensor, lam: float) -> Tensor:
    """The mean square of `P x'' + lam P s`, a scalar, for the forces s between the ends."""
    x = path[1:-1].flatten(1)
    bend = (path[2:] - 2 * path[1:-1] + path[:-2]).flatten(1) * (len(path) - 1) ** 2
    missing = bend + lam * force.flatten(1)
    along = (missing * x).sum(1, keepdim=True) / (x * x).sum(1, keepdim=True)
    return (missing - along * x).square().mean()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
