"""Configs as points: what is near what."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from pytest_kerneltune.parameter import Parameter, boolean, choice, integer, list_of, permutation, power_of_two
from pytest_kerneltune.search.coordinates import Coordinates, Points
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import SPACES


@dataclass(frozen=True)
class Steps:
    """A third party's kind: values of a range, listed or not."""

    options: range
    listed: bool
    default: int = 0
    width = 1

    @property
    def size(self) -> int:
        return len(self.options)

    def values(self) -> Sequence[int] | None:
        return self.options if self.listed else None

    def sample(self, rng: random.Random) -> int:
        return rng.choice(self.options)

    def neighbours(self, value: int, radius: int = 1) -> list[int]:
        return [v for v in self.options if 0 < abs(v - value) <= radius * self.options.step]

    def encode(self, value: int) -> list[float]:
        return [float(value)]

    def combine(self, base: int, left: int, right: int, rng: random.Random) -> int:
        return base

    def canonical(self, value: Any) -> int:
        return self.options[self.options.index(value)]

    def describe(self) -> str:
        return f"one of {self.options}"


KINDS: dict[str, Parameter] = {
    "strings": choice("row", "column", "hilbert"),
    "mixed": choice(None, 1, 2.5, "auto", (1, 2)),
    "look alike": choice(True, 1, "1", "True", False, 0),
    "numbers": choice(1, 3, 2.5, -7),
    "many strings": choice(*(f"option {i}" for i in range(100))),
    "one value": choice("only"),
    "boolean": boolean(),
    "integer": integer(-4, 12),
    "wide integer": integer(0, 10**6),
    "integer beyond a machine word": integer(-(10**30), 10**30, default=0),
    "one integer": integer(5, 5),
    "power of two": power_of_two(1, 1024),
    "permutation": permutation(4),
    "long permutation": permutation(8),
    "permutation of one": permutation(1),
    "list of integers": list_of(integer(1, 9), 3),
    "list of choices": list_of(choice("", "first", "last"), 2),
    "list of permutations": list_of(permutation(3), 2),
    "third party's": Steps(range(0, 257, 16), listed=True),
    "third party's falling": Steps(range(256, -1, -16), listed=True),
    "third party's unlisted": Steps(range(0, 257, 16), listed=False),
}


def placed(parameter: Parameter, *values: Any) -> Points:
    return Coordinates(ConfigSpace({"x": parameter})).points([{"x": value} for value in values])


def apart(parameter: Parameter, left: Any, right: Any) -> float:
    points = placed(parameter, left, right)
    return float(np.linalg.norm(points[0] - points[1]))


def axes(coordinates: Coordinates) -> list[list[list[int]]]:
    """The columns of each axis of each value."""
    return [[axis.tolist() for axis in value] for value in coordinates.layout]


def axes_of(parameter: Parameter) -> list[list[list[int]]]:
    return axes(Coordinates(ConfigSpace({"x": parameter})))


@pytest.mark.parametrize("name", SPACES)
def test_columns_belong_to_axes_in_turn(name: str) -> None:
    space = SPACES[name]()
    coordinates = Coordinates(space)
    configs = [space.default, *space.sample_new(random.Random(0), 9, frozenset())]
    points = coordinates.points(configs)
    assert points.shape == (len(configs), coordinates.width)
    assert points.dtype == float
    columns = [column for value in axes(coordinates) for axis in value for column in axis]
    assert list(dict.fromkeys(columns)) == list(range(coordinates.width))
    assert len(coordinates.layout) >= len(space.names)


@pytest.mark.parametrize("name", KINDS)
def test_values_of_every_kind_are_finite_places_of_their_own_at_most_a_unit_or_so_apart(name: str) -> None:
    rng = random.Random(0)
    tokens = {json.dumps(v): v for v in (KINDS[name].sample(rng) for _ in range(100))}
    coordinates = Coordinates(ConfigSpace({"x": KINDS[name]}))
    points = coordinates.points([{"x": v} for v in tokens.values()])
    assert np.isfinite(points).all()
    assert len(np.unique(points, axis=0)) == len(tokens)
    for columns in (columns for value in coordinates.layout for columns in value):
        distances = [float(np.linalg.norm(a - b)) for a, b in combinations(points[:, columns], 2)]
        assert max(distances, default=0.0) < 4.0
        assert np.mean(distances or [0.0]) < 1.5


@pytest.mark.parametrize("name", KINDS)
def test_equal_configs_are_equal_points(name: str) -> None:
    values = [KINDS[name].sample(random.Random(seed)) for seed in range(5)]
    space = ConfigSpace({"x": KINDS[name]})
    from_json = [space.canonical({"x": json.loads(json.dumps(value))})["x"] for value in values]
    points = placed(KINDS[name], *values)
    np.testing.assert_array_equal(points, placed(KINDS[name], *from_json))
    np.testing.assert_array_equal(points[::-1], placed(KINDS[name], *values[::-1]))


@pytest.mark.parametrize("name", ["strings", "mixed", "look alike", "boolean"])
def test_values_without_an_order_are_equally_far_from_each_other(name: str) -> None:
    values = KINDS[name].values()
    assert values is not None
    distances = [apart(KINDS[name], a, b) for a, b in combinations(values, 2)]
    np.testing.assert_allclose(distances, 1.0)


def test_true_is_not_one() -> None:
    assert apart(choice(True, 1, False), True, 1) == pytest.approx(1.0)
    assert apart(choice(None, 1, True), True, 1) == pytest.approx(1.0)


