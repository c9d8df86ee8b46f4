"""One kernel at the gate: with what it is compared, the verdict for the user, and the baseline that it may become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_kerneltune import judging, verdicts
from pytest_kerneltune.against import Absent
from pytest_kerneltune.bases import SOURCE_DIGITS, Bases
from pytest_kerneltune.benchmark import Benchmark
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.gate import Policy, Verdict, VerdictKind
from pytest_kerneltune.gate.decision import disturbed_verdict
from pytest_kerneltune.judging import Contract, Measured, Readings
from pytest_kerneltune.outcome import VerdictSummary
from pytest_kerneltune.place import BaselinePlace
from pytest_kerneltune.record import Baseline, StoredSession, measured_session
from pytest_kerneltune.settings import Settings
from pytest_kerneltune.trial import Config
from pytest_kerneltune.workload import Workload


@dataclass(frozen=True)
class Gate:
    """A kernel at the gate.

    ``baseline`` is what is stored of it, ``recorded`` what goes into a baseline for people to read, ``command`` what to
    type to repeat this, without ``--update-baselines``.
    """

    settings: Settings
    workload: Workload
    place: BaselinePlace
    baseline: Baseline | None
    contract: Contract
    bases: Bases
    recorded: Mapping[str, str]
    command: str

    def measure(self, bench: Benchmark, winner: Config) -> Measured:
        """Measure ``winner`` against what the settings say; raises KernelError where it can't be measured."""
        if self.settings.against is None:
            return self._against_baseline(bench, winner)
        found = self.bases.at_merge_base(self.workload, winner)
        if isinstance(found, Absent) and not found.broken:
            return self._undecided(bench, winner, VerdictKind.NEW, found.reason)
        if not isinstance(found, Absent):
            measured = self._beside(found, winner)
            if isinstance(measured, Measured):
                return measured
            found = measured
        if self.baseline is None:
            return self._undecided(bench, winner, VerdictKind.INCOMPARABLE, found.reason)
        return self._against_baseline(bench, winner, f"not compared side by side: {found.reason}")

    def judged(self, measured: Measured, threshold: float | None = None, missing: str | None = None) -> VerdictSummary:
        """The verdict for the user, perhaps under another threshold and policy for missing baselines."""
        verdict = measured.verdict(self.policy if threshold is None else Policy(threshold=threshold))
        others = self.place.other_devices() if self.baseline is None and self.settings.against is None else ()
        subject = verdicts.Subject(self.workload.name, self.command, measured.latency_ms, measured.config, others)
        return verdicts.judged(verdict, self.baseline, subject, self.settings, missing)

    def previous_ms(self, measured: Measured) -> float | None:
        """The latency before: of what the kernel was compared with."""
        then_ms = measured.verdict(self.policy).then_ms
        return self.baseline.latency_ms if then_ms is None and self.baseline is not None else then_ms

    def young(self, verdict: VerdictSummary) -> int:
        """The number of sessions of the baseline that was judged by, while it is young; 0 otherwise."""
        count = 0 if self.baseline is None or verdict.basis == "base" else len(self.baseline.sessions)
        return count if verdict.basis and count < self.policy.mature else 0

    def row(self, bench: Benchmark, measured: Measured, verdict: VerdictSummary) -> dict[str, Any] | None:
        """The baseline that this measurement makes, as JSON; None where it is not fit to be one.

        Where the user asks for baselines of such verdicts the kernel is measured in further processes.
        """
        if verdict.kind == VerdictKind.INVALID:
            return None
        contract, blocks = self.contract, measured.readings.blocks
        sessions = [measured_session(blocks, contract.environment, self.recorded)]
        if self.settings.updates(verdict.kind):
            sessions += self._more_sessions(bench, measured.config)
        return Baseline(
            measured.config,
            contract.facts,
            tuple(sessions),
            self.workload.fingerprint[:SOURCE_DIGITS],
            judging.code_of(bench, measured.config),
        ).to_json()

    @property
    def policy(self) -> Policy:
        own = self.workload.threshold
        return Policy(threshold=self.settings.perf_threshold if own is None else own)

    def _beside(self, base: judging.Base, winner: Config) -> Measured | Absent:
        try:
            return judging.beside(base, winner, self.contract, self.policy, self._is_known)
        except KernelError as error:  # where today's is to blame, measuring it without the other says so
            return Absent(f"measured beside {base.commit}: {error}", broken=True)

    def _against_baseline(self, bench: Benchmark, winner: Config, remark: str = "") -> Measured:
        def base() -> judging.Base | None:
            return self.bases.of_baseline(self.workload, winner, self.baseline, self.place.file)

        measured = judging.measure(bench, winner, self.baseline, self.contract, self.policy, self._is_known, base)
        return measured.remarking(remark) if remark else measured

    def _undecided(self, bench: Benchmark, winner: Config, kind: VerdictKind, reason: str) -> Measured:
        """The latency, with a verdict that does not depend on it."""

        def judged(readings: Readings, _: Policy) -> Verdict:
            if readings.disturbed:
                return disturbed_verdict(readings.disturbed)
            return Verdict(kind, reason, basis="base")

        return judging.measure_alone(bench, winner, self.contract, self.policy, judged)

    def _more_sessions(self, bench: Benchmark, config: Config) -> list[StoredSession]:
        sessions = []
        for _ in range(self.policy.sessions[self.contract.clock] - 1):
            bench.restart()
            answer = judging.measure_alone(bench, config, self.contract, self.policy, _unjudged).answer
            if not answer.readings.disturbed:
                sessions.append(measured_session(answer.readings.blocks, self.contract.environment, self.recorded))
        return sessions

    def _is_known(self, config: Config) -> bool:
        return self.workload.space.contains(config)


def _unjudged(_: Readings, __: Policy) -> Verdict:
    return Verdict(VerdictKind.NEW, "")
