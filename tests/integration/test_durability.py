"""Runs that are killed, interrupted or robbed of their cache: each other run completes, and nothing is lost."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_kerneltune.__main__ import main

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

FINITE = "--autotune=FiniteSearch"
COUNT = 10

KERNEL = f"""
@tunable(space={{"block": choice(*range({COUNT}))}})
def kernel():
    def run(block):
        log("ran", f"{{os.getpid()}} {{block}}")
        stop_at(f"stop{{block}}")
        if block and Path(__file__).with_name("slow").exists():
            time.sleep(0.1)
        spin(MS * ({COUNT} - block))
    return run

def test_kernel(kernel): pass
"""


@pytest.fixture
def cache(suite: Suite) -> Iterator[Path]:
    suite.write("test_it.py", KERNEL)
    (suite.root / "slow").touch()
    yield suite.root / "cache"
    log = suite.started_log
    assert not log.exists() or "Traceback" not in log.read_text()


def journals(cache: Path) -> list[Path]:
    return list(cache.glob("??/*.jsonl"))


def recorded(cache: Path) -> list[int]:
    """The blocks of the trials in journals; the last line may be unfinished."""
    lines = [line for path in journals(cache) for line in path.read_bytes().splitlines(keepends=True)[1:]]
    return [json.loads(line)["config"]["block"] for line in lines if line.endswith(b"\n")]


def has_more(cache: Path, known: int) -> bool:
    return len(recorded(cache)) > known


def stopped(suite: Suite) -> subprocess.Popen[bytes]:
    """A process that was stopped while it times, and so holds the lease, a journal and the device's lock."""
    suite.write("stop3", "")
    process = suite.start(FINITE)
    suite.wait_until_stopped(process)
    return process


def go_on(suite: Suite, *processes: subprocess.Popen[bytes]) -> None:
    for path in (suite.root / "slow", *suite.root.glob("stop*")):
        path.unlink(missing_ok=True)
    for process in processes:
        process.send_signal(signal.SIGCONT)


def measured(suite: Suite) -> set[str]:
    return {line.split()[1] for line in suite.lines("ran")}


def test_runs_killed_at_random_lose_no_config(suite: Suite, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(7)
    for _ in range(3):  # rounds of which nobody survives
        known = len(recorded(cache))
        stop = suite.write(f"stop{known + 3}", "")  # no process gets to its end, however late it is killed
        both = [suite.start(FINITE) for _ in range(2)]
        suite.wait_until(partial(has_more, cache, known), both[0])
        for process in draw.sample(both, 2):
            time.sleep(draw.uniform(0.0, 0.15))
            process.kill()
            process.wait(30)
        stop.unlink()
    assert not list(cache.glob("??/*.json"))  # else they were not killed while they tuned
    kept = recorded(cache)
    assert len(kept) == len(set(kept)) >= 3  # none was measured twice
    go_on(suite)
    run = suite.run(FINITE)
    assert f"continued from {len(kept)} configs that an earlier run measured" in run.out
    blocks = [trial["config"]["block"] for trial in run.kernels["kernel"]["trials"]]
    assert sorted(blocks) == list(range(COUNT))
    capsys.readouterr()
    assert main(["cache", "verify"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{cache}: 1 entry sound"]


def test_who_is_interrupted_while_waiting_leaves_the_tuner_alone(suite: Suite, cache: Path) -> None:
    tuner = stopped(suite)
    try:
        waiter = suite.start(FINITE)
        log = suite.started_log
        suite.wait_until(lambda: f"process {tuner.pid} is tuning this kernel; waiting" in log.read_text(), waiter)
        waiter.send_signal(signal.SIGINT)
        assert waiter.wait(30) == 2
        assert list(cache.glob("??/*.lock"))
    finally:
        go_on(suite, tuner)
    assert tuner.wait(60) == 0
    assert not [*journals(cache), *cache.glob("??/*.lock")]
    assert suite.run(FINITE).kernels["kernel"]["search"]["source"] == "cache"


def test_a_cache_that_goes_away_during_the_run_is_made_again(suite: Suite, cache: Path) -> None:
    process = stopped(suite)
    cache.rename(suite.root / "moved")
    go_on(suite, process)
    assert process.wait(60) == 0
    assert "tuning cache" not in suite.started_log.read_text()
    again = suite.run(FINITE).kernels["kernel"]["search"]
    assert (again["source"], again["attempts"]) == ("cache", COUNT)


def test_a_file_in_place_of_the_cache_during_the_run_is_one_warning(suite: Suite, cache: Path) -> None:
    process = stopped(suite)
    cache.rename(suite.root / "moved")
    cache.write_text("mine")
    go_on(suite, process)
    assert process.wait(60) == 0
    log = suite.started_log.read_text()
    assert log.count("tuning cache: ") == 1
    assert measured(suite) == set(map(str, range(COUNT)))
    assert cache.read_text() == "mine"


def test_a_stopped_tuner_is_waited_for_no_longer_than_asked_and_told_of_once(suite: Suite, cache: Path) -> None:
    tuner = stopped(suite)
    assert journals(cache)
    for path in (suite.root / "slow", suite.root / "stop3"):
        path.unlink()
    try:
        run = suite.run_process(FINITE, "--autotune-wait=1")
    finally:
        go_on(suite, tuner)
    assert run.outcomes == {"passed": 1}
    assert run.out.count("tuning cache: ") == 1
    assert f"waited 1 s for process {tuner.pid}, which tunes the same kernel" in run.out
    assert tuner.wait(60) == 0
    assert suite.run(FINITE).kernels["kernel"]["search"]["attempts"] == COUNT
