"""The station: checks and times the configs of one program. The GPU's is in test_gpu_timers.py."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest

from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.station import CALIBRATION, REFERENCE, Station
from pytest_kerneltune.timers import calibration_work


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
    assert counts[1e-9] in (2, 3)  # the check, and one reading, or two
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


def test_what_this_process_found_right_is_not_checked_again() -> None:
    program = Scripted()
    station = Station(program, "wall")
    station.check_and_time({"name": "a"}, None, math.inf)
    arms = {name: ({"name": name}, None) for name in "ab"}
    for _ in range(3):
        station.compare(arms, False, 2)
    assert program.events.count("compare") == 2
    with pytest.raises(KernelError, match="output is wrong"):
        station.compare({"c": ({"wrong": True}, None)}, False, 1)
    with pytest.raises(KernelError, match="output is wrong"):
        station.compare({"c": ({"wrong": True}, None)}, False, 1)


def test_the_references_latency_is_that_of_a_later_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[float] = []
    monkeypatch.setattr(time, "perf_counter", lambda: sum(runs))

    def reference() -> None:
        runs.append(0.01 if runs else 0.15)

    class Referred(Scripted):
        def expect(self) -> None:
            reference()

    station = Station(Referred(reference=reference), "wall")
    assert station.reference_ms() == pytest.approx(10)
    assert len(runs) == 2
    assert Station(Scripted(), "wall").reference_ms() == 0


def test_a_slow_reference_is_not_run_twice_to_tell_its_latency() -> None:
    runs: list[float] = []

    class Slow(Scripted):
        def expect(self) -> None:
            time.sleep(0.35)

    assert Station(Slow(reference=lambda: runs.append(1)), "wall").reference_ms() >= 350
    assert runs == []


def test_host_clocks_have_one_method() -> None:
    station = Station(Scripted(), "thread")
    assert station.method({}, None) == station.method({}, None, "something else") == "thread CPU time, minimum"
    assert set(station.compare({"a": ({}, None)}, False, 1, "thread CPU time, minimum")) == {"a"}
    with pytest.raises(KernelError, match="nothing is timed by 'something else' here, but by 'thread CPU time"):
        station.compare({"a": ({}, None)}, False, 1, "something else")


def test_a_program_of_several_versions_is_told_whose_turn_it_is() -> None:
    class Versions(Scripted):
        shares = True

        def prepare(self, config: Any, artifact: Any) -> Callable[[], Any]:
            self.take_turn(config)
            return super().prepare(config, artifact)

        def take_turn(self, config: Any) -> None:
            self.events.append(f"turn of {config.get('name', 'launch')}")

    program = Versions(reference=lambda: program.events.append("launch"))
    station = Station(program, "wall")
    assert station.shares_inputs() is True
    assert Station(Scripted(), "wall").shares_inputs() is False
    assert station.reference_ms() > 0
    station.compare({name: ({"name": name}, None) for name in "ab"}, True, 3)
    turn = ""
    for event in program.events:
        turn = event if event.startswith("turn of ") else turn
        assert event not in ("a", "b", "launch") or turn == f"turn of {event}"
    assert program.events.count("turn of a") >= 4
