"""The gate against scipy, against simulated kernels, and branch by branch."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kerneltune.gate import (
    Baseline,
    ClockError,
    Interval,
    Policy,
    Verdict,
    VerdictKind,
    judge,
    measured_baseline,
)
from pytest_kerneltune.record import measured_session
from pytest_kerneltune.trial import Clock

POLICY = Policy()
CONTRACT = {"clock": "cuda", "device": "NVIDIA H200", "inputs": "fp16[4096, 1024]"}
CONFIG = {"ROWS": 4, "num_warps": 8}
OTHER = {"ROWS": 8, "num_warps": 8}
LONG = 64
NOWHERE: Mapping[str, str] = {}


def simulated(
    latencies: Mapping[str, float], seed: int = 0, count: int = LONG, noise: float = 0.002, drift: float = 0.03
) -> dict[str, list[float]]:
    """Blocks of the named arms (latencies in ms): a drift that all arms of a block share, and noise of each reading."""
    rng = random.Random(seed)
    shared = [rng.gauss(0, drift) for _ in range(count)]
    return {arm: [ms * math.exp(s + rng.gauss(0, noise)) for s in shared] for arm, ms in latencies.items()}


def measured(
    seed: int = 0, count: int = LONG, noise: float = 0.002, drift: float = 0.03, **latencies: float
) -> dict[str, list[float]]:
    return simulated(latencies, seed, count, noise, drift)


def stored(
    seed: int = 99,
    config: dict[str, Any] = CONFIG,
    noise: float = 0.002,
    offsets: Sequence[float] = (0.0, 0.0, 0.0),
    **latencies: float,
) -> Baseline:
    """A baseline of as many sessions as ``offsets``, by which the winner's latency differs in each."""
    sessions = []
    for i, offset in enumerate(offsets):
        moved = {arm: ms * math.exp(offset * (arm == "winner")) for arm, ms in latencies.items()}
        blocks = simulated(moved, seed + i, noise=noise)
        sessions.append(measured_session(blocks, {"driver": "580", "torch": "2.11"}, {"date": f"2026-11-0{2 + i}"}))
    return Baseline(config, CONTRACT, tuple(sessions), code="abc")


def judged(
    blocks: dict[str, list[float]],
    baseline: Baseline | None,
    clock: Clock = "cuda",
    config: dict[str, Any] = CONFIG,
    policy: Policy = POLICY,
    code: str = "",
    environment: Mapping[str, str] = NOWHERE,
) -> Verdict:
    return judge(blocks, baseline, CONTRACT, clock, policy, config=config, code=code, environment=environment)


def looked(blocks: dict[str, list[float]], baseline: Baseline, clock: Clock = "cuda") -> Verdict:
    """The verdict of the sequential rule: judge at each look, stop where decided."""
    verdicts = (judged({a: r[:n] for a, r in blocks.items()}, baseline, clock) for n in POLICY.looks)
    return next(v for v in verdicts if v.decided)


# Simulated kernels


def changed(rng: random.Random, clock: Clock, session: float, noise: float, slowdown: float) -> VerdictKind:
    """A verdict over a kernel that changed by ``slowdown``; the sessions' offset has deviation ``session``."""
    speed = math.exp(rng.gauss(0, 0.05)) if clock == "cuda" else 1.0
    then = stored(rng.getrandbits(32), noise=noise, winner=0.2, reference=0.3)
    offset = math.exp(rng.gauss(0, session)) * (1 + slowdown)
    blocks = measured(rng.getrandbits(32), noise=noise, winner=0.2 * speed * offset, reference=0.3 * speed)
    return looked(blocks, then, clock).kind


@pytest.mark.parametrize(("clock", "session"), [("cuda", 0.005), ("thread", 0.025), ("wall", 0.05)])
@pytest.mark.parametrize("noise", [0.0015, 0.01])
def test_unchanged_kernels_are_ok(clock: Clock, session: float, noise: float) -> None:
    rng = random.Random(5)
    kinds = [changed(rng, clock, session, noise, 0.0) for _ in range(400)]
    assert VerdictKind.REGRESSED not in kinds
    assert kinds.count(VerdictKind.OK) >= 0.9 * len(kinds)


