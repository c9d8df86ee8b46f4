"""Which stage of a search found what, for searches of several stages."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_kerneltune.outcome import Outcome, StageSummary
from pytest_kerneltune.report import format as form
from pytest_kerneltune.report.terminal import Line


def stage_lines(outcomes: Sequence[Outcome]) -> list[Line]:
    """A line for each kernel that a search of several stages tuned in this run."""
    searched = [o for o in outcomes if len(o.search.stages) > 1]
    names = form.labels(outcomes)
    return [Line(f"{names[o.id]}: {'; '.join(map(_words, o.search.stages))}", {}) for o in searched]


def _words(stage: StageSummary) -> str:
    parts = [form.count(stage.configs, "config")]
    if stage.failed:
        parts.append(f"{stage.failed} failed")
    if stage.best_ms is not None:
        parts.append(f"best {form.latency(stage.best_ms)}")
    if stage.note:
        parts.append(stage.note)
    return f"{stage.stage} {', '.join(parts)}"
