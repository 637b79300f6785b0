"""A differentiable renderer of one solid on a plane, whose images form a known manifold.

A scene has one of five kinds of solid and five continuous factors. Silhouettes, shadows and edges
are smooth in all factors. So the images of one kind form a smooth five-dimensional manifold, and
autograd through `render` gives its tangent vectors.

Each pixel follows from two numbers of its ray and the solid's signed distance function. The first
is the least distance along the ray, which a sigmoid turns into coverage. The second is the first
root of the distance along the ray, at which the solid is shaded. Both are found by a search without
a graph. One differentiable Newton step then makes them functions of the factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

KINDS = ("sphere", "cube", "cone", "torus", "cylinder")
HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")
FACTORS = ("azimuth", "hue", "size", "x", "y")
FACTOR_RANGES = {
    "azimuth": (0.0, 2 * math.pi),
    "hue": (0.0, 1.0),
    "size": (0.5, 0.75),
    "x": (-0.5, 0.5),
    "y": (-0.5, 0.5),
}

_CAMERA_DISTANCE = 6.0
_CAMERA_ELEVATION = math.radians(32.0)
_LOOK_AT = (0.0, 0.0, 0.55)
_HALF_FIELD = 0.25  # tangent of half the field of view
_LIGHT_ELEVATION = math.radians(48.0)
_LIGHT_AZIMUTH = math.radians(-125.0)  # from behind the left of the camera at azimuth 0


def render(kind: str | Sequence[str], factors: Tensor, *, resolution: int = 64) -> Tensor:
    """Render scenes, differentiably in their factors.

    Args:
        kind: One of `KINDS`, or a list with one of them per scene.
        factors: Factors `(N, 5)` in the order of `FACTORS`. Azimuth, in radians with period 2 pi,
            turns the solid and the lamp together. Hue is in turns with period 1: 0 is red, 1/3 is
            green and 2/3 is blue. Size is half the height of the solid in units of the plane. x (to
            the right) and y (away from the camera) are its position on the plane. The shipped model
            was trained on `FACTOR_RANGES`. Values outside these ranges can be rendered as well.
        resolution: Height and width of the images in pixels.

    Returns:
        Images `(N, 3, resolution, resolution)` in [0, 1], in the dtype of the factors.

    Raises:
        ValueError: If a kind is unknown, the factors are not `(N, 5)`, or the numbers of kinds and
            factors disagree.

    Examples:
        >>> from riemannian_diffusion import demo
        >>> tuple(demo.render('cube', demo.random_factors(1), resolution=16).shape)
        (1, 3, 16, 16)
    """
    if factors.ndim != 2 or factors.shape[1] != len(FACTORS):
        raise ValueError(f"`factors` must be (N, {len(FACTORS)}), but got {tuple(factors.shape)}.")
    kinds = [kind] * len(factors) if isinstance(kind, str) else list(kind)
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, but got {unknown[0]!r}.")
    if len(kinds) != len(factors):
        raise ValueError(f"`kind` names {len(kinds)} scenes, but `factors` has {len(factors)}.")
    images: dict[int, Tensor] = {}
    for name in KINDS:
        index = [i for i, k in enumerate(kinds) if k == name]
        if index:
            images |= zip(
                index, _render_kind(_SOLIDS[name], factors[index], resolution), strict=True
            )
    if not images:
        return factors.new_zeros(0, 3, resolution, resolution)
    return torch.stack([images[i] for i in range(len(kinds))])


def random_factors(num: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw `(num, 5)` factors uniformly from `FACTOR_RANGES`.

    Examples:
        >>> from riemannian_diffusion import demo
        >>> tuple(demo.random_factors(3).shape)
        (3, 5)
    """
    low, high = torch.tensor([FACTOR_RANGES[name] for name in FACTORS]).T
    return low + (high - low) * torch.rand(num, len(FACTORS), generator=generator)


def hue_name(hue: float) -> str:
    """The nearest of `HUES` to a hue in turns; `HUES` lie a sixth of a turn apart.

    Examples:
        >>> from riemannian_diffusion import demo
        >>> demo.hue_name(2 / 3)
        'blue'
    """
    return HUES[round(hue * len(HUES)) % len(HUES)]