@pytest.mark.parametrize("noise", [0.0015, 0.01, 0.02])
def test_slowdown_of_a_tenth_is_found(noise: float) -> None:
    rng = random.Random(6)
    assert {changed(rng, "cuda", 0.005, noise, 0.10) for _ in range(300)} == {VerdictKind.REGRESSED}


def test_speedup_of_a_tenth_is_found() -> None:
    rng = random.Random(7)
    assert {changed(rng, "cuda", 0.005, 0.0015, -0.10) for _ in range(200)} == {VerdictKind.IMPROVED}


def test_noise_asks_for_more_blocks_and_never_passes_as_ok() -> None:
    then = stored(winner=0.2, reference=0.3)
    blocks = measured(noise=0.2, winner=0.2 * 1.05, reference=0.3)
    early = judged({arm: readings[:16] for arm, readings in blocks.items()}, then)
    assert (early.kind, early.decided) == (VerdictKind.NOISY, False)
    late = judged(blocks, then)
    assert (late.kind, late.decided) == (VerdictKind.NOISY, True)
    assert "undecided" in late.reason


# Before anything is compared


def test_disturbed_measurement_is_invalid() -> None:
    then = stored(winner=0.2)
    verdict = judge({}, then, CONTRACT, "cuda", POLICY, ["the GPU throttled", "pid 7 used it too"], config=CONFIG)
    assert verdict.kind is VerdictKind.INVALID
    assert "the GPU throttled; pid 7 used it too" in verdict.reason


def test_without_baseline_it_is_new() -> None:
    assert judged(measured(winner=0.2), None).kind is VerdictKind.NEW


@pytest.mark.parametrize(
    ("today", "text"),
    [
        ({**CONTRACT, "device": "NVIDIA A100"}, "device was NVIDIA H200, is NVIDIA A100"),
        ({k: v for k, v in CONTRACT.items() if k != "inputs"}, "inputs was fp16[4096, 1024], is absent"),
        ({**CONTRACT, "method": "graph"}, "method was absent, is graph"),
    ],
)
def test_another_contract_is_incomparable(today: dict[str, str], text: str) -> None:
    then = stored(winner=0.2)
    verdict = judge(measured(winner=0.4), then, today, "cuda", POLICY, config=CONFIG)
    assert (verdict.kind, verdict.change) == (VerdictKind.INCOMPARABLE, None)
    assert verdict.reason.endswith(text)


def test_too_few_blocks_are_undecided() -> None:
    verdict = judged(measured(count=8, winner=9.0), stored(winner=0.2))
    assert (verdict.kind, verdict.decided, verdict.change) == (VerdictKind.NOISY, False, None)
    assert "8 blocks" in verdict.reason
    assert "9" in verdict.reason


@pytest.mark.parametrize(
    "blocks",
    [
        {"winner": [0.2] * 16, "reference": [0.3] * 15},
        {"winner": [0.2] * 15 + [math.nan]},
        {"winner": [0.2] * 15 + [0.0]},
        {"winner": [0.2] * 15 + [math.inf]},
        {"winner": []},
        {"reference": [0.3] * 16},
    ],
)
def test_malformed_blocks_are_refused(blocks: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="blocks"):
        judged(blocks, stored(winner=0.2, reference=0.3))
    with pytest.raises(ValueError, match="blocks"):
        measured_baseline(blocks, CONFIG, CONTRACT, {})


# The cuda clock


def test_power_capped_gpu_is_judged_by_the_ratio() -> None:
    then = stored(winner=0.2, reference=0.3)
    verdict = judged(measured(winner=0.24, reference=0.36), then)
    assert verdict.kind is VerdictKind.OK
    assert verdict.change is not None
    assert abs(verdict.change.estimate) < 0.01
    assert "ratio to the reference" in verdict.reason
    assert verdict.threshold == POLICY.threshold


def test_slower_code_with_the_same_config() -> None:
    then = stored(winner=0.2, reference=0.3)
    verdict = judged(measured(winner=0.212, reference=0.3), then)
    assert (verdict.kind, verdict.blame) == (VerdictKind.REGRESSED, "code")
    assert verdict.code_change == verdict.change
    assert verdict.search_change == Interval(0, 0, 0)
    assert verdict.change is not None
    assert verdict.change.estimate == pytest.approx(0.06, abs=0.005)
    assert verdict.change.low == pytest.approx(0.045, abs=0.005)


