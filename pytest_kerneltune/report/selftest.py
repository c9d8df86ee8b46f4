"""What the gate's self-test found, kernel by kernel."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from pytest_kerneltune.outcome import Outcome
from pytest_kerneltune.report import format as form
from pytest_kerneltune.report.terminal import Line
from pytest_kerneltune.resampling import THRESHOLDS, upper_bound
from pytest_kerneltune.selftest_summary import SelfTest, Slowdown

_BOLD = {"bold": True}
_GAP = "  "
_TEXTS = ("kernel", "false alarms")
_DISPENSABLE = ("resampled", "noise", "latency")
"""Columns that are left out, in this order, where the terminal is too narrow."""

_EXPLAINED = (
    "gate self-test: decisions on each kernel beside itself (a red one is a false alarm), and slowed by real work (a "
    "red one is right)"
)


def self_test_lines(outcomes: Sequence[Outcome], width: int) -> list[Line]:
    """A table of the kernels' self-tests, how slowdowns were found, what is not safe; nothing without a self-test."""
    tests = _tests(outcomes)
    return table(tests, width) if tests else []


def table(tests: Mapping[str, SelfTest], width: int) -> list[Line]:
    """The same of self-tests, at least one, by their kernels' names."""
    rows = [_cells(name, test) for name, test in tests.items()]
    widths = _fitted({c: max(len(c), *(len(row[c]) for row in rows)) for c in rows[0]}, width)
    lines = [Line(_EXPLAINED), Line(_row({c: c for c in widths}, widths), _BOLD)]
    for row, test in zip(rows, tests.values(), strict=True):
        lines.append(Line(_row(row, widths), {"green" if test.passed else "yellow": True}))
        lines.append(Line(f"{_GAP}slowed by {_slowdowns(test)}"))
    lines += [Line(remedy, {"yellow": True}) for remedy in map(_remedy, tests, tests.values()) if remedy]
    return [*lines, Line(_tally(tests.values()), _BOLD)]


def self_test_markdown(outcomes: Sequence[Outcome]) -> str:
    """The same as a table in Markdown; empty where no kernel has a self-test."""
    tests = _tests(outcomes)
    if not tests:
        return ""
    rows = [{**_cells(name, test), "slowed, found": _slowdowns(test)} for name, test in tests.items()]
    head = [f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
    body = [f"| {' | '.join(html.escape(cell).replace('|', '&#124;') for cell in row.values())} |" for row in rows]
    return "\n".join([f"### {_tally(tests.values())}", "", *head, *body, ""])


def _tests(outcomes: Sequence[Outcome]) -> Mapping[str, SelfTest]:
    names = form.labels(outcomes)
    return {names[o.id]: SelfTest.from_json(o.self_test) for o in sorted(outcomes, key=lambda o: o.id) if o.self_test}


def _cells(name: str, test: SelfTest) -> dict[str, str]:
    return {
        "kernel": name,
        "latency": form.latency(test.latency_ms),
        "noise": f"{test.noise:.2%}",
        "false alarms": share(test.alarms, test.decisions),
        "resampled": f"{test.resampled_alarms} of {test.resampled}",
        "undecided": f"{test.undecided} of {test.decisions}",
        "disturbed": f"{test.disturbed} of {test.decisions}",
        "s a decision": f"{test.seconds:.2f}, most {test.most_seconds:.2f}",
        "safe from": _safe(test),
        "threshold": form.threshold(test.threshold),
    }


def share(events: int, trials: int) -> str:
    """How often something happened, with the 95% upper bound of how often it does: "0 of 20 (< 14%)"."""
    bound = 100 * upper_bound(events, trials)
    return f"{events} of {trials} (< {bound:.2g}%)" if bound < 10 else f"{events} of {trials} (< {bound:.0f}%)"


def _safe(test: SelfTest) -> str:
    return f"over {THRESHOLDS[-1]:.0%}" if test.safe is None else form.threshold(test.safe)


def _slowdowns(test: SelfTest) -> str:
    return ", ".join(map(_found, test.slowdowns)) or "nothing"


def _found(slowdown: Slowdown) -> str:
    counts = {"undecided": slowdown.undecided, "disturbed": slowdown.disturbed}
    others = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"{slowdown.measured:.1%}: {slowdown.found} of {slowdown.decisions}" + (f" ({others})" if others else "")


def _remedy(name: str, test: SelfTest) -> str:
    if test.passed:
        return ""
    if (blind := test.blind) is not None:
        share_of = f"{blind.disturbed} of {blind.decisions} decisions on a slowdown of {blind.measured:.1%}"
        return f"{name}: {share_of} were disturbed: a gate would call them invalid here, not red"
    own = f"{name}: its threshold of {form.threshold(test.threshold)} is not safe"
    if test.used > test.threshold:
        own += f" (the gate's rules make it {form.threshold(test.used)} here)"
    if test.safe is None:
        return f"{own}, and no other is: its latency is too noisy here for a gate"
    return f'{own}; give it @tunable(threshold="{form.threshold(test.safe)}") or a quieter machine'


def _tally(tests: Iterable[SelfTest]) -> str:
    found = [test.passed for test in tests]
    return f"gate self-test: {sum(found)} of {form.count(len(found), 'kernel')} can be gated at their thresholds"


def _fitted(widths: dict[str, int], width: int) -> dict[str, int]:
    for column in _DISPENSABLE:
        if sum(widths.values()) + len(_GAP) * (len(widths) - 1) > width:
            del widths[column]
    return widths


def _row(cells: Mapping[str, str], widths: Mapping[str, int]) -> str:
    parts = [cells[c].ljust(width) if c in _TEXTS else cells[c].rjust(width) for c, width in widths.items()]
    return _GAP.join(parts).rstrip()
