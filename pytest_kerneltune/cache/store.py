"""The tuning cache: what a kernel's search found, shared by processes and machines.

::

    DIRECTORY/ab/abcd....json           the entry of the fingerprint abcd...
    DIRECTORY/ab/abcd....json.lock      held by the process that tunes it
    DIRECTORY/ab/abcd....trials.jsonl   its trials so far, one a line
    DIRECTORY/families/                 which entries are of one kernel (``family.py``)

1. Of the processes that want a fingerprint, one tunes (``flight``); the others wait for it and find its entry.
2. A trial is on disk before the next is made, and stays there until an entry that holds it is written: a search that
   is killed leaves its trials to the next.
3. Nothing here is fatal. A corrupt entry is set aside; a cache that cannot be written is warned about once, and tuning
   goes on without it. An entry that cannot be read, or is of a newer version, is not replaced: trials then stay in
   their journal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from types import NoneType
from typing import Any, Protocol

from pytest_kerneltune import files
from pytest_kerneltune.cache.family import FINGERPRINT, Family, Member
from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.search import Effort
from pytest_kerneltune.trial import Budget, Config, Trial

SCHEMA = 1

_MOST_RELATED = 20
_RANK = {Effort.NONE: 0, Effort.QUICK: 1, Effort.FULL: 2}


class NewerSchema(StoreError):
    """The entry was written by a newer version of this package."""


@dataclass(frozen=True)
class Entry:
    """What is known about one kernel at fixed inputs on one device.

    ``trials`` are all attempts, in order; ``winner`` is None where all failed. ``finished`` says that the search ended
    by itself: no budget cut it short. ``budget_seconds`` and ``budget_configs`` are the budget it had, None for no
    limit. ``created`` is an ISO 8601 date; ``origin`` says what made it (host, versions, device). ``family`` and
    ``inputs`` (one line each) are what other kernels are related by; entries of older versions have neither.
    """

    fingerprint: str
    kernel: str
    trials: tuple[Trial, ...]
    winner: Config | None
    algorithm: str
    effort: Effort
    seed: int
    finished: bool
    created: str
    budget_seconds: float | None = None
    budget_configs: int | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    family: str = ""
    inputs: tuple[str, ...] = ()
    schema: int = SCHEMA

    def satisfies(self, effort: Effort, budget: Budget) -> bool:
        """Whether a search at ``effort`` within ``budget`` need not be made, because this one was no smaller.

        An entry without a winner never satisfies: what failed then may work now. One that reached a latency which is
        good enough does, however it came by it.
        """
        if self.winner is None:
            return False
        if budget.target_ms is not None and self._winner_ms <= budget.target_ms:
            return True
        return _RANK[self.effort] >= _RANK[effort] and (self.finished or self._had_budget_of(budget))

    @property
    def _winner_ms(self) -> float:
        """The latency of the winner when it was tried; inf where there is none."""
        return min((t.latency_ms for t in self.trials if t.ok and t.config == self.winner), default=math.inf)

    def _had_budget_of(self, budget: Budget) -> bool:
        had = ((self.budget_seconds, budget.seconds), (self.budget_configs, budget.configs))
        was_limited = any(own is not None for own, _ in had)
        return was_limited and all(own is None or (wanted is not None and wanted <= own) for own, wanted in had)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; :meth:`from_json` is the inverse."""
        return {
            **vars(self),
            "trials": [trial.to_json() for trial in self.trials],
            "winner": None if self.winner is None else dict(self.winner),
            "effort": str(self.effort),
            "origin": dict(self.origin),
            "inputs": list(self.inputs),
        }

    @classmethod
    def from_json(cls, data: Any) -> Entry:
        """The entry that ``data`` describes; raises ValueError that names what is malformed, or NewerSchema."""
        if not isinstance(data, dict):
            raise ValueError("it is not a JSON object")
        schema = _typed(data, "schema", int)
        if schema > SCHEMA:
            raise NewerSchema(f"the entry of {data.get('fingerprint')!r:.80} is of a newer pytest-kerneltune")
        winner = _typed(data, "winner", dict, NoneType)
        return cls(
            fingerprint=_typed(data, "fingerprint", str),
            kernel=_typed(data, "kernel", str),
            trials=tuple(_trial(each) for each in _typed(data, "trials", list)),
            winner=None if winner is None else _config(winner),
            algorithm=_typed(data, "algorithm", str),
            effort=Effort(_typed(data, "effort", str)),
            seed=_typed(data, "seed", int),
            finished=_typed(data, "finished", bool),
            created=_date(_typed(data, "created", str)),
            budget_seconds=_limit(data, "budget_seconds", int, float),
            budget_configs=_limit(data, "budget_configs", int),
            origin=_strings(_typed(data, "origin", dict)),
            family=_typed({"family": "", **data}, "family", str),
            inputs=_lines(_typed({"inputs": [], **data}, "inputs", list)),
            schema=schema,
        )


