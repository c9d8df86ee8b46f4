"""Robust statistics of a few dozen readings, without assuming how they are distributed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from statistics import median


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval; in a verdict all three are fractional changes, 0.05 is 5% slower."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:+.1%} [{self.low:+.1%}, {self.high:+.1%}]"


def median_interval(values: Sequence[float], confidence: float) -> Interval:
    """The median of ``values`` with a two-sided interval that holds the true median in ``confidence`` of all cases.

    The interval is a pair of order statistics: how many of n independent values lie below the true median follows
    Binomial(n, 1/2) whatever their distribution (Thompson 1936; David and Nagaraja, Order Statistics, 7.1). Raises
    ValueError for fewer than ``fewest_values(confidence)`` values: then no pair is wide enough.
    """
    rank = _lower_rank(len(values), confidence)
    if rank == 0:
        raise ValueError(
            f"{len(values)} values are too few for confidence {confidence}: it takes {fewest_values(confidence)}"
        )
    ordered = sorted(values)
    return Interval(median(ordered), ordered[rank - 1], ordered[-rank])


def fewest_values(confidence: float) -> int:
    """The least number of values whose smallest and largest enclose the median with ``confidence``."""
    return math.ceil(1 - math.log2(1 - confidence))


@cache
def _lower_rank(count: int, confidence: float) -> int:
    """The largest k with P(Binomial(count, 1/2) < k) <= (1 - confidence) / 2; 0 where there is none."""
    allowed = (1 - confidence) / 2 * 2**count
    tails = accumulate(math.comb(count, k) for k in range(count))
    return sum(1 for ways in tails if ways <= allowed)


def robust_deviation(values: Sequence[float]) -> float:
    """The standard deviation by the median absolute deviation, times 1.4826 to suit the normal distribution."""
    centre = median(values)
    return 1.4826 * median(abs(v - centre) for v in values)


def median_error(deviation: float, count: int) -> float:
    """The standard error of the median of ``count`` normal values of this standard deviation."""
    return math.sqrt(math.pi / 2 / count) * deviation


def log_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """The logarithm of each pair's ratio; raises ValueError where the lengths differ."""
    return [math.log(n / d) for n, d in zip(numerators, denominators, strict=True)]
