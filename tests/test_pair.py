"""Two versions of a kernel as one: who is checked, whose inputs lie in the memory, what a fault of the base's costs."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np
import pytest

from pytest_kerneltune import CKernel, PythonKernel
from pytest_kerneltune.backends import Kernel
from pytest_kerneltune.backends.exported import ExportedKernel
from pytest_kerneltune.backends.pair import BASE, PairKernel
from pytest_kerneltune.backends.tagged import tagged
from pytest_kerneltune.benchmark import Benchmark, Limits
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.packing import unpack
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.station import Station
from pytest_kerneltune.timers import calibration_work
from pytest_kerneltune.trial import Config, Status

HERE = sys.modules[__name__]
LIMITS = Limits(compile_s=30.0, run_s=5.0)
SOURCE = """
#include <stdlib.h>
void f(const double *x, double *y, long n) {
    for (long k = 0; k < 400 * WORK; k++)
        for (long i = 0; i < n; i++) y[i] = y[i] * 0.5 + 2 * x[i] * (k + 1 == 400 * WORK);
    for (long i = 0; i < n; i++) y[i] = 2 * x[i];
    BODY
}
"""


def c_kernel(body: str = "", n: int = 100, start: float = 0.0, **options: Any) -> CKernel:
    x = np.linspace(start, start + 1, n)
    y = np.zeros_like(x)
    options = {"reference": lambda: 2 * x, **options}
    return CKernel(SOURCE.replace("BODY", body), "f", (x, y, n), output=y, **options)


def c_program(today: CKernel, base: CKernel) -> Any:
    return unpack(PairKernel(today, base).packed([HERE]))


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers(jobs=1)
    yield made
    made.close()


def pair_bench(today: Kernel, base: Kernel, workers: Workers) -> Benchmark:
    return Benchmark(PairKernel(today, base), ConfigSpace({}), workers, LIMITS, modules=[HERE])


def versions(**config: Any) -> dict[str, Config]:
    return {"winner": config, "base": tagged(config, BASE)}


def ratio(blocks: dict[str, list[float]], arm: str = "base", other: str = "winner") -> float:
    return median(a / b for a, b in zip(blocks[arm], blocks[other], strict=True))


# Kernels of the same clock, in the same kind of process


def test_versions_that_cannot_be_timed_alike_are_no_pair() -> None:
    thread, wall, python = c_kernel(), c_kernel(clock="wall"), PythonKernel(int)
    with pytest.raises(KernelError, match="timed by the 'thread' clock, and was by 'wall' at the base"):
        PairKernel(thread, wall)
    with pytest.raises(KernelError, match="runs in this process, and ran in a worker process at the base"):
        PairKernel(python, wall)

    class Elsewhere(CKernel):
        def launch_env(self) -> dict[str, str]:
            return {"OMP_NUM_THREADS": "2"}

    with pytest.raises(KernelError, match=r"was given \{'OMP_NUM_THREADS': '2'\} at the base"):
        PairKernel(wall, Elsewhere(SOURCE, "f", clock="wall"))


def test_a_pair_is_today_s_kernel_where_no_config_is_asked_about() -> None:
    today, base = c_kernel("/* today */"), c_kernel("/* base */")
    pair = PairKernel(today, base)
    assert isinstance(pair, Kernel)
    assert (pair.kind, pair.clock, pair.isolated) == ("c", "thread", True)
    assert pair.describe() == today.describe()
    for config, kernel in ({"WORK": 1}, today), (tagged({"WORK": 1}, BASE), base):
        assert pair.compile_task(config) == kernel.compile_task({"WORK": 1})
    assert pair.is_called_alike
    assert not PairKernel(today, c_kernel(n=101)).is_called_alike


# Benchmarks


def test_c_versions_are_compiled_checked_and_compared(workers: Workers) -> None:
    bench = pair_bench(c_kernel(), c_kernel("this is not C;"), workers)
    assert bench.start() == "thread CPU time, minimum"
    assert bench.check(versions(WORK=1)["base"]).status is Status.COMPILE_ERROR
    base = ExportedKernel.of(c_kernel("/* the same */"), [HERE], [{"WORK": 1}, {"WORK": 2}])
    bench = pair_bench(c_kernel(), base, workers)
    slow = {**versions(WORK=1), "base at winner": tagged({"WORK": 2}, BASE)}
    trials = [bench.check(config) for config in slow.values()]
    assert [trial.status for trial in trials] == [Status.OK] * 3
    for _ in range(2):
        blocks = bench.compare(slow, True, 7, bench.method(slow["winner"]))
        assert set(blocks) == {*slow, "reference", "calibration"}
        assert 1.5 < ratio(blocks, "base at winner") < 2.7
        assert 0.7 < ratio(blocks) < 1.4
        bench.restart()
    bench.close()


@pytest.mark.parametrize(
    ("base", "status", "text"),
    [
        (c_kernel("abort();"), Status.CRASH, "SIGABRT"),
        (c_kernel("y[0] += 1;"), Status.WRONG, "1 of 100"),
        (c_kernel("y[n] = 1;"), Status.WRONG, "reaches outside argument 1"),
        (c_kernel(reference=lambda: 1 / 0), Status.RUNTIME_ERROR, "the base's reference failed: ZeroDivisionError"),
    ],
    ids=["crash", "wrong", "outside", "reference"],
)
def test_what_is_wrong_with_the_base_is_its_own(base: CKernel, status: Status, text: str, workers: Workers) -> None:
    bench = pair_bench(c_kernel(), base, workers)
    arms = versions(WORK=1)
    trial = bench.check(arms["base"])
    assert (trial.status, text in trial.reason) == (status, True), trial.reason
    assert bench.check(arms["winner"]).status is Status.OK
    assert set(bench.compare({"winner": arms["winner"]}, False, 2)) == {"winner"}
    with pytest.raises(KernelError, match=text):
        bench.compare(arms, False, 2)
    assert bench.check(arms["winner"]).status is Status.OK
    bench.close()


def test_python_versions_run_in_turn_in_this_process() -> None:
    events: list[str] = []

    def run(name: str, steps: int) -> Callable[..., int]:
        def launch(work: int) -> int:
            events.append(name)
            for _ in range(steps * work):
                calibration_work()
            return work

        return launch

    today = PythonKernel(run("today", 20), reference=lambda: 1, setup=lambda: events.append("set up"))
    base = PythonKernel(run("base", 80), reference=lambda: 1)
    assert PairKernel(today, base).is_called_alike
    assert PairKernel(today, base).shares_inputs
    bench, arms = pair_bench(today, base, Workers(1)), versions(work=1)
    assert [bench.check(config).status for config in arms.values()] == [Status.OK] * 2
    bench.restart()
    blocks = bench.compare(arms, True, 5)
    assert set(blocks) == {*arms, "reference", "calibration"}
    assert 1.6 < ratio(blocks) < 10  # of 4, on a busy machine
    runs = [event for event, last in zip(events, ["", *events], strict=False) if event != last and event != "set up"]
    assert runs.count("today") > 5
    assert runs.count("base") > 5
    assert {before for before, event in itertools.pairwise(events) if event == "today"} == {"set up"}


def test_a_python_version_that_raises_is_reported_and_today_s_works() -> None:
    def broken(work: int) -> int:
        raise RuntimeError(f"cannot do {work}")

    bench, arms = pair_bench(PythonKernel(lambda work: work), PythonKernel(broken), Workers(1)), versions(work=1)
    trial = bench.check(arms["base"])
    assert (trial.status, trial.reason) == (Status.RUNTIME_ERROR, "RuntimeError: cannot do 1")
    assert bench.check(arms["winner"]).status is Status.OK
    with pytest.raises(KernelError, match="cannot do 1"):
        bench.compare(arms, False, 2)


def test_a_base_that_cannot_be_loaded_fails_its_own_configs(workers: Workers) -> None:
    class Unloadable(CKernel):
        def packed(self, by_value: Sequence[Any]) -> bytes:
            return super().packed(by_value)[:-9]

    bench, arms = pair_bench(c_kernel(), Unloadable(SOURCE.replace("BODY", ""), "f"), workers), versions(WORK=1)
    path = list(sys.path)
    assert bench.check(arms["winner"]).status is Status.OK
    assert "the base's kernel cannot be loaded: " in bench.check(arms["base"]).reason
    assert sys.path == path
    bench.close()


# One memory for the arrays of C kernels


def test_only_versions_on_the_same_content_differ_by_nothing_but_their_code(workers: Workers) -> None:
    for start, expected in ((0.0, True), (7.0, False)):
        bench = pair_bench(c_kernel(), c_kernel(start=start), workers)
        assert bench.has_same_inputs() is expected
        bench.close()


def test_c_versions_share_the_memory_of_their_arrays_where_they_are_alike() -> None:
    both = c_program(c_kernel(), c_kernel("/* other code, other inputs */", start=7.0))
    assert both.shares
    assert Station(both, "thread").shares_inputs()
    assert not c_program(c_kernel(), c_kernel(n=101)).shares
    assert not c_program(c_kernel(), CKernel(SOURCE, "f")).shares
    today, base = both._today, both._base
    assert [b.ctypes.data for b in today._buffers.values()] == [b.ctypes.data for b in base._buffers.values()]
    (x, y), first = today._copies[:2], []
    assert x[0] == 0
    for config in (tagged({}, BASE), {}, tagged({}, BASE), {}):
        both.take_turn(config)
        first.append((x[0], y[0]))
        y[0] = len(first)
    assert first == [(7, 0), (0, 1), (7, 2), (0, 3)]  # what is an output of both is left as it is
