"""Where the time of a search went (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

Span: TypeAlias = tuple[float, float]
"""When something began and ended, in monotonic s."""


@dataclass
class Account:
    """When configs were compiled (on any core) and when they were checked and timed (on any device)."""

    compiling: list[Span] = field(default_factory=list)
    timing: list[Span] = field(default_factory=list)

    def between(self, began: float, ended: float) -> dict[str, float]:
        """Seconds between ``began`` and ``ended``: "compiling_s" summed over cores, "timing_s" over devices, "busy_s"
        in which at least one core compiled or one device timed."""
        compiling, timing = _clipped(self.compiling, began, ended), _clipped(self.timing, began, ended)
        return {
            "compiling_s": round(_total(compiling), 3),
            "timing_s": round(_total(timing), 3),
            "busy_s": round(_total(_union([*compiling, *timing])), 3),
        }


def _clipped(spans: Iterable[Span], began: float, ended: float) -> list[Span]:
    clipped = [(max(start, began), min(end, ended)) for start, end in spans]
    return [(start, end) for start, end in clipped if end > start]


def _total(spans: Iterable[Span]) -> float:
    return sum(end - start for start, end in spans)


def _union(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
