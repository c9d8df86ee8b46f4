"""What the user sees while a kernel is tuned: one line kept up to date on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import Any

from pytest_kerneltune.driver import Progress
from pytest_kerneltune.report.terminal import progress_line
from pytest_kerneltune.trial import Budget

_REFRESH_S = 0.1
_PLAIN_EVERY_S = 10.0


class LiveProgress:
    """Writes through pytest's terminal reporter, around its capturing; silent without one (an xdist worker) or -q."""

    def __init__(self, reporter: Any, capture: Any) -> None:
        self._reporter: Any = reporter if reporter is not None and reporter.verbosity >= 0 else None
        self._capture = capture
        self._next = 0.0
        self._stage = ""
        self._shown = False

    def progress(self, name: str, progress: Progress, budget: Budget) -> None:
        """Show where the tuning of the kernel ``name`` stands."""
        now = time.monotonic()
        live = self._reporter is not None and self._reporter.isatty
        news = f"{name} {progress.stage}" != self._stage and not live
        if self._reporter is None or (now < self._next and not news):
            return
        self._next, self._stage = now + (_REFRESH_S if live else _PLAIN_EVERY_S), f"{name} {progress.stage}"
        best = progress.best_ms if math.isfinite(progress.best_ms) else None
        text = progress_line(name, progress.stage, progress.tried, progress.failed, best, progress.elapsed_s, budget)
        with self._uncaptured():
            if live:
                if not self._shown:
                    self._reporter.ensure_newline()
                self._shown = True
                self._reporter.rewrite(text[: self._reporter._tw.fullwidth - 1], erase=True)
            else:
                self._write_line(text)

    def clear(self) -> None:
        """Take the live line away: the kernel is done."""
        if self._reporter is not None and self._shown:
            with self._uncaptured():
                self._reporter.rewrite("", erase=True)
                self._reporter.write("\r")
            self._shown = False

    def say(self, text: str) -> None:
        """Show one line."""
        self.clear()
        if self._reporter is not None:
            with self._uncaptured():
                self._write_line(text)

    def _write_line(self, text: str) -> None:
        self._reporter.ensure_newline()
        self._reporter.write_line(text)

    def _uncaptured(self) -> Any:
        return self._capture.global_and_fixture_disabled() if self._capture is not None else nullcontext()
