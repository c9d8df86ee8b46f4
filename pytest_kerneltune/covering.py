"""pytest's hooks that tell which test files a run covers completely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pytest_kerneltune.completeness import Coverage

_KEY = "kerneltune"


class Covering:
    """A plugin that keeps the account of ``coverage``; xdist's workers collect, and their controller hears of it."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.coverage = Coverage()

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.coverage.left_out += [item.nodeid for item in items]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        config, option = self._config, self._config.getoption
        self.coverage.collected(
            [item.nodeid for item in session.items],
            [str(config.invocation_params.dir / arg) for arg in config.args],
            config.rootpath,
            is_whole=not (option("lf", False) or option("pyargs")),
            ignores=bool(option("ignore") or option("ignore_glob")),
        )
        if hasattr(config, "workeroutput"):
            config.workeroutput[_KEY] = self.coverage.to_text()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        if text := getattr(node, "workeroutput", {}).get(_KEY):
            self.coverage.read(text)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.coverage.reported(report.nodeid, report.when, report.outcome)