@pytest.mark.parametrize(
    ("baseline_now", "blame", "code", "search"), [(0.24, "code", 0.2, 0.0), (0.2, "search", 0.0, 0.2)]
)
def test_change_is_split_between_code_and_search(baseline_now: float, blame: str, code: float, search: float) -> None:
    then = stored(winner=0.2, reference=0.3)
    verdict = judged(measured(winner=0.24, baseline=baseline_now, reference=0.3), then, config=OTHER)
    assert (verdict.kind, verdict.blame) == (VerdictKind.REGRESSED, blame)
    assert verdict.code_change is not None
    assert verdict.search_change is not None
    assert verdict.code_change.estimate == pytest.approx(code, abs=0.005)
    assert verdict.search_change.estimate == pytest.approx(search, abs=0.005)


def test_paired_search_change_is_known_better_than_the_change_since_then() -> None:
    then = stored(winner=0.2, reference=0.3)
    verdict = judged(measured(winner=0.199, baseline=0.2, reference=0.3), then, config=OTHER)
    assert verdict.change is not None
    assert verdict.search_change is not None
    assert verdict.search_change.high < 0 < verdict.change.high
    assert (verdict.kind, verdict.blame) == (VerdictKind.OK, "")


def test_baseline_config_that_no_longer_runs() -> None:
    then = stored(winner=0.2, reference=0.3)
    verdict = judged(measured(winner=0.24, reference=0.3), then, config=OTHER)
    assert (verdict.kind, verdict.blame) == (VerdictKind.REGRESSED, "config gone")
    assert verdict.code_change is None
    assert verdict.search_change is None


def test_stored_list_is_the_tuple_it_was() -> None:
    then = stored(config={"order": [1, 0]}, winner=0.2, reference=0.3)
    verdict = judged(measured(winner=0.24, reference=0.3), then, config={"order": (1, 0)})
    assert verdict.blame == "code"


@pytest.mark.parametrize("slowdown", [1.05, 1.2])
def test_gpu_latency_without_reference_has_a_weak_threshold(slowdown: float) -> None:
    then = stored(winner=0.2)
    verdict = judged(measured(winner=0.2 * slowdown, drift=0.01), then)
    assert verdict.threshold == pytest.approx(0.086, abs=0.005)
    assert verdict.basis == "alone"
    assert any("weak" in remark and "reference=" in remark for remark in verdict.remarks)
    assert "instead of 3%" in verdict.reason
    assert "without a (long enough) reference" in verdict.reason
    assert (verdict.kind is VerdictKind.REGRESSED) == (slowdown == 1.2)


def test_trivial_reference_on_a_gpu_is_not_divided_by() -> None:
    then = stored(winner=0.2, reference=0.002)
    verdict = judged(measured(winner=0.2, reference=0.0012), then)
    assert verdict.kind is not VerdictKind.REGRESSED
    assert "latency" in verdict.reason


def test_short_gpu_kernel_has_a_wide_threshold() -> None:
    then = stored(winner=0.006, reference=0.006)
    verdict = judged(measured(winner=0.006 * 1.03, reference=0.006), then)
    assert verdict.kind is VerdictKind.OK
    assert verdict.threshold is not None
    assert 0.07 < verdict.threshold < 0.12
    assert "at 6" in verdict.reason


def test_asked_threshold_is_used_where_the_clock_resolves_it() -> None:
    then = stored(winner=0.2, reference=0.3)
    blocks = measured(winner=0.2 * 1.06, reference=0.3)
    assert judged(blocks, then, policy=Policy(threshold=0.1)).kind is VerdictKind.OK
    assert judged(blocks, then, policy=Policy(threshold=0.1)).threshold == 0.1
    finest = judged(blocks, then, policy=Policy(threshold=0.001))
    assert finest.threshold == pytest.approx(0.028, abs=0.001)
    assert finest.kind is VerdictKind.REGRESSED


