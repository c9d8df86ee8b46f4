"""Leases: which process is at work on a file, told by a marker beside it that its holder keeps fresh.

1. The marker ``NAME.lock`` comes to be by exclusive creation and names its holder: process, host, start. That works on
   every file system whose directories all hosts see alike, those without locks of the operating system among them.
2. A thread of the holder touches the marker every third of the lease. Who waits takes it over at once when its holder
   is a process of this host that has ended, and otherwise when it stayed as it was for the length of the lease by the
   waiter's own monotonic clock: clocks that differ or jump do no harm.
3. So a holder that was stopped for long finds another in its place. A lease says who should be at work, and nothing may
   rely on it for more: ``is_held`` tells.

filelock does this, with the help of ``markers.py``.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pytest_kerneltune.disk.markers import Watch, this_host
from pytest_kerneltune.errors import StoreError

if TYPE_CHECKING:
    from filelock import SoftFileLease

LEASE_S = 30.0
"""A lease without a sign of life for as many seconds is another's to take."""

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.2
_MODE = 0o644  # whoever may use the directory may know who holds a lease
_NAMESPACE = re.compile(r"\?pidns-.*")


@dataclass(frozen=True)
class Owner:
    """Who holds a lease; ``here`` says that ``pid`` is one of this host, and of our PID namespace."""

    pid: int
    host: str
    here: bool

    def __str__(self) -> str:
        return f"process {self.pid}" if self.here else f"process {self.pid} on {self.host}"


class Busy(StoreError):
    """Another holds the lease; ``owner`` is None where its marker does not say who."""

    def __init__(self, message: str, owner: Owner | None) -> None:
        super().__init__(message)
        self.owner = owner


class Lease:
    """A lease that :func:`take` got; as a context manager it is released at the end.

    A forked child has no part in it: there nothing is held, and ``release`` does nothing.
    """

    def __init__(self, lock: SoftFileLease, idle_s: float | None) -> None:
        self._lock = lock
        self._token = lock.token
        self._process = os.getpid()
        self._renewed = time.monotonic()
        self._is_over = threading.Event()
        self._watch: threading.Thread | None = None
        if idle_s is not None:
            self._watch = threading.Thread(
                target=self._end_if_idle, args=(idle_s,), name="kerneltune-idle", daemon=True
            )
            self._watch.start()

    def is_held(self) -> bool:
        """Whether the marker on disk is ours, asked now."""
        if os.getpid() != self._process or self._lock.token != self._token:
            return False
        if self._is_ours():
            return True
        time.sleep(_FIRST_PAUSE_S)  # one who took it for expired may be putting it back
        return self._is_ours()

    def renew(self) -> None:
        """Say that there was progress: ``idle_s`` without it end the lease."""
        self._renewed = time.monotonic()

    def release(self) -> None:
        """Let others have it. May be called twice, from any thread, and when the lease is lost; never raises."""
        if os.getpid() != self._process:
            return
        self._is_over.set()
        with suppress(Exception):
            self._lock.release()
        if self._watch is not None and self._watch is not threading.current_thread():
            self._watch.join()

    def _is_ours(self) -> bool:
        owner = self._lock.owner
        return owner is not None and owner.token == self._token

    def _end_if_idle(self, idle_s: float) -> None:
        while (left_s := self._renewed + idle_s - time.monotonic()) > 0:
            if self._is_over.wait(left_s):
                return
        self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def take(
    path: Path,
    on_wait: Callable[[Owner | None], None] | None = None,
    timeout_s: float | None = None,
    lease_s: float = LEASE_S,
    idle_s: float | None = None,
) -> Lease:
    """The lease of the file ``path``, which need not exist, in a directory that does; its marker is ``NAME.lock``.

    ``on_wait`` is called once, with the holder (None: unknown), if it is not free at once. Raises Busy where another
    held it for ``timeout_s`` seconds (None waits for ever, 0 not at all), StoreError where there can be no lease.
    After ``idle_s`` seconds without :meth:`Lease.renew` the lease ends by itself (None: it does not).
    """
    contender = _Contender(path, lease_s)
    start = time.monotonic()
    pause_s = _FIRST_PAUSE_S
    while (lease := contender.attempt(idle_s)) is None:
        if on_wait is not None:
            on_wait(contender.owner())
            on_wait = None
        left_s = math.inf if timeout_s is None else start + timeout_s - time.monotonic()
        if left_s <= 0:
            raise contender.busy(timeout_s or 0.0)
        time.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
    return lease


class _Contender:
    """One who wants the lease of ``path``."""

    def __init__(self, path: Path, lease_s: float) -> None:
        from filelock import SoftFileLease

        self._path = path
        marker = path.absolute().with_name(path.name + ".lock")
        self._lock = SoftFileLease(marker, timeout=0, mode=_MODE, thread_local=False, lease_duration=lease_s)
        self._watch = Watch(self._lock)

    def attempt(self, idle_s: float | None) -> Lease | None:
        """The lease, if it is free or could be made so; raises StoreError."""
        try:
            if not self._path.parent.is_dir():  # filelock would make it, with permissions of its own
                raise StoreError(f"there is no directory {self._path.parent}")
            self._watch.refuse_strangers()
            if self._is_won() or (self._watch.is_cleared() and self._is_won()):
                return Lease(self._lock, idle_s)
        except (StoreError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: no thread can be started
            with suppress(OSError):
                self._lock.release()
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise StoreError(f"cannot lock {self._path}: {reason}") from error
        return None

    def _is_won(self) -> bool:
        from filelock import LeaseSettingsMismatch, Timeout

        try:
            self._lock.acquire()
        except (Timeout, LeaseSettingsMismatch):
            return False
        return True

    def owner(self) -> Owner | None:
        """Who the marker names; control characters in it are not handed on."""
        record = self._lock.owner
        if record is None:
            return None
        host = re.sub(r"[^!-~]", "?", _NAMESPACE.sub("", record.hostname))[:64]
        return Owner(record.pid, host, record.hostname == this_host())

    def busy(self, waited_s: float) -> Busy:
        """The error that says who has it."""
        owner = self.owner()
        waited = f" (waited {waited_s:g} s)" if waited_s else ""
        return Busy(f"{self._path} is locked by {owner or 'another process'}{waited}: try again when it is done", owner)
