"""How good a search is, by what it found on recorded spaces (pure).

A run is the search's curve: the latency of its best config after each measurement. The best is the one that looked
best to the search, where readings are noisy; its latency is the recorded one. Failed configs count as measurements;
while nothing worked the latency is that of the slowest config; a search that ends early keeps its best. Then:

- f@N: the optimum's latency over that of the best after N measurements; of one space the median over seeds.
- P@N: how far ahead of random sampling, on average over 1 to N measurements. After n it is (random - search) /
  (random - optimum), cut to [-1, 1]: 0 is as good as random, 1 the optimum. ``search`` is the mean latency over seeds,
  ``random`` the exact expectation of drawing without replacement, failures included. From where random sampling is
  within 0.1% of the optimum, nothing is counted. This is the score of the autotuning methodology of Willemsen et al.,
  "A methodology for comparing optimization algorithms for auto-tuning" (2024), over measurements in place of seconds.
- N95: the number of measurements after which f is 0.95, None where it never is.
- hit95: the share of runs whose best in the end is within 5% of the optimum (f of 0.95).

Over several spaces f, P and hit95 are means; N95 is that of the mean f.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles

from pytest_kerneltune.recorded import RecordedSpace

NEAR = 0.95
"""The f that N95 and hit95 are about."""

_AT_OPTIMUM = 1e-3
_NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class Score:
    """A search on one space. The sequences have an item for each number of measurements, 1 first.

    ``median``, ``mean`` and the quartiles ``lower`` and ``upper`` are those of f over seeds; ``ahead`` is the lead
    over random sampling after each number of measurements. ``cpu_s`` are processor seconds a run.
    """

    median: Sequence[float]
    mean: Sequence[float]
    lower: Sequence[float]
    upper: Sequence[float]
    ahead: Sequence[float]
    hit95: float
    cpu_s: float


@dataclass(frozen=True)
class Summary:
    """A search on one space or the mean over several: f and P by number of measurements; see the module."""

    f: Mapping[int, float]
    p: Mapping[int, float]
    n95: int | None
    hit95: float
    cpu_s: float

    @classmethod
    def of(cls, scores: Sequence[Score], budgets: Sequence[int]) -> Summary:
        found = [fmean(values) for values in zip(*(s.median for s in scores), strict=True)]
        return cls(
            f={n: found[n - 1] for n in budgets},
            p={n: fmean(fmean(s.ahead[:n] or [0.0]) for s in scores) for n in budgets},
            n95=next((n for n, f in enumerate(found, start=1) if f >= NEAR), None),
            hit95=fmean(s.hit95 for s in scores),
            cpu_s=fmean(s.cpu_s for s in scores),
        )


def best_so_far(trials: Iterable[tuple[float, float]], worst_ms: float, count: int) -> list[float]:
    """A run's curve in ms, ``count`` long, by each trial's true latency and what the search saw (inf: failed)."""
    best_ms, best_seen = worst_ms, math.inf
    curve = []
    for latency, seen in trials:
        if seen < best_seen:
            best_ms, best_seen = latency, seen
        curve.append(best_ms)
    return curve + [best_ms] * (count - len(curve))


def by_chance(recorded: RecordedSpace, count: int) -> list[float]:
    """The curve of random sampling, in expectation: what :func:`score` compares with."""
    return [expected_best(recorded, draws) for draws in range(1, count + 1)]


def expected_best(recorded: RecordedSpace, draws: int) -> float:
    """Expected least latency of ``draws`` distinct configs, all equally likely; the worst where all of them failed."""
    none_better, expectation = 1.0, 0.0
    for rank, latency in enumerate(recorded.latencies, start=1):
        left = len(recorded) - rank
        still_none = none_better * max(0, left + 1 - draws) / (left + 1)
        expectation += latency * (none_better - still_none)
        none_better = still_none
        if none_better < _NEGLIGIBLE:
            break
    return expectation + recorded.worst_ms * none_better


def score(best_ms: float, chance: Sequence[float], curves: Sequence[Sequence[float]], cpu_s: float) -> Score:
    """The score of curves of one length, one a seed; ``best_ms`` is the optimum, ``chance`` from :func:`by_chance`."""
    points = [[best_ms / latency for latency in latencies] for latencies in zip(*curves, strict=True)]
    quarters = [quantiles(point * 2 if len(point) == 1 else point, method="inclusive") for point in points]
    ahead = []
    for random_ms, latencies in zip(chance, zip(*curves, strict=True), strict=True):
        room = random_ms - best_ms
        if room < _AT_OPTIMUM * best_ms:
            break
        ahead.append(max(-1.0, min(1.0, (random_ms - fmean(latencies)) / room)))
    return Score(
        median=[median for _, median, _ in quarters],
        mean=[fmean(point) for point in points],
        lower=[lower for lower, _, _ in quarters],
        upper=[upper for _, _, upper in quarters],
        ahead=ahead,
        hit95=fmean(curve[-1] <= best_ms / NEAR for curve in curves),
        cpu_s=cpu_s,
    )