@pytest.mark.parametrize(("factor", "told"), [(1.1, False), (1.4, True), (0.6, True)])
def test_reference_that_is_no_longer_what_it_was_is_mentioned(factor: float, told: bool) -> None:
    then = stored(winner=0.2, reference=0.3)
    verdict = judged(measured(winner=0.2 * factor, reference=0.3 * factor), then)
    assert verdict.kind is VerdictKind.OK
    assert any("reference itself went from" in remark for remark in verdict.remarks) == told


def test_reference_only_then_or_only_now_is_not_used() -> None:
    for then, blocks in (
        (stored(winner=0.2, reference=0.3), measured(winner=0.2)),
        (stored(winner=0.2), measured(winner=0.2, reference=0.3)),
    ):
        assert "latency" in judged(blocks, then).reason


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), slowdown=st.floats(-0.2, 0.2), speed=st.floats(0.2, 5.0))
def test_speed_of_the_gpu_never_changes_a_ratio_verdict(seed: int, slowdown: float, speed: float) -> None:
    then = stored(winner=0.2, baseline=0.2, reference=0.3)
    blocks = measured(seed, winner=0.2 * (1 + slowdown), baseline=0.2, reference=0.3)
    scaled = {arm: [speed * reading for reading in readings] for arm, readings in blocks.items()}
    before, after = judged(blocks, then, config=OTHER), judged(scaled, then, config=OTHER)
    assert (before.kind, before.blame, before.threshold) == (after.kind, after.blame, after.threshold)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), order=st.permutations(range(16)), clock=st.sampled_from(["cuda", "thread", "wall"]))
def test_order_of_the_blocks_does_not_matter(seed: int, order: Sequence[int], clock: Clock) -> None:
    then = stored(winner=0.2, reference=0.3)
    blocks = measured(seed, count=16, noise=0.03, winner=0.21, reference=0.3)
    shuffled = {arm: [readings[i] for i in order] for arm, readings in blocks.items()}
    assert judged(blocks, then, clock) == judged(shuffled, then, clock)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    slowdowns=st.tuples(st.floats(0.7, 1.5), st.floats(0.7, 1.5)),
    clock=st.sampled_from(["cuda", "thread", "wall"]),
)
def test_slower_kernel_never_fares_better(seed: int, slowdowns: tuple[float, float], clock: Clock) -> None:
    then = stored(winner=0.2, reference=0.3)
    rank = [VerdictKind.IMPROVED, VerdictKind.OK, VerdictKind.NOISY, VerdictKind.REGRESSED]
    verdicts = [
        judged(measured(seed, noise=0.02, winner=0.2 * s, reference=0.3), then, clock) for s in sorted(slowdowns)
    ]
    assert rank.index(verdicts[0].kind) <= rank.index(verdicts[1].kind)


# Host clocks


@pytest.mark.parametrize(("clock", "threshold"), [("thread", 0.095), ("wall", 0.175)])
def test_host_regression_shows_in_every_view(clock: Clock, threshold: float) -> None:
    then = stored(winner=2.0, reference=3.0, calibration=1.0)
    verdict = judged(measured(winner=2.6, reference=3.0, calibration=1.0), then, clock)
    assert (verdict.kind, verdict.blame) == (VerdictKind.REGRESSED, "code")
    assert verdict.threshold == pytest.approx(threshold, abs=0.01)
    for view in ("latency +", "ratio to the reference +", "ratio to the calibration +"):
        assert view in verdict.reason


@pytest.mark.parametrize(
    "now",
    [
        {"winner": 3.0, "reference": 4.5, "calibration": 1.5},  # the whole machine is slower
        {"winner": 2.0, "reference": 2.0, "calibration": 0.7},  # the yardsticks are faster
        {"winner": 3.0, "reference": 4.5, "calibration": 1.0},  # and one of them is not
    ],
)
def test_changed_machine_speed_is_not_a_regression(now: dict[str, float]) -> None:
    then = stored(winner=2.0, reference=3.0, calibration=1.0)
    verdict = judged(simulated(now), then, "thread")
    assert (verdict.kind, verdict.decided) == (VerdictKind.NOISY, True)
    assert "the machine's speed changed" in verdict.reason