def caption(kind: str, hue: float) -> str:
    """The caption with which the shipped model was trained on a scene, such as "a red cube".

    Examples:
        >>> from riemannian_diffusion import demo
        >>> demo.caption('cube', 0.0)
        'a red cube'
    """
    return f"a {hue_name(hue)} {kind}"


def _norm(p: Tensor) -> Tensor:
    return (p.square().sum(-1) + 1e-12).sqrt()


def _smooth_least(*depths: Tensor) -> Tensor:
    """The smallest of positive depths, made smooth at points where two depths are equal.

    It is the p-norm with p = -4. Near points at which one depth vanishes, it equals this depth to
    first order.
    """
    depths = tuple(depth.clamp(min=1e-12) for depth in depths)
    least = reduce(torch.minimum, depths)
    total = reduce(torch.add, [(least / depth).square().square() for depth in depths])
    return least * total.sqrt().rsqrt()


def _box(half: Tensor, q: Tensor) -> Tensor:  # exact outside, any number of axes
    d = q.abs() - half
    return _norm(d.clamp(min=0)) - _smooth_least(*(-d).unbind(-1))


def _sphere(p: Tensor) -> Tensor:
    return _norm(p) - 0.95


def _cube(p: Tensor) -> Tensor:
    return _box(p.new_tensor([0.62, 0.62, 0.62]), p) - 0.12


def _cylinder(p: Tensor) -> Tensor:
    q = torch.stack([_norm(p[..., :2]), p[..., 2]], -1)
    return _box(p.new_tensor([0.52, 0.80]), q) - 0.12


def _torus(p: Tensor) -> Tensor:  # upright: its axis is the x axis
    q = torch.stack([_norm(p[..., 1:]) - 0.68, p[..., 0]], -1)
    return _norm(q) - 0.29


def _cone(p: Tensor) -> Tensor:  # half height 0.84, rounded by 0.12; exact outside
    radius, half = 0.74, 0.84
    q = torch.stack([(p[..., :2].square().sum(-1) + 1e-3).sqrt(), p[..., 2]], -1)
    to_rim = q - q.new_tensor([radius, -half])
    slant = q.new_tensor([-radius, 2 * half])
    along = ((to_rim * slant).sum(-1) / (slant * slant).sum()).clamp(0, 1)
    side = _norm(to_rim - along[..., None] * slant)
    base = _norm(torch.stack([(q[..., 0] - radius).clamp(min=0), q[..., 1] + half], -1))
    outside_side = (
        to_rim[..., 0] * slant[1] - to_rim[..., 1] * slant[0]
    )  # > 0 outside the slanted side
    inside = (outside_side < 0) & (q[..., 1] > -half)
    depth = _smooth_least(side, base)
    return torch.where(inside, -depth, torch.minimum(side, base)) - 0.12


# Distance function of each solid, whose centre is at the origin, and height of this centre above
# the plane. Both are in units of the size of the solid.
_SOLIDS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "sphere": (_sphere, 0.95),
    "cube": (_cube, 0.74),
    "cone": (_cone, 0.96),
    "torus": (_torus, 0.97),
    "cylinder": (_cylinder, 0.92),
}
_BOUND = 1.35  # every solid lies within this many sizes of its centre
_SPRING = 0.3  # draws the closest approach to the middle of the ray, per unit of the plane
_GRAZE = 0.008  # largest depth of a grazing ray, in units of the plane
_LONGEST_MOVE = 4e-3  # largest Newton step to the closest approach
_NUM_HALVINGS = 4


class _Scene:
    """One solid on the plane.

    `fixed` is a copy of the scene without derivatives. Searches use this copy, because `no_grad`
    alone does not stop forward mode.
    """

    def __init__(self, solid: tuple[Callable[[Tensor], Tensor], float], factors: Tensor):
        self.solid, self.factors = solid, factors
        azimuth, _, self.size, x, y = factors.T[..., None]  # (N, 1) each
        self.centre = torch.stack([x, y, solid[1] * self.size], -1)  # (N, 1, 3)
        self.bound = _BOUND * self.size
        self.cos, self.sin = azimuth.cos(), azimuth.sin()

    @property
    def fixed(self) -> _Scene:
        return _Scene(self.solid, self.factors.detach())

    def distance(self, p: Tensor) -> Tensor:  # (N, P, 3) -> (N, P), in units of the plane
        x, y, z = ((p - self.centre) / self.size[..., None]).unbind(-1)
        q = torch.stack([self.cos * x + self.sin * y, self.cos * y - self.sin * x, z], -1)
        return self.size * self.solid[0](q)

    def middle(self, origin: Tensor, direction: Tensor) -> Tensor:
        """Length along each ray to the point nearest to the centre, non-negative, `(N, P)`."""
        return ((self.centre - origin) * direction).sum(-1).clamp(min=0)


