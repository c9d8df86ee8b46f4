"""Imports in a process that runs an older version of a repository: what lies in the repository comes from a checkout.

1. A module that the checkout holds is loaded from there, however it was found: by ``sys.path``, by a ``.pth`` file or
   by the import hook of an editable install.
2. A module that git tracks today and the checkout does not hold is missing, as it was then.
3. What git does not track (a virtual environment, a built extension, a generated file) is today's; ``remarks`` names
   the extensions, whose sources may have been others.
4. A package of the repository of which a copy is installed is the checkout's, too: a copy is made of today's files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

_OWN = __name__.partition(".")[0]
_LIBRARY_FOLDERS = frozenset(("site-packages", "dist-packages"))
_SOURCE_FOLDERS = ("", "src", "lib", "python")  # where repositories keep the packages that are installed


@dataclass(frozen=True)
class Places:
    """``top`` is the repository's folder, ``checkout`` that of its older version, both without symbolic links.
    ``tracked`` are the files that git tracks today, relative to ``top``."""

    top: Path
    checkout: Path
    tracked: frozenset[str]

    def at_base(self, path: str | Path) -> Path | None:
        """Where ``path`` is in the older version: in the checkout; at its own place where it is outside the repository
        or not tracked; None where it is tracked, and was not there."""
        inside = self.inside(path)
        if inside is None:
            return Path(path)
        if (found := self.checkout / inside).exists():
            return found
        return None if self.is_tracked(inside) else Path(path)

    def in_checkout(self, path: Path) -> Path:
        """``path`` in the checkout, there or not, where it lies in the repository; else ``path`` itself."""
        inside = self.inside(path)
        return path if inside is None else self.checkout / inside

    def inside(self, path: str | Path) -> str | None:
        """``path`` relative to the repository; None where it lies outside, or in this package."""
        for form in (os.path.abspath(path), os.path.realpath(path)):  # noqa: PTH100 - as written, and as it is
            if Path(form).is_relative_to(self._package):
                return None
            if Path(form).is_relative_to(self.top):
                return Path(form).relative_to(self.top).as_posix()
        return None

    def today(self, path: str) -> str | None:
        """The place in the repository of what lies at ``path`` in the checkout; None for other paths."""
        own = Path(path)
        return str(self.top / own.relative_to(self.checkout)) if own.is_relative_to(self.checkout) else None

    def is_tracked(self, inside: str) -> bool:
        """Whether git tracks this file or something in this folder (relative to the repository)."""
        return inside in self.tracked or inside in self._folders

    def search_path(self, entries: Iterable[str]) -> list[str]:
        """``sys.path`` for the older version: what lies in the repository last, for what only today has."""
        given = [entry or str(Path.cwd()) for entry in entries]
        found = dict.fromkeys(str(place) for entry in given if (place := self.at_base(entry)) is not None)
        return list(dict.fromkeys([*found, *(entry for entry in given if self.inside(entry) is not None)]))

    def sources(self, name: str) -> list[str]:
        """Folders of the checkout that hold the top-level module ``name``, which git still tracks today."""
        kept = [folder for folder in _SOURCE_FOLDERS if self.tracks_module((Path(folder) / name).as_posix())]
        return [str(self.checkout / folder) for folder in kept]

    def tracks_module(self, inside: str) -> bool:
        """Whether git tracks a module or package of this path without its ending (relative to the repository)."""
        return f"{inside}.py" in self.tracked or f"{inside}/__init__.py" in self.tracked

    @cached_property
    def _folders(self) -> frozenset[str]:
        return frozenset(str(parent) for file in self.tracked for parent in Path(file).parents)

    @cached_property
    def _package(self) -> Path:
        return Path(__file__).resolve().parent


class Redirect(MetaPathFinder):
    """The finder that keeps the rules above; this package itself is always today's."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._installed: dict[str, str] = {}  # copies of packages of the repository: name to folder
        self._built: set[str] = set()  # extension modules that are today's

    def put_first(self) -> None:
        """Ask this finder before all others."""
        sys.meta_path[:] = [self, *(finder for finder in sys.meta_path if finder is not self)]

    def remarks(self, packed: bytes) -> tuple[str, ...]:
        """What to say of a kernel that ``packed`` is the pickle of, if it refers to extension modules of today."""
        names = (name for name in sorted(self._built) if _pickled(name.encode()) in packed)
        text = "the extension module {} is today's in both versions: git does not track it"
        return tuple(text.format(name) for name in names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] == _OWN:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find = getattr(finder, "find_spec", None)
            if find is not None and (spec := find(fullname, path, target)) is not None:
                return self._at_base(spec)
        return self._of_today(fullname, path or ())

    def _at_base(self, spec: ModuleSpec) -> ModuleSpec:
        """``spec`` as it was in the older version; raises ModuleNotFoundError."""
        if spec.has_location and spec.origin:
            return self._file_at_base(spec, spec.origin)
        folders = list(spec.submodule_search_locations or ())
        if all(self._places.inside(folder) is None for folder in folders):
            return spec
        known = dict.fromkeys(str(p) for folder in folders if (p := self._places.at_base(folder)) is not None)
        if not known:
            raise _missing(spec.name)
        namespace = ModuleSpec(spec.name, None, is_package=True)
        namespace.submodule_search_locations = list(known)
        return namespace

    def _file_at_base(self, spec: ModuleSpec, file: str) -> ModuleSpec:
        inside = self._places.inside(file)
        if inside is None:
            return self._source_of_copy(spec, file)
        is_package = spec.submodule_search_locations is not None
        place = self._places.checkout / inside
        folder = place.parent.parent if is_package else place.parent
        if place.exists():
            inner = [str(place.parent)] if is_package else None
            found = spec_from_file_location(spec.name, place, submodule_search_locations=inner)
        else:  # perhaps a module then and a package today
            found = PathFinder.find_spec(spec.name, [str(folder)])
        if found is not None and found.has_location:
            return found
        if self._places.is_tracked(inside):
            raise _missing(spec.name)
        self._note_built(spec, file)
        return self._source_of_copy(spec, file)

    def _note_built(self, spec: ModuleSpec, file: str) -> None:
        if file.endswith(tuple(EXTENSION_SUFFIXES)) and _LIBRARY_FOLDERS.isdisjoint(Path(file).parts):
            self._built.add(spec.name)

    def _source_of_copy(self, spec: ModuleSpec, file: str) -> ModuleSpec:
        """What an installed copy is a copy of, in the checkout; ``spec`` itself where it is none."""
        is_installed = "." not in spec.name and not _LIBRARY_FOLDERS.isdisjoint(Path(file).parts)
        folders = self._places.sources(spec.name) if is_installed else []
        if not folders:
            return spec
        found = PathFinder.find_spec(spec.name, folders)
        if found is None or not found.has_location:
            raise _missing(spec.name)
        self._installed[spec.name] = str(Path(file).parent)
        return found

    def _of_today(self, fullname: str, path: Sequence[str]) -> ModuleSpec | None:
        """A module that git does not track, of a package that was found in the checkout: beside today's files, or in an
        installed copy."""
        folders = [folder for entry in path if (folder := self._places.today(entry)) is not None]
        top, *inner = fullname.split(".")
        known = [f"{self._places.inside(folder)}/{inner[-1]}" for folder in folders if inner]
        if top in self._installed and known and not any(map(self._places.tracks_module, known)):
            folders.append(str(Path(self._installed[top], *inner[:-1])))
        spec = PathFinder.find_spec(fullname, folders) if folders else None
        if spec is None:
            return None
        files = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
        inside = [self._places.inside(file) for file in files]
        if any(name is not None and self._places.is_tracked(name) for name in inside):
            return None
        if any(file.endswith(tuple(EXTENSION_SUFFIXES)) for file in files):
            self._built.add(fullname)
        return spec


def _pickled(name: bytes) -> bytes:
    """A short text as it stands in a pickle."""
    return b"\x8c" + bytes([len(name) & 255]) + name


def _missing(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r} in the older version of the repository", name=name)
