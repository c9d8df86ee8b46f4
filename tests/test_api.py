"""``tune()`` from one end to the other: real searches on real kernels, in one process and in several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pytest_kerneltune
from pytest_kerneltune import CKernel, PythonKernel, TuneResult, integer, power_of_two, tune
from pytest_kerneltune.errors import NothingMeasured, SpaceError, UsageError, WrongOutput
from pytest_kerneltune.parameter import Parameter
from pytest_kerneltune.search import DEFAULT_SEARCH
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Budget, Status

PACKAGE = Path(pytest_kerneltune.__file__).parent.parent
SPACE = {"a": integer(0, 9, default=9), "b": integer(0, 9, default=9)}


def valley(a: int, b: int) -> int:
    """Cheapest at a = 3, b = 6; fails where they are equal, is wrong where a is 0."""
    if a == b:
        raise ValueError(f"{a} and {b} are equal")
    for _ in range(300 * (1 + (a - 3) ** 2 + (b - 6) ** 2)):
        pass
    return 1 if a else 0


SLOWDOWN = """
void scale(const double *x, double *y, long n) {
#if MODE == 5
    undeclared = 1;
#elif MODE == 6
    *(volatile int *)0 = 1;
#elif MODE == 7
    y++;
#endif
    for (volatile long i = 0; i < 3000 * (MODE + 1); i++) {}
    for (long i = 0; i < n; i++) y[i] = 2 * x[i];
}
"""


def c_kernel(source: str = SLOWDOWN, **options: Any) -> CKernel:
    x = np.linspace(0, 1, 64)
    y = np.zeros_like(x)
    return CKernel(source, "scale", (x, y, len(x) - 1), output=y, reference=lambda: [*(2 * x[:-1]), 0.0], **options)


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.chdir(directory)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert children() == []


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def failures(result: TuneResult) -> dict[Status, int]:
    return {Status(name): count for name, count in result.outcome.search.failures.items()}


# Searches


@pytest.mark.parametrize("algorithm", ["RandomSearch", "LFBOTreeSearch"])
def test_a_search_finds_a_good_config_of_a_python_kernel(algorithm: str, cache: Path) -> None:
    kernel = PythonKernel(valley, reference=lambda: 1)
    result = tune(kernel, space=SPACE, algorithm=algorithm, budget=Budget(configs=45), seed=1, cache=cache)
    a, b = result.config["a"], result.config["b"]
    assert (a - 3) ** 2 + (b - 6) ** 2 <= 10
    assert 1 < len(result.trials) <= 45
    assert result.latency_ms > 0
    assert result.outcome.search.source == "search"
    assert result.outcome.search.algorithm == algorithm
    assert set(failures(result)) <= {Status.RUNTIME_ERROR, Status.WRONG}
    assert valley(**result.config) == 1


def test_all_of_a_small_space_of_a_c_kernel_failures_included(cache: Path) -> None:
    result = tune(c_kernel(), space={"MODE": integer(0, 7, default=6)}, algorithm="FiniteSearch", cache=cache)
    assert result.config == {"MODE": 0}
    assert failures(result) == {Status.COMPILE_ERROR: 1, Status.CRASH: 1, Status.WRONG: 1}
    assert [t.config["MODE"] for t in result.trials] == list(range(8))
    assert result.outcome.search.stopped == "search ended"
    assert result.reference_latency_ms is not None
    assert result.speedup == pytest.approx(result.reference_latency_ms / result.latency_ms)


def test_the_default_search_on_a_c_kernel(cache: Path) -> None:
    space: dict[str, Parameter] = {"MODE": integer(0, 7, default=4), "UNUSED": power_of_two(1, 8), "-O": integer(1, 3)}
    result = tune(c_kernel(), space=space, budget=Budget(configs=20), cache=cache)
    assert result.config["MODE"] <= 2
    assert result.outcome.search.algorithm == DEFAULT_SEARCH


def test_a_plain_callable_user_configs_and_a_constraint(cache: Path) -> None:
    seen: list[tuple[int, int]] = []

    def kernel(a: int, b: int) -> None:
        seen.append((a, b))

    result = tune(
        kernel,
        space=SPACE,
        where=lambda c: c["a"] != c["b"],
        configs=[{"a": 1}, {"a": 2, "b": 4}],
        algorithm="FiniteSearch",
        cache=cache,
    )
    assert set(seen) == {(1, 9), (2, 4)}
    assert result.config in ({"a": 1, "b": 9}, {"a": 2, "b": 4})
    assert (result.reference_latency_ms, result.speedup) == (None, None)
    assert result.outcome.name == "kernel"


def test_progress_is_told(cache: Path) -> None:
    steps: list[tuple[str, int, float | None]] = []
    tune(
        valley,
        space=SPACE,
        budget=Budget(configs=3),
        algorithm="RandomSearch",
        cache=cache,
        progress=lambda name, progress, budget: steps.append((name, progress.tried, budget.configs)),
    )
    assert steps == [("valley", 1, 3), ("valley", 2, 3), ("valley", 3, 3)]


def test_a_target_latency_ends_the_search_and_only_the_like_is_answered_from_the_cache(cache: Path) -> None:
    def attempts(**limits: Any) -> tuple[str, int]:
        result = tune(valley, space=SPACE, algorithm="RandomSearch", budget=Budget(**limits), seed=1, cache=cache)
        return result.outcome.search.source, result.outcome.search.attempts

    source, first = attempts(target_ms=10_000.0)
    assert (source, first < 30) == ("search", True)
    assert attempts(target_ms=10_000.0) == ("cache", first)
    assert attempts(configs=first) == ("cache", first)
    source, more = attempts(target_ms=1e-6, configs=40)
    assert (source, more) == ("search", 40)


def test_time_is_a_budget_too_even_where_most_configs_hang(cache: Path) -> None:
    source = SLOWDOWN.replace("undeclared = 1;", 'for (;;) __asm__ volatile ("");')
    start = time.monotonic()
    space = {"MODE": integer(4, 5), "SIZE": integer(0, 99)}
    result = tune(c_kernel(source), space=space, algorithm="RandomSearch", budget=1.5, cache=cache)
    assert result.config["MODE"] == 4
    assert len(result.trials) < 100
    assert result.outcome.search.stopped == "time budget of 1.5 s"
    assert time.monotonic() - start < 30


# Failing


def test_where_no_config_is_right_that_is_what_is_said(cache: Path) -> None:
    with pytest.raises(WrongOutput, match="its output differs from its reference") as caught:
        tune(PythonKernel(lambda a, b: a + b, reference=lambda: -1), space=SPACE, budget=Budget(configs=8), cache=cache)
    assert "expected -1" in str(caught.value)


def test_where_no_config_works_the_reasons_are_given(cache: Path) -> None:
    source = "#if SIZE\n#error this size is too large\n#endif\nvoid scale(void) { *(volatile int *)0 = 1; }"
    with pytest.raises(NothingMeasured) as caught:
        tune(CKernel(source, "scale"), space={"SIZE": integer(0, 3)}, algorithm="FiniteSearch", cache=cache)
    assert "this size is too large" in str(caught.value)
    assert "SIGSEGV" in str(caught.value)
    assert "all 4 configs" in str(caught.value)


def test_a_kernel_that_cannot_be_set_up_says_why(cache: Path) -> None:
    def reference() -> None:
        raise LookupError("the weights are missing")

    for kernel in (PythonKernel(valley, reference=reference), c_kernel(compiler="cc")):
        if isinstance(kernel, CKernel):
            kernel = CKernel("void f(double *x) {}", "f", kernel.args[:1], kernel.args[0], reference)
        with pytest.raises(NothingMeasured, match="the weights are missing"):
            tune(kernel, space=SPACE, cache=cache)


def test_a_missing_compiler_is_named_with_what_to_do(cache: Path) -> None:
    with pytest.raises(NothingMeasured, match="no C compiler called 'no-such-cc' is on the PATH: install one"):
        tune(c_kernel(compiler="no-such-cc"), space={"MODE": integer(0, 1)}, algorithm="FiniteSearch", cache=cache)


def test_what_cannot_travel_to_a_worker_is_named(cache: Path) -> None:
    lock = threading.Lock()
    y = np.zeros(3)

    def reference() -> Any:
        with lock:
            return y

    with pytest.raises(NothingMeasured, match=r"'lock', which .*reference uses"):
        tune(CKernel("void f(double *y) {}", "f", (y,), y, reference), space={"N": integer(0, 1)}, cache=cache)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"algorithm": "NoSuchSearch"}, DEFAULT_SEARCH),
        ({"effort": "huge"}, "quick"),
        ({"budget": -1}, "budget"),
        ({"budget": Budget(configs=0)}, "configs"),
        ({"space": {"a": 3}}, "integer, power_of_two"),
        ({"space": {}, "configs": [{"x": 1}]}, "configs= holds"),
        ({"configs": [{"a": 99}]}, "configs= holds"),
        ({"kernel": 3}, "must return a callable"),
        ({"where": lambda c: c["a"] > 99}, "where= refuses"),
        ({"space": ConfigSpace(SPACE), "where": bool}, "constraint of its own"),
        ({"space": {"num warps": integer(1, 2)}, "kernel": c_kernel()}, "cannot be a C macro"),
    ],
)
def test_wrong_arguments_are_usage_errors(arguments: dict[str, Any], text: str, cache: Path) -> None:
    given = {"kernel": valley, "space": SPACE, "cache": cache, **arguments}
    with pytest.raises(UsageError, match=text):
        tune(given.pop("kernel"), **given)


def test_an_interrupt_keeps_what_was_measured(cache: Path, tmp_path: Path) -> None:
    flag = tmp_path / "flag"

    def kernel(n: int) -> None:
        if n == 5 and not flag.exists():
            raise KeyboardInterrupt

    def run() -> TuneResult:
        return tune(kernel, space={"n": integer(0, 7)}, algorithm="FiniteSearch", cache=cache)

    with pytest.raises(KeyboardInterrupt):
        run()
    flag.touch()
    result = run()
    assert len(result.trials) == 8
    assert "continued from 5 configs that an earlier run measured" in result.outcome.search.messages


def test_an_interrupt_while_a_c_kernel_hangs_leaves_no_process(
    tmp_path: Path, interrupt_when: Callable[[Callable[[], object]], None]
) -> None:
    hangs = f'fclose(fopen("{tmp_path}/runs", "w")); for (;;) __asm__ volatile ("");'
    kernel = CKernel(f"#include <stdio.h>\nvoid scale(void) {{ {hangs} }}", "scale")
    interrupt_when((tmp_path / "runs").exists)
    with pytest.raises(KeyboardInterrupt):
        tune(kernel, space={"SIZE": integer(0, 99)}, algorithm="RandomSearch", cache="off")


# The cache


def test_a_second_run_takes_the_cached_winner_unless_forced_or_asked_for_more(cache: Path) -> None:
    def run(**options: Any) -> TuneResult:
        return tune(valley, space=SPACE, algorithm="RandomSearch", cache=cache, **options)

    first = run(budget=Budget(configs=12))
    again = run(budget=Budget(configs=12))
    assert again.outcome.search.source == "cache"
    assert again.config == first.config
    assert len(again.trials) == len(first.trials) == 12
    smaller = run(budget=Budget(configs=5))
    assert smaller.outcome.search.source == "cache"
    forced = run(budget=Budget(configs=5), force=True)
    assert forced.outcome.search.source == "search"
    assert len(forced.trials) == 5
    more = run(budget=Budget(configs=20))
    assert more.outcome.search.source == "search"
    assert len(more.trials) == 20


def test_a_budget_below_what_is_known_measures_nothing_and_still_answers(cache: Path) -> None:
    def run(configs: int, effort: str) -> TuneResult:
        budget = Budget(configs=configs)
        return tune(valley, space=SPACE, algorithm="RandomSearch", cache=cache, budget=budget, effort=effort)

    run(12, "quick")
    result = run(5, "full")  # a quick search does not answer for a full one, but its trials do count
    assert len(result.trials) == 12
    assert result.outcome.search.stopped == "budget of 5 configs"


def test_without_a_cache_nothing_is_kept(cache: Path) -> None:
    for _ in range(2):
        result = tune(valley, space=SPACE, algorithm="RandomSearch", cache="off", budget=Budget(configs=2))
        assert result.outcome.search.source == "search"
    assert not cache.exists()


def test_a_cached_winner_that_no_longer_works_is_replaced(cache: Path, tmp_path: Path) -> None:
    new_driver = tmp_path / "driver"

    def kernel(n: int) -> None:
        if n == 0 and new_driver.exists():
            raise RuntimeError("not on this driver")
        for _ in range(3000 * (n + 1)):
            pass

    def run() -> TuneResult:
        return tune(kernel, space={"n": integer(0, 4)}, algorithm="FiniteSearch", cache=cache)

    assert run().config == {"n": 0}
    assert run().outcome.search.source == "cache"
    new_driver.touch()
    result = run()
    assert result.config == {"n": 1}
    assert result.outcome.search.source == "search"
    assert run().outcome.search.source == "cache"


# Several processes

CHILD = """
import json, os, signal, sys, time
from pytest_kerneltune import integer, tune
log, cache = sys.argv[1:3]

