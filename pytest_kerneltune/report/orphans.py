"""Baselines of kernels that are gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_kerneltune.report import format as form
from pytest_kerneltune.report.terminal import Line

_MOST = 10
_YELLOW = {"yellow": True}


@dataclass(frozen=True)
class OrphanRows:
    """The ``names`` of the rows of a baseline ``file`` that no kernel of a complete run has."""

    file: str
    names: Sequence[str]


def orphan_lines(orphans: Sequence[OrphanRows], command: str, removed: bool) -> list[Line]:
    """What to know about the rows, file by file, and what to do; ``removed`` says that it was done."""
    lines = []
    for orphan in orphans:
        rest = len(orphan.names) - _MOST
        names = ", ".join(map(form.one_line, orphan.names[:_MOST])) + (f" and {rest} more" if rest > 0 else "")
        done = "removed, for their kernels are gone" if removed else "of no kernel any more"
        lines.append(Line(f"{orphan.file}: {form.count(len(orphan.names), 'baseline')} {done}: {names}", _YELLOW))
    if lines and not removed:
        lines.append(Line(f"remove baselines of kernels that are gone: {command} --prune-baselines", {"bold": True}))
    return lines
