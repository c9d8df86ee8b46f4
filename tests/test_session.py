"""Kernels evaluated by a session: what is run, what is timed, what is remembered; no pytest plugin involved."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import pytest_kerneltune
from pytest_kerneltune import CKernel, PythonKernel, integer
from pytest_kerneltune.backends import Kernel
from pytest_kerneltune.baseline import baseline_path, write_baselines
from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.gpu import cpu_device
from pytest_kerneltune.record import Baseline, measured_baseline
from pytest_kerneltune.session import Evaluation, Session
from pytest_kerneltune.settings import Settings
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.workload import Workload

SPACE = ConfigSpace({"n": integer(0, 5, default=3)})
Open = Callable[..., Session]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "project"


@pytest.fixture
def opened(root: Path, tmp_path: Path) -> Iterator[Open]:
    """Makes sessions of a run with these options (command line) and limits (ini file)."""
    sessions: list[Session] = []

    def make(**options: str) -> Session:
        ini: dict[str, str] = {
            name: options.pop(name) for name in ("compile_timeout", "run_timeout", "compile_jobs") if name in options
        }
        given = {"autotune_cache": str(tmp_path / "cache"), **options}
        sessions.append(Session(Settings.from_sources(given.get, ini.get, {}, root)))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


def workload(run: Callable[..., Any] | Kernel, space: ConfigSpace = SPACE, name: str = "kernel") -> Workload:
    kernel = run if isinstance(run, Kernel) else PythonKernel(run)
    device = cpu_device()
    return Workload(name, "perf/test_it.py", kernel, space, device_name=device.name, device_key=device.hard)


class Counted:
    """A kernel that keeps the configs it was called with."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, n: int) -> int:
        self.seen.append(n)
        sum(range(1000 * (n + 1)))
        return 1


def store_baseline(root: Path, evaluation: Evaluation, **changes: Any) -> None:
    """Write what the evaluation measured as the baseline, as --update-baselines would, with ``changes``."""
    outcome = evaluation.outcome
    assert outcome.baseline is not None
    row = replace(Baseline.from_json(outcome.baseline), **changes)
    write_baselines(root / outcome.baseline_file, {"name": outcome.device}, {outcome.name: row})


# What runs


def test_a_plain_run_checks_the_default_once_and_times_nothing(opened: Open) -> None:
    kernel = Counted()
    evaluation = opened().evaluate(workload(kernel))
    assert kernel.seen == [3]
    assert evaluation.config == {"n": 3}
    assert evaluation.outcome.latency_ms is None
    assert evaluation.outcome.verdict.kind == "checked"
    assert evaluation.outcome.search.source == "default"


def test_a_kernel_is_evaluated_once_whoever_asks(opened: Open) -> None:
    kernel = Counted()
    session = opened()
    asked, other = workload(kernel), workload(kernel, name="another")
    first = session.evaluate(asked)
    assert session.evaluate(asked) is first
    assert kernel.seen == [3]
    assert session.evaluate(other) is not first


def test_a_new_kernel_is_told_which_other_devices_have_baselines(opened: Open, root: Path) -> None:
    other = measured_baseline({"winner": [1.0] * 16}, {"n": 0}, {"method": "wall"}, {})
    for inside in (root / "perf" / "__kerneltune__", root / "baselines"):
        module = "test_it" if inside.name == "__kerneltune__" else "perf/test_it"
        write_baselines(baseline_path(inside, "another-device", module), {}, {"kernel": other})
    for options in ({}, {"baseline_dir": str(root / "baselines")}):
        verdict = opened(autotune="none", **options).evaluate(workload(Counted())).outcome.verdict
        assert (verdict.kind, verdict.summary.endswith("baselines of this file: another-device")) == ("new", True)


def test_without_a_search_the_best_known_config_is_timed(opened: Open, root: Path) -> None:
    sources = []
    for options in ({"autotune": "none"}, {"autotune": "FiniteSearch"}, {"autotune": "none"}):
        evaluation = opened(**options).evaluate(workload(Counted()))
        sources.append((evaluation.outcome.search.source, evaluation.config))
    assert sources == [("default", {"n": 3}), ("search", {"n": 0}), ("cache", {"n": 0})]
    store_baseline(root, evaluation, config={"n": 1})
    by_baseline = opened(autotune="none").evaluate(workload(Counted()))
    assert (by_baseline.outcome.search.source, by_baseline.config) == ("baseline", {"n": 1})
    assert by_baseline.outcome.latency_ms is not None
    assert by_baseline.outcome.verdict.kind != "new"
    plain = opened().evaluate(workload(Counted()))
    assert plain.config == {"n": 1}


def test_a_baseline_of_an_older_space_is_no_config_and_no_obstacle(opened: Open, root: Path) -> None:
    first = opened(autotune="FiniteSearch", autotune_cache="off").evaluate(workload(Counted()))
    store_baseline(root, first, config={"tile": [1, 2], "gone": 3})
    for autotune in ("none", "FiniteSearch"):
        evaluation = opened(autotune=autotune, autotune_cache="off").evaluate(workload(Counted()))
        assert evaluation.config in ({"n": 3}, {"n": 0})
        assert evaluation.outcome.latency_ms is not None
    assert opened().evaluate(workload(Counted())).config == {"n": 3}