def _render_kind(
    solid: tuple[Callable[[Tensor], Tensor], float], factors: Tensor, resolution: int
) -> Tensor:
    scene = _Scene(solid, factors)
    azimuth, hue = factors.T[:2, :, None]  # (N, 1) each
    eye, direction = _camera_rays(resolution, factors)  # (3,), (1, P, 3)
    origin = eye.expand(len(factors), 1, 3)
    approach, nearest = _closest_approach(scene, origin, direction)  # (N, P)
    pixel = 2 * _HALF_FIELD / resolution * _CAMERA_DISTANCE
    coverage = torch.sigmoid(-approach / (0.3 * pixel))

    light = torch.stack(
        [
            math.cos(_LIGHT_ELEVATION) * (azimuth + _LIGHT_AZIMUTH).cos(),
            math.cos(_LIGHT_ELEVATION) * (azimuth + _LIGHT_AZIMUTH).sin(),
            torch.full_like(azimuth, math.sin(_LIGHT_ELEVATION)),
        ],
        -1,
    )  # (N, 1, 3)

    point = _first_hit(scene, origin, direction, approach, nearest)  # (N, P, 3)
    normal = _normal(scene, point)
    lambert = 0.5 + 0.5 * (normal * light).sum(-1)  # half Lambert: smooth through the terminator
    sky = 0.5 + 0.5 * normal[..., 2]
    halfway = torch.nn.functional.normalize(light - direction, dim=-1)
    gloss = (normal * halfway).sum(-1).clamp(min=0) ** 24
    phase = hue + hue.new_tensor([0.0, -1 / 3, -2 / 3])  # (N, 3)
    albedo = 0.5 + 0.45 * (2 * math.pi * phase).cos()
    shade = 0.28 + 0.70 * lambert.square() + 0.12 * sky
    solid_colour = shade[..., None] * albedo[:, None] + 0.25 * gloss[..., None]  # (N, P, 3)

    on_plane = origin - direction * (origin[..., 2:] / direction[..., 2:])  # (N, P, 3)
    blocked, _ = _closest_approach(scene, on_plane, light)
    shadow = torch.sigmoid(-blocked / 0.05)
    contact = (-6.0 * scene.distance(on_plane).clamp(min=0)).exp()
    far = torch.sigmoid(0.5 * on_plane[..., 1])
    brightness = (0.90 - 0.14 * far) * (1 - 0.42 * shadow) * (1 - 0.25 * contact)
    plane_colour = brightness[..., None] * factors.new_tensor([1.0, 0.99, 0.97])

    colour = torch.lerp(plane_colour, solid_colour, coverage[..., None]).clamp(0, 1)
    return colour.transpose(1, 2).unflatten(2, (resolution, resolution))


