"""The gate tried on a kernel: against itself, and against itself slowed on purpose by real work.

Each decision is one of the gate's: both arms side by side in one process, look by look, until the rule has enough. A
red that the gate would measure once more in a fresh process counts as a red here. The kinds of decision take turns, so
that what drifts hits all of them alike. N decisions of each kind cost about as much as N times the number of kinds
looks of the gate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from pytest_kerneltune.asking import Asking, Contract, Readings
from pytest_kerneltune.backends.tagged import tagged, untagged
from pytest_kerneltune.benchmark import Benchmark
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.gate import Policy, Verdict, judge_beside
from pytest_kerneltune.gate.decision import disturbed_verdict
from pytest_kerneltune.guard import Retries
from pytest_kerneltune.record import Blocks
from pytest_kerneltune.resampling import Judge
from pytest_kerneltune.selftest_summary import Decision, SelfTest, change_between, summarised
from pytest_kerneltune.trial import Clock, Config

_FINE = (0.02, 0.03, 0.05, 0.10)
SLOWDOWNS: Mapping[Clock, Sequence[float]] = {
    "cuda": _FINE,
    "thread": (*_FINE, 0.25, 1.0),
    "wall": (*_FINE, 0.25, 1.0),
}
"""The slowdowns that are injected, as fractions: on host clocks, which see no small ones, large ones too."""

_PROBES = (0.1, 0.5)  # parts of the latency by which it is learnt what an amount of extra work costs
_LEAST_US = 1e-3  # the least extra work that is work at all


def self_test(
    bench: Benchmark,
    config: Config,
    contract: Contract,
    policy: Policy,
    decisions: int,
    say: Callable[[str], None] = lambda _: None,
) -> SelfTest:
    """Try the gate on ``config`` of a kernel: so many ``decisions`` unchanged, and at each of ``SLOWDOWNS``.

    ``bench`` measures a SlowedKernel of the kernel, by the method that ``contract`` names. ``say`` is told once how
    long it will take. Raises KernelError where the kernel cannot be measured.
    """
    arms = slowed_arms(bench, config, contract.method, SLOWDOWNS[contract.clock])
    bench.compare({f"slowed by {f:.0%}": c for f, c in arms.items()}, False, 1, contract.method)  # compiles all of them
    judge = beside_judge(contract.clock, config)
    made: dict[float, list[Decision]] = {wanted: [] for wanted in arms}
    began = time.monotonic()
    for turn in range(decisions):
        for wanted in _rotated(list(arms), turn):
            pair = {"winner": arms[wanted], "base": arms[0.0]}
            made[wanted].append(decide(bench, pair, contract, policy, judge))
        if turn == 0:
            rest_s = (time.monotonic() - began) * (decisions - 1)
            say(f"gate self-test: {decisions * len(arms)} decisions, about {rest_s:.0f} s")
    extra_us = {wanted: untagged(config)[1] for wanted, config in arms.items()}
    return summarised(made, extra_us, contract.clock, contract.method, policy, judge)


def decide(bench: Benchmark, arms: Mapping[str, Config], contract: Contract, policy: Policy, judge: Judge) -> Decision:
    """One decision on ``arms``, as the gate makes it; one that was disturbed is invalid, and not made again."""

    def judged(readings: Readings, chosen: Policy) -> Verdict:
        return disturbed_verdict(readings.disturbed) if readings.disturbed else judge(readings.blocks, chosen)

    once = replace(contract, retries=Retries(()))
    began = time.monotonic()
    answer = Asking(bench, arms, once, policy, policy.looks, judged, yardsticks=False)()
    return Decision(answer.readings.blocks, judged(answer.readings, policy), time.monotonic() - began)


def beside_judge(clock: Clock, config: Config) -> Judge:
    """The rule for two versions of a kernel side by side, both with ``config``."""

    def judge(blocks: Blocks, policy: Policy) -> Verdict:
        return judge_beside(blocks, clock, policy, config=config, base_config=config)

    return judge


def slowed_arms(bench: Benchmark, config: Config, method: str, fractions: Sequence[float]) -> dict[float, Config]:
    """Configs of a SlowedKernel by how much slower they make it: 0, and ``fractions``, as far as they can be had.

    A launch of extra work costs something however little work it is. Of fractions that are less than that only the
    largest is kept, with the least extra work there is.
    """
    plain = tagged(config, 0)
    latency_us = median(bench.compare({"winner": plain}, False, 16, method)["winner"]) * 1e3
    extra_us = [part * latency_us for part in _PROBES]
    probes = {f"slowed by {extra:.3g} us": tagged(config, extra) for extra in extra_us}
    read = bench.compare({"winner": plain, **probes}, False, 16, method)
    costs = [latency_us * change_between(read, name, "winner") for name in probes]
    slope = (costs[1] - costs[0]) / (extra_us[1] - extra_us[0])
    if slope <= 0:
        raise KernelError("extra work after each launch does not show in the kernel's latency: is it timed at all?")
    overhead_us = costs[0] - slope * extra_us[0]
    wanted = {fraction: (fraction * latency_us - overhead_us) / slope for fraction in fractions}
    least = max((fraction for fraction, extra in wanted.items() if extra < _LEAST_US), default=None)
    reachable = {f: max(_LEAST_US, extra) for f, extra in wanted.items() if extra >= _LEAST_US or f == least}
    return {0.0: plain, **{f: tagged(config, round(extra, 4)) for f, extra in reachable.items()}}


def _rotated(wanted: Sequence[float], turn: int) -> Sequence[float]:
    """Another one first in every turn, forward and backward: none always follows the same one."""
    first = turn % len(wanted)
    rotated = [*wanted[first:], *wanted[:first]]
    return rotated if turn % 2 == 0 else rotated[::-1]
