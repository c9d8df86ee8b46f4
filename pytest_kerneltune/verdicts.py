"""From a gate's verdict to what the user reads, and whether the test fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_kerneltune.errors import GateFailure, MissingBaseline, NothingMeasured, PerformanceRegression, WrongOutput
from pytest_kerneltune.gate import Verdict, VerdictKind, regression_message
from pytest_kerneltune.gate.wording import config_words
from pytest_kerneltune.outcome import SearchSummary, VerdictSummary
from pytest_kerneltune.record import Baseline
from pytest_kerneltune.settings import Settings
from pytest_kerneltune.statistics import Interval
from pytest_kerneltune.trial import Config, Status, Trial

CHECKED, WRONG, FAILED = "checked", "wrong", "failed"
REMEDIES: Mapping[str, str] = {
    "regressed": "if this is wanted, accept it with: {command} --update-baselines=regressed",
    "invalid": "measure again without what disturbed it: {command}",
    "noisy": "measure again, or allow the kernel more with @tunable(threshold=...): {command}",
    "incomparable": "record a new baseline: {command} --update-baselines=new",
    "new": "record a baseline: {command} --update-baselines=new",
    "improved": "make the gain the new baseline: {command} --update-baselines=improved",
}
"""What to do about a verdict, by its kind; ``command`` is the command of this run."""

NO_SEARCH = SearchSummary("none")
_MERGED = "allow the kernel more with @tunable(threshold=...), or merge: what is merged is the next base"
_SHOWN_FAILURES = 5
_SHOWN_DEVICES = 5


@dataclass(frozen=True)
class Subject:
    """The kernel that a verdict is about; ``command`` is what to type, without ``--update-baselines``.

    ``other_devices`` are those with baselines of the kernel's file.
    """

    name: str
    command: str
    latency_ms: float
    config: Config
    other_devices: Sequence[str] = ()


def judged(
    verdict: Verdict, baseline: Baseline | None, subject: Subject, settings: Settings, missing: str | None = None
) -> VerdictSummary:
    """The summary of a verdict on a measured kernel. ``missing`` replaces the session's ``missing_baseline``."""
    kind = verdict.kind
    accepted = settings.updates(kind.value) and kind is not VerdictKind.INVALID  # which is never made a baseline
    fails = _fails(kind, settings, missing or settings.missing_baseline) and not accepted
    if kind is VerdictKind.NEW and verdict.basis:
        fails = False  # it is not there that nothing is stored, but that there was no such kernel
    details, reason = "", verdict.reason
    if kind is VerdictKind.NEW and subject.other_devices:
        reason += f"; other devices have baselines of this file: {', '.join(subject.other_devices[:_SHOWN_DEVICES])}"
    if kind is VerdictKind.REGRESSED and (baseline is not None or verdict.then_ms is not None):
        accept = _MERGED if settings.against is not None else f"{subject.command} --update-baselines=regressed"
        details = regression_message(verdict, baseline, subject.latency_ms, subject.config, subject.name, accept)
    elif fails:
        details = f"{subject.name} {kind.value}: {reason}"
        if settings.against is None or kind is not VerdictKind.INCOMPARABLE:  # nothing stored would help there
            details += f"\n  {REMEDIES[kind.value].format(command=subject.command)}"
    return VerdictSummary(
        kind=kind.value,
        summary=reason,
        details=details,
        fails=fails,
        change=_numbers(verdict.change),
        code_change=_numbers(verdict.code_change),
        search_change=_numbers(verdict.search_change),
        threshold=verdict.threshold,
        blame=verdict.blame,
        basis=verdict.basis,
        remarks=verdict.remarks,
        against=verdict.against,
    )


def checked() -> VerdictSummary:
    """The kernel ran once and was right; nothing was timed."""
    return VerdictSummary(CHECKED, "ran once and was checked")


def unusable(name: str, trials: Sequence[Trial]) -> VerdictSummary:
    """Nothing works: wrong output if that is among the reasons, since correctness comes before speed."""
    wrong = [t for t in trials if t.status is Status.WRONG]
    shown = (wrong or list(trials))[:_SHOWN_FAILURES]
    lines = [f"  {config_words(t.config)}: {t.status.value}: {t.reason}" for t in shown]
    more = [f"  ... and {len(trials) - len(shown)} more"] if len(trials) > len(shown) else []
    if wrong:
        summary = f"output differs from the reference: {wrong[0].reason.removeprefix('output ')}"
        head = f"{name} is WRONG: its output differs from its reference, so it was not timed"
        return VerdictSummary(WRONG, summary, "\n".join([head, *lines, *more]), fails=True)
    reason = f"{shown[0].status.value}: {shown[0].reason}" if shown else "no config was tried"
    head = f"{name}: nothing could be measured, all {len(trials)} configs tried failed"
    return VerdictSummary(FAILED, f"no config works ({reason})", "\n".join([head, *lines, *more]), fails=True)


def broken(name: str, reason: str) -> VerdictSummary:
    """The kernel could not even be set up, or its measurement broke down."""
    return VerdictSummary(FAILED, reason.splitlines()[0], f"{name}: {reason}", fails=True)


def failure(summary: VerdictSummary) -> GateFailure | None:
    """What to raise in the test; None where it does not fail."""
    if not summary.fails:
        return None
    return _ERRORS.get(summary.kind, GateFailure)(summary.details or summary.summary)


_ERRORS: Mapping[str, type[GateFailure]] = {
    VerdictKind.REGRESSED.value: PerformanceRegression,
    VerdictKind.NEW.value: MissingBaseline,
    WRONG: WrongOutput,
    FAILED: NothingMeasured,
}


def _fails(kind: VerdictKind, settings: Settings, missing: str) -> bool:
    policies = {
        VerdictKind.REGRESSED: "fail",
        VerdictKind.NEW: missing,
        VerdictKind.INCOMPARABLE: settings.incomparable_verdict,
        VerdictKind.NOISY: settings.noisy_verdict,
        VerdictKind.INVALID: settings.invalid_verdict,
    }
    return policies.get(kind, "pass") == "fail"


def _numbers(change: Interval | None) -> tuple[float, float, float] | None:
    return None if change is None else (change.estimate, change.low, change.high)
