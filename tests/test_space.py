"""Search spaces: constraint, canonical configs, sampling and neighbours."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from pytest_kerneltune.errors import SpaceError
from pytest_kerneltune.parameter import boolean, choice, integer, list_of, permutation, power_of_two
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config

SMALL = ConfigSpace({"tile": power_of_two(1, 8), "mode": choice("a", "b"), "unroll": boolean()})
LISTS = ConfigSpace({"order": permutation(3), "loads": list_of(choice("", "last"), 2)})


def even(config: Config) -> bool:
    return bool((config["x"] + config["y"]) % 2 == 0)


EVEN = ConfigSpace({"x": integer(0, 4), "y": integer(0, 4)}, even)
RARE = ConfigSpace({"x": integer(0, 999), "y": integer(0, 99)}, lambda c: c["x"] == 5 and c["y"] > 89)


def test_size_counts_configs_before_the_constraint() -> None:
    assert SMALL.size == 4 * 2 * 2
    assert EVEN.size == 25
    assert LISTS.size == 6 * 4
    assert ConfigSpace({}).size == 1


def test_enumeration_is_ordered_complete_and_constrained() -> None:
    configs = list(EVEN.enumerate())
    assert len(configs) == 13
    assert configs == sorted(configs, key=lambda c: (c["x"], c["y"]))
    assert all(map(even, configs))
    assert list(ConfigSpace({}).enumerate()) == [{}]
    assert len(list(LISTS.enumerate())) == LISTS.size


def test_what_cannot_be_listed_says_so() -> None:
    with pytest.raises(SpaceError, match=r"order \(permutation of 0\.\.8\) has too many values"):
        next(ConfigSpace({"order": permutation(9)}).enumerate())


def test_default_is_every_parameters_own() -> None:
    assert SMALL.default == {"tile": 1, "mode": "a", "unroll": False}


def test_a_refused_default_gives_way_to_the_nearest_allowed_config() -> None:
    space = ConfigSpace({"x": integer(0, 9), "y": integer(0, 9)}, lambda c: c["x"] + c["y"] >= 3)
    assert sum(space.default.values()) == 3


def test_a_default_far_from_the_parameters_own_keeps_what_it_can_of_them() -> None:
    """No config within reach is allowed, but most are that are drawn."""
    parameters = {f"p{i}": integer(0, 9) for i in range(15)}
    space, again = (ConfigSpace(parameters, lambda c: sum(c.values()) >= 50) for _ in range(2))
    assert space.is_allowed(space.default)
    assert space.default == again.default
    kept = [name for name in space.names if space.default[name] == 0]
    assert kept
    changed = set(space.names) - set(kept)
    assert not any(space.is_allowed({**space.default, name: 0}) for name in changed)


def test_the_only_allowed_config_of_a_space_that_can_be_listed_is_its_default() -> None:
    space = ConfigSpace({"x": integer(0, 399), "y": integer(0, 399)}, lambda c: c["x"] == c["y"] == 399)
    assert space.default == {"x": 399, "y": 399}


def test_looking_for_a_default_that_is_not_there_ends() -> None:
    asked = 0

    def never(_: Config) -> bool:
        nonlocal asked
        asked += 1
        return False

    space = ConfigSpace({f"p{i}": integer(0, 9) for i in range(15)}, never)
    with pytest.raises(SpaceError, match="refuses the default"):
        _ = space.default
    assert asked < 70_000


def test_a_space_without_a_config_is_an_error() -> None:
    with pytest.raises(SpaceError, match="refuses the default"):
        _ = ConfigSpace({"x": integer(0, 9)}, lambda _: False).default


def test_an_error_in_the_constraint_names_it_and_the_config() -> None:
    space = ConfigSpace({"x": integer(0, 9)}, lambda c: bool(c["z"]))
    with pytest.raises(SpaceError, match=r"where= raised KeyError: 'z' for \{'x': 0\}"):
        _ = space.default


def test_canonical_orders_names_and_turns_lists_into_tuples() -> None:
    config = LISTS.canonical({"loads": ["", "last"], "order": [2, 1, 0]})
    assert list(config.items()) == [("order", (2, 1, 0)), ("loads", ("", "last"))]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"x": 1}, "differ in y"),
        ({"x": 1, "y": 1, "z": 1}, "differ in z"),
        ({"x": 1, "y": 7}, "y: 7 is not an integer from 0 to 4"),
        ({"x": 1, "y": 2}, "where= refuses"),
        ([1, 2], "must map parameter names"),
        (None, "must map parameter names"),
    ],
)
def test_a_config_that_does_not_fit_is_an_error_that_names_what(config: Any, named: str) -> None:
    with pytest.raises(SpaceError, match=named):
        EVEN.canonical(config)
    assert not EVEN.contains(config)


@pytest.mark.parametrize("parameters", [{"x": 5}, {"": integer(0, 1)}, {3: integer(0, 1)}, [("x", integer(0, 1))]])
def test_a_space_of_no_parameters_is_an_error(parameters: Any) -> None:
    with pytest.raises(SpaceError, match="space"):
        ConfigSpace(parameters)


def test_key_is_the_same_for_equal_configs_and_no_others() -> None:
    config = LISTS.default
    assert LISTS.key(json.loads(json.dumps(config))) == LISTS.key(dict(reversed(list(config.items()))))
    assert len({SMALL.key(c) for c in SMALL.enumerate()}) == SMALL.size
    mixed = ConfigSpace({"x": choice(1, True, "1", 1.0, None)})
    assert len({mixed.key(c) for c in mixed.enumerate()}) == 5


def test_encoding_is_one_run_a_parameter() -> None:
    assert SMALL.encode({"tile": 4, "mode": "b", "unroll": True}) == [2.0, 0.0, 1.0, 1.0]


def test_neighbours_are_allowed_and_one_parameter_away() -> None:
    centre = {"x": 2, "y": 2}
    assert EVEN.neighbours(centre) == []
    assert EVEN.neighbours(centre, 2) == [{"x": 0, "y": 2}, {"x": 4, "y": 2}, {"x": 2, "y": 0}, {"x": 2, "y": 4}]


def test_sampling_gives_new_allowed_configs() -> None:
    first = EVEN.sample_new(random.Random(0), 6, frozenset())
    keys = {EVEN.key(c) for c in first}
    second = EVEN.sample_new(random.Random(0), 6, keys)
    assert all(map(even, first + second))
    assert len(keys | {EVEN.key(c) for c in second}) == 12


@pytest.mark.parametrize("space", [SMALL, EVEN, RARE, LISTS], ids=["small", "even", "rare", "lists"])
def test_sampling_finds_all_of_a_space_that_can_be_listed(space: ConfigSpace) -> None:
    everything = {space.key(c) for c in space.enumerate()}
    found = space.sample_new(random.Random(0), 10**4, frozenset())
    assert {space.key(c) for c in found} == everything
    assert len(found) == len(everything)


def test_sampling_is_determined_by_the_generator() -> None:
    assert LISTS.sample_new(random.Random(4), 5, frozenset()) == LISTS.sample_new(random.Random(4), 5, frozenset())


def test_sampling_finds_nothing_where_nothing_is_left() -> None:
    everything = {SMALL.key(c) for c in SMALL.enumerate()}
    assert SMALL.sample_new(random.Random(0), 3, everything) == []
    assert SMALL.sample(random.Random(0)) in list(SMALL.enumerate())


def test_sampling_finds_rare_configs_of_a_space_too_large_to_list() -> None:
    parameters = {"x": integer(0, 999), "y": integer(0, 10**9)}
    space = ConfigSpace(parameters, lambda c: c["x"] == 7)
    found = space.sample_new(random.Random(0), 10, frozenset())
    assert found
    assert {c["x"] for c in found} == {7}


def test_sampling_goes_on_while_rare_configs_that_stand_alone_are_found() -> None:
    parameters = {"x": integer(0, 10**7), "y": integer(0, 10**7)}
    space = ConfigSpace(parameters, lambda c: (7919 * c["x"] ** 2 + 104_729 * c["y"]) % 3001 == 5)
    assert not space.neighbours(space.default, 2)
    rng, seen = random.Random(0), set[str]()
    for _ in range(10):
        found = {space.key(c) for c in space.sample_new(rng, 3, seen)}
        assert found
        assert not found & seen
        seen |= found


@pytest.mark.parametrize("count", [0, -3])
def test_sampling_none_is_no_config(count: int) -> None:
    assert SMALL.sample_new(random.Random(0), count, frozenset()) == []
    assert ConfigSpace({"x": integer(0, 10**9)}).sample_new(random.Random(0), count, frozenset()) == []


def test_description_says_the_values_of_every_parameter() -> None:
    assert SMALL.describe() == {
        "tile": "power of two from 1 to 8",
        "mode": "choice of 'a', 'b'",
        "unroll": "True or False",
    }