def test_a_faster_machine_does_not_hide_a_slowdown_to_twice_the_latency() -> None:
    then, policy = stored(winner=2.0, calibration=1.0), Policy(threshold=0.25)
    hidden = judged(measured(winner=4.0 / 1.7, calibration=1.0 / 1.7), then, "thread", policy=policy)
    assert (hidden.kind, hidden.blame) == (VerdictKind.REGRESSED, "code")
    faster = judged(measured(winner=4.0 / 1.9, calibration=1.0 / 1.9), then, "thread", policy=policy)
    assert faster.kind is VerdictKind.NOISY


def test_host_kernel_improves_only_in_every_view() -> None:
    then = stored(winner=2.0, calibration=1.0)
    assert judged(measured(winner=1.5, calibration=1.0), then, "thread").kind is VerdictKind.IMPROVED
    assert judged(measured(winner=1.5, calibration=0.75), then, "thread").kind is VerdictKind.OK


@pytest.mark.parametrize("trivial_now", [0.00005, 0.0001, 0.0003])
@pytest.mark.parametrize("clock", ["thread", "wall"])
def test_trivial_reference_has_no_say_on_host_clocks(clock: Clock, trivial_now: float) -> None:
    then = stored(winner=2.0, reference=0.0001)
    same = judged(measured(winner=2.0, reference=trivial_now), then, clock)
    assert same.kind is VerdictKind.OK
    assert "reference" not in same.reason
    assert judged(measured(winner=2.8, reference=trivial_now), then, clock).kind is VerdictKind.REGRESSED


def test_one_steady_view_settles_the_last_look() -> None:
    then = stored(winner=2.0, calibration=1.0)
    blocks = measured(seed=1, drift=0.5, winner=2.2, calibration=1.1)
    early = judged({arm: readings[:32] for arm, readings in blocks.items()}, then, "thread")
    assert (early.kind, early.decided) == (VerdictKind.NOISY, False)
    assert judged(blocks, then, "thread").kind is VerdictKind.OK


def test_red_view_beside_an_undecided_one_is_noisy() -> None:
    then = stored(winner=2.0, calibration=1.0)
    verdict = judged(measured(drift=0.5, winner=2.3, calibration=1.0), then, "thread")
    assert (verdict.kind, verdict.decided) == (VerdictKind.NOISY, True)
    assert "undecided" in verdict.reason


def test_baseline_of_a_noisy_hour_cannot_resolve_the_threshold() -> None:
    then = stored(noise=0.2, winner=2.0, calibration=1.0)
    verdict = judged(measured(winner=2.25, calibration=1.0), then, "thread")
    assert verdict.kind is not VerdictKind.REGRESSED
    assert verdict.threshold is not None
    assert verdict.threshold > 0.12


# Several sessions


def test_more_sessions_narrow_the_limits() -> None:
    blocks = measured(winner=0.2, reference=0.3)
    thresholds = []
    for count in (1, 2, 3, 5, 8):
        then = stored(offsets=[0.0] * count, winner=0.2, reference=0.3)
        verdict = judged(blocks, then, policy=Policy(threshold=0.0))
        assert verdict.threshold is not None
        thresholds.append(verdict.threshold)
        young = [remark for remark in verdict.remarks if remark.startswith(f"young baseline: {count} of 5 sessions")]
        assert len(young) == (count < 5)
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[0] > 0.04 > 0.02 > thresholds[-1]


def test_sessions_that_scatter_widen_the_limits() -> None:
    blocks = measured(winner=0.2 * 1.04, reference=0.3)
    steady = stored(offsets=[0.001, -0.001, 0.0, 0.001, -0.001], winner=0.2, reference=0.3)
    moving = stored(offsets=[0.02, -0.02, 0.01, 0.015, -0.025], winner=0.2, reference=0.3)
    assert judged(blocks, steady).kind is VerdictKind.REGRESSED
    assert judged(blocks, steady).threshold == POLICY.threshold
    verdict = judged(blocks, moving)
    assert verdict.kind is not VerdictKind.REGRESSED
    assert verdict.threshold is not None
    assert 0.06 < verdict.threshold < 0.12
    assert "instead of 3%, the finest that a baseline of 5 sessions from 2026-11-02 to 2026-11-06 allows" in (
        verdict.reason
    )


