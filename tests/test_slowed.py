"""Kernels slowed on purpose: real work, on the kernel's own clock, in whichever process it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import pytest

from pytest_kerneltune import CKernel, CudaKernel, PythonKernel
from pytest_kerneltune.backends import Kernel
from pytest_kerneltune.backends.slowed import SlowedKernel
from pytest_kerneltune.backends.tagged import tagged
from pytest_kerneltune.benchmark import Benchmark, Limits
from pytest_kerneltune.calibration import arithmetic_launch
from pytest_kerneltune.delay import delay_on, followed
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.gpu_timers import BatchTimer, EventTimer
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.station import Station
from pytest_kerneltune.timers import HostTimer
from pytest_kerneltune.trial import Clock, Config

SUM = """
double total(const double *x, long n) {
    double sum = 0;
    for (long round = 0; round < ROUNDS; round++)
        for (long i = 0; i < n; i++) sum += x[i];
    return sum;
}
"""
SCALE = """
extern "C" __global__ void scale(const float *x, float *y)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = FACTOR * x[i];
}
"""


def c_kernel() -> CKernel:
    """About 0.5 ms: additions that wait for each other."""
    x = np.ones(10_000)
    return CKernel(SUM, "total", (x, len(x)), returns=float, reference=lambda: 50_000.0, flags=("-O1",))


def python_kernel() -> PythonKernel:
    """Counts to ROUNDS * 10,000; it takes no other parameter."""

    def run(ROUNDS: int) -> int:  # noqa: N803 - as the C macro is called
        total = 0
        for i in range(ROUNDS * 10_000):
            total += i & 1
        return total

    return PythonKernel(run, reference=lambda: 25_000)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers(jobs=1)
    yield made
    made.close()


def compared(kernel: Kernel, workers: Workers, arms: dict[str, Config], blocks: int = 8) -> dict[str, float]:
    """Median of each arm in us."""
    benchmark = Benchmark(SlowedKernel(kernel), ConfigSpace({}), workers, Limits())
    values = benchmark.compare(arms, False, blocks)
    benchmark.close()
    return {name: 1e3 * median(readings) for name, readings in values.items()}


@pytest.mark.parametrize("make", [c_kernel, python_kernel])
def test_a_comparison_shows_the_work_behind_a_kernel(make: Any, workers: Workers) -> None:
    """In some attempt: who else runs on the machine may take the core while an arm is timed."""

    def shows() -> bool:
        kernel, config = make(), {"ROUNDS": 5}
        latency_us = compared(kernel, workers, {"winner": config}, 3)["winner"]
        arms = {"winner": tagged(config, latency_us), "base": config, "0": tagged(config, 0)}
        found = compared(kernel, workers, arms)
        is_longer = found["winner"] - found["base"] == pytest.approx(latency_us, rel=0.5)
        return bool(is_longer and found["0"] == pytest.approx(found["base"], rel=0.3))

    assert any(shows() for _ in range(5))


def slowed_us(clock: Clock, us: float) -> float:
    """How long a launch takes that ``us`` of work follow; both are measured here."""
    slowed, timer = partial(followed, int, delay_on(clock)(us)), HostTimer(clock)
    return 1e3 * min(reading for _ in range(10) for reading in timer.measure(slowed, 10))


@pytest.mark.parametrize("us", [20.0, 500.0])
@pytest.mark.parametrize("clock", ["thread", "wall"])
def test_the_work_behind_a_launch_is_as_long_as_was_asked_for(clock: Clock, us: float) -> None:
    """In some attempt: the core may be faster while the work is calibrated than while it is timed, or slower."""
    assert any(slowed_us(clock, us) == pytest.approx(us, rel=0.35) for _ in range(20))


def test_a_kernel_sees_its_own_config_only() -> None:
    kernel = SlowedKernel(python_kernel())
    config = tagged({"ROUNDS": 5}, 30)
    assert kernel(config, None) == kernel.program().prepare(config, None)() == 25_000
    assert Station(kernel.program(), "wall").check(tagged({"ROUNDS": 4}, 30), None) is not None
    native = c_kernel()
    assert SlowedKernel(native).compile_task(config) == native.compile_task({"ROUNDS": 5})


def test_a_slowed_kernel_says_what_it_is_made_of() -> None:
    for kernel in (c_kernel(), python_kernel()):
        slowed = SlowedKernel(kernel)
        assert isinstance(slowed, Kernel)
        assert (slowed.kind, slowed.clock, slowed.isolated) == (kernel.kind, kernel.clock, kernel.isolated)
        assert slowed.describe() == kernel.describe()
        assert slowed.launch_env() == kernel.launch_env()


@pytest.mark.parametrize("tag", [-1, float("inf"), float("nan"), "2 us", True])
def test_a_tag_is_a_time(tag: Any) -> None:
    with pytest.raises(KernelError, match="must be microseconds"):
        SlowedKernel(python_kernel()).program().prepare(tagged({"ROUNDS": 1}, tag), None)


@pytest.mark.gpu
@pytest.mark.parametrize("us", [5.0, 20.0])
def test_a_gpu_waits_as_long_as_was_asked_for(us: float) -> None:
    delay, events = delay_on("cuda"), EventTimer()
    carrier = arithmetic_launch()
    none, more = (partial(followed, carrier, delay(wait)) for wait in (0.0, us))
    for measure in (partial(events.measure, count=20), partial(BatchTimer(events.flush).measure, count=2)):
        added = [1e3 * (median(measure(more)) - median(measure(none))) for _ in range(6)]
        assert median(added) == pytest.approx(us, rel=0.05, abs=0.4)


@pytest.mark.gpu
def test_a_kernel_on_a_gpu_is_slowed_in_its_worker_and_compared_with_yardsticks(workers: Workers) -> None:
    import torch

    pytest.importorskip("cupy")
    x, y = torch.randn(1 << 22, device="cuda"), torch.empty(1 << 22, device="cuda")
    kernel = CudaKernel(SCALE, "scale", (x, y), grid=(1 << 22) // 256, block=256, output=y, reference=lambda: 2 * x)
    arms = {"winner": tagged({"FACTOR": 2}, 10.0), "base": {"FACTOR": 2}}
    benchmark = Benchmark(SlowedKernel(kernel), ConfigSpace({}), workers, Limits())
    begun = time.monotonic()
    values = benchmark.compare(arms, True, 8)
    assert time.monotonic() - begun < 60
    benchmark.close()
    assert set(values) == {"winner", "base", "reference", "copy", "arithmetic"}
    added = median(slow - fast for slow, fast in zip(values["winner"], values["base"], strict=True))
    assert 1e3 * added == pytest.approx(10, rel=0.1)
