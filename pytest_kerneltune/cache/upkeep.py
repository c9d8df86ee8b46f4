"""What a cache directory holds, seen without reading it, and how its size is kept within a limit.

1. Only files called as the cache's are, in the place where it puts them, are its own; links are not followed. Whatever
   else is there is neither counted nor removed.
2. The least recently used goes first: an entry with its journals and its family's pointer to it. A file with a date in
   the future counts as used now.
3. Nothing is removed that is not understood (an entry of a newer version, a corrupt one, files that were set aside),
   that a process tunes, or that was written to after it was chosen.
4. Several processes may do this at once, and files may vanish meanwhile.
"""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_kerneltune import files
from pytest_kerneltune.cache.document import SCHEMA
from pytest_kerneltune.cache.family import FINGERPRINT
from pytest_kerneltune.disk import leases, regular
from pytest_kerneltune.errors import StoreError

FOLDER = re.compile("[0-9a-f]{2}")
"""What the directories of entries are called."""

STAMP = ".last-upkeep"
"""The file whose date is when :func:`trim` was last due."""

_FILE = re.compile(
    rf"(?P<fingerprint>{FINGERPRINT.pattern})"
    r"(?:(?P<entry>\.json)|(?P<journal>\.trials(?:-[0-9a-f]{16})?\.jsonl)|(?P<aside>\.json\.corrupt-\d{1,6}))"
)
_EVERY_S = 3600.0
_AHEAD_S = 60.0  # a stamp may be younger than what it is compared with; further ahead, a clock was set back
_TRIMMED_TO = 0.9  # of the limit, so that the next entry does not exceed it again
_AT_WORK_S = 600.0  # a search without a lease may be writing to a journal that is no older


@dataclass(frozen=True)
class Item:
    """The files of one fingerprint.

    ``path`` is where its entry is or would be, ``entry`` the same or None where there is none. ``size`` is bytes of all
    the files, ``size_aside`` of those that were set aside. ``used`` is when it was last used, in seconds since 1970,
    and ``written_ns`` the newest date of its entry and journals as the file system has it, 0 without any.
    """

    fingerprint: str
    path: Path
    entry: Path | None
    journals: tuple[Path, ...]
    set_aside: tuple[Path, ...]
    size: int
    size_aside: int
    used: float
    written_ns: int

    @property
    def removable(self) -> int:
        """Bytes of the entry and its journals."""
        return self.size - self.size_aside


@dataclass(frozen=True)
class Trimmed:
    """What was removed: items, and bytes of them and of stale temporary files."""

    items: int = 0
    size: int = 0


def items(directory: Path) -> Iterator[Item]:
    """What ``directory`` holds, by fingerprint; nothing where there is no such directory. Raises StoreError."""
    now = time.time()
    for folder in folders(directory):
        yield from _items(folder, now)


def folders(directory: Path, name: re.Pattern[str] = FOLDER) -> list[Path]:
    """The directories in ``directory`` of such a name, sorted, those of entries by default; raises StoreError."""
    try:
        with os.scandir(directory) as found:
            return sorted(
                Path(each.path) for each in found if name.fullmatch(each.name) and each.is_dir(follow_symlinks=False)
            )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read {directory}: {error.strerror}") from error


def _items(folder: Path, now: float, fingerprint: str = "") -> list[Item]:
    """By fingerprint, of one only where it is given; what cannot be looked at is left out."""
    known: dict[str, list[tuple[str, str, os.stat_result]]] = defaultdict(list)
    with suppress(OSError), os.scandir(folder) as found:
        for each in found:
            if not each.name.startswith(fingerprint or folder.name) or not (match := _FILE.fullmatch(each.name)):
                continue
            with suppress(OSError):  # removed meanwhile
                if each.is_file(follow_symlinks=False):
                    file = match.lastgroup or "", each.path, each.stat(follow_symlinks=False)
                    known[match["fingerprint"]].append(file)
    return [_item(folder, fingerprint, own, now) for fingerprint, own in sorted(known.items())]


def _item(folder: Path, fingerprint: str, own: list[tuple[str, str, os.stat_result]], now: float) -> Item:
    paths: dict[str, list[Path]] = {"entry": [], "journal": [], "aside": []}
    for kind, path, _ in sorted(own, key=lambda file: file[1]):
        paths[kind].append(Path(path))
    written_ns = max((status.st_mtime_ns for kind, _, status in own if kind != "aside"), default=0)
    return Item(
        fingerprint,
        path=folder / f"{fingerprint}.json",
        entry=paths["entry"][0] if paths["entry"] else None,
        journals=tuple(paths["journal"]),
        set_aside=tuple(paths["aside"]),
        size=sum(status.st_size for *_, status in own),
        size_aside=sum(status.st_size for kind, _, status in own if kind == "aside"),
        used=min(now, max(status.st_mtime for *_, status in own)),
        written_ns=written_ns,
    )


def is_of_item(name: str) -> bool:
    """Whether :func:`items` would count a regular file of this name."""
    return _FILE.fullmatch(name) is not None


