"""``cache verify``: all files of a cache read, and those named that are not as they should be."""

from __future__ import annotations

import json
import os
import re
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pytest_kerneltune import files
from pytest_kerneltune.cache import Entry, NewerSchema, upkeep
from pytest_kerneltune.cache.family import FINGERPRINT
from pytest_kerneltune.cache.journal import leftovers
from pytest_kerneltune.cache.store import entry_path, read_entry
from pytest_kerneltune.cache.upkeep import Item
from pytest_kerneltune.commands.cache_report import age_text, entries_text
from pytest_kerneltune.commands.cache_scan import directory_of, say
from pytest_kerneltune.disk import leases
from pytest_kerneltune.disk.regular import TEMPORARY
from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.report.format import count
from pytest_kerneltune.texts import printable

_FAMILIES = "families"
_KNOWN = {"README.md", ".gitignore", "CACHEDIR.TAG", _FAMILIES, "replies", "code", upkeep.STAMP}
"""What is in the directory itself; "code" is of earlier versions."""

_LOCK = re.compile(rf"{FINGERPRINT.pattern}\.json\.lock(\..*)?")
_POINTER = re.compile(rf"{FINGERPRINT.pattern}\.json")
_SILENT_S = 2 * leases.LEASE_S  # a holder gives a sign of life several times as often


class Kind(StrEnum):
    """What is not as it should be, the worst first; the first two make the exit status 1."""

    CORRUPT = "corrupt"
    UNREADABLE = "unreadable"
    NEWER = "newer"
    SET_ASIDE = "set aside"
    FOREIGN = "foreign"
    POINTER = "pointer without entry"
    LOCK = "stale lock"
    TEMPORARY = "temporary file"
    JOURNAL = "interrupted search"


_BAD = (Kind.CORRUPT, Kind.UNREADABLE)


@dataclass(frozen=True)
class Finding:
    """A file, what is the matter with it, and a word on that."""

    kind: Kind
    path: Path
    text: str = ""


def verify(options: Namespace) -> int:
    """Name what is found; returns the exit status."""
    directory = directory_of(options)
    examination = _Examination(directory)
    found = sorted(examination.findings(), key=lambda finding: list(Kind).index(finding.kind))
    repairs = [_repaired(finding) if options.repair else "" for finding in found]
    if options.json:
        listed = [{**vars(f), "path": str(f.path), "repair": done} for f, done in zip(found, repairs, strict=True)]
        print(json.dumps({"cache": str(directory), "sound": examination.sound, "findings": listed}))
    else:
        for finding, done in zip(found, repairs, strict=True):
            print(_line(finding, done))
        print(_summary(directory, examination.sound, found))
    return int(any(f.kind in _BAD and not done for f, done in zip(found, repairs, strict=True)))


def _line(finding: Finding, repair: str) -> str:
    text = f" ({finding.text})" if finding.text else ""
    return printable(f"{finding.kind}: {finding.path}{text}{f': {repair}' if repair else ''}")


def _summary(directory: Path, sound: int, found: Sequence[Finding]) -> str:
    kinds = Counter(str(finding.kind) for finding in found)
    return ", ".join(
        [printable(f"{directory}: {entries_text(sound)} sound"), *(f"{n} {kind}" for kind, n in kinds.items())]
    )


class _Examination:
    """A look at everything in a cache; ``sound`` counts entries."""

    def __init__(self, directory: Path) -> None:
        self.sound = 0
        self._directory = directory

    def findings(self) -> Iterator[Finding]:
        """What is not as it should be. Raises StoreError where the directory cannot be read."""
        for item in upkeep.items(self._directory):
            yield from self._in_item(item)
        yield from (Finding(Kind.TEMPORARY, path) for path in upkeep.stale_temporaries(self._directory))
        yield from _others(self._directory, _is_known)
        for folder in upkeep.folders(self._directory):
            yield from _others(folder, _is_in_place)
            yield from _stale_locks(folder)
        families = self._directory / _FAMILIES
        if not families.is_symlink():
            yield from _others(families, _is_family)
            for folder in upkeep.folders(families, FINGERPRINT):
                yield from _others(folder, _is_pointer)
                yield from _lost_pointers(folder)

    def _in_item(self, item: Item) -> Iterator[Finding]:
        entry = None
        if item.entry is not None:
            try:
                entry = read_entry(item.entry, item.fingerprint)
                self.sound += entry is not None
            except NewerSchema as error:
                yield Finding(Kind.NEWER, item.entry, str(error))
            except StoreError as error:
                yield Finding(Kind.UNREADABLE, item.entry, str(error))
            except ValueError as error:
                yield Finding(Kind.CORRUPT, item.entry, str(error))
        yield from (Finding(Kind.SET_ASIDE, path) for path in item.set_aside)
        if item.journals:
            yield from _journals(item, entry)


