"""Extra work of a known length on a clock: what a kernel is slowed by on purpose, to see whether that is noticed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from statistics import fmean
from typing import Any, Protocol

from pytest_kerneltune.timers import HostTimer, Timer
from pytest_kerneltune.trial import Clock

_HOST_STEPS = (1_000, 20_000)  # about 6 and 120 us of interpreter work
_HOST_ROUNDS, _HOST_READINGS = 10, 8
_GPU_NANOSECONDS = (2_100, 3_000)  # the same for a timer whose steps are 1 or 1.024 us
_GPU_CYCLES = (3_000, 30_000)
_GPU_ROUNDS, _GPU_READINGS = 4, 15
_LEAST_NANOSECONDS, _LEAST_CYCLES = 256, 400  # below, a wait ends when its loop first looks


class Delay(Protocol):
    """Makes work that takes so many microseconds of one clock."""

    def __call__(self, us: float) -> Callable[[], Any]:
        """Work that takes ``us`` microseconds more than that for 0."""


class HostDelay:
    """Steps of the interpreter: counted, not timed, so that they slow down with the kernel on a busy machine.

    Making it takes about 12 ms, which tell what a step takes.
    """

    def __init__(self, clock: Clock) -> None:
        slowed = [partial(followed, _nothing, partial(_steps, count)) for count in _HOST_STEPS]
        read = _in_turn(HostTimer(clock), [_nothing, *slowed], _HOST_ROUNDS, _HOST_READINGS)
        none, few, many = (1e3 * min(readings) for readings in read)
        self._few_us, self._step_us = few - none, (many - few) / (_HOST_STEPS[1] - _HOST_STEPS[0])

    def __call__(self, us: float) -> Callable[[], Any]:
        return partial(_steps, max(0, _HOST_STEPS[0] + round((us - self._few_us) / self._step_us)))


class GpuDelay:
    """A kernel of one thread that waits, on torch's current stream.

    It is launched for 0 us, too: that alone takes more than a microsecond, and as much for any length. It waits by the
    GPU's timer, or by its multiprocessor's cycles where the timer's steps are long; which of them it is, and what a
    cycle takes, is measured once (about 30 ms). Raises RuntimeError where the driver refuses.
    """

    def __init__(self) -> None:
        from pytest_kerneltune.calibration import spin_launch
        from pytest_kerneltune.gpu_timers import EventTimer

        timer, self._spin = EventTimer(), spin_launch
        waits = [spin_launch(nanoseconds=count) for count in _GPU_NANOSECONDS]
        self._cycles_per_us = 0.0
        if _more_us(timer, waits) < (_GPU_NANOSECONDS[1] - _GPU_NANOSECONDS[0]) / 2e3:
            turns = [spin_launch(cycles=count) for count in _GPU_CYCLES]
            self._cycles_per_us = (_GPU_CYCLES[1] - _GPU_CYCLES[0]) / _more_us(timer, turns)

    def __call__(self, us: float) -> Callable[[], Any]:
        if self._cycles_per_us:
            return self._spin(cycles=_LEAST_CYCLES + round(us * self._cycles_per_us))
        return self._spin(nanoseconds=_LEAST_NANOSECONDS + round(1e3 * us))


def followed(launch: Callable[[], Any], work: Callable[[], Any]) -> Any:
    """What ``launch`` returns; ``work`` is done behind it."""
    returned = launch()
    work()
    return returned


def delay_on(clock: Clock) -> Delay:
    """The delay for a kernel's clock, calibrated in this process (on torch's current device)."""
    return GpuDelay() if clock == "cuda" else HostDelay(clock)


def _steps(count: int) -> None:
    for _ in repeat(None, count):
        pass


def _nothing() -> None:
    """Where a kernel would be launched."""


def _in_turn(timer: Timer, works: Sequence[Callable[[], Any]], rounds: int, readings: int) -> list[list[float]]:
    """Readings in ms of each of ``works``; they take turns, and what each reads first does not count."""
    found: list[list[float]] = [[] for _ in works]
    for turn in range(1 + rounds):
        for work, kept in zip(works, found, strict=True):
            read = timer.measure(work, readings)
            kept += read if turn else []
    return found


def _more_us(timer: Timer, launches: Sequence[Callable[[], Any]]) -> float:
    """How much longer the second of two launches takes."""
    less, more = map(_middle_mean, _in_turn(timer, launches, _GPU_ROUNDS, _GPU_READINGS))
    return 1e3 * (more - less)


def _middle_mean(readings: Sequence[float]) -> float:
    """The mean of the middle half: finer than the clock's steps, where a median is not."""
    quarter = len(readings) // 4
    return fmean(sorted(readings)[quarter : len(readings) - quarter])
