"""Tests that run again after a failure: which kernels to measure again, and what was found out before.

A plugin that repeats failed tests would otherwise get the verdict of the first measurement every time. Nothing here
depends on which plugin that is: a test that begins once more in the same process is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pytest_kerneltune.outcome import Outcome
from pytest_kerneltune.report import format as form


class Retries:
    """The kernels of tests that failed in this process, and all earlier measurements of those that were repeated."""

    def __init__(self) -> None:
        self._suspects: dict[str, list[Outcome]] = {}
        self._due: dict[str, Outcome] = {}
        self._earlier: dict[str, list[Outcome]] = {}

    def failed(self, test: str, outcomes: Iterable[Outcome]) -> None:
        """``test`` failed, with ``outcomes`` as it judged them: kernels to measure again where it runs again."""
        self._suspects[test] = list(outcomes)

    def begin(self, test: str) -> None:
        """``test`` begins, for the first time or once more."""
        self._due = {outcome.id: outcome for outcome in self._suspects.pop(test, ())}

    def is_due(self, kernel: str) -> bool:
        """Whether the kernel with this id is to be measured again before the running test is judged."""
        return kernel in self._due

    def take(self, kernel: str) -> bool:
        """As ``is_due``, once: the caller measures."""
        if kernel not in self._due:
            return False
        self._earlier.setdefault(kernel, []).append(self._due.pop(kernel))
        return True

    def told(self, outcome: Outcome) -> Outcome:
        """``outcome``, with a remark where earlier measurements came before it: what they said is part of the truth."""
        if not (earlier := self._earlier.get(outcome.id)):
            return outcome
        before = ", ".join(f"{o.verdict.kind} {form.change(o.verdict)}".strip() for o in earlier)
        text = f"measured {len(earlier) + 1} times, before this {before}"
        if any(o.verdict.fails for o in earlier) and not outcome.verdict.fails:
            text = f"passed on a retry, which is a sign of noise: {text}"
        return replace(
            outcome, is_rerun=True, verdict=replace(outcome.verdict, remarks=(*outcome.verdict.remarks, text))
        )
