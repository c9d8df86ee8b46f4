"""Where kernels run: checks and times the configs of one program on one device.

A station lives in this process (plain callables) or in an isolated worker (everything else); ``benchmark.py`` talks to
both alike. It keeps no results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pytest_kerneltune.backends import Program
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.timing import SLOW_MS, Plan, block_order, block_plan, launches_a_reading, plan, summarise
from pytest_kerneltune.trial import Clock, Config

REFERENCE, CALIBRATION = "reference", "calibration"
_CALIBRATION_STEPS = 40_000
_REWARM_BELOW_MS = 5.0  # what a longer kernel inherits in the caches does not matter


class Timer(Protocol):
    """Reads one clock."""

    @property
    def method(self) -> str:
        """What is measured, in words; readings of different methods are never compared."""

    def measure(
        self, launch: Callable[[], Any], count: int, before: Callable[[], Any] | None = None, launches: int = 1
    ) -> list[float]:
        """``count`` readings in ms, each the mean of ``launches`` launches; ``before`` runs untimed before each."""


class HostTimer:
    """The wall clock, or the CPU time of this thread."""

    def __init__(self, clock: Clock) -> None:
        self._now = time.thread_time_ns if clock == "thread" else time.perf_counter_ns
        self.method = "thread CPU time, minimum" if clock == "thread" else "wall clock, minimum"

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


class Station:
    """Checks and times configs; ``program`` is the program itself or its packed bytes."""

    def __init__(self, program: Program | bytes, clock: Clock) -> None:
        if isinstance(program, bytes):
            from pytest_kerneltune.packing import unpack

            program = unpack(program)
        self._program: Any = program
        self._clock = clock
        self._timer = _timer(clock)
        self._expected = False

    def expect(self) -> str:
        """Run the reference once and keep what it returns, so that configs can be checked; the timer's method."""
        if not self._expected:
            self._program.expect()
            self._expected = True
        return self._timer.method

    def check(self, config: Config, artifact: Any) -> str | None:
        """Launch ``config`` once on fresh inputs; how its output differs from the reference's, None if it doesn't."""
        self.expect()
        launch = self._program.prepare(config, artifact)
        self._program.reset()
        wrong: str | None = self._program.mismatch(launch())
        return wrong

    def check_and_time(self, config: Config, artifact: Any, best_ms: float) -> tuple[str | None, list[float]]:
        """``check``, then the readings in ms where it is right; fewer readings where it is far from ``best_ms``."""
        if (wrong := self.check(config, artifact)) is not None:
            return wrong, []
        launch = self._program.prepare(config, artifact)
        chosen = plan(self._clock, self._estimate(launch), best_ms, not self._program.restores)
        return None, self._readings(launch, chosen)

    def compare(self, arms: Mapping[str, tuple[Config, Any]], yardsticks: bool, blocks: int) -> dict[str, list[float]]:
        """Interleaved readings of several configs: arm name to ``blocks`` block values in ms.

        Each config is checked once more first: that is also how a fresh process learns whether the kernel's inputs
        must be restored between launches. With ``yardsticks`` the reference (if there is one) and, on host clocks, a
        fixed piece of work of our own are arms too. Each block launches every arm in turn, after an untimed launch of
        the same arm. Raises KernelError where a config is wrong now.
        """
        program = self._program
        for name, (config, artifact) in arms.items():
            if (wrong := self.check(config, artifact)) is not None:
                raise KernelError(f"{name} ({dict(config)}): output {wrong}")
        launches = {name: program.prepare(config, artifact) for name, (config, artifact) in arms.items()}
        if yardsticks and program.reference is not None:
            launches[REFERENCE] = program.reference
        if yardsticks and self._clock != "cuda":
            launches[CALIBRATION] = calibration_work
        estimates = {name: self._estimate(launch) for name, launch in launches.items()}
        plans = {n: block_plan(self._clock, ms, not program.restores) for n, ms in estimates.items()}
        values: dict[str, list[float]] = {name: [] for name in launches}
        for block in range(blocks):
            for name in block_order(list(launches), block):
                if estimates[name] < _REWARM_BELOW_MS:
                    self._readings(launches[name], Plan(1))  # the caches are then this arm's own
                values[name].append(self._read(launches[name], plans[name]))
        return values

    def healthy(self) -> bool:
        """Whether the device still answers after a failed launch (a CUDA error may have poisoned the context)."""
        if self._clock == "cuda":
            import torch

            torch.cuda.synchronize()
            torch.zeros(1, device="cuda").item()
        return True

    def _estimate(self, launch: Callable[[], Any]) -> float:
        """About how many ms a launch takes, read as it will be timed: alone, a tiny kernel looks like a slow one."""
        first = self._read(launch, Plan(1))
        if first > SLOW_MS:
            return first
        return self._read(launch, Plan(2, launches_a_reading(self._clock, first, not self._program.restores)))

    def _read(self, launch: Callable[[], Any], plan: Plan) -> float:
        return summarise(self._clock, self._readings(launch, plan))

    def _readings(self, launch: Callable[[], Any], plan: Plan) -> list[float]:
        before = self._program.reset if self._program.restores else None
        return self._timer.measure(launch, plan.readings, before, plan.launches)


def calibration_work() -> int:
    """A fixed piece of interpreter work (about 2 ms) that tells how fast this machine runs today."""
    total = 0
    for i in range(_CALIBRATION_STEPS):
        total += i & 7
    return total


def _timer(clock: Clock) -> Timer:
    if clock != "cuda":
        return HostTimer(clock)
    from pytest_kerneltune.gpu import EventTimer

    timer: Timer = EventTimer()
    return timer
