"""Places on paths, and conditions that change along them."""

import pytest
import torch
from models import randn
from torch.testing import assert_close

from riemannian_diffusion.score import Condition, Conditions, Where


def test_places_of_a_path():
    where = Where.even(5, pair=2)
    assert where.u.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0] and where.pair.tolist() == [2] * 5
    both = Where.cat([where[1:3], Where(0.1)])
    assert both.u.tolist() == [0.25, 0.5, 0.1] and both.pair.tolist() == [2, 2, 0]
    assert both.repeat_interleave(2).u.tolist() == [0.25, 0.25, 0.5, 0.5, 0.1, 0.1]
    assert len(both[[2, 0]]) == 2 and both[[2, 0]].pair.tolist() == [0, 2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([0.0, 1.1],), r"`u` must be fractions in \[0, 1\]"),
        (([float("nan")],), r"`u` must be fractions in \[0, 1\]"),
        (([0.0, 1.0], -1), "`pair` must not be negative"),
        (([0.0, 1.0], 0.5), "`pair` must be whole numbers"),
        (([0.0, 1.0], [0, 1, 2]), "must have one entry for each point, but got 2 and 3"),
    ],
)
def test_bad_places(arguments, message):
    with pytest.raises(ValueError, match=message):
        Where(*arguments)


def test_interpolated_conditions():
    values = randn(2, 3, 4)  # 2 paths, 3 knots
    condition = Condition(values)
    where = Where([0.0, 0.25, 0.5, 1.0, 0.75], [0, 0, 1, 1, 1])
    expected = torch.stack(
        [
            values[0, 0],
            (values[0, 0] + values[0, 1]) / 2,
            values[1, 1],
            values[1, 2],
            (values[1, 1] + values[1, 2]) / 2,
        ]
    )
    assert_close(condition.at(where, 5, "c"), expected)
    shared = Condition.of(values[0])
    assert_close(shared.at(where, 5, "c")[2], values[0, 1])  # all pairs share one path


def test_masks_between_knots_are_those_of_either():
    knots = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    at_thirds = Where([0.0, 0.1, 1 / 3, 0.5, 2 / 3, 0.9, 1.0])
    expected = torch.tensor(
        [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [0, 0, 1], [0, 0, 0]]
    )
    for dtype in (torch.bool, torch.float32, torch.long):
        found = Condition.of(knots.to(dtype), "mask").at(at_thirds, 7, "m")
        assert torch.equal(found, expected.to(dtype))


@pytest.mark.parametrize("num", [4, 8, 11, 50])
def test_a_knot_has_its_own_mask_despite_rounding(num):
    found = Condition.of(torch.eye(num).bool(), "mask").at(Where.even(num), num, "m")
    assert torch.equal(found, torch.eye(num).bool())


