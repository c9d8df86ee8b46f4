"""Older versions of a run's kernels: found in the repository's history, and made ready to be measured beside today's.

A version is opened when a kernel first asks for it, and stays open until the run ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_kerneltune.against import Absent, BaseSide, Counterpart
from pytest_kerneltune.backends import Kernel
from pytest_kerneltune.backends.pair import PairKernel
from pytest_kerneltune.basetree import BaseTree, last_change
from pytest_kerneltune.benchmark import Benchmark
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.gate.wording import token
from pytest_kerneltune.judging import Base
from pytest_kerneltune.record import Baseline
from pytest_kerneltune.settings import Settings
from pytest_kerneltune.trial import Config
from pytest_kerneltune.workload import Workload

SOURCE_DIGITS = 16
"""Hex digits of a source's digest in a baseline: enough to tell two versions of a kernel apart."""

OpenBench = Callable[[Workload, Kernel], Benchmark]
"""A benchmark of a kernel in place of the workload's own, on the first of its devices."""


@dataclass(frozen=True)
class History:
    """What it takes to load an older version: ``merge_base`` gives the checkout of ``--against``, which whoever gave it
    closes; ``options`` is what ``against.options_of`` makes of pytest's config."""

    merge_base: Callable[[], BaseTree]
    options: Mapping[str, Any]


class Bases:
    """The other versions of the kernels of one process."""

    def __init__(self, settings: Settings, history: History | None, open_bench: OpenBench) -> None:
        self._settings, self._history, self._open_bench = settings, history, open_bench
        self._merge_base: BaseSide | None = None
        self._sides: dict[str, BaseSide | None] = {}

    def prepare(self, workload: Workload) -> None:
        """Have the merge base loaded, where the kernel will be compared with it; does not wait for that."""
        if self._settings.against is not None and self._history is not None:
            self._opened().start([workload.test.partition("::")[0]])

    def at_merge_base(self, workload: Workload, winner: Config) -> Base | Absent:
        """The kernel at the merge base with ``--against``; raises UsageError where there is no such commit."""
        side = self._opened()
        found = side.find(workload.file, workload.name, workload.test, [winner])
        if isinstance(found, Absent):
            return found if found.broken else Absent(f"there is no such kernel at {side.tree.shown}", broken=False)
        if found.inputs != workload.inputs_digest:
            return Absent("its inputs are others there", broken=True)
        try:
            return self._base(side.tree, workload, found)
        except KernelError as error:
            return Absent(str(error), broken=True)

    def of_baseline(self, workload: Workload, winner: Config, baseline: Baseline | None, file: Path) -> Base | None:
        """The kernel at the commit that the stored ``baseline`` in ``file`` is of; None where there is none to be had.

        That is the commit that it was measured at or, where it was written together with a change of the kernel, the
        one that brought it: whichever has the very kernel that was measured.
        """
        if self._history is None or baseline is None or not baseline.source or not workload.test:
            return None
        commits = [baseline.recorded.get("commit", ""), last_change(self._settings.root, file)]
        for commit in filter(None, dict.fromkeys(commits)):
            if (side := self._at(commit)) is None:
                continue
            found = side.find(workload.file, workload.name, workload.test, [winner, baseline.config])
            if isinstance(found, Counterpart) and found.fingerprint.startswith(baseline.source):
                try:
                    base = self._base(side.tree, workload, found)
                    # The numbers are of this config: at its own commit the baseline was not yet stored.
                    return replace(base, config=baseline.config, is_tuned=True) if base.runs(baseline.config) else base
                except KernelError:  # it ran by another clock then: the stored numbers have to do
                    return None
        return None

    def close(self) -> None:
        """End the processes of all versions, and forget them."""
        if self._merge_base is not None:
            self._merge_base.close()
        for side in self._sides.values():
            if side is not None:
                side.close()
                side.tree.close()
        self._merge_base, self._sides = None, {}

    def _opened(self) -> BaseSide:
        if self._merge_base is None:
            assert self._history is not None, "--against without pytest"
            self._merge_base = self._side(self._history.merge_base())
        return self._merge_base

    def _at(self, commit: str) -> BaseSide | None:
        if commit not in self._sides:
            tree = BaseTree.at_commit(self._settings.root, commit)
            self._sides[commit] = None if tree is None else self._side(tree)
        return self._sides[commit]

    def _side(self, tree: BaseTree) -> BaseSide:
        assert self._history is not None
        return BaseSide(tree, self._settings, self._history.options)

    def _base(self, tree: BaseTree, workload: Workload, found: Counterpart) -> Base:
        pair = PairKernel(workload.kernel, found.kernel)
        bench = self._open_bench(workload, pair)
        space, settings = workload.space, self._settings

        def today(config: Config) -> Config:
            return space.canonical(config) if space.contains(config) else config

        own = {token(today(config)) for config in found.configs}

        def runs(config: Config) -> bool:
            return token(today(config)) in own

        is_search = settings.searching and settings.autotune_effort != "none"
        is_tuned = found.best_source != "default" or not is_search
        remarks = (*tree.remarks, *found.remarks)
        alike, shares = pair.is_called_alike, pair.shares_inputs
        return Base(tree.shown, bench, today(found.best), is_tuned, runs, alike, shares, remarks)
