"""Texts without what differs between checkouts, runs and the devices of a machine."""

from __future__ import annotations

import functools
import re
import sysconfig
import tempfile
from pathlib import Path, PurePath

from pytest_kerneltune.source.introspection import tried

_DEVICE = re.compile(r"(cuda|hip|xpu|cpu):\d+")
_PROJECT_FILES = (".git", "pyproject.toml", "setup.py", "setup.cfg", "pytest.ini", "tox.ini")


def portable(text: str, folder: str, thorough: bool) -> str:
    """``text``, a constant of a file in ``folder``, without the path of that folder and those around it.

    With ``thorough`` also without where packages are installed, the user's home, the directory of temporary files with
    all that has a name of its own in there, and the number of a device.
    """
    places = (*folders(folder), *(_elsewhere(str(tried(Path.home, otherwise="/"))) if thorough else ()))
    for place, name in places:
        if text == place or text.startswith(f"{place}/"):
            return name + text[len(place) :]
    if not thorough:
        return text
    if _DEVICE.fullmatch(text):
        return text.partition(":")[0]
    if text.startswith(f"{tempfile.gettempdir()}/"):
        return f"(temporary){PurePath(text).suffix}"
    for place, name in places:
        if place in text and place.count("/") > 1:
            text = re.sub(rf"{re.escape(place)}(?![\w.-])", name, text)
    return text


@functools.lru_cache(maxsize=8)
def _elsewhere(home: str) -> tuple[tuple[str, str], ...]:
    """Directories that are elsewhere on another machine, each with what stands for it."""
    packages = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    return (*((path, "(packages)") for path in sorted(packages)), *([(home, "~")] if home != "/" else []))


@functools.lru_cache(maxsize=512)
def folders(folder: str) -> tuple[tuple[str, str], ...]:
    """``folder`` and those around it as far as the project reaches (one at least), each with its relative name."""
    around = [str(p) for p in (Path(folder), *Path(folder).parents) if folder and str(p) != p.anchor]
    tops = [i for i, path in enumerate(around) if any(Path(path, name).exists() for name in _PROJECT_FILES)]
    reach = max(2, tops[0] + 1) if tops else 2
    names = [".", *("/".join([".."] * n) for n in range(1, reach))]
    return tuple(zip(around, names, strict=False))
