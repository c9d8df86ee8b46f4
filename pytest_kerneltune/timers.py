"""What reads the clocks: the host's here, a CUDA GPU's in ``gpu_timers``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from pytest_kerneltune.trial import Clock

_CALIBRATION_STEPS = 40_000


class Timer(Protocol):
    """Reads one clock."""

    @property
    def method(self) -> str:
        """What is measured, in words; readings of different methods are never compared."""

    def wait(self) -> None:
        """Return when all that was launched has run."""

    def measure(
        self, launch: Callable[[], Any], count: int, before: Callable[[], Any] | None = None, launches: int = 1
    ) -> list[float]:
        """``count`` readings in ms, each the mean of ``launches`` launches; ``before`` runs untimed before each."""


class HostTimer:
    """The wall clock, or the CPU time of this thread."""

    def __init__(self, clock: Clock) -> None:
        self._now = time.thread_time_ns if clock == "thread" else time.perf_counter_ns
        self.method = "thread CPU time, minimum" if clock == "thread" else "wall clock, minimum"

    def wait(self) -> None:
        """What is launched on the host has run when the call returns."""

    def measure(
        self, launch: Callable[[], Any], count: int, before: Callable[[], Any] | None = None, launches: int = 1
    ) -> list[float]:
        now, repeat, readings = self._now, range(launches), []
        for _ in range(count):
            if before is not None:
                before()
            start = now()
            for _ in repeat:
                launch()
            readings.append((now() - start) / 1e6 / launches)
        return readings


def calibration_work() -> int:
    """A fixed piece of interpreter work (about 2 ms) that tells how fast this machine runs today."""
    total = 0
    for i in range(_CALIBRATION_STEPS):
        total += i & 7
    return total


def timer_for(clock: Clock) -> Timer:
    """The timer that searches use on ``clock``."""
    if clock != "cuda":
        return HostTimer(clock)
    from pytest_kerneltune.gpu_timers import EventTimer

    timer: Timer = EventTimer()
    return timer
