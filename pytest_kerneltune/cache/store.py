"""The tuning cache in a directory.

::

    DIRECTORY/ab/abcd....json                   the entry of the fingerprint abcd...
    DIRECTORY/ab/abcd....json.lock              the lease of the process that tunes it
    DIRECTORY/ab/abcd....trials-0123....jsonl   the trials so far of one search for it
    DIRECTORY/families/                         which entries are of one kernel (``family.py``)

1. Of the processes that want a fingerprint, one tunes (``flight``); the others wait for it and find its entry. Who dies
   or hangs is replaced (``disk/leases.py``); waiting has a limit.
2. A trial is on disk before the next is made, and stays there until an entry that holds it is written: a search that
   is killed leaves its trials to the next.
3. Nothing rests on there being one tuner only. Each writes a journal of its own; an entry is written from what is on
   disk and what is new; a journal is removed only as far as it was read.
4. Nothing here is fatal. A corrupt entry is set aside; a cache that cannot be written is warned about once, and tuning
   goes on without it. An entry that cannot be read, or is of a newer version, is not replaced: trials then stay in
   their journal.
5. An entry is data. Nothing in it is a path, and a config counts only where it is in the kernel's space.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from pytest_kerneltune import files
from pytest_kerneltune.cache import document, upkeep
from pytest_kerneltune.cache.document import NewerSchema
from pytest_kerneltune.cache.entry import Entry, Run, beyond, merged
from pytest_kerneltune.cache.family import FINGERPRINT, Family, Member
from pytest_kerneltune.cache.flight import Flight, OnWait
from pytest_kerneltune.cache.journal import Journal, Leftover, leftovers
from pytest_kerneltune.disk import leases
from pytest_kerneltune.disk.leases import Lease
from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.trial import Trial

LIMIT_BYTES = 1 << 30
"""What a cache may grow to, unless set otherwise."""

MOST_RELATED, MOST_READ = 20, 60  # entries; pointers to some may be out of date
_IDLE_S = 600.0  # without a trial: longer than any step of a search may take, so who is idle for as long hangs
_ATTEMPTS = 5  # at replacing an entry that others replace too
_USED_EVERY_S = 86_400.0  # how exactly it is known when an entry was last used


class Cache:
    """The tuning cache in ``directory``, made when first written to; ``warn`` receives what goes wrong."""

    def __init__(
        self,
        directory: Path,
        warn: Callable[[str], None],
        *,
        wait_s: float | None = None,
        limit_bytes: int | None = LIMIT_BYTES,
        writable: bool = True,
        lease_s: float = leases.LEASE_S,
    ) -> None:
        """``wait_s`` limits the wait for another process (None: no limit), ``limit_bytes`` the size of the directory
        (None: no limit). One that is not ``writable`` is only read. ``lease_s`` is after how many seconds a process on
        another host that gives no sign of life is taken for dead."""
        self.directory = directory
        self.writable = writable
        self._warn = warn
        self._retake_s = lease_s / 3  # for the lease of an entry that is ready to be written
        self._wait_s, self._limit_bytes, self._lease_s = wait_s, limit_bytes, lease_s
        self._warned: set[str] = set()

    def lookup(self, fingerprint: str) -> Entry | None:
        """The entry as it is now; a corrupt one is set aside, unless someone is tuning it."""
        path = self.path(fingerprint)
        with self._tolerant(fingerprint):
            try:
                entry = read_entry(path, fingerprint)
            except ValueError as error:
                if not self.writable:
                    raise StoreError(f"cache entry {path} is corrupt ({error})") from error
                # Its tuner may be about to replace it, so it is only moved under the lease.
                with self._leased(path, timeout_s=0):
                    return self._checked(path, fingerprint)
            if entry is not None and self.writable:
                _note_use(path)
            return entry
        return None

    def members(self, family: str, own: Member) -> list[Member]:
        """The other kernels of ``family``, most alike first."""
        return Family(self.directory, family).alike(own)

    def member_entry(self, member: Member, family: str) -> Entry | None:
        """The entry of ``member``, None where it cannot be read or is of another family by now."""
        with suppress(StoreError, ValueError):
            entry = read_entry(self.path(member.fingerprint), member.fingerprint)
            if entry is not None and entry.family == family:
                return entry
        return None

    def related(self, family: str, own: Member) -> list[Entry]:
        """At most 20 entries of ``family`` but ``own``'s, most alike first; what cannot be read is left out."""
        found = (self.member_entry(member, family) for member in self.members(family, own)[:MOST_READ])
        return list(islice((entry for entry in found if entry is not None), MOST_RELATED))

    @contextmanager
    def flight(self, fingerprint: str, on_wait: OnWait | None = None) -> Iterator[Flight]:
        """Our turn at tuning; without a lease, after a warning, where the directory does not allow one or who has it
        keeps it for too long."""
        path = self.path(fingerprint)
        lease: Lease | None = None
        with self._tolerant("write"):
            files.make_cache_directory(self.directory)
            try:
                lease = self._take(path, on_wait, self._wait_s, _IDLE_S)
            except leases.Busy as error:
                self._warn(
                    f"tuning cache: waited {self._wait_s:g} s for {error.owner or 'another process'}, which tunes the "
                    f"same kernel, and went on alone: end it if it hangs, or wait longer (--autotune-wait=SECONDS). "
                    f"Its lease is {path}.lock"
                )
        try:
            flight = self._boarded(path, fingerprint, lease)
            yield flight
        finally:
            if lease is not None:
                lease.release()
        if flight.has_stored:
            self.tidy()

    def path(self, fingerprint: str) -> Path:
        """Where the entry is; raises ValueError where that is no fingerprint."""
        return entry_path(self.directory, fingerprint)

    def tidy(self) -> None:
        """Keep the directory within its limit; looks at it from time to time only."""
        with self._tolerant("write"):
            if self._limit_bytes is not None and upkeep.is_due(self.directory):
                upkeep.trim(self.directory, self._limit_bytes)

    def _boarded(self, path: Path, fingerprint: str, lease: Lease | None) -> _DiskFlight:
        flight = _DiskFlight(self, path, fingerprint, lease)
        with self._tolerant(fingerprint):
            flight.board()
        return flight

    def _checked(self, path: Path, fingerprint: str) -> Entry | None:
        """The entry, for the lease's holder: a corrupt one is set aside. Raises StoreError."""
        try:
            return read_entry(path, fingerprint)
        except ValueError as error:
            aside = files.set_aside(path)
            self._warn(f"cache entry {path} is corrupt ({error}): not used, kept as {aside.name}")
            return None

    @contextmanager
    def _leased(self, path: Path, timeout_s: float) -> Iterator[None]:
        lease = self._take(path, None, timeout_s, None)
        try:
            yield
        finally:
            lease.release()

    def _take(self, path: Path, on_wait: OnWait | None, timeout_s: float | None, idle_s: float | None) -> Lease:
        files.make_directory(path.parent, like=self.directory)
        return leases.take(path, on_wait, timeout_s, self._lease_s, idle_s)

    @contextmanager
    def _tolerant(self, topic: str) -> Iterator[None]:
        """Turn a StoreError into a warning, one for each topic."""
        try:
            yield
        except StoreError as error:
            topic = "newer" if isinstance(error, NewerSchema) else topic
            if topic not in self._warned:
                self._warned.add(topic)
                self._warn(f"tuning cache: {error}; going on without it")


