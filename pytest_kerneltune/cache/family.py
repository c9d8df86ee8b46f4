"""Families of kernels: which cache entries are of the same kernel at other inputs, before an edit, on other devices.

::

    DIRECTORY/families/ab12.../cd34....json      says that the entry cd34... is of the family ab12...

1. These files only point: an entry's fingerprint in the name, and in the file what likeness is judged by. The entry may
   be gone, or of another family by now: whoever reads it checks.
2. Looking costs what the family has, however large the cache is. Of a large family the newest members are looked at; a
   file from the future, where a clock was wrong, counts as older than any other, or it would be the newest for ever.
3. They are an aid: what cannot be read, is a link, or is not as written here, is passed over in silence.

Which trials say most about a kernel, the most alike first:

1. Of the same device before those of another one, whatever their inputs. A device's limits decide which configs work at
   all, and its caches and schedulers which sizes are fast. Of other devices those of the same maker come first: on
   recorded spaces the ranks of configs agree to 0.76 - 0.92 (Spearman) between two GPUs of one maker, one or two
   generations apart, and to 0.26 - 0.41 between GPUs of two makers. A processor's say nothing about a GPU, nor a GPU's
   about a processor: they are left out.
2. Of the same name and inputs: the source was edited, or only the device differs. Then those that differ in numbers
   only, then the rest, which have other types or layouts.
3. The nearest by how many times larger the numbers in the name's parameters and the inputs are (as the sum of
   logarithms, since performance follows orders of magnitude).
4. Of the device whose name begins most alike: makers number their devices by generation first ("H100" and "H200").
5. The newest: of several earlier versions the last is the likest.
"""

from __future__ import annotations

import heapq
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from pytest_kerneltune import files
from pytest_kerneltune.cache.entry import Entry
from pytest_kerneltune.errors import StoreError

FINGERPRINT = re.compile("[0-9a-f]{4,64}")
"""What entries and families are called."""

_FILE = re.compile(rf"{FINGERPRINT.pattern}\.json")
_LISTED = 20_000  # names in a folder
_LOOKED_AT = 500
_LARGEST_FILE = 1 << 16
_TEXT_LIMIT, _NAME_LIMIT = 4000, 500  # characters, which are 12 bytes of JSON at most
_CLOCK_SKEW = timedelta(days=1)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LARGEST_NUMBER = 1e30
_PROCESSOR = re.compile(
    r"\b(cpu|processor|intel core|xeon|epyc|ryzen|threadripper|neoverse|cortex|arm|arm64|aarch64|x86_64)\b"
)
_GPU = re.compile(r"\b(nvidia|radeon|instinct|graphics|gpu)\b")
_NVIDIA_LINES = ("tesla ", "geforce ", "quadro ", "titan ")  # what older drivers leave the maker out of
_DECORATION = re.compile(r"\((?:r|tm|c)\)|^\d+(?:st|nd|rd|th) gen ")


@dataclass(frozen=True)
class Member:
    """An entry as its family knows it.

    ``kernel`` is the name with its parameters, ``created`` an ISO 8601 date, ``device`` the device's name for people;
    both are "" where nobody knows.
    """

    fingerprint: str
    kernel: str
    inputs: tuple[str, ...]
    created: str = ""
    device: str = ""

    @classmethod
    def of(cls, entry: Entry) -> Member:
        """``entry`` as its family is to know it."""
        return cls(entry.fingerprint, entry.kernel, entry.inputs, entry.last.created, entry.device)

    @property
    def sizes(self) -> str:
        """All that tells it from others of its family on its device, in words."""
        return "\n".join([self.kernel.partition("[")[2], *self.inputs])[:_TEXT_LIMIT]

    def clipped(self) -> Member:
        """With so much of each text as fits into a file that is small; likeness is judged by no more."""
        inputs = tuple("\n".join(self.inputs)[:_TEXT_LIMIT].split("\n")) if self.inputs else ()
        return replace(self, kernel=self.kernel[:_NAME_LIMIT], inputs=inputs, device=self.device[:_NAME_LIMIT])


def by_likeness(own: Member, members: Iterable[Member]) -> list[Member]:
    """Those of ``members`` that say something about ``own``, itself left out, most alike first."""
    likeness, latest = _Likeness(own.clipped()), _latest_date()
    others = [m for m in members if m.fingerprint != own.fingerprint and likeness.is_related(m)]
    others.sort(key=lambda member: member.fingerprint)
    others.sort(key=lambda member: member.created if member.created <= latest else "", reverse=True)
    return sorted(others, key=likeness.unlikeness)


