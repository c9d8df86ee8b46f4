"""Entries from elsewhere put into a cache: nothing that it knows is lost, and what it knows already changes nothing.

1. An entry is read, joined and written under its lease, whole or not at all: who is killed half-way does it again.
2. Where both know a run, the longer one stays, with the trials that only the other has.
3. Journals that searches left behind are copied, as far as they hold what no entry does; their next search finds them.
4. The other cache is only read.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from pytest_kerneltune import files
from pytest_kerneltune.cache import document
from pytest_kerneltune.cache.entry import Entry, Run, beyond, merged
from pytest_kerneltune.cache.family import Family, Member
from pytest_kerneltune.cache.journal import Leftover, leftovers
from pytest_kerneltune.cache.store import entry_path, read_entry
from pytest_kerneltune.cache.upkeep import Item
from pytest_kerneltune.disk import leases
from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.trial import Trial


class Change(StrEnum):
    """What became of an entry or journal from elsewhere."""

    ADDED = "added"
    EXTENDED = "extended"
    UNCHANGED = "unchanged"
    REFUSED = "refused"


@dataclass
class Joining:
    """Puts entries into the cache in ``directory``, which must exist.

    ``on_problem`` is told what could not be put there, ``on_note`` what else happens on the way. ``wait_s`` limits the
    wait for a process that tunes the same kernel, in seconds each time. ``entries`` and ``journals`` count what became
    of them.
    """

    directory: Path
    on_problem: Callable[[str], None]
    on_note: Callable[[str], None]
    wait_s: float
    entries: Counter[Change] = field(default_factory=Counter)
    journals: Counter[Change] = field(default_factory=Counter)

    def add(self, entry: Entry) -> None:
        """Join ``entry`` with what the cache knows of its kernel; what prevents that is said and counted."""
        try:
            change = self._joined(entry)
        except StoreError as error:
            self.on_problem(f"{entry.kernel}: {error}")
            change = Change.REFUSED
        self.entries[change] += 1

    def add_item(self, item: Item) -> None:
        """Add what another cache's ``item`` holds: the entry, and journals as far as no entry has their trials."""
        try:
            entry = None if item.entry is None else read_entry(item.entry, item.fingerprint)
        except (ValueError, StoreError) as error:
            self.on_problem(f"{item.entry}: {error}")
            self.entries[Change.REFUSED] += 1
            entry = None
        if entry is not None:
            self.add(entry)
        if item.journals:
            self._add_journals(item)

    def _joined(self, entry: Entry) -> Change:
        path = entry_path(self.directory, entry.fingerprint)
        if path.exists() and _is_known(path, entry):
            return Change.UNCHANGED
        files.make_directory(path.parent, like=self.directory)
        with leases.take(path, lambda owner: self._say_waiting(entry, owner), self.wait_s) as lease:
            known = self._known(path, entry.fingerprint)
            whole = entry.with_runs(entry.runs) if known is None else united(known, entry)
            if whole == known:
                return Change.UNCHANGED
            if lease.is_held():
                self._write(path, whole)
                return Change.ADDED if known is None else Change.EXTENDED
        return self._joined(entry)  # who was stopped for long has an heir, and what that wrote is not to be lost

    def _say_waiting(self, entry: Entry, owner: leases.Owner | None) -> None:
        if self.wait_s:
            self.on_note(f"{entry.kernel}: waiting for {owner or 'another process'}, which tunes it")

    def _known(self, path: Path, fingerprint: str) -> Entry | None:
        """The cache's entry, for the lease's holder; a corrupt one is set aside, as tuning would. Raises StoreError."""
        try:
            return read_entry(path, fingerprint)
        except ValueError as error:
            self.on_note(f"{path} was corrupt ({error}): kept as {files.set_aside(path).name}")
            return None

    def _write(self, path: Path, entry: Entry) -> None:
        """The pointer first: without its entry it does no harm, and who is killed here does both again."""
        content = document.content_of(path, entry)
        if entry.family:
            Family(self.directory, entry.family).add(Member.of(entry))
        files.write_bytes(path, content, like=self.directory)

    def _add_journals(self, item: Item) -> None:
        path = entry_path(self.directory, item.fingerprint)
        with self._tolerant(""):
            ours = read_entry(path, item.fingerprint)
            for leftover in leftovers(item.path, ours, self._tolerant):
                if leftover.path in item.journals:
                    with self._tolerant(""):
                        self.journals[self._copied(path, leftover)] += 1

    @contextmanager
    def _tolerant(self, _: str) -> Iterator[None]:
        """What a journal cannot be read or written for is said and counted."""
        try:
            yield
        except (ValueError, StoreError) as error:
            self.on_problem(str(error))
            self.journals[Change.REFUSED] += 1

    def _copied(self, path: Path, leftover: Leftover) -> Change:
        """Copy a journal beside our entry ``path``; raises StoreError."""
        content = files.read_bytes(leftover.path)
        if not leftover.fresh or content is None:
            return Change.UNCHANGED
        if len(content) > files.MAX_BYTES:
            raise StoreError(f"{leftover.path.name} is larger than {files.MAX_BYTES >> 20} MiB")
        digest = hashlib.sha256(content).hexdigest()[:16]
        for token in filter(None, (leftover.run.token, digest)):
            target = path.with_suffix(f".trials-{token}.jsonl")
            ours = files.read_bytes(target)
            if ours is not None and ours.startswith(content):
                return Change.UNCHANGED
            if ours is None or content.startswith(ours):
                files.write_bytes(target, content, like=self.directory)
                return Change.ADDED if ours is None else Change.EXTENDED
        return Change.UNCHANGED