def _typed(data: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """``data[name]``, which must be of exactly one of ``kinds`` (True is no int)."""
    value = data.get(name)
    if type(value) not in kinds or (value is None and name not in data):
        raise ValueError(f"{name!r} is {value!r:.80}" if name in data else f"{name!r} is missing")
    return value


def _limit(data: Mapping[str, Any], name: str, *kinds: type) -> Any:
    value = _typed(data, name, *kinds, NoneType)
    if value is not None and not 0 <= value < math.inf:
        raise ValueError(f"{name!r} is {value!r}")
    return value


def _date(text: str) -> str:
    datetime.fromisoformat(text)
    return text


def _strings(data: dict[str, Any]) -> dict[str, str]:
    if not all(isinstance(value, str) for value in data.values()):
        raise ValueError("'origin' holds something other than strings")
    return data


def _lines(data: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(line, str) for line in data):
        raise ValueError("'inputs' holds something other than strings")
    return tuple(data)


def _config(data: Mapping[str, Any]) -> Config:
    try:
        return {name: _as_value(value) for name, value in data.items()}
    except RecursionError:
        raise ValueError("a config is nested too deeply") from None


def _as_value(value: Any) -> Any:
    """A parameter's value as configs have it: JSON turned its tuples into lists."""
    return tuple(map(_as_value, value)) if isinstance(value, list) else value


def _trial(data: Any) -> Trial:
    try:
        trial = Trial.from_json(data)
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"a trial is malformed: {error!r}") from error
    if not trial.latency_ms >= 0:
        raise ValueError(f"a trial's latency is {trial.latency_ms}")
    return replace(trial, config=_config(trial.config))


class Flight:
    """One process's turn at tuning a fingerprint. This one keeps nothing; the cache's writes to disk.

    ``entry`` is what the cache holds now that it is our turn; ``interrupted`` are trials beyond the entry's, left by
    searches that did not come to their end.
    """

    entry: Entry | None = None
    interrupted: tuple[Trial, ...] = ()

    def record(self, trial: Trial) -> None:
        """Keep a finished trial, so that it survives this process."""

    def store(self, entry: Entry) -> None:
        """Replace the fingerprint's entry; ``entry`` holds every trial: interrupted and recorded ones too."""


class TuningCache(Protocol):
    """What tuning asks of a cache."""

    def lookup(self, fingerprint: str) -> Entry | None:
        """The entry as it is now, without waiting for who may be tuning."""

    def related(self, family: str, own: Member) -> Sequence[Entry]:
        """Entries of the same kernel at other inputs or before an edit, most alike first; not ``own``'s."""

    def flight(self, fingerprint: str, on_wait: Callable[[], None] | None = None) -> AbstractContextManager[Flight]:
        """Our turn at tuning; waits for who is tuning the same, after one call of ``on_wait``."""


class NoCache:
    """Remembers nothing."""

    def lookup(self, fingerprint: str) -> None:
        return None

    def related(self, family: str, own: Member) -> Sequence[Entry]:
        return ()

    @contextmanager
    def flight(self, fingerprint: str, on_wait: Callable[[], None] | None = None) -> Iterator[Flight]:
        yield Flight()


