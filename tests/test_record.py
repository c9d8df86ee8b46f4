"""What is stored of a kernel: made of readings, written, read, and refused where malformed."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kerneltune.record import (
    MOST_PAST,
    MOST_SESSIONS,
    Baseline,
    StoredSession,
    measured_baseline,
    measured_session,
)

CONFIG = {"ROWS": 4, "num_warps": 8}
CONTRACT = {"clock": "cuda", "device": "NVIDIA H200"}
SESSION = StoredSession(0.2, {"reference": 0.3}, {"reference": 2 / 3}, 0.002, 16, {"driver": "580"}, {"commit": "1a2b"})


def baseline(*latencies: float) -> Baseline:
    return Baseline(CONFIG, CONTRACT, tuple(dataclasses.replace(SESSION, latency_ms=ms) for ms in latencies or (0.2,)))


def test_session_of_known_blocks() -> None:
    blocks = {"winner": [2.0, 2.2, 4.0], "reference": [4.0, 4.0, 4.0], "copy": [1.0, 2.0, 1.0], "base": [9.0] * 3}
    session = measured_session(blocks, {"driver": "580"}, {"commit": "1a2b"})
    assert session.latency_ms == 2.2
    assert session.yardsticks == {"reference": 4.0, "copy": 1.0}
    assert session.ratios == pytest.approx({"reference": 0.55, "copy": 2.0})
    assert session.noise == pytest.approx(1.4826 * math.log(1.1))  # the steadier ratio's
    assert (session.blocks, session.environment, session.recorded) == (3, {"driver": "580"}, {"commit": "1a2b"})
    assert measured_baseline(blocks, CONFIG, CONTRACT, {}).sessions[0].latency_ms == 2.2
    assert measured_session(blocks, {}, {}, "base").latency_ms == 9.0


def test_baseline_sums_its_sessions_up() -> None:
    sessions = [
        dataclasses.replace(SESSION, latency_ms=ms, ratios=ratios, yardsticks=dict.fromkeys(ratios, 0.3))
        for ms, ratios in ((0.2, {"reference": 0.5}), (0.4, {"reference": 2.0, "copy": 9.0}), (0.3, {"reference": 1.0}))
    ]
    then = Baseline(CONFIG, CONTRACT, tuple(sessions))
    assert (then.latency_ms, then.yardsticks) == (0.3, {"reference": 0.3})
    assert then.ratios == pytest.approx({"reference": 1.0})
    assert then.recorded == {"commit": "1a2b"}


def test_the_oldest_sessions_give_way() -> None:
    then = baseline(1.0, 2.0).with_sessions([dataclasses.replace(SESSION, latency_ms=float(i)) for i in range(3, 12)])
    assert [session.latency_ms for session in then.sessions] == [float(i) for i in range(4, 12)]
    assert len(then.sessions) == MOST_SESSIONS


positive = st.floats(1e-6, 1e6)
facts = st.dictionaries(st.text(), st.text(), max_size=3)


@given(
    sessions=st.lists(
        st.builds(
            lambda latency, yard, noise, blocks, environment: StoredSession(
                latency, {"copy": yard}, {"copy": latency / yard}, noise, blocks, environment, {"date": "2026-11-02"}
            ),
            *(positive, positive, st.floats(0, 1), st.integers(1, 1000), facts),
        ),
        min_size=1,
        max_size=3,
    ),
    contract=facts,
    past=st.lists(facts, max_size=2),
    config=st.dictionaries(st.text(), st.integers() | st.booleans() | st.text() | st.none(), max_size=3),
)
def test_record_survives_its_file(sessions: Any, contract: Any, past: Any, config: Any) -> None:
    original = Baseline(config, contract, tuple(sessions), "source", "code", tuple(past))
    read = Baseline.from_json(json.loads(json.dumps(original.to_json(), allow_nan=False)))
    for one, other in zip(read.sessions, sessions, strict=True):
        assert (one.latency_ms, one.ratios["copy"]) == pytest.approx((other.latency_ms, other.ratios["copy"]), rel=5e-4)
    assert dataclasses.replace(read, sessions=original.sessions) == original
    assert Baseline.from_json(read.to_json()) == read


def test_record_holds_four_digits() -> None:
    session = dataclasses.replace(SESSION, latency_ms=0.123456, noise=0.00123456)
    assert (session.to_json()["latency_ms"], session.to_json()["noise"]) == (0.1235, 0.001235)


def test_row_of_one_measurement_is_a_session() -> None:
    """As schema 1 wrote it."""
    session = {k: v for k, v in SESSION.to_json().items() if k != "environment"}
    read = Baseline.from_json({"config": CONFIG, "contract": CONTRACT, **session})
    assert (read.config, read.contract, read.code, read.past) == (CONFIG, CONTRACT, "", ())
    assert read.sessions == (StoredSession.from_json(session),)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("latency_ms", -0.2),
        ("latency_ms", 0),
        ("latency_ms", "0.2"),
        ("latency_ms", True),
        ("latency_ms", None),
        ("latency_ms", math.nan),
        ("latency_ms", math.inf),
        ("latency_ms", 10**400),
        ("yardsticks", [0.3]),
        ("yardsticks", {"reference": -1.0}),
        ("yardsticks", {}),
        ("ratios", {"reference": math.nan}),
        ("ratios", {}),
        ("ratios", None),
        ("noise", -0.1),
        ("noise", math.nan),
        ("blocks", 0),
        ("blocks", 64.0),
        ("blocks", True),
        ("environment", [1]),
        ("recorded", {"date": None}),
    ],
)
def test_malformed_session_is_refused_by_the_name_of_the_field(field: str, value: Any) -> None:
    row = baseline(0.1).to_json()
    with pytest.raises(ValueError, match=field):
        Baseline.from_json({**row, "sessions": [*row["sessions"], {**SESSION.to_json(), field: value}]})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("config", [1]),
        ("config", {1: 2}),
        ("contract", "cuda"),
        ("contract", {"clock": 1}),
        ("sessions", []),
        ("sessions", {}),
        ("source", 3),
        ("code", None),
        ("past", {}),
        ("past", ["older"]),
    ],
)
def test_malformed_row_is_refused_by_the_name_of_the_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        Baseline.from_json({**baseline().to_json(), field: value})


@pytest.mark.parametrize("data", [None, [], "baseline", 3])
def test_record_must_be_an_object(data: Any) -> None:
    with pytest.raises(ValueError, match="baseline must be an object"):
        Baseline.from_json(data)


def test_missing_and_unknown_fields_are_named() -> None:
    session = SESSION.to_json()
    with pytest.raises(ValueError, match="session lacks blocks, noise"):
        StoredSession.from_json({k: v for k, v in session.items() if k not in ("noise", "blocks")})
    with pytest.raises(ValueError, match="session has the unknown latency_us"):
        StoredSession.from_json({**session, "latency_us": 200.0})
    with pytest.raises(ValueError, match="baseline lacks sessions"):
        Baseline.from_json({"config": {}, "contract": {}})


def test_files_of_a_longer_memory_are_read() -> None:
    row = baseline(*range(1, 20)).to_json() | {"past": [{"date": str(i)} for i in range(50)]}
    read = Baseline.from_json(row)
    assert (len(read.sessions), read.sessions[-1].latency_ms) == (MOST_SESSIONS, 19.0)
    assert (len(read.past), read.past[-1]) == (MOST_PAST, {"date": "49"})
