"""The kinds of tunable parameter."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest

from pytest_kerneltune.errors import SpaceError
from pytest_kerneltune.parameter import ListOf, Parameter, boolean, choice, integer, list_of, permutation, power_of_two

KINDS: list[Parameter] = [
    choice("a", "b", "c"),
    choice(None, 1, True, 2.5, (1, 2)),
    choice(7),
    boolean(),
    boolean(default=True),
    integer(-3, 9),
    integer(4, 4),
    power_of_two(1, 1024, default=32),
    power_of_two(8, 8),
    permutation(4),
    permutation(1),
    list_of(integer(0, 2), 3),
    list_of(choice("", "first", "last"), 2),
    list_of(list_of(boolean(), 2), 2),
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.describe())
def kind(request: pytest.FixtureRequest) -> Parameter:
    found: Parameter = request.param
    return found


def samples(kind: Parameter, count: int = 50) -> list[Any]:
    rng = random.Random(1)
    return [kind.sample(rng) for _ in range(count)]


def same(left: Any, right: Any) -> bool:
    """Equal as JSON is equal: True is not 1."""
    return repr(left) == repr(right)


def test_default_samples_and_neighbours_are_values_of_the_kind(kind: Parameter) -> None:
    for value in [kind.default, *samples(kind)]:
        assert same(kind.canonical(value), value)
        for radius in (1, 2, 3):
            for other in kind.neighbours(value, radius):
                assert same(kind.canonical(other), other)
                assert not same(other, value)


def test_no_neighbour_is_listed_twice(kind: Parameter) -> None:
    for value in samples(kind):
        neighbours = [repr(n) for n in kind.neighbours(value, 2)]
        assert len(set(neighbours)) == len(neighbours)


def test_a_wider_radius_loses_no_neighbour(kind: Parameter) -> None:
    for value in samples(kind, 10):
        near, far = ({repr(n) for n in kind.neighbours(value, radius)} for radius in (1, 2))
        assert near <= far


@pytest.mark.parametrize("kind", [k for k in KINDS if not isinstance(k, ListOf)], ids=lambda kind: kind.describe())
def test_being_a_neighbour_is_mutual(kind: Parameter) -> None:
    for value in samples(kind, 10):
        assert all(repr(value) in {repr(n) for n in kind.neighbours(other)} for other in kind.neighbours(value))


def test_encoding_has_the_width_and_tells_values_apart(kind: Parameter) -> None:
    encoded = {repr(v): kind.encode(v) for v in samples(kind)}
    assert {len(e) for e in encoded.values()} == {kind.width}
    assert len({tuple(e) for e in encoded.values()}) == len(encoded)
    assert all(isinstance(x, float) and math.isfinite(x) for e in encoded.values() for x in e)


def test_values_are_as_many_as_the_size_says(kind: Parameter) -> None:
    values = kind.values()
    assert values is not None
    assert len({repr(v) for v in values}) == len(values) == kind.size
    assert {repr(v) for v in samples(kind, 2000)} == {repr(v) for v in values}


def test_too_many_values_are_not_listed() -> None:
    assert permutation(9).values() is None
    assert list_of(integer(0, 9), 15).values() is None
    assert len(integer(0, 10**15).values()) == 10**15 + 1


def test_combination_is_a_value_and_keeps_the_base_where_the_others_agree(kind: Parameter) -> None:
    rng = random.Random(5)
    for _ in range(50):
        base, left, right = (kind.sample(rng) for _ in range(3))
        mixed = kind.combine(base, left, right, rng)
        assert same(kind.canonical(mixed), mixed)
        assert same(kind.combine(base, left, left, rng), base)


def test_a_list_read_from_json_becomes_the_tuple() -> None:
    assert permutation(3).canonical([2, 0, 1]) == (2, 0, 1)
    assert list_of(list_of(integer(0, 9), 1), 2).canonical([[1], [2]]) == ((1,), (2,))
    assert choice((1, 2), (3, 4)).canonical([3, 4]) == (3, 4)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (choice("a", "b"), "c"),
        (choice(1, 2), True),
        (choice(1, 2), 1.0),
        (boolean(), 1),
        (boolean(), None),
        (integer(1, 4), 0),
        (integer(1, 4), 5),
        (integer(0, 1), True),
        (integer(1, 4), 2.0),
        (integer(1, 4), "2"),
        (power_of_two(2, 16), 1),
        (power_of_two(2, 16), 12),
        (power_of_two(1, 16), True),
        (permutation(3), (0, 1)),
        (permutation(3), (0, 1, 1)),
        (permutation(2), (False, True)),
        (permutation(3), "012"),
        (list_of(boolean(), 2), (True,)),
        (list_of(boolean(), 2), (True, 1)),
        (list_of(choice("a", "b"), 2), "ab"),
    ],
)
def test_a_value_that_does_not_fit_is_an_error_that_shows_it(kind: Parameter, value: Any) -> None:
    with pytest.raises(SpaceError) as caught:
        kind.canonical(value)
    assert repr(value) in str(caught.value) or repr(value[-1]) in str(caught.value)


@pytest.mark.parametrize(
    ("make", "arguments", "named"),
    [
        (choice, (), "at least one"),
        (choice, (1, 2, 1), "twice"),
        (choice, ([1], (1,)), "twice"),
        (choice, (object(),), "JSON"),
        (integer, (4, 1), "low <= high"),
        (integer, (1, 2.5), "integers"),
        (integer, (False, True), "integers"),
        (power_of_two, (0, 8), "powers of two"),
        (power_of_two, (3, 8), "powers of two"),
        (power_of_two, (8, 4), "low <= high"),
        (power_of_two, (-2, 4), "powers of two"),
        (permutation, (0,), "positive"),
        (list_of, (integer(0, 1), 0), "positive"),
        (list_of, (5, 2), "needs a parameter"),
        (list_of, (integer, 2), "needs a parameter"),
    ],
)
def test_a_kind_that_makes_no_sense_is_an_error_that_says_why(make: Any, arguments: Any, named: str) -> None:
    with pytest.raises(SpaceError, match=named):
        make(*arguments)


def test_default_is_checked_and_canonical() -> None:
    assert permutation(2, default=[1, 0]).default == (1, 0)
    assert list_of(integer(0, 5, default=3), 2).default == (3, 3)
    with pytest.raises(SpaceError, match="default: 9 is not an integer from 1 to 4"):
        integer(1, 4, default=9)


def test_steps_of_a_power_of_two_are_counted_in_exponents() -> None:
    assert power_of_two(1, 1024).neighbours(32, 2) == [8, 16, 64, 128]
    assert power_of_two(1, 64).neighbours(64) == [32]
    assert power_of_two(1, 64).encode(32) == [5.0]


def test_steps_of_a_permutation_swap_a_pair() -> None:
    assert sorted(permutation(3).neighbours((0, 1, 2))) == [(0, 2, 1), (1, 0, 2), (2, 1, 0)]


def test_steps_of_a_list_change_one_element_or_make_all_equal() -> None:
    assert set(list_of(integer(0, 2), 3).neighbours((0, 1, 1))) == {
        *((1, 1, 1), (0, 0, 1), (0, 2, 1), (0, 1, 0), (0, 1, 2)),
        *((0, 0, 0), (2, 2, 2)),
    }


@pytest.mark.parametrize("kind", [choice("a", "b", "c"), integer(0, 4), power_of_two(1, 16), boolean()])
def test_sampling_reaches_every_value_about_equally_often(kind: Parameter) -> None:
    counts = Counter(repr(v) for v in samples(kind, 2000))
    assert len(counts) == kind.size
    assert min(counts.values()) > 0.7 * 2000 / kind.size


def test_difference_of_two_numbers_moves_the_base_by_one_step() -> None:
    rng = random.Random(0)
    assert integer(0, 9).combine(4, 9, 1, rng) == 5
    assert integer(0, 9).combine(0, 1, 9, rng) == 0
    assert power_of_two(1, 64).combine(8, 1, 64, rng) == 4
    assert boolean().combine(False, True, False, rng) is True


def test_kinds_are_values() -> None:
    assert integer(1, 4, default=2) == integer(1, 4, default=2)
    assert hash(choice("a", "b")) == hash(choice("a", "b"))
