"""The gate against scipy, against simulated kernels, and branch by branch."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kerneltune.gate import (
    Baseline,
    Interval,
    Policy,
    Verdict,
    VerdictKind,
    format_ms,
    judge,
    measured_baseline,
    regression_message,
)
from pytest_kerneltune.statistics import fewest_values, median_error, median_interval, robust_deviation
from pytest_kerneltune.trial import Clock

POLICY = Policy()
CONTRACT = {"clock": "cuda", "device": "NVIDIA H200", "inputs": "fp16[4096, 1024]"}
CONFIG = {"ROWS": 4, "num_warps": 8}
OTHER = {"ROWS": 8, "num_warps": 8}
LONG = 64


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


def stored(seed: int = 99, config: dict[str, Any] = CONFIG, noise: float = 0.002, **latencies: float) -> Baseline:
    return measured_baseline(simulated(latencies, seed, noise=noise), config, CONTRACT, {"date": "2026-11-02"})


def judged(
    blocks: dict[str, list[float]],
    baseline: Baseline | None,
    clock: Clock = "cuda",
    config: dict[str, Any] = CONFIG,
    policy: Policy = POLICY,
) -> Verdict:
    return judge(blocks, baseline, CONTRACT, clock, policy, config=config)


def looked(blocks: dict[str, list[float]], baseline: Baseline, clock: Clock = "cuda") -> Verdict:
    """The verdict of the sequential rule: judge at each look, stop where decided."""
    verdicts = (judged({a: r[:n] for a, r in blocks.items()}, baseline, clock) for n in POLICY.looks)
    return next(v for v in verdicts if v.decided)


# The interval


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99, 0.996, 0.999])
def test_interval_is_scipys(confidence: float) -> None:
    rng = random.Random(1)
    for count in range(fewest_values(confidence), 90):
        values = [rng.lognormvariate(0, 1) for _ in range(count)]
        interval = median_interval(values, confidence)
        test = scipy.stats.quantile_test(values, q=0, p=0.5)
        assert (interval.low, interval.high) == tuple(test.confidence_interval(confidence))
        assert interval.estimate == scipy.stats.quantile(values, 0.5)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.9375, 0.95, 0.996])
def test_interval_needs_just_the_fewest_values(confidence: float) -> None:
    values = list(map(float, range(fewest_values(confidence))))
    assert median_interval(values, confidence).high == values[-1]
    with pytest.raises(ValueError, match=f"too few .* takes {len(values)}"):
        median_interval(values[1:], confidence)


def test_interval_holds_the_median_of_a_skewed_distribution() -> None:
    rng = random.Random(2)
    held = 0
    for _ in range(1000):
        values = [rng.lognormvariate(0, 1) * (5 if rng.random() < 0.04 else 1) for _ in range(32)]
        interval = median_interval(values, 0.95)
        held += interval.low <= 1.06 <= interval.high  # the mixture's median
    assert 930 <= held <= 990


@given(st.lists(st.floats(-1e6, 1e6), min_size=9, max_size=40))
def test_interval_encloses_its_estimate(values: list[float]) -> None:
    interval = median_interval(values, POLICY.confidence)
    assert min(values) <= interval.low <= interval.estimate <= interval.high <= max(values)


def test_robust_deviation_is_scipys_and_unmoved_by_an_outlier() -> None:
    rng = random.Random(3)
    values = [rng.gauss(5, 2) for _ in range(99)]
    assert robust_deviation(values) == pytest.approx(scipy.stats.median_abs_deviation(values, scale="normal"), rel=1e-4)
    assert robust_deviation([*values, 1e9]) == pytest.approx(robust_deviation(values), rel=0.1)


def test_median_error_is_that_of_simulated_medians() -> None:
    rng = random.Random(4)
    medians = [sorted(rng.gauss(0, 1) for _ in range(65))[32] for _ in range(1000)]
    assert median_error(1.0, 65) == pytest.approx(scipy.stats.tstd(medians), rel=0.1)


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
    assert verdict.change.low == pytest.approx(0.05, abs=0.005)


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
    assert verdict.threshold == pytest.approx(0.10, abs=0.002)
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
    verdict = judged(measured(winner=0.006 * 1.04, reference=0.006), then)
    assert verdict.kind is VerdictKind.OK
    assert verdict.threshold is not None
    assert 0.08 < verdict.threshold < 0.12
    assert "at 6" in verdict.reason


def test_asked_threshold_is_used_where_the_clock_resolves_it() -> None:
    then = stored(winner=0.2, reference=0.3)
    blocks = measured(winner=0.2 * 1.06, reference=0.3)
    assert judged(blocks, then, policy=Policy(threshold=0.1)).kind is VerdictKind.OK
    assert judged(blocks, then, policy=Policy(threshold=0.1)).threshold == 0.1
    finest = judged(blocks, then, policy=Policy(threshold=0.001))
    assert finest.threshold == pytest.approx(0.02, abs=0.001)
    assert finest.kind is VerdictKind.REGRESSED


@pytest.mark.parametrize(("factor", "told"), [(1.1, False), (1.4, True), (0.6, True)])
def test_reference_that_is_no_longer_what_it_was_is_mentioned(factor: float, told: bool) -> None:
    then = stored(winner=0.2, reference=0.3)
    verdict = judged(measured(winner=0.2 * factor, reference=0.3 * factor), then)
    assert verdict.kind is VerdictKind.OK
    assert ("reference itself went from" in verdict.reason) == told


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


@pytest.mark.parametrize(("clock", "threshold"), [("thread", 0.10), ("wall", 0.20)])
def test_host_regression_shows_in_every_view(clock: Clock, threshold: float) -> None:
    then = stored(winner=2.0, reference=3.0, calibration=1.0)
    verdict = judged(measured(winner=2.6, reference=3.0, calibration=1.0), then, clock)
    assert (verdict.kind, verdict.blame) == (VerdictKind.REGRESSED, "code")
    assert verdict.threshold == pytest.approx(threshold, abs=0.005)
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
    verdict = judged(measured(drift=0.5, winner=2.6, calibration=1.0), then, "thread")
    assert (verdict.kind, verdict.decided) == (VerdictKind.NOISY, True)
    assert "undecided" in verdict.reason


def test_baseline_of_a_noisy_hour_cannot_resolve_the_threshold() -> None:
    then = stored(noise=0.2, winner=2.0, calibration=1.0)
    verdict = judged(measured(winner=2.25, calibration=1.0), then, "thread")
    assert verdict.kind is not VerdictKind.REGRESSED
    assert verdict.threshold is not None
    assert verdict.threshold > 0.12


# The stored record


def test_baseline_of_known_blocks() -> None:
    blocks = {"winner": [2.0, 2.2, 4.0], "reference": [4.0, 4.0, 4.0], "baseline": [9.0, 9.0, 9.0]}
    baseline = measured_baseline(blocks, CONFIG, CONTRACT, {"commit": "1a2b3c4"})
    assert baseline == Baseline(
        config=CONFIG,
        latency_ms=2.2,
        yardsticks={"reference": 4.0},
        ratios={"reference": pytest.approx(0.55)},  # type: ignore[dict-item]
        noise=pytest.approx(1.4826 * math.log(1.1)),  # type: ignore[arg-type]
        blocks=3,
        contract=CONTRACT,
        recorded={"commit": "1a2b3c4"},
    )


positive = st.floats(1e-6, 1e6)


@given(
    latency=positive,
    yardstick=positive,
    noise=st.floats(0, 1),
    blocks=st.integers(1, 1000),
    facts=st.dictionaries(st.text(), st.text(), max_size=3),
    config=st.dictionaries(st.text(), st.integers() | st.booleans() | st.text() | st.none(), max_size=3),
)
def test_record_survives_its_file(
    latency: float, yardstick: float, noise: float, blocks: int, facts: dict[str, str], config: dict[str, Any]
) -> None:
    ratio = {"reference": latency / yardstick}
    original = Baseline(config, latency, {"reference": yardstick}, ratio, noise, blocks, facts, facts)
    read = Baseline.from_json(json.loads(json.dumps(original.to_json(), allow_nan=False)))
    assert read.latency_ms == pytest.approx(latency, rel=5e-4)
    assert read.ratios["reference"] == pytest.approx(ratio["reference"], rel=5e-4)
    assert (read.config, read.blocks, read.contract, read.recorded) == (config, blocks, facts, facts)
    assert Baseline.from_json(read.to_json()) == read


def test_record_holds_four_digits() -> None:
    baseline = dataclasses.replace(stored(winner=0.2), latency_ms=0.123456, noise=0.00123456)
    assert (baseline.to_json()["latency_ms"], baseline.to_json()["noise"]) == (0.1235, 0.001235)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("config", [1]),
        ("config", {1: 2}),
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
        ("contract", "cuda"),
        ("contract", {"clock": 1}),
        ("recorded", {"date": None}),
    ],
)
def test_malformed_record_is_refused_by_the_name_of_the_field(field: str, value: Any) -> None:
    row = stored(winner=0.2, reference=0.3).to_json()
    with pytest.raises(ValueError, match=field):
        Baseline.from_json({**row, field: value})


@pytest.mark.parametrize("data", [None, [], "baseline", 3])
def test_record_must_be_an_object(data: Any) -> None:
    with pytest.raises(ValueError, match="baseline must be an object"):
        Baseline.from_json(data)


def test_missing_and_unknown_fields_are_named() -> None:
    row = stored(winner=0.2).to_json()
    with pytest.raises(ValueError, match="lacks blocks, noise"):
        Baseline.from_json({k: v for k, v in row.items() if k not in ("noise", "blocks")})
    with pytest.raises(ValueError, match="unknown latency_us"):
        Baseline.from_json({**row, "latency_us": 200.0})


# The message


def test_regression_message() -> None:
    """What a failing test shows:

    softmax[n1024] REGRESSED +6.3% [+5.2%, +7.4%]: 41.2 us -> 43.8 us
      why       slower than the baseline: ratio to the reference +6.3% [+5.2%, +7.4%]; threshold 3%
      blame     code: the baseline's config itself is slower than it was (kernel, compiler or driver)
      code      +6.1% [+5.0%, +7.2%]  the baseline's config, now against then
      search    +0.2% [-0.1%, +0.4%]  today's config against the baseline's, both now
      config    ROWS=4, num_warps=8 -> 4
      baseline  commit 1a2b3c4, date 2026-11-02
      accept    pytest perf/test_softmax.py --autotune --update-baselines=regressed
    """
    reason = "slower than the baseline: ratio to the reference +6.3% [+5.2%, +7.4%]; threshold 3%"
    verdict = Verdict(
        VerdictKind.REGRESSED,
        reason,
        change=Interval(0.063, 0.052, 0.074),
        code_change=Interval(0.061, 0.05, 0.072),
        search_change=Interval(0.002, -0.001, 0.004),
        threshold=0.03,
        blame="code",
    )
    recorded = {"commit": "1a2b3c4", "date": "2026-11-02"}
    baseline = Baseline(CONFIG, 0.0412, {}, {}, 0.001, 64, CONTRACT, recorded)
    command = "pytest perf/test_softmax.py --autotune --update-baselines=regressed"
    text = regression_message(verdict, baseline, 0.0438, {"ROWS": 4, "num_warps": 4}, "softmax[n1024]", command)
    example = (test_regression_message.__doc__ or "").split("\n\n")[1]
    assert text == "\n".join(line.removeprefix("    ") for line in example.rstrip().splitlines())


def test_message_of_an_unchanged_config() -> None:
    then = stored(winner=0.2, reference=0.3)
    verdict = judged(measured(winner=0.24, reference=0.3), then)
    text = regression_message(verdict, then, 0.24, CONFIG, "softmax", "pytest --update-baselines")
    assert "config    unchanged: ROWS=4, num_warps=8" in text
    assert "search" not in text


def test_message_of_a_config_that_is_gone() -> None:
    then = stored(winner=0.2, reference=0.3)
    config = {"ROWS": 8, "layout": "row"}
    verdict = judged(measured(winner=0.24, reference=0.3), then, config=config)
    text = regression_message(verdict, then, 0.24, config, "softmax", "pytest --update-baselines")
    assert "no longer runs" in text
    assert 'ROWS=4 -> 8, layout=absent -> "row", num_warps=8 -> absent' in text


@pytest.mark.parametrize(
    ("ms", "text"), [(0.0000005, "0.5 ns"), (0.0412, "41.2 us"), (1.0, "1 ms"), (12.345, "12.35 ms"), (2500, "2.5 s")]
)
def test_latency_for_people(ms: float, text: str) -> None:
    assert format_ms(ms) == text
