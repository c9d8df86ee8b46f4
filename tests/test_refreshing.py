"""Which row becomes what when a measurement is accepted: growing, keeping still, starting anew, and the anchor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kerneltune.record import MOST_PAST, MOST_SESSIONS, Baseline, StoredSession
from pytest_kerneltune.refreshing import ANCHOR, anchor, creep, refreshed

MATURE = 5
THRESHOLD = 0.03
CONTRACT = {"gpu": "NVIDIA H200"}


def session(latency_ms: float, day: int = 1, ratios: Mapping[str, float] | None = None) -> StoredSession:
    ratios = {"reference": latency_ms / 2} if ratios is None else ratios
    recorded = {"date": f"2026-11-{day:02}", "commit": f"commit{day}"}
    yardsticks = {name: latency_ms / ratio for name, ratio in ratios.items()}
    return StoredSession(latency_ms, yardsticks, ratios, 0.01, 16, {"driver": "580"}, recorded)


def row(*latencies: float, day: int = 1) -> Baseline:
    return Baseline({"B": 1}, CONTRACT, tuple(session(latency, day) for latency in latencies), source="s")


def accepted(old: Baseline | None, fresh: Baseline, kind: str = "ok", change: float | None = 0.0) -> Baseline:
    return refreshed(old, fresh, kind, change, THRESHOLD, MATURE)


def test_a_first_measurement_is_the_row() -> None:
    assert accepted(None, row(1.0), "new", None) == row(1.0)


@pytest.mark.parametrize(
    ("sessions", "change", "becomes"),
    [(1, 0.0, 2), (4, 0.02, 5), (5, 0.0, 5), (5, 0.009, 5), (5, -0.009, 5), (5, 0.011, 6), (5, -0.02, 6), (8, 0.02, 8)],
)
def test_a_row_grows_while_it_is_young_and_where_it_crept(sessions: int, change: float, becomes: int) -> None:
    old, fresh = row(*[1.0] * sessions), replace(row(1.0 + change, day=2), code="compiled")
    new = accepted(old, fresh, change=change)
    assert len(new.sessions) == becomes
    grown = new is not old
    assert (new.sessions[-1] == fresh.sessions[0], new.code == "compiled") == (grown, grown)
    assert grown == (becomes > sessions or sessions == MOST_SESSIONS)


def test_where_the_kernel_was_not_judged_against_its_row_the_rows_tell_how_far_it_moved() -> None:
    old = row(*[1.0] * MATURE)
    assert accepted(old, row(1.009), change=None) is old
    assert len(accepted(old, row(1.011), change=None).sessions) == MATURE + 1


def test_another_config_that_is_as_fast_changes_nothing() -> None:
    old, fresh = row(1.0), replace(row(1.0), config={"B": 2})
    assert accepted(old, fresh) is old
    assert accepted(old, replace(row(0.98), config={"B": 2}), change=-0.02).config == {"B": 2}


def test_new_source_that_is_as_fast_does_not_change_a_mature_row() -> None:
    old = row(*[1.0] * MATURE)
    assert accepted(old, replace(row(1.0), source="t")) is old
    young = accepted(row(1.0), replace(row(1.0), source="t"))
    assert (len(young.sessions), young.source) == (2, "t")
    moved = accepted(old, replace(row(1.02), source="t"), change=0.02)
    assert (len(moved.sessions), moved.source, moved.past[-1]["verdict"]) == (1, "t", "ok")
    unknown = accepted(old, replace(row(1.02), source=""), change=0.02)
    assert (len(unknown.sessions), unknown.source) == (MATURE + 1, "s")


@pytest.mark.parametrize(("kind", "change"), [("regressed", 0.062), ("improved", -0.05), ("noisy", 0.02)])
def test_a_row_that_is_accepted_to_be_different_starts_anew_and_tells_what_it_was(kind: str, change: float) -> None:
    new = refreshed(row(0.0401), row(0.0426, 0.0427, day=9), kind, change, THRESHOLD, MATURE, "more accurate sums")
    assert new.sessions == row(0.0426, 0.0427, day=9).sessions
    assert new.past == (
        {
            "date": "2026-11-01",
            "commit": "commit1",
            "driver": "580",
            "latency": "40.1 us",
            "over reference": "0.02005",
            "verdict": kind,
            "change": f"{100 * change:+.3g}%",
            "why": "more accurate sums",
        },
    )


def test_another_contract_starts_anew_whatever_the_verdict() -> None:
    other = replace(row(1.0), contract={"gpu": "NVIDIA A100"})
    new = accepted(row(2.0), other, "ok", None)
    assert (new.sessions, new.past[0]["verdict"], new.past[0]["latency"]) == (other.sessions, "incomparable", "2 ms")
    assert "change" not in new.past[0]
    assert creep(new) is None
    assert anchor(new)["latency"] == "1 ms"


# -- the anchor


def test_the_anchor_is_the_first_session_as_long_as_that_is_there() -> None:
    assert creep(row(1.0)) is None
    crept = row(1.0, 1.0, 1.0, 1.05, 1.05, 1.05)
    assert anchor(crept)["latency"] == "1 ms"
    assert creep(crept) == pytest.approx(0.05)


def test_a_slow_creep_shows_when_its_first_session_is_long_forgotten() -> None:
    old = row(*[1.0] * MATURE)
    for step in range(1, 31):
        old = accepted(old, row(1.015**step, day=min(step, 30)), change=0.015)
    assert len(old.sessions) == MOST_SESSIONS
    assert [entry["verdict"] for entry in old.past] == [ANCHOR]
    assert anchor(old)["date"] == "2026-11-01"
    assert creep(old) == pytest.approx(1.015**28.5 - 1, rel=0.02)


def test_the_anchor_outlives_what_was_accepted_since() -> None:
    old = row(1.0)
    for step in range(1, 3 * MOST_PAST):
        old = accepted(old, row(1.01**step), "improved" if step % 2 else "regressed", 0.01)
    assert len(old.past) == MOST_PAST
    assert [entry["latency"] for entry in old.past[:2]] == ["1 ms", "1.489 ms"]
    assert creep(old) == pytest.approx(1.01 ** (3 * MOST_PAST - 1) - 1, rel=1e-3)
    assert Baseline.from_json(old.to_json()).past == old.past


def test_where_a_row_crept_before_it_was_accepted_its_first_session_stays_the_anchor() -> None:
    new = accepted(row(1.0, 1.02, 1.04), row(1.2), "regressed", 0.18)
    assert [(entry["latency"], entry["verdict"]) for entry in new.past] == [("1 ms", ANCHOR), ("1.02 ms", "regressed")]
    assert creep(new) == pytest.approx(0.2)


def test_the_creep_is_told_by_the_yardsticks_that_both_have() -> None:
    first = session(1.0, ratios={"reference": 0.5, "copy": 2.0, "arithmetic": 4.0})
    now = session(1.5, ratios={"reference": 0.6, "copy": 2.2, "arithmetic": 4.04})
    assert creep(Baseline({}, CONTRACT, (first, now))) == pytest.approx(0.1)
    assert creep(Baseline({}, CONTRACT, (first, session(1.5, ratios={})))) == pytest.approx(0.5)
    odd = ({"latency": "fast", "over reference": "nan"},)
    assert creep(Baseline({}, CONTRACT, (first,), past=odd)) is None


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["ok", "improved", "regressed", "incomparable"]),
            st.floats(-0.1, 0.1),
            st.integers(1, 3),
            st.sampled_from("st"),
            st.integers(1, 2),
        ),
        max_size=40,
    )
)
def test_whatever_is_accepted_the_row_can_be_stored_and_keeps_its_anchor(
    steps: list[tuple[str, float, int, str, int]],
) -> None:
    now, oldest = row(1.0), row(1.0)
    for kind, change, sessions, source, config in steps:
        contract = {**CONTRACT, "n": str(int(now.contract.get("n", 0)) + 1)} if kind == "incomparable" else now.contract
        fresh = replace(row(*[now.latency_ms * (1 + change)] * sessions), source=source, config={"B": config})
        fresh = replace(fresh, contract=contract)
        new = accepted(now, fresh, kind, None if kind == "incomparable" else change)
        oldest = new if kind == "incomparable" else oldest
        now = new
        assert 1 <= len(now.sessions) <= MOST_SESSIONS
        assert len(now.past) <= MOST_PAST
        assert now is not fresh
        assert float(anchor(now)["over reference"]) == pytest.approx(oldest.sessions[0].ratios["reference"], rel=1e-3)
        read = Baseline.from_json(now.to_json())
        assert (read.past, read.config, read.source) == (now.past, now.config, now.source)