def test_young_baseline_does_not_call_a_kernel_of_another_process_slower() -> None:
    """An unchanged softmax moved by 2%, and once by 3%, from one process to another."""
    then = stored(offsets=[0.0], winner=0.04, reference=0.066)
    assert judged(measured(winner=0.04 * 1.02, reference=0.066), then).kind is VerdictKind.OK
    assert judged(measured(winner=0.04 * 1.03, reference=0.066), then).kind is not VerdictKind.REGRESSED
    assert judged(measured(winner=0.04 * 1.08, reference=0.066), then).kind is VerdictKind.REGRESSED


def test_new_reading_is_compared_with_the_mean_of_the_sessions() -> None:
    then = stored(offsets=[0.0, 0.01, 0.02], noise=0.0, winner=0.2, reference=0.3)
    verdict = judged(measured(noise=0.0, winner=0.2, reference=0.3), then)
    assert verdict.change is not None
    assert verdict.change.estimate == pytest.approx(math.expm1(-0.01), abs=1e-6)
    assert (verdict.then_ms, verdict.then_config) == (then.latency_ms, CONFIG)
    assert verdict.against == "3 sessions from 2026-11-02 to 2026-11-04"


def test_a_yardstick_counts_the_sessions_that_have_it() -> None:
    old = stored(offsets=[0.0] * 4, winner=0.2, copy=0.1)
    new = stored(offsets=[0.0], winner=0.2, copy=0.1, reference=0.3)
    verdict = judged(measured(winner=0.2, copy=0.1, reference=0.3), old.with_sessions(new.sessions))
    assert verdict.kind is VerdictKind.OK
    assert any("young baseline: 1 of 5" in remark for remark in verdict.remarks)
    assert "ratio to the reference" in verdict.reason


# The reference's own changes


def frozen(winner: float = 0.2, reference: float = 0.3, copy: float = 0.1) -> dict[str, list[float]]:
    return measured(winner=winner, reference=reference, copy=copy, arithmetic=0.15)


def with_frozen() -> Baseline:
    return stored(winner=0.2, reference=0.3, copy=0.1, arithmetic=0.15)


def test_library_that_got_faster_is_no_regression() -> None:
    then = with_frozen()
    verdict = judged(frozen(reference=0.3 * 0.88), then)
    assert (verdict.kind, verdict.blame, verdict.basis) == (VerdictKind.OK, "", "baseline")
    assert "ratio to the copy" in verdict.reason
    assert "ratio to the reference" not in verdict.reason
    told = "the reference itself became 12% faster against the calibration kernels; compared by these instead"
    assert told in verdict.remarks


def test_a_kernel_that_slows_beside_a_faster_library_is_found_all_the_same() -> None:
    then = with_frozen()
    verdict = judged(frozen(winner=0.2 * 1.15, reference=0.3 * 0.85), then)
    assert verdict.kind is VerdictKind.REGRESSED
    assert verdict.change is not None
    assert verdict.change.estimate == pytest.approx(0.15, abs=0.01)


def test_library_that_got_slower_is_no_improvement_and_is_mentioned() -> None:
    then = with_frozen()
    assert judged(frozen(reference=0.3 * 1.2), then).kind is VerdictKind.OK
    both = judged(frozen(reference=0.3 * 1.2, winner=0.2 * 1.2), then)
    assert both.kind is VerdictKind.OK
    assert any(
        "the reference itself became 20% slower" in remark and "library change?" in remark for remark in both.remarks
    )


def test_calibration_kernels_that_disagree_leave_it_undecided() -> None:
    then = with_frozen()
    blocks = frozen(reference=0.3 * 0.88, copy=0.1 * 0.88)
    verdict = judged(blocks, then)
    assert (verdict.kind, verdict.decided) == (VerdictKind.NOISY, True)
    assert "disagree: it may be the reference that changed" in verdict.reason
    assert not judged({arm: readings[:16] for arm, readings in blocks.items()}, then).decided


def test_slower_kernel_is_red_in_front_of_all_yardsticks() -> None:
    then = with_frozen()
    verdict = judged(frozen(winner=0.2 * 1.05), then)
    assert (verdict.kind, verdict.blame) == (VerdictKind.REGRESSED, "code")
    assert not any("the reference itself" in remark for remark in verdict.remarks)