class Cache:
    """The tuning cache in ``directory``, made when first written to; ``warn`` receives what goes wrong."""

    def __init__(self, directory: Path, warn: Callable[[str], None]) -> None:
        self.directory = directory
        self._warn = warn
        self._warned: set[str] = set()

    def lookup(self, fingerprint: str) -> Entry | None:
        """The entry as it is now; a corrupt one is set aside, unless someone is tuning it."""
        path = self._path(fingerprint)
        with self._tolerant(fingerprint):
            try:
                return _read(path, fingerprint)
            except ValueError:
                # Its tuner may be about to replace it, so it is only moved under the lock.
                with files.locked(path, timeout_s=0):
                    return self._checked(path, fingerprint)
        return None

    def related(self, family: str, own: Member) -> Sequence[Entry]:
        """At most 20 entries of ``family`` but ``own``'s, most alike first; what cannot be read is left out."""
        found = []
        for member in Family(self.directory, family).alike(own)[:_MOST_RELATED]:
            with suppress(StoreError, ValueError):
                entry = _read(self._path(member.fingerprint), member.fingerprint)
                if entry is not None and entry.family == family:
                    found.append(entry)
        return found

    @contextmanager
    def flight(self, fingerprint: str, on_wait: Callable[[], None] | None = None) -> Iterator[Flight]:
        """Our turn at tuning; without a lock, after a warning, where the directory does not allow one."""
        path = self._path(fingerprint)
        with ExitStack() as lock:
            with self._tolerant("write"):
                files.make_cache_directory(self.directory)
                lock.enter_context(files.locked(path, on_wait))
            yield self._boarded(path, fingerprint)

    def _boarded(self, path: Path, fingerprint: str) -> Flight:
        flight = _DiskFlight(path, fingerprint, self._tolerant)
        with self._tolerant(fingerprint):
            flight.interrupted = flight.left_over()
            flight.entry = self._checked(path, fingerprint)
            flight.interrupted = _beyond(flight.entry, flight.interrupted)
            flight.is_sealed = False
        return flight

    def _checked(self, path: Path, fingerprint: str) -> Entry | None:
        """The entry, for the lock's holder: a corrupt one is set aside. Raises StoreError."""
        try:
            return _read(path, fingerprint)
        except ValueError as error:
            aside = files.set_aside(path)
            self._warn(f"cache entry {path} is corrupt ({error}): not used, kept as {aside.name}")
            return None

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

    def _path(self, fingerprint: str) -> Path:
        if not FINGERPRINT.fullmatch(fingerprint):
            raise ValueError(f"{fingerprint!r} is not a fingerprint")
        return self.directory / fingerprint[:2] / f"{fingerprint}.json"


class _DiskFlight(Flight):
    """``is_sealed``: what is on disk could not be read, so it is not replaced; new trials stay in the journal."""

    def __init__(self, path: Path, fingerprint: str, tolerant: Callable[[str], AbstractContextManager[None]]) -> None:
        self.is_sealed = True
        self._path = path
        self._journal = path.with_suffix(".trials.jsonl")
        self._fingerprint = fingerprint
        self._tolerant = tolerant

    def left_over(self) -> tuple[Trial, ...]:
        """The journal's trials; what a dying writer left unfinished is skipped."""
        found = []
        for line in files.read_lines(self._journal):
            with suppress(ValueError):
                found.append(_trial(files.parse_json(line)))
        return tuple(found)

    def record(self, trial: Trial) -> None:
        with self._tolerant("write"):
            files.append_json(self._journal, trial.to_json())

    def store(self, entry: Entry) -> None:
        if entry.fingerprint != self._fingerprint:
            raise ValueError(f"an entry of {entry.fingerprint} stored in the flight of {self._fingerprint}")
        if self.is_sealed:
            return
        with self._tolerant("write"):
            files.write_json(self._path, entry.to_json())
            files.remove(self._journal)
            if entry.family:
                member = Member(entry.fingerprint, entry.kernel, entry.inputs, entry.created)
                Family(self._path.parents[1], entry.family).add(member)


def _read(path: Path, fingerprint: str) -> Entry | None:
    """The entry in ``path``, None where there is none; raises ValueError where corrupt, else StoreError."""
    content = files.read_bytes(path)
    if content is None:
        return None
    entry = Entry.from_json(files.parse_json(content))
    if entry.fingerprint != fingerprint:
        raise ValueError(f"it is of another kernel, {entry.fingerprint!r:.80}")
    return entry


def _beyond(entry: Entry | None, trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
    """The trials that ``entry`` lacks: a process may die between writing the entry and removing the journal."""
    known = {_identity(trial) for trial in entry.trials} if entry else set()
    return tuple(trial for trial in trials if _identity(trial) not in known)


def _identity(trial: Trial) -> str:
    return json.dumps(trial.to_json(), sort_keys=True)
