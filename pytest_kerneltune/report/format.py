"""How numbers, configs and groups of kernels are written, the same in every report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from pytest_kerneltune.gate import format_ms
from pytest_kerneltune.outcome import Outcome, SearchSummary, VerdictSummary
from pytest_kerneltune.statistics import Interval

WORST_FIRST = ("regressed", "wrong", "failed", "invalid", "noisy", "incomparable", "new", "ok", "improved", "checked")
"""Kinds of verdict in the order of reports; others come first of all."""

STORED, WEAK = "stored", "weak"
_COMMIT_DIGITS = 7
_MOST_NAMES = 3


def latency(ms: float | None) -> str:
    """Milliseconds in the unit that fits, "41.2 us"; empty for None and where nothing worked (inf)."""
    return "" if ms is None or not math.isfinite(ms) else format_ms(ms)


def change(verdict: VerdictSummary) -> str:
    """The change against the baseline with its confidence interval, "+6.2% [+5.6%, +6.9%]"; empty if unknown."""
    return str(Interval(*verdict.change)) if verdict.change else ""


def compared_with(outcome: Outcome) -> str:
    """What the kernel was compared with: a commit ("vs abc1234"), the stored baseline ("stored", or its number of
    sessions while it is young), or that without a yardstick ("weak"); empty for nothing."""
    verdict = outcome.verdict
    if verdict.basis == "base":
        commit = verdict.against.rpartition(" ")[2]
        return f"vs {commit[:_COMMIT_DIGITS]}" if commit else ""
    if verdict.basis == "alone":
        return WEAK
    if not verdict.basis:
        return ""
    return count(outcome.young, "session") if outcome.young else STORED


def threshold(fraction: float) -> str:
    """A threshold as the user wrote it, "3%"."""
    return f"{100 * fraction:.3g}%"


def ratio(value: float | None) -> str:
    """A speedup, "1.62x"; empty for None."""
    return "" if value is None else f"{value:.2f}x"


def duration(seconds: float) -> str:
    """Seconds for a reader: "0.4 s", "41 s", "2 min 5 s", "1 h 5 min"."""
    whole = round(seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def count(number: int, noun: str) -> str:
    """ "1 config", "2 configs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_SOURCES = {"cache": "cache hit", "baseline": "baseline", "default": "default"}


def one_line(text: str) -> str:
    """``text`` without line breaks and without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def found_by(search: SearchSummary) -> str:
    """Where the config came from: "93 configs, 12 failed, 21 s", "cache hit", "baseline", "default"; else empty."""
    if search.source != "search":
        return _SOURCES.get(search.source, "")
    failed = sum(search.failures.values())
    parts = (count(search.attempts, "config"), f"{failed} failed" if failed else "", duration(search.seconds))
    return ", ".join(part for part in parts if part)


def worst_first(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes by kind of verdict as in WORST_FIRST, the most slowed down first within a kind."""
    return sorted(outcomes, key=lambda o: (_rank(o.verdict.kind), -(o.verdict.change or (0.0,))[0], o.id))


def _rank(kind: str) -> int:
    return WORST_FIRST.index(kind) if kind in WORST_FIRST else -1


def labels(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """The shortest unambiguous name of each outcome, by its id: the kernel's name, with its file where two share it."""
    names = Counter(outcome.name for outcome in outcomes)
    return {o.id: o.name if names[o.name] == 1 else o.id for o in outcomes}


def tally(outcomes: Sequence[Outcome]) -> str:
    """Kernels by kind of verdict, the best first: "3 ok, 1 regressed"."""
    kinds = Counter(outcome.verdict.kind for outcome in outcomes)
    return ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds, key=_rank, reverse=True)) or "no kernels"


def verdict_remarks(outcomes: Sequence[Outcome]) -> list[str]:
    """What is to be known about the verdicts, each remark once, with the kernels that it is about."""
    names, about = labels(outcomes), dict[str, list[str]]()
    for outcome in outcomes:
        for remark in dict.fromkeys(map(one_line, outcome.verdict.remarks)):
            about.setdefault(remark, []).append(names[outcome.id])
    return [f"{_listed(kernels)}: {remark}" for remark, kernels in about.items()]


def _listed(kernels: Sequence[str]) -> str:
    """ "a, b, c and 4 more"."""
    rest = len(kernels) - _MOST_NAMES
    return ", ".join(kernels[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def remarks(outcomes: Sequence[Outcome]) -> list[str]:
    """Every distinct message and warning once, with how many kernels had it where it was more than one."""
    said = Counter(one_line(r) for o in outcomes for r in dict.fromkeys((*o.search.messages, *o.warnings)))
    return [remark if number == 1 else f"{remark} ({number} kernels)" for remark, number in said.items()]
