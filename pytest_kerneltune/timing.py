"""How often to launch a kernel, and what its readings amount to (pure).

The statistic of a set of readings depends on the clock. Interference only ever adds time on a CPU, so host clocks
take the minimum: re-measured four times on a busy 2-core machine, the minimum of nine thread-CPU readings had a
coefficient of variation of 3%, the median 10%. A GPU's readings scatter both ways (clocks, power), so CUDA events
take the median.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pytest_kerneltune.trial import Clock

FAR = 3.0
"""A config this many times slower than the best is measured no further."""

_TARGET_MS = {"wall": 40.0, "thread": 40.0, "cuda": 10.0}
_FEWEST = {"wall": 3, "thread": 5, "cuda": 7}
_MOST = {"wall": 30, "thread": 30, "cuda": 100}
_BLOCK_MS = {"wall": 8.0, "thread": 8.0, "cuda": 2.0}
_BLOCK_FEWEST = {"wall": 2, "thread": 3, "cuda": 5}
SLOW_MS = 500.0
"""A kernel (or reference) that takes longer is launched as seldom as can be; its relative noise is small."""

_READING_MS = 0.1  # host clocks: shorter kernels are launched several times a reading


@dataclass(frozen=True)
class Plan:
    """``readings`` readings, each the mean of ``launches`` launches."""

    readings: int
    launches: int = 1


def plan(clock: Clock, estimate_ms: float, best_ms: float, batch: bool) -> Plan:
    """How to time a config that took ``estimate_ms`` once, while the best so far takes ``best_ms`` (inf: none yet).

    ``batch`` allows several launches a reading (not where inputs must be restored before each launch).
    """
    launches = launches_a_reading(clock, estimate_ms, batch)
    if estimate_ms > FAR * best_ms or estimate_ms > SLOW_MS:
        return Plan(2, launches)
    return Plan(_count(_TARGET_MS[clock], estimate_ms * launches, _FEWEST[clock], _MOST[clock]), launches)


def block_plan(clock: Clock, estimate_ms: float, batch: bool) -> Plan:
    """How to take one block of a paired comparison of a kernel that takes ``estimate_ms``."""
    launches = launches_a_reading(clock, estimate_ms, batch)
    if estimate_ms > SLOW_MS:
        return Plan(1, launches)
    return Plan(_count(_BLOCK_MS[clock], estimate_ms * launches, _BLOCK_FEWEST[clock], _MOST[clock]), launches)


def summarise(clock: Clock, readings: Sequence[float]) -> float:
    """One latency (the unit of ``readings``) from the readings of one config; raises ValueError if there are none."""
    if not readings:
        raise ValueError("no readings to summarise")
    return median(readings) if clock == "cuda" else min(readings)


def block_order(names: Sequence[str], block: int) -> Sequence[str]:
    """The order of the arms in a block: forward and backward in turn, so that a drift hits all arms alike.

    The first arm moves on every second block: with three arms or more the middle one would else never change place.
    """
    turn = (block // 2) % len(names)
    rotated = [*names[turn:], *names[:turn]]
    return rotated if block % 2 == 0 else rotated[::-1]


def launches_a_reading(clock: Clock, estimate_ms: float, batch: bool) -> int:
    """How many launches share a reading, so that a clock's own cost does not show in it."""
    if clock == "cuda" or not batch:
        return 1
    return max(1, min(10_000, round(_READING_MS / max(estimate_ms, 1e-5))))


def _count(target_ms: float, each_ms: float, fewest: int, most: int) -> int:
    return max(fewest, min(most, int(target_ms / max(each_ms, 1e-6))))
