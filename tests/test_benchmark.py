"""Configs in, trials out: real compilers, real launches, real failures of every kind."""

from __future__ import annotations

import math
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_kerneltune import CKernel, PythonKernel, choice, integer
from pytest_kerneltune.backends import Kernel
from pytest_kerneltune.benchmark import Benchmark, Limits, Site
from pytest_kerneltune.compilation import Compilation
from pytest_kerneltune.errors import KernelError, UsageError, WorkerCrash, WorkerTimeout
from pytest_kerneltune.launcher import Launcher, Workers
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Status, Trial
from pytest_kerneltune.turns import Release, Unshared
from pytest_kerneltune.worker import Reply, Service, Worker

AsSoonAs = Callable[[Callable[[], object], Callable[[], object]], None]
InterruptWhen = Callable[[Callable[[], object]], None]
QUICK = Limits(compile_s=30.0, run_s=1.0)

MODES = {
    "right": "",
    "slow": "for (volatile long i = 0; i < 300000; i++) {}",
    "no_compile": "this is not C;",
    "static_assert": '_Static_assert(0, "tile too big");',
    "segfault": "*(volatile int *)0 = 1;",
    "abort": "abort();",
    "exit": "exit(3);",
    "division": "volatile int zero = 0; y[0] = 7 / zero;",
    "hang": 'for (;;) __asm__ volatile ("");',
    "chatter": 'for (;;) puts("and on and on");',
    "wrong": "y[0] += 1;",
    "nan": "y[1] = 0.0 / 0.0;",
    "outside": "y[n] = 1;",
}
SOURCE = """
#include <stdio.h>
#include <stdlib.h>
void f(const double *x, double *y, long n) {
    for (long i = 0; i < n; i++) y[i] = 2 * x[i];
    BODY
}
"""


def kernel_with(modes: dict[str, str] = MODES, **options: Any) -> CKernel:
    """A kernel whose parameter ``MODE`` is how it misbehaves, and whose ``SIZE`` changes nothing."""
    x = np.linspace(0, 1, 50)
    y = np.zeros_like(x)
    branches = "\n".join(f"#if MODE == {i}\n{body}\n#endif" for i, body in enumerate(modes.values()))
    source = SOURCE.replace("BODY", branches)
    return CKernel(source, "f", (x, y, len(x)), output=y, reference=lambda: 2 * x, **options)


SPACE = ConfigSpace({"MODE": integer(0, len(MODES) - 1), "SIZE": integer(0, 99)})


