"""Regular files, opened and replaced with care for what may lie in their place; what fails is an OSError.

1. What is no regular file is not even opened: that may wait for ever, or do something.
2. New content is written to a temporary file beside the target, so that the final rename never crosses file systems.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import time
from contextlib import suppress
from pathlib import Path

from pytest_kerneltune.disk import permissions

_STALE_S = 3600.0
TEMPORARY = re.compile(r"\.kerneltune-[0-9a-f]{16}\.tmp|.+\.lock\.(break|restore)\.[0-9]+\.[0-9a-f]{32}", re.DOTALL)
"""Names of files that are to be renamed, or that filelock takes markers over by."""

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a symbolic link",
}


def opened(path: Path, flags: int) -> int:
    """A descriptor of the regular file ``path``, a link to one included."""
    _refuse_irregular(path.stat())
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _refuse_irregular(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def opened_to_append(path: Path, like: Path | None) -> int:
    """A descriptor of the regular file to read and append to, made where missing, with ``like``'s permissions."""
    flags = os.O_RDWR | os.O_APPEND | (os.O_NOFOLLOW if like is not None else 0)
    with suppress(FileNotFoundError):
        return opened(path, flags)
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return opened(path, flags)
    if like is not None:
        permissions.take_over(descriptor, like)
    return descriptor


def replace(target: Path, content: bytes, like: Path | None, lasting: bool = True) -> None:
    """Put a file of ``content`` in the place of ``target``, whole or not at all.

    It has ``like``'s permissions, else those of the file that it replaces, else what the umask says. One that is to be
    ``lasting`` is there after a power cut, too, which takes some milliseconds.
    """
    mode = None
    with suppress(FileNotFoundError):
        status = target.lstat()
        _refuse_irregular(status)
        mode = stat.S_IMODE(status.st_mode)
    temporary = temporary_in(target.parent)
    is_open_to_all = like is None and mode is None
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if is_open_to_all else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if like is not None:
                permissions.take_over(descriptor, like)
            elif mode is not None:
                with suppress(OSError):
                    os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            if lasting:
                os.fsync(descriptor)
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if lasting:
        _sync(target.parent)


def temporary_in(directory: Path) -> Path:
    """A path for a file in ``directory`` that is to be renamed, or to be gone soon."""
    return directory / f".kerneltune-{secrets.token_hex(8)}.tmp"


def is_stale_temporary(path: Path) -> bool:
    """Whether a process that was killed while it wrote a file, or took over a lease, left this one behind.

    It is known by its name, and an hour old: no process is that slow.
    """
    if not TEMPORARY.fullmatch(path.name):
        return False
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > _STALE_S


def _refuse_irregular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file")


def _sync(directory: Path) -> None:
    """Have the rename on disk, where the file system can be asked for that."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
