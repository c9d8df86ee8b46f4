"""What threshold the noise of unchanged work allows, on made-up readings and on this machine."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence

import pytest

from pytest_kerneltune.gate import Policy, VerdictKind, judge
from pytest_kerneltune.noise import Noise, fewest_blocks, measure_noise
from pytest_kerneltune.record import Baseline, measured_session
from pytest_kerneltune.timers import calibration_work
from pytest_kerneltune.trial import Clock


def blocks(count: int, paired: float, common: float = 0.0, latency_ms: float = 0.1) -> Mapping[str, list[float]]:
    """Two arms of one kernel: their logarithms have a deviation of their own and one in common."""
    rng = random.Random(1)
    shared = [rng.gauss(0, common) for _ in range(count)]
    return {
        arm: [latency_ms * math.exp(both + rng.gauss(0, paired / math.sqrt(2))) for both in shared]
        for arm in ("winner", "reference")
    }


def noise_of(clock: Clock, readings: Mapping[str, Sequence[float]]) -> Noise:
    return Noise.of("made up", clock, "by hand", readings)


def test_a_steady_machine_allows_what_the_gate_s_rules_allow() -> None:
    noise = noise_of("cuda", blocks(64, 0.001))
    assert noise.threshold == pytest.approx(noise.floor, rel=0.1)
    assert 0.02 < noise.floor < 0.03
    assert noise.paired_cv == pytest.approx(0.001, rel=0.4)
    assert abs(noise.paired_bias) < 0.001


def test_what_both_arms_share_matters_only_to_a_kernel_alone() -> None:
    noise = noise_of("cuda", blocks(64, 0.001, common=0.05))
    assert noise.alone_cv > 10 * noise.paired_cv
    assert noise.alone_low < -0.05 < 0.05 < noise.alone_high
    assert noise.threshold is not None
    assert noise.threshold < 0.03
    assert noise.threshold_alone is not None
    assert noise.threshold_alone >= 0.08


def test_short_kernels_allow_less() -> None:
    floors = [noise_of("cuda", blocks(64, 0.001, latency_ms=ms)).floor for ms in (0.005, 0.05, 0.5)]
    assert floors == sorted(floors, reverse=True)
    assert floors[0] > 0.05


@pytest.mark.parametrize("clock", ["cuda", "thread", "wall"])
def test_more_noise_asks_for_a_larger_threshold(clock: Clock) -> None:
    thresholds = [noise_of(clock, blocks(32, paired)).threshold or math.inf for paired in (0.001, 0.1, 0.5)]
    assert thresholds == sorted(thresholds)
    assert thresholds[0] < thresholds[-1]


def test_the_threshold_is_the_least_that_the_gate_calls_ok() -> None:
    readings = blocks(64, 0.05)
    noise = noise_of("cuda", readings)
    assert noise.threshold is not None
    assert noise.threshold > noise.floor
    halves = [{arm: values[i : i + 32] for arm, values in readings.items()} for i in (0, 32)]
    session = measured_session(halves[0], {}, {})
    baseline = Baseline({}, {}, (session,) * Policy().sessions["cuda"])
    for factor, kind in ((1.0, VerdictKind.OK), (0.9, VerdictKind.NOISY)):
        policy = Policy(threshold=factor * noise.threshold)
        assert judge(halves[1], baseline, {}, "cuda", policy, config={}).kind is kind


def test_a_machine_whose_speed_doubles_allows_no_threshold() -> None:
    slow, fast = blocks(32, 0.001), blocks(32, 0.001)
    readings = {"winner": [*slow["winner"], *(2.5 * v for v in fast["winner"])]}
    assert noise_of("thread", readings | {"reference": [*slow["reference"], *fast["reference"]]}).threshold is None


def test_too_few_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match=f"takes {fewest_blocks()}"):
        noise_of("cuda", blocks(fewest_blocks() - 1, 0.001))
    assert noise_of("cuda", blocks(fewest_blocks(), 0.001)).blocks == fewest_blocks()


@pytest.mark.parametrize("clock", ["thread", "wall"])
def test_this_machine_s_noise_is_measured(clock: Clock) -> None:
    noise = measure_noise("interpreter", calibration_work, clock, 0.0)
    assert noise.blocks == 32
    assert noise.latency_ms > 0
    assert noise.alone_low <= 0 <= noise.alone_high
    assert json.loads(json.dumps(noise.to_json(), allow_nan=False))["work"] == "interpreter"
