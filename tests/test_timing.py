"""How often kernels are launched, what readings amount to, and what reads the host's clocks."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable
from statistics import median

import pytest

from pytest_kerneltune.timers import HostTimer, calibration_work
from pytest_kerneltune.timing import (
    FAR,
    SLOW_MS,
    Plan,
    block_order,
    block_plan,
    launches_a_reading,
    next_readings,
    summarise,
)
from pytest_kerneltune.trial import Clock

CLOCKS: list[Clock] = ["wall", "thread", "cuda"]
ESTIMATES = [0.0, 1e-6, 1e-4, 0.003, 0.1, 1.0, 30.0, 499.0]


# How many readings


def taken(
    clock: Clock, reading: Callable[[int], float], best_ms: float = math.inf, launches: int = 1, at_most_ms: float = 0.0
) -> list[float]:
    """The readings taken of a kernel whose reading i is ``reading(i)`` ms."""
    readings: list[float] = []
    while count := next_readings(clock, readings, best_ms, launches, at_most_ms):
        assert count > 0
        readings += [reading(len(readings) + i) for i in range(count)]
    return readings


def scattered(ms: float, spread: float, seed: int) -> Callable[[int], float]:
    rng = random.Random(seed)
    return lambda _: ms * math.exp(rng.gauss(0, spread))


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("best_ms", [math.inf, 0.1, 1e-9])
def test_readings_come_to_an_end(clock: Clock, best_ms: float) -> None:
    for ms in [*ESTIMATES, 1e3, 1e6]:
        assert 1 <= len(taken(clock, lambda _, ms=ms: ms, best_ms)) <= 50  # type: ignore[misc]


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("batch", [True, False])
def test_every_block_is_finite_and_has_readings(clock: Clock, batch: bool) -> None:
    for estimate in [*ESTIMATES, 1e3, 1e6]:
        chosen = block_plan(clock, estimate, batch)
        assert 1 <= chosen.readings <= 100
        assert 1 <= chosen.launches <= 10_000


@pytest.mark.parametrize("clock", CLOCKS)
def test_slower_kernels_are_launched_no_more_often_than_quicker_ones(clock: Clock) -> None:
    plans = [block_plan(clock, estimate, True) for estimate in ESTIMATES]
    launches = [p.readings * p.launches for p in plans]
    assert launches == sorted(launches, reverse=True)
    counts = [len(taken(clock, scattered(ms, 0.05, 0))) for ms in ESTIMATES[1:]]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("clock", CLOCKS)
def test_what_is_far_from_the_best_is_read_twice(clock: Clock) -> None:
    assert len(taken(clock, lambda _: 0.1, 0.099 / FAR)) == 2
    assert len(taken(clock, lambda _: 0.1, 0.101 / FAR)) > 2


@pytest.mark.parametrize("clock", CLOCKS)
def test_one_quick_reading_keeps_a_config_from_being_dropped_as_far(clock: Clock) -> None:
    assert len(taken(clock, lambda i: 0.1 if i == 0 else 0.03, 0.03)) > 2


@pytest.mark.parametrize("clock", CLOCKS)
def test_what_took_long_when_it_was_checked_is_read_once_first(clock: Clock) -> None:
    assert next_readings(clock, [], math.inf, at_most_ms=30.0) == 1
    assert len(taken(clock, lambda _: 30.0, 1.0, at_most_ms=31.0)) == 1
    assert len(taken(clock, lambda _: 30.0, 30.0, at_most_ms=31.0)) > 2


@pytest.mark.parametrize("clock", CLOCKS)
def test_slow_kernels_are_read_as_seldom_as_can_be(clock: Clock) -> None:
    slow = SLOW_MS + 1
    assert len(taken(clock, lambda _: slow, at_most_ms=slow)) == 2
    assert len(taken(clock, lambda _: slow, slow / 20, at_most_ms=slow)) == 1
    assert block_plan(clock, slow, True) == Plan(1)
    assert block_plan(clock, SLOW_MS - 1, True).readings > 1


@pytest.mark.parametrize("clock", CLOCKS)
def test_clearly_slower_configs_get_fewer_readings_than_close_ones(clock: Clock) -> None:
    for seed in range(20):
        slower = len(taken(clock, scattered(0.1, 0.02, seed), 0.05))
        close = len(taken(clock, scattered(0.1, 0.02, seed), 0.099))
        assert slower < close
        assert slower <= 8


def test_readings_that_agree_are_enough() -> None:
    quiet = [len(taken("cuda", scattered(0.04, 0.001, seed), 0.04)) for seed in range(20)]
    restless = [len(taken("cuda", scattered(0.04, 0.05, seed), 0.04)) for seed in range(20)]
    assert max(quiet) <= 20
    assert min(restless) == 50


def test_close_configs_are_seldom_dropped_and_known_well() -> None:
    """Of 400 configs a tenth slower than the best, whose readings scatter by 3%."""
    readings = [taken("cuda", scattered(0.11, 0.03, seed), 0.1) for seed in range(400)]
    assert sum(len(r) < 20 for r in readings) < 40
    assert sum(abs(median(r) / 0.11 - 1) > 0.02 for r in readings) < 40


def test_tiny_kernels_share_a_reading_on_host_clocks_only() -> None:
    assert launches_a_reading("thread", 0.001, True) == launches_a_reading("wall", 0.001, True) == 100
    assert launches_a_reading("thread", 0.001, False) == 1  # inputs must be restored before each
    assert launches_a_reading("cuda", 0.001, True) == 1
    assert launches_a_reading("thread", 5.0, True) == 1


def test_host_clocks_take_the_minimum_and_events_the_median() -> None:
    readings = [5.0, 3.0, 4.0, 9.0]
    assert summarise("wall", readings) == summarise("thread", readings) == 3.0
    assert summarise("cuda", readings) == median(readings)
    with pytest.raises(ValueError, match="no readings"):
        summarise("wall", [])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_each_arm_takes_each_place_in_a_block_about_as_often(count: int) -> None:
    names = [f"arm{i}" for i in range(count)]
    blocks = [block_order(names, i) for i in range(4 * count)]
    assert all(sorted(block) == names for block in blocks)
    for place in range(count):
        seen = Counter(block[place] for block in blocks)
        assert set(seen.values()) == {4}
    assert all(blocks[i] == blocks[i + 1][::-1] for i in range(0, len(blocks), 2))


# The timer


@pytest.mark.parametrize("clock", ["wall", "thread"])
def test_readings_are_positive_milliseconds_a_launch(clock: Clock) -> None:
    timer = HostTimer(clock)
    start = time.perf_counter()
    readings = timer.measure(calibration_work, 3, launches=4)
    wall_ms = (time.perf_counter() - start) * 1e3
    assert len(readings) == 3
    assert min(readings) > 0
    assert 4 * sum(readings) <= wall_ms * 1.01


def test_the_thread_clock_does_not_count_waiting() -> None:
    def wait() -> None:
        time.sleep(0.05)

    assert min(HostTimer("wall").measure(wait, 2)) >= 50
    assert min(HostTimer("thread").measure(wait, 2)) < 25


@pytest.mark.parametrize("clock", ["wall", "thread"])
def test_what_runs_before_a_reading_is_not_timed(clock: Clock) -> None:
    order: list[str] = []

    def before() -> None:
        order.append("before")
        for _ in range(20):
            calibration_work()

    readings = HostTimer(clock).measure(lambda: order.append("launch"), 2, before, launches=2)
    assert order == ["before", "launch", "launch"] * 2
    assert min(readings) < min(HostTimer(clock).measure(before, 2))
