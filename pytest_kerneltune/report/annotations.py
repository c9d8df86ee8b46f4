"""Failures as annotations of GitHub Actions: shown in the pull request, at the line of the test that failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_kerneltune.outcome import Outcome
from pytest_kerneltune.report import format as form

MOST = 10
"""GitHub shows so many errors of a step and drops the others."""


@dataclass(frozen=True)
class Failure:
    """A kernel that failed a test, and the first such test's file, relative to the root directory, and line."""

    outcome: Outcome
    file: str
    line: int


def workspace(environ: Mapping[str, str]) -> Path | None:
    """The directory that annotations name files relative to; None where this is not GitHub Actions."""
    if environ.get("GITHUB_ACTIONS") != "true":
        return None
    return Path(environ.get("GITHUB_WORKSPACE") or Path.cwd())


def error_commands(failures: Sequence[Failure], root: Path, relative_to: Path) -> list[str]:
    """A workflow command for each failure, the worst first, at most MOST; ``root`` is where the files' paths start."""
    by_kernel = {failure.outcome.id: failure for failure in failures}
    ordered = form.worst_first([failure.outcome for failure in failures])
    return [_command(by_kernel[outcome.id], root, relative_to) for outcome in ordered[:MOST]]


def _command(failure: Failure, root: Path, relative_to: Path) -> str:
    path = (root / failure.file).resolve()
    base = relative_to.resolve()
    file = path.relative_to(base).as_posix() if path.is_relative_to(base) else failure.file
    verdict = failure.outcome.verdict
    values = {"file": file, "line": str(failure.line), "title": f"{failure.outcome.name} {verdict.kind}"}
    shown = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in values.items())
    return f"::error {shown}::{_escaped(verdict.details or verdict.summary)}"


def _escaped(text: str, also: str = "") -> str:
    """``text`` as the runner's commands want it: what would end the command, or a property, in hex."""
    return "".join(f"%{ord(c):02X}" if c in f"%\r\n{also}" else c if c.isprintable() else " " for c in text)
