"""The two timers of a CUDA GPU, and which of them a comparison uses. All of it needs one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest

from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.gpu_timers import BATCHES, EVENTS, BatchTimer, EventTimer
from pytest_kerneltune.station import REFERENCE, Station
from pytest_kerneltune.timing import BATCH, SHORT_MS


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


# One launch at a time


@pytest.mark.gpu
def test_events_read_more_for_more_work(torch: Any) -> None:
    timer = EventTimer()
    small, large = (torch.zeros(n, device="cuda") for n in (1 << 16, 1 << 28))
    quick = timer.measure(small.zero_, 60)
    slow = timer.measure(large.zero_, 5)
    assert (len(quick), len(slow)) == (60, 5)
    assert 0 < sorted(quick)[30] < sorted(slow)[2] / 10


@pytest.mark.gpu
def test_events_run_what_comes_before_ahead_of_every_reading_and_leaves_it_out(torch: Any) -> None:
    timer = EventTimer()
    calls: list[str] = []
    small, large = (torch.zeros(n, device="cuda") for n in (1 << 16, 1 << 28))

    def before() -> None:
        calls.append("before")
        large.zero_()

    def launch() -> None:
        calls.append("launch")
        small.zero_()

    bare, guarded = timer.measure(launch, 20), timer.measure(launch, 20, before)
    assert calls == ["launch"] * 20 + ["before", "launch"] * 20
    assert sorted(guarded)[10] < 3 * sorted(bare)[10]
    assert len(timer.measure(launch, 2, launches=5)) == 2
    assert calls[-10:] == ["launch"] * 10


@pytest.mark.gpu
def test_launch_overhead_hides_behind_the_flush(torch: Any) -> None:
    x = torch.zeros(256, device="cuda")
    timer = EventTimer()

    def slow_to_launch() -> None:
        until = time.perf_counter() + 20e-6
        while time.perf_counter() < until:
            pass
        x.zero_()

    bare, slow = timer.measure(x.zero_, 100), timer.measure(slow_to_launch, 100)
    assert sorted(slow)[50] < 2 * sorted(bare)[50]


# Batches


@pytest.fixture
def batches() -> BatchTimer:
    pytest.importorskip("torch")
    return BatchTimer(EventTimer().flush)


@pytest.mark.gpu
def test_a_batch_shows_no_launch_overhead(torch: Any, batches: BatchTimer) -> None:
    x = torch.zeros(256, device="cuda")

    def slow_to_launch() -> None:
        until = time.perf_counter() + 50e-6
        while time.perf_counter() < until:
            pass
        x.zero_()

    bare, slow = (median(batches.measure(launch, 5)) for launch in (x.zero_, slow_to_launch))
    assert 0 < bare < SHORT_MS
    assert slow < 0.04
    assert slow < 2 * bare


@pytest.mark.gpu
def test_batches_and_events_agree_on_kernels_that_are_not_short(torch: Any, batches: BatchTimer) -> None:
    x = torch.zeros(1 << 27, device="cuda")  # more than a cache holds
    ratio = median(batches.measure(x.zero_, 3)) / median(EventTimer().measure(x.zero_, 5))
    assert 0.7 < ratio < 1.3


@pytest.mark.gpu
def test_launches_that_wait_for_the_gpu_are_refused(torch: Any, batches: BatchTimer) -> None:
    x = torch.zeros(256, device="cuda")
    with pytest.raises(KernelError, match="they wait for it"):
        batches.measure(lambda: x.sum().item(), 1)
    assert len(batches.measure(x.zero_, 2)) == 2


@pytest.mark.gpu
def test_nothing_is_done_between_the_launches_of_a_batch(batches: BatchTimer) -> None:
    calls: list[int] = []
    batches.measure(lambda: calls.append(1), 1)
    assert len(calls) % BATCH == 0
    with pytest.raises(ValueError, match="nothing can be restored"):
        batches.measure(int, 1, before=int)
    with pytest.raises(ValueError, match="a length of its own"):
        batches.measure(int, 1, launches=2)


# Which of them


class Zeroing:
    """Fills ``size`` floats; in place (so that inputs must be restored) where ``restores``."""

    def __init__(self, size: int, reference: Callable[[Any], Any] | None = None, restores: bool = False) -> None:
        import torch

        self.restores = restores
        self._tensor = torch.zeros(size, device="cuda")
        self.reference = None if reference is None else lambda: reference(self._tensor)

    def prepare(self, config: Any, artifact: Any) -> Callable[[], Any]:
        launch: Callable[[], Any] = self._tensor.zero_
        return launch

    def reset(self) -> None:
        self._tensor.fill_(1.0)

    def expect(self) -> None:
        if self.reference is not None:
            self.reference()

    def mismatch(self, returned: Any) -> str | None:
        return "is wrong" if bool(returned.any()) else None


SHORT, LONGER, LONG = 1 << 10, 1 << 26, 1 << 29


@pytest.mark.gpu
def test_short_kernels_are_compared_by_batches_and_others_by_events() -> None:
    assert Station(Zeroing(SHORT), "cuda").method({}, None) == BATCHES
    assert Station(Zeroing(LONGER), "cuda").method({}, None) == EVENTS


@pytest.mark.gpu
def test_the_method_of_before_is_kept_where_it_works() -> None:
    short = Station(Zeroing(SHORT), "cuda")
    assert short.method({}, None, EVENTS) == EVENTS
    assert short.method({}, None, "cuda-graphs of long ago") == BATCHES
    assert Station(Zeroing(LONGER), "cuda").method({}, None, BATCHES) == BATCHES
    assert Station(Zeroing(LONG), "cuda").method({}, None, BATCHES) == EVENTS  # 50 of these take too long


@pytest.mark.gpu
def test_events_serve_where_batches_cannot() -> None:
    waits = Station(Zeroing(SHORT, reference=lambda tensor: tensor.sum().item()), "cuda")
    restored = Station(Zeroing(SHORT, restores=True), "cuda")
    for station in (waits, restored):
        assert station.method({}, None) == station.method({}, None, BATCHES) == EVENTS
    with pytest.raises(KernelError, match="changes its inputs"):
        restored.compare({"a": ({}, None)}, False, 1, BATCHES)


@pytest.mark.gpu
def test_a_comparison_uses_the_method_it_is_given() -> None:
    station = Station(Zeroing(SHORT, reference=lambda tensor: tensor.zero_()), "cuda")
    arms = {name: ({"name": name}, None) for name in "ab"}
    for method in ("", EVENTS, BATCHES):
        values = station.compare(arms, True, 4, method)
        assert set(values) == {"a", "b", REFERENCE, "copy", "arithmetic"}
        assert all(len(v) == 4 and min(v) > 0 for v in values.values())
        assert all(min(values[name]) < SHORT_MS for name in ("a", "b", REFERENCE))


@pytest.mark.gpu
def test_an_ordinary_config_costs_a_few_milliseconds() -> None:
    station = Station(Zeroing(1 << 25), "cuda")
    station.check_and_time({}, None, math.inf)
    _, far = station.check_and_time({}, None, 1e-4)
    _, close = station.check_and_time({}, None, 1.0)
    assert len(far) <= 2 < len(close)


@pytest.mark.gpu
def test_launches_that_take_turns_are_read_each_by_itself() -> None:
    short, long = Zeroing(SHORT).prepare({}, None), Zeroing(1 << 26).prepare({}, None)
    timer = EventTimer()
    first, second, third = timer.alternate([short, long, short], 50)  # more than are in flight at once
    assert [len(readings) for readings in (first, second, third)] == [50] * 3
    assert median(second) > 3 * max(median(first), median(third))
    assert median(first) < 2 * median(third) < 4 * median(first)