def is_due(directory: Path) -> bool:
    """Whether :func:`trim` should run now: True once an hour, to one process, by a stamp file in ``directory``.

    Hosts whose clocks differ go by the file system's. False where no stamp can be made: nothing can be removed there.
    """
    stamp = directory / STAMP
    if _is_recent(stamp, time.time()):
        return False
    probe = regular.temporary_in(directory)
    try:
        probe.touch(exist_ok=False)
        try:
            now = probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
        return not _is_recent(stamp, now) and _is_ours(stamp, now)
    except OSError:
        return False


def _is_recent(stamp: Path, now: float) -> bool:
    try:
        return -_AHEAD_S < now - stamp.lstat().st_mtime < _EVERY_S
    except OSError:
        return False


def _is_ours(stamp: Path, now: float) -> bool:
    """Whether the new stamp is made by us, and not by another process at the same time. Raises OSError."""
    withdrawn = regular.temporary_in(stamp.parent)
    with suppress(FileNotFoundError):
        stamp.rename(withdrawn)
        if _is_recent(withdrawn, now):  # it is the new one, made since we looked
            withdrawn.rename(stamp)
            return False
        withdrawn.unlink()
    try:
        stamp.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def trim(directory: Path, limit_bytes: int) -> Trimmed:
    """Where entries and journals in ``directory`` are larger than the limit, remove the least recently used until they
    are 90% of it. Files that were set aside do not count, or many would drive out all else. Raises StoreError where
    the directory cannot be read; what cannot be removed stays."""
    known = sorted(items(directory), key=lambda item: item.used)
    left = _removable(known)
    number, size = 0, remove_stale_temporaries(directory)
    if left <= limit_bytes:
        return Trimmed(number, size)
    for item in known:
        if left <= _TRIMMED_TO * limit_bytes:
            break
        try:
            if item.removable and not remove(directory, item):
                left, number, size = left - item.removable, number + 1, size + item.removable
        except leases.Busy:  # who has it may be removing it, and what comes next
            left = _removable(items(directory))
        except StoreError:
            continue
    return Trimmed(number, size)


def _removable(known: Iterable[Item]) -> int:
    return sum(item.removable for item in known)


def remove(directory: Path, item: Item, dry_run: bool = False) -> str:
    """Delete the entry and the journals of ``item``, and its family's pointer to it, unless there is a reason not to.

    Returns the reason, "" where they are gone (a ``dry_run``: where they would be). Raises Busy where a process tunes
    the kernel, StoreError where removal is impossible.
    """
    if not os.access(item.path.parent, os.W_OK):
        raise StoreError(f"cannot write in {item.path.parent}")
    if any(map(_is_at_work, item.journals)):
        return "a search wrote to its journal within the last ten minutes"
    with leases.take(item.path, timeout_s=0):
        own = _items(item.path.parent, time.time(), item.fingerprint)
        now = next((each for each in own if each.path == item.path), None)
        if now is None:
            return ""
        if now.written_ns != item.written_ns:
            return "it was used meanwhile" if now.written_ns else ""
        reason, family = _understood(item)
        if not reason and not dry_run:
            _delete(directory, item, family)
        return reason


def _is_at_work(journal: Path) -> bool:
    try:
        return abs(time.time() - journal.lstat().st_mtime) < _AT_WORK_S
    except OSError:
        return False


def _understood(item: Item) -> tuple[str, str]:
    """Why the entry is to stay, or "" and its family. Raises StoreError."""
    content = None if item.entry is None else files.read_bytes(item.entry)
    if content is None:
        return "", ""
    try:
        data = files.parse_json(content)
    except ValueError as error:
        return f"it is corrupt ({error})", ""
    if not isinstance(data, dict) or type(data.get("schema")) is not int or data.get("fingerprint") != item.fingerprint:
        return "it is corrupt", ""
    if data["schema"] > SCHEMA:
        return "it is of a newer pytest-kerneltune", ""
    return "", str(data.get("family", ""))


def _delete(directory: Path, item: Item, family: str) -> None:
    for path in (*([item.entry] if item.entry else []), *item.journals):
        files.remove(path)
    pointer = directory / "families" / family / f"{item.fingerprint}.json"
    if FINGERPRINT.fullmatch(family) and not any(p.is_symlink() for p in (pointer.parent.parent, pointer.parent)):
        with suppress(StoreError):  # it is passed over without its entry
            files.remove(pointer)


def remove_stale_temporaries(directory: Path) -> int:
    """Delete temporary files that killed processes left in ``directory``; returns their bytes. Raises StoreError."""
    size = 0
    for path in stale_temporaries(directory):
        with suppress(OSError):
            own = path.lstat().st_size
            path.unlink()
            size += own
    return size


def stale_temporaries(directory: Path) -> Iterator[Path]:
    """Temporary files that no process can be writing any more. Raises StoreError."""
    families = [each for each in (directory / "families",) if not each.is_symlink()]
    members = [folder for each in families for folder in folders(each, FINGERPRINT)]
    for folder in (directory, *folders(directory), *families, *members):
        yield from files.stale_temporaries(folder)
