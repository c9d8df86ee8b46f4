"""Measures a kernel for the gate and judges it: what ``gate.py`` decides on is taken here.

Only this fresh, interleaved measurement is judged. The stored baseline's config is an arm of its own, and stays the
kernel's config unless today's pick is faster beyond its confidence interval: a search that was unlucky cannot fail a
gate, and configs do not churn between equals. A regression is measured once more in a fresh process before it is
reported, since placement and clocks differ from process to process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from statistics import median
from typing import Protocol

from pytest_kerneltune.benchmark import Benchmark
from pytest_kerneltune.gate import Policy, Verdict, VerdictKind, judge
from pytest_kerneltune.record import Baseline
from pytest_kerneltune.station import REFERENCE
from pytest_kerneltune.statistics import log_ratios, median_interval
from pytest_kerneltune.trial import Clock, Config

METHOD = "method"
"""The fact that says how a kernel is timed."""


class Watch(Protocol):
    """What a device's watch says after a measurement."""

    def disturbances(self) -> list[str]: ...


@dataclass(frozen=True)
class Contract:
    """What must be equal for two measurements to be comparable, and the watch that guards a measurement."""

    facts: Mapping[str, str]
    clock: Clock
    watch: Callable[[], AbstractContextManager[Watch]]

    @property
    def method(self) -> str:
        """By which the kernel is timed, in words: one that ``Station.method`` chose."""
        return self.facts[METHOD]


@dataclass(frozen=True)
class Measured:
    """A fresh measurement: block values in ms by arm (see gate.py), the config that the arm "winner" ran, what
    disturbed it, and whether a first measurement said "regressed" and this one, in a fresh process, did not."""

    config: Config
    blocks: Mapping[str, Sequence[float]]
    disturbed: tuple[str, ...] = ()
    unconfirmed: bool = False

    @property
    def latency_ms(self) -> float:
        return median(self.blocks["winner"])

    @property
    def reference_ms(self) -> float | None:
        return median(self.blocks[REFERENCE]) if REFERENCE in self.blocks else None

    def verdict(self, baseline: Baseline | None, contract: Contract, policy: Policy) -> Verdict:
        """The verdict on these readings under ``policy``."""
        verdict = judge(
            self.blocks, baseline, contract.facts, contract.clock, policy, self.disturbed, config=self.config
        )
        if self.unconfirmed and verdict.kind is VerdictKind.REGRESSED:
            return replace(
                verdict, kind=VerdictKind.NOISY, reason=f"not confirmed by a fresh process: {verdict.reason}"
            )
        return verdict


def measure(
    bench: Benchmark,
    winner: Config,
    baseline: Baseline | None,
    contract: Contract,
    policy: Policy,
    is_known: bool = True,
) -> Measured:
    """Measure ``winner`` beside the baseline's config and the yardsticks, as long as it takes to decide.

    ``is_known`` says whether the space still holds the baseline's config: one that the user took out of it (it may be
    wrong, or hang) is not run. Raises KernelError where ``winner`` can't be measured.
    """
    first = _measured(bench, winner, baseline, contract, policy, is_known)
    verdict = first.verdict(baseline, contract, policy)
    if verdict.kind not in (VerdictKind.REGRESSED, VerdictKind.INVALID):
        return first
    bench.restart()
    second = _measured(bench, winner, baseline, contract, policy, is_known)
    again = second.verdict(baseline, contract, policy)
    if verdict.kind is VerdictKind.INVALID or again.kind in (VerdictKind.REGRESSED, VerdictKind.INVALID):
        return second
    return replace(first, unconfirmed=True)


def _measured(
    bench: Benchmark,
    winner: Config,
    baseline: Baseline | None,
    contract: Contract,
    policy: Policy,
    is_known: bool,
) -> Measured:
    arms = {"winner": winner}
    comparable = baseline is not None and dict(baseline.contract) == dict(contract.facts)
    wanted = baseline is not None and comparable and is_known and baseline.config != winner
    if baseline is not None and wanted and bench.check(baseline.config).ok:
        arms["baseline"] = baseline.config
    blocks: dict[str, list[float]] = {}
    disturbed: list[str] = []
    for look in policy.looks if comparable else policy.looks[:1]:
        with contract.watch() as watch:
            fresh = bench.compare(arms, True, look - len(blocks.get("winner", ())), contract.method)
        disturbed += [text for text in watch.disturbances() if text not in disturbed]
        blocks = {name: [*blocks.get(name, ()), *values] for name, values in fresh.items()}
        measured = _old_config_kept(Measured(winner, blocks, tuple(disturbed)), baseline, policy)
        if measured.verdict(baseline, contract, policy).decided:
            break
    return measured


def _old_config_kept(measured: Measured, baseline: Baseline | None, policy: Policy) -> Measured:
    """The measurement with the baseline's config as the winner, unless today's is faster beyond doubt."""
    if baseline is None or "baseline" not in measured.blocks:
        return measured
    ratios = log_ratios(measured.blocks["winner"], measured.blocks["baseline"])
    if median_interval(ratios, policy.confidence).high < 0:
        return measured
    blocks = {**measured.blocks, "winner": measured.blocks["baseline"]}
    del blocks["baseline"]
    return replace(measured, config=baseline.config, blocks=blocks)
