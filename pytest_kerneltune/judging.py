"""Measures a kernel for the gate and judges it: what ``gate.py`` decides on is taken here.

Only this fresh, interleaved measurement is judged (``asking.py``). What a kernel is compared with, the strongest first:

1. Another version of it (``Base``), both in one process on the same tensors: where the user asks for it, and where the
   comparison with the stored baseline ends red or undecided and the version is known that the baseline is of.
2. The stored baseline, by ratios to yardsticks.

The other side's config is an arm of its own with today's code, and stays the kernel's config unless today's pick is
faster beyond its confidence interval: a search that was unlucky cannot fail a gate, and configs do not churn between
equals.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from statistics import median

from pytest_kerneltune.asking import METHOD as METHOD
from pytest_kerneltune.asking import Answer, Asking, Judge
from pytest_kerneltune.asking import Contract as Contract
from pytest_kerneltune.asking import Readings as Readings
from pytest_kerneltune.backends.tagged import tagged
from pytest_kerneltune.benchmark import Benchmark
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.gate import Policy, Verdict, VerdictKind, judge, judge_beside
from pytest_kerneltune.gate.wording import token
from pytest_kerneltune.record import Baseline
from pytest_kerneltune.station import REFERENCE
from pytest_kerneltune.trial import Config

OTHER = "base"
"""The tag of the other version's configs, in a benchmark of both (see ``backends/pair.py``)."""


@dataclass(frozen=True)
class Base:
    """Another version of the kernel, to be measured beside today's.

    ``bench`` measures both (a PairKernel), the other version's configs being tagged ``OTHER``. ``config`` is the best
    one known of that version; it is a bar where it ``is_tuned``, and no default beside a config that was searched for.
    ``runs`` says of a config whether that version has it. ``commit`` names it. ``is_called_alike`` says that configs of
    equal compiled code do the very same on the same inputs, ``shares_inputs`` that both versions run on the same
    tensors. ``remarks`` say what of it is not as it was.
    """

    commit: str
    bench: Benchmark
    config: Config
    is_tuned: bool
    runs: Callable[[Config], bool]
    is_called_alike: bool = True
    shares_inputs: bool = True
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """A fresh measurement. ``answer`` decides, unless ``escalated`` is there and ``answer`` is red or undecided."""

    answer: Answer
    escalated: Answer | None = None
    remarks: tuple[str, ...] = ()

    @property
    def readings(self) -> Readings:
        return (self.escalated or self.answer).readings

    @property
    def config(self) -> Config:
        return self.readings.config

    @property
    def latency_ms(self) -> float:
        return median(self.readings.blocks["winner"])

    @property
    def reference_ms(self) -> float | None:
        blocks = self.readings.blocks
        return median(blocks[REFERENCE]) if REFERENCE in blocks else None

    def verdict(self, policy: Policy) -> Verdict:
        """The verdict on these readings under ``policy``."""
        verdict = self.answer.verdict(policy)
        remarks = (*self.remarks, *self.readings.remarks)
        if self.escalated is not None and _is_doubtful(verdict):
            change = f" {verdict.change}" if verdict.change else ""
            remarks = (f"against the stored baseline: {verdict.kind}{change}", *remarks)
            verdict = self.escalated.verdict(policy)
        return replace(verdict, remarks=(*verdict.remarks, *remarks))

    def remarking(self, remark: str) -> Measured:
        """The same, with a remark on its verdict."""
        return replace(self, remarks=(*self.remarks, remark))


def measure(
    bench: Benchmark,
    winner: Config,
    baseline: Baseline | None,
    contract: Contract,
    policy: Policy,
    is_known: Callable[[Config], bool] = lambda _: True,
    base: Callable[[], Base | None] = lambda: None,
) -> Measured:
    """Measure ``winner`` against the stored ``baseline``, as long as it takes to decide.

    ``is_known`` says whether the space still holds a config: one that the user took out of it (it may be wrong, or
    hang) is not run. ``base`` gives the version that the baseline is of, if it is known; it is only asked where the
    verdict is red or undecided. Raises KernelError where ``winner`` can't be measured.
    """
    comparable = baseline is not None and dict(baseline.contract) == dict(contract.facts)
    arms = {"winner": winner}
    code = ""
    if baseline is not None and comparable and is_known(baseline.config):
        if baseline.config == winner:
            code = code_of(bench, winner)
        elif bench.check(baseline.config).ok:
            arms["baseline"], code = baseline.config, code_of(bench, baseline.config)

    def judged(readings: Readings, chosen: Policy) -> Verdict:
        return judge(
            readings.blocks,
            baseline,
            contract.facts,
            contract.clock,
            chosen,
            readings.disturbed,
            config=readings.config,
            code=code,
            environment=contract.environment,
        )

    looks = policy.looks if comparable else policy.looks[:1]
    ask = Asking(bench, arms, contract, policy, looks, judged)
    first = ask()
    if not _is_doubtful(first.verdict(policy)):
        return Measured(first)
    if (other := base()) is not None:
        try:
            closer = beside(other, winner, contract, policy, is_known)
        except KernelError as error:  # today's was just measured, so the other version is to blame, or both are too big
            return Measured(ask.repeated(first)).remarking(f"not compared side by side: {error}")
        return replace(closer, answer=first, escalated=closer.answer)
    return Measured(ask.repeated(first))


