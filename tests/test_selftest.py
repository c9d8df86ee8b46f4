"""The gate's self-test: resampled decisions, the smallest safe threshold, summaries, a kernel that is really slowed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from pytest_kerneltune.backends.c import CKernel
from pytest_kerneltune.backends.slowed import SlowedKernel
from pytest_kerneltune.backends.tagged import untagged
from pytest_kerneltune.benchmark import Benchmark, Limits
from pytest_kerneltune.gate import Policy, Verdict, VerdictKind
from pytest_kerneltune.judging import METHOD, Contract
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.outcome import Outcome
from pytest_kerneltune.record import Blocks
from pytest_kerneltune.report.selftest import self_test_lines, self_test_markdown
from pytest_kerneltune.resampling import CHUNK, SAFE_BEYOND, THRESHOLDS, Pool, smallest_safe, upper_bound
from pytest_kerneltune.selftest import beside_judge, decide, slowed_arms
from pytest_kerneltune.selftest_summary import Decision, SelfTest, change_between, summarised
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.verdicts import NO_SEARCH, checked

JUDGE = beside_judge("cuda", {})


class Calm(AbstractContextManager["Calm"]):
    """A watch that saw ``said``."""

    lasts = False

    def __init__(self, *said: str) -> None:
        self._said = list(said)

    def __exit__(self, *_: object) -> None:
        return None

    def disturbances(self) -> list[str]:
        return self._said

    def remarks(self) -> list[str]:
        return []

    def wait(self, seconds: float) -> list[str]:
        """Nothing that disturbs goes away."""
        return []


def blocks_of(noise: float, slowdown: float = 0.0, count: int = 16, seed: int = 0) -> Blocks:
    """A live comparison of a kernel of 0.1 ms: the machine's drift is common to both arms, ``noise`` is not."""
    rng = random.Random(f"{noise} {slowdown} {seed}")
    drift = [rng.gauss(0, 0.05) for _ in range(count)]
    base = [0.1 * math.exp(d + rng.gauss(0, noise)) for d in drift]
    return {"winner": [0.1 * (1 + slowdown) * math.exp(d + rng.gauss(0, noise)) for d in drift], "base": base}


def decisions_of(noise: float, slowdown: float, count: int) -> list[Decision]:
    made = []
    for seed in range(count):
        blocks = blocks_of(noise, slowdown, seed=seed)
        made.append(Decision(blocks, JUDGE(blocks, Policy()), 0.25))
    return made


def pool_of(noise: float, count: int = 20) -> Pool:
    return Pool([decision.blocks for decision in decisions_of(noise, 0.0, count)], JUDGE)


def finest() -> float:
    """The least threshold of all that the gate's rules allow a kernel of 0.1 ms."""
    allowed = JUDGE(blocks_of(0.0), Policy(threshold=THRESHOLDS[0])).threshold
    assert allowed is not None
    return next(threshold for threshold in THRESHOLDS if threshold >= allowed)


