"""What compilers and kernels printed, shown on the terminal with -vv only."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_kerneltune.outcome import Outcome
from pytest_kerneltune.report.terminal import Line

_MOST_LINES = 20


def log_lines(outcomes: Sequence[Outcome]) -> list[Line]:
    """Every failed config with its reason and the head of its log, kernel by kernel."""
    lines = []
    for outcome in outcomes:
        failed = [t for t in outcome.trials if t["status"] != "ok"]
        if failed:
            lines.append(Line(f"failed configs of {outcome.id}", {"bold": True}))
        for trial in failed:
            config = ", ".join(f"{name}={value}" for name, value in trial["config"].items())
            lines.append(Line(f"  {_harmless(config)}: {trial['status']}: {_harmless(trial.get('reason', ''))}", {}))
            log = trial.get("log", "").splitlines()
            lines += [Line(f"    | {_harmless(text)}", {}) for text in log[:_MOST_LINES]]
            if len(log) > _MOST_LINES:
                lines.append(Line(f"    | ... {len(log) - _MOST_LINES} more lines (--autotune-json has all)", {}))
    return lines


def _harmless(text: str) -> str:
    """``text`` without what a terminal would obey: a trial may be from somebody else's cache."""
    return "".join(character if character.isprintable() else " " for character in text)
