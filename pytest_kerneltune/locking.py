"""The lock of each device: held while the device is timed, and by nobody who only compiles.

1. It is an advisory lock of the operating system on a file that is never written, so it ends with its owner, however
   that dies. The file stays, because removing it under those who wait would let two of them in.
2. One file a device, whatever a process calls the device: by UUID, and by name only where there is none.
3. Who was stopped while it held a lock (SIGSTOP, Ctrl-Z) uses no device: the others go on by another lock.
4. All users of the machine share one folder, and containers do that share its /tmp. Where that folder cannot be used,
   a user's own processes still exclude each other.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pytest_kerneltune.errors import StoreError

SHARED_FOLDER = Path("/tmp/pytest-kerneltune-devices")
"""Not in TMPDIR, which may differ between users."""

_POLL_S = 0.02
_SETTLING_S = 1.0  # from the making of a folder or file until others are allowed to use it, at most


@contextmanager
def device_lock(device: str, folder: Path | None = None) -> Iterator[None]:
    """Hold the lock of a device (see :func:`try_lock`), waiting for it as long as that takes."""
    while (release := try_lock(device, folder)) is None:
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        release()


def try_lock(device: str, folder: Path | None = None) -> Callable[[], None] | None:
    """Take the lock of the device with this UUID (or name); returns what releases it, None while another holds it.

    ``folder`` is where the lock files are, by default as the rules above say. Another thread is another owner. Raises
    StoreError where no folder can be used.
    """
    name = (re.sub(r"[^A-Za-z0-9.]+", "-", device).strip("-.") or "unknown") + ".lock"
    own = Path(tempfile.gettempdir(), f"pytest-kerneltune-{os.getuid()}")
    failure: OSError | None = None
    for place in (SHARED_FOLDER, own) if folder is None else (folder,):
        try:
            release = _locked(_opened(place, name))
            if release is None and _holder_is_stopped(place / name):
                return try_lock(f"{device} without who is stopped", folder)
            return release
        except OSError as error:
            if isinstance(error, PermissionError | FileNotFoundError) and _is_settling(place, name):
                return None
            failure = error
    assert failure is not None
    raise StoreError(f"cannot lock {place / name}: {failure.strerror}") from failure


def _opened(folder: Path, name: str) -> int:
    """A descriptor of the lock file, made where missing.

    No symbolic link is followed and nothing is written: whoever else may write to the folder can disturb the locking,
    and nothing but that.
    """
    with suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(0o1777)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=directory)
        os.fchmod(descriptor, 0o666)
    except FileExistsError:
        descriptor = os.open(name, flags, dir_fd=directory)
    finally:
        os.close(directory)
    return descriptor


def _locked(descriptor: int) -> Callable[[], None] | None:
    """What releases the file again, None where another holds it; raises OSError."""
    file = os.fdopen(descriptor, "r+b", buffering=0)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink == 0:  # somebody tidied up: the name belongs to another file now
            raise BlockingIOError
    except BlockingIOError:
        file.close()
        return None
    except BaseException:
        file.close()
        raise
    with suppress(OSError):
        os.utime(descriptor)  # who tidies up goes by that

    def release() -> None:
        if not file.closed:
            fcntl.flock(file, fcntl.LOCK_UN)  # for copies of the descriptor too, in processes forked meanwhile
            file.close()

    return release


def _holder_is_stopped(path: Path) -> bool:
    """Whether the process that holds the file's lock was stopped (SIGSTOP, Ctrl-Z), and so may never go on."""
    with suppress(OSError, IndexError):  # no Linux, or it has just ended
        status = path.lstat()
        file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            _, kind, _, _, pid, held, *_ = [*line.split(), *[""] * 6]
            if (kind, held) == ("FLOCK", file):
                return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
    return False


def _is_settling(folder: Path, name: str) -> bool:
    """Whether the folder or file was made or changed just now, perhaps by one who is about to let all users in."""
    for path in (folder / name, folder):
        with suppress(OSError):
            return abs(time.time() - path.lstat().st_ctime) < _SETTLING_S
    return False
