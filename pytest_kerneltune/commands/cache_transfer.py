"""``cache export``, ``import`` and ``merge``: entries on their way from one cache to another."""

from __future__ import annotations

import shutil
import sys
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from pytest_kerneltune import files
from pytest_kerneltune.cache.exchange import exported, imported
from pytest_kerneltune.cache.joining import Change, Joining
from pytest_kerneltune.cache.upkeep import items
from pytest_kerneltune.commands.cache_report import entries_text
from pytest_kerneltune.commands.cache_scan import Trouble, chosen_directory, directory_of, say, wanted_entries
from pytest_kerneltune.disk.regular import temporary_in
from pytest_kerneltune.errors import StoreError, UsageError
from pytest_kerneltune.report.format import count
from pytest_kerneltune.texts import printable


def export(options: Namespace) -> int:
    """Write the chosen entries' trials; returns the exit status."""
    directory, trouble, counts = directory_of(options), Trouble(), Counter[str]()
    with _target(options.file) as file:
        for _, entry in wanted_entries(options, directory, trouble):
            for line in exported(entry):
                file.write(f"{line}\n")
            counts.update(entries=int(bool(entry.trials)), trials=len(entry.trials), bare=int(not entry.trials))
    if counts["bare"]:
        say(f"{entries_text(counts['bare'])} without trials left out")
    if options.file != "-":
        print(f"{printable(options.file)}: {count(counts['trials'], 'trial')} of {entries_text(counts['entries'])}")
    return trouble.end()


@contextmanager
def _target(name: str) -> Iterator[TextIO]:
    """The file of that name, replaced when all is written; raises StoreError."""
    path = Path(name)
    if name == "-":
        yield sys.stdout
        return
    try:
        if path.exists() and not path.is_file():  # such as a pipe
            with path.open("w", encoding="utf-8") as file:
                yield file
        else:
            with _replacing(path.resolve()) as file:
                yield file
    except OSError as error:
        raise StoreError(f"cannot write {name}: {error.strerror or error}") from error


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    temporary = temporary_in(path.parent)
    try:
        with temporary.open("x", encoding="utf-8") as file:
            yield file
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def import_(options: Namespace) -> int:
    """Put exported trials into the cache; returns the exit status."""
    trouble = Trouble()
    joining = _joining(options, trouble)
    for name in options.files:
        try:
            with _source(name) as file:
                for entry in imported(file, _skipping(name, trouble)):
                    joining.add(entry)
        except OSError as error:
            trouble(f"cannot read {name}: {error.strerror or error}")
    return _report(joining, trouble)


def _skipping(name: str, trouble: Trouble) -> Callable[[str], None]:
    return lambda text: trouble(f"{name}: skipped {text}")


def _joining(options: Namespace, trouble: Trouble) -> Joining:
    directory = chosen_directory(options)
    if not directory.is_dir() and (directory.exists() or directory.is_symlink()):
        raise UsageError(f"{str(directory)!r} is not a directory: name a cache by --cache")
    files.make_cache_directory(directory)
    return Joining(directory, trouble, say, options.wait)


@contextmanager
def _source(name: str) -> Iterator[BinaryIO]:
    """The file of that name, copied where it can be read only once. Raises OSError."""
    path = Path(name)
    if name != "-" and path.is_file():
        with path.open("rb") as file:
            yield file
        return
    if name != "-" and (path.is_char_device() or path.is_block_device()):  # may have no end
        raise OSError("it is a device, not a file or a pipe")
    with tempfile.TemporaryFile() as copy:
        if name == "-":
            shutil.copyfileobj(sys.stdin.buffer, copy)
        else:
            with path.open("rb") as file:
                shutil.copyfileobj(file, copy)
        copy.seek(0)
        yield copy


def merge(options: Namespace) -> int:
    """Put other caches into this one; returns the exit status."""
    directory = chosen_directory(options)
    for other in options.others:
        if not other.is_dir():
            raise UsageError(f"{str(other)!r} is no directory")
        if directory.exists() and other.samefile(directory):
            raise UsageError(f"{str(other)!r} is the cache itself: name the one to merge into by --cache")
    trouble = Trouble()
    joining = _joining(options, trouble)
    for other in options.others:
        for item in items(other):
            joining.add_item(item)
    return _report(joining, trouble)


def _report(joining: Joining, trouble: Trouble) -> int:
    entries, journals = joining.entries, joining.journals
    print(
        f"{printable(str(joining.directory))}: {entries_text(entries[Change.ADDED])} added, "
        f"{entries[Change.EXTENDED]} extended, {entries[Change.UNCHANGED]} known already"
    )
    if copied := journals[Change.ADDED] + journals[Change.EXTENDED]:
        print(f"{count(copied, 'journal')} of interrupted searches copied")
    return trouble.end()
