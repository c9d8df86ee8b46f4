"""Where what is known of a kernel is kept: its baseline, the tuning cache, and code that was compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pytest_kerneltune.backends import Kernel
from pytest_kerneltune.baseline import baseline_path, device_slug, load_baseline, other_devices
from pytest_kerneltune.cache import Cache, LayeredCache, NoCache, TuningCache
from pytest_kerneltune.options import code_directory
from pytest_kerneltune.record import Baseline
from pytest_kerneltune.settings import Settings, environment
from pytest_kerneltune.workload import Workload


def tuning_cache(settings: Settings, warn: Callable[[str], None]) -> TuningCache:
    """The cache that the settings ask for; ``warn`` is told what goes wrong with it."""
    if not settings.autotune_cache:
        return NoCache()
    own, *below = settings.autotune_cache
    limit = settings.autotune_cache_limit << 20 or None
    top = Cache(own, warn, wait_s=settings.autotune_wait, limit_bytes=limit)
    return LayeredCache([top, *(Cache(path, warn, writable=False) for path in below)]) if below else top


def keep_code(kernel: Kernel, settings: Settings) -> None:
    """Have a kernel of a kind that has no place of its own keep what is compiled for it, unless the cache is off."""
    keep = getattr(kernel, "keep_code_in", None)
    if keep is not None and settings.autotune_cache:
        keep(code_directory(environment()))


@dataclass(frozen=True)
class BaselinePlace:
    """The place of one kernel's baseline on the device called ``device``."""

    settings: Settings
    workload: Workload
    device: str

    @cached_property
    def file(self) -> Path:
        """The file with the baselines of the kernel's module on the device."""
        folder, module = self._folder
        return baseline_path(folder, device_slug(self.device), module)

    @property
    def shown(self) -> str:
        """``file`` as reports name it: relative to the root, with slashes, where it lies below that."""
        root = self.settings.root
        return self.file.relative_to(root).as_posix() if self.file.is_relative_to(root) else str(self.file)

    def stored(self) -> Baseline | None:
        """The baseline, its config as the kernel's space spells it; as stored where the space no longer has it.

        Raises StoreError for a file that can't be read.
        """
        found, space = load_baseline(self.file, self.workload.name), self.workload.space
        if found is None or not space.contains(found.config):
            return found
        return replace(found, config=space.canonical(found.config))

    def other_devices(self) -> list[str]:
        """Other devices that have baselines of this module."""
        folder, module = self._folder
        return other_devices(folder, module, device_slug(self.device))

    @property
    def _folder(self) -> tuple[Path, str]:
        """The directory of the baselines, and what the kernel's file is called there."""
        root, given = self.settings.root, self.settings.baseline_dir
        file = root / self.workload.file
        if given is None:
            return file.parent / "__kerneltune__", file.stem
        # One directory for all: modules of one name are told apart by their folders.
        inside = file.parent.relative_to(root) if file.is_relative_to(root) else Path()
        return given, str(inside / file.stem)
