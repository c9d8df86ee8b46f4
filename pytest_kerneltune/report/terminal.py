"""The terminal: a header line, progress while a kernel is tuned, and the summary after the tests."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_kerneltune.outcome import Outcome
from pytest_kerneltune.report import format as form
from pytest_kerneltune.settings import Settings
from pytest_kerneltune.trial import Budget
from pytest_kerneltune.verdicts import REMEDIES

_RED, _YELLOW, _GREEN, _BOLD = {"red": True}, {"yellow": True}, {"green": True}, {"bold": True}
_MARKUP: Mapping[str, Mapping[str, bool]] = {
    "regressed": _RED,
    "wrong": _RED,
    "failed": _RED,
    "invalid": _YELLOW,
    "noisy": _YELLOW,
    "incomparable": _YELLOW,
    "new": _YELLOW,
    "improved": _GREEN,
}

_EXPLAINED = ("wrong", "failed", "invalid", "noisy", "incomparable", "new")
"""Kinds of verdict whose reason is listed kernel by kernel; that of a regression is the test's failure."""

_REMEDIES_BESIDE: Mapping[str, str] = {
    "regressed": "if this is wanted, allow the kernel more, or merge it as it is: what is merged is the next base",
    **{kind: REMEDIES[kind] for kind in ("invalid", "noisy")},
}
"""What to do about a verdict with ``--against``, where no stored baseline counts."""

_MOST_EXPLAINED = 10

_COLUMNS = (
    *("verdict", "kernel", "latency", "baseline", "change", "interval", "blame", "compared", "speedup"),
    "config from",
)
_NUMBERS = ("latency", "baseline", "change", "speedup")
_GAP = "  "
_DISPENSABLE = ("interval", "baseline", "speedup", "blame", "compared")
"""Columns that are left out, in this order, where the terminal is too narrow."""

_SHORTEST_NAME = 16


@dataclass(frozen=True)
class Line:
    """A line to write, with keyword arguments for pytest's terminal writer ("red", "bold", ...)."""

    text: str
    markup: Mapping[str, bool] = field(default_factory=dict)


def header_line(settings: Settings) -> str:
    """What this run does with performance tests."""
    if not settings.gating:
        return "kerneltune: kernels run once and are checked; --autotune=none times them, --autotune tunes them first"
    parts = [_search_words(settings), f"threshold {form.threshold(settings.perf_threshold)}"]
    if settings.against is not None:
        parts.append(f"against {settings.against}")
    parts.append(f"cache {os.pathsep.join(map(str, settings.autotune_cache)) or 'off'}")
    if settings.update_baselines:
        parts.append(f"baselines written: {', '.join(sorted(settings.update_baselines))}")
    return "kerneltune: " + "; ".join(parts)


def _search_words(settings: Settings) -> str:
    if not settings.searching:
        return "no search"
    words = [str(settings.autotune), f"effort {settings.autotune_effort}", f"seed {settings.autotune_seed}"]
    limits = []
    if settings.autotune_budget is not None:
        limits.append(form.duration(settings.autotune_budget))
    if settings.autotune_configs is not None:
        limits.append(form.count(settings.autotune_configs, "config"))
    bounds = [f"at most {' or '.join(limits)} a kernel"] if limits else []
    if settings.autotune_target is not None:
        bounds.append(f"until {form.latency(settings.autotune_target)}")
    return ", ".join([*words, *bounds])


def progress_line(
    name: str, stage: str, tried: int, failed: int, best_ms: float | None, elapsed_s: float, budget: Budget
) -> str:
    """How far the tuning of a kernel is, on one line."""
    configs = f"{tried} of {budget.configs} configs" if budget.configs is not None else form.count(tried, "config")
    time = f"{elapsed_s:.0f} of {budget.seconds:.0f} s" if budget.seconds is not None else form.duration(elapsed_s)
    best = form.latency(best_ms)
    parts = (stage, configs, f"{failed} failed" if failed else "", f"best {best}" if best else "", time)
    return f"{name}: {', '.join(part for part in parts if part)}"


def summary_lines(
    outcomes: Sequence[Outcome],
    width: int = 80,
    *,
    command: str = "pytest --autotune",
    seconds: float | None = None,
    updated: Collection[str] = (),
    beside: bool = False,
) -> list[Line]:
    """The section after the tests: table, what needs action, remarks, count.

    ``command`` is the command of this run, repeated in what to do; ``seconds`` how long it took; ``updated`` the ids of
    the outcomes whose baseline was written, which need nothing more; ``beside`` says that kernels were compared with
    another commit's, and not with baselines. Nothing for no outcomes.
    """
    if not outcomes:
        return []
    ordered = form.worst_first(outcomes)
    lines = _table(ordered, width) if any(o.latency_ms is not None for o in ordered) else []
    remedies = _REMEDIES_BESIDE if beside else REMEDIES
    lines += _actions([o for o in ordered if o.id not in updated], form.labels(ordered), command, remedies)
    lines += [Line(remark, _YELLOW) for remark in (*form.verdict_remarks(ordered), *form.remarks(ordered))]
    time = "" if seconds is None else f" in {form.duration(seconds)}"
    return [*lines, Line(f"kerneltune: {form.tally(ordered)}{time}", _tally_markup(ordered))]


