"""The table of ``gate_trials``: a row for each kernel, mode, slowdown and threshold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypeAlias

from pytest_kerneltune.gate import Verdict, VerdictKind

COLUMNS = (
    *("kernel", "mode", "slowed by", "threshold", "decisions", "red", "confirmed", "ok", "improved", "noisy"),
    *("invalid", "largest change", "s, median", "s, most"),
)

Key: TypeAlias = tuple[str, float, float]
"""Mode, slowdown and threshold of a row."""


@dataclass
class Row:
    """The decisions of one kind on one kernel."""

    kinds: Counter[VerdictKind] = field(default_factory=Counter)
    confirmed: int = 0
    largest: float = 0.0
    threshold: float = 0.0
    seconds: list[float] = field(default_factory=list)

    def add(self, verdict: Verdict, seconds: float) -> None:
        self.kinds[verdict.kind] += 1
        self.seconds.append(seconds)
        self.threshold = max(self.threshold, verdict.threshold or 0.0)
        self.largest = max(self.largest, abs(verdict.change.estimate) if verdict.change else 0.0)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown of what ``cells`` gave."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows))


def cells(name: str, key: Key, row: Row, measured: Sequence[float]) -> list[str]:
    """A row of the kernel ``name``; ``measured`` are slowdowns in truth, fractions."""
    mode, fraction, threshold = key
    counts = [row.kinds[VerdictKind(kind)] for kind in ("ok", "improved", "noisy", "invalid")]
    raised = f" ({row.threshold:.1%})" if row.threshold > threshold else ""
    return [
        name,
        mode,
        f"{fraction:.0%}" + (f" ({median(measured):.2%})" if measured and fraction else ""),
        f"{threshold:.1%}{raised}",
        str(len(row.seconds)),
        str(row.kinds[VerdictKind.REGRESSED]),
        str(row.confirmed) if not fraction else "",
        *map(str, counts),
        f"{row.largest:.2%}",
        f"{median(row.seconds):.2f}",
        f"{max(row.seconds):.2f}",
    ]
