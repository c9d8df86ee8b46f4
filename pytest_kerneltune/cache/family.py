"""Families of kernels: which cache entries are of the same kernel at other inputs, or before an edit of its source.

::

    DIRECTORY/families/ab12.../cd34....json      says that the entry cd34... is of the family ab12...

1. These files only point: an entry's fingerprint in the name, and in the file what likeness is judged by. The entry may
   be gone, or of another family by now: whoever reads it checks.
2. Looking costs what the family has, however large the cache is, and of a large family the newest members only.
3. They are an aid: what cannot be read, or is not as written here, is passed over in silence.
4. Most alike is a kernel of the same name and inputs: the source was edited. Then come those that differ in numbers
   only, then the rest; nearest first, by how many times larger the numbers in the name's parameters and the inputs are
   (as the sum of logarithms, since performance follows orders of magnitude); among equals the newest first.
"""

from __future__ import annotations

import heapq
import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_kerneltune import files
from pytest_kerneltune.errors import StoreError

FINGERPRINT = re.compile("[0-9a-f]{4,64}")
"""What entries and families are called."""

_LOOKED_AT = 500
_LARGEST_FILE = 1 << 16
_TEXT_LIMIT = 4000
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LARGEST_NUMBER = 1e30


@dataclass(frozen=True)
class Member:
    """An entry as its family knows it: ``kernel`` is the name with its parameters, ``created`` an ISO 8601 date."""

    fingerprint: str
    kernel: str
    inputs: tuple[str, ...]
    created: str = ""

    @property
    def sizes(self) -> str:
        """All that tells it from others of its family, in words."""
        return "\n".join([self.kernel.partition("[")[2], *self.inputs])[:_TEXT_LIMIT]


class Family:
    """The members of one family, of the cache in ``directory``; raises ValueError where ``name`` is none."""

    def __init__(self, directory: Path, name: str) -> None:
        if not FINGERPRINT.fullmatch(name):
            raise ValueError(f"{name!r} is no family")
        self._folder = directory / "families" / name

    def add(self, member: Member) -> None:
        """Put ``member`` in, in place of an earlier one of its fingerprint; raises StoreError."""
        content = {"kernel": member.kernel, "inputs": _clipped(member.inputs), "created": member.created}
        files.write_json(self._folder / f"{member.fingerprint}.json", content)

    def alike(self, own: Member) -> list[Member]:
        """The other members, most alike first."""
        others = sorted(self._newest(), key=lambda member: member.fingerprint)
        others.sort(key=lambda member: member.created, reverse=True)
        return sorted((m for m in others if m.fingerprint != own.fingerprint), key=lambda m: _unlikeness(own, m))

    def _newest(self) -> Iterator[Member]:
        for _, path in heapq.nlargest(_LOOKED_AT, self._files()):
            with suppress(StoreError, ValueError, KeyError, TypeError):
                yield _member(path)

    def _files(self) -> Iterator[tuple[int, Path]]:
        """The members' files, each with when it was written; no links, and nothing else that only looks like one."""
        with suppress(OSError), os.scandir(self._folder) as found:
            for entry in found:
                with suppress(OSError):  # removed meanwhile
                    known = entry.stat(follow_symlinks=False)
                    if entry.is_file(follow_symlinks=False) and known.st_size <= _LARGEST_FILE:
                        yield known.st_mtime_ns, Path(entry.path)


def _member(path: Path) -> Member:
    """The member in a file; raises StoreError, ValueError, KeyError or TypeError where it is none."""
    data = files.read_json(path)
    if path.suffix != ".json" or not FINGERPRINT.fullmatch(path.stem):
        raise ValueError(f"{path.name} is not called as an entry is")
    inputs = tuple(map(_text, data["inputs"]))
    return Member(path.stem, _text(data["kernel"]), inputs, _text(data["created"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _clipped(inputs: tuple[str, ...]) -> list[str]:
    """So much of ``inputs`` as fits into a file that is small; likeness is judged by no more."""
    return "\n".join(inputs)[:_TEXT_LIMIT].split("\n") if inputs else []


def _unlikeness(own: Member, other: Member) -> tuple[bool, bool, float]:
    """How unlike two members are: the less, the more alike."""
    is_edit = own.kernel == other.kernel and _clipped(own.inputs) == _clipped(other.inputs)
    words = [_NUMBER.sub("#", member.sizes) for member in (own, other)]
    return not is_edit, words[0] != words[1], _distance(own.sizes, other.sizes)


def _distance(left: str, right: str) -> float:
    """The sum over the numbers of two texts, in order, of how many times 2 they are apart; 1 for each left over."""
    ours, theirs = _logarithms(left), _logarithms(right)
    return sum(abs(a - b) for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))


def _logarithms(text: str) -> list[float]:
    return [math.log2(1 + min(float(number), _LARGEST_NUMBER)) for number in _NUMBER.findall(text)]
