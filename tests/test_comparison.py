"""The scores of searches, against counting and against figures worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

import pytest

from pytest_kerneltune.comparison import Score, Summary, best_so_far, by_chance, expected_best, score
from pytest_kerneltune.recorded import RecordedSpace
from pytest_kerneltune.trial import Status


def space(latencies: Sequence[float]) -> RecordedSpace:
    """A space with these latencies; inf failed."""
    trials = {i: (Status.OK if math.isfinite(t) else Status.CRASH, t) for i, t in enumerate(latencies)}
    return RecordedSpace("made up", {"x": range(len(latencies))}, trials)


def make_score(median: Sequence[float], ahead: Sequence[float] = (), hit95: float = 0.0, cpu_s: float = 0.0) -> Score:
    return Score(median, median, median, median, ahead, hit95, cpu_s)


def test_the_best_so_far_is_flat_after_the_end_and_the_worst_before_anything_works() -> None:
    latencies = [math.inf, 4.0, 5.0, 2.0]
    assert best_so_far(zip(latencies, latencies, strict=True), 9.0, 6) == [9.0, 4.0, 4.0, 2.0, 2.0, 2.0]
    assert best_so_far([], 9.0, 2) == [9.0, 9.0]
    assert best_so_far([(math.inf, math.inf)], 9.0, 1) == [9.0]


def test_the_best_is_what_looked_best_and_counts_with_its_true_latency() -> None:
    trials = [(3.0, 3.0), (2.0, 3.5), (5.0, 2.5), (4.0, 2.5), (1.0, 0.9)]
    assert best_so_far(trials, 9.0, 5) == [3.0, 3.0, 5.0, 5.0, 1.0]


@pytest.mark.parametrize(
    "latencies", [[1.0], [3.0, 1.0, 2.0], [math.inf, 4.0, 1.0, math.inf, 2.0, 2.0], [1.0, *[math.inf] * 5]]
)
def test_random_sampling_is_expected_what_all_draws_come_to(latencies: list[float]) -> None:
    recorded = space(latencies)
    for draws in range(1, len(latencies) + 1):
        outcomes = [min(min(some), recorded.worst_ms) for some in combinations(latencies, draws)]
        assert expected_best(recorded, draws) == pytest.approx(fmean(outcomes))
    assert by_chance(recorded, len(latencies) + 3)[-3:] == pytest.approx([recorded.best_ms] * 3)


def test_random_sampling_scores_0_the_optimum_at_once_1_and_what_is_worse_less_down_to_minus_1() -> None:
    recorded = space([1.0, 2.0, 3.0, 4.0, 8.0])
    chance = by_chance(recorded, 3)
    cases = ((chance, 0.0), ([1.0] * 3, 1.0), ([1000.0] * 3, -1.0))
    for curve, ahead in cases:
        assert score(1.0, chance, [curve], 0.0).ahead == pytest.approx([ahead] * 3)


def test_the_lead_is_not_counted_where_random_sampling_is_at_the_optimum() -> None:
    recorded = space([1.0, 1.0005, 2.0])
    chance = by_chance(recorded, 4)
    found = score(1.0, chance, [[1.0] * 4], 0.0)
    assert found.ahead == pytest.approx([1.0])
    summary = Summary.of([found], [1, 4])
    assert summary.p == pytest.approx({1: 1.0, 4: 1.0})


def test_a_lead_is_that_of_the_mean_latency_and_f_the_median_over_seeds() -> None:
    curves = [[8.0, 4.0], [2.0, 2.0], [4.0, 1.0]]
    found = score(1.0, [5.0, 3.0], curves, 1.5)
    assert found.median == pytest.approx([1 / 4, 1 / 2])
    assert found.mean == pytest.approx([(1 / 8 + 1 / 2 + 1 / 4) / 3, (1 / 4 + 1 / 2 + 1) / 3])
    assert found.lower == pytest.approx([(1 / 8 + 1 / 4) / 2, (1 / 4 + 1 / 2) / 2])
    assert found.upper == pytest.approx([(1 / 4 + 1 / 2) / 2, (1 / 2 + 1) / 2])
    assert found.ahead == pytest.approx([(5 - 14 / 3) / 4, (3 - 7 / 3) / 2])
    assert found.hit95 == pytest.approx(1 / 3)
    assert found.cpu_s == 1.5


def test_a_run_hits_where_its_last_best_is_within_5_percent() -> None:
    curves = [[1.0, 1.2], [9.0, 1 / 0.95], [9.0, 1.06], [1.0, 1.0]]
    assert score(1.0, [5.0, 3.0], curves, 0.0).hit95 == 0.5


def test_one_seed_is_its_own_quartiles() -> None:
    found = score(1.0, [5.0, 3.0], [[4.0, 2.0]], 0.0)
    assert found.lower == found.median == found.upper == found.mean == [0.25, 0.5]


def test_a_summary_is_the_mean_over_spaces_and_n95_that_of_the_mean() -> None:
    scores = [
        make_score([0.5, 0.95, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0], 1.0, 2.0),
        make_score([0.1, 0.3, 0.8, 0.9], [-1.0], 0.5, 4.0),
    ]
    summary = Summary.of(scores, [1, 2, 4])
    assert summary.f == pytest.approx({1: 0.3, 2: 0.625, 4: 0.95})
    assert summary.p == pytest.approx({1: -0.5, 2: -0.25, 4: -0.125})
    assert (summary.n95, summary.hit95, summary.cpu_s) == (4, 0.75, 3.0)
    assert Summary.of(scores[1:], [4]).n95 is None
    assert Summary.of(scores[:1], [4]).n95 == 2


def test_a_space_where_nothing_is_to_be_won_has_no_lead() -> None:
    assert Summary.of([make_score([1.0, 1.0])], [2]).p == {2: 0.0}
