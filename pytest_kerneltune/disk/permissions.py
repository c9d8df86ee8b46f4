"""Permissions of what is made below a shared directory: those of that directory, whatever the umask.

1. A file may be read and written by whom the directory lets in; a directory has its mode, the setgid bit included.
2. In one with the sticky bit, where users are to leave each other's files alone, only the owner may write.
3. The group is the directory's, too. Where the system does not let us set it, the group may not write: it is another.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def take_over(descriptor: int, root: Path) -> None:
    """Give the file or directory, which we made just now, what ``root`` asks for, as far as the system allows it."""
    with suppress(OSError):
        wanted, made = root.stat(), os.fstat(descriptor)
        mode = wanted.st_mode & (0o2777 if stat.S_ISDIR(made.st_mode) else 0o666)
        if wanted.st_mode & stat.S_ISVTX:
            mode &= ~_OTHERS_WRITE
        if made.st_gid != wanted.st_gid and not _has_changed_group(descriptor, wanted.st_gid):
            mode &= ~stat.S_IWGRP
        os.fchmod(descriptor, mode | stat.S_IRUSR | stat.S_IWUSR)


def _has_changed_group(descriptor: int, group: int) -> bool:
    try:
        os.fchown(descriptor, -1, group)
    except OSError:
        return False
    return True


def make_below(path: Path, root: Path) -> None:
    """Make ``path``, which is ``root`` or below it, and what is missing between them; raises OSError.

    ``root`` itself is made, with its parents, as the umask says.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, f"{root} is no directory") from None
    directory = root
    for part in path.relative_to(root).parts:
        directory = directory / part
        try:
            directory.mkdir()
        except FileExistsError:
            if not directory.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, f"{directory} is no directory") from None
        else:
            _adopt(directory, root)


def _adopt(directory: Path, root: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            take_over(descriptor, root)
        finally:
            os.close(descriptor)