@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
def test_fixed_conditions_may_be_of_any_dtype(dtype):
    values = torch.arange(6).view(2, 1, 3).to(dtype)
    found = Condition(values, "fixed").at(Where([0.3, 0.9, 1.0], [1, 0, 1]), 3, "f")
    assert torch.equal(found, values[[1, 0, 1], 0])
    one = Condition(values[:1], "fixed")
    assert torch.equal(one.at(None, 3, "f"), values[:1, 0])  # fixed conditions need no place


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Condition(torch.zeros(3)), r"must be \(B, P, \*shape\), but got \(3,\)"),
        (lambda: Condition(torch.zeros(0, 1, 3)), r"but got \(0, 1, 3\)"),
        (lambda: Condition(torch.zeros(1, 1), "linear"), "`kind` must be one of"),
        (lambda: Condition(torch.zeros(1, 2, 3), "fixed"), "one knot per path, but got 2 knots"),
        (lambda: Condition(torch.zeros(1, 2, 3)).at(None, 4, "c"), "`c` changes along the path"),
        (
            lambda: Condition(torch.zeros(1, 2, 3)).at(Where.even(3), 4, "c"),
            "a place for each of 4 points, but has 3",
        ),
        (
            lambda: Condition(torch.zeros(2, 1, 3)).at(Where([0.0], [5]), 1, "c"),
            "given for 2 paths, but a point lies on path number 6",
        ),
        (
            lambda: Conditions(
                {"a": Condition(torch.zeros(1, 1, 2, 3))},
                {"a": Condition(torch.zeros(1, 1, 2, 4))},
            ),
            "Positive and negative conditions must have one shape each",
        ),
        (
            lambda: Conditions.join(
                [
                    (Conditions({"a": Condition(torch.zeros(1, 1, 3))}), 1),
                    (Conditions({"b": Condition(torch.zeros(1, 1, 3))}), 1),
                ]
            ),
            "must have conditions of one kind",
        ),
        (
            lambda: Conditions.join(
                [(Conditions({"a": Condition(torch.zeros(1, p, 3))}), 1) for p in (2, 3)]
            ),
            "must have one number of knots, but have 2 and 3",
        ),
        (
            lambda: Conditions.join([(unmasked(5), 1), (unmasked(7), 1)]),
            "Paths that are solved side by side must have prompts of one number of tokens, but `a` "
            "has 5 and 7, and this model has no mask",
        ),
        (
            lambda: Conditions.through([(unmasked(7), 1), (unmasked(5), 1)]),
            "Keyframes of one path must have prompts of one number of tokens, but `a` has 5 and 7",
        ),
    ],
)
def test_bad_conditions(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_conditions_of_groups_of_paths():
    fixed = Condition(torch.ones(1, 1, 2), "fixed")
    first = Conditions({"a": Condition(randn(1, 2, 3)), "f": fixed})
    second = Conditions({"a": Condition(randn(2, 1, 3, seed=1)), "f": fixed})
    both = Conditions.join([(first, 2), (second, 2)])
    assert both.positive["f"] is fixed
    where = Where([0.5] * 4, [0, 1, 2, 3])
    found = both.positive["a"].at(where, 4, "a")
    mean = first.positive["a"].values[0].mean(0)
    assert_close(found, torch.stack([mean, mean, *second.positive["a"].values[:, 0]]))


def unmasked(length):
    """Embeddings of a number of tokens, beside the mask of others."""
    mask = Condition(torch.ones(1, 1, 4).bool(), "mask")
    return Conditions({"a": Condition(torch.zeros(1, 1, length, 2)), "m": mask})


def masked(*lengths, seed=0):
    """Prompts of numbers of tokens, with `lengths[-1]` tokens of the negative prompt."""

    def named(lengths, seed):
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        hidden = randn(*mask.shape, 3, seed=seed) * mask[..., None]
        image = Condition(randn(1, 1, 2, 3), "interpolated")  # as many as no mask has
        return {"a": Condition.of(hidden), "m": Condition.of(mask, "mask"), "i": image}

    return Conditions(named(lengths[:-1], seed), named(lengths[-1:], seed + 1))


def test_a_path_through_prompts_of_different_lengths():
    first, second = masked(3, 4), masked(5, 6, seed=2)
    path = Conditions.through([(first, 1), (second, 1)])
    assert path.negative is first.negative and path.positive["i"] is first.positive["i"]
    hidden, mask = (path.positive[name].at(Where([0.0, 0.25, 1.0]), 3, name) for name in ("a", "m"))
    assert mask.sum(1).tolist() == [3, 5, 5]  # between keyframes, all tokens of either count
    short, long = (part.positive["a"].values[0, 0] for part in (first, second))
    assert_close(hidden[0, :3], short)
    assert_close(hidden[1, :3], torch.lerp(short, long[:3], 0.25))
    assert_close(hidden[1, 3:], 0.25 * long[3:])  # what one prompt lacks is 0
    assert_close(hidden[2], long)


def test_paths_side_by_side_with_prompts_of_different_lengths():
    parts = [masked(3, 2, 7), masked(5, 4, seed=2)]
    assert parts[0].outline == parts[1].outline != unmasked(3).outline
    both = Conditions.join([(part, 1) for part in parts])
    where = Where([0.3, 0.3], [0, 1])
    for side, longest in (("positive", 5), ("negative", 7)):
        values = {n: c.at(where, 2, n) for n, c in getattr(both, side).items()}
        assert values["a"].shape == (2, longest, 3)
        for i, part in enumerate(parts):
            for name, condition in getattr(part, side).items():
                own = condition.at(Where([0.3]), 1, name)[0]
                found = values[name][i if len(values[name]) > 1 else 0]
                assert torch.equal(found[: len(own)], own)
                assert not found[len(own) :].any()


def test_gaps_knots_and_means():
    prompts, mask = randn(1, 3, 2), torch.tensor([[[1, 0], [0, 0], [0, 0]]]).bool()
    conditions = Conditions({"p": Condition(prompts), "m": Condition(mask, "mask")})
    gaps = conditions.by_gap()
    assert conditions.num_knots == 3 and gaps.num_knots == 2
    assert torch.equal(gaps.positive["p"].values, torch.stack([prompts[0, :2], prompts[0, 1:]]))
    back = conditions.at_knots([2, 0])
    assert torch.equal(back.positive["p"].values, prompts[:, [2, 0]])
    mean = conditions.mean()
    assert_close(mean.positive["p"].values, prompts.mean(1, keepdim=True))
    assert mean.positive["m"].values.tolist() == [[[True, False]]]
