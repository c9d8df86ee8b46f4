"""Files of a store, by when they were last used: which of them go when there are too many."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pytest_kerneltune.disk import regular


def touch(path: Path) -> None:
    """Note when a file was last used, more precisely than a file system does; where that fails, it is not noted."""
    now = time.time_ns()
    with suppress(OSError):
        os.utime(path, ns=(now, now))


def surplus(paths: Iterable[Path], limit: int) -> list[Path]:
    """Those of the regular files ``paths`` that are to go so that ``limit`` bytes are left: the longest unused ones."""
    known = []
    for path in paths:
        with suppress(OSError):
            state = path.lstat()
            if stat.S_ISREG(state.st_mode):
                known.append((state.st_mtime_ns, state.st_size, path))
    excess = sum(size for _, size, _ in known) - limit
    chosen = []
    for _, size, path in sorted(known):
        if excess <= 0:
            break
        chosen.append(path)
        excess -= size
    return chosen


def remove_stale(folder: Path) -> None:
    """Remove from ``folder`` what writers that were killed have left there; what cannot be removed stays."""
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                if regular.is_stale_temporary(path):
                    path.unlink()
