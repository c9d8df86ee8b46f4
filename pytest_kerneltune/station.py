"""Where kernels run: checks and times the configs of one program on one device.

A station lives in this process (plain callables) or in an isolated worker (everything else); ``benchmark.py`` talks to
both alike. It keeps no results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_kerneltune.backends import Program
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.timers import HostTimer as HostTimer
from pytest_kerneltune.timers import Timer as Timer
from pytest_kerneltune.timers import calibration_work as calibration_work
from pytest_kerneltune.timers import timer_for
from pytest_kerneltune.timing import (
    BATCH,
    BATCHES_A_BLOCK,
    SHORT_MS,
    SLOW_MS,
    Plan,
    block_order,
    block_plan,
    launches_a_reading,
    next_readings,
    summarise,
)
from pytest_kerneltune.trial import Clock, Config

if TYPE_CHECKING:
    from pytest_kerneltune.gpu_timers import EventTimer

REFERENCE, CALIBRATION = "reference", "calibration"
_REWARM_BELOW_MS = 5.0  # what a longer kernel inherits in the caches does not matter
_NOT_TINY_MS = 2.0  # what takes no longer when it is first launched may still take a microsecond
_REPEATED_BELOW_S = 0.3  # a reference whose first run takes longer is not run once more to tell its latency
_LONGEST_BATCH_MS = 20.0
_IDLE_S, _WARM_UP_S, _WARM_UP_LAUNCHES = 0.1, 0.1, 5
_LONGEST_CALIBRATION_MS = _LONGEST_BATCH_MS / BATCH  # on a GPU where ours take longer they would cost too much
_CALIBRATION_PLAN = Plan(5, 8)  # a block of ours on a GPU: 1.5 ms; what varies most, a first launch, is an eighth
_NO_CONFIG: Config = MappingProxyType({})


@dataclass(frozen=True)
class _Arm:
    """What a comparison launches, and about how long a launch takes by the station's own timer.

    ``config`` is what the program is told before the arm's turn; yardsticks have none. ``plan`` is how a
    block is taken where that does not follow from the latency.
    """

    launch: Callable[[], Any]
    latency_ms: float
    config: Config = field(default_factory=dict)
    plan: Plan | None = None


class Station:
    """Checks and times configs; ``program`` is the program itself or its packed bytes.

    What was found right in this process is not checked again when it is compared.
    """

    def __init__(self, program: Program | bytes, clock: Clock) -> None:
        if isinstance(program, bytes):
            from pytest_kerneltune.packing import unpack

            program = unpack(program)
        self._program: Any = program
        self._clock = clock
        self._timer = timer_for(clock)
        self._first_s: float | None = None
        self._used = 0.0
        self._right: dict[str, float] = {}
        """Latency in ms of each config known to be right, and of the yardsticks."""

    def expect(self) -> str:
        """Run the reference once and keep what it returns, so that configs can be checked; the timer's method."""
        if self._first_s is None:
            start = time.perf_counter()
            self._program.expect()
            self._timer.wait()
            self._first_s = time.perf_counter() - start
        return self._timer.method

    def reference_ms(self) -> float:
        """About how long one more run of the reference takes, in wall ms; 0 where there is none.

        It is run again to know that, unless its first run was long: then this is what that took.
        """
        self.expect()
        first_s = self._first_s or 0.0
        reference = self._program.reference
        if reference is None:
            return 0.0
        if first_s > _REPEATED_BELOW_S:
            return first_s * 1e3
        self._take_turn()
        start = time.perf_counter()
        reference()
        self._timer.wait()
        return (time.perf_counter() - start) * 1e3

    def check(self, config: Config, artifact: Any) -> str | None:
        """Launch ``config`` once on fresh inputs; how its output differs from the reference's, None if it doesn't."""
        wrong, _ = self._check(self._program.prepare(config, artifact))
        return wrong

    def check_and_time(self, config: Config, artifact: Any, best_ms: float) -> tuple[str | None, list[float]]:
        """``check``, then the readings in ms where it is right; fewer readings where it is far from ``best_ms``."""
        launch = self._program.prepare(config, artifact)
        wrong, at_most_ms = self._check(launch)
        if wrong is not None:
            return wrong, []
        launches = self._launches_a_reading(launch, at_most_ms)
        readings: list[float] = []
        while count := next_readings(self._clock, readings, best_ms, launches, at_most_ms):
            readings += self._readings(launch, Plan(count, launches))
        self._right[_key(config)] = summarise(self._clock, readings)
        return None, readings

    def method(self, config: Config, artifact: Any, wanted: str = "") -> str:
        """The method, in words, by which ``config`` is to be compared with others: for ``compare`` and for contracts.

        It is ``wanted`` where that is a method of ours and works for the config and the reference; else what suits the
        config's latency. Raises KernelError where the config is wrong.
        """
        own = self._timer.method
        if self._clock != "cuda":
            return own
        arm = self._arm(config, artifact)
        suits = self._batches.method if arm.latency_ms < SHORT_MS else own
        chosen = wanted if wanted in (own, self._batches.method) else suits
        self._take_turn()
        if chosen == own:
            return own
        return chosen if all(map(self._can_batch, [arm, *self._yardsticks().values()])) else own

    def compare(
        self, arms: Mapping[str, tuple[Config, Any]], yardsticks: bool, blocks: int, method: str = ""
    ) -> dict[str, list[float]]:
        """Interleaved readings of several configs: arm name to ``blocks`` block values in ms.

        Each config that this process has not checked is checked first: that is also how a fresh process learns whether
        the kernel's inputs must be restored between launches. With ``yardsticks`` the reference (if there is one) and
        fixed work of our own are arms too. Each block launches every arm in turn, after an untimed reading of the same
        arm; on a GPU configs and reference change places after each launch even, where nothing must be restored.
        ``method`` is one that the method of that name chose, by default the one that searches use. Raises KernelError
        where a config is wrong now, or cannot be timed by ``method``.
        """
        chosen = {name: self._arm(config, artifact, name) for name, (config, artifact) in arms.items()}
        if yardsticks:
            self._take_turn()
            chosen |= self._yardsticks()
        timer = self._timer_of(method)
        plans = {name: self._block_plan(timer, arm) for name, arm in chosen.items()}
        values: dict[str, list[float]] = {name: [] for name in chosen}
        alternating = self._alternating(timer, chosen)
        self._warm_up(list(chosen.values()))
        for block in range(blocks):
            order = block_order(list(chosen), block)
            if taking_turns := [name for name in order if name in alternating]:
                count = min(plans[name].readings for name in taking_turns)
                for name, value in zip(taking_turns, self._alternated(taking_turns, chosen, count), strict=True):
                    values[name].append(value)
            for name in order:
                if name not in alternating:
                    values[name].append(self._block(timer, chosen[name], plans[name]))
        self._used = time.monotonic()
        return values

    def shares_inputs(self) -> bool:
        """Whether this kernel is made of several versions (``backends.pair``) that run in the same memory."""
        return bool(getattr(self._program, "shares", False))

    def has_same_inputs(self) -> bool:
        """Whether these versions find the same content in that memory, too: then only their code tells them apart."""
        return self.shares_inputs() and not getattr(self._program, "rewrites", True)

    def instrument(self) -> dict[str, Any]:
        """How finely this station's clock measures, and what a reading costs (``Instrument`` as JSON)."""
        from pytest_kerneltune.instrument import Instrument

        return Instrument.for_clock(self._clock).to_json()

    def healthy(self) -> bool:
        """Whether the device still answers after a failed launch (a CUDA error may have poisoned the context)."""
        if self._clock == "cuda":
            import torch

            torch.cuda.synchronize()
            torch.zeros(1, device="cuda").item()
            torch.cuda.empty_cache()  # what a config that ran out of memory left behind
        return True

    def _check(self, launch: Callable[[], Any]) -> tuple[str | None, float]:
        """How the output of one launch differs from the reference's, and wall ms that a launch takes at the most."""
        self.expect()
        self._program.reset()
        self._timer.wait()
        start = time.perf_counter()
        returned = launch()
        self._timer.wait()
        at_most_ms = (time.perf_counter() - start) * 1e3
        wrong: str | None = self._program.mismatch(returned)
        return wrong, at_most_ms

    def _arm(self, config: Config, artifact: Any, name: str = "config") -> _Arm:
        launch, key = self._program.prepare(config, artifact), _key(config)
        if key not in self._right:
            wrong, at_most_ms = self._check(launch)
            if wrong is not None:
                raise KernelError(f"{name} ({dict(config)}): output {wrong}")
            self._right[key] = self._estimate(launch, at_most_ms)
        return _Arm(launch, self._right[key], config)

    def _yardsticks(self) -> dict[str, _Arm]:
        reference = self._program.reference
        arms = {} if reference is None else {REFERENCE: self._yardstick(REFERENCE, reference)}
        for name, launch in self._calibrations.items():
            arm = self._yardstick(name, launch, _CALIBRATION_PLAN if self._clock == "cuda" else None)
            if self._clock != "cuda" or arm.latency_ms <= _LONGEST_CALIBRATION_MS:
                arms[name] = arm
        return arms

    def _yardstick(self, name: str, launch: Callable[[], Any], plan: Plan | None = None) -> _Arm:
        if name not in self._right:
            (first_ms,) = self._readings(launch, Plan(1))
            self._right[name] = first_ms if first_ms > SLOW_MS else self._estimate(launch, first_ms)
        return _Arm(launch, self._right[name], plan=plan)

    @cached_property
    def _calibrations(self) -> Mapping[str, Callable[[], Any]]:
        """Work of ours that never changes."""
        if self._clock != "cuda":
            return {CALIBRATION: calibration_work}
        from pytest_kerneltune.calibration import calibration_launches

        return calibration_launches()

    def _take_turn(self, config: Config = _NO_CONFIG) -> None:
        """Tell a program of several versions which one is launched next: that of ``config``, or a yardstick."""
        if (take_turn := getattr(self._program, "take_turn", None)) is not None:
            take_turn(config)

    def _estimate(self, launch: Callable[[], Any], at_most_ms: float) -> float:
        """About how many ms a launch takes, read as it will be timed."""
        count = 1 if at_most_ms > SLOW_MS else 2
        return summarise(self._clock, self._readings(launch, Plan(count, self._launches_a_reading(launch, at_most_ms))))

    def _launches_a_reading(self, launch: Callable[[], Any], at_most_ms: float) -> int:
        """How many launches a reading takes; found by two readings, since alone a tiny kernel looks like a slow one."""
        if self._clock == "cuda" or self._program.restores or at_most_ms > _NOT_TINY_MS:
            return 1
        estimate_ms = at_most_ms
        for readings in (1, 2):
            plan = Plan(readings, launches_a_reading(self._clock, estimate_ms, readings > 1))
            estimate_ms = summarise(self._clock, self._readings(launch, plan))
        return launches_a_reading(self._clock, estimate_ms, True)

    def _readings(self, launch: Callable[[], Any], plan: Plan) -> list[float]:
        return self._timer.measure(launch, plan.readings, self._before, plan.launches)

    @property
    def _before(self) -> Callable[[], Any] | None:
        """What must run before each launch."""
        reset: Callable[[], Any] | None = self._program.reset if self._program.restores else None
        return reset

    @property
    def _events(self) -> EventTimer:
        from pytest_kerneltune.gpu_timers import EventTimer

        assert isinstance(self._timer, EventTimer)
        return self._timer

    @cached_property
    def _batches(self) -> Timer:
        from pytest_kerneltune.gpu_timers import BatchTimer

        timer: Timer = BatchTimer(self._events.flush)
        return timer

    def _can_batch(self, arm: _Arm) -> bool:
        if self._program.restores or arm.latency_ms * BATCH > _LONGEST_BATCH_MS:
            return False
        self._take_turn(arm.config)
        try:
            self._batches.measure(arm.launch, 1)
        except KernelError:
            return False
        return True

    def _timer_of(self, method: str) -> Timer:
        if method in ("", self._timer.method):
            return self._timer
        if self._clock != "cuda" or method != self._batches.method:
            raise KernelError(f"nothing is timed by {method!r} here, but by {self._timer.method!r}")
        if self._program.restores:
            raise KernelError(f"the kernel changes its inputs, so it cannot be timed by {method!r}")
        return self._batches

    def _block_plan(self, timer: Timer, arm: _Arm) -> Plan:
        if timer is not self._timer:
            return Plan(1 if arm.plan else BATCHES_A_BLOCK)
        return arm.plan or block_plan(self._clock, arm.latency_ms, not self._program.restores)

    def _alternating(self, timer: Timer, arms: Mapping[str, _Arm]) -> list[str]:
        """The arms that take turns launch by launch: on a GPU, where nothing must be written between two launches."""
        if self._clock != "cuda" or timer is not self._timer or self._program.restores:
            return []
        if getattr(self._program, "rewrites", False):
            return []
        names = [name for name, arm in arms.items() if arm.plan is None]
        return names if len(names) > 1 else []

    def _alternated(self, names: Sequence[str], arms: Mapping[str, _Arm], count: int) -> list[float]:
        """One block's values of the arms ``names``; the first reading of each is left out."""
        for name in names:
            self._take_turn(arms[name].config)
        readings = self._events.alternate([arms[name].launch for name in names], count + 1)
        return [summarise(self._clock, values[1:]) for values in readings]

    def _warm_up(self, arms: Sequence[_Arm]) -> None:
        """Have a GPU that was idle as busy as it will be: its clocks follow its load, after some tens of ms."""
        if self._clock != "cuda" or time.monotonic() - self._used < _IDLE_S:
            return
        end = time.monotonic() + _WARM_UP_S
        brief = [arm for arm in arms if arm.latency_ms * _WARM_UP_LAUNCHES < _WARM_UP_S * 1e3]
        while brief and time.monotonic() < end:
            for arm in brief:
                self._take_turn(arm.config)
                self._readings(arm.launch, Plan(_WARM_UP_LAUNCHES))

    def _block(self, timer: Timer, arm: _Arm, plan: Plan) -> float:
        """One block's value; on a GPU a first reading, which finds the caches as another arm left them, is left out.

        On host clocks it does no harm: a block's value is the minimum.
        """
        self._take_turn(arm.config)
        unused = int(self._clock == "cuda" and timer is self._timer and arm.latency_ms < _REWARM_BELOW_MS)
        readings = timer.measure(arm.launch, plan.readings + unused, self._before, plan.launches)
        return summarise(self._clock, readings[unused:])


def _key(config: Config) -> str:
    return repr(sorted(config.items()))
