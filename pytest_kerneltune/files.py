"""Files that several processes read and replace: locked, atomic, JSON.

1. Whoever changes a file by what it holds takes its lock first; readers need no lock, since a file is replaced whole.
2. The lock is an advisory one of the operating system on ``NAME.lock`` beside the file: it ends with its owner, however
   that dies. The lock file stays, because removing it under those who wait would let two of them in.
3. New content is written to a temporary file beside the target, so that the final rename never crosses file systems.
4. What fails is a StoreError that names the file.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_kerneltune.errors import StoreError

if TYPE_CHECKING:
    from filelock import BaseFileLock

MAX_BYTES = 64 << 20
"""A larger document is neither read nor written: it is no cache entry or baseline of ours."""

_POLL_S = 0.02

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
def locked(path: Path, on_wait: Callable[[], None] | None = None, timeout_s: float | None = None) -> Iterator[None]:
    """Hold the lock of the file ``path``, which need not exist.

    ``on_wait`` is called once if the lock is not free at once. Raises StoreError where the lock cannot be made, or was
    not free within ``timeout_s`` seconds (None waits for ever).
    """
    from filelock import FileLock

    make_directory(path.parent)
    lock = FileLock(path.with_name(path.name + ".lock"), thread_local=False)
    if not _acquired(lock, path, 0):
        if on_wait is not None:
            on_wait()
        if not _acquired(lock, path, -1 if timeout_s is None else timeout_s):
            raise StoreError(f"{path} is locked by another process (waited {timeout_s:g} s): try again when it is done")
    try:
        yield
    finally:
        lock.release()


def _acquired(lock: BaseFileLock, path: Path, timeout_s: float) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=timeout_s, poll_interval=_POLL_S)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        _fail("lock", path, error)
    return True


def read_bytes(path: Path) -> bytes | None:
    """The content, or None where there is no such file; at most one byte more than ``MAX_BYTES``."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        _fail("read", path, error)


def parse_json(content: bytes) -> Any:
    """The value of a strict JSON document (UTF-8, no NaN); raises ValueError that says what is wrong with it."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
    try:
        return json.loads(content.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def read_json(path: Path) -> Any:
    """The value in ``path``, or None where there is no such file; raises StoreError where it holds no JSON document."""
    content = read_bytes(path)
    if content is None:
        return None
    try:
        return parse_json(content)
    except ValueError as error:
        raise StoreError(f"{path} does not hold a JSON document: {error}") from error


def write_json(path: Path, data: Any) -> None:
    """Replace ``path`` by ``data`` as strict JSON with sorted keys, whole or not at all; raises StoreError."""
    write_text(path, _json_line(path, data))


def _json_line(path: Path, data: Any) -> str:
    """``data`` as one line of strict JSON in ASCII, with its newline."""
    try:
        line = json.dumps(data, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        _fail("write", path, error)
    if len(line) > MAX_BYTES:
        raise StoreError(f"cannot write {path}: it would be larger than {MAX_BYTES >> 20} MiB")
    return line


def write_text(path: Path, text: str) -> None:
    """:func:`write_bytes` of ``text`` in UTF-8, newlines as they are."""
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        _fail("write", path, error)
    write_bytes(path, content)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, whole or not at all; raises StoreError.

    Directories are made as needed, a symbolic link is followed, the mode of an existing file is kept.
    """
    make_directory(path.parent)
    try:
        _replace(path.resolve(), content)
    except OSError as error:
        _fail("write", path, error)


def _replace(target: Path, content: bytes) -> None:
    temporary = target.with_name(f".kerneltune-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with suppress(OSError):
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_json(path: Path, data: Any) -> None:
    """Append ``data`` as one line of JSON and hand it to the operating system; raises StoreError.

    Where the file ends inside a line, because its writer was killed or the disk was full, that line is ended first.
    """
    line = _json_line(path, data).encode()
    make_directory(path.parent)
    try:
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = b"\n" + line
            file.write(line)
    except OSError as error:
        _fail("write", path, error)


def read_lines(path: Path) -> list[bytes]:
    """The lines of ``path``, the last one perhaps unfinished; none where there is no such file. Raises StoreError."""
    try:
        with path.open("rb") as file:
            return file.readlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        _fail("read", path, error)


def remove(path: Path) -> None:
    """Delete the file if it is there; raises StoreError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
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


def _reserved(path: Path) -> Path:
    """A new empty file of a free name: reserving it keeps two processes from renaming onto each other's."""
    for number in count(1):
        candidate = path.with_name(f"{path.name}.corrupt-{number}")
        with suppress(FileExistsError):
            candidate.touch(exist_ok=False)
            return candidate
    raise AssertionError("unreachable: numbers do not run out")


def make_directory(path: Path) -> None:
    """Make the directory and its parents where missing; raises StoreError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
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
    except OSError as error:
        _fail("make", path, error)
    for name, text in _CACHE_FILES.items():
        write_text(path / name, text)


def _fail(verb: str, path: Path, error: Exception) -> NoReturn:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    raise StoreError(f"cannot {verb} {path}: {reason}") from error
