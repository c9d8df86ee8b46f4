"""Measuring for the gate: which arms run, for how long, and when a second measurement is asked for.

Regressions are made by a scripted bench, whose readings can be set; the way through a real one is at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from pytest_kerneltune import PythonKernel, integer, judging
from pytest_kerneltune.benchmark import Benchmark, Limits
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.gate import Policy, VerdictKind
from pytest_kerneltune.launcher import Workers
from pytest_kerneltune.record import Baseline, measured_baseline
from pytest_kerneltune.space import ConfigSpace
from pytest_kerneltune.trial import Config, Status, Trial

OLD: Config = {"n": 1}
NEW: Config = {"n": 2}
GONE: Config = {"m": 9}
POLICY = Policy()


class Quiet(AbstractContextManager["Quiet"]):
    def __exit__(self, *_: object) -> None:
        return None

    def disturbances(self) -> list[str]:
        return []


FACTS = {"device": "D", judging.METHOD: "wall clock, minimum"}
CONTRACT = judging.Contract(FACTS, "wall", Quiet)


@dataclass
class Bench:
    """Answers with ``ms`` of each config; ``sessions`` are factors on all kernels, one a process."""

    ms: Mapping[int, float]
    sessions: list[float] = field(default_factory=lambda: [1.0])
    failing: tuple[Config, ...] = ()
    noise: Callable[[int], float] = lambda _: 1.0
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
            name: [speed * self.ms[config["n"]] * self.noise(i) for i in range(blocks)] for name, config in arms.items()
        }
        return {**values, "reference": [2.0] * blocks, "calibration": [1.0] * blocks}

    def restart(self) -> None:
        self.restarts += 1


def baseline(config: Config = OLD, ms: float = 1.0, **facts: str) -> Baseline:
    blocks = {"winner": [ms] * 16, "reference": [2.0] * 16, "calibration": [1.0] * 16}
    return measured_baseline(blocks, config, {**FACTS, **facts}, {})


def measured(
    bench: Bench, winner: Config, stored: Baseline | None, contract: judging.Contract = CONTRACT
) -> judging.Measured:
    return judging.measure(cast(Benchmark, bench), winner, stored, contract, POLICY)


def kind(found: judging.Measured, stored: Baseline | None, policy: Policy = POLICY) -> VerdictKind:
    return found.verdict(stored, CONTRACT, policy).kind


# Arms


def test_without_a_baseline_the_winner_is_measured_once() -> None:
    bench = Bench({2: 1.5})
    found = measured(bench, NEW, None)
    assert bench.calls == [(("winner",), POLICY.looks[0])]
    assert found.config == NEW
    assert (found.latency_ms, found.reference_ms) == (1.5, 2.0)
    assert kind(found, None) is VerdictKind.NEW
    assert bench.restarts == 0


def test_a_baseline_of_other_conditions_is_no_arm_and_no_reason_to_go_on() -> None:
    stored = baseline(device="another")
    bench = Bench({1: 1.0, 2: 9.0})
    found = measured(bench, NEW, stored)
    assert bench.calls == [(("winner",), POLICY.looks[0])]
    assert kind(found, stored) is VerdictKind.INCOMPARABLE


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
    assert judging.Measured(OLD, {"winner": [1.0]}).reference_ms is None


# Which config it is


@pytest.mark.parametrize(("new_ms", "expected"), [(1.0, OLD), (1.2, OLD), (0.8, NEW)])
def test_the_baselines_config_is_kept_unless_todays_is_faster(new_ms: float, expected: Config) -> None:
    found = measured(Bench({1: 1.0, 2: new_ms}), NEW, baseline())
    assert found.config == expected
    assert found.latency_ms == (new_ms if expected == NEW else 1.0)
    assert ("baseline" in found.blocks) == (expected == NEW)


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
    assert kind(found, baseline()) is VerdictKind.OK
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
    assert [blocks for _, blocks in bench.calls] == [16, 16, 32]
    assert len(found.blocks["winner"]) == policy.looks[-1]
    assert {len(v) for v in found.blocks.values()} == {policy.looks[-1]}


def test_every_look_is_timed_by_the_method_of_the_contract() -> None:
    facts = {**FACTS, judging.METHOD: "batches"}
    stored, contract = replace(baseline(), contract=facts), replace(CONTRACT, facts=facts)
    policy = Policy(threshold=0.3)
    bench = Bench({1: 1.25}, noise=lambda i: [0.6, 1.0, 1.6][i % 3])
    judging.measure(cast(Benchmark, bench), OLD, stored, contract, policy)
    assert bench.methods == ["batches"] * 3


# The second opinion


def test_a_regression_is_reported_when_a_fresh_process_confirms_it() -> None:
    bench = Bench({1: 3.0}, sessions=[1.0, 1.1])
    found = measured(bench, OLD, baseline())
    assert bench.restarts == 1
    assert kind(found, baseline()) is VerdictKind.REGRESSED
    assert found.latency_ms == pytest.approx(3.3)


def test_a_regression_that_a_fresh_process_does_not_confirm_is_noise() -> None:
    bench = Bench({1: 1.0}, sessions=[3.0, 1.0])
    found = measured(bench, OLD, baseline())
    verdict = found.verdict(baseline(), CONTRACT, POLICY)
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
    assert kind(found, baseline()) is VerdictKind.REGRESSED
    assert kind(found, baseline(), Policy(threshold=0.9)) is VerdictKind.OK


# Disturbances


def watches(*texts: list[str]) -> Callable[[], AbstractContextManager[Any]]:
    left = list(texts)

    class Watch:
        def __init__(self, found: list[str]) -> None:
            self._found = found

        def disturbances(self) -> list[str]:
            return self._found

    @contextmanager
    def watch() -> Iterator[Watch]:
        yield Watch(left.pop(0) if left else [])

    return watch


def test_a_disturbed_measurement_is_made_once_more() -> None:
    bench = Bench({1: 1.0})
    contract = replace(CONTRACT, watch=watches(["the card throttled"]))
    found = measured(bench, OLD, baseline(), contract)
    assert bench.restarts == 1
    assert kind(found, baseline()) is VerdictKind.OK


def test_one_that_is_disturbed_again_is_invalid() -> None:
    bench = Bench({1: 1.0})
    contract = replace(CONTRACT, watch=watches(["the card throttled"], ["another process"]))
    found = measured(bench, OLD, baseline(), contract)
    assert kind(found, baseline()) is VerdictKind.INVALID
    assert found.disturbed == ("another process",)


def test_a_disturbed_second_opinion_is_invalid_and_no_regression() -> None:
    contract = replace(CONTRACT, watch=watches([], ["another process"]))
    found = measured(Bench({1: 3.0}), OLD, baseline(), contract)
    assert kind(found, baseline()) is VerdictKind.INVALID


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
    stored = measured_baseline(before.blocks, before.config, FACTS, {})
    policy = Policy(threshold=1.0)  # a busy machine, which must not decide this test
    slower = judging.measure(real_bench(100_000), {"n": 1}, stored, CONTRACT, policy)
    assert kind(slower, stored, policy) in (VerdictKind.REGRESSED, VerdictKind.NOISY)
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
    assert found.verdict(stored, CONTRACT, POLICY).blame == "config gone"
