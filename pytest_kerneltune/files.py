"""Files that several processes read and replace: leased, atomic, JSON.

1. Whoever changes a file by what it holds takes its lease first (``disk/leases.py``); readers need none, since a file
   is replaced whole.
2. What is no regular file is neither read nor replaced nor waited for (``disk/regular.py``).
3. JSON is bounded (``disk/strictjson.py``).
4. Below a shared directory, given as ``like``, what is made takes over its permissions (``disk/permissions.py``), and
   no symbolic link to a file is written through. Elsewhere the umask rules, and links are followed.
5. What fails is a StoreError that names the file.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from pytest_kerneltune.disk import leases, permissions, regular, strictjson
from pytest_kerneltune.disk.strictjson import MAX_BYTES as MAX_BYTES
from pytest_kerneltune.disk.strictjson import MAX_DEPTH as MAX_DEPTH
from pytest_kerneltune.errors import StoreError

parse_json = strictjson.parse

_MOST_LINES = 1 << 20
_README = """\
# pytest-kerneltune's cache

Tuning results of kernels: one JSON file per kernel, inputs and device, with every config that was tried.
It may be shared by processes and machines, and deleted at any time: kernels are then tuned again.
Do not commit it; baselines, which belong in version control, are kept elsewhere.
"""
_CACHE_FILES = {
    "README.md": _README,
    ".gitignore": "*\n",
    "CACHEDIR.TAG": "Signature: 8a477f597d28d172789f06886806bc55\n# Marks a cache directory: https://bford.info/cachedir/\n",
}


@contextmanager
def locked(
    path: Path, on_wait: Callable[[], None] | None = None, timeout_s: float | None = None
) -> Iterator[leases.Lease]:
    """Hold the lease of the file ``path``, which need not exist; its directory is made where missing.

    ``on_wait`` is called once if the lease is not free at once. Raises StoreError where there can be no lease, or it
    was not free within ``timeout_s`` seconds (None waits for ever).
    """
    make_directory(path.parent)
    told = None if on_wait is None else lambda _: on_wait()
    with leases.take(path, told, timeout_s) as lease:
        yield lease


def read_bytes(path: Path) -> bytes | None:
    """The content, or None where there is no such file; at most one byte more than ``MAX_BYTES``."""
    try:
        with os.fdopen(regular.opened(path, os.O_RDONLY), "rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, MemoryError) as error:
        _fail("read", path, error)


def read_json(path: Path) -> Any:
    """The value in ``path``, or None where there is no such file; raises StoreError where it holds no JSON document."""
    content = read_bytes(path)
    if content is None:
        return None
    try:
        return parse_json(content)
    except ValueError as error:
        raise StoreError(f"{path} does not hold a JSON document: {error}") from error


def read_lines(path: Path) -> list[bytes]:
    """The lines of ``path``, the last one perhaps unfinished; none where there is no such file.

    Raises StoreError, for more than ``MAX_BYTES`` or a million lines too.
    """
    content = read_bytes(path) or b""
    if len(content) > MAX_BYTES or content.count(b"\n") > _MOST_LINES:
        raise StoreError(
            f"cannot read {path}: it is larger than {MAX_BYTES >> 20} MiB, or has over {_MOST_LINES} lines"
        )
    return io.BytesIO(content).readlines()


def write_json(path: Path, data: Any, like: Path | None = None, lasting: bool = True) -> None:
    """:func:`write_bytes` of ``data`` as one line of strict JSON with sorted keys."""
    write_text(path, _json_line(path, data), like, lasting)


def write_text(path: Path, text: str, like: Path | None = None, lasting: bool = True) -> None:
    """:func:`write_bytes` of ``text`` in UTF-8, newlines as they are."""
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        _fail("write", path, error)
    write_bytes(path, content, like, lasting)


def write_bytes(path: Path, content: bytes, like: Path | None = None, lasting: bool = True) -> None:
    """Replace ``path`` by ``content``, whole or not at all; raises StoreError.

    Directories are made as needed. ``like`` is the shared directory above it, if there is one. Without one, a symbolic
    link is followed, and an existing file keeps its mode. One that is not ``lasting`` may be gone after a power cut.
    """
    make_directory(path.parent, like)
    try:
        regular.replace(path.resolve() if like is None else path, content, like, lasting)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
        _fail("write", path, error)


def append_json(path: Path, data: Any, like: Path | None = None) -> None:
    """Append ``data`` as one line of JSON and hand it to the operating system, in one piece; raises StoreError.

    Where the file ends inside a line, because its writer was killed or the disk was full, that line is ended first.
    """
    line = _json_line(path, data).encode()
    make_directory(path.parent, like)
    try:
        with os.fdopen(regular.opened_to_append(path, like), "rb+", buffering=0) as file:
            if size := os.fstat(file.fileno()).st_size:
                line = line if os.pread(file.fileno(), 1, size - 1) == b"\n" else b"\n" + line
            if size + len(line) > MAX_BYTES:
                raise OSError(errno.EFBIG, f"it would be larger than {MAX_BYTES >> 20} MiB")
            while line:
                line = line[file.write(line) or 0 :]
    except (OSError, ValueError) as error:
        _fail("write", path, error)


def remove(path: Path) -> None:
    """Delete the file if it is there; raises StoreError."""
    try:
        path.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        _fail("remove", path, error)


def set_aside(path: Path) -> Path:
    """Rename ``path`` to the first free ``NAME.corrupt-N`` and return that; raises StoreError."""
    try:
        aside = _reserved(path)
        try:
            return path.replace(aside)
        except OSError:
            aside.unlink()
            raise
    except OSError as error:
        _fail("set aside", path, error)


def stale_temporaries(directory: Path) -> Iterator[Path]:
    """Files in ``directory`` that a process killed while it wrote one, or took over a lease, left behind.

    They are known by their names, and an hour old: no process is that slow. Raises StoreError.
    """
    try:
        for path in directory.iterdir():
            if regular.is_stale_temporary(path):
                yield path
    except FileNotFoundError:
        return
    except OSError as error:
        _fail("list", directory, error)


def make_directory(path: Path, like: Path | None = None) -> None:
    """Make the directory and its parents where missing; ``like`` is it or one above it. Raises StoreError."""
    try:
        if like is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            permissions.make_below(path, like)
    except (OSError, ValueError) as error:
        _fail("make", path, error)


def make_cache_directory(path: Path) -> None:
    """Make the cache directory where missing, with files that tell people, git and backups what it is.

    A directory that exists is left as it is. Raises StoreError.
    """
    make_directory(path.parent)
    try:
        path.mkdir()
    except FileExistsError:
        return
    except (OSError, ValueError) as error:
        _fail("make", path, error)
    for name, text in _CACHE_FILES.items():
        write_text(path / name, text, lasting=False)


def _json_line(path: Path, data: Any) -> str:
    try:
        return strictjson.line(data)
    except ValueError as error:
        _fail("write", path, error)


def _reserved(path: Path) -> Path:
    """A new empty file of a free name: reserving it keeps two processes from renaming onto each other's."""
    for number in count(1):
        candidate = path.with_name(f"{path.name}.corrupt-{number}")
        with suppress(FileExistsError):
            candidate.touch(exist_ok=False)
            return candidate
    raise AssertionError("unreachable: numbers do not run out")


def _fail(verb: str, path: Path, error: Exception) -> NoReturn:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    raise StoreError(f"cannot {verb} {path}: {reason}") from error
