"""Reads a kernel's arms under guard until a verdict is reached, look by look, and asks a fresh process where need be.

A look that was disturbed is taken again. A regression is measured once more in a fresh process before it is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pytest_kerneltune.benchmark import Benchmark
from pytest_kerneltune.gate import Policy, Verdict, VerdictKind, alternation_disturbance
from pytest_kerneltune.gate.views import change_between
from pytest_kerneltune.gate.wording import config_words
from pytest_kerneltune.guard import Retries, Watch, distinct, uneven
from pytest_kerneltune.record import Blocks
from pytest_kerneltune.statistics import log_ratios
from pytest_kerneltune.trial import Clock, Config

METHOD = "method"
"""The fact that says how a kernel is timed."""

_IN_ONE_PROCESS = "measured in one process: by the kernel's own threshold there was no need for a second"


@dataclass(frozen=True)
class Contract:
    """What must be equal for two measurements to be comparable (``facts``), what may differ but is worth a word
    (``environment``), what watches over a measurement, and how often one that was disturbed is made again."""

    facts: Mapping[str, str]
    clock: Clock
    watch: Callable[[], Watch]
    environment: Mapping[str, str] = field(default_factory=dict)
    retries: Retries = field(default_factory=Retries)

    @property
    def method(self) -> str:
        """By which the kernel is timed, in words: one that ``Station.method`` chose."""
        return self.facts[METHOD]


@dataclass(frozen=True)
class Readings:
    """What was read: block values in ms by arm (see record.py), the config that the arm "winner" ran, what disturbed it
    and what is worth knowing."""

    config: Config
    blocks: Blocks
    disturbed: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


Judge = Callable[[Readings, Policy], Verdict]


@dataclass(frozen=True)
class Answer:
    """Readings, and what they come to; ``confirmed`` is what a fresh process said to a regression (None: not asked)."""

    readings: Readings
    judge: Judge
    confirmed: bool | None = None

    def verdict(self, policy: Policy) -> Verdict:
        verdict = self.judge(self.readings, policy)
        if verdict.kind is not VerdictKind.REGRESSED or self.confirmed:
            return verdict
        if self.confirmed is None:  # by another policy than the one that it was measured for
            return replace(verdict, remarks=(*verdict.remarks, _IN_ONE_PROCESS))
        return replace(verdict, kind=VerdictKind.NOISY, reason=f"not confirmed by a fresh process: {verdict.reason}")


@dataclass(frozen=True)
class Asking:
    """Reads ``arms``, beside the ``yardsticks``, until ``judge`` has enough, at the latest at the last of ``looks``."""

    bench: Benchmark
    arms: Mapping[str, Config]
    contract: Contract
    policy: Policy
    looks: Sequence[int]
    judge: Judge
    yardsticks: bool = True

    def __call__(self) -> Answer:
        readings, tries = Readings(self.arms["winner"], {}), 0
        for look in self.looks:
            readings, tries = self._looked(readings, look, tries)
            kept = _old_config_kept(readings, self.arms.get("baseline"), self.policy)
            if readings.disturbed or self.judge(kept, self.policy).decided:
                break
        return Answer(kept, self.judge)

    def confirmed(self, first: Answer) -> Answer:
        """``first``; where it is a regression, what a fresh process says to that."""
        if first.verdict(self.policy).kind is not VerdictKind.REGRESSED:
            return first
        self.bench.restart()
        second = self()
        agrees = second.verdict(self.policy).kind in (VerdictKind.REGRESSED, VerdictKind.INVALID)
        return replace(second, confirmed=True) if agrees else replace(first, confirmed=False)

    def repeated(self, first: Answer) -> Answer:
        """``confirmed``; where ``first`` is undecided, what a fresh process says, a regression being confirmed by
        another one."""
        if first.verdict(self.policy).kind is not VerdictKind.NOISY:
            return self.confirmed(first)
        self.bench.restart()
        second = self()
        return first if second.verdict(self.policy).kind is VerdictKind.INVALID else self.confirmed(second)

    def _looked(self, readings: Readings, look: int, tries: int) -> tuple[Readings, int]:
        """``readings`` with as many blocks more as ``look`` wants, disturbed ones being dropped and read again; and the
        number of disturbed tries, ``tries`` before this."""
        count = look - len(readings.blocks.get("winner", ()))
        noticed: Sequence[str] = ()
        while True:
            with self.contract.watch() as watch:
                fresh = self.bench.compare(self.arms, self.yardsticks, count, self.contract.method)
            if not (disturbed := [*noticed, *watch.disturbances(), *self._signs(fresh)]):
                break
            tries += 1
            pause_s = self.contract.retries.pause_s(tries, watch.lasts)
            if pause_s is None:
                break
            noticed = watch.wait(pause_s)
        blocks = {name: [*readings.blocks.get(name, ()), *values] for name, values in fresh.items()}
        remarks = distinct((*readings.remarks, *watch.remarks()))
        return replace(readings, blocks=blocks, disturbed=tuple(dict.fromkeys(disturbed)), remarks=remarks), tries

    def _signs(self, fresh: Blocks) -> list[str]:
        """What the readings themselves say of a disturbance."""
        if self.contract.clock != "cuda":
            return []
        alternation = alternation_disturbance(fresh, self.policy.threshold)
        return [*uneven(fresh), *([alternation] if alternation else [])]


def _old_config_kept(readings: Readings, old: Config | None, policy: Policy) -> Readings:
    """The readings with the arm "baseline" as the winner and today's as "pick", unless that is faster beyond doubt."""
    if old is None:
        return readings
    search = change_between(log_ratios(readings.blocks["winner"], readings.blocks["baseline"]), policy)
    if search.high < 0:
        return readings
    blocks = {**readings.blocks, "winner": readings.blocks["baseline"], "pick": readings.blocks["winner"]}
    del blocks["baseline"]
    remarks = readings.remarks
    if search.low > policy.threshold:
        remarks += (f"the old config is kept: today's choice, {config_words(readings.config)}, is slower by {search}",)
    return replace(readings, config=old, blocks=blocks, remarks=remarks)
