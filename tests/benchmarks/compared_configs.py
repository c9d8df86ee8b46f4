"""A pytest plugin for ``time_to_config``: times given configs of a tunable side by side, in place of running it.

Reads the configs from the file COMPARED_CONFIGS and writes the latency of each relative to the first, inf where it
fails, to COMPARED_RATIOS.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.plugin import Run
from pytest_kerneltune.session import Evaluation
from pytest_kerneltune.workload import Workload

_BLOCKS = 12
_GROUP = 8  # arms at a time, the first of all among them


class _Comparing:
    def __init__(self, run: Run) -> None:
        self._run = run

    def evaluate(self, workload: Workload) -> Evaluation:
        bench = self._run.session().benchmark(workload)
        configs: list[dict[str, Any]] = json.loads(Path(os.environ["COMPARED_CONFIGS"]).read_text())
        ratios = [1.0] + [float("inf")] * (len(configs) - 1)
        for start in range(1, len(configs), _GROUP):
            group = [i for i in range(start, min(start + _GROUP, len(configs))) if bench.check(configs[i]).ok]
            arms = {"first": configs[0], **{str(i): configs[i] for i in group}}
            try:
                values = bench.compare(arms, False, _BLOCKS)
            except KernelError as error:
                print(error)  # noqa: T201
                continue
            for i in group:
                ratios[i] = median(a / b for a, b in zip(values[str(i)], values["first"], strict=True))
        Path(os.environ["COMPARED_RATIOS"]).write_text(json.dumps(ratios))
        pytest.skip("compared")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    run = next(p for p in config.pluginmanager.get_plugins() if isinstance(p, Run))
    run.evaluate = _Comparing(run).evaluate  # type: ignore[method-assign]