class _DiskFlight(Flight):
    """``_is_sealed``: what is on disk could not be read, so it is not replaced; new trials stay in the journal."""

    def __init__(self, cache: Cache, path: Path, fingerprint: str, lease: Lease | None) -> None:
        self._cache, self._path, self._fingerprint, self._lease = cache, path, fingerprint, lease
        self._journal = Journal(path, cache.directory)
        self._on_disk: Entry | None = None
        self._leftovers: list[Leftover] = []
        self._is_sealed = True
        self.has_stored = False

    def board(self) -> None:
        """Take over what is on disk: the entry, and what others left beside it. Raises StoreError."""
        try:
            self.entry = self._on_disk = self._cache._checked(self._path, self._fingerprint)
            self._is_sealed = False
        finally:
            self._leftovers = leftovers(self._path, self.entry, self._cache._tolerant)
            self.interrupted = tuple(trial for each in self._leftovers for trial in each.fresh)

    def begin(self, run: Run) -> None:
        self._journal.begin(run)

    def record(self, trial: Trial) -> None:
        if self._lease is not None:
            self._lease.renew()
        with self._cache._tolerant("write"):
            self._journal.record(trial)

    def store(self, entry: Entry) -> None:
        if entry.fingerprint != self._fingerprint:
            raise ValueError(f"an entry of {entry.fingerprint} stored in the flight of {self._fingerprint}")
        if self._is_sealed:
            return
        with self._cache._tolerant("write"):
            if self._lease is not None and self._lease.is_held():
                self._write(entry)
            else:  # another may tune by now: its entry is not lost, and our trials stay in the journal for who is next
                timeout_s = 0.0 if self._lease is None else self._cache._retake_s
                with suppress(leases.Busy), self._cache._leased(self._path, timeout_s):
                    self._write(entry)

    def _write(self, entry: Entry) -> None:
        """Replace the entry on disk by all that is known; for the lease's holder. Raises StoreError.

        Who is stopped during this may have an heir that writes too: then it is done again with what that wrote.
        """
        head = next(filter(None, (self._written(entry) for _ in range(_ATTEMPTS))), None)
        if head is None:
            raise StoreError(f"cannot write {self._path}: another process replaces it all the time")
        self.entry = self._on_disk = head
        self.has_stored = True
        for leftover in self._leftovers:
            leftover.remove()
        files.remove(self._journal.path)
        if head.family:
            Family(self._cache.directory, head.family).add(Member.of(head))

    def _written(self, entry: Entry) -> Entry | None:
        """The entry that is on disk now, None where another has written one since we looked."""
        seen = _stamp(self._path)
        on_disk = self._cache._checked(self._path, self._fingerprint)
        others = [known for known in (self.entry, on_disk) if known is not None]
        runs = [run for known in others for run in known.runs]
        if self._journal.is_begun and entry.runs and not entry.last.token:
            entry = replace(entry, runs=(*entry.runs[:-1], replace(entry.last, token=self._journal.token)))
        head = entry if on_disk in (None, self._on_disk) else merged(on_disk, entry)
        left = [each.run for each in self._leftovers if each.fresh and beyond(each.fresh, entry.trials)]
        head = head.with_runs([*runs, *left, *entry.runs])
        draft = self._path.with_name(f".kerneltune-{self._journal.token}.tmp")
        files.write_bytes(draft, document.content_of(self._path, head), like=self._cache.directory)
        try:
            if _stamp(self._path) != seen:
                return None
            draft.replace(self._path)
        except OSError as error:
            raise StoreError(f"cannot write {self._path}: {error.strerror}") from error
        return head


def entry_path(directory: Path, fingerprint: str) -> Path:
    """Where the cache in ``directory`` keeps the entry; raises ValueError where that is no fingerprint."""
    if not FINGERPRINT.fullmatch(fingerprint):
        raise ValueError(f"{fingerprint!r} is not a fingerprint")
    return directory / fingerprint[:2] / f"{fingerprint}.json"


def read_entry(path: Path, fingerprint: str) -> Entry | None:
    """The entry in ``path``, None where there is none; raises ValueError where corrupt, else StoreError."""
    content = files.read_bytes(path)
    if content is None:
        return None
    entry = document.parsed(content)
    if entry.fingerprint != fingerprint:
        raise ValueError(f"it is of another kernel, {entry.fingerprint!r:.80}")
    return entry


def _stamp(path: Path) -> tuple[int, ...]:
    """What differs between two files that took the name one after the other; empty where there is none."""
    with suppress(OSError):
        status = path.lstat()
        return status.st_ino, status.st_size, status.st_mtime_ns
    return ()


def _note_use(path: Path) -> None:
    """Let the entry be among the last to go when the cache is full."""
    with suppress(OSError):
        if abs(time.time() - path.stat().st_mtime) > _USED_EVERY_S:
            os.utime(path)
