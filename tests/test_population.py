"""What the searches with an initial population share."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest

from pytest_kerneltune.errors import SpaceError, UsageError
from pytest_kerneltune.parameter import boolean, choice, integer
from pytest_kerneltune.search import Context, Effort, Proposals
from pytest_kerneltune.search.history import History
from pytest_kerneltune.search.population import PopulationSearch, Strategy, best_related
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import as_trial
from pytest_kerneltune.trial import Config, Status, Trial

SPACE = ConfigSpace({"x": integer(0, 9), "y": integer(0, 9), "pad": boolean()})
RELATED = (
    (Trial({"x": 1, "y": 0, "pad": True}, latency_ms=3.0), Trial({"x": 2, "y": 0, "pad": True}, latency_ms=1.0)),
    (
        Trial({"x": 3, "y": 0, "pad": True}, latency_ms=70.0),
        Trial({"x": 2, "y": 0, "pad": True}, latency_ms=80.0),
        Trial({"x": 5, "y": 0, "pad": True}, Status.CRASH),
        Trial({"x": 4, "y": 0, "pad": True}, latency_ms=90.0),
    ),
)


def at(x: int, y: int = 0, *, pad: bool = False) -> Config:
    return {"x": x, "y": y, "pad": pad}


def start(search: PopulationSearch, size: int, prior: Sequence[Trial] = (), space: ConfigSpace = SPACE) -> list[Config]:
    return search.starting_configs(space, random.Random(0), History(space, prior), size)


def measured(proposals: Proposals, measure: Callable[[Config], float]) -> list[list[Config]]:
    """The batches of ``proposals``."""
    batches: list[list[Config]] = []
    batch = next(proposals, None)
    while batch is not None:
        batches.append(list(batch))
        try:
            batch = proposals.send([as_trial(c, measure) for c in batch])
        except StopIteration:
            batch = None
    return batches


def test_population_is_the_default_the_users_configs_and_random_ones() -> None:
    configs = start(PopulationSearch(configs=(at(9), at(4), at(0))), 8)
    assert configs[:3] == [SPACE.default, at(9), at(4)]
    assert len(configs) == len({SPACE.key(c) for c in configs}) == 8


def test_named_configs_are_all_in_a_smaller_population() -> None:
    assert start(PopulationSearch(configs=(at(9), at(4))), 1) == [SPACE.default, at(9), at(4)]


def test_users_config_that_does_not_fit_is_refused() -> None:
    with pytest.raises(SpaceError, match="x: 10"):
        start(PopulationSearch(configs=(at(10),)), 3)


@pytest.mark.parametrize(("known", "expected"), [(0, 8), (3, 5), (8, 1), (30, 1)])
def test_prior_trials_count_as_part_of_the_population(known: int, expected: int) -> None:
    prior = [Trial(at(i % 10, 1 + i // 10), latency_ms=1.0) for i in range(known)]
    assert len(start(PopulationSearch(), 8, prior)) == expected


def test_what_was_measured_is_not_in_the_population() -> None:
    configs = start(PopulationSearch(configs=(at(3),)), 5, [Trial(SPACE.default, Status.CRASH), Trial(at(3))])
    assert SPACE.default not in configs
    assert at(3) not in configs
    assert len(configs) == 3


def test_space_smaller_than_the_population_is_measured_whole() -> None:
    space = ConfigSpace({"pad": boolean()})
    assert sorted(c["pad"] for c in start(PopulationSearch(), 8, space=space)) == [False, True]


def test_best_available_are_related_configs_in_turn() -> None:
    search = PopulationSearch(
        initial_population_strategy=Strategy.FROM_BEST_AVAILABLE, pad_random=False, related=RELATED
    )
    fastest = [at(x, pad=True) for x in (2, 3, 1, 4)]
    assert start(search, 9) == [SPACE.default, *fastest]
    assert start(search, 2) == [SPACE.default, *fastest[:2]]


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (2, 1), (5, 3), (9, 4)])
def test_best_available_are_half_of_a_padded_population(size: int, expected: int) -> None:
    search = PopulationSearch(initial_population_strategy=Strategy.FROM_BEST_AVAILABLE, related=RELATED)
    fastest = [at(x, pad=True) for x in (2, 3, 1, 4)]
    configs = start(search, size)
    assert configs[: 1 + expected] == [SPACE.default, *fastest[:expected]]
    assert len(configs) == max(size, 1 + expected)
    assert search.used_related == RELATED


def test_at_most_twenty_related_configs_are_started_from() -> None:
    many = tuple(Trial(at(i % 10, i // 10, pad=True), latency_ms=1.0 + i) for i in range(100))
    search = PopulationSearch(initial_population_strategy=Strategy.FROM_BEST_AVAILABLE, related=(many,))
    assert search.named_configs(SPACE, History(SPACE), 90) == [SPACE.default, *(t.config for t in many[:20])]


def test_from_random_asks_no_related_trials() -> None:
    search = PopulationSearch(related=RELATED)
    assert at(2, pad=True) not in start(search, 3)
    assert search.used_related == ()


def test_best_related_leaves_out_what_failed_or_is_of_another_space() -> None:
    odd = (Trial({"z": 1}, latency_ms=0.1), Trial({"x": 99, "y": 0, "pad": True}, latency_ms=0.1))
    assert best_related(SPACE, (odd, *RELATED), 3) == [at(x, pad=True) for x in (2, 3, 1)]
    assert best_related(SPACE, (), 3) == []


def test_presets_hand_on_what_the_user_named() -> None:
    context = Context(configs=(at(1),), related=RELATED)
    quick, full = (PopulationSearch(**PopulationSearch.shared_options(e, context)) for e in (Effort.QUICK, Effort.FULL))
    assert quick.configs == full.configs == (at(1),)
    assert quick.related == RELATED
    assert (quick.initial_population_strategy, full.initial_population_strategy) == tuple(reversed(Strategy))


def test_unknown_strategy_is_refused() -> None:
    with pytest.raises(UsageError, match="'from_scratch' is not one of from_random, from_best_available"):
        PopulationSearch(initial_population_strategy="from_scratch")  # type: ignore[arg-type]


@pytest.mark.parametrize("rounds", [-1, math.nan])
def test_negative_finishing_rounds_are_refused(rounds: int) -> None:
    with pytest.raises(UsageError, match=r"finishing_rounds=\S+ must be at least 0"):
        PopulationSearch(finishing_rounds=rounds)


def test_polish_goes_down_by_whole_rings() -> None:
    def latency(c: Config) -> float:
        return float(1 + abs(c["x"] - 4) + abs(c["y"] - 5) + c["pad"])

    history = History(SPACE, [Trial(at(4, 3), latency_ms=latency(at(4, 3)))])
    batches = measured(PopulationSearch().polish(SPACE, history, 1, "P"), latency)
    assert history.best(1)[0].config == at(4, 5)
    assert len(batches) == 3
    assert not history.unmeasured(SPACE.neighbours(at(4, 5)))


def test_polish_has_nothing_to_do_while_nothing_works() -> None:
    history = History(SPACE, [Trial(at(4, 3), Status.CRASH)])
    assert measured(PopulationSearch().polish(SPACE, history, 1, "P"), lambda _: 1.0) == []


def test_finish_resets_what_does_no_harm() -> None:
    def latency(c: Config) -> float:
        return 1.0 if c["x"] == 7 else 5.0

    history = History(SPACE, [Trial(at(7, 3, pad=True), latency_ms=1.0)])
    batches = measured(PopulationSearch(finishing_rounds=3).finish(SPACE, history, "F"), latency)
    assert batches == [[at(0, 3, pad=True), at(7, 0, pad=True), at(7, 3)], [at(7)]]


def test_finish_goes_on_while_resets_help() -> None:
    def latency(c: Config) -> float:
        return float(1 + c["y"] + c["pad"] + (c["x"] != 7 and c["y"] > 0))

    history = History(SPACE, [Trial(at(7, 3, pad=True), latency_ms=latency(at(7, 3, pad=True)))])
    measured(PopulationSearch(finishing_rounds=5).finish(SPACE, history, "F"), latency)
    assert SPACE.key(at(0)) in history.keys


def test_finish_does_nothing_by_default_or_where_nothing_works() -> None:
    history = History(SPACE, [Trial(at(7, 3), latency_ms=1.0)])
    assert measured(PopulationSearch().finish(SPACE, history, "F"), lambda _: 1.0) == []
    broken = History(SPACE, [Trial(at(7, 3), Status.CRASH)])
    assert measured(PopulationSearch(finishing_rounds=2).finish(SPACE, broken, "F"), lambda _: 1.0) == []


def test_finish_proposes_allowed_configs_only() -> None:
    space = ConfigSpace({"x": integer(0, 9), "mode": choice("a", "b")}, lambda c: c["mode"] == "a" or c["x"] == 5)
    history = History(space, [Trial({"x": 5, "mode": "b"}, latency_ms=1.0)])
    batches = measured(PopulationSearch(finishing_rounds=2).finish(space, history, "F"), lambda _: 2.0)
    assert batches == [[{"x": 5, "mode": "a"}]]