class Family:
    """The members of one family, of the cache in ``directory``; raises ValueError where ``name`` is none."""

    def __init__(self, directory: Path, name: str) -> None:
        if not FINGERPRINT.fullmatch(name):
            raise ValueError(f"{name!r} is no family")
        self._directory, self._folder = directory, directory / "families" / name
        self._folders = (self._folder.parent, self._folder)

    def add(self, member: Member) -> None:
        """Put ``member`` in, in place of an earlier one of its fingerprint; raises StoreError.

        Raises ValueError where its fingerprint is none.
        """
        if not FINGERPRINT.fullmatch(member.fingerprint):
            raise ValueError(f"{member.fingerprint!r} is no fingerprint")
        if link := next(filter(_is_link, self._folders), None):
            raise StoreError(f"{link} is a link, which could lead anywhere: nothing is written there")
        content = asdict(member.clipped())
        del content["fingerprint"]
        files.write_json(self._folder / f"{member.fingerprint}.json", content, like=self._directory, lasting=False)

    def alike(self, own: Member) -> list[Member]:
        """The other members, most alike first."""
        return by_likeness(own, self._newest())

    def _newest(self) -> Iterator[Member]:
        latest_ns = time.time_ns() + int(_CLOCK_SKEW.total_seconds()) * 10**9
        found = ((ns <= latest_ns, ns, path) for ns, path in self._files())
        for _, _, path in heapq.nlargest(_LOOKED_AT, found):
            with suppress(StoreError, ValueError, KeyError, TypeError):
                yield _member(path)

    def _files(self) -> Iterator[tuple[int, Path]]:
        """The members' files, each with when it was written; no links, and nothing else that only looks like one."""
        if any(map(_is_link, self._folders)):
            return
        with suppress(OSError), os.scandir(self._folder) as found:
            for entry in islice(found, _LISTED):
                if not _FILE.fullmatch(entry.name):
                    continue
                with suppress(OSError):  # removed meanwhile
                    known = entry.stat(follow_symlinks=False)
                    if entry.is_file(follow_symlinks=False) and known.st_size <= _LARGEST_FILE:
                        yield known.st_mtime_ns, Path(entry.path)


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError:  # whoever uses it is told why
        return False


def _member(path: Path) -> Member:
    """The member in a file; raises StoreError, ValueError, KeyError or TypeError where it is none."""
    data = files.read_json(path)
    inputs = tuple(map(_text, data["inputs"]))
    kernel, created, device = (_text({"device": "", **data}[name]) for name in ("kernel", "created", "device"))
    return Member(path.stem, kernel, inputs, created, device).clipped()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


class _Likeness:
    """How alike others are to ``own``, whose texts are taken apart once."""

    def __init__(self, own: Member) -> None:
        self._own, self._device = own, _device_words(own.device)
        self._words, self._numbers = _words(own.sizes), _logarithms(own.sizes)

    def is_related(self, other: Member) -> bool:
        """Whether the trials of ``other`` may say anything."""
        return {_kind(self._device), _kind(_device_words(other.device))} != {"processor", "GPU"}

    def unlikeness(self, other: Member) -> tuple[int, bool, bool, float, int]:
        """The less, the more alike: points 1 to 4 of the module."""
        own, device, sizes = self._own, _device_words(other.device), other.sizes
        return (
            self._foreignness(other.device, device),
            (own.kernel, own.inputs) != (other.kernel, other.inputs),
            self._words != _words(sizes),
            _distance(self._numbers, _logarithms(sizes)),
            -_shared_beginning(self._device, device),
        )

    def _foreignness(self, name: str, device: str) -> int:
        """0 for the same device, 1 for one of the same maker, 2 for any other."""
        if name == self._own.device:
            return 0
        return 1 if device and device.partition(" ")[0] == self._device.partition(" ")[0] else 2


@lru_cache(maxsize=256)
def _device_words(name: str) -> str:
    """A device's name in lower case, its maker first."""
    plain = " ".join(_DECORATION.sub(" ", name.lower()).split())
    return f"nvidia {plain}" if plain.startswith(_NVIDIA_LINES) else plain


@lru_cache(maxsize=256)
def _kind(device: str) -> str:
    """ "processor" or "GPU", as the name says; "" where it does not."""
    if _PROCESSOR.search(device):  # first: many a processor is called "... with Radeon Graphics"
        return "processor"
    return "GPU" if _GPU.search(device) else ""


def _shared_beginning(left: str, right: str) -> int:
    """How many characters two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _words(text: str) -> str:
    return _NUMBER.sub("#", text)


def _distance(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The sum over logarithms, in order, of how far they are apart; 1 for each left over."""
    return sum(abs(a - b) for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))


def _logarithms(text: str) -> list[float]:
    """How often each number in ``text`` can be halved until nothing is left, in order."""
    return [math.log2(1 + min(float(number), _LARGEST_NUMBER)) for number in _NUMBER.findall(text)]


def _latest_date() -> str:
    """What a clock that is right may say now, as an ISO 8601 date."""
    return (datetime.now(UTC) + _CLOCK_SKEW).isoformat(timespec="seconds")
