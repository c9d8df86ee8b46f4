"""History: what a search has measured."""

from __future__ import annotations

import math

import pytest

from pytest_kerneltune.parameter import boolean, integer, list_of
from pytest_kerneltune.search.history import History
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Batch, Status, Trial

SPACE = ConfigSpace({"x": integer(0, 9), "pad": boolean(), "list": list_of(integer(0, 1), 2)})


def trial(x: int, latency_ms: float) -> Trial:
    status = Status.OK if math.isfinite(latency_ms) else Status.CRASH
    return Trial({"x": x, "pad": False, "list": (0, 0)}, status, latency_ms)


def test_nothing_is_known_at_first() -> None:
    history = History(SPACE)
    assert (len(history), history.keys, history.best_ms, history.best(3)) == (0, set(), math.inf, [])


def test_prior_trials_come_first() -> None:
    prior, later = [trial(1, 2.0), trial(2, math.inf)], [trial(3, 1.0)]
    history = History(SPACE, prior)
    history.learn(later)
    assert history.trials == prior + later
    assert history.keys == {SPACE.key(t.config) for t in prior + later}
    assert history.best_ms == 1.0


def test_best_are_the_fastest_that_worked_and_the_earliest_of_equals() -> None:
    history = History(SPACE, [trial(0, 2.0), trial(1, math.inf), trial(2, 1.0)])
    history.learn([trial(3, 2.0), trial(4, 1.5)])
    assert [t.config["x"] for t in history.best(9)] == [2, 4, 0, 3]
    assert [t.config["x"] for t in history.best(2)] == [2, 4]


def test_a_known_config_that_is_timed_again_has_its_new_latency_in_its_old_place() -> None:
    history = History(SPACE, [trial(0, 2.0), trial(1, 1.0), trial(2, math.inf)])
    history.learn([trial(3, 3.0), trial(1, 4.0), trial(0, 3.0)])
    assert [(t.config["x"], t.latency_ms) for t in history.trials] == [(0, 3.0), (1, 4.0), (2, math.inf), (3, 3.0)]
    assert [t.config["x"] for t in history.best(9)] == [0, 3, 1], "the earliest of equals is the one measured first"
    assert (history.best_ms, len(history)) == (3.0, 4)
    history.learn([trial(2, 2.5), trial(0, math.inf)])
    assert [t.config["x"] for t in history.best(9)] == [2, 3, 1]
    assert history.trial_of({"list": [0, 0], "pad": False, "x": 2}) == trial(2, 2.5)


def test_when_nothing_works_any_more_there_is_no_best() -> None:
    history = History(SPACE, [trial(0, 2.0)])
    history.learn([trial(0, math.inf)])
    assert (history.best(1), history.best_ms) == ([], math.inf)


def test_what_is_handed_out_is_the_callers() -> None:
    history = History(SPACE, [trial(0, 2.0), trial(1, 1.0)])
    history.best(2).clear()
    assert len(history.best(2)) == 2


def test_history_only_of_failures_has_no_best() -> None:
    history = History(SPACE, [trial(0, math.inf)])
    assert history.best(1) == []
    assert history.best_ms == math.inf
    assert len(history) == 1


def test_unmeasured_keeps_order_and_drops_repeats_and_what_was_measured_or_failed() -> None:
    configs = [trial(x, 1.0).config for x in (5, 3, 4, 3, 5, 2)]
    history = History(SPACE, [trial(4, 1.0), trial(2, math.inf)])
    assert [c["x"] for c in history.unmeasured(configs)] == [5, 3]


def test_equal_configs_are_known_whatever_made_them() -> None:
    history = History(SPACE, [trial(4, 1.0)])
    assert history.unmeasured([{"list": [0, 0], "pad": False, "x": 4}]) == []


def test_what_was_proposed_is_under_way_until_its_trial_comes() -> None:
    history = History(SPACE)
    first = history.measured(Batch([trial(x, 1.0).config for x in (1, 2, 3)], enough=1))
    assert next(first) == tuple(trial(x, 1.0).config for x in (1, 2, 3))
    with pytest.raises(StopIteration):
        first.send([trial(3, 2.0)])
    assert [c["x"] for c in history.under_way.values()] == [1, 2]
    assert history.unmeasured(trial(x, 1.0).config for x in range(5)) == [trial(0, 1.0).config, trial(4, 1.0).config]
    assert len(history) == 1
    history.learn([trial(1, 3.0), trial(2, 1.0)])
    assert not history.under_way
    assert [t.config["x"] for t in history.best(9)] == [2, 3, 1]


def test_a_search_that_flows_asks_for_a_quarter_of_what_is_under_way() -> None:
    history = History(SPACE)
    batch = next(history.flow([trial(x, 1.0).config for x in range(6)], "stage"))
    assert (len(batch), batch.stage, batch.enough) == (6, "stage", 2)
    assert next(history.flow([trial(7, 1.0).config], "stage")).enough == 2
    assert next(history.flow([], "stage")).enough == 2


def test_what_an_empty_batch_does_not_bring_is_given_up_but_not_proposed_again() -> None:
    history = History(SPACE)
    next(history.flow([trial(1, 1.0).config], "stage"))
    waiting = history.flow([], "stage")
    next(waiting)
    with pytest.raises(StopIteration):
        waiting.send([])
    assert not history.under_way
    assert history.unmeasured([trial(1, 1.0).config]) == []
