"""LFBOPatternSearch and LFBOTreeSearch, with the rows, trees and edits that they are made of."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
import pytest

from pytest_kerneltune.comparison import expected_best
from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.parameter import Parameter, boolean, choice, integer, list_of, permutation, power_of_two
from pytest_kerneltune.search import Context, Effort, create
from pytest_kerneltune.search.classifier import fit
from pytest_kerneltune.search.edits import Editor
from pytest_kerneltune.search.features import Encoder, PairEncoder
from pytest_kerneltune.search.forest import LFBOPatternSearch, LFBOTreeSearch
from pytest_kerneltune.search.trees import Forest, flatten, grow_trees
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import RecordedSpace, drive
from pytest_kerneltune.trial import Batch, Config, Status, Trial

NAMES = ("LFBOPatternSearch", "LFBOTreeSearch")
BOTH = pytest.mark.parametrize("kind", [LFBOPatternSearch, LFBOTreeSearch])
Kind: TypeAlias = type[LFBOPatternSearch] | type[LFBOTreeSearch]

BOWL = ConfigSpace({f"p{i}": integer(0, 9) for i in range(6)})
RECORDED = Path(__file__).parent / "data" / "convolution_A100.json.gz"


def bowl(config: Config) -> float:
    """Least, 1 ms, where every parameter is 6."""
    return 1.0 + float(sum((x - 6) ** 2 for x in config.values())) / 10


def some_forest(rows: Any) -> tuple[list[Any], Forest]:
    labels = np.asarray(rows[:, 0] > np.median(rows[:, 0]))
    trees = grow_trees(rows, labels, np.ones(len(rows)), count=7, seed=3)
    return trees, flatten(trees)


@BOTH
def test_first_batch_is_the_default_the_users_configs_and_random_ones(kind: Kind) -> None:
    mine = tuple({**BOWL.default, "p1": value} for value in (9, 4))
    batch = next(kind(configs=mine, initial_population=8).propose(BOWL, random.Random(0)))
    assert list(batch[:3]) == [BOWL.default, *mine]
    assert len(batch) == 8
    assert isinstance(batch, Batch)
    assert batch.stage == kind.__name__


@BOTH
def test_quick_starts_from_the_best_of_related_trials(kind: Kind) -> None:
    related = (tuple(Trial(dict.fromkeys(BOWL.names, x), latency_ms=1.0 + x) for x in (5, 3)),)
    for effort, known in ((Effort.QUICK, [3, 5]), (Effort.FULL, [])):
        batch = next(kind.preset(effort, Context(related=related)).propose(BOWL, random.Random(0)))
        assert list(batch[1 : 1 + len(known)]) == [dict.fromkeys(BOWL.names, x) for x in known]
        assert len(batch) == 8


@pytest.mark.parametrize(("known", "random_ones"), [(0, 7), (3, 4), (30, 0)])
def test_prior_trials_shorten_the_random_start(known: int, random_ones: int) -> None:
    configs = BOWL.sample_new(random.Random(2), known, {BOWL.key(BOWL.default)})
    prior = [Trial(c, latency_ms=bowl(c)) for c in configs]
    batch = next(LFBOTreeSearch(initial_population=8).propose(BOWL, random.Random(0), prior))
    assert len(batch) == 1 + random_ones
    assert batch[0] == BOWL.default


def test_prior_trials_are_learned_from() -> None:
    prior = drive(LFBOTreeSearch(), BOWL, bowl, 60, seed=1)
    best = min(t.latency_ms for t in prior)
    further = [t.latency_ms for t in drive(LFBOTreeSearch(), BOWL, bowl, 20, seed=2, prior=prior)]
    assert min(further) <= best + 0.2
    assert fmean(further) < fmean(t.latency_ms for t in prior[:20]) / 2


def test_goes_on_where_everything_but_a_few_configs_is_known() -> None:
    space = ConfigSpace({"x": integer(0, 99)})
    prior = [Trial({"x": x}, latency_ms=1.0 + x) for x in range(97)]
    assert {t.config["x"] for t in drive(LFBOTreeSearch(), space, bowl, 50, seed=0, prior=prior)} == {97, 98, 99}


@pytest.mark.parametrize("name", NAMES)
def test_comes_near_the_best_of_a_million_within_150(name: str) -> None:
    trials = drive(create(name, Effort.FULL, Context()), BOWL, bowl, 150, seed=0)
    assert min(t.latency_ms for t in trials) <= 1.3  # 150 random ones: about 2


@pytest.mark.parametrize("name", NAMES)
def test_is_well_ahead_of_random_sampling_on_a_recorded_kernel(name: str) -> None:
    recorded = RecordedSpace.load(RECORDED)
    search = create(name, Effort.FULL, Context())
    found = [min(t.latency_ms for t in drive(search, recorded.space, recorded.measure, 60, seed)) for seed in range(3)]
    by_chance = expected_best(recorded, 60)
    assert fmean(found) < by_chance - 0.3 * (by_chance - recorded.best_ms)


@BOTH
def test_learns_where_kernels_fail(kind: Kind) -> None:
    space = ConfigSpace({"x": integer(0, 999), "y": integer(0, 9), "z": choice("a", "b", "c")})
    trials = drive(kind(), space, lambda c: 1.0 + c["y"] + c["x"] / 999 if c["x"] >= 900 else math.inf, 90, seed=0)
    late = trials[30:]
    assert sum(t.ok for t in late) > len(late) / 2


@BOTH
def test_most_configs_fail_for_want_of_shared_memory(kind: Kind) -> None:
    """The fastest tiles are the largest that fit: next to those that fail, which are three of five."""
    tile = {"m": power_of_two(8, 256), "n": power_of_two(8, 256), "k": power_of_two(8, 128)}
    space = ConfigSpace({**tile, "stages": integer(1, 6), "warps": power_of_two(1, 16)})

    def tiles(c: Config) -> float:
        shared, registers = (c["m"] + c["n"]) * c["k"] * c["stages"] / 512, c["m"] * c["n"] / c["warps"] / 32
        traffic = 1 / c["m"] + 1 / c["n"] + 0.01 / c["stages"] + 0.1 / c["k"]
        return traffic if shared <= 20 and 1 <= registers <= 64 else math.inf

    everything = [tiles(c) for c in space.enumerate()]
    assert fmean(map(math.isinf, everything)) > 0.55
    trials = drive(kind(), space, tiles, 80, seed=0)
    assert fmean(not t.ok for t in trials[8:]) < 0.5
    assert sum(latency < min(t.latency_ms for t in trials) for latency in everything) < len(everything) / 50


def test_a_single_success_among_failures_is_followed() -> None:
    space = ConfigSpace({f"p{i}": integer(0, 9) for i in range(4)})
    rng = random.Random(0)
    prior = [Trial(c, Status.CRASH) for c in space.sample_new(rng, 40, frozenset()) if c["p0"] != 5]
    success = {"p0": 5, "p1": 5, "p2": 5, "p3": 5}
    prior = [*(t for t in prior if t.config != success), Trial(success, latency_ms=1.0)]
    near = drive(LFBOTreeSearch(patience=50), space, lambda _: math.inf, 11, seed=0, prior=prior)[1:]
    assert fmean(sum(c != 5 for c in t.config.values()) for t in near) < 2.5


def test_ends_after_its_generations_at_a_config_that_no_single_step_improves() -> None:
    space = ConfigSpace({"x": integer(0, 30), "y": integer(0, 30)})
    trials = drive(LFBOTreeSearch(max_generations=2), space, lambda c: 1.0 + abs(c["x"] - 20) + c["y"], 10**4, seed=1)
    best = min(trials, key=lambda t: t.latency_ms)
    measured = {space.key(t.config) for t in trials}
    assert {space.key(n) for n in space.neighbours(best.config)} <= measured
    assert best.config == {"x": 20, "y": 0}
    assert len(trials) < 250


def test_the_last_steps_end_where_none_is_faster() -> None:
    batches = []
    search = LFBOTreeSearch(max_generations=1)
    proposals = search.propose(BOWL, random.Random(0))
    batch = next(proposals, None)
    while batch is not None:
        batches.append(batch)
        try:
            batch = proposals.send([Trial(c, latency_ms=1.0) for c in batch])
        except StopIteration:
            batch = None
    assert len(batches) == 3
    assert getattr(batches[-1], "note", "") == "every single step from the best config"


def test_quick_ends_after_two_hundred_configs_and_the_last_steps() -> None:
    trials = drive(create("LFBOTreeSearch", Effort.QUICK, Context()), BOWL, bowl, 10**4, seed=0)
    assert 208 <= len(trials) <= 300


def test_full_goes_on_for_several_hundred_configs() -> None:
    full, quick = (LFBOTreeSearch.preset(effort, Context()) for effort in (Effort.FULL, Effort.QUICK))
    assert full.max_generations * full.num_neighbors * full.frac_selected >= 500
    assert full.max_generations > quick.max_generations


def test_generations_grow_with_what_is_known() -> None:
    prior = [Trial(c, latency_ms=bowl(c)) for c in BOWL.sample_new(random.Random(0), 800, frozenset())]
    proposals = LFBOTreeSearch().propose(BOWL, random.Random(0), prior)
    first = next(proposals)
    assert len(proposals.send([Trial(c, latency_ms=bowl(c)) for c in first])) == 20


@BOTH
def test_generations_grow_with_the_compilers_up_to_what_is_known(kind: Kind) -> None:
    proposals = kind(parallel=20).propose(BOWL, random.Random(0))
    batch = next(proposals)
    sizes = [len(batch)]
    for _ in range(3):
        batch = proposals.send([Trial(c, latency_ms=bowl(c)) for c in batch])
        sizes.append(len(batch))
    assert sizes == [8, 8, 16, 20]
    assert len(next(kind.preset(Effort.FULL, Context(parallel=20)).propose(BOWL, random.Random(0)))) == 20


@BOTH
def test_an_effort_measures_about_as_many_configs_whatever_is_compiled_at_once(kind: Kind) -> None:
    few, many = (kind.preset(Effort.FULL, Context(parallel=parallel)) for parallel in (1, 20))
    assert few.max_generations * few.selected == many.max_generations * 20 == 500


def test_the_best_config_is_finished_after_the_last_steps() -> None:
    space = ConfigSpace({"x": integer(0, 9), "idle": integer(0, 10**6)})
    search = LFBOTreeSearch(initial_population=5, max_generations=1, finishing_rounds=1, radius=1)
    trials = drive(search, space, lambda c: 1.0 + (c["x"] - 4) ** 2, 10**4, seed=0)
    fastest = [t.config["idle"] for t in trials if t.config["x"] == 4]
    assert fastest[-1] == 0


def test_visits_all_of_a_small_space() -> None:
    space = ConfigSpace({"tile": power_of_two(1, 16), "order": permutation(3), "loads": list_of(boolean(), 2)})
    trials = drive(LFBOTreeSearch(max_generations=100), space, lambda c: 1.0 + c["tile"], 10**4, seed=0)
    assert len(trials) == space.size == 120


def test_every_generation_is_full_while_configs_are_left() -> None:
    search = LFBOTreeSearch(initial_population=4, max_generations=4)
    proposals = search.propose(ConfigSpace({"x": integer(0, 23)}), random.Random(0))
    batch = next(proposals)
    sizes = [len(batch)]
    for _ in range(4):
        batch = proposals.send([Trial(c, latency_ms=1.0 + c["x"]) for c in batch])
        sizes.append(len(batch))
    assert sizes == [4, 5, 5, 5, 5]


def test_leaves_a_basin_that_it_has_used_up() -> None:
    def two_basins(config: Config) -> float:
        near, far = (float(sum(abs(x - at) for x in config.values())) for at in (1, 8))
        return min(2.0 + near, 1.0 + 3 * far)

    space = ConfigSpace({"x": integer(0, 9), "y": integer(0, 9)})
    prior = [Trial(c, latency_ms=two_basins(c)) for c in ({"x": 1, "y": 1}, {"x": 1, "y": 2}, {"x": 2, "y": 1})]
    search = LFBOTreeSearch(initial_population=1, max_generations=40)
    best = list(accumulate((t.latency_ms for t in drive(search, space, two_basins, 90, seed=0, prior=prior)), min))
    assert best[-1] == 1.0


def test_does_not_depend_on_the_order_of_sets() -> None:
    code = (
        "from tests.test_forest import *\n"
        "print([BOWL.key(t.config) for t in drive(LFBOTreeSearch(), BOWL, bowl, 30, seed=4)])"
    )
    root = Path(__file__).parent.parent
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"patience": 0}, "patience=0"),
        ({"copies": 0}, "copies=0"),
        ({"max_generations": -1}, "max_generations=-1"),
        ({"quantiles": ()}, "quantiles"),
        ({"quantiles": (0.1, 1.5)}, "quantiles"),
        ({"frac_selected": 0.0}, "frac_selected"),
        ({"num_trees": 4}, "num_trees=4"),
        ({"parallel": 0}, "parallel=0"),
        ({"finishing_rounds": -1}, "finishing_rounds=-1"),
    ],
)
@BOTH
def test_an_option_out_of_range_is_named(kind: Kind, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=f"^{kind.__name__}: .*{named}"):
        kind(**options)


def test_rows_hold_the_order_and_the_twos_of_numbers() -> None:
    space = ConfigSpace({"threads": choice(32, 48, 64, 96), "warps": power_of_two(1, 8), "load": choice("a", "b")})
    encoder = Encoder(space)
    assert encoder.owners == ["threads", "threads", "warps", "load", "load"]
    configs = [{"threads": 48, "warps": 4, "load": "b"}, {"load": "a", "warps": 1, "threads": 96}]
    assert encoder.rows(configs).tolist() == [[1, 5, 2, 0, 1], [3, 6, 0, 1, 0]]


def test_rows_tell_true_from_one_and_hold_any_integer() -> None:
    space = ConfigSpace({"x": choice(1, True, None), "n": integer(0, 10**60)})
    rows = Encoder(space).rows([{"x": 1, "n": 0}, {"x": True, "n": 10**60}, {"x": 1, "n": 1}])
    assert np.isfinite(rows).all()
    assert len({tuple(r) for r in rows.tolist()}) == 3


def test_pairs_add_the_logarithms_of_products_and_ratios_of_sizes() -> None:
    kinds: dict[str, Parameter] = {
        "tile": list_of(power_of_two(1, 8), 2),
        "threads": choice(32, 48, 64, 96),
        "stages": integer(0, 4),
        "swizzle": boolean(),
        "load": choice("a", "b", "c"),
    }
    space = ConfigSpace(kinds)
    encoder, plain = PairEncoder(space, random.Random(0)), Encoder(space)
    config = {"tile": (2, 8), "threads": 64, "stages": 3, "swizzle": True, "load": "b"}
    row, first = encoder.rows([config])[0].tolist(), plain.rows([config])[0].tolist()
    assert row == [*first, 4, 7, 9, -2, -5, -3]
    assert [encoder.parameters(i) for i in (0, len(first), len(first) + 1)] == [
        ("tile",),
        ("tile", "tile"),
        ("tile", "threads"),
    ]


def test_rows_have_a_limited_number_of_pairs() -> None:
    space = ConfigSpace({f"p{i}": integer(1, 9) for i in range(30)})
    width = PairEncoder(space, random.Random(0)).rows([space.default]).shape[1]
    assert width == Encoder(space).rows([space.default]).shape[1] + 80


def test_a_tree_that_splits_by_a_product_advises_on_both_sizes() -> None:
    space = ConfigSpace({"a": power_of_two(1, 64), "b": power_of_two(1, 64), "c": integer(0, 9)})
    rng = random.Random(0)
    encoder = PairEncoder(space, rng)
    configs = list(space.enumerate())
    good = np.asarray([c["a"] * c["b"] == 64 for c in configs])
    forest = flatten(grow_trees(encoder.rows(configs), good, np.ones(len(configs)), count=20, seed=1))
    edits = Editor(space, encoder, rng, radius=2).by_trees(forest, {"a": 4, "b": 4, "c": 5}, count=20)
    assert fmean(edit["a"] * edit["b"] == 64 for edit in edits) > 0.7


def test_what_fails_more_probably_than_not_is_marked_down() -> None:
    rows = np.repeat(np.arange(10, dtype=np.float32), 4)[:, None]
    latencies = np.where(rows[:, 0] < 5, math.inf, rows[:, 0])
    classifier = fit(rows, latencies, (0.2, 0.5), 20, random.Random(0))
    assert classifier is not None
    leaves = classifier.good.leaves(rows)
    scores, good = classifier.scores(rows, leaves)[::4], classifier.good.good[leaves].mean(axis=1)[::4]
    assert scores.argmax() == 5
    assert (scores[:5] <= good[:5] / 2).all()
    assert scores[6:].tolist() == good[6:].tolist()


def test_there_is_nothing_to_learn_where_nothing_works_or_all_is_equal() -> None:
    rows = np.arange(6, dtype=np.float32)[:, None]
    assert fit(rows, np.full(6, math.inf), (0.1,), 10, random.Random(0)) is None
    assert fit(rows, np.ones(6), (0.1,), 10, random.Random(0)) is None
    all_work = fit(rows, 1.0 + rows[:, 0].astype(float), (0.5,), 10, random.Random(0))
    assert all_work is not None
    assert all_work.works is None


def test_flat_trees_say_what_scikit_learns_say() -> None:
    rows = np.random.default_rng(0).integers(0, 6, (80, 5)).astype(np.float32)
    trees, forest = some_forest(rows)
    leaves = forest.leaves(rows)
    assert (leaves - forest.roots).tolist() == np.stack([tree.apply(rows) for tree in trees], axis=1).tolist()
    expected = np.stack([tree.predict(rows)[:, 1] for tree in trees], axis=1)
    np.testing.assert_allclose(forest.good[leaves], expected)
    np.testing.assert_allclose(forest.opinions(rows, [2] * 80), expected[:, 2])


def test_path_is_what_a_tree_tests_in_order() -> None:
    rows = np.random.default_rng(1).integers(0, 6, (60, 4)).astype(np.float32)
    trees, forest = some_forest(rows)
    for number, tree in enumerate(trees):
        visited = tree.decision_path(rows[:1]).indices.tolist()
        assert forest.path(rows[0], number) == [int(tree.feature[n]) for n in visited if tree.children_left[n] >= 0]


def test_edits_by_trees_stay_within_reach_and_are_to_the_liking_of_their_trees() -> None:
    rng = random.Random(0)
    encoder = Encoder(BOWL)
    rows = encoder.rows(BOWL.sample_new(rng, 200, frozenset()))
    _, forest = some_forest(rows)  # good is a high p0
    base = dict.fromkeys(BOWL.names, 4)
    edits = Editor(BOWL, encoder, rng, radius=2).by_trees(forest, base, count=7)
    assert len(edits) == 7
    assert all(abs(value - 4) <= 2 for edit in edits for value in edit.values())
    assert fmean(edit["p0"] for edit in edits) > 5


def test_random_edits_change_two_or_three_parameters_within_reach() -> None:
    editor = Editor(BOWL, Encoder(BOWL), random.Random(0), radius=1)
    base = dict.fromkeys(BOWL.names, 4)
    changes = [{n: v - 4 for n, v in editor.at_random(base).items() if v != 4} for _ in range(50)]
    assert {len(c) for c in changes} == {2, 3}
    assert {v for c in changes for v in c.values()} == {-1, 1}
