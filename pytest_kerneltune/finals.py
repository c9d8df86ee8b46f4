"""The finals: the best few configs of a search are timed side by side until their order is known or does not matter.

Readings made during the search are selected for being low and decide nothing. The finalists run in rounds of a few
interleaved blocks, and whoever cannot win any more is out after a round (``undecided``). The last one left wins.

Where the differences are clear this takes four blocks; where they are within the noise it goes on, and stops once the
interval says that they are too small to matter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple, Protocol

from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.statistics import fewest_values, log_ratios, median_interval
from pytest_kerneltune.trial import Config, Trial

MATTERS = 0.005
"""A difference of less than this fraction is none."""

_FINALISTS = 5
_WITHIN = 1.15  # of the best latency seen
_CONFIDENCE = 0.87  # of one interval: the least that 4 blocks give
_ROUND = 2  # blocks
_MOST_BLOCKS = 24
_LIMIT_S = 10.0


class Comparing(Protocol):
    """What the finals need of a benchmark."""

    def compare(self, arms: Mapping[str, Config], yardsticks: bool, blocks: int) -> dict[str, list[float]]: ...


class Placed(NamedTuple):
    """A finalist: its latency relative to the winner's, and its readings in ms, taken in turn with the others'."""

    config: Config
    relative: float
    readings_ms: tuple[float, ...] = ()


def play_finals(
    bench: Comparing,
    trials: Iterable[Trial],
    keep: Sequence[Config] = (),
    limit_s: float = _LIMIT_S,
    now: Callable[[], float] = time.monotonic,
) -> list[Placed]:
    """The finalists, best first, timed interleaved; of a single one there are no readings.

    Finalists are the best few of ``trials`` and, whatever their reading, the configs in ``keep`` that worked. Where
    configs are equally fast the winner is the first of ``keep``, else the first of ``trials``. After ``limit_s`` wall
    seconds the order is taken as it is. Raises KernelError where no trial succeeded.
    """
    finalists = _finalists(list(trials), keep)
    if len(finalists) == 1:
        return [Placed(finalists[0], 1.0)]
    arms = {str(i): config for i, config in enumerate(finalists)}
    blocks: dict[str, list[float]] = {name: [] for name in arms}
    left, end = list(arms), now() + limit_s
    while len(left) > 1 and len(blocks[left[0]]) < _MOST_BLOCKS:
        # A round goes through its arms forward and backward: the middle one would else never change place.
        turn = len(blocks[left[0]]) // _ROUND % len(left)
        fresh = bench.compare({name: arms[name] for name in [*left[turn:], *left[:turn]]}, False, _ROUND)
        for name, values in fresh.items():
            blocks[name] += values
        left = undecided(blocks, left)
        if now() > end:
            break
    winner = _winner(blocks, left)
    relative = {name: math.exp(median(_log_ratios(blocks[name], blocks[winner]))) for name in arms}
    order = sorted(arms, key=lambda name: (name != winner, relative[name]))
    return [Placed(arms[name], relative[name], tuple(blocks[name])) for name in order]


def undecided(blocks: Mapping[str, Sequence[float]], left: Sequence[str]) -> list[str]:
    """Those of the arms ``left`` that may still win, at least one; ``left`` lists first whom to prefer among equals.

    ``blocks`` are readings by arm, equally many of all that are left; readings i were taken side by side. The leader is
    the arm whose ratios to the others have the least median. Each other arm has an interval of the median of its ratios
    to the leader's. One that the leader is preferred to is out when it is not faster by anything that matters. One that
    is preferred to the leader is out when it is slower for certain, unless it is not slower by anything that matters:
    then the leader is out.
    """
    if len(blocks[left[0]]) < fewest_values(_CONFIDENCE):
        return list(left)
    leader = _leader(blocks, left)
    place, out = left.index(leader), set()
    for i, name in enumerate(left):
        change = median_interval(log_ratios(blocks[name], blocks[leader]), _CONFIDENCE)
        if i < place and change.high < MATTERS:
            out.add(leader)
        elif (i < place and change.low > 0) or (i > place and change.low > -MATTERS):
            out.add(name)
    return [name for name in left if name not in out]


def _finalists(trials: Sequence[Trial], keep: Sequence[Config]) -> list[Config]:
    """The configs in ``keep`` that worked, then the fastest few others in the order of ``trials``."""
    worked = [trial for trial in trials if trial.ok]
    ranked = sorted(worked, key=lambda trial: trial.latency_ms)
    if not ranked:
        raise KernelError("no config worked")
    close = [t.config for t in ranked[:_FINALISTS] if t.latency_ms <= _WITHIN * ranked[0].latency_ms]
    finalists: list[Config] = []
    for config in [*(c for c in keep if any(t.config == c for t in worked)), *(t.config for t in worked)]:
        if config not in finalists and (config in close or config in keep):
            finalists.append(config)
    return finalists


def _leader(blocks: Mapping[str, Sequence[float]], left: Sequence[str]) -> str:
    return min(left, key=lambda name: median(log_ratios(blocks[name], blocks[left[0]])))


def _winner(blocks: Mapping[str, Sequence[float]], left: Sequence[str]) -> str:
    """The first that is not slower than the fastest by anything that matters, as far as was measured."""
    leader = _leader(blocks, left)
    return next(name for name in left if median(log_ratios(blocks[name], blocks[leader])) < MATTERS)


def _log_ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """As far as both were measured: who was out early has fewer blocks."""
    common = min(len(values), len(base))
    return log_ratios(values[:common], base[:common])
