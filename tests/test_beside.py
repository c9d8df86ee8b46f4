"""A kernel beside its base in one process: branch by branch, properties, and a small simulation of the promises."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kerneltune.gate import (
    Policy,
    Verdict,
    VerdictKind,
    alternation_disturbance,
    judge_beside,
    order_effect,
)
from pytest_kerneltune.timing import block_order
from pytest_kerneltune.trial import Clock, Config

OLD: Config = {"ROWS": 4}
NEW: Config = {"ROWS": 8}
POLICY = Policy()
SENSITIVE = Policy(threshold=0.015)
RANK = [VerdictKind.IMPROVED, VerdictKind.OK, VerdictKind.NOISY, VerdictKind.REGRESSED]


def simulated(
    latencies: Mapping[str, float], seed: int = 0, count: int = 64, noise: float = 0.002
) -> dict[str, list[float]]:
    """Blocks of the named arms (latencies in ms): a drift that all arms of a block share, noise, and outliers."""
    rng = random.Random(seed)

    def reading(shared: float) -> float:
        return shared + rng.gauss(0, noise) + (rng.uniform(0, 0.3) if rng.random() < 0.04 else 0.0)

    drifts = [rng.gauss(0, 0.03) for _ in range(count)]
    return {arm: [ms * math.exp(reading(shared)) for shared in drifts] for arm, ms in latencies.items()}


def beside(
    blocks: Mapping[str, Sequence[float]],
    config: Config = OLD,
    clock: Clock = "cuda",
    policy: Policy = POLICY,
    same_code: bool = False,
) -> Verdict:
    return judge_beside(blocks, clock, policy, config=config, base_config=OLD, same_code=same_code, commit="1a2b3c4")


def looked(blocks: Mapping[str, Sequence[float]], policy: Policy) -> tuple[VerdictKind, int]:
    verdicts = ((beside({a: r[:n] for a, r in blocks.items()}, policy=policy), n) for n in policy.looks)
    return next((verdict.kind, n) for verdict, n in verdicts if verdict.decided)


# What it promises


@pytest.mark.parametrize("noise", [0.0015, 0.005])
@pytest.mark.parametrize(
    ("policy", "latency_ms", "slowdown", "share"),
    [
        (SENSITIVE, 0.02, 0.02, 0.95),
        (SENSITIVE, 0.2, 0.03, 0.995),
        (POLICY, 0.2, 0.05, 1.0),
        (POLICY, 0.02, 0.10, 1.0),
        (POLICY, 0.005, 0.05, 0.99),
        (POLICY, 0.005, 0.10, 1.0),
    ],
)
def test_slowdowns_are_found(noise: float, policy: Policy, latency_ms: float, slowdown: float, share: float) -> None:
    rng = random.Random(8)
    found: Counter[VerdictKind] = Counter()
    for _ in range(200):
        slower = latency_ms * (1 + slowdown) * math.exp(rng.gauss(0, 0.002))
        blocks = simulated({"winner": slower, "base": latency_ms}, rng.getrandbits(32), noise=noise)
        found[looked(blocks, policy)[0]] += 1
    assert found[VerdictKind.REGRESSED] >= share * 200


@pytest.mark.parametrize("noise", [0.0015, 0.005, 0.013])
def test_unchanged_kernels_are_ok_and_take_sixteen_blocks(noise: float) -> None:
    rng = random.Random(9)
    policy = SENSITIVE if noise < 0.01 else POLICY
    results = []
    for _ in range(700):
        latency = 0.02 * math.exp(rng.gauss(0, 0.002))
        results.append(looked(simulated({"winner": latency, "base": 0.02}, rng.getrandbits(32), noise=noise), policy))
    kinds = Counter(kind for kind, _ in results)
    assert kinds[VerdictKind.REGRESSED] == 0
    assert kinds[VerdictKind.OK] >= 0.99 * len(results)
    assert sum(count == 16 for _, count in results) > len(results) / 2


# The arms


def test_slower_code_beside_its_base() -> None:
    verdict = beside(simulated({"winner": 0.21, "base": 0.2, "reference": 0.3}))
    assert (verdict.kind, verdict.blame, verdict.basis) == (VerdictKind.REGRESSED, "code", "base")
    assert verdict.change is not None
    assert verdict.change.estimate == pytest.approx(0.05, abs=0.003)
    assert verdict.code_change == verdict.change
    assert verdict.reason.startswith("slower than the base commit 1a2b3c4: +5.")
    assert verdict.reason.endswith("side by side; threshold 3%")
    assert (verdict.against, verdict.then_config) == ("the base commit 1a2b3c4", OLD)
    assert verdict.then_ms == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize(
    ("latencies", "blame"),
    [
        ({"winner": 0.22, "baseline": 0.22, "base": 0.2}, "code"),
        ({"winner": 0.22, "baseline": 0.2, "base": 0.2}, "search"),
        ({"winner": 0.22, "base": 0.2}, "config gone"),
        ({"winner": 0.22, "base": 0.2, "base at winner": 0.22}, "config gone"),
        ({"winner": 0.22, "base": 0.2, "base at winner": 0.2}, "code"),
    ],
)
def test_blame(latencies: dict[str, float], blame: str) -> None:
    verdict = beside(simulated(latencies), NEW)
    assert (verdict.kind, verdict.blame) == (VerdictKind.REGRESSED, blame)


def test_the_faster_of_the_base_s_configs_counts() -> None:
    arms = {"winner": 0.2, "baseline": 0.22, "base": 0.2}
    better = beside(simulated(arms | {"base at winner": 0.18}), NEW)
    assert (better.kind, better.blame, better.then_config) == (VerdictKind.REGRESSED, "code", NEW)
    assert "which is faster with today's choice than with its own config" in better.reason
    assert better.code_change == better.change
    for other in (0.2, 0.23):
        verdict = beside(simulated(arms | {"base at winner": other}), NEW)
        assert (verdict.kind, verdict.then_config) == (VerdictKind.OK, OLD)


def test_improvement_and_noise() -> None:
    assert beside(simulated({"winner": 0.18, "base": 0.2})).kind is VerdictKind.IMPROVED
    noisy = simulated({"winner": 0.208, "base": 0.2}, noise=0.2)
    early, late = beside({arm: readings[:16] for arm, readings in noisy.items()}), beside(noisy)
    assert (early.kind, early.decided) == (VerdictKind.NOISY, False)
    assert (late.kind, late.decided) == (VerdictKind.NOISY, True)
    assert "undecided" in late.reason


def test_the_same_compiled_code_did_not_get_slower() -> None:
    slower = simulated({"winner": 0.21, "base": 0.2})
    verdict = beside(slower, same_code=True)
    assert (verdict.kind, verdict.blame) == (VerdictKind.OK, "environment")
    assert "the compiled code and its launch are those of the base" in verdict.reason
    searched = simulated({"winner": 0.21, "baseline": 0.2, "base": 0.2})
    assert beside(searched, NEW, same_code=True).blame == "search"
    hidden = simulated({"winner": 0.2, "baseline": 0.22, "base": 0.22, "base at winner": 0.18})
    assert beside(hidden, NEW, same_code=True).kind is VerdictKind.REGRESSED


def test_a_gain_by_another_config_is_this_change_s_though_the_old_one_s_code_is_the_same() -> None:
    verdict = beside(simulated({"winner": 0.18, "baseline": 0.2, "base": 0.2}), NEW, same_code=True)
    assert (verdict.kind, verdict.blame) == (VerdictKind.IMPROVED, "")
    by_chance = simulated({"winner": 0.179, "baseline": 0.18, "base": 0.2})
    assert beside(by_chance, NEW, same_code=True).blame == "environment"


def test_the_base_with_a_config_that_was_not_kept() -> None:
    arms = {"winner": 0.2, "pick": 0.2, "base": 0.2, "base at winner": 0.17}
    verdict = judge_beside(simulated(arms), "cuda", POLICY, config=OLD, base_config=OLD, same_code=True, pick=NEW)
    assert (verdict.kind, verdict.blame, verdict.then_config) == (VerdictKind.REGRESSED, "code", NEW)
    assert verdict.code_change is not None
    assert verdict.code_change.estimate == pytest.approx(0.2 / 0.17 - 1, abs=0.005)
    assert verdict.search_change is not None
    assert verdict.search_change.estimate == pytest.approx(0.0, abs=0.005)
    kept = judge_beside(
        simulated(arms | {"base at winner": 0.2}), "cuda", POLICY, config=OLD, base_config=OLD, pick=NEW
    )
    assert (kept.kind, kept.then_config, kept.code_change) == (VerdictKind.OK, OLD, kept.change)


def test_short_kernel_s_change_must_be_long_enough_to_count() -> None:
    verdict = beside(simulated({"winner": 0.003 * 1.06, "base": 0.003}))
    assert verdict.threshold == pytest.approx(0.2 / 3, rel=0.02)
    assert verdict.kind is VerdictKind.OK
    assert "instead of 3%, since at 2.999 us a change below 200 ns does not count" in verdict.reason


@pytest.mark.parametrize(("clock", "finest"), [("cuda", 0.006), ("thread", 0.06), ("wall", 0.08)])
def test_threshold_is_no_finer_than_two_equal_kernels_differ(clock: Clock, finest: float) -> None:
    verdict = beside(simulated({"winner": 2.0, "base": 2.0}), clock=clock, policy=Policy(threshold=0.001))
    assert verdict.threshold == pytest.approx(finest)
    assert "the finest that two kernels side by side allow" in verdict.reason


@pytest.mark.parametrize("clock", ["thread", "wall"])
def test_host_kernels_of_twice_the_latency_are_found(clock: Clock) -> None:
    policy = Policy(threshold=0.25)
    assert beside(simulated({"winner": 4.0, "base": 2.0}, noise=0.1), clock=clock, policy=policy).kind == "regressed"
    assert beside(simulated({"winner": 2.1, "base": 2.0}, noise=0.1), clock=clock, policy=policy).kind == "ok"


# Bad input


def test_disturbed_or_short_measurements_are_not_judged() -> None:
    invalid = judge_beside({}, "cuda", POLICY, ["the GPU throttled"], config=OLD, base_config=OLD)
    assert (invalid.kind, invalid.basis) == (VerdictKind.INVALID, "base")
    assert "the GPU throttled" in invalid.reason
    short = beside(simulated({"winner": 9.0, "base": 0.2}, count=8))
    assert (short.kind, short.decided) == (VerdictKind.NOISY, False)


@pytest.mark.parametrize(
    "blocks",
    [
        {"winner": [0.2] * 16},
        {"winner": [0.2] * 16, "base": [0.2] * 15},
        {"winner": [0.2] * 16, "base": [0.2] * 15 + [0.0]},
        {"winner": [math.nan] * 16, "base": [0.2] * 16},
        {"base": [0.2] * 16},
    ],
)
def test_malformed_blocks_are_refused(blocks: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="blocks"):
        beside(blocks)


# Properties


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), slowdowns=st.tuples(st.floats(0.7, 1.5), st.floats(0.7, 1.5)))
def test_slower_kernel_never_fares_better(seed: int, slowdowns: tuple[float, float]) -> None:
    verdicts = [
        beside(simulated({"winner": 0.2 * slowdown, "base": 0.2}, seed, 16, 0.02)) for slowdown in sorted(slowdowns)
    ]
    assert RANK.index(verdicts[0].kind) <= RANK.index(verdicts[1].kind)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), slowdown=st.floats(0.9, 1.1), speed=st.floats(0.2, 5.0))
def test_speed_of_the_gpu_changes_nothing(seed: int, slowdown: float, speed: float) -> None:
    blocks = simulated({"winner": 0.2 * slowdown, "baseline": 0.2, "base": 0.2}, seed, 16)
    before = beside(blocks, NEW)
    after = beside({arm: [speed * reading for reading in readings] for arm, readings in blocks.items()}, NEW)
    assert (before.kind, before.blame, before.threshold) == (after.kind, after.blame, after.threshold)


@given(readings=st.lists(st.floats(1e-3, 1e3), min_size=16, max_size=16), clock=st.sampled_from(["cuda", "thread"]))
def test_identical_blocks_are_ok(readings: list[float], clock: Clock) -> None:
    verdict = beside({"winner": readings, "base": readings}, clock=clock)
    assert verdict.kind is VerdictKind.OK
    assert verdict.change is not None
    assert verdict.change.estimate == 0.0


# The order of the arms


def ordered(names: Sequence[str], effect: float, count: int = 16, noise: float = 0.002) -> dict[str, list[float]]:
    """Blocks in which the arm that comes first in a block is slower by the fraction ``effect``."""
    rng = random.Random(10)
    blocks: dict[str, list[float]] = {name: [] for name in names}
    for block in range(count):
        first = block_order(names, block)[0]
        for name in names:
            blocks[name].append(0.2 * (1 + effect * (name == first)) * math.exp(rng.gauss(0, noise)))
    return blocks


def test_order_effect_is_that_of_coming_first() -> None:
    assert order_effect(ordered(["winner", "base"], 0.05), "winner", "base") == pytest.approx(1.05**2 - 1, abs=0.01)
    assert order_effect(ordered(["winner", "base"], 0.0), "winner", "base") == pytest.approx(0.0, abs=0.005)
    blocks = ordered(["winner", "base"], 0.05)
    assert order_effect(blocks, "base", "winner") == pytest.approx(order_effect(blocks, "winner", "base"), rel=1e-9)
    assert order_effect({arm: readings[:1] for arm, readings in blocks.items()}, "winner", "base") == 0.0
    with pytest.raises(ValueError, match="blocks"):
        order_effect({"winner": [0.2], "base": [0.2, 0.2]}, "winner", "base")


def test_alternation_that_moves_a_ratio_is_a_disturbance() -> None:
    names = ["winner", "base", "reference"]
    text = alternation_disturbance(ordered(names[:2], 0.05), 0.03)
    assert text is not None
    assert text.startswith("the GPU's speed changed while arms alternated: winner over base differs by 10")
    assert alternation_disturbance(ordered(names[:2], 0.05), 0.2) is None
    assert alternation_disturbance(ordered(names, 0.0), 0.0) is None
    assert alternation_disturbance(ordered(names, 0.05, noise=0.5), 0.03) is None
    assert alternation_disturbance(ordered(["winner"], 0.0), 0.0) is None


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_no_disturbance(seed: int) -> None:
    rng = random.Random(seed)
    found = [
        alternation_disturbance(simulated({"winner": 0.2, "base": 0.2}, rng.getrandbits(32), 16, 0.005), 0.015)
        for _ in range(300)
    ]
    assert found == [None] * 300
