"""How often to launch a kernel, and what its readings amount to (pure).

The statistic of a set of readings depends on the clock. Interference only ever adds time on a CPU, so host clocks
take the minimum: re-measured four times on a busy 2-core machine, the minimum of nine thread-CPU readings had a
coefficient of variation of 3%, the median 10%. A GPU's readings scatter both ways (clocks, power), so CUDA events
take the median.

A search takes a config's readings in instalments, until they say enough:

1. Far from the best (``FAR`` times as slow, or more) after two readings. One does if that says ``_HOPELESS`` times.
2. Slower than what is close to the best: by an interval of order statistics of CUDA events' readings (98%, so seven at
   the least), by the minimum of host clocks' readings.
3. Close to the best, by readings whose median is known to 1% (CUDA events), or when the full number is there. From one
   config to the next the device itself wanders by about that much (clocks, power); side by side it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pytest_kerneltune.statistics import fewest_values, median_interval
from pytest_kerneltune.trial import Clock

FAR = 3.0
"""A config this many times slower than the best is measured no further."""

SLOW_MS = 500.0
"""A kernel (or reference) that takes longer is launched as seldom as can be; its relative noise is small."""

SHORT_MS = 0.02
"""On a GPU, launching what takes less costs about as much as the kernel itself: a gate times many launches at once."""

BATCH = 50
"""Launches in a batch: what an event resolves and the gaps at both ends are then below 1% of a kernel of 2 us."""

BATCHES_A_BLOCK = 3

_HOPELESS = 10.0
_CLOSE = {"wall": 1.3, "thread": 1.3, "cuda": 1.15}  # times the best; host clocks scatter more
_CONFIDENCE = 0.98
_PRECISION = 0.01
_INSTALMENTS = (2, 8, 20, 50)  # readings there are after each
_QUICK_MS = 10.0  # two readings of what takes no longer cost next to nothing; a first launch loads the code, too

_TARGET_MS = {"wall": 40.0, "thread": 40.0, "cuda": 10.0}
_FEWEST = {"wall": 3, "thread": 5, "cuda": 7}
_MOST = {"wall": 30, "thread": 30, "cuda": 50}
_BLOCK_MS = {"wall": 8.0, "thread": 8.0, "cuda": 2.0}
_BLOCK_FEWEST = {"wall": 2, "thread": 3, "cuda": 5}
_BLOCK_MOST = {"wall": 30, "thread": 30, "cuda": 100}
_READING_MS = 0.1  # host clocks: shorter kernels are launched several times a reading


@dataclass(frozen=True)
class Plan:
    """``readings`` readings, each the mean of ``launches`` launches."""

    readings: int
    launches: int = 1


def next_readings(
    clock: Clock, readings: Sequence[float], best_ms: float, launches: int = 1, at_most_ms: float = 0.0
) -> int:
    """How many more readings of a config to take, 0 where those taken tell enough.

    ``readings`` are in ms, each the mean of ``launches`` launches; the best config so far takes ``best_ms`` (inf: none
    yet). ``at_most_ms`` is what is known of a launch before the first reading: it takes no longer (0: nothing).
    """
    taken = len(readings)
    if not taken:
        return 1 if at_most_ms > _QUICK_MS else 2
    now_ms = summarise(clock, readings)
    if _is_far(readings, best_ms):
        return 0
    full = _count(_TARGET_MS[clock], now_ms * launches, _FEWEST[clock], _MOST[clock]) if now_ms <= SLOW_MS else 2
    if taken >= full or _is_enough(clock, readings, best_ms):
        return 0
    return min(full, next(count for count in _INSTALMENTS if count > taken)) - taken


def _is_far(readings: Sequence[float], best_ms: float) -> bool:
    least = min(readings)
    return least > _HOPELESS * best_ms or (len(readings) > 1 and least > FAR * best_ms)


def _is_enough(clock: Clock, readings: Sequence[float], best_ms: float) -> bool:
    if clock != "cuda":
        return len(readings) >= _FEWEST[clock] and min(readings) > _CLOSE[clock] * best_ms
    if len(readings) < fewest_values(_CONFIDENCE):
        return False
    middle = median_interval(readings, _CONFIDENCE)
    return middle.low > _CLOSE[clock] * best_ms or middle.high - middle.low <= 2 * _PRECISION * middle.estimate


def block_plan(clock: Clock, estimate_ms: float, batch: bool) -> Plan:
    """How to take one block of a paired comparison of a kernel that takes ``estimate_ms``.

    ``batch`` allows several launches a reading (not where inputs must be restored before each launch).
    """
    launches = launches_a_reading(clock, estimate_ms, batch)
    if estimate_ms > SLOW_MS:
        return Plan(1, launches)
    return Plan(_count(_BLOCK_MS[clock], estimate_ms * launches, _BLOCK_FEWEST[clock], _BLOCK_MOST[clock]), launches)


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
