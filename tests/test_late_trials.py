"""Every search goes on where a driver sends trials as they come: in any order, late, and not all of a batch at once."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence

import pytest

from pytest_kerneltune.parameter import integer
from pytest_kerneltune.search import SEARCHES, Context, Effort, Proposals, create
from pytest_kerneltune.search.fallback import following
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.testing import SPACES, ScriptedModel, as_trial, made_up_latency
from pytest_kerneltune.trial import Batch, Config, Trial

REPLIES = (json.dumps({"configs": [{"tile": 4, "unroll": True}, {"x": 1, "y": 993}, {"p3": 1}]}),)
PARALLEL = 6
GRID = ConfigSpace({"x": integer(0, 30), "y": integer(0, 30)})


def grid(config: Config) -> float:
    """Least, 1 ms, at (20, 8)."""
    return 1.0 + 0.01 * float((config["x"] - 20) ** 2 + (config["y"] - 8) ** 2)


class LateDriver:
    """Measures what is under way in an order of its own, and sends no more than a batch needs."""

    def __init__(self, order: random.Random) -> None:
        self._order = order
        self.under_way: list[Config] = []
        self.most_under_way = 0
        self.trials: list[Trial] = []

    def answer(self, batch: Sequence[Config]) -> list[Trial]:
        self.under_way += batch
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        enough = getattr(batch, "enough", None)
        known = list(batch) if enough is None else self._order.sample(self.under_way, min(enough, len(self.under_way)))
        for config in known:
            self.under_way.remove(config)
        trials = [as_trial(c, made_up_latency) for c in known]
        self.trials += trials
        return trials

    def drive(self, proposals: Proposals, limit: int) -> list[Config]:
        """What was proposed, at most about ``limit`` configs."""
        proposed: list[Config] = []
        try:
            batch = next(proposals)
            while True:
                proposed += batch
                if len(proposed) >= limit:
                    proposals.close()
                    return proposed
                batch = proposals.send(self.answer(batch))
        except StopIteration:
            return proposed


def proposals(name: str, space: ConfigSpace, prior: Sequence[Trial] = ()) -> Proposals:
    context = Context(parallel=PARALLEL, model=ScriptedModel(REPLIES))
    return create(name, Effort.QUICK, context).propose(space, random.Random(1), prior)


@pytest.mark.parametrize("kind", ["small", "conditions", "10^15 configs"])
@pytest.mark.parametrize("name", [name for name in SEARCHES if name != "FiniteSearch"])
def test_no_config_is_proposed_twice_and_the_same_replies_make_the_same_proposals(name: str, kind: str) -> None:
    space = SPACES[kind]()
    runs = []
    for _ in range(2):
        driver = LateDriver(random.Random(5))
        runs.append([space.key(c) for c in driver.drive(proposals(name, space), 28)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == len(runs[0])


@pytest.mark.parametrize("name", ["GaussianProcessSearch", "LFBOTreeSearch", "LFBOPatternSearch", "RandomSearch"])
def test_a_search_that_learns_from_few_of_its_configs_measures_a_small_space_and_ends(name: str) -> None:
    space = SPACES["small"]()
    driver = LateDriver(random.Random(2))
    proposed = driver.drive(proposals(name, space), 1000)
    assert {space.key(c) for c in proposed} == {space.key(c) for c in space.enumerate()}
    assert name == "RandomSearch" or not driver.under_way, "it ended before all was known"


@pytest.mark.parametrize("name", ["GaussianProcessSearch", "LFBOTreeSearch", "LFBOPatternSearch"])
def test_compilers_are_kept_busy_but_no_more_is_under_way_than_they_take(name: str) -> None:
    space = SPACES["10^15 configs"]()
    driver = LateDriver(random.Random(2))
    driver.drive(proposals(name, space), 50)
    assert driver.most_under_way <= 2 * PARALLEL, "the start may be larger: compilers are ready before the rest"
    assert PARALLEL // 2 <= len(driver.under_way) <= PARALLEL


@pytest.mark.parametrize("name", ["GaussianProcessSearch", "LFBOTreeSearch"])
def test_a_config_that_never_comes_back_does_not_stop_a_search(name: str) -> None:
    """One of the first configs hangs; all others are measured at once."""
    search = proposals(name, GRID)
    batch = next(search)
    hanging, trials = batch[1], list[Trial]()
    while len(trials) < 60:
        known = [as_trial(c, grid) for c in batch if c != hanging]
        trials += known
        batch = search.send(known)
        assert hanging not in batch
    search.close()
    assert min(t.latency_ms for t in trials) < 1.1


def test_what_will_not_come_is_given_up() -> None:
    """A driver that has nothing more to send answers an empty batch with nothing: the search ends all the same."""
    search = proposals("GaussianProcessSearch", SPACES["small"]())
    batch, lost = next(search, None), 0
    for _ in range(100):
        trials = [as_trial(c, made_up_latency) for c in batch or ()]
        lost += len(trials) > 1
        batch = following(search, trials[1:] if len(trials) > 1 else trials)
        if batch is None:
            break
    assert batch is None
    assert lost > 0


def test_late_trials_are_learned_by_the_second_stage_of_a_search_that_asks_a_model() -> None:
    driver = LateDriver(random.Random(3))
    driver.drive(proposals("LLMSeededSearch", SPACES["10^15 configs"]()), 60)
    assert driver.under_way, "the second stage waited for its slowest configs"


def test_a_batch_says_how_many_trials_are_enough() -> None:
    search = proposals("GaussianProcessSearch", GRID)
    batch = next(search)
    assert isinstance(batch, Batch)
    assert batch.enough is not None
    assert 1 <= batch.enough < len(batch)


def test_alone_a_search_waits_for_each_config() -> None:
    search = create("GaussianProcessSearch", Effort.QUICK, Context()).propose(GRID, random.Random(0))
    batch = next(search)
    batch = search.send([as_trial(c, grid) for c in batch])
    for _ in range(5):
        assert isinstance(batch, Batch)
        assert len(batch) == batch.enough == 1
        batch = search.send([as_trial(c, grid) for c in batch])
    assert math.isfinite(grid(batch[0]))
