"""What a self-test of the gate found: how often it was right about one kernel. Pure functions of decisions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from pytest_kerneltune.gate import Policy, Verdict, VerdictKind
from pytest_kerneltune.record import Blocks
from pytest_kerneltune.resampling import SAFE_BEYOND, Judge, Pool, smallest_safe
from pytest_kerneltune.statistics import log_ratios, robust_deviation
from pytest_kerneltune.trial import Clock

RESAMPLED = 3000
"""Decisions put together from the blocks of the live ones, for each question (about 0.1 ms each)."""


@dataclass(frozen=True)
class Slowdown:
    """Decisions on the kernel slowed by ``extra_us`` of work a launch, so that it takes longer by the fraction
    ``wanted``; in truth by ``measured``, the median over all blocks. ``found`` of them were red, ``undecided`` noisy,
    ``disturbed`` invalid."""

    wanted: float
    measured: float
    extra_us: float
    decisions: int
    found: int
    undecided: int
    disturbed: int


@dataclass(frozen=True)
class SelfTest:
    """How often the gate was right about one kernel.

    ``threshold`` is the kernel's own and ``used`` what the gate makes of it; ``noise`` the relative standard deviation
    (robust) of a block's ratio of the kernel to itself. Of ``decisions`` on the unchanged kernel ``alarms`` were red,
    ``undecided`` noisy and ``disturbed`` invalid; ``largest`` is the largest change claimed, a fraction. Of
    ``resampled`` ones made of their blocks ``resampled_alarms`` were red and ``resampled_undecided`` noisy. ``safe`` is
    the smallest threshold that is safe (``resampling.smallest_safe``; None: none is). A decision took ``seconds`` in
    the median, ``most_seconds`` at the most, of wall time in which it had the device.
    """

    clock: str
    method: str
    latency_ms: float
    noise: float
    threshold: float
    used: float
    decisions: int
    alarms: int
    undecided: int
    disturbed: int
    largest: float
    resampled: int
    resampled_alarms: int
    resampled_undecided: int
    slowdowns: tuple[Slowdown, ...]
    safe: float | None
    seconds: float
    most_seconds: float

    @property
    def passed(self) -> bool:
        """Whether the kernel's own threshold is safe, and what is far beyond it seen."""
        return self.safe is not None and self.safe <= self.threshold * (1 + 1e-9) and self.blind is None

    @property
    def blind(self) -> Slowdown | None:
        """The largest slowdown far beyond the threshold, where most decisions on it were disturbed; None where not.

        Thresholds are tried by resampling what was not disturbed, which does not show that.
        """
        far = [s for s in self.slowdowns if s.measured > SAFE_BEYOND * max(self.threshold, self.used)]
        return max((s for s in far if 2 * s.disturbed > s.decisions), key=lambda s: s.measured, default=None)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; numbers have 4 significant digits."""
        data: dict[str, Any] = _rounded(asdict(self))
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SelfTest:
        """The inverse of :meth:`to_json`; raises TypeError on fields that are missing or unknown."""
        return cls(**{**data, "slowdowns": tuple(Slowdown(**row) for row in data["slowdowns"])})


@dataclass(frozen=True)
class Decision:
    """One decision of the gate: its readings and verdict, and the wall seconds that it took."""

    blocks: Blocks
    verdict: Verdict
    seconds: float

    @property
    def kind(self) -> VerdictKind:
        return self.verdict.kind


def summarised(
    made: Mapping[float, Sequence[Decision]],
    extra_us: Mapping[float, float],
    clock: Clock,
    method: str,
    policy: Policy,
    judge: Judge,
    resampled: int = RESAMPLED,
) -> SelfTest:
    """What decisions come to: on the kernel itself under 0 (at least one), on slowed ones under the fraction wanted."""
    unchanged = made[0.0]
    blocks = _all_blocks(unchanged)
    pool = Pool([d.blocks for d in unchanged if d.kind is not VerdictKind.INVALID], judge)
    again = pool.redrawn(resampled, policy) if pool.decisions else {}
    every = [d.seconds for decisions in made.values() for d in decisions]
    return SelfTest(
        clock=clock,
        method=method,
        latency_ms=median(blocks["winner"]),
        noise=robust_deviation(log_ratios(blocks["winner"], blocks["base"])),
        threshold=policy.threshold,
        used=max((d.verdict.threshold or 0.0 for d in unchanged), default=policy.threshold) or policy.threshold,
        decisions=len(unchanged),
        alarms=_count(unchanged, VerdictKind.REGRESSED),
        undecided=_count(unchanged, VerdictKind.NOISY),
        disturbed=_count(unchanged, VerdictKind.INVALID),
        largest=max((abs(d.verdict.change.estimate) for d in unchanged if d.verdict.change), default=0.0),
        resampled=sum(again.values()),
        resampled_alarms=again.get(VerdictKind.REGRESSED, 0),
        resampled_undecided=again.get(VerdictKind.NOISY, 0),
        slowdowns=tuple(_slowdown(f, decisions, extra_us[f]) for f, decisions in made.items() if f),
        safe=smallest_safe(pool, policy, resampled) if pool.decisions else None,
        seconds=median(every),
        most_seconds=max(every),
    )


def change_between(blocks: Blocks, arm: str, other: str) -> float:
    """By which fraction ``arm`` takes longer than ``other``: the median over the blocks."""
    return math.expm1(median(log_ratios(blocks[arm], blocks[other])))


def _slowdown(wanted: float, decisions: Sequence[Decision], extra_us: float) -> Slowdown:
    return Slowdown(
        wanted,
        change_between(_all_blocks(decisions), "winner", "base"),
        extra_us,
        len(decisions),
        _count(decisions, VerdictKind.REGRESSED),
        _count(decisions, VerdictKind.NOISY),
        _count(decisions, VerdictKind.INVALID),
    )


def _all_blocks(decisions: Sequence[Decision]) -> Blocks:
    return {arm: [v for d in decisions for v in d.blocks[arm]] for arm in ("winner", "base")}


def _count(decisions: Sequence[Decision], kind: VerdictKind) -> int:
    return sum(d.kind is kind for d in decisions)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
