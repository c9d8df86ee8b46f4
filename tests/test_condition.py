"""Parameters that matter only beside some values of others: one config, one key, measured once."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pytest_kerneltune.backends.python import PythonKernel
from pytest_kerneltune.errors import SpaceError
from pytest_kerneltune.parameter import Parameter, boolean, choice, integer, list_of, permutation, power_of_two
from pytest_kerneltune.search import Subject
from pytest_kerneltune.search.dialogue import first_request
from pytest_kerneltune.search.replies import parse_reply
from pytest_kerneltune.search.sampling import FiniteSearch, RandomSearch
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import drive, made_up_latency
from pytest_kerneltune.trial import Config
from pytest_kerneltune.workload import Workload

PERSISTENT = ("persistent", "interleaved")
KINDS: dict[str, Parameter] = {
    "group": integer(1, 4, default=2, when={"swizzle": True}),
    "swizzle": boolean(when={"programs": PERSISTENT}),
    "multiplier": power_of_two(1, 8, default=2, when={"programs": PERSISTENT}),
    "programs": choice("flat", *PERSISTENT),
}
SPACE = ConfigSpace(KINDS)
COUNT = 1 + 2 * 4 * (1 + 4)
"""Flat; beside each of the other two, every multiplier without a swizzle or with one in any group."""


def config(programs: str, multiplier: int = 2, swizzle: bool = False, group: int = 2) -> dict[str, Any]:
    return {"group": group, "swizzle": swizzle, "multiplier": multiplier, "programs": programs}


# -- what counts as one config


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (config("flat", 8, True, 4), config("flat")),
        (config("interleaved", 8, False, 4), config("interleaved", 8)),
        (config("interleaved", 8, True, 4), config("interleaved", 8, True, 4)),
    ],
)
def test_what_does_not_matter_is_set_to_its_default(given: Config, expected: Config) -> None:
    assert SPACE.normalised(given) == expected
    assert list(SPACE.canonical(given).items()) == list(expected.items())
    assert SPACE.key(given) == SPACE.key(expected)
    assert SPACE.contains(given)


def test_a_space_without_conditions_hands_configs_through() -> None:
    given = {"x": 3}
    assert ConfigSpace({"x": integer(0, 9)}).normalised(given) is given


def test_several_names_must_all_hold() -> None:
    space = ConfigSpace({"a": boolean(), "b": integer(0, 3), "c": integer(0, 9, when={"a": True, "b": (1, 2)})})
    matters = [(a, b) for a, b in product((False, True), range(4)) if space.normalised({"a": a, "b": b, "c": 5})["c"]]
    assert matters == [(True, 1), (True, 2)]


def test_a_condition_tells_values_apart_as_json_does() -> None:
    space = ConfigSpace({"unit": choice(1, True, 1.0, "1", (1, 2)), "x": integer(0, 9, when={"unit": [True, (1, 2)]})})
    assert [space.normalised({"unit": u, "x": 5})["x"] for u in (1, True, 1.0, "1", (1, 2))] == [0, 5, 0, 0, 5]
    assert json.loads(space.key({"unit": [1, 2], "x": 5})) == [[1, 2], 5]


def test_a_parameter_that_does_not_matter_counts_with_its_default() -> None:
    """``b`` is True by default: where it does not matter, what depends on it does."""
    space = ConfigSpace(
        {"c": integer(0, 9, when={"b": True}), "b": boolean(default=True, when={"a": True}), "a": boolean()}
    )
    assert space.normalised({"c": 5, "b": False, "a": False}) == {"c": 5, "b": True, "a": False}
    assert space.normalised({"c": 5, "b": False, "a": True}) == {"c": 0, "b": False, "a": True}


@pytest.mark.parametrize(
    "make",
    [
        lambda when: choice("a", "b", when=when),
        lambda when: boolean(when=when),
        lambda when: integer(0, 1, when=when),
        lambda when: power_of_two(1, 2, when=when),
        lambda when: permutation(2, when=when),
        lambda when: list_of(boolean(), 1, when=when),
    ],
)
def test_every_kind_takes_a_condition(make: Callable[[Any], Parameter]) -> None:
    space = ConfigSpace({"on": boolean(), "x": make({"on": True})})
    assert [c["on"] for c in space.enumerate()] == [False, True, True]


# -- what a space hands out


def test_enumeration_and_sampling_find_each_config_once() -> None:
    keys = [SPACE.key(c) for c in SPACE.enumerate()]
    assert len(keys) == len(set(keys)) == COUNT < SPACE.size
    assert sorted(SPACE.key(c) for c in SPACE.sample_new(random.Random(0), 1000, frozenset())) == sorted(keys)


def test_steps_that_change_nothing_are_left_out() -> None:
    assert SPACE.neighbours(config("flat")) == [config("persistent"), config("interleaved")]
    assert SPACE.neighbours(config("flat", 8, True, 4)) == SPACE.neighbours(config("flat"))
    assert config("interleaved", 2, True) in SPACE.neighbours(config("interleaved", 2, True, 3))
    assert config("flat") in SPACE.neighbours(config("interleaved", 2, True, 3))


def test_the_constraint_is_asked_about_normalised_configs_only() -> None:
    asked: list[Config] = []

    def where(config: Config) -> bool:
        asked.append(config)
        return bool(config["group"] * config["multiplier"] < 30)

    space = ConfigSpace(KINDS, where)
    space.canonical(config("flat", 8, True, 4))
    space.sample_new(random.Random(0), 100, frozenset())
    assert len(list(space.enumerate())) == COUNT - 2
    for each in space.enumerate():
        space.neighbours(each)
    assert all(dict(c) == SPACE.normalised(c) for c in asked)


def test_few_configs_of_a_large_product_are_gone_through() -> None:
    """One of eight families matters at a time: 8 * 1000 configs of 8 * 1000^8."""
    kinds: dict[str, Parameter] = {f"p{i}": integer(0, 999, when={"family": i}) for i in range(8)}
    space = ConfigSpace({"family": integer(0, 7), **kinds}, lambda c: c["p3"] == 777)
    assert space.is_listable
    assert [c["family"] for c in space.sample_new(random.Random(0), 10, frozenset())] == [3]
    assert space.default["p3"] == 777


def test_a_large_space_is_not_gone_through() -> None:
    kinds: dict[str, Parameter] = {f"p{i}": integer(0, 999, when={"on": True}) for i in range(8)}
    space = ConfigSpace({"on": boolean(), **kinds})
    assert not space.is_listable
    assert len(space.sample_new(random.Random(0), 100, frozenset())) == 100


def test_searches_measure_every_config_once() -> None:
    for search in (
        FiniteSearch(),
        RandomSearch(1000),
        FiniteSearch(tuple(map(dict, (config("flat", m) for m in (1, 2))))),
    ):
        found = drive(search, SPACE, made_up_latency, 1000, 0)
        assert len({SPACE.key(t.config) for t in found}) == len(found)
    assert len(drive(FiniteSearch(), SPACE, made_up_latency, 1000, 0)) == COUNT
    assert len(drive(RandomSearch(1000), SPACE, made_up_latency, 1000, 0)) == COUNT


def test_a_refused_default_gives_way_to_a_normalised_config() -> None:
    space = ConfigSpace(KINDS, lambda c: c["group"] == 4)
    assert space.default == config("persistent", 2, True, 4)


# -- errors


@pytest.mark.parametrize(
    "when", [{}, [], "mode", 5, True, {"mode": ()}, {"mode": []}, {3: "a"}, {"mode": object()}, (("mode",),)]
)
def test_a_malformed_condition_is_an_error(when: Any) -> None:
    with pytest.raises(SpaceError, match=r"when=|JSON"):
        integer(0, 1, when=when)


@pytest.mark.parametrize(
    ("kinds", "named"),
    [
        ({"x": boolean(when={"y": True})}, r"space\['x'\]: when= names 'y', which is no parameter"),
        ({"x": boolean(when={"x": True})}, r"space\['x'\]: when= names the parameter itself"),
        ({"x": boolean(when={"y": 3}), "y": integer(0, 2)}, r"space\['x'\]: .* y cannot be: 3 is not an integer"),
        (
            {"x": boolean(when={"y": (1, 2)}), "y": choice((1, 2), (3, 4))},
            r"space\['x'\]: .* y cannot be: 1 is not one",
        ),
        ({"x": boolean(when={"y": True}), "y": boolean(when={"x": True})}, "in a circle: (x -> y -> x|y -> x -> y)"),
    ],
)
def test_a_condition_that_makes_no_sense_names_the_parameter(kinds: dict[str, Parameter], named: str) -> None:
    with pytest.raises(SpaceError, match=named):
        ConfigSpace(kinds)


def test_elements_of_a_list_have_no_condition_of_their_own() -> None:
    with pytest.raises(SpaceError, match="give it to list_of"):
        list_of(boolean(when={"y": True}), 2)


class Sign:
    """A third party's kind, which knows nothing of conditions."""

    default, size, width = 1, 2, 1

    def values(self) -> list[int]:
        return [-1, 1]

    def sample(self, rng: random.Random) -> int:
        return rng.choice([-1, 1])

    def neighbours(self, value: int, radius: int = 1) -> list[int]:
        return [-value]

    def encode(self, value: int) -> list[float]:
        return [float(value)]

    def combine(self, base: int, left: int, right: int, rng: random.Random) -> int:
        return base if left == right else -base

    def canonical(self, value: Any) -> int:
        if value in (-1, 1):
            return int(value)
        raise SpaceError(f"{value!r} is no sign")

    def describe(self) -> str:
        return "-1 or 1"


