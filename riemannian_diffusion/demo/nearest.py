"""The render that is nearest to an image: its kind of solid, its factors and its error.

A coarse bank of renders gives first kinds and factors, and damped Gauss-Newton steps refine them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from riemannian_diffusion.demo.renderer import FACTOR_RANGES, FACTORS, KINDS, caption, render

_AZIMUTH, _HUE = FACTORS.index("azimuth"), FACTORS.index("hue")
_COARSE, _FINE = 16, 32  # resolution of the bank and the first refinement; of the last one
_BANK_SIZE, _NUM_HUES = 384, 24  # for each kind; two renders of a scene give all its hues
_LOW, _HIGH = torch.tensor([FACTOR_RANGES[name] for name in FACTORS]).T
_STEPS = (_HIGH - _LOW) * torch.tensor(
    [0.003, 0.005, 0.02, 0.005, 0.005]
)  # for difference quotients
_PIXELS_AT_ONCE = 2**17


@dataclass(frozen=True)
class NearestRender:
    """The result of `nearest_render` for N images.

    Attributes:
        kinds: For each image, one of `KINDS`.
        factors: Factors `(N, 5)` in the order of `FACTORS`, with the units of `render`, within
            `FACTOR_RANGES`.
        images: The nearest renders, `(N, 3, R, R)` in [0, 1], at the resolution of the images.
        mse: Mean squared errors between images and renders, `(N,)`, for values in [0, 1].

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import demo
        >>> factors = demo.random_factors(1, torch.Generator().manual_seed(0))
        >>> demo.nearest_render(demo.render('cube', factors)).kinds
        ('cube',)
    """

    kinds: tuple[str, ...]
    factors: Tensor
    images: Tensor
    mse: Tensor

    @property
    def captions(self) -> tuple[str, ...]:
        """Captions of the renders, such as "a red cube"."""
        hues = self.factors[:, _HUE].tolist()
        return tuple(caption(kind, hue) for kind, hue in zip(self.kinds, hues, strict=True))


@torch.no_grad()
def nearest_render(
    images: Tensor, *, num_candidates: int = 2, num_coarse: int = 4, num_fine: int = 4
) -> NearestRender:
    """Find the kind and the factors whose render has the least mean squared error to each image.

    For every kind, the best scenes of a fixed bank are refined at 16 px. The best two of all are
    refined at 32 px. The refinement takes Levenberg-Marquardt steps with difference quotients of
    the renderer. The result depends on nothing but the images. For clean images of the renderer it
    is the nearest render. For other images it is close to the nearest render, because the
    refinement is a local search. An image takes about half a second on one core. The first call of
    a process takes several seconds more, for the bank.

    Args:
        images: Images `(N, 3, R, R)` in [0, 1]; R is a multiple of 32.
        num_candidates: Number of scenes of each kind to refine.
        num_coarse: Number of refinement steps at 16 px.
        num_fine: Number of refinement steps at 32 px.

    Returns:
        The kinds, the factors and the renders, with their errors.

    Raises:
        ValueError: If the images have another shape, or values outside [0, 1].

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import demo
        >>> factors = demo.random_factors(1, torch.Generator().manual_seed(0))
        >>> demo.nearest_render(demo.render('cube', factors)).kinds
        ('cube',)
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(f"`images` must be (N, 3, R, R), but got {tuple(images.shape)}.")
    if images.shape[2] == 0 or images.shape[2] % _FINE:
        raise ValueError(
            f"The height and width of `images` must be a multiple of {_FINE} pixels, but got "
            f"{images.shape[2]}."
        )
    if not ((images >= 0) & (images <= 1)).all():  # false for NaN as well
        raise ValueError("`images` must have values in [0, 1].")
    images = images.detach().to("cpu", torch.float32)
    num = len(images)
    if num == 0:
        return NearestRender((), images.new_zeros(0, len(FACTORS)), images, images.new_zeros(0))

    coarse, fine = (F.interpolate(images, size=r, mode="area") for r in (_COARSE, _FINE))
    kinds, factors = _propose(coarse, num_candidates)  # (N, C), (N, C, 5)
    factors, errors = _refine(coarse, kinds, factors, num_coarse)
    best = errors.topk(min(2, errors.shape[1]), largest=False).indices  # (N, 2)
    kinds, factors = kinds.gather(1, best), factors.gather(1, best[..., None].expand(-1, -1, 5))
    factors, errors = _refine(fine, kinds, factors, num_fine)
    best, row = errors.argmin(1), torch.arange(num)
    kinds, factors = kinds[row, best], factors[row, best]
    renders = _render(kinds, factors, images.shape[2])
    names = tuple(KINDS[k] for k in kinds.tolist())
    return NearestRender(names, factors, renders, (renders - images).square().flatten(1).mean(1))


