"""One look of a comparison guarded, and how often a disturbed one is made again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_kerneltune.guard import Guard, Retries, distinct, uneven

BLOCKING = {"CUDA_LAUNCH_BLOCKING": "1"}


def test_a_disturbed_measurement_is_made_again_a_few_times_with_growing_pauses() -> None:
    retries = Retries()
    pauses = [retries.pause_s(tries) for tries in (1, 2, 3, 4)]
    assert pauses == [0.5, 2.0, 5.0, None]
    assert sum(pause or 0.0 for pause in pauses) < 10.0
    assert retries.pause_s(1, lasts=True) is None
    assert Retries(()).pause_s(1) is None


@pytest.mark.parametrize("name", ["copy", "arithmetic"])
def test_readings_of_a_fixed_kernel_that_are_far_above_the_others_are_a_sign(name: str) -> None:
    even = [0.02, 0.021, 0.0205, 0.0202] * 4
    assert uneven({name: even, "winner": [1.0] * 8 + [9.0] * 8}) == []
    assert uneven({name: [*even[:14], 0.9, 0.9]}) == []  # too few: a hiccup
    (found,) = uneven({name: [*even[:12], 0.9, 0.9, 0.09, 0.09]})
    assert found.startswith(f"something else used the GPU: 4 of 16 readings of a fixed kernel ({name}) took more than")
    assert len(uneven({name: [*even[:6], *[0.9] * 10]})) == 1  # most of the time


def test_what_several_looks_saw_is_told_once() -> None:
    capped = "software power cap (SM clock 1965 to 1980 MHz, up to 241 W)"
    others = [f"process {pid} (train) holds the same GPU, idle" for pid in (7, 8)]
    looks = [capped, others[0], "busy: it waited 21% of the time", capped.replace("1965", "1950"), *others]
    assert distinct([*looks, "busy: it waited 35% of the time"]) == (capped, others[0], looks[2], others[1])


def test_a_power_cap_s_slower_clock_is_no_sign_of_somebody_else() -> None:
    assert uneven({"arithmetic": [0.02, 0.031] * 8, "copy": [0.05, 0.052] * 8}) == []
    assert uneven({}) == []
    assert uneven({"copy": []}) == []


def test_a_quiet_process_is_undisturbed() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        with Guard("thread", lambda: worker.pid, BLOCKING) as guard:
            pass
        worker.communicate(b"\n")
    assert guard.disturbances() == []  # what slows launches on a GPU does nothing here
    assert not guard.lasts
    began = time.monotonic()
    assert guard.wait(30.0) == []
    assert time.monotonic() - began < 20.0


_TRACED = """
import os, sys
from pytest_kerneltune.guard import Guard
sys.settrace(lambda *_: None)
for pid in (0, os.getpid(), os.getppid()):
    with Guard("wall", lambda: pid, {}) as guard:
        pass
    print(guard.lasts, *guard.disturbances(), sep="|")
"""


def test_a_tracer_disturbs_what_is_timed_in_its_own_process() -> None:
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", _TRACED], capture_output=True, text=True, check=True, cwd=root)
    rows = [line.split("|") for line in run.stdout.splitlines()]
    assert [(row[0], len(row)) for row in rows] == [("True", 2), ("True", 2), ("False", 1)]
    assert all(row[1].startswith("a Python tracer (__main__.<lambda>) slows the code") for row in rows[:2])


@pytest.mark.gpu
def test_a_gpu_is_guarded() -> None:
    torch = pytest.importorskip("torch")
    with Guard("cuda", os.getpid, BLOCKING) as guard:
        torch.zeros(1, device="cuda").item()
    assert guard.lasts
    assert guard.disturbances() == [
        "every launch waits for the kernel before it (CUDA_LAUNCH_BLOCKING is set): unset it"
    ]
    with Guard("cuda", os.getpid, {}) as guard:
        torch.zeros(1, device="cuda").item()
    assert guard.disturbances() == []
    assert guard.wait(5.0) == []