def test_a_kind_that_knows_no_conditions_still_works() -> None:
    space = ConfigSpace({"sign": Sign(), "x": integer(0, 1, when={"sign": -1})})
    assert list(space.enumerate()) == [{"sign": -1, "x": 0}, {"sign": -1, "x": 1}, {"sign": 1, "x": 0}]
    assert space.describe()["sign"] == "-1 or 1"


def test_a_third_partys_kind_may_have_a_condition() -> None:
    class Conditional(Sign):
        when = {"on": True}  # noqa: RUF012 - as somebody may write it

    assert len(list(ConfigSpace({"on": boolean(), "sign": Conditional()}).enumerate())) == 3


# -- in words


def test_the_condition_is_described() -> None:
    assert SPACE.describe() == {
        "group": "integer from 1 to 4; only matters where swizzle is True",
        "swizzle": "True or False; only matters where programs is 'persistent' or 'interleaved'",
        "multiplier": "power of two from 1 to 8; only matters where programs is 'persistent' or 'interleaved'",
        "programs": "choice of 'flat', 'persistent', 'interleaved'",
    }


def test_a_condition_makes_another_kernel() -> None:
    def fingerprint(**conditions: Any) -> str:
        space = ConfigSpace({"on": boolean(), "x": integer(0, 1, **conditions)})
        return Workload("k", "test_k.py", PythonKernel(len), space).fingerprint

    found = [fingerprint(), fingerprint(when=None), fingerprint(when={"on": True}), fingerprint(when={"on": False})]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_a_prompt_says_where_a_parameter_matters() -> None:
    said = first_request(Subject(), SPACE, 5)[1].content
    assert f"At most {SPACE.size} combinations" in said
    assert (
        '- swizzle: true or false; default false; only matters where programs is "persistent" or "interleaved"' in said
    )
    assert "- group: integer from 1 to 4; default 2; only matters where swizzle is true" in said


