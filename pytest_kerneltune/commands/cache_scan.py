"""Reads a tuning cache for commands, entry by entry."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pytest_kerneltune.cache import Entry
from pytest_kerneltune.cache.store import read_entry
from pytest_kerneltune.cache.upkeep import Item, items
from pytest_kerneltune.commands.arguments import matches
from pytest_kerneltune.errors import StoreError, UsageError
from pytest_kerneltune.options import default_cache_directory
from pytest_kerneltune.settings import environment
from pytest_kerneltune.texts import printable

_MOST_SAID = 20


def add_directory(parser: ArgumentParser) -> None:
    """The option ``--cache``."""
    parser.add_argument(
        "--cache",
        type=_directory,
        metavar="DIR",
        help="the tuning cache (default: the first directory of KERNELTUNE_CACHE_DIR, else in the user's cache "
        "directory); name it here if your tests set it by --autotune-cache or in the ini file",
    )


def _directory(text: str) -> Path:
    if not text:  # of a variable that is not set, say
        raise ArgumentTypeError("it is empty, and names no directory")
    return Path(text)


def chosen_directory(options: Namespace) -> Path:
    """The directory that ``--cache`` names, or the default one, whether or not it is there."""
    return Path(options.cache or default_cache_directory(environment()))


def directory_of(options: Namespace) -> Path:
    """The same; raises UsageError where it is not there."""
    directory = chosen_directory(options)
    if not directory.is_dir():
        raise UsageError(f"there is no tuning cache at {str(directory)!r}: name it by --cache")
    return directory


def entries(directory: Path, on_problem: Callable[[str], None], prefix: str = "") -> Iterator[tuple[Item, Entry]]:
    """The cache's entries in order of their fingerprints, those that begin with ``prefix``; ``on_problem`` is told of
    what cannot be read. Raises StoreError where the directory cannot be."""
    for item in items(directory):
        if item.entry is not None and item.fingerprint.startswith(prefix):
            try:
                entry = read_entry(item.entry, item.fingerprint)
            except (ValueError, StoreError) as error:
                on_problem(f"skipped {item.entry}: {error}")
            else:
                if entry is not None:
                    yield item, entry


def is_wanted(entry: Entry, kernels: Sequence[str] | None, devices: Sequence[str] | None) -> bool:
    """Whether the entry's kernel and device match any of these patterns each; None wants all."""
    return any(matches(entry.kernel, each) for each in kernels or ("*",)) and any(
        matches(entry.device, each) for each in devices or ("*",)
    )


def say(text: str) -> None:
    """Print a line on standard error."""
    print(printable(text), file=sys.stderr)


class Trouble:
    """Says what goes wrong, so many times at most, and counts it."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, text: str) -> None:
        self.number += 1
        if self.number <= _MOST_SAID:
            say(text)

    def end(self) -> int:
        """The exit status, after a word on what was not said."""
        if self.number > _MOST_SAID:
            say(f"and {self.number - _MOST_SAID} more like these")
        return int(self.number > 0)


def wanted_entries(options: Namespace, directory: Path, trouble: Trouble) -> Iterator[tuple[Item, Entry]]:
    """The entries that ``--kernel`` and ``--device`` choose."""
    for item, entry in entries(directory, trouble):
        if is_wanted(entry, options.kernel, options.device):
            yield item, entry