def config(mode: str, size: int = 0) -> Config:
    return {"MODE": list(MODES).index(mode), "SIZE": size}


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Shared by all tests, as they are by all kernels of a run."""
    made = Workers(jobs=2)
    yield made
    made.close()


@pytest.fixture
def bench(workers: Workers) -> Benchmark:
    made = Benchmark(kernel_with(), SPACE, workers, QUICK)
    assert made.start() == "thread CPU time, minimum"
    return made


def python_bench(run: Callable[..., Any], limits: Limits = QUICK, **options: Any) -> Benchmark:
    space = ConfigSpace({"n": integer(0, 1000)})
    return Benchmark(PythonKernel(run, **options), space, Workers(1), limits)


def statuses(trials: list[Trial]) -> list[Status]:
    return [t.status for t in trials]


# One config of each fate


def test_each_fate_of_a_config_is_told_apart_and_none_hurts_the_next(bench: Benchmark) -> None:
    expected = {
        "right": Status.OK,
        "no_compile": Status.COMPILE_ERROR,
        "static_assert": Status.COMPILE_ERROR,
        "segfault": Status.CRASH,
        "slow": Status.OK,
        "abort": Status.CRASH,
        "exit": Status.CRASH,
        "division": Status.CRASH,
        "hang": Status.RUN_TIMEOUT,
        "chatter": Status.RUN_TIMEOUT,
        "wrong": Status.WRONG,
        "nan": Status.WRONG,
        "outside": Status.WRONG,
    }
    seen: list[Trial] = []
    trials = bench.measure([config(mode) for mode in expected], done=seen.append)
    found = dict(zip(expected, trials, strict=True))
    assert {mode: trial.status for mode, trial in found.items()} == expected
    assert [t.config for t in trials] == [config(mode) for mode in expected]
    assert {id(t) for t in seen} == {id(t) for t in trials}
    for trial in trials:
        assert trial.ok == math.isfinite(trial.latency_ms) == bool(trial.samples_ms) == (not trial.reason)
    assert "tile too big" in found["static_assert"].reason
    assert "SIGSEGV" in found["segfault"].reason
    assert "status 3" in found["exit"].reason
    assert "and on and on\nand on and on" in found["chatter"].log
    assert len(found["chatter"].log) <= 4000
    assert "1 of 50 elements differ" in found["wrong"].reason
    assert found["outside"].reason == "output reaches outside argument 1"
    assert found["slow"].latency_ms > found["right"].latency_ms == min(found["right"].samples_ms)
    assert all(t.compile_s > 0 for t in trials)
    assert found["hang"].measure_s >= QUICK.run_s


def test_a_check_compiles_and_runs_but_does_not_time(bench: Benchmark) -> None:
    assert bench.check(config("right")).status is Status.OK
    assert bench.check(config("right")).latency_ms == math.inf
    assert bench.check(config("wrong")).status is Status.WRONG
    assert bench.check(config("no_compile")).status is Status.COMPILE_ERROR
    assert bench.check(config("segfault")).status is Status.CRASH


def test_a_config_of_an_older_space_fails_like_any_other(bench: Benchmark) -> None:
    """A baseline may hold one: its space had other parameters then."""
    assert bench.check({"SIZE": 1}).status is Status.OK  # MODE is undefined, which the preprocessor takes for 0
    assert bench.check({"MODE": 0, "SIZE": 1, "GONE": 2}).status is Status.OK
    assert bench.check({"n": 5}).status is Status.COMPILE_ERROR  # a macro in the way of an argument's name
    assert python_bench(lambda n: n).check({"m": 5}).status is Status.RUNTIME_ERROR


def test_nothing_to_measure_is_no_trial(bench: Benchmark) -> None:
    assert bench.measure([]) == []


def test_compiled_configs_are_not_compiled_again(workers: Workers, tmp_path: Path) -> None:
    kernel = kernel_with(compiler=compiler(tmp_path, f'echo x >> {tmp_path}/count; exec cc "$@"'))
    bench = Benchmark(kernel, SPACE, workers, QUICK)
    bench.measure([config("right"), config("no_compile")])
    assert bench.check(config("right")).ok
    assert not bench.check(config("no_compile")).ok
    assert isinstance(bench.artifact(config("right")), bytes)
    bench.compare({"a": config("right")}, False, 1)
    assert (tmp_path / "count").read_text().count("x") == 2


def test_the_artifact_of_a_config_that_does_not_compile_is_an_error(bench: Benchmark) -> None:
    with pytest.raises(KernelError, match="tile too big"):
        bench.artifact(config("static_assert"))


def test_a_parameter_that_c_cannot_define_is_the_users_error(workers: Workers) -> None:
    bench = Benchmark(kernel_with(), ConfigSpace({"num warps": integer(1, 2)}), workers, QUICK)
    with pytest.raises(UsageError, match="cannot be a C macro"):
        bench.measure([{"num warps": 1}])


# The reference


@pytest.mark.parametrize("isolated", [True, False])
def test_a_reference_that_fails_ends_it_before_anything_is_measured(workers: Workers, isolated: bool) -> None:
    def reference() -> None:
        raise LookupError("the weights are missing")

    y = np.zeros(3)
    kernel: Kernel = CKernel("void f(double *y) {}", "f", (y,), output=y, reference=reference)
    kernel = kernel if isolated else PythonKernel(int, reference=reference)
    with pytest.raises(KernelError, match=r"its reference failed: LookupError: the weights are missing") as caught:
        Benchmark(kernel, SPACE, workers, QUICK).start()
    assert "in reference" in str(caught.value)


def test_a_reference_that_crashes_the_worker_is_a_kernel_error(workers: Workers) -> None:
    y = np.zeros(3)
    kernel = CKernel("void f(double *y) {}", "f", (y,), output=y, reference=lambda: os._exit(9))
    with pytest.raises(KernelError, match="exited with status 9"):
        Benchmark(kernel, SPACE, workers, QUICK).start()


def test_a_reference_slower_than_the_limit_of_a_config_survives_crashes(workers: Workers) -> None:
    """Each fresh worker runs it again, and not at the expense of the config that it replaced a worker for."""
    x = np.ones(3)

    def reference() -> Any:
        time.sleep(1.2)
        return x

    source = "#include <stdlib.h>\nvoid f(double *x) { if (MODE) abort(); for (int i = 0; i < 3; i++) x[i] = 1; }"
    kernel = CKernel(source, "f", (x,), output=x, reference=reference)
    bench = Benchmark(kernel, ConfigSpace({"MODE": integer(0, 9)}), workers, QUICK)
    bench.start()
    trials = bench.measure([{"MODE": mode} for mode in (1, 0)])
    assert statuses(trials) == [Status.CRASH, Status.OK]


# Limits


def compiler(folder: Path, text: str) -> str:
    path = folder / "mycc"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + 60
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


def test_a_compiler_that_hangs_for_some_configs_fails_those_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_soon_as: AsSoonAs, advance: Callable[[float], None]
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    workers = Workers(jobs=2)
    text = (
        f'case "$*" in *SIZE=7*) echo $$ > {tmp_path}/pid; touch "$TMPDIR/left"; sleep 600 & wait;; esac; exec cc "$@"'
    )
    kernel = kernel_with(compiler=compiler(tmp_path, text))
    bench = Benchmark(kernel, SPACE, workers, Limits(compile_s=60))
    as_soon_as(lambda: len(bench.account.compiling) == 2 and has_lines(tmp_path / "pid"), lambda: advance(60))
    trials = bench.measure([config("right", size) for size in (7, 1, 2)])
    assert statuses(trials) == [Status.COMPILE_TIMEOUT, Status.OK, Status.OK]
    assert "no answer within 6" in trials[0].reason
    assert wait_until(lambda: not alive(int((tmp_path / "pid").read_text())))
    assert list(temporary.glob("*/left"))
    workers.close()
    assert list(temporary.iterdir()) == []


def has_lines(path: Path) -> bool:
    return path.exists() and path.read_text().endswith("\n")


def test_a_search_may_shorten_the_limit_of_a_compile(workers: Workers, tmp_path: Path) -> None:
    kernel = kernel_with(compiler=compiler(tmp_path, 'sleep 600; exec cc "$@"'))
    bench = Benchmark(kernel, SPACE, workers, Limits())
    assert statuses(bench.measure([config("right")], compile_s=0.5)) == [Status.COMPILE_TIMEOUT]


class Recorded(Workers, Launcher):
    """Answers every request at once with the next of ``replies``, and keeps the limits that it was given."""

    connection = None
    seconds_left = 0.0

    def __init__(self, *replies: Reply) -> None:
        super().__init__(jobs=1)
        self.replies, self.limits = list(replies), list[float]()
        self.reply: Reply | None = None

    @property
    def busy(self) -> bool:
        return self.reply is not None

    def submit(self, method: str, *args: Any, timeout: float) -> None:
        if method == "check_and_time":
            self.limits.append(timeout)
            self.reply = self.replies.pop(0)
        else:
            self.reply = Reply({"expect": "a clock", "reference_ms": 0.0}.get(method))

    def poll(self) -> Reply | None:
        reply, self.reply = self.reply, None
        return reply

    def restart(self) -> None: ...

    def launcher(self, *_: Any) -> Launcher:
        return self

    def compilers(self) -> list[Worker]:
        return [RecordedCompiler(self)]


class RecordedCompiler(Worker):
    def __init__(self, recorded: Recorded) -> None:
        super().__init__()
        self.recorded = recorded

    @property
    def connection(self) -> Any:
        return None

    def submit(self, service: Service, method: str, *args: Any, timeout: float) -> None:
        self.recorded.limits.append(timeout)

    def poll(self) -> Reply | None:
        return self.recorded.replies.pop(0)


TIMEOUT = Reply(error=WorkerTimeout("no answer"), seconds=30.0)
CRASH = Reply(error=WorkerCrash("lost"), seconds=0.001)


def ran(seconds: float, wrong: str | None = None) -> Reply:
    return Reply((wrong, [] if wrong else [1.0]), seconds=seconds)


@pytest.mark.parametrize(
    ("replies", "limits"),
    [
        ([TIMEOUT] * 6, [30, 30, 30, 2, 2, 2]),
        ([CRASH, TIMEOUT, TIMEOUT, TIMEOUT, CRASH], [30, 30, 30, 30, 2]),
        ([ran(0.001), TIMEOUT, TIMEOUT], [30, 2, 2]),
        ([ran(0.2), ran(5.0), ran(0.1), TIMEOUT], [30, 10, 10, 5]),
        ([ran(20.0), TIMEOUT], [30, 30]),
        ([ran(0.001, wrong="is wrong"), ran(8.0)], [30, 30]),
        ([CRASH, CRASH], [30, 30]),
    ],
)
def test_the_limit_of_a_run_follows_what_is_known(replies: list[Reply], limits: list[float]) -> None:
    """All hang: short. One was quick: a multiple of that. A wrong one may do too little, and says nothing."""
    recorded = Recorded(*replies)
    bench = Benchmark(PythonKernel(int), ConfigSpace({"n": integer(0, 99)}), recorded, Limits())
    assert len(bench.measure([{"n": n} for n in range(len(replies))])) == len(replies)
    assert recorded.limits == limits


@pytest.mark.parametrize(
    ("replies", "limits"),
    [([TIMEOUT] * 5, [60, 60, 60, 10, 10]), ([Reply(b""), TIMEOUT, TIMEOUT, TIMEOUT, Reply(b"")], [60] * 5)],
)
def test_the_limit_of_a_compile_is_shortened_where_none_ever_ends(replies: list[Reply], limits: list[float]) -> None:
    recorded = Recorded(*replies)
    compilation = Compilation(kernel_with(), SPACE, recorded, 60.0)
    for i in range(len(replies)):
        compilation.add(config("right", i))
        compilation.feed(1)
        compilation.collect()
    assert recorded.limits == limits


def test_a_hang_is_interrupted_and_the_next_config_runs() -> None:
    def run(n: int) -> int:
        time.sleep(600 if n else 0)
        return 1

    trials = python_bench(run, reference=lambda: 1).measure([{"n": n} for n in (1, 0, 1)])
    assert statuses(trials) == [Status.RUN_TIMEOUT, Status.OK, Status.RUN_TIMEOUT]
    assert all(t.measure_s > 0 for t in trials)


def test_out_of_memory_is_out_of_resources() -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch's is called."""

    def run(**_: int) -> None:
        raise OutOfMemoryError("tried to allocate 2 GiB")

    assert statuses(python_bench(run).measure([{"n": 1}])) == [Status.OUT_OF_RESOURCES]


