"""Measuring for the gate: which arms run, for how long, and when a second measurement is asked for.

Regressions are made by a scripted bench, whose readings can be set; the way through a real one is at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from pytest_kerneltune import PythonKernel, integer, judging
from pytest_kerneltune.asking import Answer
from pytest_kerneltune.backends.tagged import tagged
from pytest_kerneltune.benchmark import Benchmark, Limits
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.gate import Policy, VerdictKind
from pytest_kerneltune.guard import Retries
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.record import Baseline, measured_baseline
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Status, Trial

OLD: Config = {"n": 1}
NEW: Config = {"n": 2}
GONE: Config = {"m": 9}
POLICY = Policy()


class Quiet(AbstractContextManager["Quiet"]):
    lasts = False

    def __exit__(self, *_: object) -> None:
        return None

    def disturbances(self) -> list[str]:
        return []

    def remarks(self) -> list[str]:
        return []

    def wait(self, seconds: float) -> list[str]:
        return []


FACTS = {"device": "D", judging.METHOD: "wall clock, minimum"}
CONTRACT = judging.Contract(FACTS, "wall", Quiet, retries=Retries((0.0,)))


@dataclass
class Bench:
    """Answers with ``ms`` of each config, ``other_ms`` of the other version's; ``sessions`` are factors on all kernels,
    one a process. ``codes`` are digests of the compiled code, by version."""

    ms: Mapping[int, float]
    other_ms: Mapping[int, float] = field(default_factory=dict)
    codes: tuple[str, str] = ("", "")
    same_inputs: bool = True
    sessions: list[float] = field(default_factory=lambda: [1.0])
    failing: tuple[Config, ...] = ()
    noise: Callable[[int], float] = lambda _: 1.0
    kernel: PythonKernel = field(default_factory=lambda: PythonKernel(int))
    calls: list[tuple[tuple[str, ...], int]] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    checked: list[Config] = field(default_factory=list)
    restarts: int = 0

    def check(self, config: Config) -> Trial:
        self.checked.append(config)
        return Trial(config, Status.COMPILE_ERROR if config in self.failing else Status.OK)

    def compare(self, arms: Mapping[str, Config], yardsticks: bool, blocks: int, method: str) -> dict[str, list[float]]:
        self.calls.append((tuple(arms), blocks))
        self.methods.append(method)
        assert yardsticks
        speed = self.sessions[min(self.restarts, len(self.sessions) - 1)]
        values = {
            name: [speed * self.of(config) * self.noise(i) for i in range(blocks)] for name, config in arms.items()
        }
        return {**values, "reference": [2.0] * blocks, "calibration": [1.0] * blocks}

    def of(self, config: Config) -> float:
        return self.other_ms[config["n"]] if judging.OTHER in config.values() else self.ms[config["n"]]

    def code(self, config: Config) -> str:
        return self.codes[judging.OTHER in config.values()]

    def has_same_inputs(self) -> bool:
        return self.same_inputs

    def restart(self) -> None:
        self.restarts += 1


def baseline(config: Config = OLD, ms: float = 1.0, **facts: str) -> Baseline:
    blocks = {"winner": [ms] * 16, "reference": [2.0] * 16, "calibration": [1.0] * 16}
    return measured_baseline(blocks, config, {**FACTS, **facts}, {})


def measured(
    bench: Bench, winner: Config, stored: Baseline | None, contract: judging.Contract = CONTRACT
) -> judging.Measured:
    return judging.measure(cast(Benchmark, bench), winner, stored, contract, POLICY)


def kind(found: judging.Measured, policy: Policy = POLICY) -> VerdictKind:
    return found.verdict(policy).kind


# Arms


def test_without_a_baseline_the_winner_is_measured_once() -> None:
    bench = Bench({2: 1.5})
    found = measured(bench, NEW, None)
    assert bench.calls == [(("winner",), POLICY.looks[0])]
    assert found.config == NEW
    assert (found.latency_ms, found.reference_ms) == (1.5, 2.0)
    assert kind(found) is VerdictKind.NEW
    assert bench.restarts == 0


def test_a_baseline_of_other_conditions_is_no_arm_and_no_reason_to_go_on() -> None:
    stored = baseline(device="another")
    bench = Bench({1: 1.0, 2: 9.0})
    found = measured(bench, NEW, stored)
    assert bench.calls == [(("winner",), POLICY.looks[0])]
    assert kind(found) is VerdictKind.INCOMPARABLE


def test_the_baselines_config_runs_beside_another_winner_only() -> None:
    same, other = Bench({1: 1.0}), Bench({1: 1.0, 2: 0.9})
    measured(same, OLD, baseline())
    measured(other, NEW, baseline())
    assert same.calls[0][0] == ("winner",)
    assert same.checked == []
    assert other.calls[0][0] == ("winner", "baseline")
    assert other.checked == [OLD]


def test_a_baselines_config_that_no_longer_runs_is_left_out() -> None:
    bench = Bench({2: 0.9}, failing=(GONE,))
    found = measured(bench, NEW, baseline(GONE))
    assert bench.calls[0][0] == ("winner",)
    assert found.config == NEW


def test_a_kernel_without_a_reference_has_no_reference_latency() -> None:
    readings = judging.Readings(OLD, {"winner": [1.0]})
    assert judging.Measured(Answer(readings, lambda *_: pytest.fail("judged"))).reference_ms is None


# Which config it is


@pytest.mark.parametrize(("new_ms", "expected"), [(1.0, OLD), (1.2, OLD), (0.8, NEW)])
def test_the_baselines_config_is_kept_unless_todays_is_faster(new_ms: float, expected: Config) -> None:
    found = measured(Bench({1: 1.0, 2: new_ms}), NEW, baseline())
    assert found.config == expected
    assert found.latency_ms == (new_ms if expected == NEW else 1.0)
    assert ("baseline" in found.readings.blocks) == (expected == NEW)


def test_an_advantage_within_the_noise_does_not_change_the_config() -> None:
    factors = [0.9, 1.12]
    bench = Bench({1: 1.0, 2: 0.99}, noise=lambda i: factors[i % 2])
    # The same noise hits both arms of a block, so only the new one's own scatter counts.
    assert measured(bench, NEW, baseline()).config == NEW

    class Scattered(Bench):
        def compare(
            self, arms: Mapping[str, Config], yardsticks: bool, blocks: int, method: str
        ) -> dict[str, list[float]]:
            values = super().compare(arms, yardsticks, blocks, method)
            values["winner"] = [v * factors[i % 2] for i, v in enumerate(values["winner"])]
            return values

    assert measured(Scattered({1: 1.0, 2: 0.99}), NEW, baseline()).config == OLD


def test_an_unlucky_search_cannot_fail_the_gate() -> None:
    bench = Bench({1: 1.0, 2: 5.0})
    found = measured(bench, NEW, baseline())
    assert kind(found) is VerdictKind.OK
    assert bench.restarts == 0


# How long


def test_a_clear_case_needs_the_first_look_only() -> None:
    bench = Bench({1: 1.0})
    measured(bench, OLD, baseline())
    assert [blocks for _, blocks in bench.calls] == [POLICY.looks[0]]


def test_an_undecided_case_is_measured_to_the_last_look() -> None:
    threshold = 0.3
    policy = Policy(threshold=threshold)
    bench = Bench({1: 1 + threshold - 0.05}, noise=lambda i: [0.6, 1.0, 1.6][i % 3])
    found = judging.measure(cast(Benchmark, bench), OLD, baseline(), CONTRACT, policy)
    assert [blocks for _, blocks in bench.calls] == [16, 16, 32] * 2  # in a second process, too
    assert bench.restarts == 1
    assert len(found.readings.blocks["winner"]) == policy.looks[-1]
    assert {len(v) for v in found.readings.blocks.values()} == {policy.looks[-1]}


def test_every_look_is_timed_by_the_method_of_the_contract() -> None:
    facts = {**FACTS, judging.METHOD: "batches"}
    stored, contract = replace(baseline(), contract=facts), replace(CONTRACT, facts=facts)
    policy = Policy(threshold=0.3)
    bench = Bench({1: 1.25}, noise=lambda i: [0.6, 1.0, 1.6][i % 3])
    judging.measure(cast(Benchmark, bench), OLD, stored, contract, policy)
    assert bench.methods == ["batches"] * 6


# The second opinion


def test_a_regression_is_reported_when_a_fresh_process_confirms_it() -> None:
    bench = Bench({1: 3.0}, sessions=[1.0, 1.1])
    found = measured(bench, OLD, baseline())
    assert bench.restarts == 1
    assert kind(found) is VerdictKind.REGRESSED
    assert found.latency_ms == pytest.approx(3.3)


def test_a_regression_that_a_fresh_process_does_not_confirm_is_noise() -> None:
    bench = Bench({1: 1.0}, sessions=[3.0, 1.0])
    found = measured(bench, OLD, baseline())
    verdict = found.verdict(POLICY)
    assert (bench.restarts, verdict.kind) == (1, VerdictKind.NOISY)
    assert verdict.reason.startswith("not confirmed by a fresh process")
    assert verdict.change is not None
    assert verdict.change.estimate > 1


def test_what_is_no_regression_is_not_measured_twice() -> None:
    for ms in (1.0, 0.3):
        bench = Bench({1: ms})
        measured(bench, OLD, baseline())
        assert bench.restarts == 0


def test_another_threshold_judges_the_same_readings() -> None:
    bench = Bench({1: 1.5})
    found = measured(bench, OLD, baseline())
    assert kind(found) is VerdictKind.REGRESSED
    assert kind(found, Policy(threshold=0.9)) is VerdictKind.OK
    assert not any("in one process" in remark for remark in found.verdict(POLICY).remarks)
    lenient = judging.measure(cast(Benchmark, bench), OLD, baseline(), CONTRACT, Policy(threshold=0.9))
    assert kind(lenient, Policy(threshold=0.9)) is VerdictKind.OK
    strict = lenient.verdict(POLICY)
    assert strict.kind is VerdictKind.REGRESSED
    assert any(remark.startswith("measured in one process") for remark in strict.remarks)


# Disturbances


def watches(*texts: list[str], lasts: bool = False) -> Callable[[], Quiet]:
    left = list(texts)

    class Told(Quiet):
        def __init__(self) -> None:
            self.lasts = lasts
            self._found = left.pop(0) if left else []

        def disturbances(self) -> list[str]:
            return self._found

        def remarks(self) -> list[str]:
            return ["power cap"]

    return Told


def test_a_disturbed_look_is_read_again_and_dropped() -> None:
    bench = Bench({1: 1.0}, noise=lambda _: 9.0 if len(bench.calls) == 1 else 1.0)
    contract = replace(CONTRACT, watch=watches(["the card throttled"]))
    found = measured(bench, OLD, baseline(), contract)
    assert [blocks for _, blocks in bench.calls] == [16, 16]
    assert (bench.restarts, found.latency_ms) == (0, 1.0)
    assert kind(found) is VerdictKind.OK
    assert "power cap" in found.verdict(POLICY).remarks


def test_one_that_is_disturbed_every_time_is_invalid() -> None:
    bench = Bench({1: 3.0})
    contract = replace(CONTRACT, watch=watches(["the card throttled"], ["another process"]))
    found = measured(bench, OLD, baseline(), contract)
    assert kind(found) is VerdictKind.INVALID
    assert found.readings.disturbed == ("another process",)
    assert len(bench.calls) == 1 + len(CONTRACT.retries.pauses_s)


def test_what_will_not_go_away_is_not_waited_for() -> None:
    bench = Bench({1: 1.0})
    found = measured(bench, OLD, baseline(), replace(CONTRACT, watch=watches(["a debugger"], lasts=True)))
    assert (kind(found), len(bench.calls)) == (VerdictKind.INVALID, 1)


def test_a_disturbed_second_opinion_is_invalid_and_no_regression() -> None:
    contract = replace(CONTRACT, watch=watches([], ["another process"], ["another process"]))
    found = measured(Bench({1: 3.0}), OLD, baseline(), contract)
    assert kind(found) is VerdictKind.INVALID


# Beside another version


def version(bench: Bench, config: Config = OLD, is_tuned: bool = True, has: Sequence[int] = (1, 2)) -> judging.Base:
    return judging.Base("abc1234", cast(Benchmark, bench), config, is_tuned, lambda c: c.get("n") in has)


def beside(winner: Config, base: judging.Base) -> judging.Measured:
    return judging.beside(base, winner, CONTRACT, POLICY, lambda c: c.get("n") in (1, 2))


BASE_OLD, BASE_NEW = tagged(OLD, judging.OTHER), tagged(NEW, judging.OTHER)


@pytest.mark.parametrize(
    ("winner", "base", "arms"),
    [
        (OLD, {}, ("winner", "base")),
        (NEW, {}, ("winner", "baseline", "base", "base at winner")),
        (NEW, {"has": [1]}, ("winner", "baseline", "base")),
        (NEW, {"is_tuned": False}, ("winner", "base")),
        (NEW, {"is_tuned": False, "has": [1]}, ("winner", "baseline", "base")),
        (NEW, {"has": [2]}, ("winner", "base")),
    ],
)
def test_both_versions_run_both_configs_as_far_as_they_can(
    winner: Config, base: dict[str, Any], arms: tuple[str, ...]
) -> None:
    bench = Bench({1: 1.0, 2: 0.5}, {1: 1.0, 2: 0.5})
    beside(winner, version(bench, **base))
    assert bench.calls[0][0] == arms


def test_a_version_that_does_not_run_is_nothing_to_compare_with() -> None:
    bench = Bench({1: 1.0}, failing=(BASE_OLD,))
    for base in (version(bench), version(bench, has=())):
        with pytest.raises(KernelError, match=r"it does not run with \{'n': 1\} there"):
            beside(OLD, base)


def test_equal_compiled_code_on_other_inputs_may_well_be_slower() -> None:
    bench = Bench({1: 1.5}, {1: 1.0}, codes=("c0de", "c0de"), same_inputs=False)
    assert beside(OLD, version(bench)).verdict(POLICY).kind is VerdictKind.REGRESSED


def test_a_kernel_slower_than_its_other_version_has_regressed_once_a_fresh_process_agrees() -> None:
    bench = Bench({1: 1.5}, {1: 1.0})
    found = beside(OLD, version(bench))
    verdict = found.verdict(POLICY)
    assert (verdict.kind, verdict.blame, verdict.basis) == (VerdictKind.REGRESSED, "code", "base")
    assert bench.restarts == 1


def test_equal_compiled_code_is_not_what_made_it_slower() -> None:
    bench = Bench({1: 1.5}, {1: 1.0}, codes=("c0de", "c0de"))
    found = beside(OLD, version(bench))
    assert (found.verdict(POLICY).kind, found.verdict(POLICY).blame) == (VerdictKind.OK, "environment")


def test_versions_on_tensors_of_their_own_may_differ_by_more() -> None:
    contract = replace(CONTRACT, clock="cuda")
    base = version(Bench({1: 1.031}, {1: 1.0}))
    own = 4 * (0.0015**2 + 2 * 0.006**2) ** 0.5
    for shares, expected, threshold in ((True, VerdictKind.REGRESSED, 0.03), (False, VerdictKind.NOISY, own)):
        found = judging.beside(replace(base, shares_inputs=shares), OLD, contract, POLICY, lambda _: True)
        assert kind(found) is expected
        assert found.verdict(POLICY).threshold == pytest.approx(threshold)


def test_an_unlucky_search_cannot_fail_the_comparison_of_versions() -> None:
    bench = Bench({1: 1.0, 2: 3.0}, {1: 1.0, 2: 3.0})
    found = beside(NEW, version(bench))
    assert (found.config, kind(found)) == (OLD, VerdictKind.OK)


def test_what_the_search_did_badly_is_said() -> None:
    found = beside(NEW, version(Bench({1: 1.0, 2: 3.0}, {1: 1.0, 2: 3.0})))
    assert found.verdict(POLICY).remarks == (
        "the old config is kept: today's choice, n=2, is slower by +200.0% [+200.0%, +200.0%]",
    )
    alike = beside(NEW, version(Bench({1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.0})))
    assert alike is not None
    assert alike.verdict(POLICY).remarks == ()


def test_a_version_whose_other_config_is_better_is_named_with_that_config() -> None:
    found = beside(NEW, version(Bench({1: 1.0, 2: 1.0}, {1: 1.0, 2: 0.7})))
    verdict = found.verdict(POLICY)
    assert (found.config, verdict.then_config) == (OLD, NEW)
    assert (verdict.kind, verdict.blame) == (VerdictKind.REGRESSED, "code")
    assert verdict.code_change is not None
    assert verdict.code_change.estimate == pytest.approx(1 / 0.7 - 1)


@pytest.mark.parametrize(
    ("base", "why"), [({"is_tuned": False}, "is only its default"), ({"has": [2]}, "does not run")]
)
def test_a_version_s_config_that_is_left_out_is_mentioned(base: dict[str, Any], why: str) -> None:
    found = beside(NEW, version(Bench({1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.0}), **base))
    assert found.verdict(POLICY).remarks == (f"both versions ran with today's config: the one of abc1234 {why}",)


def test_where_the_other_version_cannot_be_measured_the_stored_numbers_decide() -> None:
    class Crashing(Bench):
        def compare(self, *_: Any) -> dict[str, list[float]]:
            raise KernelError("the comparison failed: out of memory")

    bench = Bench({1: 1.5})
    found = judging.measure(
        cast(Benchmark, bench), OLD, baseline(), CONTRACT, POLICY, base=lambda: version(Crashing({1: 1.5}, {1: 1.0}))
    )
    verdict = found.verdict(POLICY)
    assert (verdict.kind, verdict.basis, bench.restarts) == (VerdictKind.REGRESSED, "baseline", 1)
    assert "not compared side by side: the comparison failed: out of memory" in verdict.remarks


def test_the_same_code_called_otherwise_is_not_the_same() -> None:
    first, second = (
        cast(Benchmark, Bench({1: 1.0}, codes=("c0de", ""), kernel=kernel))
        for kernel in (PythonKernel(int), PythonKernel(int, device="cuda"))
    )
    assert judging.code_of(first, OLD) == judging.code_of(first, NEW) != judging.code_of(second, OLD)
    assert judging.code_of(cast(Benchmark, Bench({1: 1.0})), OLD) == ""


def test_a_red_verdict_on_the_stored_baseline_is_looked_at_side_by_side() -> None:
    asked: list[str] = []
    bench, both = Bench({1: 1.5}), Bench({1: 1.5}, {1: 1.5})

    def base() -> judging.Base:
        asked.append("base")
        return version(both)

    found = judging.measure(cast(Benchmark, bench), OLD, baseline(), CONTRACT, POLICY, base=base)
    verdict = found.verdict(POLICY)
    assert (verdict.kind, verdict.basis) == (VerdictKind.OK, "base")
    assert any(remark.startswith("against the stored baseline: regressed") for remark in verdict.remarks)
    assert found.verdict(Policy(threshold=0.9)).basis == "baseline"  # not doubtful by that threshold
    judging.measure(cast(Benchmark, Bench({1: 1.0})), OLD, baseline(), CONTRACT, POLICY, base=base)
    assert asked == ["base"]


# A real bench


def real_bench(steps: int) -> Benchmark:
    def run(n: int) -> int:
        for _ in range(steps * n):
            pass
        return 1

    space = ConfigSpace({"n": integer(1, 9)})
    return Benchmark(PythonKernel(run, reference=lambda: 1), space, Workers(1), Limits())


def test_a_kernel_that_does_five_times_the_work_has_regressed() -> None:
    before = judging.measure(real_bench(20_000), {"n": 1}, None, CONTRACT, POLICY)
    stored = measured_baseline(before.readings.blocks, before.config, FACTS, {})
    policy = Policy(threshold=1.0)  # a busy machine, which must not decide this test
    slower = judging.measure(real_bench(100_000), {"n": 1}, stored, CONTRACT, policy)
    assert kind(slower, policy) in (VerdictKind.REGRESSED, VerdictKind.NOISY)
    assert slower.latency_ms > 2 * before.latency_ms


def test_a_method_of_another_clock_is_an_error() -> None:
    contract = replace(CONTRACT, facts={**FACTS, judging.METHOD: "cuda-events, L2 flushed"})
    with pytest.raises(KernelError, match="nothing is timed by 'cuda-events, L2 flushed' here, but by 'wall clock"):
        judging.measure(real_bench(1), {"n": 1}, None, contract, POLICY)


def test_a_winner_that_cannot_be_measured_is_an_error() -> None:
    bench = real_bench(1)
    with pytest.raises(KernelError, match="the comparison failed"):
        judging.measure(bench, {"x": 1}, None, CONTRACT, POLICY)


def test_a_baseline_of_an_older_space_is_config_gone() -> None:
    stored = baseline(GONE, ms=0.01)
    found = judging.measure(real_bench(100_000), {"n": 1}, stored, CONTRACT, POLICY)
    assert found.config == {"n": 1}
    assert found.verdict(POLICY).blame == "config gone"
