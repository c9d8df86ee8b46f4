"""Results of compiler stages, kept in files under the digest of all that they were made of.

Rules:
1. What is kept here is executed. So a store is a directory of this user's alone: where the directory, an entry's folder
   or the entry belongs to somebody else or may be written to by others, there is no entry, and none is put there.
2. An entry is written to a file of its own and renamed, so that readers see all of it or nothing; two processes that
   write the same entry at once write the same content.
3. An entry carries a digest of its key and content and is not read where that is wrong. No link is followed, and no
   more is read or unpacked than an entry may have.
4. Entries lie in 256 folders; the longest unused ones of a folder go when it holds more than its share of bytes.
5. A store that cannot be read or written is an empty one: nothing fails for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pytest_kerneltune.disk import permissions, regular, unused

STORE_BYTES = 512 << 20
CONTENT_BYTES = 64 << 20
"""Of an entry, unpacked."""

_FOLDERS = 256
_DIGEST = 32  # bytes
_KEY = re.compile("[0-9a-f]+")
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_DAMAGE = (OSError, ValueError, KeyError, TypeError, RecursionError, zlib.error)


class Entry(NamedTuple):
    """What a stage returned, and what it noted in Triton's metadata (JSON values)."""

    result: str | bytes
    notes: Mapping[str, Any]


class CodeStore:
    """Entries by key (hex digits) in ``directory``, ``limit`` bytes of them at most, about."""

    def __init__(self, directory: Path, limit: int = STORE_BYTES) -> None:
        self._directory, self._share = directory, limit // _FOLDERS

    @property
    def problem(self) -> str:
        """Why nothing is kept in the directory; "" where it is not there yet, or all is well."""
        try:
            own = _is_private(self._directory.lstat(), stat.S_IFDIR)
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"{self._directory}: {error.strerror}"
        return "" if own else f"{self._directory} is no directory that only its user may write to (chmod 700 it)"

    def get(self, key: str) -> Entry | None:
        """The entry of that key; None where there is none that is whole, and this user's."""
        path = self._path(key)
        try:
            _check(self._directory, path.parent)
            entry = _unpacked(key, self._read(path))
        except _DAMAGE:
            return None
        unused.touch(path)
        return entry

    def put(self, key: str, entry: Entry) -> None:
        """Keep ``entry``, unless its notes are more than JSON values, or it is larger than a folder's share."""
        path = self._path(key)
        with contextlib.suppress(OSError, TypeError, ValueError):
            data = _packed(key, entry)
            if len(data) <= self._share:
                self._make(path.parent)
                regular.replace(path, data, self._directory, lasting=False)
                unused.touch(path)
                self._trim(path.parent)

    def _path(self, key: str) -> Path:
        return self._directory / key[:2] / key[2:]

    def _make(self, folder: Path) -> None:
        self._directory.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self._directory.mkdir(mode=stat.S_IRWXU)
        _check(self._directory)
        permissions.make_below(folder, self._directory)
        _check(folder)

    def _read(self, path: Path) -> bytes:
        with os.fdopen(regular.opened(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            if not _is_private(os.fstat(file.fileno()), stat.S_IFREG):
                raise PermissionError(f"{path} is not this user's alone")
            return file.read(self._share + 1)

    def _trim(self, folder: Path) -> None:
        unused.remove_stale(folder)
        entries = (path for path in folder.iterdir() if _KEY.fullmatch(path.name))
        for path in unused.surplus(entries, self._share):
            path.unlink(missing_ok=True)


def _check(*directories: Path) -> None:
    """Raises PermissionError where somebody else could put something into one of them."""
    for directory in directories:
        if not _is_private(directory.lstat(), stat.S_IFDIR):
            raise PermissionError(f"{directory} is not this user's alone")


def _is_private(state: os.stat_result, kind: int) -> bool:
    """Whether that is of this kind, this user's, and nobody else may write to it."""
    own = state.st_uid == os.geteuid() and not state.st_mode & _OTHERS_MAY_WRITE
    return own and stat.S_IFMT(state.st_mode) == kind


def _packed(key: str, entry: Entry) -> bytes:
    is_text = isinstance(entry.result, str)
    header = json.dumps({"text": is_text, "notes": dict(entry.notes)})
    if json.loads(header)["notes"] != entry.notes:
        raise ValueError("notes that JSON changes")
    content = entry.result.encode() if isinstance(entry.result, str) else entry.result
    unpacked = header.encode() + b"\n" + content
    if len(unpacked) > CONTENT_BYTES:
        raise ValueError("too large")
    body = zlib.compress(unpacked, level=1)
    return _digest(key, body) + body


def _unpacked(key: str, data: bytes) -> Entry:
    digest, body = data[:_DIGEST], data[_DIGEST:]
    if _digest(key, body) != digest:
        raise ValueError("damaged")
    inflater = zlib.decompressobj()
    unpacked = inflater.decompress(body, CONTENT_BYTES + 1)
    if not inflater.eof:
        raise ValueError("too large")
    header, _, content = unpacked.partition(b"\n")
    known = json.loads(header)
    return Entry(content.decode() if known["text"] else content, dict(known["notes"]))


def _digest(key: str, body: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + body).digest()
