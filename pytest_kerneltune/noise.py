"""How much the times of unchanged work differ on this machine, and what threshold the gate can use with that."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median, stdev
from typing import Any

from pytest_kerneltune.gate import Baseline, Policy, Verdict, VerdictKind, judge
from pytest_kerneltune.record import Blocks, block_count, measured_baseline
from pytest_kerneltune.station import REFERENCE, Station
from pytest_kerneltune.statistics import fewest_values
from pytest_kerneltune.trial import Clock, Config

_ARM = "winner"
_CONFIG: Config = {}
_FINER = 1.05
_COARSEST = 1.0


@dataclass(frozen=True)
class Noise:
    """How steadily ``work`` is timed by ``method``, alone and paired with itself in ``blocks`` interleaved blocks.

    ``alone_cv`` is the coefficient of variation of a block's latency, ``alone_low`` and ``alone_high`` how far the
    least and the greatest are from the median; ``paired_cv`` is that of the ratio of two arms that run the same, and
    ``paired_bias`` by how much its median differs from 1. ``threshold`` is the least slowdown at which the gate calls
    the second half of the blocks "ok" against a baseline of the first half (None: at 100% it does not), ``floor`` what
    its rules allow such a kernel where nothing is noisy; ``threshold_alone`` is the threshold for a kernel without a
    reference beside it. All are fractions.
    """

    work: str
    clock: Clock
    method: str
    latency_ms: float
    blocks: int
    alone_cv: float
    alone_low: float
    alone_high: float
    paired_cv: float
    paired_bias: float
    threshold: float | None
    floor: float
    threshold_alone: float | None

    @classmethod
    def of(cls, work: str, clock: Clock, method: str, blocks: Blocks) -> Noise:
        """The noise in ``blocks``, whose arms "winner" and "reference" run the same; raises ValueError where there are
        fewer than ``fewest_blocks()``."""
        count = block_count(blocks)
        if count < fewest_blocks():
            raise ValueError(f"{count} blocks are too few to tell noise by: it takes {fewest_blocks()}")
        alone, ratios = blocks[_ARM], [a / b for a, b in zip(blocks[_ARM], blocks[REFERENCE], strict=True)]
        middle = median(alone)
        floor, threshold = _thresholds(blocks, clock)
        return cls(
            work,
            clock,
            method,
            middle,
            count,
            alone_cv=_variation(alone),
            alone_low=min(alone) / middle - 1,
            alone_high=max(alone) / middle - 1,
            paired_cv=_variation(ratios),
            paired_bias=median(ratios) - 1,
            threshold=threshold,
            floor=floor,
            threshold_alone=_thresholds({arm: v for arm, v in blocks.items() if arm != REFERENCE}, clock)[1],
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields, at 4 significant digits."""
        return {name: float(f"{v:.4g}") if isinstance(v, float) else v for name, v in asdict(self).items()}


def fewest_blocks() -> int:
    """The least number of blocks of which either half can be judged."""
    return 2 * fewest_values(Policy().confidence)


def measure_noise(work: str, launch: Callable[[], Any], clock: Clock, seconds: float) -> Noise:
    """The noise of ``launch``, called ``work``, measured as the gate measures a kernel for about ``seconds``.

    At least 32 blocks are taken, however long that takes, and at most twice as many as the gate ever asks for.
    """
    station = Station(_SelfPaired(launch), clock)
    method = station.method(_CONFIG, None)
    first, *_, last = Policy().looks
    blocks: dict[str, list[float]] = {}
    end = time.monotonic() + seconds
    while len(blocks.get(_ARM, ())) < 2 * first or (time.monotonic() < end and len(blocks[_ARM]) < 2 * last):
        for arm, values in station.compare({_ARM: (_CONFIG, None)}, True, first, method).items():
            blocks.setdefault(arm, []).extend(values)
    return Noise.of(work, clock, method, blocks)


def _thresholds(blocks: Blocks, clock: Clock) -> tuple[float, float | None]:
    """What the gate's rules allow at best, and the least threshold at which it finds the second half unchanged.

    The first half stands for all the sessions that a baseline is measured in: what differs between them is not known.
    """
    half = block_count(blocks) // 2
    first = measured_baseline(_part(blocks, 0, half), _CONFIG, {}, {})
    baseline = replace(first, sessions=first.sessions * Policy().sessions[clock])
    now = _part(blocks, half, 2 * half)

    def judged(by: Baseline, threshold: float) -> Verdict:
        return judge(now, by, {}, clock, Policy(threshold=threshold), config=_CONFIG)

    quiet = replace(baseline, sessions=tuple(replace(session, noise=0.0) for session in baseline.sessions))
    floor = judged(quiet, 0.0).threshold or 0.0
    threshold = judged(baseline, 0.0).threshold or 0.0
    while threshold <= _COARSEST:
        if judged(baseline, threshold).kind is VerdictKind.OK:
            return floor, threshold
        threshold *= _FINER
    return floor, None


def _part(blocks: Blocks, start: int, stop: int) -> Mapping[str, Sequence[float]]:
    return {arm: values[start:stop] for arm, values in blocks.items()}


def _variation(values: Sequence[float]) -> float:
    return stdev(values) / fmean(values)


class _SelfPaired:
    """A program whose only config is its own reference; it has no output to check."""

    restores = False

    def __init__(self, launch: Callable[[], Any]) -> None:
        self.reference = launch

    def prepare(self, config: Config, artifact: Any) -> Callable[[], Any]:
        return self.reference

    def reset(self) -> None:
        """Nothing is written that is read."""

    def expect(self) -> None:
        """There is nothing to compare with."""

    def mismatch(self, returned: Any) -> str | None:
        return None