def test_a_reason_is_one_short_line() -> None:
    def run(n: int) -> None:
        raise ValueError(f"\n\nfirst {'x' * 1000}\nsecond" if n else "")

    trials = python_bench(run).measure([{"n": 0}, {"n": 1}])
    assert trials[0].reason == "ValueError"
    assert len(trials[1].reason) <= 300
    assert "\n" not in trials[1].reason
    assert "in run" in trials[1].log


# The deadline


def test_a_deadline_within_a_batch_keeps_what_was_measured(workers: Workers, advance: Callable[[float], None]) -> None:
    bench = Benchmark(kernel_with(), SPACE, workers, Limits())
    configs = [config("right", size) for size in range(40)]
    seen: list[Trial] = []

    def done(trial: Trial) -> None:
        seen.append(trial)
        if len(seen) == 3:
            advance(600)

    trials = bench.measure(configs, deadline=time.monotonic() + 600, done=done)
    assert 3 <= len(trials) < 40
    assert all(t.ok for t in trials)
    assert len(seen) == len(trials)
    assert not any(w.busy for w in workers.compilers())
    assert statuses(bench.measure(configs[:2])) == [Status.OK, Status.OK]


def test_a_deadline_ends_a_compile_that_hangs(
    workers: Workers, tmp_path: Path, as_soon_as: AsSoonAs, advance: Callable[[float], None]
) -> None:
    kernel = kernel_with(compiler=compiler(tmp_path, f"echo $$ >> {tmp_path}/pids; sleep 600 & wait"))
    bench = Benchmark(kernel, SPACE, workers, Limits(compile_s=600))
    as_soon_as(lambda: has_lines(tmp_path / "pids"), lambda: advance(120))
    assert bench.measure([config("right", n) for n in range(5)], deadline=time.monotonic() + 120) == []
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert 1 <= len(pids) <= 2
    assert wait_until(lambda: not any(map(alive, pids)))
    assert not any(w.busy for w in workers.compilers())