def test_without_a_reference_the_calibration_kernels_decide_together() -> None:
    then = stored(winner=0.2, copy=0.1, arithmetic=0.15)
    red = judged(measured(winner=0.23, copy=0.1, arithmetic=0.15), then)
    assert (red.kind, red.basis) == (VerdictKind.REGRESSED, "baseline")
    slow_memory = judged(measured(winner=0.23, copy=0.115, arithmetic=0.15), then)
    assert slow_memory.kind is VerdictKind.NOISY
    assert "the machine's speed changed" in slow_memory.reason


# What surrounds a kernel

TODAY = {"driver": "580", "torch": "2.11"}


def test_the_same_code_under_the_same_driver_did_not_get_slower() -> None:
    then = stored(winner=0.2, reference=0.3)
    slower = measured(winner=0.22, reference=0.3)
    verdict = judged(slower, then, code="abc", environment=TODAY)
    assert (verdict.kind, verdict.blame, verdict.decided) == (VerdictKind.OK, "environment", True)
    assert "the compiled code and the driver are those of the baseline: slower than" in verdict.reason
    host = judged(slower, then, code="abc", environment={"python": "3.12"})
    assert (host.kind, host.blame) == (VerdictKind.OK, "environment")
    for code, driver in (("abd", "580"), ("abc", "590"), ("", "580")):
        other = judged(slower, then, code=code, environment={**TODAY, "driver": driver})
        assert (other.kind, other.blame) == (VerdictKind.REGRESSED, "code")


def test_the_same_code_may_be_slower_by_more_than_surroundings_make_it_on_other_inputs() -> None:
    then = stored(winner=0.2, reference=0.3)
    verdict = judged(measured(winner=0.3, reference=0.3), then, code="abc", environment=TODAY)
    assert (verdict.kind, verdict.blame) == (VerdictKind.REGRESSED, "code")


def test_same_code_of_the_old_config_clears_another_config_only_where_it_is_no_slower() -> None:
    then = stored(winner=0.2, reference=0.3)
    for baseline_now, blame in ((0.22, "environment"), (0.2, "search")):
        blocks = measured(winner=0.22, baseline=baseline_now, reference=0.3)
        assert judged(blocks, then, config=OTHER, code="abc", environment=TODAY).blame == blame
    gone = judged(measured(winner=0.22, reference=0.3), then, config=OTHER, code="abc", environment=TODAY)
    assert gone.blame == "config gone"


def test_same_code_is_ok_and_not_to_blame_where_nothing_differs() -> None:
    verdict = judged(measured(winner=0.2, reference=0.3), stored(winner=0.2, reference=0.3), code="abc")
    assert (verdict.kind, verdict.blame) == (VerdictKind.OK, "")


def test_changed_surroundings_are_told_and_widen_the_limits() -> None:
    then, blocks = stored(winner=0.2, reference=0.3), measured(winner=0.2, reference=0.3)
    finest = Policy(threshold=0.0)
    same = judged(blocks, then, policy=finest, environment=TODAY)
    other = judged(blocks, then, policy=finest, environment={"driver": "590", "torch": "2.11", "triton": "3.6"})
    assert "since the baseline, driver was 580, is 590" in other.remarks
    assert not any("since the baseline" in remark for remark in same.remarks)
    assert same.threshold is not None
    assert other.threshold is not None
    assert 1.2 < other.threshold / same.threshold < 1.5


def test_change_too_small_in_time_does_not_count() -> None:
    then = stored(offsets=[0.0] * 8, winner=0.004, reference=5.0)
    verdict = judged(measured(winner=0.004, reference=5.0), then, policy=Policy(threshold=0.01, clocks=EXACT))
    assert verdict.threshold == pytest.approx(0.05, abs=0.001)
    assert "a change below 200 ns does not count" in verdict.reason


EXACT: Mapping[Clock, ClockError] = {
    clock: dataclasses.replace(known, ratio=1e-4, alone=1e-4, frozen=1e-4, overhead_ms=0.0)
    for clock, known in POLICY.clocks.items()
}
