"""How often kernels are launched, what readings amount to, and the station that does both."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest

from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.station import CALIBRATION, REFERENCE, HostTimer, Station, calibration_work
from pytest_kerneltune.timing import FAR, SLOW_MS, Plan, block_order, block_plan, launches_a_reading, plan, summarise
from pytest_kerneltune.trial import Clock

CLOCKS: list[Clock] = ["wall", "thread", "cuda"]
ESTIMATES = [0.0, 1e-6, 1e-4, 0.003, 0.1, 1.0, 30.0, 499.0]


# The plan


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("batch", [True, False])
def test_every_plan_is_finite_and_has_readings(clock: Clock, batch: bool) -> None:
    for estimate in [*ESTIMATES, 1e3, 1e6]:
        for chosen in (plan(clock, estimate, math.inf, batch), block_plan(clock, estimate, batch)):
            assert 1 <= chosen.readings <= 100
            assert 1 <= chosen.launches <= 10_000


@pytest.mark.parametrize("clock", CLOCKS)
def test_slower_kernels_are_launched_no_more_often_than_quicker_ones(clock: Clock) -> None:
    plans = [plan(clock, estimate, math.inf, True) for estimate in ESTIMATES]
    launches = [p.readings * p.launches for p in plans]
    assert launches == sorted(launches, reverse=True)


def test_tiny_kernels_share_a_reading_on_host_clocks_only() -> None:
    assert launches_a_reading("thread", 0.001, True) == launches_a_reading("wall", 0.001, True) == 100
    assert launches_a_reading("thread", 0.001, False) == 1  # inputs must be restored before each
    assert launches_a_reading("cuda", 0.001, True) == 1
    assert launches_a_reading("thread", 5.0, True) == 1


@pytest.mark.parametrize("clock", CLOCKS)
def test_what_is_far_from_the_best_or_very_slow_is_not_measured_well(clock: Clock) -> None:
    assert plan(clock, 30.0, 30.0 / FAR, True).readings > 2
    assert plan(clock, 30.0, 29.0 / FAR, True).readings == 2
    assert plan(clock, SLOW_MS + 1, math.inf, True) == Plan(2)
    assert block_plan(clock, SLOW_MS + 1, True) == Plan(1)
    assert block_plan(clock, SLOW_MS - 1, True).readings > 1


def test_a_far_tiny_kernel_is_read_as_the_best_one_was() -> None:
    assert plan("thread", 0.004, 0.001, True) == Plan(2, launches_a_reading("thread", 0.004, True))


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


# The station


class Scripted:
    """A program that counts; each config is work of ``config["work"]`` steps, wrong where ``config["wrong"]``."""

    def __init__(self, restores: bool = False, reference: Callable[[], Any] | None = None) -> None:
        self.restores, self.reference = restores, reference
        self.events: list[str] = []

    def prepare(self, config: Any, artifact: Any) -> Callable[[], Any]:
        name = config.get("name", "launch")

        def launch() -> Any:
            self.events.append(name)
            for _ in range(config.get("work", 1)):
                calibration_work()
            return config

        return launch

    def reset(self) -> None:
        self.events.append("reset")

    def expect(self) -> None:
        self.events.append("expect")

    def mismatch(self, returned: Any) -> str | None:
        self.events.append("compare")
        self.restores = self.restores or bool(returned.get("in_place"))
        return "is wrong" if returned.get("wrong") else None


def test_a_check_is_one_launch_on_fresh_inputs_with_the_reference_run_once() -> None:
    program = Scripted()
    station = Station(program, "wall")
    assert station.expect() == "wall clock, minimum"
    assert station.check({}, None) is None
    assert station.check({"wrong": True}, None) == "is wrong"
    assert program.events == ["expect", "reset", "launch", "compare", "reset", "launch", "compare"]


def test_a_wrong_config_is_not_timed() -> None:
    program = Scripted()
    assert Station(program, "wall").check_and_time({"wrong": True}, None, math.inf) == ("is wrong", [])
    assert program.events.count("launch") == 1


def test_a_config_far_from_the_best_is_launched_a_few_times_only() -> None:
    counts = {}
    for best_ms in (math.inf, 1e-9):
        program = Scripted(restores=True)
        wrong, readings = Station(program, "wall").check_and_time({}, None, best_ms)
        assert wrong is None
        assert min(readings) > 0
        counts[best_ms] = program.events.count("launch")
    assert counts[1e-9] == 1 + 3 + 2
    assert counts[math.inf] > counts[1e-9]


def test_inputs_are_restored_before_every_launch_where_they_must_be() -> None:
    program = Scripted()
    Station(program, "thread").check_and_time({"in_place": True}, None, math.inf)
    launches = [event for event in program.events if event in ("reset", "launch")]
    assert launches == ["reset", "launch"] * (len(launches) // 2)
    assert len(launches) > 10


def test_tiny_kernels_are_not_taken_for_slow_ones() -> None:
    """Read alone, an empty launch shows the clock's own cost, several times its own."""

    class Empty(Scripted):
        def prepare(self, config: Any, artifact: Any) -> Callable[[], Any]:
            return int

        def mismatch(self, returned: Any) -> str | None:
            return None

    station = Station(Empty(), "thread")
    _, first = station.check_and_time({}, None, math.inf)
    found = [len(station.check_and_time({}, None, min(first))[1]) for _ in range(5)]
    assert max(found) > 2


def test_arms_are_interleaved_with_reference_and_calibration() -> None:
    program = Scripted(reference=lambda: program.events.append("reference"))
    arms = {"a": ({"name": "a"}, None), "b": ({"name": "b"}, None)}
    values = Station(program, "wall").compare(arms, True, 5)
    assert set(values) == {"a", "b", REFERENCE, CALIBRATION}
    assert all(len(v) == 5 and min(v) > 0 for v in values.values())
    runs = [event for event, last in zip(program.events, ["", *program.events], strict=False) if event != last]
    assert sum(event == "a" for event in runs) >= 5
    assert set(Station(program, "wall").compare(arms, False, 1)) == {"a", "b"}


def test_without_a_reference_there_is_no_arm_of_that_name() -> None:
    assert set(Station(Scripted(), "wall").compare({"a": ({}, None)}, True, 1)) == {"a", CALIBRATION}


def test_a_comparison_tells_which_arm_is_the_slower_one() -> None:
    arms = {"quick": ({"work": 1}, None), "slow": ({"work": 3}, None)}
    values = Station(Scripted(), "thread").compare(arms, False, 5)
    ratio = median(s / q for s, q in zip(values["slow"], values["quick"], strict=True))
    assert 1.5 < ratio < 6


def test_a_comparison_in_a_fresh_process_checks_its_arms_first() -> None:
    program = Scripted()
    Station(program, "wall").compare({"a": ({"in_place": True}, None)}, False, 1)
    assert program.events.index("compare") < len(program.events) - 4
    launches = [event for event in program.events if event in ("reset", "launch")]
    assert launches == ["reset", "launch"] * (len(launches) // 2)


def test_a_comparison_refuses_an_arm_that_is_wrong_by_now() -> None:
    with pytest.raises(KernelError, match=r"b \(\{'wrong': True\}\): output is wrong"):
        Station(Scripted(), "wall").compare({"a": ({}, None), "b": ({"wrong": True}, None)}, False, 1)


def test_a_device_on_the_host_is_healthy() -> None:
    assert Station(Scripted(), "wall").healthy() is True