def _render(kinds: Tensor, factors: Tensor, resolution: int) -> Tensor:
    """Renders `(B, 3, R, R)` of kinds `(B,)`, indices of `KINDS`, in chunks of bounded memory."""
    size = max(1, _PIXELS_AT_ONCE // resolution**2)
    chunks = zip(kinds.split(size), factors.split(size), strict=True)
    return torch.cat([render([KINDS[i] for i in k], f, resolution=resolution) for k, f in chunks])


@lru_cache(maxsize=1)
def _bank() -> tuple[Tensor, Tensor, Tensor]:
    """Scenes `(K, B, 5)` with hue 0, and their images as `mean + cos(2 pi hue_c) swing`.

    For channel c the hue is `hue_c = hue - c / 3`. The colour of a pixel is affine in the cosine of
    the hue, so the renders of the hues 0 and 1/2 give the renders of all hues. `mean` and `swing`
    are `(K, B, 3, 16 * 16)`.
    """
    with torch.inference_mode(False), torch.no_grad():
        uniform = torch.quasirandom.SobolEngine(len(FACTORS), scramble=True, seed=0)
        factors = _LOW + (_HIGH - _LOW) * uniform.draw(_BANK_SIZE)
        factors[:, _HUE] = 0.0
        factors = factors.repeat(len(KINDS), 1)
        kinds = torch.arange(len(KINDS)).repeat_interleave(_BANK_SIZE)
        opposite = factors.clone()
        opposite[:, _HUE] = 0.5
        first, second = (_render(kinds, f, _COARSE).flatten(2) for f in (factors, opposite))
        mean, swing = (first + second) / 2, (first - second) / 2 / _cosines(torch.zeros(1)).T
        shape = len(KINDS), _BANK_SIZE
        return factors.unflatten(0, shape), mean.unflatten(0, shape), swing.unflatten(0, shape)


def _cosines(hues: Tensor) -> Tensor:  # (H,) -> (H, 3), one per channel
    return (2 * torch.pi * (hues[:, None] - torch.tensor([0.0, 1 / 3, 2 / 3]))).cos()


def _propose(images: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
    """The nearest scenes of each kind in the bank: kinds `(N, C)` and factors `(N, C, 5)`."""
    scenes, means, swings = _bank()
    hues = torch.arange(_NUM_HUES) / _NUM_HUES
    cosines = _cosines(hues)  # (H, 3)
    target = images.flatten(2)  # (N, 3, P)
    kinds, factors = [], []
    for kind, (scene, mean, swing) in enumerate(zip(scenes, means, swings, strict=True)):
        # |y - m - c s|^2 = |y|^2 - 2 <y, m> + |m|^2 - 2 c (<y, s> - <m, s>) + c^2 |s|^2
        constant = mean.square().sum((1, 2)) - 2 * torch.einsum("ncp,bcp->nb", target, mean)
        linear = torch.einsum("ncp,bcp->nbc", target, swing) - (mean * swing).sum(2)  # (N, B, 3)
        square = swing.square().sum(2) @ cosines.square().T  # (B, H)
        errors = constant[..., None] - 2 * linear @ cosines.T + square  # (N, B, H)
        least, hue = errors.min(2)  # (N, B)
        chosen = least.topk(num_candidates, largest=False).indices  # (N, C)
        proposal = scene[chosen]
        proposal[..., _HUE] = hues[hue.gather(1, chosen)]
        kinds.append(torch.full_like(chosen, kind))
        factors.append(proposal)
    return torch.cat(kinds, 1), torch.cat(factors, 1)


def _refine(
    images: Tensor, kinds: Tensor, factors: Tensor, num_steps: int
) -> tuple[Tensor, Tensor]:
    """Take Levenberg-Marquardt steps: new factors `(N, C, 5)` and errors `(N, C)`."""
    shape, resolution = kinds.shape, images.shape[-1]
    target = images.flatten(1).repeat_interleave(shape[1], 0)  # (M, D)
    kinds, factors = kinds.flatten(), factors.flatten(0, 1)  # (M,), (M, 5)
    damping = torch.full((len(kinds),), 1e-2)
    current = _render(kinds, factors, resolution).flatten(1)  # (M, D)
    error = (current - target).square().mean(1)  # (M,)
    steps = torch.diag(_STEPS)
    for _ in range(num_steps):
        moved = (factors[:, None] + steps).flatten(0, 1)  # (5 M, 5)
        moved = _render(kinds.repeat_interleave(len(FACTORS)), moved, resolution)
        # Rows of the transposed Jacobian in units of `_STEPS`, which also scales the damping.
        rows = moved.flatten(1).unflatten(0, (-1, len(FACTORS))) - current[:, None]  # (M, 5, D)
        gradient = rows @ (target - current)[..., None]  # (M, 5, 1)
        gram = rows @ rows.mT
        diagonal = gram.diagonal(dim1=1, dim2=2)
        gram = gram + torch.diag_embed(damping[:, None] * diagonal + 1e-6)
        change = _STEPS * torch.linalg.solve(gram, gradient)[..., 0]
        trial = _within_ranges(factors + change)
        rendered = _render(kinds, trial, resolution).flatten(1)
        trial_error = (rendered - target).square().mean(1)
        better = trial_error < error
        factors = torch.where(better[:, None], trial, factors)
        current = torch.where(better[:, None], rendered, current)
        error = torch.where(better, trial_error, error)
        damping = torch.where(better, damping / 4, damping * 8)
    return factors.unflatten(0, shape), error.unflatten(0, shape)


def _within_ranges(factors: Tensor) -> Tensor:
    periodic = torch.zeros(len(FACTORS), dtype=torch.bool)
    periodic[[_AZIMUTH, _HUE]] = True
    wrapped = _LOW + (factors - _LOW).remainder(_HIGH - _LOW)
    return torch.where(periodic, wrapped, factors.clamp(_LOW, _HIGH))
