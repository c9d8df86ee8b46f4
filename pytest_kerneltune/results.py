"""The end of a run: baselines and report files, written once by the process that received all outcomes."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pytest_kerneltune.baseline import write_baselines
from pytest_kerneltune.errors import KernelTuneError, StoreError
from pytest_kerneltune.outcome import Outcome
from pytest_kerneltune.record import Baseline
from pytest_kerneltune.report import format as form
from pytest_kerneltune.report import jsonfile
from pytest_kerneltune.report.logs import log_lines
from pytest_kerneltune.report.markdown import step_summary
from pytest_kerneltune.report.stages import stage_lines
from pytest_kerneltune.report.terminal import Line, summary_lines, update_lines
from pytest_kerneltune.settings import Settings

NOTHING_MEASURED = "no kernel was measured, though --autotune asks for it: this run does not pass"
_NAMESAKES = (
    "{id}: this run measured different kernels under this name, so it has no baseline; let what tells them apart be a "
    "parameter of the fixture (params= or parametrize, with ids), or give them names of their own"
)
_RED = {"red": True}
_LOGS_FROM_VERBOSITY = 2


@dataclass(frozen=True)
class Results:
    """All outcomes of a run, those whose baselines were written, and what went wrong in writing."""

    settings: Settings
    command: str
    seconds: float
    outcomes: Sequence[Outcome]
    written: Sequence[Outcome] = ()
    errors: Sequence[str] = ()

    @property
    def measured(self) -> bool:
        return any(o.latency_ms is not None for o in self.outcomes)

    @property
    def failed(self) -> bool:
        """Whether the run may not exit with 0, whatever its tests did."""
        return bool(self.errors) or (self.settings.gating and not self.measured)

    def lines(self, width: int, verbosity: int) -> list[Line]:
        """The terminal's summary."""
        written = {o.id for o in self.written}
        lines = summary_lines(self.outcomes, width, command=self.command, seconds=self.seconds, updated=written)
        lines = [*stage_lines(self.outcomes), *lines]
        if verbosity >= _LOGS_FROM_VERBOSITY:
            lines = [*log_lines(self.outcomes), *lines]
        if self.settings.update_baselines:
            lines += [
                Line(f"baselines written: {len(written)} of {len(self.outcomes)}", {}),
                *update_lines(self.written),
            ]
        if self.settings.gating and not self.measured:
            lines.append(Line(NOTHING_MEASURED, _RED))
        return [*lines, *(Line(error, _RED) for error in self.errors)]


def publish(
    received: Iterable[Mapping[str, Any]], settings: Settings, command: Sequence[str], started: datetime, seconds: float
) -> Results:
    """Merge the outcomes, write the selected baselines and the reports that were asked for."""
    arrived = [Outcome.from_json(data) for data in received]
    outcomes, shared = merged(arrived), namesakes(arrived)
    written, errors = _write_baselines([o for o in updated(outcomes, settings) if o.id not in shared], settings)
    errors += [_NAMESAKES.format(id=kernel) for kernel in shared]
    if settings.autotune_json is not None:
        facts = jsonfile.run_facts(settings, command, started, seconds)
        try:
            jsonfile.write(settings.autotune_json, jsonfile.document(outcomes, facts))
        except KernelTuneError as error:
            errors.append(f"--autotune-json: {error}")
    if settings.step_summary is not None and settings.gating and outcomes:
        try:
            with settings.step_summary.open("a", encoding="utf-8") as file:
                file.write(step_summary(outcomes))
        except OSError as error:
            errors.append(f"GITHUB_STEP_SUMMARY: {error}")
    return Results(settings, shlex.join(["pytest", *command]), seconds, outcomes, written, errors)


def merged(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """One outcome a kernel, in order of arrival: of several (two xdist workers met it, or a test's marker judges it by
    another threshold) the worst, one that fails before all others."""
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.id, []).append(outcome)
    return [min(form.worst_first(same), key=lambda o: not o.verdict.fails) for same in found.values()]


def namesakes(outcomes: Iterable[Outcome]) -> list[str]:
    """The ids that two different kernels share, so that neither can have a baseline."""
    fingerprints: dict[str, set[str]] = {}
    for outcome in outcomes:
        fingerprints.setdefault(outcome.id, set()).add(outcome.fingerprint)
    return [kernel for kernel, different in fingerprints.items() if len(different) > 1]


def updated(outcomes: Sequence[Outcome], settings: Settings) -> list[Outcome]:
    """The outcomes whose baselines ``--update-baselines`` writes: selected, fit to be one, and moved.

    A kernel that is as fast as its baseline (within a third of the threshold) keeps its row, so that files do not
    change with every run.
    """
    chosen = []
    for outcome in outcomes:
        verdict = outcome.verdict
        still = verdict.change is not None and abs(verdict.change[0]) < (verdict.threshold or 0.0) / 3
        if outcome.baseline is not None and settings.updates(verdict.kind) and not (still and verdict.kind == "ok"):
            chosen.append(outcome)
    return chosen


def _write_baselines(outcomes: Sequence[Outcome], settings: Settings) -> tuple[list[Outcome], list[str]]:
    files: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        files.setdefault(outcome.baseline_file, []).append(outcome)
    written: list[Outcome] = []
    errors: list[str] = []
    for file, mine in files.items():
        rows = {o.name: Baseline.from_json(o.baseline) for o in mine}
        try:
            changed = write_baselines(settings.root / file, {"name": mine[0].device}, rows)
            written += [o for o in mine if o.name in changed]
        except StoreError as error:
            errors.append(f"--update-baselines: {error}")
    return written, errors
