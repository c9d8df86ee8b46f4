"""Processors watched: quotas, waiting, clock governors, on folders like the kernel's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest

from pytest_kerneltune.guard.host_watch import HostWatch, Machine
from pytest_kerneltune.trial import Clock

HOST_CLOCKS: tuple[Clock, ...] = tuple(clock for clock in get_args(Clock) if clock != "cuda")


def throttled(folder: Path, times: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("cpu.stat").write_text(f"nr_periods 900\nnr_throttled {times}\nthrottled_usec 12345\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path / "proc", tmp_path / "groups", tmp_path / "cpu")
    for folder in (machine.proc / "self", machine.proc / "7", machine.groups, machine.processors / "cpu0" / "cpufreq"):
        folder.mkdir(parents=True)
    return machine


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ("0::/user.slice/job", "user.slice/job"),
        ("0::/user.slice/job", "user.slice"),
        ("0::/not/mounted/here", "."),
        ("4:cpu,cpuacct:/docker/abc", "cpu,cpuacct/docker/abc"),
        ("1:cpu:/docker/abc", "cpu"),
    ],
)
@pytest.mark.parametrize("clock", HOST_CLOCKS)
def test_a_quota_disturbs_the_wall_clock_and_is_worth_a_word_on_thread_time(
    machine: Machine, line: str, folder: str, clock: Clock
) -> None:
    machine.proc.joinpath("self", "cgroup").write_text(f"9:memory:/docker/abc\n{line}\n")
    throttled(machine.groups / "memory" / "docker" / "abc", 1)
    throttled(machine.groups / folder, 5)
    with HostWatch(clock, 7, machine) as watch:
        throttled(machine.groups / "memory" / "docker" / "abc", 100)
        throttled(machine.groups / folder, 8)
    said = ["the container's CPU quota stopped this process 3 times: give it more processor time"]
    assert watch.disturbances() == (said if clock == "wall" else [])
    assert watch.remarks() == (said if clock == "thread" else [])


def test_waiting_for_a_processor_and_clocks_that_follow_the_load_are_remarks(machine: Machine) -> None:
    machine.proc.joinpath("7", "schedstat").write_text("5000 1000000 20\n")
    machine.processors.joinpath("cpu0", "cpufreq", "scaling_governor").write_text("schedutil\n")
    with HostWatch("wall", 7, machine) as watch:
        machine.proc.joinpath("7", "schedstat").write_text("9000 90000000000 25\n")
    assert watch.disturbances() == []
    assert watch.remarks() == [
        "the machine is busy: the kernel's process waited for a processor 100% of the time",
        "the processors' clocks follow their load (frequency governor schedutil)",
    ]
    machine.processors.joinpath("cpu0", "cpufreq", "scaling_governor").write_text("performance\n")
    with HostWatch("thread", 7, machine) as watch:
        pass
    assert watch.remarks() == []


def test_a_machine_that_says_nothing_is_undisturbed(tmp_path: Path) -> None:
    with HostWatch("wall", 7, Machine(tmp_path, tmp_path, tmp_path)) as watch:
        pass
    assert (watch.disturbances(), watch.remarks()) == ([], [])


def test_this_machine_can_be_watched() -> None:
    with HostWatch("thread", os.getpid()) as watch:
        sum(range(1000))
    assert watch.disturbances() == []
    assert all(isinstance(line, str) for line in watch.remarks())