def test_positive_numbers_are_placed_by_logarithm_in_whatever_order_they_are_listed() -> None:
    numbers = choice(0.001, 100.0, 0.1)
    assert apart(numbers, 0.001, 0.1) == pytest.approx(0.4)
    assert apart(numbers, 0.1, 100.0) == pytest.approx(0.6)
    np.testing.assert_array_equal(placed(numbers, 0.1, 100.0), placed(choice(100.0, 0.1, 0.001), 0.1, 100.0))
    for parameter in (choice(*range(1, 9)), integer(1, 8), Steps(range(1, 9), True), Steps(range(8, 0, -1), True)):
        np.testing.assert_allclose(np.diff(placed(parameter, 1, 2, 4, 8)[:, 0]), 1 / 3)


@pytest.mark.parametrize("least", [0.0, -3, -1e300])
def test_other_numbers_are_placed_by_rank_in_whatever_order_they_are_listed(least: float) -> None:
    numbers = choice(least, 100.0, 0.5)
    assert apart(numbers, least, 0.5) == pytest.approx(0.5)
    assert apart(numbers, 0.5, 100.0) == pytest.approx(0.5)
    np.testing.assert_array_equal(placed(numbers, 0.5, 100.0), placed(choice(100.0, 0.5, least), 0.5, 100.0))


@pytest.mark.parametrize("numbers", [(1, 2, math.inf), (10**400, 10**400 + 1, 10**400 + 2)])
def test_numbers_whose_logarithms_say_nothing_are_placed_by_rank(numbers: tuple[float, ...]) -> None:
    np.testing.assert_allclose(placed(choice(*numbers), *numbers)[:, 0], [0.0, 0.5, 1.0])


def test_steps_of_a_power_of_two_are_equally_long() -> None:
    points = placed(power_of_two(4, 64), 4, 8, 16, 32, 64)
    assert points.shape == (5, 1)
    np.testing.assert_allclose(np.diff(points[:, 0]), 0.25)
    np.testing.assert_array_equal(points, placed(choice(64, 4, 16, 8, 32), 4, 8, 16, 32, 64))


@pytest.mark.parametrize("parameter", [integer(1, 128), choice(32, 48, 64, 90, 96, 128), Steps(range(0, 257, 2), True)])
def test_what_a_power_of_two_divides_is_near_what_it_divides_as_well(parameter: Parameter) -> None:
    assert apart(parameter, 96, 64) < apart(parameter, 96, 90)
    assert axes_of(parameter) == [[[0], [0], [1]]]


@pytest.mark.parametrize("parameter", [power_of_two(1, 64), choice(0.5, 1, 3), choice(-1, 0, 1.5)])
def test_divisibility_is_told_only_of_whole_numbers_that_differ_in_it(parameter: Parameter) -> None:
    assert axes_of(parameter) == [[[0], [0]]]


@pytest.mark.parametrize("parameter", [boolean(), integer(0, 1), choice(3, 4), choice(7), permutation(2)])
def test_only_numbers_of_more_than_two_values_matter_at_two_scales(parameter: Parameter) -> None:
    assert [len(value) for value in axes_of(parameter)] == [1]


def test_a_range_spans_a_unit_whatever_its_steps() -> None:
    for parameter in (Steps(range(0, 257, 16), True), Steps(range(256, -1, -16), True), integer(0, 256)):
        first = placed(parameter, 0, 128, 256)[:, 0]
        np.testing.assert_allclose(np.abs(np.diff(first)), 0.5)


def test_near_orders_are_near() -> None:
    order = tuple(range(8))
    swapped, reversed_ = (1, 0, *order[2:]), order[::-1]
    assert apart(permutation(8), order, swapped) < 0.3
    assert apart(permutation(8), order, reversed_) > 1.0
    assert axes_of(permutation(8)) == [[list(range(8))]]


def test_elements_of_a_list_count_on_their_own() -> None:
    coordinates = Coordinates(ConfigSpace({"x": list_of(choice("", "first", "last"), 3), "y": boolean()}))
    assert axes(coordinates) == [[[0, 1, 2]], [[3, 4, 5]], [[6, 7, 8]], [[9]]]
    before, after = coordinates.points([{"x": ("", "", "last"), "y": True}, {"x": ("", "first", "last"), "y": True}])
    assert set(np.flatnonzero(before != after)) <= {3, 4, 5}
    assert (before != after).any()


def test_only_the_columns_of_a_changed_parameter_change() -> None:
    space = SPACES["every kind"]()
    coordinates = Coordinates(space)
    for neighbour in space.neighbours(space.default):
        changed = [name for name in space.names if neighbour[name] != space.default[name]]
        before, after = coordinates.points([space.default, neighbour])
        assert len(changed) == 1
        assert (before != after).any()
        width = Coordinates(ConfigSpace({"x": space.parameters[changed[0]]})).width
        assert np.ptp(np.flatnonzero(before != after)) < width


def test_no_configs() -> None:
    assert Coordinates(SPACES["every kind"]()).points([]).shape[0] == 0
    assert Coordinates(ConfigSpace({})).points([{}, {}]).shape == (2, 0)


def test_places_do_not_depend_on_what_was_asked_before() -> None:
    space = SPACES["every kind"]()
    configs = space.sample_new(random.Random(0), 30, frozenset())
    asked = Coordinates(space)
    asked.points(configs[::-1])
    np.testing.assert_array_equal(asked.points(configs), Coordinates(space).points(configs))


def test_global_random_generators_are_left_alone() -> None:
    before, numpy_before = random.getstate(), str(np.random.get_state())
    Coordinates(
        ConfigSpace(dict(zip("abcd", (permutation(8), KINDS["many strings"], boolean(), integer(0, 9)), strict=True)))
    )
    assert random.getstate() == before
    assert str(np.random.get_state()) == numpy_before
