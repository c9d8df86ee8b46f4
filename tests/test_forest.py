"""LFBOTreeSearch, with the rows, trees and edits that it is made of."""

from __future__ import annotations

import math
import os
import random
import runpy
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from pytest_kerneltune.errors import UsageError
from pytest_kerneltune.parameter import boolean, choice, integer, list_of, permutation, power_of_two
from pytest_kerneltune.search import Context, Effort, create
from pytest_kerneltune.search.edits import Editor
from pytest_kerneltune.search.features import Encoder
from pytest_kerneltune.search.forest import STAGE, LFBOTreeSearch
from pytest_kerneltune.search.trees import Forest, flatten, grow_trees
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import RecordedSpace, drive
from pytest_kerneltune.trial import Batch, Config, Status, Trial

_COMMAND = Path(__file__).parent / "benchmarks" / "compare_searches.py"
# By path: with the checkout on sys.path, pytest would find the plugin installed twice.
expected_best = runpy.run_path(str(_COMMAND), run_name="compare_searches")["expected_best"]

BOWL = ConfigSpace({f"p{i}": integer(0, 9) for i in range(6)})
RECORDED = Path(__file__).parent / "data" / "convolution_A100.json.gz"


def bowl(config: Config) -> float:
    """Least, 1 ms, where every parameter is 6."""
    return 1.0 + float(sum((x - 6) ** 2 for x in config.values())) / 10


def some_forest(rows: Any) -> tuple[list[Any], Forest]:
    labels = np.asarray(rows[:, 0] > np.median(rows[:, 0]))
    trees = grow_trees(rows, labels, np.ones(len(rows)), count=7, seed=3)
    return trees, flatten(trees)


def test_first_batch_is_the_default_the_users_configs_and_random_ones() -> None:
    mine = tuple({**BOWL.default, "p1": value} for value in (9, 4))
    batch = next(LFBOTreeSearch(configs=mine, initial_population=8).propose(BOWL, random.Random(0)))
    assert list(batch[:3]) == [BOWL.default, *mine]
    assert len(batch) == 8
    assert isinstance(batch, Batch)
    assert batch.stage == STAGE


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


@pytest.mark.parametrize("seed", range(2))
def test_comes_near_the_best_of_a_million_within_150(seed: int) -> None:
    trials = drive(create(STAGE, Effort.FULL, Context()), BOWL, bowl, 150, seed)
    assert min(t.latency_ms for t in trials) <= 1.3  # 150 random ones: about 2


def test_is_well_ahead_of_random_sampling_on_a_recorded_kernel() -> None:
    recorded = RecordedSpace.load(RECORDED)
    search = create(STAGE, Effort.FULL, Context())
    found = [min(t.latency_ms for t in drive(search, recorded.space, recorded.measure, 80, seed)) for seed in range(4)]
    by_chance = expected_best(recorded, 80)
    assert fmean(found) < by_chance - 0.3 * (by_chance - recorded.best_ms)


def test_learns_where_kernels_fail() -> None:
    space = ConfigSpace({"x": integer(0, 999), "y": integer(0, 9), "z": choice("a", "b", "c")})
    trials = drive(LFBOTreeSearch(), space, lambda c: 1.0 + c["y"] if c["x"] >= 900 else math.inf, 120, seed=0)
    late = trials[60:]
    assert sum(t.ok for t in late) > len(late) / 2


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


def test_quick_ends_after_a_hundred_configs_and_the_last_steps() -> None:
    trials = drive(create(STAGE, Effort.QUICK, Context()), BOWL, bowl, 10**4, seed=0)
    assert 108 <= len(trials) <= 200


def test_full_goes_on_for_several_hundred_configs() -> None:
    full, quick = (LFBOTreeSearch.preset(effort, Context()) for effort in (Effort.FULL, Effort.QUICK))
    assert full.max_generations * full.num_neighbors * full.frac_selected >= 500
    assert full.max_generations > quick.max_generations


def test_generations_grow_with_what_is_known() -> None:
    prior = [Trial(c, latency_ms=bowl(c)) for c in BOWL.sample_new(random.Random(0), 800, frozenset())]
    proposals = LFBOTreeSearch().propose(BOWL, random.Random(0), prior)
    first = next(proposals)
    assert len(proposals.send([Trial(c, latency_ms=bowl(c)) for c in first])) == 20


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
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        LFBOTreeSearch(**options)


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
