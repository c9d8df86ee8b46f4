"""PatternSearch: steps in a good order, copies that only get faster, and a way out of every basin."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.parameter import boolean, choice, integer, power_of_two
from pytest_kerneltune.search import Context, Effort, create
from pytest_kerneltune.search.pattern import STAGE, PatternSearch
from pytest_kerneltune.search.sampling import RandomSearch
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import RecordedSpace, as_trial, drive
from pytest_kerneltune.trial import Batch, Config, Status, Trial

BOWL = ConfigSpace({f"p{i}": integer(0, 9) for i in range(6)})
RECORDED = Path(__file__).parent / "data" / "convolution_A100.json.gz"


def bowl(config: Config) -> float:
    """Least, 1 ms, where every parameter is 6."""
    return 1.0 + float(sum((x - 6) ** 2 for x in config.values())) / 10


def batches(
    search: PatternSearch, space: ConfigSpace, measure: Callable[[Config], float], prior: Sequence[Trial] = ()
) -> list[Batch]:
    proposals = search.propose(space, random.Random(0), prior)
    found: list[Any] = [next(proposals)]
    while True:
        try:
            found.append(proposals.send([as_trial(c, measure) for c in found[-1]]))
        except StopIteration:
            return found


def differing(one: Config, other: Config) -> list[str]:
    return [name for name in one if one[name] != other[name]]


def test_first_batch_is_the_initial_population() -> None:
    batch = next(PatternSearch(configs=({**BOWL.default, "p1": 9},)).propose(BOWL, random.Random(0)))
    assert list(batch[:2]) == [BOWL.default, {**BOWL.default, "p1": 9}]
    assert len(batch) == PatternSearch().initial_population
    assert isinstance(batch, Batch)
    assert batch.stage == STAGE


def test_walk_is_made_of_single_steps_from_the_best() -> None:
    search = PatternSearch(copies=1, initial_population=1, batch_size=1, max_generations=1)
    trials = drive(search, BOWL, bowl, 25, seed=0)
    base = trials[0]
    for trial in trials[1:]:
        names = differing(base.config, trial.config)
        assert len(names) == 1
        assert abs(base.config[names[0]] - trial.config[names[0]]) == 1
        base = min(base, trial, key=lambda t: t.latency_ms)


def test_direction_that_helped_is_tried_again_at_once() -> None:
    search = PatternSearch(copies=1, initial_population=1, batch_size=1, max_generations=1)
    trials = drive(search, BOWL, lambda c: 10.0 - c["p3"], 40, seed=3)
    helped = next(i for i, t in enumerate(trials) if t.config["p3"] == 1)
    assert [t.config["p3"] for t in trials[helped : helped + 9]] == list(range(1, 10))


def test_finds_the_bottom_of_a_bowl_in_a_small_part_of_a_million_configs() -> None:
    for seed in range(5):
        trials = drive(PatternSearch(), BOWL, bowl, 100, seed)
        assert min(t.latency_ms for t in trials) == 1.0


def test_batches_are_small_and_as_many_as_are_compiled_at_once() -> None:
    assert {len(b) for b in batches(PatternSearch(copies=1, max_generations=1), BOWL, bowl)[1:6]} == {3}
    parallel = PatternSearch.preset(Effort.QUICK, Context(parallel=10))
    assert parallel.batch_size == 10
    assert len(batches(parallel, BOWL, bowl)[1]) == 10


def test_slower_is_no_progress_and_the_best_is_never_lost() -> None:
    """On a plain where everything but the start is slower, every step is one from the start."""
    space = ConfigSpace({f"p{i}": integer(0, 4, default=2) for i in range(3)})
    search = PatternSearch(copies=1, initial_population=1, max_generations=1)
    trials = drive(search, space, lambda c: 1.0 if c == space.default else 2.0, 1000, seed=0)
    assert all(len(differing(space.default, t.config)) <= 2 for t in trials)
    singles = [t for t in trials if len(differing(space.default, t.config)) == 1]
    assert len(singles) == 6


def test_gain_below_the_least_counts_as_none() -> None:
    space = ConfigSpace({"x": integer(0, 99)})
    search = PatternSearch(copies=1, initial_population=1, max_generations=1, min_improvement_delta=0.01)
    one, *_ = batches(search, space, lambda c: 1.0 - 0.001 * c["x"])[1:]
    assert [c["x"] for c in one] == [1]
    trials = drive(search, space, lambda c: 1.0 - 0.001 * c["x"], 5, seed=0)
    assert len(trials) == 5, "the last ring goes on with any gain"


def test_two_ordered_parameters_move_at_once_where_one_alone_may_not() -> None:
    space = ConfigSpace(
        {"x": power_of_two(1, 256, default=16), "y": power_of_two(1, 256, default=16)},
        lambda c: c["x"] * c["y"] == 256,
    )
    assert space.neighbours(space.default) == []
    search = PatternSearch(copies=1, initial_population=1, batch_size=1, max_generations=1)
    trials = drive(search, space, lambda c: float(c["y"]), 100, seed=0)
    assert len(trials) <= 6, "16 is tried first, then at most once the wrong way, then 8, 4, 2, 1"
    assert trials[-1].config == {"x": 256, "y": 1}


def test_pairs_are_few_in_a_space_of_many_parameters() -> None:
    space = ConfigSpace({f"p{i:02}": integer(0, 8, default=4) for i in range(20)})
    search = PatternSearch(copies=1, initial_population=1, max_generations=1)
    trials = drive(search, space, lambda c: 1.0 if c == space.default else 2.0, 1000, seed=0)
    pairs = [t for t in trials if len(differing(space.default, t.config)) == 2]
    assert len(pairs) <= 15
    assert len(trials) <= 1 + 40 + 15


def test_values_without_order_are_all_neighbours() -> None:
    space = ConfigSpace({"mode": choice("a", "b", "c", "d"), "pad": boolean(), "n": choice(None, 1, 2)})
    search = PatternSearch(copies=1, initial_population=1, max_generations=1)
    asked = [c for b in batches(search, space, lambda c: 1.0 if c == space.default else 2.0)[1:] for c in b]
    assert {space.key(c) for c in asked} == {space.key(c) for c in space.neighbours(space.default)}


def test_parameter_that_does_not_matter_is_not_moved() -> None:
    space = ConfigSpace({"split": boolean(), "parts": integer(1, 9, when={"split": True})})
    search = PatternSearch(copies=1, initial_population=1, batch_size=1, max_generations=1)
    trials = drive(search, space, lambda c: 10.0 - c["split"] - c["parts"] / 10, 100, seed=0)
    assert [tuple(t.config.values()) for t in trials] == [(False, 1), *((True, n) for n in range(1, 10))]


def test_near_values_come_before_far_ones() -> None:
    space = ConfigSpace({"n": choice(*range(10, 200, 10), default=100)})
    search = PatternSearch(copies=1, initial_population=1, batch_size=2, max_generations=1)
    assert sorted(c["n"] for c in batches(search, space, lambda _: 1.0)[1]) == [90, 110]


def test_huge_range_is_not_listed() -> None:
    space = ConfigSpace({"n": integer(0, 10**15, default=10**14), "pad": boolean()})
    trials = drive(PatternSearch(), space, lambda c: 1.0 + abs(c["n"] - 10**14 - 20), 100, seed=0)
    assert min(t.latency_ms for t in trials) == 1.0


def test_search_leaves_a_basin_that_it_has_used_up() -> None:
    def two_basins(c: Config) -> float:
        x, y = c["x"], c["y"]
        return float(min(2 + abs(x - 20) + abs(y - 20), 1 + abs(x - 180) + abs(y - 180)))

    space = ConfigSpace({"x": integer(0, 199, default=20), "y": integer(0, 199, default=20)})
    search = PatternSearch(initial_population=1, max_generations=40)
    assert [min(t.latency_ms for t in drive(search, space, two_basins, 3000, seed)) for seed in range(3)] == [1.0] * 3


def test_search_ends_with_its_generations() -> None:
    few, many = (len(drive(PatternSearch(max_generations=n), BOWL, bowl, 10**4, seed=0)) for n in (1, 6))
    assert few < many < 1000


def test_kernel_that_never_works_is_given_up() -> None:
    trials = drive(PatternSearch(max_generations=4), BOWL, lambda _: float("inf"), 10**4, seed=0)
    assert len(trials) == 4 * PatternSearch().initial_population


def test_whole_ring_of_the_winner_is_measured_in_the_end() -> None:
    rough = RecordedSpace.load(RECORDED)
    trials = drive(PatternSearch(max_generations=1), rough.space, rough.measure, 10**4, seed=1)
    best = min(trials, key=lambda t: t.latency_ms)
    known = {rough.space.key(t.config) for t in trials}
    assert all(rough.space.key(c) in known for c in rough.space.neighbours(best.config))


def test_goes_on_from_prior_trials() -> None:
    prior = [Trial(dict.fromkeys(BOWL.names, 5), latency_ms=1.6), Trial(dict.fromkeys(BOWL.names, 0), Status.CRASH)]
    prior += [Trial({**BOWL.default, "p0": i}, latency_ms=30.0 + i) for i in range(1, 10)]
    search = PatternSearch(copies=1)
    assert all(len(differing(prior[0].config, c)) == 1 for c in batches(search, BOWL, bowl, prior)[0])


def test_finishing_rounds_come_last() -> None:
    space = ConfigSpace({"x": integer(0, 9), "y": integer(0, 9)})
    last = batches(PatternSearch(finishing_rounds=1), space, lambda c: 10.0 - c["x"])[-1]
    assert isinstance(last, Batch)
    assert last.stage == STAGE


def test_quick_effort_spends_less_than_full() -> None:
    efforts = (Effort.QUICK, Effort.FULL)
    quick, full = (len(drive(create("PatternSearch", e, Context()), BOWL, bowl, 10**4, seed=0)) for e in efforts)
    assert 100 <= quick < full


@pytest.mark.parametrize("option", ["initial_population", "copies", "max_generations", "radius", "batch_size"])
def test_counts_below_one_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=f"PatternSearch: {option}=0 must be at least 1"):
        PatternSearch(**{option: 0})  # type: ignore[arg-type]


def test_negative_least_gain_is_refused() -> None:
    with pytest.raises(UsageError, match=r"min_improvement_delta=-0\.1 must be at least 0"):
        PatternSearch(min_improvement_delta=-0.1)


def test_finds_good_configs_of_a_real_kernel_sooner_than_random_sampling() -> None:
    recorded = RecordedSpace.load(RECORDED)
    ours, theirs = (
        [[t.latency_ms for t in drive(s, recorded.space, recorded.measure, 100, seed)] for seed in range(9)]
        for s in (PatternSearch(), RandomSearch(100))
    )
    for budget in (25, 50, 100):
        mine, chance = (median(min(run[:budget]) for run in runs) for runs in (ours, theirs))
        assert mine < chance
