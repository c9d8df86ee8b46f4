"""How well a clock can measure here: its resolution, what a reading and a launch cost, whether clocks ramp."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from statistics import median
from typing import Any

from pytest_kerneltune.timers import HostTimer, Timer, calibration_work
from pytest_kerneltune.trial import Clock

_EMPTY_READINGS = 100
_SAME_US = 5e-4  # readings closer than half a nanosecond are one: GPU times arrive as 32-bit floats of milliseconds
_FEW_STEPS = 16
_BATCHES, _LAUNCHES = 5, 100  # launches enqueued at once stay within a GPU's queue of about a thousand
_SPIN_CYCLES = 200_000  # about 0.1 ms
_COLD_READINGS, _WARM_READINGS, _DOUBLE_READINGS = 3, 150, 15
_STEPS, _STEPS_LIMIT_S = 200, 0.1
_HOST_WORKS = 10


@dataclass(frozen=True)
class Instrument:
    """What a clock reads, as measured in one process. Times are microseconds.

    ``resolution_us`` is the smallest step between two readings, ``empty_us`` what is read where nothing is launched and
    ``reading_cost_us`` the host's time for a reading; ``launch_overhead_us`` is the host's time for a launch that does
    next to nothing (a kernel through torch on a GPU, a Python function elsewhere). ``cold_us`` and ``warm_us`` are the
    times of one fixed piece of work, first and after tens of milliseconds of it. On a GPU this work waits for a given
    number of cycles, so that it tells the clock of its multiprocessors: ``sm_mhz``, out of ``sm_max_mhz`` (0: unknown).
    """

    clock: Clock
    method: str
    resolution_us: float
    empty_us: float
    reading_cost_us: float
    launch_overhead_us: float
    cold_us: float
    warm_us: float
    sm_mhz: float = 0.0
    sm_max_mhz: float = 0.0

    @property
    def ramp(self) -> float:
        """How many times longer the fixed work took at first."""
        return self.cold_us / self.warm_us if self.warm_us else 1.0

    def shortest_us(self, fraction: float) -> float:
        """The time from which on a step of the clock is at most ``fraction`` of a reading."""
        return self.resolution_us / fraction

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields, at 4 significant digits."""
        return {name: float(f"{v:.4g}") if isinstance(v, float) else v for name, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Instrument:
        """The inverse of :meth:`to_json`; raises KeyError, TypeError or ValueError on anything else."""
        if data["clock"] not in ("wall", "thread", "cuda"):
            raise ValueError(f"{data['clock']!r} is no clock")
        numbers = {f.name: float(data[f.name]) for f in fields(cls) if f.name not in ("clock", "method")}
        return cls(clock=data["clock"], method=str(data["method"]), **numbers)

    @classmethod
    def for_clock(cls, clock: Clock) -> Instrument:
        """Measured in this process, on torch's current device for "cuda": about 50 ms, and what the first use of CUDA
        costs in a process. Raises RuntimeError where the GPU fails."""
        return _gpu_instrument() if clock == "cuda" else _host_instrument(clock)


def granularity(readings: Sequence[float]) -> float:
    """The step of the clock that ``readings`` (in us) are multiples of; 0 where all are equal.

    It is the smallest distance between two different readings, or a part of it of which the other small distances are
    multiples. Large distances are not asked: their rounding errors exceed a step.
    """
    distinct = sorted(readings)
    gaps = (later - earlier for earlier, later in pairwise(distinct))
    distances = sorted(gap for gap in gaps if gap > _SAME_US)
    if not distances:
        return 0.0
    step = distances[0]
    near = [distance for distance in distances if distance <= _FEW_STEPS * step]
    for distance in near:
        step = _common_step(distance, step)
    return median(distance / round(distance / step) for distance in near)  # each is off by its rounding


def _common_step(distance: float, step: float) -> float:
    """Euclid's algorithm, with remainders that errors of the readings explain taken for none."""
    while True:
        rest = abs(distance - round(distance / step) * step)
        if rest <= max(_SAME_US, step / 10):
            return step
        distance, step = step, rest


def _nothing() -> None:
    """Where a kernel would be launched."""


def _host_instrument(clock: Clock) -> Instrument:
    timer = HostTimer(clock)
    now = time.thread_time_ns if clock == "thread" else time.perf_counter_ns
    empty = timer.measure(_nothing, _EMPTY_READINGS)
    works = HostTimer("wall").measure(calibration_work, _HOST_WORKS)
    return Instrument(
        clock,
        timer.method,
        resolution_us=granularity(_host_readings(now)) or _STEPS_LIMIT_S * 1e6,
        empty_us=1e3 * median(empty),
        reading_cost_us=1e3 * _host_ms(now),
        launch_overhead_us=1e3 * _host_ms(_nothing),
        cold_us=1e3 * works[0],
        warm_us=1e3 * min(works[1:]),
    )


def _host_readings(now: Callable[[], int]) -> list[float]:
    """What a host clock says each time it has moved on, in us since the first look."""
    first = now()
    readings: list[float] = [0.0]
    end = time.monotonic() + _STEPS_LIMIT_S
    while len(readings) < _STEPS and time.monotonic() < end:
        reading = (now() - first) / 1e3
        if reading != readings[-1]:
            readings.append(reading)
    return readings


def _host_ms(function: Callable[[], Any]) -> float:
    """Wall time in ms that a call costs the host, at best."""
    return min(HostTimer("wall").measure(function, _BATCHES, launches=_LAUNCHES))


def _gpu_instrument() -> Instrument:
    import torch

    from pytest_kerneltune.gpu_timers import EventTimer

    timer = EventTimer()
    tiny = torch.zeros(1, device="cuda")
    tiny.add_(1)
    empty = timer.measure(_nothing, _EMPTY_READINGS)
    overhead = _launch_ms(lambda: tiny.add_(1), torch.cuda.synchronize)
    event = torch.cuda.Event(enable_timing=True)
    recording = _launch_ms(event.record, torch.cuda.synchronize)
    spins = _spins(timer, torch.cuda._sleep)
    cold, warm, double = (median(readings) for readings in spins)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Instrument(
        "cuda",
        timer.method,
        resolution_us=granularity([1e3 * reading for readings in (empty, *spins) for reading in readings]),
        empty_us=1e3 * median(empty),
        reading_cost_us=2e3 * recording,
        launch_overhead_us=1e3 * overhead,
        cold_us=1e3 * cold,
        warm_us=1e3 * warm,
        sm_mhz=_SPIN_CYCLES / (1e3 * (double - warm)) if double > warm else 0.0,  # the difference holds no launch
        sm_max_mhz=getattr(properties, "clock_rate", 0) / 1e3,
    )


def _launch_ms(launch: Callable[[], Any], synchronize: Callable[[], None]) -> float:
    """Wall time in ms that enqueuing a launch costs the host, at best; the GPU is idle before each batch of them."""
    batches = []
    for _ in range(_BATCHES):
        synchronize()
        batches += HostTimer("wall").measure(launch, 1, launches=_LAUNCHES)
    synchronize()
    return min(batches)


def _spins(timer: Timer, spin: Callable[[int], None]) -> tuple[list[float], list[float], list[float]]:
    """Readings in ms of a fixed wait of the GPU, cold and warm, and of one of twice the length."""
    spin(1)  # loads the kernel
    cold = timer.measure(lambda: spin(_SPIN_CYCLES), _COLD_READINGS)
    warm = timer.measure(lambda: spin(_SPIN_CYCLES), _WARM_READINGS)[_WARM_READINGS // 2 :]
    return cold, warm, timer.measure(lambda: spin(2 * _SPIN_CYCLES), _DOUBLE_READINGS)
