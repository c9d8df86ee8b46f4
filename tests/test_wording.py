"""What a failing test shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_kerneltune.gate import Interval, Verdict, VerdictKind, format_ms, regression_message
from pytest_kerneltune.record import Baseline, StoredSession

CONFIG = {"ROWS": 4, "num_warps": 8}
COMMAND = "pytest perf/test_softmax.py --autotune --update-baselines=regressed"
SESSION = StoredSession(0.0412, {}, {}, 0.001, 64, {}, {"date": "2026-11-02"})
LAST = replace(SESSION, recorded={"date": "2026-11-20", "commit": "1a2b3c4"})
BASELINE = Baseline(CONFIG, {}, (SESSION, SESSION, LAST))
REASON = "slower than the baseline: ratio to the reference +6.3% [+5.2%, +7.4%]; threshold 3%"
VERDICT = Verdict(
    VerdictKind.REGRESSED,
    REASON,
    change=Interval(0.063, 0.052, 0.074),
    code_change=Interval(0.061, 0.05, 0.072),
    search_change=Interval(0.002, -0.001, 0.004),
    threshold=0.03,
    blame="code",
    remarks=("young baseline: 3 of 5 sessions, so the limits are wider",),
)


def message(verdict: Verdict, baseline: Baseline | None = BASELINE) -> str:
    return regression_message(verdict, baseline, 0.0438, {"ROWS": 4, "num_warps": 4}, "softmax[n1024]", COMMAND)


def shown(docstring: str | None) -> str:
    example = (docstring or "").split("\n\n")[1]
    return "\n".join(line.removeprefix("    ") for line in example.rstrip().splitlines())


def test_regression_message() -> None:
    """Against a stored baseline:

    softmax[n1024] REGRESSED +6.3% [+5.2%, +7.4%]: 41.2 us -> 43.8 us
      why      slower than the baseline: ratio to the reference +6.3% [+5.2%, +7.4%]; threshold 3%
      blame    code: the old config itself is slower than it was (kernel, compiler or driver)
      code     +6.1% [+5.0%, +7.2%]  today's code against then, with the same config
      search   +0.2% [-0.1%, +0.4%]  today's config against the old one, both now
      config   ROWS=4, num_warps=8 -> 4
      against  3 sessions from 2026-11-02 to 2026-11-20; the last: commit 1a2b3c4
      note     young baseline: 3 of 5 sessions, so the limits are wider
      accept   pytest perf/test_softmax.py --autotune --update-baselines=regressed
    """
    assert message(VERDICT) == shown(test_regression_message.__doc__)


def test_message_against_a_commit() -> None:
    """With no stored baseline at all:

    softmax[n1024] REGRESSED +6.3% [+5.2%, +7.4%]: 40 us -> 43.8 us
      why      slower than the base commit 1a2b3c4: +6.3% [+5.2%, +7.4%] side by side; threshold 3%
      blame    config gone: the old config no longer runs, and the best one found is slower
      config   ROWS=2 -> 4, num_warps=4
      against  the base commit 1a2b3c4
      accept   pytest perf/test_softmax.py --autotune --update-baselines=regressed
    """
    verdict = replace(
        VERDICT,
        reason="slower than the base commit 1a2b3c4: +6.3% [+5.2%, +7.4%] side by side; threshold 3%",
        blame="config gone",
        code_change=None,
        search_change=None,
        basis="base",
        remarks=(),
        against="the base commit 1a2b3c4",
        then_ms=0.04,
        then_config={"ROWS": 2, "num_warps": 4},
    )
    assert message(verdict, None) == shown(test_message_against_a_commit.__doc__)
    assert message(verdict, BASELINE) == message(verdict, None)


def test_message_needs_something_to_compare_with() -> None:
    with pytest.raises(ValueError, match="needs its baseline"):
        message(VERDICT, None)


def test_unchanged_and_new_parameters() -> None:
    same = regression_message(VERDICT, BASELINE, 0.05, CONFIG, "softmax", COMMAND)
    assert "config   unchanged: ROWS=4, num_warps=8" in same
    assert "search" not in same
    other = regression_message(VERDICT, BASELINE, 0.05, {"ROWS": 8, "layout": "row"}, "softmax", COMMAND)
    assert 'ROWS=4 -> 8, layout=absent -> "row", num_warps=8 -> absent' in other


@pytest.mark.parametrize(
    ("ms", "text"), [(0.0000005, "0.5 ns"), (0.0412, "41.2 us"), (1.0, "1 ms"), (12.345, "12.35 ms"), (2500, "2.5 s")]
)
def test_latency_for_people(ms: float, text: str) -> None:
    assert format_ms(ms) == text
