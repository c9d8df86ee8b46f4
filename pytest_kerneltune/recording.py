"""Makes recorded spaces, as ``recorded`` reads them, of the trials of a search (pure)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pytest_kerneltune.recorded import DEVIATION, FAILURES, as_value, code_weights
from pytest_kerneltune.trial import Trial

_FORMAT = 1
_REPEATS = 32
_LARGEST = 32_000  # deviation, which has to fit into two bytes
_REASONS = {status: reason for reason, status in FAILURES.items()}


@dataclass(frozen=True)
class Recording:
    """The trials of a kernel by the codes of their configs, ascending, and each parameter's values, in order."""

    values: Mapping[str, Sequence[Any]]
    trials: Mapping[int, Trial]

    @classmethod
    def of(cls, trials: Iterable[Trial]) -> Recording:
        """The last trial of each config; raises ValueError where nothing worked or the parameters are not the same.

        Numbers are in ascending order, other values in that of their first trial.
        """
        by_config = {json.dumps(dict(t.config), sort_keys=True): t for t in trials}
        latest = list(by_config.values())
        if not any(t.ok for t in latest):
            raise ValueError("none of its configs worked")
        if any(t.ok and not 0 < t.latency_ms < math.inf for t in latest):
            raise ValueError("a config that worked has no latency")
        names = list(latest[0].config)
        if any(set(t.config) != set(names) for t in latest):
            raise ValueError("its configs have different parameters")
        values = {name: _ordered(as_value(t.config[name]) for t in latest) for name in names}
        weights = code_weights(values)
        by_code = {sum(weights[n](as_value(t.config[n])) for n in names): t for t in latest}
        return cls(values, dict(sorted(by_code.items())))

    @property
    def size(self) -> int:
        """Number of configs that the values make."""
        return math.prod(map(len, self.values.values()))

    def to_json(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The file's content; ``facts`` come first."""
        rows = list(self.trials.values())
        return {
            "format": _FORMAT,
            **facts,
            "unit": "ms",
            "params": {name: list(column) for name, column in self.values.items()},
            "code": list(self.trials),
            "time": [t.latency_ms if t.ok else None for t in rows],
            "fail": {str(row): _REASONS[t.status] for row, t in enumerate(rows) if not t.ok},
            "stats": self.statistics,
        }

    @property
    def statistics(self) -> dict[str, float]:
        """Numbers of configs, ``cartesian`` before the constraint, ``within5`` at most 5% slower than the best; ms."""
        latencies = sorted(t.latency_ms for t in self.trials.values() if t.ok)
        best = latencies[0]
        return {
            "n": len(self.trials),
            "ok": len(latencies),
            "failed": len(self.trials) - len(latencies),
            "cartesian": self.size,
            "dims": len(self.values),
            "best": best,
            "median": latencies[len(latencies) // 2],
            "worst": latencies[-1],
            "within5": sum(ms <= 1.05 * best for ms in latencies),
            "within1": sum(ms <= 1.01 * best for ms in latencies),
        }

    def deviations(self) -> list[list[int]]:
        """Each trial's readings as deviations from their mean, in ascending order; no rows where none has readings.

        All rows are of one length: the longest's, at most 32. Of more readings evenly spaced ones stand for all, of
        fewer each is repeated as often as the others.
        """
        longest = min(_REPEATS, max(len(t.samples_ms) for t in self.trials.values()))
        return [_row(t.samples_ms, longest) for t in self.trials.values()] if longest else []


def _row(readings: Sequence[float], length: int) -> list[int]:
    if not readings or not (mean := fmean(readings)) > 0:
        return [0] * length
    ranked = sorted(readings)
    chosen = [ranked[int((i + 0.5) * len(ranked) / length)] for i in range(length)]
    return [min(_LARGEST, round((reading / mean - 1) / DEVIATION)) for reading in chosen]


def _ordered(values: Iterable[Any]) -> list[Any]:
    """The distinct values: True and 1 are two."""
    distinct = list({json.dumps(value): value for value in values}.values())
    kinds = {type(value) for value in distinct}
    return sorted(distinct) if kinds == {bool} or kinds <= {int, float} else distinct
