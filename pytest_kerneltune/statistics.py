"""Robust statistics of a few dozen readings, without assuming how they are distributed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from statistics import fmean, median


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


def pooled_deviation(values: Sequence[float], prior: float, degrees: int) -> tuple[float, int]:
    """The standard deviation of normal ``values``, of which ``prior`` is what is known without them.

    The prior counts as if estimated with ``degrees`` degrees of freedom: a scaled inverse chi-square distribution of
    the variance, whose posterior is the pooled variance with the degrees of both (Gelman et al., Bayesian Data
    Analysis, 2.6 and 3.3). Returns the deviation and its degrees of freedom; raises ValueError without values.
    """
    if not values:
        raise ValueError("no values to pool")
    centre = fmean(values)
    total = degrees + len(values) - 1
    return math.sqrt((degrees * prior**2 + sum((v - centre) ** 2 for v in values)) / total), total


@cache
def student_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution with ``degrees`` (an integer) degrees of freedom.

    Bisects the distribution function, which is a finite sum for integers (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    Raises ValueError unless 0 < ``probability`` < 1 and ``degrees`` >= 1.
    """
    if not 0 < probability < 1 or degrees < 1:
        raise ValueError(f"no Student quantile of {probability} with {degrees} degrees of freedom")
    if probability < 0.5:
        return -student_quantile(1 - probability, degrees)
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _student_within(middle, degrees) < 2 * probability - 1 else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _student_within(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) * tan(angle))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = total = (cosine if odd else 1.0) if degrees > 1 else 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def log_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """The logarithm of each pair's ratio; raises ValueError where the lengths differ."""
    return [math.log(n / d) for n, d in zip(numerators, denominators, strict=True)]
