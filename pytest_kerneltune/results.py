"""The end of a run: baselines and report files, written once by the process that received all outcomes."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from pytest_kerneltune.arrivals import Arrival, failures, merged, namesakes
from pytest_kerneltune.baseline import orphans, prune_baselines, row_names, update_baselines
from pytest_kerneltune.errors import KernelTuneError, StoreError
from pytest_kerneltune.gate.policy import Policy
from pytest_kerneltune.options import spelled_out
from pytest_kerneltune.outcome import Outcome
from pytest_kerneltune.record import Baseline
from pytest_kerneltune.refreshing import refreshed
from pytest_kerneltune.report import jsonfile
from pytest_kerneltune.report.annotations import Failure, error_commands, workspace
from pytest_kerneltune.report.logs import log_lines
from pytest_kerneltune.report.markdown import step_summary
from pytest_kerneltune.report.orphans import OrphanRows, orphan_lines
from pytest_kerneltune.report.selftest import self_test_lines, self_test_markdown
from pytest_kerneltune.report.stages import stage_lines
from pytest_kerneltune.report.terminal import Line, summary_lines, update_lines
from pytest_kerneltune.settings import Settings

NOTHING_MEASURED = "no kernel was measured, though --autotune asks for it: this run does not pass"
_NAMESAKES = (
    "{id}: this run measured different kernels under this name, so it has no baseline; let what tells them apart be a "
    "parameter of the fixture (params= or parametrize, with ids), or give them names of their own"
)
_UPDATE = "--update-baselines"
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
    failures: Sequence[Failure] = ()
    orphans: Sequence[OrphanRows] = ()

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
        lines = summary_lines(
            self.outcomes,
            width,
            command=self.command,
            seconds=self.seconds,
            updated=written,
            beside=self.settings.against is not None,
        )
        lines = [*stage_lines(self.outcomes), *self_test_lines(self.outcomes, width), *lines]
        if verbosity >= _LOGS_FROM_VERBOSITY:
            lines = [*log_lines(self.outcomes), *lines]
        if self.settings.update_baselines:
            lines += [
                Line(f"baselines written: {len(written)} of {len(self.outcomes)}", {}),
                *update_lines(self.written),
            ]
        lines += orphan_lines(self.orphans, self.command, self.settings.prune_baselines)
        if self.settings.gating and not self.measured:
            lines.append(Line(NOTHING_MEASURED, _RED))
        return [*lines, *(Line(error, _RED) for error in self.errors)]

    def annotations(self, environ: Mapping[str, str]) -> list[str]:
        """What tells GitHub Actions, where this runs there, which lines failed; ``environ`` is the environment."""
        base = workspace(environ)
        return [] if base is None else error_commands(self.failures, self.settings.root, base)


def publish(
    arrivals: Sequence[Arrival],
    settings: Settings,
    command: Sequence[str],
    started: datetime,
    seconds: float,
    complete: Collection[str] = (),
) -> Results:
    """Merge the outcomes, write the selected baselines and the reports that were asked for.

    ``complete`` are the files whose tests all ran: baselines there that no kernel of this run has are orphans.
    """
    outcomes, shared = merged(arrivals), namesakes(arrival.outcome for arrival in arrivals)
    written, errors = _write_baselines([o for o in updated(outcomes, settings) if o.id not in shared], settings)
    errors += [_NAMESAKES.format(id=kernel) for kernel in shared]
    left, wrong = _orphans([o for o in outcomes if o.file in complete], settings)
    errors += wrong
    if settings.autotune_json is not None:
        facts = jsonfile.run_facts(settings, command, started, seconds)
        facts["orphans"] = {orphan.file: orphan.names for orphan in left}
        try:
            jsonfile.write(settings.autotune_json, jsonfile.document(outcomes, facts))
        except KernelTuneError as error:
            errors.append(f"--autotune-json: {error}")
    if settings.step_summary is not None and settings.gating and outcomes:
        try:
            with settings.step_summary.open("a", encoding="utf-8") as file:
                file.write("\n".join(filter(None, (step_summary(outcomes), self_test_markdown(outcomes)))))
        except OSError as error:
            errors.append(f"GITHUB_STEP_SUMMARY: {error}")
    failed = failures(arrivals, outcomes)
    told = shlex.join(["pytest", *without_update(command)])
    return Results(settings, told, seconds, outcomes, written, errors, failed, left)


def without_update(command: Sequence[str]) -> list[str]:
    """pytest's arguments without ``--update-baselines``, which the user is told to write otherwise."""
    kept: list[str] = []
    is_value = False
    for word, spelled in zip(command, spelled_out(command), strict=True):
        if not is_value and spelled.partition("=")[0] != _UPDATE:
            kept.append(word)
        is_value = spelled == _UPDATE  # what is bare once all is spelled out has its value in the next word
    return kept


def updated(outcomes: Sequence[Outcome], settings: Settings) -> list[Outcome]:
    """The outcomes whose baselines ``--update-baselines`` writes: selected, and fit to be one."""
    return [o for o in outcomes if o.baseline is not None and settings.updates(o.verdict.kind)]


def _write_baselines(outcomes: Sequence[Outcome], settings: Settings) -> tuple[list[Outcome], list[str]]:
    files: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        files.setdefault(outcome.baseline_file, []).append(outcome)
    written: list[Outcome] = []
    errors: list[str] = []
    for file, mine in files.items():
        try:
            updates = {o.name: partial(_refreshed, o) for o in mine}
            changed = update_baselines(settings.root / file, {"name": mine[0].device}, updates)
            written += [o for o in mine if o.name in changed]
        except StoreError as error:
            errors.append(f"--update-baselines: {error}")
    return written, errors


def _refreshed(outcome: Outcome, old: Baseline | None) -> Baseline:
    """The row to store, where ``old`` is stored now."""
    verdict = outcome.verdict
    # Against another commit's code the change says nothing of the row: the rows themselves then do.
    change = verdict.change[0] if verdict.change and verdict.basis != "base" else None
    fresh = Baseline.from_json(outcome.baseline)
    return refreshed(old, fresh, verdict.kind, change, verdict.threshold, Policy().mature)


def _orphans(outcomes: Sequence[Outcome], settings: Settings) -> tuple[list[OrphanRows], list[str]]:
    """The rows of the outcomes' baseline files that are of no kernel, and what went wrong in removing them.

    Only with ``--prune-baselines`` are they removed.
    """
    if not settings.gating:
        return [], []
    measured: dict[str, list[str]] = {}
    for outcome in outcomes:
        measured.setdefault(outcome.baseline_file, []).append(outcome.name)
    found: list[OrphanRows] = []
    errors: list[str] = []
    for file, names in measured.items():
        path = settings.root / file
        try:
            rows = orphans(row_names(path), names, True)
            removed = prune_baselines(path, rows) if settings.prune_baselines else ()
        except StoreError as error:
            errors.append(f"--prune-baselines: {error}")
            continue
        if rows:
            found.append(OrphanRows(file, removed or rows))
    return found, errors
