"""Conditions of a network, such as prompts, and how they change along a path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from riemannian_diffusion.score.padding import is_masked, padded
from riemannian_diffusion.score.where import Where

KINDS = ("interpolated", "mask", "fixed")


@dataclass(frozen=True, eq=False)
class Condition:
    """One named input of a network.

    Attributes:
        values: Values `(B, P, *shape)` at P evenly spaced knots on each of B paths. P is 1 if the
            value is the same on the whole path. B is 1 if all paths share their values.
        kind: How the values change between knots. "interpolated" changes linearly. "mask" takes the
            union of both knots, which is a boolean or, or the larger value. "fixed" does not
            change, and P must be 1.

    Raises:
        ValueError: If `values` has another shape or `kind` is unknown.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import Condition
        >>> tuple(Condition.of(torch.zeros(2, 4, 8)).values.shape)  # of two prompts
        (1, 2, 4, 8)
    """

    values: Tensor
    kind: str = "interpolated"

    def __post_init__(self):
        if self.values.ndim < 2 or 0 in self.values.shape[:2]:
            raise ValueError(
                f"`values` must be (B, P, *shape), but got {tuple(self.values.shape)}."
            )
        if self.kind not in KINDS:
            raise ValueError(f"`kind` must be one of {KINDS}, but got {self.kind!r}.")
        if self.kind == "fixed" and self.values.shape[1] > 1:
            raise ValueError(
                "`values` of kind='fixed' must have one knot per path, but got "
                f"{self.values.shape[1]} knots."
            )

    @classmethod
    def of(cls, values: Tensor, kind: str = "interpolated") -> Condition:
        """The condition of one path, from the values at its knots, `(P, *shape)`."""
        return cls(values[None], kind)

    @property
    def num_paths(self) -> int:
        """The number of paths B; 1 if all paths share their values."""
        return self.values.shape[0]

    @property
    def num_knots(self) -> int:
        """The number of knots P on each path."""
        return self.values.shape[1]

    def at(self, where: Where | None, num: int, name: str) -> Tensor:
        """The values at points, as in `values_at`."""
        return values_at({name: self}, where, num)[name]

    @property
    def changes(self) -> bool:
        """Whether the value depends on the path or on the place on it."""
        return self.num_paths > 1 or self.num_knots > 1

    def check_places(self, where: Where | None, num: int, name: str) -> Where:
        """The places of `num` points, at which this condition has values.

        Raises:
            ValueError: Naming the condition, if there are no places, another number of them, or one
                on a path that the condition does not have.
        """
        if where is None:
            raise ValueError(
                f"`{name}` changes along the path ({self.num_knots} knots, {self.num_paths} "
                "paths), so each point needs its place on it: pass `where=Where(u, pair)`."
            )
        if len(where) != num:
            raise ValueError(
                f"`where` must have a place for each of {num} points, but has {len(where)}."
            )
        if self.num_paths > 1 and num and int(where.pair.max()) >= self.num_paths:
            raise ValueError(
                f"`{name}` is given for {self.num_paths} paths, but a point lies on path "
                f"number {int(where.pair.max()) + 1}."
            )
        return where

    def between(self, pair: Tensor, left: Tensor, weight: Tensor) -> Tensor:
        """The values between knots.

        Args:
            pair: The path of each point, `(K,)`.
            left: The last knot before each point, `(K,)`.
            weight: The place of each point between this knot and the next, `(K,)` in [0, 1].

        Returns:
            `(K, *shape)`.
        """
        pair = pair if self.num_paths > 1 else torch.zeros_like(pair)
        if self.num_knots == 1:
            return self.values[pair, 0]
        before, after = self.values[pair, left], self.values[pair, left + 1]
        weight = weight.view(-1, *[1] * (before.ndim - 1))
        if self.kind == "mask":
            both = before | after if before.dtype == torch.bool else torch.maximum(before, after)
            return torch.where(weight == 0, before, torch.where(weight == 1, after, both))
        return torch.lerp(before, after, weight.to(before.dtype))

    def map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        """A copy of the condition whose values are `function(values)`."""
        return replace(self, values=function(self.values))


Named = Mapping[str, Condition]


def values_at(named: Named, where: Where | None, num: int) -> dict[str, Tensor]:
    """The values of conditions at points.

    All that depends on the places is copied to the device at once, because each copy waits for it.

    Args:
        named: The conditions by name.
        where: The places of the points; None is allowed if all points share their values.
        num: The number of points K.

    Returns:
        For each condition, `(1, *shape)` if all points share one value, else `(K, *shape)`.

    Raises:
        ValueError: See `Condition.check_places`.
    """
    changing = {name: condition for name, condition in named.items() if condition.changes}
    for name, condition in changing.items():
        where = condition.check_places(where, num, name)
    knots = sorted({condition.num_knots for condition in changing.values()})
    wide = any(condition.values.dtype == torch.float64 for condition in changing.values())
    dtype = torch.float64 if wide else torch.float32  # not every device has float64
    tables: dict[torch.device, Tensor] = {}  # (1 + 2 * number of different knots, K)
    found = {}
    for name, condition in named.items():
        device = condition.values.device
        if name not in changing or where is None:
            found[name] = condition.values[0]
            continue
        if device not in tables:
            rows = [where.pair, *(row for number in knots for row in _among(where, number))]
            tables[device] = torch.stack([row.to(dtype) for row in rows]).to(device)
        table, first = tables[device], 1 + 2 * knots.index(condition.num_knots)
        pair, left = table[0].long(), table[first].long()
        found[name] = condition.between(pair, left, table[first + 1])
    return found


def _among(where: Where, num_knots: int) -> tuple[Tensor, Tensor]:
    """The last knot before each place, and the place between this knot and the next, `(K,)`."""
    place = where.u * (num_knots - 1)
    nearest = place.round()  # a knot must not get the mask of its neighbour by rounding
    place = torch.where((place - nearest).abs() < 1e-12, nearest, place)
    left = place.long().clamp(max=max(0, num_knots - 2))
    return left, place - left


@dataclass(frozen=True, eq=False)
class Conditions:
    """All conditions of a network.

    A condition of kind "mask" with values `(B, P, L)` says which of L tokens count. `join` and
    `through` pad such a mask with zeros, and also the interpolated values `(B, P, L, *shape)` of as
    many tokens. So a token that only one of two knots has is interpolated with 0 between them, and
    it counts everywhere but at the other knot.

    Attributes:
        positive: Conditions by name; `predict` of the score receives them under these names.
        negative: Conditions under the negative prompt, with the names of the positive ones, for
            guidance; None if there are none.
        loras: One LoRA of the network for each keyframe, as `fit_lora` returns them, or None. The
            condition "lora_weights" gives the weight of each LoRA at a point.
        options: Further arguments of the network that are not tensors and do not change, such as
            `{"scale": 0.5}` for the attention.

    Raises:
        ValueError: If positive and negative conditions differ in names or in the shapes of their
            values. Only the first size may differ, which is the number of tokens.

    Examples:
        >>> import torch
        >>> from riemannian_diffusion import Condition, Conditions
        >>> embeddings = Condition.of(torch.zeros(2, 4, 8))  # of two prompts
        >>> conditions = Conditions({'encoder_hidden_states': embeddings})
        >>> sorted(conditions.positive)
        ['encoder_hidden_states']
    """

    positive: Named
    negative: Named | None = None
    loras: Sequence[Mapping[str, Tensor]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.negative is None:
            return
        shapes = [
            {name: (c.values.ndim, *c.values.shape[3:]) for name, c in part.items()}
            for part in (self.positive, self.negative)
        ]
        if shapes[0] != shapes[1]:
            found = [
                {name: tuple(c.values.shape[2:]) for name, c in part.items()}
                for part in (self.positive, self.negative)
            ]
            raise ValueError(
                "Positive and negative conditions must have one shape each, up to the number of "
                f"tokens, but they have {found[0]} and {found[1]}."
            )

    @property
    def num_knots(self) -> int:
        """The number of knots: one per keyframe, or 1 if all keyframes share their conditions."""
        return max((c.num_knots for c in self.positive.values()), default=1)

    @property
    def outline(self) -> tuple:
        """Names, kinds and shapes that `join` compares; None for lengths that may differ."""

        def shape(condition: Condition, named: Named) -> tuple:
            sizes = condition.values.shape[2:]
            return (None, *sizes[1:]) if is_masked(condition, named) else tuple(sizes)

        return tuple(
            tuple((name, c.kind, shape(c, named)) for name, c in named.items())
            for named in (self.positive, self.negative or {})
        )

    def with_fixed(self, named: Named) -> Conditions:
        """The conditions and further ones, which are the same under the negative prompt."""
        negative = None if self.negative is None else {**self.negative, **named}
        return replace(self, positive={**self.positive, **named}, negative=negative)

    def map(self, function: Callable[[Condition], Condition]) -> Conditions:
        """A copy of the conditions in which `function` replaces every condition."""

        def mapped(named: Named) -> dict[str, Condition]:
            return {name: function(condition) for name, condition in named.items()}

        negative = None if self.negative is None else mapped(self.negative)
        return replace(self, positive=mapped(self.positive), negative=negative)

    def to(self, device: torch.device | str) -> Conditions:
        """A copy of the conditions on a device."""
        result = self.map(lambda c: c.map(lambda values: values.to(device)))
        moved = tuple({n: w.to(device) for n, w in lora.items()} for lora in self.loras or ())
        pairs = zip(self.loras or (), moved, strict=True)
        if all(lora[name] is weight for lora, new in pairs for name, weight in new.items()):
            return result  # keeps the LoRAs, because paths that share them share batches
        return replace(result, loras=moved)

    def at_knots(self, knots: Sequence[int]) -> Conditions:
        """The conditions of a path through the given knots, in the given order."""
        index = list(knots)
        return self.map(lambda c: c if c.num_knots == 1 else c.map(lambda values: values[:, index]))

    def mean(self) -> Conditions:
        """Conditions that are constant along the path: the mean of the knots, or union of masks."""

        def merged(condition: Condition) -> Condition:
            if condition.num_knots == 1:
                return condition
            over_knots = torch.amax if condition.kind == "mask" else torch.mean
            return condition.map(lambda values: over_knots(values, 1, keepdim=True))

        return self.map(merged)

    def by_gap(self) -> Conditions:
        """Conditions of one path per gap between neighbouring knots, `(B, P) -> (B (P - 1), 2)`."""

        def split(condition: Condition) -> Condition:
            if condition.num_knots == 1:
                return condition
            return condition.map(
                lambda values: torch.stack([values[:, :-1], values[:, 1:]], 2).flatten(0, 1)
            )

        return self.map(split)

    @staticmethod
    def join(parts: Sequence[tuple[Conditions, int]]) -> Conditions:
        """Join the conditions of several groups of paths.

        Args:
            parts: For each group, its conditions and its number of paths.

        Raises:
            ValueError: If the conditions differ in names, shapes, knots, options or LoRAs. Numbers
                of tokens may differ where there are masks.
        """
        fitted = _of_one_length([part for part, _ in parts], "Paths that are solved side by side")
        parts = [(part, count) for part, (_, count) in zip(fitted, parts, strict=True)]
        first = fitted[0]

        def joined(named: Sequence[tuple[Named, int]]) -> dict[str, Condition]:
            found = {}
            for name, condition in named[0][0].items():
                mine = [(part[name], count) for part, count in named]
                if all(_same(condition, other) for other, _ in mine) and condition.num_paths == 1:
                    found[name] = condition
                    continue
                knots = max(c.num_knots for c, _ in mine)
                other = next((c.num_knots for c, _ in mine if c.num_knots not in (1, knots)), None)
                if other is not None:
                    raise ValueError(
                        f"Conditions `{name}` of paths that are solved side by side must have one "
                        f"number of knots, but have {other} and {knots}."
                    )
                values = [c.values.expand(count, knots, *c.values.shape[2:]) for c, count in mine]
                found[name] = replace(condition, values=torch.cat(values))
            return found

        positive = joined([(part.positive, count) for part, count in parts])
        negative = None
        if first.negative is not None:
            negative = joined([(part.negative or {}, count) for part, count in parts])
        return replace(first, positive=positive, negative=negative)

    @staticmethod
    def through(parts: Sequence[tuple[Conditions, int]]) -> Conditions:
        """Conditions of one path through keyframes with different conditions.

        Args:
            parts: For each group of keyframes, its conditions and its number of keyframes. The
                negative conditions of the result are those of the first group.

        Raises:
            ValueError: If the conditions differ in names, shapes, options or LoRAs. Numbers of
                tokens may differ where there are masks.
        """
        fitted = _of_one_length([part for part, _ in parts], "Keyframes of one path")
        positive = {}
        for name, condition in fitted[0].positive.items():
            mine = [
                (part.positive[name], count) for part, (_, count) in zip(fitted, parts, strict=True)
            ]
            if condition.num_knots == 1 and all(_same(condition, other) for other, _ in mine):
                positive[name] = condition
                continue
            knots = [c.values.expand(-1, count, *c.values.shape[2:]) for c, count in mine]
            positive[name] = replace(condition, values=torch.cat(knots, 1))
        return replace(parts[0][0], positive=positive)


def _of_one_length(parts: Sequence[Conditions], what: str) -> list[Conditions]:
    """Conditions of several groups, padded to one number of tokens.

    Args:
        parts: The conditions of each group.
        what: What has these conditions, in error messages.

    Raises:
        ValueError: If the conditions differ in more than that, or there is no mask.
    """
    positive = padded([part.positive for part in parts], what)
    negative = padded([part.negative or {} for part in parts], what)
    fitted = [
        replace(part, positive=ours, negative=None if part.negative is None else theirs)
        for part, ours, theirs in zip(parts, positive, negative, strict=True)
    ]
    if any(not _alike(fitted[0], other) for other in fitted):
        raise ValueError(f"{what} must have conditions of one kind.")
    return fitted


def _alike(a: Conditions, b: Conditions) -> bool:
    """Whether paths with these conditions can be solved in one batch of one network."""
    if a.loras is not b.loras or a.options != b.options:
        return False
    if (a.negative is None) != (b.negative is None):
        return False

    def shapes(named: Named | None) -> dict[str, tuple]:
        return {name: (c.kind, tuple(c.values.shape[2:])) for name, c in (named or {}).items()}

    return shapes(a.positive) == shapes(b.positive) and shapes(a.negative) == shapes(b.negative)


def _same(a: Condition, b: Condition) -> bool:
    return a is b or (a.values.shape == b.values.shape and torch.equal(a.values, b.values))