def test_a_deadline_that_has_passed_measures_no_more_than_is_under_way(bench: Benchmark) -> None:
    assert bench.measure([config("right", n) for n in range(3)], deadline=time.monotonic() - 1) == []


def test_on_host_clocks_configs_are_timed_while_no_compiler_runs(workers: Workers) -> None:
    bench = Benchmark(kernel_with({"right": "volatile int size = SIZE;"}), SPACE, workers, QUICK)
    assert len(bench.measure([config("right", n) for n in range(20)])) == 20
    compiling, timing = bench.account.compiling, bench.account.timing
    assert len(compiling) == len(timing) == 20
    assert not any(began < ended and end > start for start, ended in timing for began, end in compiling)
    assert min(timing) < max(compiling)  # not only when all are compiled


# Interrupts


def test_an_interrupt_while_compiling_leaves_no_compiler_behind(
    workers: Workers, tmp_path: Path, interrupt_when: InterruptWhen
) -> None:
    kernel = kernel_with(
        compiler=compiler(
            tmp_path, f'case "$*" in *SIZE=9*) echo $$ >> {tmp_path}/pids; sleep 600 & wait;; esac; exec cc "$@"'
        )
    )
    bench = Benchmark(kernel, SPACE, workers, Limits(compile_s=60))
    assert bench.check(config("right")).ok
    interrupt_when(lambda: has_lines(tmp_path / "pids"))
    with pytest.raises(KeyboardInterrupt):
        bench.measure([config("right", 9)])
    assert wait_until(lambda: not any(alive(int(pid)) for pid in (tmp_path / "pids").read_text().split()))
    assert statuses(bench.measure([config("right", 1)])) == [Status.OK]