def _journals(item: Item, entry: Entry | None) -> Iterator[Finding]:
    problems: list[Finding] = []

    @contextmanager
    def tolerant(name: str) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            problems.append(Finding(Kind.UNREADABLE, item.path.with_name(name), str(error)))

    for each in leftovers(item.path, entry, tolerant):
        yield Finding(Kind.JOURNAL, each.path, f"{count(len(each.fresh), 'trial')} in no entry")
    yield from problems


def _others(folder: Path, is_own: Callable[[os.DirEntry[str]], bool]) -> Iterator[Finding]:
    """What is not the cache's own."""
    try:
        with os.scandir(folder) as files_:
            strange = sorted(each.path for each in files_ if not is_own(each) and not TEMPORARY.fullmatch(each.name))
    except FileNotFoundError:
        return
    except OSError as error:
        yield Finding(Kind.UNREADABLE, folder, error.strerror or str(error))
        return
    yield from (Finding(Kind.FOREIGN, Path(path)) for path in strange)


def _is_known(file: os.DirEntry[str]) -> bool:
    is_folder = upkeep.FOLDER.fullmatch(file.name) and file.is_dir(follow_symlinks=False)
    return bool(is_folder) or (file.name in _KNOWN and not file.is_symlink())


def _is_in_place(file: os.DirEntry[str]) -> bool:
    is_named_so = upkeep.is_of_item(file.name) or _LOCK.fullmatch(file.name)
    is_of_folder = Path(file.path).parent.name == file.name[:2]
    return bool(is_named_so) and is_of_folder and file.is_file(follow_symlinks=False)


def _is_family(file: os.DirEntry[str]) -> bool:
    return bool(FINGERPRINT.fullmatch(file.name)) and file.is_dir(follow_symlinks=False)


def _is_pointer(file: os.DirEntry[str]) -> bool:
    return bool(_POINTER.fullmatch(file.name)) and file.is_file(follow_symlinks=False)


def _stale_locks(folder: Path) -> Iterator[Finding]:
    now = time.time()
    for path in sorted(folder.glob("*.json.lock")):
        with suppress(OSError):
            silent_s = now - path.lstat().st_mtime
            if silent_s > _SILENT_S:
                yield Finding(Kind.LOCK, path, f"no sign of life for {age_text(silent_s)}; whoever comes next takes it")


def _lost_pointers(folder: Path) -> Iterator[Finding]:
    for path in sorted(folder.glob("*.json")):
        if _POINTER.fullmatch(path.name) and not _entry_of(path).exists():
            yield Finding(Kind.POINTER, path)


def _repaired(finding: Finding) -> str:
    """What was done about it, "" for nothing."""
    try:
        if finding.kind is Kind.CORRUPT:
            return _set_aside(finding.path)
        if finding.kind is Kind.TEMPORARY or (finding.kind is Kind.POINTER and not _entry_of(finding.path).exists()):
            files.remove(finding.path)
            return "removed"
    except StoreError as error:
        say(f"not repaired: {error}")
    return ""


def _set_aside(path: Path) -> str:
    """Set the entry aside if it is corrupt still; raises StoreError."""
    with leases.take(path, timeout_s=0):
        try:
            read_entry(path, path.stem)
        except ValueError:
            return f"kept as {files.set_aside(path).name}"
    return "replaced meanwhile"


def _entry_of(pointer: Path) -> Path:
    return entry_path(pointer.parents[2], pointer.stem)