def _camera_rays(resolution: int, like: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = math.cos(_CAMERA_ELEVATION), math.sin(_CAMERA_ELEVATION)
    look_at = like.new_tensor(_LOOK_AT)
    forward = like.new_tensor([0.0, cos, -sin])
    right, up = like.new_tensor([1.0, 0.0, 0.0]), like.new_tensor([0.0, sin, cos])
    step = (
        torch.arange(resolution, dtype=like.dtype, device=like.device) + 0.5
    ) / resolution * 2 - 1
    v, u = torch.meshgrid(-step * _HALF_FIELD, step * _HALF_FIELD, indexing="ij")
    direction = forward + u[..., None] * right + v[..., None] * up
    direction = torch.nn.functional.normalize(direction, dim=-1)
    return look_at - _CAMERA_DISTANCE * forward, direction.reshape(1, -1, 3)


def _along(scene: _Scene, origin: Tensor, direction: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda t: scene.distance(origin + t[..., None] * direction)


def _closest_approach(scene: _Scene, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """The least signed distance along each ray, and the length at which it is reached.

    Both are differentiable. Along a face that is seen edge on, the distance is flat, and its
    minimum leaps from one end to the other. A weak spring `_SPRING / 2 (t - middle)^2` prevents
    this. It draws to the point of the ray that is nearest to the centre of the solid.
    """
    h = 4e-3  # step of difference quotients; wide, because the curvature has jumps
    with torch.no_grad():
        fixed, start, heading = scene.fixed, origin.detach(), direction.detach()
        along, middle = _along(fixed, start, heading), fixed.middle(start, heading)

        def descent(t: Tensor) -> Tensor:  # minus the derivative of distance and spring
            return (along(t - h) - along(t + h)) / (2 * h) - _SPRING * (t - middle)

        low = (middle - fixed.bound).clamp(min=0)
        width = 2 * fixed.bound
        for count in (10, 4):  # a grid, then a zoom around its best point
            best, nearest = torch.full_like(low, torch.inf), low
            for i in range(count):
                t = low + (i / (count - 1)) * width
                d = along(t) + _SPRING / 2 * (t - middle).square()
                closer = d < best
                best, nearest = torch.where(closer, d, best), torch.where(closer, t, nearest)
            step = width / (count - 1)
            low, high = (nearest - step).clamp(min=0), nearest + step
            width = high - low
        above, below = descent(low), descent(high)
        high, low = torch.where(above < 0, low, high), torch.where(below > 0, high, low)
        nearest = _root(descent, low, high, above, below)
        least = along(nearest)

    along, middle = _along(scene, origin, direction), scene.middle(origin, direction)
    before, after = along(nearest - h), along(nearest + h)
    curvature = ((before + after).detach() - 2 * least).clamp(min=0) / h**2
    slope = (after - before) / (2 * h) + _SPRING * (nearest - middle)
    nearest = nearest - (slope / (curvature + _SPRING)).clamp(-_LONGEST_MOVE, _LONGEST_MOVE)
    return along(nearest), nearest


def _root(function, low, high, above, below) -> Tensor:
    """A root between `low` and `high`, at which the function has the values `above` and `below`.

    Bisection and false position alternate, because the slope is nearly a step on flat solids.
    """
    for i in range(_NUM_HALVINGS * 2):
        share = above / (above - below).clamp(min=1e-12) if i % 2 else 0.5
        t = low + share * (high - low)
        value = function(t)
        left = value > 0  # t is to the left of the root
        low, high = torch.where(left, t, low), torch.where(left, high, t)
        above, below = torch.where(left, value, above), torch.where(left, below, value)
    return t


def _first_hit(
    scene: _Scene, origin: Tensor, direction: Tensor, approach: Tensor, nearest: Tensor
) -> Tensor:
    """The first point of the solid on each ray, or the closest approach if the ray misses.

    On a grazing ray the root varies like the square root of the depth, so its derivative is
    unbounded. If the ray goes no deeper than about `_GRAZE`, the result is therefore blended with
    the point of closest approach.
    """
    h = 1e-3 if origin.dtype == torch.float32 else 1e-4  # step of difference quotients
    with torch.no_grad():
        fixed, start, heading = scene.fixed, origin.detach(), direction.detach()
        along, end, end_value = _along(fixed, start, heading), nearest.detach(), approach.detach()
        low = torch.minimum(fixed.middle(start, heading) - fixed.bound, end)
        for _ in range(10):
            low = torch.minimum(low + along(low).clamp(min=0), end)
        above = along(low)
        soon = torch.minimum(low + 4 * above.clamp(min=0) + 0.02, end)
        below = along(soon)
        first = below < 0  # otherwise the root is farther away, or does not exist
        high, below = torch.where(first, soon, end), torch.where(first, below, end_value)
        hits = (below < 0) & (low < high)
        t = _root(along, low, high, above.clamp(min=1e-9), below)
        rise = along(t + h) - along(t - h)
        steepness = (rise / (2 * h)).clamp(max=-1e-3)
    root = t - _along(scene, origin, direction)(t) / steepness
    share = torch.where(hits, (-approach / _GRAZE).tanh(), 0.0)
    return origin + torch.lerp(nearest, root, share)[..., None] * direction


def _normal(scene: _Scene, point: Tensor) -> Tensor:
    step = 2e-3 if point.dtype == torch.float32 else 1e-5
    corners = point.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    normal = sum(corner * scene.distance(point + step * corner)[..., None] for corner in corners)
    return torch.nn.functional.normalize(normal, dim=-1)
