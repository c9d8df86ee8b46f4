"""What the process of an older version tells of a kernel: the kernel by value, and the config that it would have."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, Literal, cast

from pytest_kerneltune.against import Counterpart
from pytest_kerneltune.backends.exported import ExportedKernel
from pytest_kerneltune.choosing import best_known
from pytest_kerneltune.errors import KernelError, StoreError
from pytest_kerneltune.place import BaselinePlace, keep_code, tuning_cache
from pytest_kerneltune.settings import Settings
from pytest_kerneltune.surroundings import Surroundings
from pytest_kerneltune.trial import Config
from pytest_kerneltune.workload import Workload


class Exporter(Surroundings):
    """Stands where a run's session does: knows the devices, and exports a workload in place of measuring it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._cache = tuning_cache(settings, lambda _: None)

    def export(self, workload: Workload, asked: Sequence[Config]) -> Counterpart:
        """The workload's kernel; raises KernelError where it cannot travel."""
        kernel, space = workload.kernel, workload.space
        choice = best_known(workload, self._stored(workload), self._cache)
        best = space.default if choice.config is None else choice.config
        configs = {space.key(config): config for config in (best, *map(space.canonical, filter(space.contains, asked)))}
        keep_code(kernel, self.settings)
        exported = ExportedKernel.of(kernel, workload.modules, list(configs.values()))
        usable = tuple(dict(config) for config in configs.values() if exported.has(config))
        source = cast(Literal["baseline", "cache", "default"], choice.summary.source)
        return _sendable(
            Counterpart(exported, workload.fingerprint, workload.inputs_digest, dict(best), source, usable)
        )

    def _stored(self, workload: Workload) -> Any:
        try:
            return BaselinePlace(self.settings, workload, workload.device_name).stored()
        except StoreError:  # of a version that wrote other files: then it had no baseline
            return None


def _sendable(found: Counterpart) -> Counterpart:
    try:
        pickle.dumps(found)
    except Exception as error:  # an object's own reduction may raise anything
        raise KernelError(f"its compile tasks cannot be sent: {type(error).__name__}: {error}") from error
    return found
