"""Journals: the trials of one search, on disk the moment they are known, until an entry holds them.

Each search has a journal of its own, so that what one writes harms no other's, whoever holds the lease. The first line
says what search it is, each other one is a trial; journals of older versions have no first line.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_kerneltune import files
from pytest_kerneltune.cache.document import journal_trials, run_from_json, run_to_json
from pytest_kerneltune.cache.entry import UNKNOWN_RUN, Entry, Run, beyond
from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.trial import Trial

_TOKEN = re.compile("[0-9a-f]{16}")


class Journal:
    """The journal that one search writes, beside the entry ``path``; made with the first trial."""

    def __init__(self, path: Path, root: Path) -> None:
        """``root`` is the directory of the cache."""
        self.token = secrets.token_hex(8)
        self.path = path.with_suffix(f".trials-{self.token}.jsonl")
        self._root = root
        self._run = UNKNOWN_RUN
        self._recorded: list[Trial] = []
        self.is_begun = False

    def begin(self, run: Run) -> None:
        """Say what search the trials are of."""
        self._run = run

    def record(self, trial: Trial) -> None:
        """Append ``trial``; raises StoreError, and then there is no trace of it.

        Who took this process for dead may have put the trials so far into an entry and removed the journal. It is then
        made again with all of them: one that is shorter than what the entry holds of its run would say nothing new.
        """
        if not (self.is_begun and self._is_there()):
            first = run_to_json(replace(self._run, token=self.token))
            for line in ({"run": first}, *(known.to_json() for known in self._recorded)):
                files.append_json(self.path, line, like=self._root)
            self.is_begun = True
        files.append_json(self.path, trial.to_json(), like=self._root)
        self._recorded.append(trial)

    def _is_there(self) -> bool:
        with suppress(OSError):
            return bool(os.lstat(self.path))
        return False


@dataclass(frozen=True)
class Leftover:
    """A journal that a search left behind: its trials as a run, of which ``fresh`` are in no entry; ``size`` in bytes
    is what was read of it. One of which nothing ``is_understood`` is somebody else's."""

    path: Path
    size: int
    run: Run
    fresh: tuple[Trial, ...]
    is_understood: bool = True

    def remove(self) -> None:
        """Delete the journal, unless somebody wrote to it since it was read, or it is none. Raises StoreError."""
        if not self.is_understood:
            return
        with suppress(FileNotFoundError):
            if os.lstat(self.path).st_size == self.size:
                files.remove(self.path)


def leftovers(
    path: Path, entry: Entry | None, tolerant: Callable[[str], AbstractContextManager[None]]
) -> list[Leftover]:
    """The journals beside the entry ``path``, oldest first; each is read in the context that ``tolerant`` makes for it,
    which gets a StoreError where that cannot be done."""
    found = []
    with tolerant(path.stem):
        for journal in journals(path):
            with tolerant(journal.name):
                found.append(_leftover(journal, entry))
    return found


def journals(path: Path) -> list[Path]:
    """The paths of the journals beside the entry ``path``, oldest first; raises StoreError."""
    prefix, found = f"{path.stem}.trials", []
    try:
        with os.scandir(path.parent) as known:
            for item in known:
                if item.name.startswith(prefix) and item.name.endswith(".jsonl"):
                    with suppress(FileNotFoundError):  # removed meanwhile
                        found.append((item.stat(follow_symlinks=False).st_mtime_ns, item.path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read {path.parent}: {error.strerror}") from error
    return [Path(each) for _, each in sorted(found)]


def _leftover(path: Path, entry: Entry | None) -> Leftover:
    lines = files.read_lines(path)
    token = path.name.partition(".trials")[2].removesuffix(".jsonl").removeprefix("-")
    run = replace(_first(lines), trials=tuple(journal_trials(lines)), token=token if _TOKEN.fullmatch(token) else "")
    # What was cut off within its first line may be ours; whole lines of which none is a trial are not.
    is_understood = bool(run.trials or run.created) or not any(line.endswith(b"\n") for line in lines)
    return Leftover(path, sum(map(len, lines)), run, _fresh(run, entry), is_understood)


def _first(lines: Sequence[bytes]) -> Run:
    with suppress(ValueError, KeyError, TypeError, IndexError):
        return run_from_json(files.parse_json(lines[0])["run"])
    return UNKNOWN_RUN


def _fresh(run: Run, entry: Entry | None) -> tuple[Trial, ...]:
    """The run's trials that ``entry`` lacks: a process may die between writing an entry and removing its journal."""
    known = next((each for each in entry.runs if run.token and each.token == run.token), None) if entry else None
    if known is None:
        return run.trials if entry is None else beyond(run.trials, entry.trials)
    # What an entry holds of a run is the search's last word on its latencies, so numbers tell more than they.
    return () if len(known.trials) >= len(run.trials) else beyond(run.trials, known.trials)
