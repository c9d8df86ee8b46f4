"""``cache prune``: entries and set-aside files that go, by age, size, kernel and device."""

from __future__ import annotations

import math
import re
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from pytest_kerneltune import files
from pytest_kerneltune.cache import upkeep
from pytest_kerneltune.cache.store import read_entry
from pytest_kerneltune.cache.upkeep import Item
from pytest_kerneltune.commands.cache_report import SHORT, age_text, entries_text, size_text
from pytest_kerneltune.commands.cache_scan import Trouble, directory_of, wanted_entries
from pytest_kerneltune.errors import StoreError, UsageError
from pytest_kerneltune.report.format import count
from pytest_kerneltune.texts import printable

_DESCRIPTION = """\
Removes entries, with the trials of their interrupted searches. --kernel and --device choose among them. Of these go the
ones not used for --older-than, and then the least recently used until the rest is no larger than --size; with neither,
all of them. What a process tunes now stays, and so does what this version cannot read.
"""

_AGE = re.compile(r"(\d+(?:\.\d+)?)(h|d|w)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kKMGT]?)(?:i?B)?")
_SECONDS = {"h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}
_POWER = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4}


def add_criteria(parser: ArgumentParser) -> None:
    """The options that say what goes, beside kernel and device."""
    parser.description = _DESCRIPTION
    add = parser.add_argument
    add("--older-than", type=_age, metavar="AGE", help="not used for so long: 12h, 90d or 8w")
    add("--size", type=_size, metavar="SIZE", help="keep at most so much: 500M, 2G (powers of 1024)")
    add(
        "--set-aside",
        action="store_true",
        help="instead of entries, the corrupt files that were set aside: all, or those --older-than",
    )
    add("--dry-run", action="store_true", help="only say what would be removed")


def _age(text: str) -> float:
    match = _AGE.fullmatch(text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is not an age such as 12h, 90d or 8w")
    return float(match[1]) * _SECONDS[match[2]]


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is not a size such as 500M or 2G")
    size = float(match[1]) * 1024.0 ** _POWER[match[2].replace("K", "k")]
    if not math.isfinite(size):
        raise ArgumentTypeError(f"{text[:20]!r}... is larger than any cache")
    return int(size)


def prune(options: Namespace) -> int:
    """Remove what the options choose; returns the exit status."""
    directory, trouble = directory_of(options), Trouble()
    narrowed = options.kernel or options.device
    if options.set_aside and (narrowed or options.size is not None):
        raise UsageError("--set-aside goes with --older-than only: whose the files were cannot be read from them")
    if not (options.set_aside or narrowed or options.size is not None or options.older_than is not None):
        raise UsageError("prune wants to know what to remove: --older-than, --size, --kernel, --device or --set-aside")
    removed, size = (_prune_set_aside if options.set_aside else _prune_entries)(options, directory, trouble)
    what = count(removed, "file") if options.set_aside else entries_text(removed)
    print(f"{_verb(options)} {what}, {size_text(size)}")
    return trouble.end()


def _verb(options: Namespace) -> str:
    return "would remove" if options.dry_run else "removed"


def _prune_set_aside(options: Namespace, directory: Path, trouble: Trouble) -> tuple[int, int]:
    """Number and bytes of what was removed."""
    number = total = 0
    oldest = time.time() - (options.older_than or 0.0)
    for path in (path for item in upkeep.items(directory) for path in item.set_aside):
        try:
            status = path.lstat()
            if options.older_than is not None and status.st_mtime > oldest:
                continue
            if not options.dry_run:
                files.remove(path)
        except (OSError, StoreError) as error:
            trouble(f"{path} stays: {error}")
            continue
        print(f"{_verb(options)} {printable(str(path))}, {size_text(status.st_size)}")
        number, total = number + 1, total + status.st_size
    return number, total


def _prune_entries(options: Namespace, directory: Path, trouble: Trouble) -> tuple[int, int]:
    """Number and bytes of what was removed."""
    number = total = 0
    now = time.time()
    for item in _doomed(_candidates(options, directory, trouble), now, options.older_than, options.size):
        name = _name(item)
        try:
            reason = upkeep.remove(directory, item, options.dry_run)
        except StoreError as error:
            reason = str(error)
        if reason:
            trouble(f"{name} stays: {reason}")
            continue
        age, size = age_text(now - item.used), size_text(item.removable)
        print(printable(f"{_verb(options)} {name}, {size}, last used {age} ago"))
        number, total = number + 1, total + item.removable
    return number, total


def _candidates(options: Namespace, directory: Path, trouble: Trouble) -> Iterator[Item]:
    if options.kernel or options.device:
        yield from (item for item, _ in wanted_entries(options, directory, trouble))
    else:
        yield from (item for item in upkeep.items(directory) if item.entry or item.journals)


def _doomed(candidates: Iterator[Item], now: float, older_than: float | None, size: int | None) -> Sequence[Item]:
    """Which of the items are to go, least recently used first."""
    known = sorted(candidates, key=lambda item: item.used)
    if older_than is None and size is None:
        return known
    left = sum(item.removable for item in known)
    doomed = []
    for item in known:
        is_old = older_than is not None and now - item.used >= older_than
        if is_old or (size is not None and left > size):
            doomed.append(item)
            left -= item.removable
    return doomed


def _name(item: Item) -> str:
    """What the item is called in messages."""
    name = "interrupted search"
    if item.entry is not None:
        name = "entry"
        with suppress(StoreError, ValueError):
            if entry := read_entry(item.entry, item.fingerprint):
                name = f"{entry.kernel} ({entry.device or 'device unknown'})"
    return f"{name} {item.fingerprint[:SHORT]}"
