"""The markers of leases that nobody will release, and that filelock leaves alone: told, and cleared away.

1. An empty one: its maker was killed before it wrote to it, or had a version without leases.
2. One of a process of this host that has ended and that its parent has not reaped.
3. One that has not changed for the length of its lease, where filelock does not take it over: the lease is of another
   length than ours, or the file system cannot exchange two names (NFS).

What is no regular file, or too large for a marker, is not ours, and stays.
"""

from __future__ import annotations

import errno
import math
import os
import secrets
import stat
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kerneltune.errors import StoreError

if TYPE_CHECKING:
    from filelock import OwnerRecord, SoftFileLease

_EMPTY_S = 5.0  # from the making of a marker until its maker is named in it: microseconds, unless it is killed
_GRACE_S = 0.5  # for filelock to take an expired marker over first: it does so without a gap
_LONGEST_LEASE_S = 600.0  # whatever a marker says
_LONG_AGO_S = 3600.0
_LARGEST = 1024  # bytes


class Watch:
    """Looks at the marker of ``lease`` again and again, for one who waits for it."""

    def __init__(self, lease: SoftFileLease) -> None:
        self._lease = lease
        self._marker = Path(lease.lock_file)
        self._seen: tuple[int, ...] = ()
        self._since = 0.0

    def refuse_strangers(self) -> None:
        """Raise StoreError where something else has the marker's name."""
        with suppress(FileNotFoundError):
            status = self._marker.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
                raise StoreError(f"{self._marker} is in the way, which is no marker of ours: move it elsewhere")

    def is_cleared(self) -> bool:
        """Whether the marker is gone, if need be because it was cleared away now; raises OSError, StoreError."""
        try:
            status = _status(self._marker)
            if self._unchanged_s(status) < _patience_s(status, self._lease):
                return False
            _discard(self._marker, status)
        except PermissionError as error:
            raise StoreError(f"nobody holds {self._marker}, and it cannot be removed: {error.strerror}") from error
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
        return True

    def _unchanged_s(self, status: os.stat_result) -> float:
        seen = status.st_ino, status.st_mtime_ns, status.st_ctime_ns
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        return time.monotonic() - self._since


@cache
def this_host() -> str:
    """What markers made on this host, in our PID namespace, name as their host; "" where none can be made."""
    from filelock import MarkerSoftFileLock

    with (
        suppress(OSError),
        tempfile.TemporaryDirectory(prefix="kerneltune-") as directory,
        MarkerSoftFileLock(Path(directory, "marker")) as lock,
    ):
        return lock.owner.hostname if lock.owner is not None else ""
    return ""


def _status(marker: Path) -> os.stat_result:
    """As the server has it: opening a file on a network file system brings its attributes up to date."""
    status = marker.lstat()
    if stat.S_ISREG(status.st_mode):
        with suppress(PermissionError):
            descriptor = os.open(marker, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                return os.fstat(descriptor)
            finally:
                os.close(descriptor)
    return status


def _patience_s(status: os.stat_result, lease: SoftFileLease) -> float:
    """How long a marker may stay as it is."""
    record = lease.owner
    if record is None:
        is_left_behind = status.st_size == 0 and time.time() - status.st_mtime > _LONG_AGO_S
        if status.st_size == 0:
            return 0.0 if is_left_behind else min(lease.lease_duration, _EMPTY_S)
        return lease.lease_duration
    if record.hostname == this_host() and _has_ended(record):
        return 0.0
    if record.mode != "lease" or record.lease_duration is None:
        return math.inf
    return min(record.lease_duration, _LONGEST_LEASE_S) + _GRACE_S


def _has_ended(record: OwnerRecord) -> bool:
    """Whether the process of this host is known to have ended, reaped or not."""
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    try:
        fields = Path(f"/proc/{record.pid}/stat").read_bytes().rpartition(b")")[2].split()
        state, threads, started = fields[0], int(fields[17]), int(fields[19])
    except (OSError, ValueError, IndexError):
        return False
    # The record has the boot above the 64 bits of the start. A first thread that ended before others is no zombie.
    return record.start is not None and record.start % 2**64 == started and state in b"ZX" and threads <= 1


def _discard(marker: Path, judged: os.stat_result) -> None:
    """Remove the marker if it is still the one that was ``judged``; raises OSError.

    It is renamed and looked at again: another may have removed it meanwhile and made its own, which is put back. The
    name is of filelock's kind for markers that it takes over, which restores what a killed process leaves there.
    """
    now = _status(marker)
    if (now.st_ino, now.st_ctime_ns) != (judged.st_ino, judged.st_ctime_ns):
        return
    aside = marker.with_name(f"{marker.name}.break.{os.getpid()}.{secrets.token_hex(16)}")
    marker.rename(aside)
    taken = aside.lstat()
    if (taken.st_ino, taken.st_mtime_ns) != (judged.st_ino, judged.st_mtime_ns):
        with suppress(FileExistsError):
            os.link(aside, marker, follow_symlinks=False)
    aside.unlink()