@pytest.mark.parametrize(("events", "trials"), [(0, 20), (3, 20), (19, 20), (20, 20), (0, 1), (7, 1000)])
def test_the_upper_bound_is_that_of_clopper_and_pearson(events: int, trials: int) -> None:
    expected = binomtest(events, trials, alternative="less").proportion_ci(0.95).high
    assert upper_bound(events, trials) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("events", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_a_bound_needs_a_share(events: int, trials: int) -> None:
    with pytest.raises(ValueError, match="is not a share"):
        upper_bound(events, trials)


def test_resampled_decisions_are_made_of_chunks_of_neighbours_in_their_order() -> None:
    live = [{"winner": [float(100 * d + i) for i in range(1, 17)], "base": [1.0] * 16} for d in range(5)]
    seen: list[Sequence[float]] = []

    def judge(blocks: Blocks, _: Policy) -> Verdict:
        seen.append(blocks["winner"])
        return Verdict(VerdictKind.NOISY, "", decided=len(blocks["winner"]) == 64)

    assert Pool(live, judge).redrawn(50, Policy()) == {VerdictKind.NOISY: 50}
    assert [len(values) for values in seen[:3]] == [16, 32, 64]
    assert seen[2][:32] == seen[1]
    for values in seen:
        starts = values[::CHUNK]
        assert all(values[CHUNK * i + k] == start + k for i, start in enumerate(starts) for k in range(CHUNK))
        assert all(start % 100 % CHUNK == 1 for start in starts)
    assert len({tuple(values) for values in seen[2::3]}) > 40


def test_resampled_decisions_are_the_same_every_time() -> None:
    assert pool_of(0.02).redrawn(200, Policy()) == pool_of(0.02).redrawn(200, Policy())


def test_readings_that_are_longer_are_found_and_others_are_not() -> None:
    pool = pool_of(0.002)
    assert pool.redrawn(300, Policy()) == {VerdictKind.OK: 300}
    assert pool.redrawn(300, Policy(), 0.05) == {VerdictKind.REGRESSED: 300}
    assert 50 < pool.redrawn(300, Policy(), 0.03)[VerdictKind.REGRESSED] < 250  # that is what a threshold means


def test_the_smallest_safe_threshold_grows_with_the_noise() -> None:
    found = [smallest_safe(pool_of(noise), Policy(), 300) for noise in (0.001, 0.01, 0.05)]
    assert all(threshold is not None for threshold in found)
    assert found == sorted(found, key=lambda threshold: threshold or 0.0)
    assert found[0] == finest()
    assert smallest_safe(pool_of(2.0), Policy(), 300) is None


@pytest.mark.parametrize("noise", [0.003, 0.01, 0.03])
def test_a_safe_threshold_is_safe(noise: float) -> None:
    """On blocks that it was not found on."""
    pool = pool_of(noise)
    threshold = smallest_safe(pool, Policy(), 500)
    assert threshold is not None
    policy = Policy(threshold=threshold)
    fresh = Pool([blocks_of(noise, seed=1000 + seed) for seed in range(100)], JUDGE)
    assert fresh.redrawn(500, policy)[VerdictKind.REGRESSED] <= 2
    assert fresh.redrawn(500, policy, SAFE_BEYOND * threshold)[VerdictKind.REGRESSED] >= 0.95 * 500


def test_a_live_false_alarm_makes_a_threshold_unsafe() -> None:
    calm = pool_of(0.002)
    alarmed = replace(calm, decisions=[*calm.decisions, blocks_of(0.002, 0.08, seed=99)])
    assert smallest_safe(calm, Policy(), 300) == finest()
    found = smallest_safe(alarmed, Policy(), 300)
    assert found is not None
    assert found > 0.07


def summary(noise: float = 0.002, threshold: float = 0.03) -> SelfTest:
    made = {0.0: decisions_of(noise, 0.0, 20), 0.05: decisions_of(noise, 0.052, 20)}
    return summarised(made, {0.0: 0.0, 0.05: 4.5}, "cuda", "events", Policy(threshold=threshold), JUDGE, resampled=300)


def test_decisions_are_summarised() -> None:
    test = summary()
    assert (test.decisions, test.alarms, test.undecided, test.disturbed) == (20, 0, 0, 0)
    assert (test.resampled, test.resampled_alarms) == (300, 0)
    assert test.latency_ms == pytest.approx(0.1, rel=0.05)
    assert test.noise == pytest.approx(0.002 * math.sqrt(2), rel=0.3)
    (slowed,) = test.slowdowns
    assert (slowed.decisions, slowed.found, slowed.extra_us) == (20, 20, 4.5)
    assert slowed.measured == pytest.approx(0.052, abs=0.002)
    assert test.passed
    assert not summary(noise=0.05).passed


def test_a_self_test_crosses_as_json() -> None:
    for test in (summary(), replace(summary(), safe=None)):
        rounded = SelfTest.from_json(json.loads(json.dumps(test.to_json())))
        assert rounded.to_json() == test.to_json()
        assert rounded.passed == test.passed
    with pytest.raises(TypeError, match="latency"):
        SelfTest.from_json({"slowdowns": []})


def test_disturbed_decisions_count_as_invalid_only() -> None:
    invalid = Decision(blocks_of(0.002, 0.5), Verdict(VerdictKind.INVALID, "throttled"), 0.2)
    made = {0.0: [*decisions_of(0.002, 0.0, 9), invalid]}
    test = summarised(made, {0.0: 0.0}, "cuda", "events", Policy(), JUDGE, resampled=100)
    assert (test.decisions, test.disturbed, test.alarms, test.resampled_alarms) == (10, 1, 0, 0)
    assert test.passed
    none = summarised({0.0: [invalid]}, {0.0: 0.0}, "cuda", "events", Policy(), JUDGE, resampled=100)
    assert (none.safe, none.resampled, none.passed) == (None, 0, False)


def test_a_kernel_whose_slowdowns_are_disturbed_cannot_be_gated() -> None:
    (slowed,) = summary().slowdowns
    test = replace(summary(), slowdowns=(replace(slowed, found=5, undecided=1, disturbed=14),))
    assert not test.passed
    assert replace(test, slowdowns=(replace(slowed, found=12, disturbed=8),)).passed
    assert replace(test, slowdowns=(replace(slowed, measured=0.02, found=0, disturbed=20),)).passed
    lines = [line.text for line in self_test_lines([outcome("blind", test)], 200)]
    assert "  slowed by 5.2%: 5 of 20 (1 undecided, 14 disturbed)" in lines
    assert any(line.startswith("blind: 14 of 20 decisions on a slowdown of 5.2% were disturbed") for line in lines)
    assert lines[-1] == "gate self-test: 0 of 1 kernel can be gated at their thresholds"


def outcome(name: str, test: SelfTest | None) -> Outcome:
    known = {} if test is None else test.to_json()
    return Outcome("test_it.py", name, "c", "cpu", "thread", "f", {}, 0.1, None, NO_SEARCH, checked(), self_test=known)


def test_the_report_names_what_is_safe_and_what_is_not() -> None:
    calm, noisy, hopeless = summary(), summary(noise=0.05), replace(summary(), safe=None)
    outcomes = [outcome("calm", calm), outcome("noisy", noisy), outcome("hopeless", hopeless), outcome("none", None)]
    wide = [line.text for line in self_test_lines(outcomes, 200)]
    head = next(line for line in wide if line.startswith("kernel"))
    row = next(line for line in wide if line.startswith("calm"))
    assert all(column in head for column in ("latency", "noise", "false alarms", "resampled", "safe from"))
    assert "0 of 20 (< 14%)" in row
    assert f"{100 * finest():g}%" in row
    assert "  slowed by 5.2%: 20 of 20" in wide
    assert any(line.startswith("noisy: its threshold of 3% is not safe; give it @tunable(threshold=") for line in wide)
    assert any(line.startswith("hopeless: ") and "no other is" in line for line in wide)
    assert wide[-1] == "gate self-test: 1 of 3 kernels can be gated at their thresholds"
    narrow = next(line.text for line in self_test_lines(outcomes, 100) if line.text.startswith("kernel"))
    assert "resampled" not in narrow
    assert "safe from" in narrow
    assert self_test_lines([outcome("none", None)], 80) == []
    assert self_test_markdown([outcome("none", None)]) == ""
    markdown = self_test_markdown([outcome("a|b", calm)]).splitlines()
    assert len({line.count("|") for line in markdown[2:]}) == 1
    assert "a&#124;b" in markdown[4]


LOOP = "void f(float *x, long n) { for (long r = 0; r < 20; r++) for (long i = 0; i < n; i++) x[i] = x[i] * 0.5f + 1; }"


def test_real_work_slows_a_kernel_by_as_much_as_is_wanted() -> None:
    x = np.ones(20_000, dtype=np.float32)
    workers = Workers(1)
    try:
        bench = Benchmark(
            SlowedKernel(CKernel(LOOP, "f", args=(x, x.size), output=x)), ConfigSpace({}), workers, Limits()
        )
        contract = Contract({METHOD: bench.start()}, "thread", Calm)
        arms = slowed_arms(bench, {}, contract.method, (0.5, 1.0))
        assert list(arms) == [0.0, 0.5, 1.0]
        assert [untagged(config)[0] for config in arms.values()] == [{}, {}, {}]
        judge = beside_judge("thread", {})
        policy = Policy(threshold=0.25)
        slow = decide(bench, {"winner": arms[1.0], "base": arms[0.0]}, contract, policy, judge)
        assert slow.kind is VerdictKind.REGRESSED
        assert 0.5 < change_between(slow.blocks, "winner", "base") < 1.7
        same = decide(bench, {"winner": arms[0.0], "base": arms[0.0]}, contract, policy, judge)
        assert same.kind in (VerdictKind.OK, VerdictKind.NOISY)
        disturbed = replace(contract, watch=lambda: Calm("throttled"))
        first = decide(bench, {"winner": arms[1.0], "base": arms[0.0]}, disturbed, policy, judge)
        assert (first.kind, len(first.blocks["winner"])) == (VerdictKind.INVALID, policy.looks[0])
    finally:
        workers.close()