def _tally_markup(ordered: Sequence[Outcome]) -> Mapping[str, bool]:
    return _BOLD | (_RED if any(o.verdict.fails for o in ordered) else _GREEN)


def _markup(outcome: Outcome) -> Mapping[str, bool]:
    return _RED if outcome.verdict.fails else _MARKUP.get(outcome.verdict.kind, {})


def _cells(outcome: Outcome, label: str) -> dict[str, str]:
    change, _, interval = form.change(outcome.verdict).partition(" ")
    return {
        "verdict": outcome.verdict.kind,
        "kernel": label,
        "latency": form.latency(outcome.latency_ms),
        "baseline": form.latency(outcome.previous_ms),
        "change": change,
        "interval": interval,
        "blame": outcome.verdict.blame,
        "compared": form.compared_with(outcome),
        "speedup": form.ratio(outcome.speedup),
        "config from": form.found_by(outcome.search),
    }


def _table(ordered: Sequence[Outcome], width: int) -> list[Line]:
    names = form.labels(ordered)
    rows = [_cells(outcome, names[outcome.id]) for outcome in ordered]
    filled = {c: {row[c] for row in rows} - {""} for c in _COLUMNS}
    shown = [c for c in _COLUMNS if filled[c] and not (c == "compared" and filled[c] == {form.STORED})]
    widths = _fitted({c: max(len(c), *map(len, filled[c])) for c in shown}, width)
    title = Line(_row({c: c for c in widths}, widths), _BOLD)
    return [title, *(Line(_row(row, widths), _markup(o)) for row, o in zip(rows, ordered, strict=True))]


def _fitted(widths: dict[str, int], width: int) -> dict[str, int]:
    """The columns that fit into ``width``, the kernel's shortened where leaving out others was not enough."""

    def excess() -> int:
        return sum(widths.values()) + len(_GAP) * (len(widths) - 1) - width

    for column in _DISPENSABLE:
        if excess() > 0:
            widths.pop(column, None)
    widths["kernel"] -= max(0, min(excess(), widths["kernel"] - _SHORTEST_NAME))
    return widths


def _row(cells: Mapping[str, str], widths: Mapping[str, int]) -> str:
    parts = []
    for column, width in widths.items():
        cell = _shortened(cells[column], width)
        parts.append(cell.rjust(width) if column in _NUMBERS else cell.ljust(width))
    return _GAP.join(parts).rstrip()


def _shortened(name: str, width: int) -> str:
    """``name`` without its middle, so that both the kernel and its parameters can be told."""
    if len(name) <= width:
        return name
    head = (width - 2) // 2
    return f"{name[:head]}..{name[len(name) - (width - 2 - head) :]}"


def _actions(
    ordered: Sequence[Outcome], names: Mapping[str, str], command: str, remedies: Mapping[str, str]
) -> list[Line]:
    """Kind by kind: why each kernel needs action, then what to do about all of them."""
    lines = []
    for kind in form.WORST_FIRST:
        concerned = [o for o in ordered if o.verdict.kind == kind]
        if concerned and kind in _EXPLAINED:
            lines += _reasons(concerned, names)
        if concerned and kind in remedies:
            lines.append(Line(f"{kind}: {remedies[kind].format(command=command)}", _BOLD))
    return lines


def _reasons(concerned: Sequence[Outcome], names: Mapping[str, str]) -> list[Line]:
    shown = concerned[:_MOST_EXPLAINED]
    lines = [Line(f"{o.verdict.kind} {names[o.id]}: {form.one_line(o.verdict.summary)}", _markup(o)) for o in shown]
    rest = len(concerned) - len(shown)
    return [*lines, Line(f"{concerned[0].verdict.kind}: {form.count(rest, 'more kernel')}")] if rest else lines


def update_lines(outcomes: Sequence[Outcome]) -> list[Line]:
    """What ``--update-baselines`` writes: old and new latency of each of these outcomes with the change's interval and
    what else changed, and the file."""
    names = form.labels(outcomes)
    ordered = sorted(outcomes, key=lambda o: o.id)
    width = max((len(name) for name in names.values()), default=0)
    lines = []
    for o in ordered:
        lines.append(Line(f"{names[o.id]:{width}}{_GAP}{_update(o)}{_GAP}{o.baseline_file}", _markup(o)))
        told = (o.verdict.summary,) if o.verdict.kind == "incomparable" else o.verdict.remarks
        lines += [Line(f"{'':{width}}{_GAP}{form.one_line(text)}") for text in told]
    return lines


def _update(outcome: Outcome) -> str:
    new = form.latency(outcome.latency_ms)
    if outcome.previous_ms is None:
        return f"new: {new}"
    change = form.change(outcome.verdict) or "not comparable"
    return f"{form.latency(outcome.previous_ms)} -> {new} ({change})"
