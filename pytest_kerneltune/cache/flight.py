"""What tuning asks of a cache, and the cache that keeps nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeAlias

from pytest_kerneltune.cache.entry import Entry, Run
from pytest_kerneltune.cache.family import Member
from pytest_kerneltune.disk.leases import Owner
from pytest_kerneltune.trial import Trial

OnWait: TypeAlias = Callable[[Owner | None], None]
"""Told who is tuning what we wait for, None where that is unknown."""


class Flight:
    """One process's turn at tuning a fingerprint. This one keeps nothing; the cache's writes to disk.

    ``entry`` is what the cache holds now that it is our turn; ``interrupted`` are trials beyond the entry's, left by
    searches that did not come to their end.
    """

    entry: Entry | None = None
    interrupted: tuple[Trial, ...] = ()

    def begin(self, run: Run) -> None:
        """Say what search the trials to be recorded are of; ``run`` holds no trials."""

    def record(self, trial: Trial) -> None:
        """Keep a finished trial, so that it survives this process."""

    def store(self, entry: Entry) -> None:
        """Add the runs of ``entry`` to the fingerprint's, and make its winner the winner; the last of them is of the
        trials that were recorded."""


class TuningCache(Protocol):
    """What tuning asks of a cache."""

    def lookup(self, fingerprint: str) -> Entry | None:
        """The entry as it is now, without waiting for who may be tuning."""

    def related(self, family: str, own: Member) -> Sequence[Entry]:
        """Entries of the same kernel at other inputs, on other devices or before an edit, most alike first; not
        ``own``'s."""

    def flight(self, fingerprint: str, on_wait: OnWait | None = None) -> AbstractContextManager[Flight]:
        """Our turn at tuning; waits for who is tuning the same, after one call of ``on_wait``."""


class NoCache:
    """Remembers nothing."""

    def lookup(self, fingerprint: str) -> None:
        return None

    def related(self, family: str, own: Member) -> Sequence[Entry]:
        return ()

    @contextmanager
    def flight(self, fingerprint: str, on_wait: OnWait | None = None) -> Iterator[Flight]:
        yield Flight()
