"""Merging baseline files row by row: what is taken, what is united, what is a conflict; and properties of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kerneltune.baseline_text import Document
from pytest_kerneltune.merging import Merged, merge
from pytest_kerneltune.record import MOST_SESSIONS, Baseline, StoredSession
from pytest_kerneltune.refreshing import ANCHOR, refreshed

DEVICE = {"name": "NVIDIA H200"}
OLD = (
    '{"schema": 1, "device": {"name": "NVIDIA H200"}, "kernels": {"k": {"blocks": 16, "config": {"B": 1}, '
    '"contract": {}, "latency_ms": 1.0, "noise": 0.01, "ratios": {}, "recorded": {"date": "2026-10-01"}, '
    '"yardsticks": {}}}}'
)


def session(latency_ms: float, date: str) -> StoredSession:
    return StoredSession(latency_ms, {}, {}, 0.01, 16, {}, {"date": date})


def row(*days: int, source: str = "", config: int = 1) -> Baseline:
    sessions = tuple(session(1.0 + day / 1000, f"2026-11-{day:02}") for day in days or (1,))
    return Baseline({"B": config}, {}, sessions, source)


def document(rows: Mapping[str, Baseline], device: Mapping[str, str] = DEVICE) -> Document:
    text = Document("file").updated(device, rows).render() if rows else '{"device": {}, "kernels": {}, "schema": 2}'
    return Document.parse("file", text.encode())


def merged(base: Mapping[str, Baseline], ours: Mapping[str, Baseline], theirs: Mapping[str, Baseline]) -> Merged:
    return merge(document(base), document(ours), document(theirs))


def rows_of(result: Merged) -> dict[str, Baseline]:
    return Document.parse("merged", result.text.encode()).baselines


A, B, C = row(1), row(2), row(3)


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "expected"),
    [
        ({}, {"a": A}, {"b": B}, {"a": A, "b": B}),
        ({"k": A}, {"k": A, "x": B}, {"k": A, "y": C}, {"k": A, "x": B, "y": C}),
        ({"k": A, "l": A}, {"k": B, "l": A}, {"k": A, "l": C}, {"k": B, "l": C}),
        ({"k": A, "l": A}, {"l": A}, {"k": A}, {}),
        ({"k": A, "l": A}, {"l": A}, {"k": B, "l": A}, {"k": B, "l": A}),
        ({"k": A}, {"k": B}, {}, {"k": B}),
        ({"k": A}, {"k": B}, {"k": B}, {"k": B}),
    ],
    ids=["no base", "added at one place", "changed", "removed", "removed and updated", "updated and removed", "alike"],
)
def test_what_one_branch_changed_is_taken(
    base: dict[str, Baseline], ours: dict[str, Baseline], theirs: dict[str, Baseline], expected: dict[str, Baseline]
) -> None:
    result = merged(base, ours, theirs)
    assert result.conflicts == {}
    assert rows_of(result) == expected


def test_sessions_of_the_same_kernel_are_united_by_date() -> None:
    result = merged({"k": row(1)}, {"k": row(1, 5)}, {"k": row(1, 3, 7)})
    assert result.conflicts == {}
    assert rows_of(result) == {"k": row(1, 3, 5, 7)}


def test_a_ring_of_both_branches_holds_the_latest_and_remembers_the_first() -> None:
    base = range(1, 8)
    result = rows_of(merged({"k": row(*base)}, {"k": row(*base, 11)}, {"k": row(*base, 10, 12)}))["k"]
    assert result.sessions == row(3, 4, 5, 6, 7, 10, 11, 12).sessions
    assert [(entry["verdict"], entry["date"]) for entry in result.past] == [(ANCHOR, "2026-11-01")]
    assert len(result.sessions) == MOST_SESSIONS


def test_a_ring_that_forgot_on_one_branch_is_united_with_one_that_did_not() -> None:
    base = row(*range(1, 8))
    longer = refreshed(base, row(11, 12), "ok", 0.02, 0.03, 5)
    assert longer.past
    result = merged({"k": base}, {"k": refreshed(base, row(10), "ok", 0.02, 0.03, 5)}, {"k": longer})
    assert result.conflicts == {}
    assert rows_of(result)["k"].past == longer.past


@pytest.mark.parametrize(
    ("theirs", "complaint"),
    [
        (row(1, 3, config=2), "config differ"),
        (row(1, 3, source="t"), "source differ"),
        (replace(row(1, 3), contract={"gpu": "A100"}, code="x"), "contract and code differ"),
        (replace(row(3), past=({"verdict": "regressed"},)), "past differ"),
    ],
)
def test_branches_that_disagree_on_the_kernel_are_in_conflict(theirs: Baseline, complaint: str) -> None:
    result = merged({"k": row(1), "l": A}, {"k": row(1, 2), "l": A}, {"k": theirs, "l": B, "m": C})
    assert result.conflicts == {"k": complaint}
    assert rows_of(result) == {"k": row(1, 2), "l": B, "m": C}


def test_a_malformed_row_that_both_changed_is_a_conflict_that_names_it() -> None:
    ours = document({"k": B})
    theirs = Document.parse("theirs", b'{"schema": 2, "device": {}, "kernels": {"k": {"config": {}}}}')
    result = merge(document({"k": A}), ours, theirs)
    assert "theirs: the row 'k' is malformed: baseline lacks" in result.conflicts["k"]
    assert rows_of(result) == {"k": B}


def test_numbers_that_are_too_large_for_a_row_do_not_stop_a_merge() -> None:
    odd = Document.parse("odd", b'{"schema": 2, "device": {"x": 1e999}, "kernels": {"k": {"config": 1e999}}}')
    result = merge(odd, odd, document({"k": A, "l": B}))
    assert result.conflicts == {}
    assert rows_of(result) == {"k": A, "l": B}


def test_rows_of_both_schemas_are_merged_and_keep_their_bytes() -> None:
    base = Document.parse("base", OLD.encode())
    added = base.updated(DEVICE, {"x": A})
    ours = Document.parse("ours", added.render().encode())
    old_row = OLD[OLD.index('"k":') : OLD.rindex("}}")]
    other = Document.parse("theirs", OLD.replace('"k":', '"b":  {"odd": 1}, "k":').encode())
    text = merge(base, ours, other).text
    assert json.loads(text)["schema"] == 2
    assert old_row in text
    assert '"b":  {"odd": 1}' in text
    grown = base.updated(
        DEVICE, {"k": replace(base.baseline("k"), sessions=(session(1.0, "2026-10-01"), A.sessions[0]))}
    )
    schema_1 = OLD.replace("2026-10-01", "2026-10-09")
    united = merge(base, grown, Document.parse("theirs", schema_1.encode()))
    dates = [each.recorded["date"] for each in rows_of(united)["k"].sessions]
    assert (united.conflicts, dates) == ({}, ["2026-10-01", "2026-10-09", "2026-11-01"])


def test_what_stands_beside_the_rows_is_ours_unless_only_they_changed_it() -> None:
    def with_note(note: int, driver: str) -> Document:
        text = document({"k": A}, {"name": driver}).text.replace('"schema"', f'"note":  {note},\n  "schema"')
        return Document.parse("file", text.encode())

    text = merge(with_note(1, "a"), with_note(2, "a"), with_note(3, "b")).text
    assert '"note":  2' in text
    assert '"name": "b"' in text


# -- properties

names = st.sampled_from("abcde")
rows = st.builds(row, st.integers(1, 28), st.integers(1, 28), source=st.sampled_from("st"), config=st.integers(1, 2))
files = st.dictionaries(names, rows, max_size=4)


def changes(base: Mapping[str, Baseline]) -> st.SearchStrategy[dict[str, Baseline | None]]:
    """New rows, and None for rows that are removed."""
    return st.dictionaries(names, rows | (st.none() if base else rows), max_size=4)


def applied(base: Mapping[str, Baseline], change: Mapping[str, Baseline | None]) -> dict[str, Baseline]:
    return {name: each for name, each in {**base, **change}.items() if each is not None}


@settings(deadline=None, max_examples=60)
@given(base=files, data=st.data())
def test_disjoint_changes_merge_alike_from_both_sides(base: dict[str, Baseline], data: st.DataObject) -> None:
    one, two = data.draw(changes(base)), data.draw(changes(base))
    two = {name: each for name, each in two.items() if name not in one}
    left, right = applied(base, one), applied(base, two)
    results = merged(base, left, right), merged(base, right, left)
    assert [result.conflicts for result in results] == [{}, {}]
    assert results[0].text == results[1].text
    assert rows_of(results[0]) == applied(applied(base, one), two)


@settings(deadline=None, max_examples=60)
@given(base=files, ours=files, theirs=files)
def test_no_row_is_lost_and_merging_again_changes_nothing(
    base: dict[str, Baseline], ours: dict[str, Baseline], theirs: dict[str, Baseline]
) -> None:
    result = merged(base, ours, theirs)
    found = rows_of(result)
    for name in {*ours, *theirs}:
        mine, other, before = ours.get(name), theirs.get(name), base.get(name)
        untouched = before in (mine, other)
        removed = before is not None and untouched and None in (mine, other)
        assert (name in found) == (not removed)
        if name in found and name not in result.conflicts and mine != other and not untouched:
            kept = {id(s): s for each in (mine, other) if each for s in each.sessions}.values()
            assert all(session in found[name].sessions for session in kept)
        if name in result.conflicts:
            assert found[name] == mine
    for name in found:
        assert name in ours or name in theirs
    for version in (ours, theirs):
        once = merge(document(base), document(version), document(base))
        assert (once.text, once.conflicts) == (document(version).text, {})
    again = merge(document(ours), Document.parse("merged", result.text.encode()), document(ours))
    assert (again.text, again.conflicts) == (result.text, {})
