"""What becomes of a kernel's row when its fresh measurement is accepted as the baseline (pure).

A row holds the sessions of one state of the kernel. Sessions are added to it while it is young, and later where it
crept, so that files do not change with every run; a kernel that was accepted to be different starts anew, and
``Baseline.past`` keeps what it was. Steps below the threshold add up unseen, each judged against the last: the oldest
entry that today's numbers can be compared with, the anchor, is never forgotten, and says how far they went.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import median

from pytest_kerneltune.gate import format_ms
from pytest_kerneltune.record import MOST_PAST, MOST_SESSIONS, YARDSTICKS, Baseline

ANCHOR = "anchor"
"""The verdict of an entry of ``past`` that is the first session of a row whose first session is forgotten."""

RATIO = "over "
"""An entry's name of a ratio begins with this, and ends with the yardstick's name."""

_SAME = "ok"
_OTHER_CONTRACT = "incomparable"
_STILL = 1 / 3  # of the threshold
_MS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
_KEPT_FACTS = ("date", "commit", "torch", "triton", "driver")


def refreshed(
    old: Baseline | None,
    fresh: Baseline,
    verdict_kind: str,
    change: float | None,
    threshold: float | None,
    mature: int,
    why: str = "",
) -> Baseline:
    """The row to store: ``old`` itself where it need not change.

    ``fresh`` is the new measurement, judged against ``old`` (None: there was no row) as ``verdict_kind``: ``change`` is
    the fraction by which it is slower than ``old`` (None: as the rows themselves say, where the kernel was compared
    with something else), ``threshold`` the gate's. A row with fewer than ``mature`` sessions is young. ``why`` is the
    reason to be kept with what the row was.
    """
    if old is None:
        return fresh
    comparable = dict(old.contract) == dict(fresh.contract)
    if change is None and comparable:
        change = _change(_facts(old), fresh)
    moved = change is None or threshold is None or abs(change) >= threshold * _STILL
    alike = verdict_kind == _SAME and comparable
    if alike and dict(old.config) == dict(fresh.config):
        if len(old.sessions) < mature or (moved and _same_source(old, fresh)):
            return _longer(old, fresh)
        return _replaced(old, fresh, verdict_kind, change, why) if moved else old
    return old if alike and not moved else _replaced(old, fresh, verdict_kind, change, why)


def anchor(baseline: Baseline) -> Mapping[str, str]:
    """The oldest state of the kernel that today's numbers can be compared with: facts as entries of ``past`` are."""
    index = _anchor_index(baseline.past)
    return baseline.past[index] if index < len(baseline.past) else _facts(_first_alone(baseline))


def creep(baseline: Baseline) -> float | None:
    """The fraction by which the kernel is slower today than at its anchor; None where there is nothing older.

    Today's numbers are those of the later half of the sessions. They are compared by the ratios to the yardsticks that
    both have (the median of those changes), by latency where there are none.
    """
    if len(baseline.sessions) == 1 and _anchor_index(baseline.past) == len(baseline.past):
        return None
    later = baseline.sessions[len(baseline.sessions) // 2 :]
    return _change(anchor(baseline), replace(baseline, sessions=later))


def _change(before: Mapping[str, str], now: Baseline) -> float | None:
    ratios = {name: _number(before.get(RATIO + name, "")) for name in now.ratios}
    if changes := [now.ratios[name] / ratio - 1 for name, ratio in ratios.items() if ratio]:
        return median(changes)
    before_ms = _latency_ms(before.get("latency", ""))
    return now.latency_ms / before_ms - 1 if before_ms else None


def ring(baseline: Baseline) -> Baseline:
    """The baseline without its oldest sessions, where it has too many; the first one of all stays as the anchor."""
    if len(baseline.sessions) <= MOST_SESSIONS:
        return baseline
    past = baseline.past
    if _anchor_index(past) == len(past):
        past = _shortened((*past, _entry(_first_alone(baseline), ANCHOR, None, "")))
    return replace(baseline, sessions=baseline.sessions[-MOST_SESSIONS:], past=past)


def _same_source(old: Baseline, fresh: Baseline) -> bool:
    return not old.source or not fresh.source or old.source == fresh.source


def _longer(old: Baseline, fresh: Baseline) -> Baseline:
    """``old`` with the fresh sessions, which are of today's source."""
    sessions = (*old.sessions, *fresh.sessions)
    return ring(replace(old, sessions=sessions, source=fresh.source or old.source, code=fresh.code or old.code))


def _replaced(old: Baseline, fresh: Baseline, verdict_kind: str, change: float | None, why: str) -> Baseline:
    same_contract = dict(old.contract) == dict(fresh.contract)
    entry = _entry(old, verdict_kind if same_contract else _OTHER_CONTRACT, change, why)
    first = _entry(_first_alone(old), ANCHOR, None, "")
    # What the row was is the median of its sessions: where it crept, its first one says where it came from.
    crept = same_contract and _anchor_index(old.past) == len(old.past) and len(old.sessions) > 1
    entries = (first, entry) if crept else (entry,)
    return replace(fresh, past=_shortened((*old.past, *entries)))


def _entry(old: Baseline, verdict_kind: str, change: float | None, why: str) -> dict[str, str]:
    """What a row was, and why it is no longer: facts as text."""
    told = {"verdict": verdict_kind, "change": "" if change is None else f"{100 * change:+.3g}%", "why": why}
    return {**_facts(old), **{name: text for name, text in told.items() if text}}


def _facts(baseline: Baseline) -> dict[str, str]:
    last = baseline.sessions[-1]
    known = {**last.environment, **last.recorded}
    facts = {name: known[name] for name in _KEPT_FACTS if known.get(name)}
    ratios = {f"{RATIO}{name}": f"{baseline.ratios[name]:.4g}" for name in YARDSTICKS if name in baseline.ratios}
    return {**facts, "latency": format_ms(baseline.latency_ms), **ratios}


def _first_alone(baseline: Baseline) -> Baseline:
    return replace(baseline, sessions=baseline.sessions[:1])


def _anchor_index(past: tuple[Mapping[str, str], ...]) -> int:
    """Where in ``past`` the anchor is: after the last state that was measured under another contract."""
    others = [index for index, entry in enumerate(past) if entry.get("verdict") == _OTHER_CONTRACT]
    return max(others, default=-1) + 1


def _shortened(past: tuple[Mapping[str, str], ...]) -> tuple[Mapping[str, str], ...]:
    """The entries, but for the oldest ones between the first, the anchor and the latest, which are too many."""
    while len(past) > MOST_PAST:
        kept = {0, _anchor_index(past)}
        drop = next(index for index in range(len(past)) if index not in kept)
        past = past[:drop] + past[drop + 1 :]
    return past


def _number(text: str) -> float:
    """0 for what is no positive number."""
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if 0 < number < math.inf else 0.0


def _latency_ms(text: str) -> float:
    """The inverse of ``format_ms``; 0 for what it did not write."""
    number, _, unit = text.partition(" ")
    return _number(number) * _MS.get(unit, 0.0)
