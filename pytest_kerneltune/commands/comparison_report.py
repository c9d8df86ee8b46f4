"""What compare-searches found, as text and as JSON (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_kerneltune.comparison import Score, Summary
from pytest_kerneltune.recorded import RecordedSpace

SCHEMA = 1
_DIGITS = 6


@dataclass
class Result:
    """A search on several spaces, by their names: scores, batches a run, and where it failed with which error."""

    search: str
    scores: dict[str, Score] = field(default_factory=dict)
    batches: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def mean(self, budgets: Sequence[int]) -> Summary | None:
        """The mean over the spaces; None where the search failed on one, as it would be that of other spaces."""
        return None if self.errors else Summary.of(list(self.scores.values()), budgets)


def means(results: Sequence[Result], budgets: Sequence[int]) -> str:
    """A line for each search."""
    rows = {
        result.search: _cells(mean, budgets)
        if (mean := result.mean(budgets))
        else [f"  failed on {len(result.errors)} of {len(result.errors) + len(result.scores)} spaces"]
        for result in results
    }
    return _table("mean over spaces", rows, budgets)


def by_space(result: Result, budgets: Sequence[int]) -> str:
    """A line for each space."""
    rows = {name: _cells(Summary.of([score], budgets), budgets) for name, score in result.scores.items()}
    return _table(result.search, rows | {name: ["  failed"] for name in result.errors}, budgets)


def _table(title: str, rows: Mapping[str, Sequence[str]], budgets: Sequence[int]) -> str:
    head = [f"{letter}@{n}".rjust(8) for letter in "fP" for n in budgets]
    head += [name.rjust(8) for name in ("N95", "hit95", "CPU s")]
    width = max(map(len, (title, *rows)))
    return "\n".join(label.ljust(width) + "".join(cells) for label, cells in {title: head, **rows}.items())


def _cells(summary: Summary, budgets: Sequence[int]) -> list[str]:
    n95 = f">{budgets[-1]}" if summary.n95 is None else str(summary.n95)
    numbers = [*summary.f.values(), *summary.p.values()]
    return [*(f"{x:8.3f}" for x in numbers), n95.rjust(8), f"{summary.hit95:8.3f}", f"{summary.cpu_s:8.2f}"]


def document(
    facts: Mapping[str, Any],
    budgets: Sequence[int],
    spaces: Mapping[str, RecordedSpace],
    results: Sequence[Result],
) -> dict[str, Any]:
    """Everything as JSON values, after ``facts``: the spaces, and of each search means, scores and curves.

    A curve has an item for each number of measurements, 1 first: mean and quartiles over seeds of the optimum's latency
    over that of the best config so far. ``n95`` is null where f stays below 0.95, ``mean`` where the search failed.
    """
    return {
        "schema": SCHEMA,
        **facts,
        "spaces": {
            name: {"configs": len(s), "worked": len(s.latencies), "best_ms": s.best_ms, "worst_ms": s.worst_ms}
            for name, s in spaces.items()
        },
        "searches": [_search(result, budgets) for result in results],
    }


def _search(result: Result, budgets: Sequence[int]) -> dict[str, Any]:
    mean = result.mean(budgets)
    return {
        "name": result.search,
        "mean": mean and _numbers(mean),
        "spaces": {
            name: {
                **_numbers(Summary.of([score], budgets)),
                "batches": result.batches[name],
                "curve": {
                    "mean": _rounded(score.mean),
                    "lower_quartile": _rounded(score.lower),
                    "median": _rounded(score.median),
                    "upper_quartile": _rounded(score.upper),
                },
            }
            for name, score in result.scores.items()
        },
        "errors": result.errors,
    }


def _numbers(summary: Summary) -> dict[str, Any]:
    return {
        "f": {str(n): round(x, _DIGITS) for n, x in summary.f.items()},
        "P": {str(n): round(x, _DIGITS) for n, x in summary.p.items()},
        "n95": summary.n95,
        "hit95": round(summary.hit95, _DIGITS),
        "cpu_s": round(summary.cpu_s, _DIGITS),
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, _DIGITS) for value in values]
