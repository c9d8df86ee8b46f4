"""Caches in layers: all are read, the first is written.

So a run that is not trusted reads what others found, and what it finds stays apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import islice

from pytest_kerneltune.cache.entry import Entry, merged
from pytest_kerneltune.cache.family import Member, by_likeness
from pytest_kerneltune.cache.flight import Flight, OnWait
from pytest_kerneltune.cache.store import MOST_READ, MOST_RELATED, Cache


class LayeredCache:
    """``layers``, the one that is written first; each of the others is only read."""

    def __init__(self, layers: Sequence[Cache]) -> None:
        self._layers = tuple(layers)
        self._own, *self._below = layers

    def lookup(self, fingerprint: str) -> Entry | None:
        """What the layers hold, as one entry."""
        return _joined(layer.lookup(fingerprint) for layer in self._layers)

    def related(self, family: str, own: Member) -> list[Entry]:
        """At most 20 entries of ``family`` but ``own``'s, most alike first; of a kernel in several layers the first."""
        homes: dict[str, tuple[Member, Cache]] = {}
        for layer in self._layers:
            for member in layer.members(family, own):
                homes.setdefault(member.fingerprint, (member, layer))
        members = by_likeness(own, [member for member, _ in homes.values()])[:MOST_READ]
        found = (homes[member.fingerprint][1].member_entry(member, family) for member in members)
        return list(islice((entry for entry in found if entry is not None), MOST_RELATED))

    @contextmanager
    def flight(self, fingerprint: str, on_wait: OnWait | None = None) -> Iterator[Flight]:
        """Our turn at tuning, by the first layer's lease; what is stored there holds the lower layers' trials too."""
        with self._own.flight(fingerprint, on_wait) as flight:
            flight.entry = _joined([flight.entry, *(layer.lookup(fingerprint) for layer in self._below)])
            yield flight


def _joined(entries: Iterable[Entry | None]) -> Entry | None:
    found = [entry for entry in entries if entry is not None]
    return reduce(merged, found) if found else None
