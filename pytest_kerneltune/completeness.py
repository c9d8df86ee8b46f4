"""Which test files a run covered completely. What such a file's tests did not measure is of no kernel any more."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

SHARED = "conftest.py"
"""Name of a file whose kernels are used by the test files of its directory and below."""


class Coverage:
    """What was collected and what of it passed. Files are relative to the root directory, with slashes, as in test ids.

    ``left_out`` holds the ids of tests that were deselected.
    """

    def __init__(self) -> None:
        self.left_out: list[str] = []
        self._tests: Mapping[str, int] = {}
        self._partial: set[str] = set()
        self._directories: list[str] = []
        self._passed: set[str] = set()
        self._failed: set[str] = set()

    def collected(
        self, tests: Iterable[str], arguments: Iterable[str], root: Path, *, is_whole: bool, ignores: bool
    ) -> None:
        """Note the ids of the collected ``tests`` and the ``arguments`` that named them, absolute paths and test ids.

        ``is_whole`` is False where files may have been left out without a word, ``ignores`` says whether some were.
        """
        given = [argument.partition("::") for argument in arguments]
        named = [_relative(path, root) for path, colons, _ in given if colons]
        self._tests = Counter(map(file_of, dict.fromkeys(tests))) if is_whole else {}
        self._partial = {*named, *map(file_of, self.left_out)}
        self._directories = [] if ignores else [_relative(path, root) for path, colons, _ in given if not colons]

    def to_text(self) -> str:
        """What was collected, for :meth:`read` in another process."""
        return json.dumps([self._tests, sorted(self._partial), self._directories])

    def read(self, text: str) -> None:
        """Take what an xdist worker collected for what this run did."""
        tests, partial, self._directories = json.loads(text)
        self._tests, self._partial = tests, set(partial)

    def reported(self, test: str, phase: str | None, outcome: str) -> None:
        """Note a report on a test; one that is to be repeated ("rerun") says nothing yet."""
        if outcome in ("failed", "skipped"):
            self._failed.add(test)
        elif outcome == "passed" and phase == "call":
            self._passed.add(test)

    def complete(self) -> frozenset[str]:
        """The files all of whose tests were collected and passed, and each ``conftest.py`` of a directory that was
        collected with all that is in it, where that holds for all its files.

        A test that was skipped or failed may not have come to its kernels, so its file does not count.
        """
        counts = Counter(map(file_of, self._passed - self._failed))
        whole = {f for f, number in self._tests.items() if counts[f] == number and f not in self._partial}
        known = {*self._tests, *self._partial}
        parents = {parent for file in whole for parent in PurePosixPath(file).parents}
        shared = {
            str(parent / SHARED)
            for parent in parents
            if any(parent.is_relative_to(directory) for directory in self._directories)
            and all(file in whole for file in known if PurePosixPath(file).is_relative_to(parent))
        }
        return frozenset(whole | shared)


def file_of(test: str) -> str:
    """The file of a test id."""
    return test.partition("::")[0]


def _relative(path: str, root: Path) -> str:
    """``path`` as test ids name it; normalised without following symbolic links, as pytest does."""
    return Path(os.path.relpath(path, root)).as_posix()
