"""Searches that learn nothing."""

from __future__ import annotations

import math
import random

import pytest

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.parameter import boolean, choice, integer, permutation, power_of_two
from pytest_kerneltune.search import Context, Effort, Search, create
from pytest_kerneltune.search.sampling import FiniteSearch, RandomSearch
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import drive
from pytest_kerneltune.trial import Batch, Config, Trial

SPACE = ConfigSpace({"tile": power_of_two(1, 512, default=64), "stages": integer(1, 8), "order": permutation(2)})
FEW: tuple[Config, ...] = tuple({"tile": t, "stages": s, "order": (1, 0)} for t, s in [(8, 3), (512, 1), (8, 2)])


def configs(
    search: Search, space: ConfigSpace = SPACE, budget: int = 10**4, prior: tuple[Trial, ...] = ()
) -> list[Config]:
    return [t.config for t in drive(search, space, lambda _: 1.0, budget, seed=5, prior=prior)]


def test_finite_search_measures_the_given_configs_once_in_order() -> None:
    assert configs(FiniteSearch((*FEW, FEW[0]))) == list(FEW)


def test_finite_search_takes_the_users_configs() -> None:
    assert configs(create("FiniteSearch", Effort.FULL, Context(configs=FEW))) == list(FEW)


def test_finite_search_normalises_configs() -> None:
    assert configs(FiniteSearch(({"order": [1, 0], "stages": 3, "tile": 8},))) == [FEW[0]]


def test_finite_search_refuses_a_config_that_does_not_fit() -> None:
    with pytest.raises(UsageError, match="stages: 9 is not an integer from 1 to 8"):
        configs(FiniteSearch(({**FEW[0], "stages": 9},)))


def test_finite_search_leaves_out_what_is_known() -> None:
    assert configs(FiniteSearch(FEW), prior=(Trial(FEW[1], latency_ms=1.0),)) == [FEW[0], FEW[2]]


def test_finite_search_without_configs_measures_the_whole_space() -> None:
    odd = ConfigSpace({"x": integer(0, 99), "y": integer(0, 99)}, lambda c: c["x"] == 7 and c["y"] % 2 == 1)
    assert configs(FiniteSearch(), odd) == list(odd.enumerate())
    assert len(configs(FiniteSearch(), SPACE)) == SPACE.size


def test_finite_search_counts_what_conditions_leave() -> None:
    own = {f"of {mode}": integer(1, 10, when={"mode": mode}) for mode in "abcdef"}
    space = ConfigSpace({"mode": choice(*"abcdef"), **own})
    assert space.size == 6 * 10**6
    assert len(configs(FiniteSearch(), space)) == 6 * 10


@pytest.mark.parametrize(
    "space",
    [
        ConfigSpace({"x": integer(0, 1000)}),
        ConfigSpace({f"p{i}": integer(0, 9) for i in range(15)}, lambda c: c["p0"] == 11),
        ConfigSpace({"order": permutation(9)}),
    ],
    ids=["just too large", "too large to count", "cannot be listed"],
)
def test_finite_search_refuses_to_measure_a_large_space(space: ConfigSpace) -> None:
    with pytest.raises(UsageError, match=r"at most 1000 configs.*configs=.*another search"):
        configs(FiniteSearch(), space)


def test_finite_search_has_a_limit_of_its_own() -> None:
    space = ConfigSpace({"x": integer(0, 9)})
    assert len(configs(FiniteSearch(limit=10), space)) == 10
    with pytest.raises(UsageError, match="at most 9 configs"):
        configs(FiniteSearch(limit=9), space)


def test_random_search_starts_with_the_default_and_the_users_configs() -> None:
    proposed = configs(RandomSearch(10, FEW))
    assert proposed[:4] == [SPACE.default, *FEW]
    assert len(proposed) == 10


@pytest.mark.parametrize(("effort", "count"), [(Effort.QUICK, 100), (Effort.FULL, 1000)])
def test_random_search_measures_as_many_as_its_effort_says(effort: Effort, count: int) -> None:
    large = ConfigSpace({"x": integer(0, 10**6)})
    assert len(configs(create("RandomSearch", effort, Context()), large)) == count


def test_random_search_measures_all_of_many_named_configs() -> None:
    named = tuple({"tile": t, "stages": s, "order": (0, 1)} for t in (1, 2, 4, 8, 16) for s in range(1, 8))
    proposed = configs(RandomSearch(40, named))
    assert proposed[:36] == [SPACE.default, *named]
    assert len(proposed) == 40


def test_random_search_ends_with_the_space() -> None:
    assert len(configs(RandomSearch(1000), SPACE)) == SPACE.size


def test_random_search_counts_no_prior_trial() -> None:
    prior = tuple(Trial(c, latency_ms=math.inf) for c in (SPACE.default, *FEW))
    proposed = configs(RandomSearch(10, FEW), prior=prior)
    assert len(proposed) == 10
    assert not any(t.config in proposed for t in prior)


def test_random_search_draws_evenly() -> None:
    proposed = configs(RandomSearch(400), ConfigSpace({"x": integer(0, 9999), "fast": boolean()}))
    assert 0.4 < sum(c["fast"] for c in proposed) / 400 < 0.6
    assert 4000 < sum(c["x"] for c in proposed) / 400 < 6000


def test_batches_name_their_search() -> None:
    for search in (RandomSearch(3), FiniteSearch(FEW)):
        batch = next(search.propose(SPACE, random.Random(0)))
        assert isinstance(batch, Batch)
        assert batch.stage == type(search).__name__
