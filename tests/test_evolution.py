"""Differential evolution, the hybrid with a forest, and the forest that it asks."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

import numpy as np
import pytest

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.parameter import boolean, choice, integer
from pytest_kerneltune.search import Context, Effort, create
from pytest_kerneltune.search.evolution import DESurrogateHybrid, DifferentialEvolutionSearch
from pytest_kerneltune.search.history import History
from pytest_kerneltune.search.regression import Surrogate, levels
from pytest_kerneltune.search.sampling import RandomSearch
from pytest_kerneltune.search.trees import grow_regression_trees
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import RecordedSpace, drive
from pytest_kerneltune.trial import Batch, Config, Status, Trial

BOWL = ConfigSpace({f"p{i}": integer(0, 9) for i in range(6)})
RECORDED = Path(__file__).parent / "data" / "convolution_A100.json.gz"
BOTH = pytest.mark.parametrize("kind", [DifferentialEvolutionSearch, DESurrogateHybrid])
Kind = type[DifferentialEvolutionSearch]


def bowl(config: Config) -> float:
    """Least, 1 ms, where every parameter is 6."""
    return 1.0 + float(sum((x - 6) ** 2 for x in config.values())) / 10


def members(*values: int) -> list[Trial]:
    configs = [dict.fromkeys(BOWL.names, value) for value in values]
    return [Trial(c, latency_ms=bowl(c)) for c in configs]


@BOTH
def test_first_batch_is_the_initial_population(kind: Kind) -> None:
    mine = {**BOWL.default, "p1": 9}
    batch = next(kind(population_size=7, configs=(mine,)).propose(BOWL, random.Random(0)))
    assert list(batch[:2]) == [BOWL.default, mine]
    assert len(batch) == 7
    assert isinstance(batch, Batch)
    assert batch.stage == kind.__name__


@BOTH
def test_gets_better_than_chance_on_a_bowl(kind: Kind) -> None:
    ours, theirs = (
        [min(t.latency_ms for t in drive(s, BOWL, bowl, 120, seed)) for seed in range(2)]
        for s in (kind(), RandomSearch(120))
    )
    assert fmean(ours) < fmean(theirs) - 0.2


def test_child_takes_parameters_of_the_mutant_and_its_target_only() -> None:
    """The members differ by 2 or 0 everywhere, and a mutant is one step from a good member."""
    prior = members(4, 6, 8, 2)
    search = DifferentialEvolutionSearch(population_size=4, crossover_rate=0.5)
    proposals = search.propose(BOWL, random.Random(0), prior)
    assert list(next(proposals)) == [BOWL.default]
    children = proposals.send([Trial(BOWL.default, latency_ms=99.0)])
    assert len(children) == 3
    from_good = {5, 4, 3, 7, 6}
    for child in children:
        assert any(set(child.values()) <= from_good | {target} for target in (2, 4, 6, 8))


def test_without_crossover_a_child_differs_from_its_target_in_one_parameter() -> None:
    prior = members(4, 6, 8, 2)
    proposals = DifferentialEvolutionSearch(population_size=4, crossover_rate=0).propose(BOWL, random.Random(0), prior)
    next(proposals)
    for child in proposals.send([Trial(BOWL.default, latency_ms=99.0)]):
        assert any(sum(v != target for v in child.values()) == 1 for target in (2, 4, 6, 8))


def test_members_that_no_child_beats_stay() -> None:
    """Every child is slower: all later children still come from the first members, until they are renewed."""
    prior = members(5, 7, 3, 9)
    search = DifferentialEvolutionSearch(population_size=4, max_generations=2)
    trials = drive(search, BOWL, lambda _: 50.0, 9, seed=0, prior=prior)
    possible = {value + step for value in (5, 7) for step in (-1, 0, 1)} | {3, 9}
    assert all(set(t.config.values()) <= possible for t in trials[1:])


def test_faster_children_become_members() -> None:
    trials = drive(DifferentialEvolutionSearch(population_size=4), BOWL, lambda c: 100.0 - sum(c.values()), 60, seed=0)
    assert max(sum(t.config.values()) for t in trials[-10:]) > max(sum(t.config.values()) for t in trials[:4])


@BOTH
@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_populations_work(kind: Kind, size: int) -> None:
    trials = drive(kind(population_size=size, max_generations=60), BOWL, bowl, 40, seed=0)
    assert len({BOWL.key(t.config) for t in trials}) == len(trials) == 40


@BOTH
def test_tiny_spaces_are_measured_whole(kind: Kind) -> None:
    for space in (ConfigSpace({"pad": boolean()}), ConfigSpace({}), ConfigSpace({"mode": choice("a", "b", "c")})):
        assert len(drive(kind(), space, lambda _: 1.0, 100, seed=0)) == space.size


@BOTH
def test_constraint_that_refuses_most_children_is_kept(kind: Kind) -> None:
    space = ConfigSpace(BOWL.parameters, lambda c: sum(c.values()) % 7 == 0)
    trials = drive(kind(), space, bowl, 60, seed=0)
    assert len(trials) == 60
    assert all(space.is_allowed(t.config) for t in trials)


def test_search_ends_with_its_generations() -> None:
    search = DifferentialEvolutionSearch(population_size=5, max_generations=3)
    assert len(drive(search, BOWL, bowl, 10**4, seed=0)) == 5 + 3 * 5


def test_search_ends_early_only_with_patience() -> None:
    patient = DifferentialEvolutionSearch(population_size=5, max_generations=40, batch_size=5)
    trials = drive(replace(patient, patience=2), BOWL, lambda _: 1.0, 10**4, seed=0)
    assert len(trials) == 5 + 2 * 5
    assert len(drive(patient, BOWL, lambda _: 1.0, 10**4, seed=0)) >= 5 + 40 * 5


def test_population_is_renewed_when_it_no_longer_gets_better() -> None:
    search = DifferentialEvolutionSearch(population_size=6, max_generations=5)
    proposals = search.propose(BOWL, random.Random(0))
    notes: list[str] = []
    batch = next(proposals)
    for _ in range(14):
        assert isinstance(batch, Batch)
        notes.append(batch.note)
        try:
            batch = proposals.send([Trial(c, latency_ms=1.0) for c in batch])
        except StopIteration:
            break
    assert [n for n in notes if n] == ["a new population around the best"]


def test_prior_trials_are_members() -> None:
    prior = members(5, 7, 3, 9)
    batches = DifferentialEvolutionSearch(population_size=4).propose(BOWL, random.Random(0), prior)
    assert list(next(batches)) == [BOWL.default]


@BOTH
def test_presets(kind: Kind) -> None:
    quick, full = (create(kind.__name__, e, Context(parallel=12)) for e in (Effort.QUICK, Effort.FULL))
    assert isinstance(quick, kind)
    assert isinstance(full, kind)
    assert quick.max_generations < full.max_generations
    assert quick.batch_size == full.batch_size == 12
    assert quick.population_size * quick.max_generations >= 150


@pytest.mark.parametrize(
    "options",
    [
        {"population_size": 0},
        {"max_generations": 0},
        {"batch_size": 0},
        {"patience": 0},
        {"crossover_rate": -0.1},
        {"crossover_rate": 1.1},
        {"crossover_rate": math.nan},
        {"min_improvement_delta": -1},
        {"candidate_ratio": 0},
        {"surrogate_threshold": 0},
        {"refit_frequency": 0},
        {"n_estimators": 0},
    ],
)
def test_options_out_of_range_are_refused_by_name(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"DESurrogateHybrid: {next(iter(options))}="):
        DESurrogateHybrid(**options)  # type: ignore[arg-type]


def test_failures_count_as_the_slowest() -> None:
    config = BOWL.default
    trials = [Trial(config, latency_ms=math.e), Trial(config, Status.CRASH), Trial(config, latency_ms=1.0)]
    assert levels(trials).tolist() == [1.0, 1.0, 0.0]


def test_latency_of_zero_is_the_fastest() -> None:
    zero, one = levels([Trial(BOWL.default, latency_ms=0.0), Trial(BOWL.default, latency_ms=1.0)])
    assert np.isfinite(zero)
    assert zero < one


def test_trees_fit_what_they_saw_and_are_the_same_for_the_same_seed() -> None:
    rows = np.arange(40, dtype=np.float32).reshape(-1, 1)
    targets = np.arange(40) / 10.0
    first, again, other = (grow_regression_trees(rows, targets, 20, seed) for seed in (1, 1, 2))
    said = [np.mean([tree.predict(rows)[:, 0] for tree in trees], axis=0) for trees in (first, again, other)]
    assert len(first) == 20
    assert np.abs(said[0] - targets).max() < 0.5
    assert (said[0] == said[1]).all()
    assert (said[0] != said[2]).any()


def some_history(trials: Sequence[Trial]) -> History:
    return History(BOWL, trials)


def test_ranking_prefers_what_looks_fast_and_avoids_where_everything_failed() -> None:
    configs = BOWL.sample_new(random.Random(0), 120, set())
    known = [Trial(c, Status.CRASH) if c["p5"] > 6 else Trial(c, latency_ms=1.0 + c["p0"]) for c in configs]
    surrogate = Surrogate(DESurrogateHybrid(), BOWL, random.Random(0))
    fast, slow, failing = ({**dict.fromkeys(BOWL.names, 4), "p0": x, "p5": y} for x, y in ((0, 3), (9, 3), (0, 9)))
    order = surrogate.ranking(some_history(known), [slow, failing, fast])
    assert order[0] == 2
    assert sorted(order) == [0, 1, 2]


def test_ranking_is_random_while_little_is_known_or_nothing_works() -> None:
    configs = BOWL.sample_new(random.Random(0), 30, set())
    for known in ([Trial(c, latency_ms=bowl(c)) for c in configs[:5]], [Trial(c, Status.CRASH) for c in configs]):
        surrogate = Surrogate(DESurrogateHybrid(), BOWL, random.Random(3))
        orders = [surrogate.ranking(some_history(known), configs) for _ in range(2)]
        assert sorted(orders[0]) == sorted(orders[1]) == list(range(30))
        assert orders[0] != orders[1]


def test_forest_is_grown_anew_after_further_trials_only() -> None:
    configs = BOWL.sample_new(random.Random(0), 60, set())
    options = DESurrogateHybrid(refit_frequency=5)
    history = some_history([Trial(c, latency_ms=bowl(c)) for c in configs[:30]])
    rng = random.Random(0)
    surrogate = Surrogate(options, BOWL, rng)
    surrogate.ranking(history, configs[40:])
    grown = rng.getstate()
    history.learn([Trial(c, latency_ms=bowl(c)) for c in configs[30:34]])
    surrogate.ranking(history, configs[40:])
    assert rng.getstate() == grown
    history.learn([Trial(configs[34], latency_ms=bowl(configs[34]))])
    surrogate.ranking(history, configs[40:])
    assert rng.getstate() != grown


@BOTH
def test_finds_good_configs_of_a_real_kernel_sooner_than_random_sampling(kind: Kind) -> None:
    recorded = RecordedSpace.load(RECORDED)
    ours, theirs = (
        [min(t.latency_ms for t in drive(s, recorded.space, recorded.measure, 100, seed)) for seed in range(3)]
        for s in (kind(), RandomSearch(100))
    )
    assert median(ours) < median(theirs)
