"""Merging two branches' versions of a baseline file row by row (pure).

A row that one branch changed is taken from it, be it added, updated or removed; where one removed what the other
updated, it stays. A row that both updated is united where it still speaks of the same thing: config, contract, source,
code and history agree, so that the sessions of both tell of one kernel. Otherwise the branches disagree on what the
kernel is, which only a new measurement of the merged code can tell: that is a conflict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pytest_kerneltune.baseline_text import Document, Member, canonical, row_member
from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.record import Baseline
from pytest_kerneltune.refreshing import ANCHOR, ring


@dataclass(frozen=True)
class Merged:
    """The merged file; of rows in ``conflicts``, names to what the branches disagree on, it holds ours."""

    document: Document
    conflicts: Mapping[str, str]
    text: str
    """Of a file that is one branch's, byte for byte."""


def merge(base: Document, ours: Document, theirs: Document) -> Merged:
    """Merge what became of ``base`` on two branches; an empty document stands for a file that was not there."""
    rows: dict[str, Member] = {}
    conflicts: dict[str, str] = {}
    for name in {**ours.rows, **theirs.rows}:
        row, conflict = _merged_row(name, base, ours, theirs)
        if row is not None:
            rows[name] = row
        if conflict:
            conflicts[name] = conflict
    members = _merged_members(base, ours, theirs)
    document = replace(ours, members=members, rows=rows)
    return Merged(document, conflicts, _text(document, ours, theirs))


def _merged_row(name: str, base: Document, ours: Document, theirs: Document) -> tuple[Member | None, str]:
    before, mine, other = (document.rows.get(name) for document in (base, ours, theirs))
    if _equal(mine, other) or _equal(other, before):
        return mine, ""
    if _equal(mine, before):
        return other, ""
    if mine is None or other is None:
        return mine or other, ""
    try:
        left, right = ours.baseline(name), theirs.baseline(name)
    except StoreError as error:
        return mine, str(error)
    if differing := _differing(left, right):
        return mine, f"{' and '.join(differing)} differ"
    return row_member(name, _united(left, right)), ""


def _differing(ours: Baseline, theirs: Baseline) -> list[str]:
    pairs = {
        "config": (dict(ours.config), dict(theirs.config)),
        "contract": (dict(ours.contract), dict(theirs.contract)),
        "source": (ours.source, theirs.source),
        "code": (ours.code, theirs.code),
        "past": tuple([dict(e) for e in row.past if e.get("verdict") != ANCHOR] for row in (ours, theirs)),
    }
    return [name for name, (left, right) in pairs.items() if left != right]


def _united(ours: Baseline, theirs: Baseline) -> Baseline:
    """One row of the sessions of both, by date; ours come first within a day."""
    others = [session for session in theirs.sessions if session not in ours.sessions]
    sessions = sorted((*ours.sessions, *others), key=lambda session: session.recorded.get("date", ""))
    past = max(ours.past, theirs.past, key=len)
    return ring(replace(ours, sessions=tuple(sessions), past=past))


def _merged_members(base: Document, ours: Document, theirs: Document) -> dict[str, Member]:
    """What a file holds beside its rows is for the reader: ours, unless only they changed it."""
    merged = {}
    for name in {**theirs.members, **ours.members}:
        mine, other = ours.members.get(name), theirs.members.get(name)
        chosen = other if mine is None or _equal(mine, base.members.get(name)) else mine
        if chosen is not None:
            merged[name] = chosen
    return merged


def _text(document: Document, ours: Document, theirs: Document) -> str:
    for branch in (ours, theirs):
        if document.rows == branch.rows and document.members == branch.members:
            return branch.text
    return document.render()


def _equal(left: Member | None, right: Member | None) -> bool:
    if left is None or right is None:
        return left is right
    return canonical(left.value) == canonical(right.value)