def beside(
    base: Base, winner: Config, contract: Contract, policy: Policy, is_known: Callable[[Config], bool]
) -> Measured:
    """Measure ``winner`` beside another version of the kernel.

    ``is_known`` is as :func:`measure` has it. Raises KernelError where that does not run with any config, or ``winner``
    can't be measured.
    """
    arms, config = _arms_beside(base, winner, is_known)
    if "base" not in arms:
        failed = base.bench.check(tagged(base.config if base.runs(base.config) else winner, OTHER))
        raise KernelError(f"it does not run with {dict(base.config)} there: {failed.reason or 'its space is another'}")
    ours = base.bench.code(config) if config == winner or "baseline" in arms else ""
    theirs = base.bench.code(tagged(config, OTHER))
    is_same = base.is_called_alike and bool(ours) and ours == theirs and base.bench.has_same_inputs()

    def judged(readings: Readings, chosen: Policy) -> Verdict:
        return judge_beside(
            readings.blocks,
            contract.clock,
            chosen if base.shares_inputs else chosen.apart(contract.clock),
            readings.disturbed,
            config=readings.config,
            base_config=config,
            same_code=is_same,
            commit=base.commit,
            pick=winner,
        )

    ask = Asking(base.bench, arms, contract, policy, policy.looks, judged)
    left_out = () if token(config) == token(base.config) else (_left_out(base),)
    return Measured(ask.repeated(ask()), remarks=(*base.remarks, *left_out))


def measure_alone(bench: Benchmark, config: Config, contract: Contract, policy: Policy, judge: Judge) -> Measured:
    """Measure ``config`` beside the yardsticks, in one look. Raises KernelError where it can't be measured."""
    return Measured(Asking(bench, {"winner": config}, contract, policy, policy.looks[:1], judge)())


def code_of(bench: Benchmark, config: Config) -> str:
    """A digest of the compiled code of ``config`` and of how it is called; "" where that is not known.

    Where it is equal, measurements on equal inputs are of the very same. Raises KernelError as ``Benchmark.code``.
    """
    code, what = bench.code(config), bench.kernel.describe()
    return code and sha256(json.dumps([code, what.kind, what.facts]).encode()).hexdigest()


def _left_out(base: Base) -> str:
    why = "does not run" if base.is_tuned else "is only its default"
    return f"both versions ran with today's config: the one of {base.commit} {why}"


def _arms_beside(base: Base, winner: Config, is_known: Callable[[Config], bool]) -> tuple[dict[str, Config], Config]:
    """The arms to compare, and the config of the arm "base"."""

    def works(config: Config) -> bool:
        return base.runs(config) and base.bench.check(tagged(config, OTHER)).ok

    arms = {"winner": winner}
    at_winner = works(winner)
    if base.config == winner or (at_winner and not base.is_tuned):
        # What nobody tuned is no bar: the same config tells what the code is worth.
        return ({**arms, "base": tagged(winner, OTHER)} if at_winner else arms), winner
    if not works(base.config):
        return ({**arms, "base": tagged(winner, OTHER)} if at_winner else arms), winner
    if is_known(base.config) and base.bench.check(base.config).ok:
        arms["baseline"] = base.config
    arms["base"] = tagged(base.config, OTHER)
    return ({**arms, "base at winner": tagged(winner, OTHER)} if at_winner else arms), base.config


def _is_doubtful(verdict: Verdict) -> bool:
    return verdict.kind in (VerdictKind.REGRESSED, VerdictKind.NOISY)