def test_a_reply_that_sets_what_does_not_matter_is_normalised() -> None:
    reply = parse_reply(json.dumps({"configs": [config("flat", 8, True, 4), config("flat")]}), SPACE)
    assert reply.configs == (config("flat"),)
    assert reply.dropped == {"duplicate": 1}


# -- any space

kinds = st.sampled_from(
    [
        lambda when: boolean(default=True, when=when),
        lambda when: choice(1, True, "1", 1.5, default=True, when=when),
        lambda when: choice((1, 2), (1, True), None, when=when),
        lambda when: integer(-1, 1, default=1, when=when),
        lambda when: power_of_two(1, 4, when=when),
        lambda when: permutation(2, when=when),
        lambda when: list_of(boolean(), 2, when=when),
    ]
)


@st.composite
def spaces(draw: st.DrawFn) -> ConfigSpace:
    """Up to five parameters in any order, each conditioned on some of the earlier ones."""
    made: dict[str, Parameter] = {}
    for number in range(draw(st.integers(1, 5))):
        names = draw(st.sets(st.sampled_from(sorted(made)), max_size=2)) if made else set()
        when = {
            n: tuple(draw(st.lists(st.sampled_from(made[n].values() or ()), min_size=1, max_size=2)))
            for n in sorted(names)
        }
        made[f"p{number}"] = draw(kinds)(when or None)
    order = draw(st.permutations(sorted(made)))
    limit = draw(st.integers(20, 60))
    return ConfigSpace({name: made[name] for name in order}, lambda c: len(json.dumps(c)) < limit)


def rows(space: ConfigSpace) -> list[Config]:
    """Every assignment, normalised or not."""
    columns = [p.values() or () for p in space.parameters.values()]
    return [dict(zip(space.parameters, row, strict=True)) for row in product(*columns)]


@settings(deadline=None, max_examples=80)
@given(space=spaces())
def test_configs_are_equal_where_their_canonical_forms_are(space: ConfigSpace) -> None:
    forms: dict[str, str] = {}
    for row in rows(space):
        if not space.contains(row):
            assert not space.is_allowed(space.normalised(row))
            continue
        canonical = space.canonical(row)
        again = space.canonical(json.loads(json.dumps(canonical)))
        assert repr(again) == repr(canonical) == repr(space.normalised(canonical))
        assert forms.setdefault(space.key(row), repr(canonical)) == repr(canonical)
    assert len(set(forms.values())) == len(forms)
    assert sorted(map(space.key, space.enumerate())) == sorted(forms)
    assert len(space.sample_new(random.Random(0), 2000, frozenset())) == len(forms) <= space.size


@settings(deadline=None, max_examples=80)
@given(space=spaces(), seed=st.integers(0, 99), radius=st.integers(1, 2))
def test_neighbours_are_canonical_allowed_and_distinct(space: ConfigSpace, seed: int, radius: int) -> None:
    here = space.sample(random.Random(seed))
    assume(here is not None)
    assert here is not None
    around = space.neighbours(here, radius)
    keys = [space.key(n) for n in around]
    assert len({*keys, space.key(here)}) == len(keys) + 1
    assert all(repr(space.canonical(n)) == repr(n) for n in around)
    assert space.contains(space.default)