def test_a_baseline_file_that_cannot_be_read_is_an_error_of_the_run(opened: Open, root: Path) -> None:
    first = opened(autotune="none").evaluate(workload(Counted()))
    path = root / first.outcome.baseline_file
    path.parent.mkdir(parents=True)
    path.write_text("{ not JSON")
    with pytest.raises(StoreError, match=r"test_it\.json"):
        opened(autotune="none").evaluate(workload(Counted()))


def test_a_corrupt_cache_entry_is_told_and_tuned_over(opened: Open, tmp_path: Path) -> None:
    options = {"autotune": "FiniteSearch"}
    opened(**options).evaluate(workload(Counted()))
    (entry,) = (tmp_path / "cache").glob("??/*.json")
    entry.write_text("garbage")
    evaluation = opened(**options).evaluate(workload(Counted()))
    assert evaluation.outcome.search.source == "search"
    assert any("corrupt" in text for text in evaluation.outcome.warnings)
    assert opened(**options).evaluate(workload(Counted())).outcome.search.source == "cache"


# What fails


def test_a_wrong_default_fails_a_plain_run(opened: Open) -> None:
    kernel = PythonKernel(lambda n: n, reference=lambda: 2)
    evaluation = opened().evaluate(workload(kernel))
    assert (evaluation.outcome.verdict.kind, evaluation.outcome.verdict.fails) == ("wrong", True)
    assert evaluation.config is None
    tuned = opened(autotune="FiniteSearch").evaluate(workload(kernel))
    assert (tuned.outcome.verdict.fails, tuned.config) == (False, {"n": 2})


def test_a_kernel_that_nothing_ever_compiles_ends_in_bounded_time(opened: Open, tmp_path: Path) -> None:
    compiler = tmp_path / "mycc"
    compiler.write_text("#!/bin/sh\nsleep 600 & sleep 600\n")
    compiler.chmod(0o755)
    session = opened(autotune="FiniteSearch", compile_timeout="0.5", compile_jobs="2")
    start = time.monotonic()
    evaluation = session.evaluate(workload(CKernel("void f(void) {}", "f", compiler=str(compiler))))
    assert time.monotonic() - start < 20
    assert evaluation.outcome.search.failures == {"compile timeout": 6}
    assert (evaluation.outcome.verdict.kind, evaluation.outcome.verdict.fails) == ("failed", True)
    assert "compile timeout: no answer within" in evaluation.outcome.verdict.details


def test_a_kernel_that_always_hangs_ends_in_bounded_time(opened: Open) -> None:
    def hang(**_: int) -> None:
        time.sleep(600)

    start = time.monotonic()
    evaluation = opened(autotune="FiniteSearch", run_timeout="0.3").evaluate(workload(hang))
    assert time.monotonic() - start < 20
    assert evaluation.outcome.search.failures == {"run timeout": 6}
    assert evaluation.outcome.verdict.fails


def test_a_latency_is_that_of_the_final_measurement_not_of_the_search(opened: Open) -> None:
    evaluation = opened(autotune="FiniteSearch").evaluate(workload(Counted()))
    outcome = evaluation.outcome
    assert outcome.latency_ms is not None
    assert 0 < outcome.latency_ms < math.inf
    assert outcome.latency_ms not in [t.latency_ms for t in evaluation.trials]
    assert outcome.baseline is not None
    assert [session["blocks"] for session in outcome.baseline["sessions"]] >= [16]


# Processes beside each other

CHILD = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
from pytest_kerneltune import integer, tune

def kernel(n):
    with open(sys.argv[1], "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(0.001)

while len(list(Path(sys.argv[2]).iterdir())) < 2:
    Path(sys.argv[2], str(os.getpid())).touch()
tune(kernel, space={"n": integer(0, 7)}, algorithm="FiniteSearch", cache="off")
"""


def test_processes_do_not_disturb_each_others_readings(tmp_path: Path) -> None:
    """Whoever has the device launches a whole config's readings before the other gets it."""
    (tmp_path / "ready").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(pytest_kerneltune.__file__).parent.parent)}
    command = [sys.executable, "-c", CHILD, str(tmp_path / "log"), str(tmp_path / "ready")]
    processes = [subprocess.Popen(command, env=environment, cwd=tmp_path) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    pids = (tmp_path / "log").read_text().split()
    switches = sum(before != after for before, after in pairwise(pids))
    assert len(pids) > 200
    assert switches <= 60  # as often as the lock was taken, not as often as kernels were launched


def test_a_driver_that_does_not_answer_keeps_nobody_waiting(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi, asked = tmp_path / "nvidia-smi", tmp_path / "asked"
    smi.write_text(f"#!/bin/sh\necho $$ >> {asked}\nexec sleep 60\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("pytest_kerneltune.nvidia._LIMIT_S", 60.0)  # who waits for it outlives it
    session = opened(autotune="RandomSearch")
    session.warm()
    session.warm()
    assert session.evaluate(workload(lambda n: n)).outcome.verdict.kind == "new"
    for pid in asked.read_text().split() if asked.exists() else ():
        assert Path(f"/proc/{pid}").exists(), "it was waited for as long as it may take"
        os.kill(int(pid), signal.SIGKILL)