def _is_known(path: Path, entry: Entry) -> bool:
    try:
        known = read_entry(path, entry.fingerprint)
    except (ValueError, StoreError):  # looked at again under the lease
        return False
    return known is not None and united(known, entry) == known


def united(known: Entry, other: Entry) -> Entry:
    """``known`` with what only ``other`` knows; equal to ``known`` where that is nothing.

    The winner is that of the entry with the larger search, of equals that of ``known``. Raises ValueError where they
    are of two kernels.
    """
    runs: list[Run] = list(known.runs)
    added: list[Run] = []
    for run in other.runs:
        place = _place(run, runs)
        if place is not None:
            runs[place] = _longer(runs[place], run)
        else:
            added += _unknown(run, known)
    if added:
        runs = sorted([*runs, *added], key=lambda run: run.created)
    return merged(other, known).with_runs(runs)


def _place(run: Run, runs: Sequence[Run]) -> int | None:
    """Which of ``runs`` is the same, perhaps with other trials."""
    if run in runs:
        return runs.index(run)
    bare = replace(run, trials=())
    for place, each in enumerate(runs):
        if run.token == each.token and (run.token or (run.created and replace(each, trials=()) == bare)):
            return place
    return None


def _longer(one: Run, other: Run) -> Run:
    """The run with more trials, of equals the first, and those that only the other has."""
    longer, shorter = (other, one) if len(other.trials) > len(one.trials) else (one, other)
    known = set(map(_attempt, longer.trials))
    rest = tuple(trial for trial in shorter.trials if _attempt(trial) not in known)
    return replace(longer, trials=(*longer.trials, *rest)) if rest else longer


def _attempt(trial: Trial) -> str:
    """Which attempt of a run it is: its latency may have been corrected since."""
    return json.dumps([dict(trial.config), trial.at_s], sort_keys=True)


def _unknown(run: Run, known: Entry) -> list[Run]:
    """``run`` as far as ``known`` lacks it, although it has no run of that name: runs without a name are known by their
    trials alone, and so are those older than all, since an entry joins its oldest into one."""
    rest = beyond(run.trials, known.trials)
    if not run.trials or len(rest) == len(run.trials):
        return [run]
    if not run.token:
        return [replace(run, trials=rest)] if rest else []
    return [] if not rest and run.created <= known.runs[0].created else [run]