def test_an_interrupt_while_a_kernel_runs_leaves_the_bench_usable(
    workers: Workers, tmp_path: Path, interrupt_when: InterruptWhen
) -> None:
    modes = {**MODES, "hang": f'fclose(fopen("{tmp_path}/runs", "w")); {MODES["hang"]}'}
    bench = Benchmark(kernel_with(modes), SPACE, workers, Limits(run_s=60))
    assert bench.check(config("right")).ok
    interrupt_when((tmp_path / "runs").exists)
    with pytest.raises(KeyboardInterrupt):
        bench.measure([config("hang")])
    assert statuses(bench.measure([config("right", 1)])) == [Status.OK]


def test_an_error_of_the_progress_display_leaves_the_bench_usable(bench: Benchmark, workers: Workers) -> None:
    def done(_: Trial) -> None:
        raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="terminal"):
        bench.measure([config("right", n) for n in range(9)], done=done)
    assert not any(w.busy for w in workers.compilers())
    assert statuses(bench.measure([config("right", 1)])) == [Status.OK]


# Comparing


def test_configs_are_compared_side_by_side(bench: Benchmark) -> None:
    values = bench.compare({"quick": config("right"), "slow": config("slow")}, True, 6)
    assert {name: len(v) for name, v in values.items()} == {
        "quick": 6,
        "slow": 6,
        "reference": 6,
        "calibration": 6,
    }
    assert min(values["slow"]) > max(values["quick"])
    bench.restart()
    again = bench.compare({"quick": config("right")}, False, 2)
    assert set(again) == {"quick"}


@pytest.mark.parametrize(
    ("mode", "text"),
    [("static_assert", "new .*tile too big"), ("segfault", "SIGSEGV"), ("wrong", "new .*1 of 50")],
)
def test_a_comparison_with_a_config_that_fails_is_an_error(bench: Benchmark, mode: str, text: str) -> None:
    with pytest.raises(KernelError, match=text):
        bench.compare({"old": config("right"), "new": config(mode)}, False, 2)
    assert set(bench.compare({"old": config("right")}, False, 1)) == {"old"}


def test_a_python_kernel_is_compared_in_this_process() -> None:
    bench = python_bench(lambda n: sum(range(n)), reference=lambda: None)
    values = bench.compare({"a": {"n": 10}, "b": {"n": 1000}}, True, 3)
    assert set(values) == {"a", "b", "reference", "calibration"}
    bench.restart()
    assert min(bench.compare({"b": {"n": 1000}}, False, 3)["b"]) > 0


