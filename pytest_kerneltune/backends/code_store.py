"""Results of compiler stages, kept in files under the digest of all that they were made of.

Rules:
1. An entry is written to a file of its own and renamed, so that readers see all of it or nothing; two processes that
   write the same entry at once write the same content.
2. An entry carries a digest of its content and is not read where that is wrong.
3. Entries lie in 256 folders; the longest unused ones of a folder go when it holds more than its share of bytes.
4. A store that cannot be read or written is an empty one: nothing fails for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

STORE_BYTES = 512 << 20
_FOLDERS = 256
_DIGEST = 32  # bytes


class Entry(NamedTuple):
    """What a stage returned, and what it noted in Triton's metadata (JSON values)."""

    result: str | bytes
    notes: Mapping[str, Any]


class CodeStore:
    """Entries by key (hex digits) in ``directory``, ``limit`` bytes of them at most, about."""

    def __init__(self, directory: Path, limit: int = STORE_BYTES) -> None:
        self._directory, self._share = directory, limit // _FOLDERS

    def get(self, key: str) -> Entry | None:
        """The entry of that key; None where there is none that is whole."""
        path = self._path(key)
        try:
            entry = _unpacked(path.read_bytes())
        except (OSError, ValueError, KeyError, TypeError, zlib.error):
            return None
        with contextlib.suppress(OSError):  # it may be somebody else's
            _touch(path)
        return entry

    def put(self, key: str, entry: Entry) -> None:
        """Keep ``entry``, unless its notes are more than JSON values, or it is larger than a folder's share."""
        path = self._path(key)
        with contextlib.suppress(OSError, TypeError, ValueError):
            data = _packed(entry)
            if len(data) <= self._share:
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, data)
                self._trim(path.parent)

    def _path(self, key: str) -> Path:
        return self._directory / key[:2] / key[2:]

    def _trim(self, folder: Path) -> None:
        known = []
        for item in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):
                state = item.stat()
                known.append((state.st_mtime_ns, state.st_size, item.path))
        total = sum(size for _, size, _ in known)
        for _, size, path in sorted(known):
            if total <= self._share:
                break
            Path(path).unlink(missing_ok=True)
            total -= size


def _write(path: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        _touch(Path(name))
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _touch(path: Path) -> None:
    """Note when an entry was last used, more precisely than a file system does."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _packed(entry: Entry) -> bytes:
    is_text = isinstance(entry.result, str)
    header = json.dumps({"text": is_text, "notes": dict(entry.notes)})
    if json.loads(header)["notes"] != entry.notes:
        raise ValueError("notes that JSON changes")
    content = entry.result.encode() if isinstance(entry.result, str) else entry.result
    body = zlib.compress(header.encode() + b"\n" + content, level=1)
    return hashlib.sha256(body).digest() + body


def _unpacked(data: bytes) -> Entry:
    digest, body = data[:_DIGEST], data[_DIGEST:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("damaged")
    header, _, content = zlib.decompress(body).partition(b"\n")
    known = json.loads(header)
    return Entry(content.decode() if known["text"] else content, known["notes"])