def kernel(n):
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {n}\\n")
    if os.path.exists(f"{log}-stops-at-{n}"):
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.001)

if __name__ == "__main__":
    result = tune(kernel, space={"n": integer(0, 19)}, algorithm="FiniteSearch", cache=cache, name="shared")
    search = result.outcome.search
    print(json.dumps([result.config["n"], search.source, search.attempts, list(search.messages)]))
"""


@pytest.fixture
def start(tmp_path: Path, cache: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a process that tunes, and logs what it runs."""
    started: list[subprocess.Popen[str]] = []

    def child() -> subprocess.Popen[str]:
        script = tmp_path / "script.py"
        script.write_text(CHILD)
        process = subprocess.Popen(
            [sys.executable, script, tmp_path / "log", cache],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        )
        started.append(process)
        return process

    yield child
    for process in started:
        process.kill()
        process.communicate()


def runs(tmp_path: Path) -> list[list[int]]:
    path = tmp_path / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [[int(word) for word in line.split()] for line in lines if len(line.split()) == 2]


def test_of_several_processes_one_tunes(start: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    processes = [start() for _ in range(3)]
    answers = [json.loads(p.communicate(timeout=60)[0]) for p in processes]
    assert sorted(source for _, source, _, _ in answers) == ["cache", "cache", "search"]
    assert [attempts for _, _, attempts, _ in answers] == [20] * 3
    assert len({n for n, *_ in answers}) == 1
    tried = {pid: {n for p, n in runs(tmp_path) if p == pid} for pid in {p.pid for p in processes}}
    assert sorted(map(len, tried.values())) == [1, 1, 20]


def test_a_search_killed_half_way_is_continued(start: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    process = stopped(start, tmp_path)
    process.kill()
    process.wait()
    done = {n for _, n in runs(tmp_path)}
    assert done == set(range(9))
    (tmp_path / "log").unlink()
    _, source, attempts, messages = json.loads(start().communicate(timeout=60)[0])
    assert (source, attempts) == ("search", 20)
    assert any("continued from 8 configs" in message for message in messages)
    searched: list[int] = []
    for _, n in runs(tmp_path):
        if n not in searched:
            searched.append(n)
    assert set(range(8, 20)) <= set(searched)


def stopped(start: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> subprocess.Popen[str]:
    """A process that was stopped while it runs the ninth config for the first time; no other will be."""
    stop = tmp_path / "log-stops-at-8"
    stop.touch()
    process = start()
    stat = Path(f"/proc/{process.pid}/stat")
    while (state := stat.read_text().rpartition(")")[2].split()[0]) != "T":
        assert state not in "ZX"
        time.sleep(0.01)
    stop.unlink()
    return process


def test_whoever_waits_takes_over_from_one_that_is_killed(
    start: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    first = stopped(start, tmp_path)
    second = start()
    time.sleep(0.3)  # or, where it takes longer to start, it finds one that is dead
    first.kill()
    first.wait()
    _, source, attempts, _ = json.loads(second.communicate(timeout=60)[0])
    assert (source, attempts) == ("search", 20)


C_CHILD = """
from pytest_kerneltune import CKernel, integer, tune
kernel = CKernel('void f(void) { for (;;) __asm__ volatile (""); }', "f")
tune(kernel, space={"N": integer(0, 9)}, cache="off")
"""


def test_a_killed_process_leaves_no_worker_behind() -> None:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    with subprocess.Popen([sys.executable, "-c", C_CHILD], env=environment) as process:
        until = time.monotonic() + 30
        workers: list[int] = []
        while len(workers) < 2 and time.monotonic() < until:
            listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            workers = [int(pid) for pid in listed.split()]
            time.sleep(0.02)
        time.sleep(0.5)
        process.kill()
    assert len(workers) >= 2
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/exe").exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in workers)


def test_a_space_error_is_a_usage_error_of_its_own(cache: Path) -> None:
    with pytest.raises(SpaceError):
        tune(valley, space={"": integer(0, 1)}, cache=cache)
