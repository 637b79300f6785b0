"""The interface of scores."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from riemannian_diffusion.score.where import Where


class Composite:
    """An object that uses networks only through its parts, which are scores and metrics.

    The parts are its attributes, or elements of attributes that are lists, tuples or dicts. Memory
    and rounding are determined by the parts. A subclass may define its methods without `where` if
    they are the same at every place of the path.
    """

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        for name, method in list(vars(cls).items()):
            if name in _AT_PLACES and callable(method) and not accepts_places(method):
                setattr(cls, name, _anywhere(method))

    def points_at_once(self, x: Tensor) -> int:
        """The number of these points `(K, *shape)` that one call may differentiate."""
        return min([len(x), *(part.points_at_once(x) for part in _parts_in(vars(self).values()))])

    def use_less_memory(self, x: Tensor) -> bool:
        """Use smaller batches after memory ran out on points `(K, *shape)`.

        Returns:
            Whether the next call on these points needs less memory.
        """
        return any([part.use_less_memory(x) for part in _parts_in(vars(self).values())])

    def describe(self) -> list[Any]:
        """The classes and weights of this object and of its parts, as JSON values.

        Whole numbers are left out, because they are sizes of batches and similar settings.
        """
        parts = [part.describe() for part in _parts_in(vars(self).values())]
        return [*plain_attributes(self, (float, bool, str)), parts]

    @property
    def rounding(self) -> float:
        """Relative rounding error of the values of the networks; 0 without a network."""
        return max([0.0, *(part.rounding for part in _parts_in(vars(self).values()))])


# Methods of scores and metrics that take the places of the points as their last argument.
_AT_PLACES = frozenset(
    ("__call__", "denoise", "jvp", "vjp", "stack", "stack_jvp", "inner", "norm", "as_matrix")
    + ("embed", "embed_jvp", "embed_vjp", "flat", "force")
)


def accepts_places(method: Callable[..., Any]) -> bool:
    """Whether a method has an argument `where`, or takes any arguments."""
    parameters = inspect.signature(method).parameters.values()
    return any(p.name == "where" or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def _anywhere(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A method that is the same at every place, with an argument `where` that it ignores."""
    num = len(inspect.signature(method).parameters)

    @functools.wraps(method)
    def with_places(*args, where: Where | None = None) -> Tensor:
        return method(*args[:num])

    return with_places


def plain_attributes(whole: object, kinds: tuple[type, ...]) -> list[Any]:
    """An object's class and its attributes of some kinds, as JSON values."""
    plain = {name: repr(v) for name, v in vars(whole).items() if isinstance(v, kinds)}
    return [type(whole).__qualname__, dict(sorted(plain.items()))]


def _parts_in(values: Iterable[Any]) -> Iterator[Composite]:
    for value in values:
        if isinstance(value, Composite):
            yield value
        elif type(value) in (list, tuple):
            yield from _parts_in(value)
        elif type(value) is dict:
            yield from _parts_in(value.values())


def pushed(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """The product `J(x) v` of a function's Jacobian, in forward mode.

    In inference mode PyTorch has no derivatives, and PyTorch 2.8 gives wrong products there without
    an error. Therefore that mode is left.
    """
    with torch.inference_mode(False):
        primal, tangent = (outside_inference(one).contiguous() for one in (x, v))
        return torch.func.jvp(function, (primal,), (tangent,))[1]


def pulled(function: Callable[[Tensor], Tensor], x: Tensor, w: Tensor) -> Tensor:
    """The product `J(x)^T w` of a function's Jacobian, in reverse mode, also in inference mode."""
    with torch.inference_mode(False):
        return torch.func.vjp(function, outside_inference(x))[1](outside_inference(w))[0]


def outside_inference(x: Tensor) -> Tensor:
    """The tensor, or a copy of it that can be differentiated if it was made in inference mode."""
    return x.clone() if x.is_inference() else x


class ScoreModel(Composite, ABC):
    """The score `grad log p(x)` of the data at one noise level, `x = alpha x_0 + sigma eps`.

    Points are `(K, *shape)`, and the points of a path form the batch. Calls are differentiable in
    `x` and pure functions of their arguments. `score(x, where)[i]` depends on point i alone.
    `where` gives the places of the points on their paths. A score that changes along the path
    raises a `ValueError` if `where` is None. All other scores ignore it.

    Attributes:
        alpha: Factor of the clean data at this level, in (0, 1].
        sigma: Standard deviation of the noise at this level, positive.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import ScoreModel
        >>> class Normal(ScoreModel):
        ...     alpha, sigma = 1.0, 1.0
        ...
        ...     def __call__(self, x, where=None):
        ...         return -x / 2  # of N(0, 1) with noise of variance 1
        >>> Normal().denoise(torch.ones(1, 2))
        tensor([[0.5000, 0.5000]])
    """

    alpha: float
    sigma: float

    @abstractmethod
    def __call__(self, x: Tensor, where: Where | None = None) -> Tensor:
        """The score at each point, `(K, *shape) -> (K, *shape)`."""

    def denoise(self, x: Tensor, where: Where | None = None) -> Tensor:
        """Denoised points `E[alpha x_0 | x] = x + sigma^2 score(x)`, `(K, *shape)` (Tweedie)."""
        return x + self.sigma**2 * self(x, where)

    def jvp(self, x: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The product `J(x) v` with the score's Jacobian; one tangent per point, `(K, *shape)`."""
        return pushed(lambda points: self(points, where), x, v)

    def vjp(self, x: Tensor, w: Tensor, where: Where | None = None) -> Tensor:
        """The product `J(x)^T w`; one cotangent per point, `(K, *shape)`."""
        return pulled(lambda points: self(points, where), x, w)

    def stack(self, x: Tensor, where: Where | None = None) -> Tensor:
        """All S scores of which this model consists, `(K, *shape) -> (K, S, *shape)`.

        S is 1 except for `SharedNoiseScore` with several noises. Metrics are means over the S
        scores.
        """
        return self(x, where)[:, None]

    def stack_jvp(self, x: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """The derivative of `stack` along `v`, `(K, S, *shape)`."""
        return self.jvp(x, v, where)[:, None]
