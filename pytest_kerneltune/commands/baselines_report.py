"""What the ``baselines`` command prints of files and rows (pure)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date

from pytest_kerneltune.gate import Policy, format_ms
from pytest_kerneltune.record import Baseline, StoredSession
from pytest_kerneltune.refreshing import RATIO, creep
from pytest_kerneltune.report.format import count, one_line

_ROW = ("kernel", "latency", "sessions", "age", "commit", "creep", "")
_FIRST = ("date", "commit", "latency", "change", "verdict", "why")


def rows_table(rows: Mapping[str, Baseline], today: date) -> list[str]:
    """A line for each row of a file, under a heading."""
    return _table([_ROW, *(_row(name, row, today) for name, row in sorted(rows.items()))])


def _row(name: str, row: Baseline, today: date) -> tuple[str, ...]:
    young = len(row.sessions) < Policy().mature
    return (
        name,
        format_ms(row.latency_ms),
        str(len(row.sessions)),
        _age(row.recorded.get("date", ""), today),
        row.recorded.get("commit", ""),
        _percent(creep(row)),
        "young" if young else "",
    )


def row_history(name: str, row: Baseline) -> list[str]:
    """All that is stored of a kernel, for a reader."""
    facts = {"config": json.dumps(dict(row.config), sort_keys=True), "source": row.source, "code": row.code}
    facts |= {"creep since the anchor": _percent(creep(row))}
    return [
        one_line(name),
        *_facts({label: text for label, text in facts.items() if text}),
        *_facts(row.contract),
        "",
        f"{count(len(row.sessions), 'session')}, oldest first:",
        *_records([_session(session) for session in row.sessions]),
        *(["", "what it was before, oldest first:", *_records(row.past)] if row.past else []),
    ]


def _facts(facts: Mapping[str, str]) -> list[str]:
    width = max(map(len, facts), default=0)
    return [f"  {label:<{width}}  {one_line(text)}" for label, text in facts.items()]


def _session(session: StoredSession) -> dict[str, str]:
    return {
        "latency": format_ms(session.latency_ms),
        **{f"{RATIO}{name}": f"{ratio:.4g}" for name, ratio in session.ratios.items()},
        "noise": f"{100 * session.noise:.2g}%",
        "blocks": str(session.blocks),
        **session.environment,
        **session.recorded,
    }


def _records(records: Sequence[Mapping[str, str]]) -> list[str]:
    """A line for each record, under a heading of all facts that any has."""
    named = dict.fromkeys(name for record in records for name in record)
    shown = [name for name in dict.fromkeys((*_FIRST, *named)) if name in named]
    return _table([shown, *([record.get(name, "") for name in shown] for record in records)])


def _age(recorded: str, today: date) -> str:
    try:
        days = (today - date.fromisoformat(recorded)).days
    except ValueError:
        return ""
    return count(days, "day") if days > 0 else "today"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:+.1f}%"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    plain = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in plain)
    return [f"  {line}".rstrip() for line in lines]