def test_a_comparison_has_no_more_time_than_its_blocks_may_take() -> None:
    class Comparing(Recorded):
        def submit(self, method: str, *args: Any, timeout: float) -> None:
            super().submit(method, *args, timeout=timeout)
            if method == "compare":
                self.limits.append(timeout)
                self.reply = Reply({name: [1.0] for name in args[0]})

    recorded = Comparing(ran(0.001))
    bench = Benchmark(PythonKernel(int), ConfigSpace({"n": integer(0, 99)}), recorded, Limits())
    bench.measure([{"n": 1}])
    bench.compare({"a": {"n": 1}, "b": {"n": 2}}, False, 2)
    bench.compare({"a": {"n": 1}}, True, 1)
    assert recorded.limits == pytest.approx([30, 2 * (2 + 2 * 0.01), 4 * (2 + 0.01)])  # of two, and of four arms


# The device's lock


def test_the_lock_is_held_while_the_device_works_and_only_then(workers: Workers) -> None:
    held: list[bool] = [False]
    seen: list[bool] = []

    class OneAtATime(Unshared):
        def take(self) -> Release:
            assert not held[0], "locks do not nest"
            held[0] = True
            return lambda: held.__setitem__(0, False)

    def run(**_: int) -> int:
        seen.append(held[0])
        return 1

    space = ConfigSpace({"n": integer(0, 9)})
    bench = Benchmark(
        PythonKernel(run, reference=lambda: seen.append(held[0])), space, workers, QUICK, [Site({}, OneAtATime())]
    )
    bench.start()
    bench.measure([{"n": 1}], done=lambda _: seen.append(not held[0]))
    bench.check({"n": 1})
    bench.compare({"a": {"n": 1}}, True, 1)
    assert all(seen)
    assert not held[0]


def test_the_lock_is_given_back_after_every_failure(workers: Workers) -> None:
    entered: list[int] = []
    lock = threading.Lock()

    class Guarded(Unshared):
        def take(self) -> Release | None:  # type: ignore[override]
            if not lock.acquire(blocking=False):
                return None
            entered.append(1)
            return lock.release

    bench = Benchmark(kernel_with(), SPACE, workers, QUICK, [Site({}, Guarded())])
    bench.measure([config(mode) for mode in ("segfault", "hang", "wrong", "right")])
    with pytest.raises(KernelError):
        bench.compare({"a": config("abort")}, False, 1)
    assert not lock.locked()
    assert len(entered) == 6  # setting up among them


# Sharing


def test_a_kernel_that_was_given_up_while_it_was_set_up_holds_nobody_up(workers: Workers) -> None:
    Benchmark(kernel_with(), SPACE, workers, QUICK).begin()
    assert Benchmark(kernel_with(), SPACE, workers, QUICK).check(config("right")).ok


def test_kernels_of_one_run_share_their_workers(workers: Workers) -> None:
    first, second = Benchmark(kernel_with(), SPACE, workers, QUICK), Benchmark(kernel_with(), SPACE, workers, QUICK)
    for bench in (first, second, first):
        assert bench.check(config("right")).ok
    pids = {w._process.pid for w in workers.compilers() if w._process is not None}
    assert len(pids) <= 2


def test_choices_of_any_json_value_reach_the_kernel(workers: Workers) -> None:
    y = np.zeros(1)
    source = """
    static const int order[] = {ORDER};
    void f(double *y) { y[0] = sizeof(TYPE) + order[1] + 10 * FLAG; }
    """
    kernel = CKernel(source, "f", (y,), output=y, reference=lambda: [21.0])
    parameters = {"TYPE": choice("float", "double"), "ORDER": choice((1, 7), (7, 1)), "FLAG": choice(True, False)}
    space = ConfigSpace({**parameters, "-funroll-loops": choice(True, False), "opt": choice("-O1", "-O3 -g0")})
    bench = Benchmark(kernel, space, workers, QUICK)
    right = [t.config for t in bench.measure(list(space.enumerate())) if t.ok]
    assert len(right) == 4
    assert all((c["TYPE"], c["ORDER"], c["FLAG"]) == ("float", (1, 7), True) for c in right)
