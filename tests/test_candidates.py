"""Which configs the models of a search are asked about."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean

import numpy as np
import pytest

from pytest_kerneltune.parameter import boolean, choice, integer, power_of_two
from pytest_kerneltune.search.candidates import Candidates
from pytest_kerneltune.search.coordinates import Coordinates, Floats, Points
from pytest_kerneltune.search.history import History
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import SPACES, as_trial, made_up_latency
from pytest_kerneltune.trial import Config, Status, Trial

LINE = ConfigSpace({"x": power_of_two(1, 2**50)})
HUGE = SPACES["10^15 configs"]()


def candidates(
    space: ConfigSpace,
    history: History | None = None,
    *,
    count: int = 100,
    copies: int = 5,
    radius: int = 2,
    seed: int = 0,
) -> Candidates:
    known = History(space) if history is None else history
    return Candidates(space, random.Random(seed), Coordinates(space), known, count, copies, radius)


def measured(space: ConfigSpace, count: int) -> History:
    configs = space.sample_new(random.Random(7), count, frozenset())
    return History(space, [as_trial(c, made_up_latency) for c in configs])


def best(source: Candidates, score: Callable[[Points], Floats]) -> Config | None:
    """The first choice among candidates gathered anew."""
    source.gather()
    return source.best(score)


def far_from_origin(points: Points) -> Floats:
    return np.asarray(points.sum(axis=1))


def indifferent(points: Points) -> Floats:
    return np.zeros(len(points))


class Asked:
    """A score that remembers which points it was asked about."""

    def __init__(self) -> None:
        self.first: set[tuple[float, ...]] = set()  # before climbing
        self.seen: set[tuple[float, ...]] = set()

    def __call__(self, points: Points) -> Floats:
        self.seen |= set(map(tuple, points.tolist()))
        self.first = self.first or set(self.seen)
        return indifferent(points)


def test_best_is_the_highest_score_of_a_space_that_can_be_searched_whole() -> None:
    space = ConfigSpace({"x": integer(0, 7), "y": choice("a", "b", "c"), "z": boolean()})
    weights = np.random.default_rng(3).normal(size=Coordinates(space).width)

    def score(points: Points) -> Floats:
        return np.asarray(points @ weights)

    configs = list(space.enumerate())
    expected = configs[int(score(Coordinates(space).points(configs)).argmax())]
    for known in (0, 3):
        history = History(space, [Trial(c, latency_ms=1.0) for c in configs[:known]])
        assert best(candidates(space, history), score) == expected


@pytest.mark.parametrize("name", [name for name in SPACES if name != "no parameters"])
def test_best_is_allowed_and_neither_measured_nor_taken(name: str) -> None:
    space = SPACES[name]()
    history = measured(space, 5)
    source, taken = candidates(space, history), dict[str, Config]()
    source.gather()
    for _ in range(12):
        config = source.best(far_from_origin)
        if config is None:
            break
        key = space.key(config)
        assert key not in history.keys
        assert key not in taken
        assert dict(space.canonical(config)) == dict(config)
        taken[key] = config
    assert len(taken) + len(history) >= min(16, space.size)  # 16 are allowed where there are few of many


def test_measured_configs_are_no_candidates_though_they_were_drawn_before() -> None:
    space = ConfigSpace({"x": integer(0, 30)})
    history = History(space)
    source = candidates(space, history)
    for number in range(31):
        config = best(source, far_from_origin)
        assert config is not None
        assert space.key(config) not in history.keys, number
        history.learn([Trial(config, Status.CRASH if number % 2 else Status.OK, latency_ms=1.0 + number)])
    assert best(source, far_from_origin) is None


def test_a_space_of_which_all_is_measured_or_taken_has_no_candidates() -> None:
    space = SPACES["small"]()
    configs = list(space.enumerate())
    assert best(candidates(space, History(space, [Trial(c, latency_ms=1.0) for c in configs])), indifferent) is None
    half = History(space, [Trial(c, latency_ms=1.0) for c in configs[::2]])
    source = candidates(space, half)
    source.gather()
    chosen = [source.best(indifferent) for _ in configs[1::2]]
    assert sorted(space.key(c) for c in chosen if c is not None) == sorted(space.key(c) for c in configs[1::2])
    assert source.best(indifferent) is None
    assert best(source, indifferent) in configs[1::2]  # not measured yet


def test_climbs_from_the_best_config_to_better_ones_than_chance_finds() -> None:
    history = measured(HUGE, 20)
    best_known = max(far_from_origin(Coordinates(HUGE).points([t.config for t in history.trials])))
    found = best(candidates(HUGE, history), far_from_origin)
    assert found is not None
    drawn = HUGE.sample_new(random.Random(1), 100, frozenset())
    by_chance = max(far_from_origin(Coordinates(HUGE).points(drawn)))
    assert far_from_origin(Coordinates(HUGE).points([found]))[0] > max(by_chance, best_known)


def test_random_candidates_are_kept_but_for_a_few() -> None:
    source = candidates(HUGE)
    rounds: list[set[tuple[float, ...]]] = []
    for _ in range(30):
        asked = Asked()
        best(source, asked)
        rounds.append(asked.first)
    assert all(len(first) == 100 for first in rounds)
    assert all(50 <= len(before & after) < 100 for before, after in pairwise(rounds))
    assert len(rounds[0] & rounds[-1]) < 50


def test_surroundings_of_the_best_configs_are_candidates() -> None:
    history = measured(HUGE, 20)
    asked = Asked()
    best(candidates(HUGE, history, count=1, copies=2), asked)
    for trial in history.best(2):
        points = Coordinates(HUGE).points(HUGE.neighbours(trial.config, 2))
        assert set(map(tuple, points.tolist())) <= asked.seen


def test_failed_configs_are_not_gone_back_to() -> None:
    failures = [Trial(c, Status.CRASH) for c in HUGE.sample_new(random.Random(7), 20, frozenset())]
    asked = Asked()
    best(candidates(HUGE, History(HUGE, failures), count=50), asked)
    rings = {tuple(p) for t in failures for p in Coordinates(HUGE).points(HUGE.neighbours(t.config)).tolist()}
    assert not rings & asked.seen or len(rings & asked.seen) < len(rings) / 20


def test_ties_are_broken_by_the_rng_alone() -> None:
    def chosen(seed: int) -> list[Config | None]:
        source = candidates(HUGE, measured(HUGE, 5), seed=seed)
        return [best(source, indifferent) for _ in range(3)]

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)


@pytest.mark.parametrize("name", ["few allowed", "few allowed of many"])
def test_a_constraint_that_allows_little_leaves_candidates_nevertheless(name: str) -> None:
    space = SPACES[name]()
    history = History(space, [Trial(space.default, latency_ms=1.0)])
    source = candidates(space, history)
    found = []
    for number in range(10):
        config = best(source, indifferent)
        assert config is not None
        assert space.contains(config)
        history.learn([Trial(config, latency_ms=2.0 + number)])
        found.append(space.key(config))
    assert len(set(found)) == 10


def test_values_that_do_not_matter_stay_at_their_defaults() -> None:
    space = SPACES["conditions"]()
    history = measured(space, 10)
    source = candidates(space, history)
    for number in range(30):
        config = best(source, indifferent)
        assert config is not None
        assert space.normalised(config) == config
        history.learn([Trial(config, latency_ms=0.5 + number)])


def spread(
    space: ConfigSpace, count: int, known: Sequence[Config] = (), history: History | None = None
) -> list[Config]:
    return candidates(space, history).spread(count, known)


def test_spread_configs_are_far_from_what_is_known() -> None:
    known: list[Config] = [{"x": 1 << e} for e in range(10)]
    exponents = [c["x"].bit_length() - 1 for c in spread(LINE, 2, known)]
    assert max(exponents) > 35
    assert min(exponents) > 15


def test_spread_configs_are_farther_from_each_other_than_random_ones() -> None:
    space = SPACES["every kind"]()
    coordinates = Coordinates(space)

    def nearest(configs: Sequence[Config]) -> float:
        points = coordinates.points(configs)
        distances = np.abs(points[:, None] - points[None]).sum(axis=2) + np.diag([np.inf] * len(points))
        return float(distances.min())

    far = [nearest(candidates(space, seed=seed).spread(6, [])) for seed in range(10)]
    drawn = [nearest(space.sample_new(random.Random(seed), 6, frozenset())) for seed in range(10)]
    assert fmean(far) > 1.3 * fmean(drawn)


def test_spread_configs_are_new_and_distinct() -> None:
    space = ConfigSpace({"x": integer(0, 9)}, lambda c: c["x"] != 5)
    history = History(space, [Trial({"x": 0}, Status.CRASH), Trial({"x": 9}, latency_ms=1.0)])
    configs = spread(space, 100, [{"x": 1}, {"x": 2}], history)
    assert sorted(c["x"] for c in configs) == [3, 4, 6, 7, 8]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_spread_gives_as_many_as_it_is_asked_for(count: int) -> None:
    assert len(spread(HUGE, count)) == count


def test_spread_gives_none_where_everything_is_known() -> None:
    space = SPACES["two configs"]()
    assert spread(space, 3, list(space.enumerate())) == []


def test_a_start_has_usual_launch_options_where_there_are_enough_of_them() -> None:
    space = ConfigSpace({"size": power_of_two(1, 1024), "num_warps": power_of_two(1, 32), "num_stages": integer(1, 6)})
    found = candidates(space).spread(10, [])
    assert {c["num_warps"] for c in found} <= {4, 8}
    assert {c["num_stages"] for c in found} <= {2, 3, 4}
    assert len({c["size"] for c in found}) > 3
