"""Baselines in version control: one file per device and test module, one row per kernel.

::

    {
      "device": {...},              facts of the device, for the reader
      "kernels": {
        "softmax[n1024]": {...}     a record.Baseline
      },
      "schema": 2
    }

Diffs stay as small as what changed: rows are sorted, and one that is not updated keeps its very bytes, however it was
formatted and whatever schema it is of. Nothing is written where no row changes. Schema 1, whose rows hold one session
each and no history, is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pytest_kerneltune import files
from pytest_kerneltune.baseline_text import RECORD, Document
from pytest_kerneltune.baseline_text import SCHEMA as SCHEMA
from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.record import Baseline

FOLDER = "__kerneltune__"
"""Where baselines are kept, beside the test file, unless ``--baseline-dir`` says otherwise."""

_LOCK_TIMEOUT_S = 60.0
_TRADEMARK = re.compile(r"\((r|tm|c)\)")
_IGNORED = "*.lock\n*.lock.*\n*.tmp\n.gitignore\n"


@dataclass(frozen=True)
class BaselineFile:
    """What a baseline file holds: facts of the device, and the rows by the kernel's name."""

    device: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, Baseline] = field(default_factory=dict)


def device_slug(name: str) -> str:
    """A device's name as a directory: "NVIDIA H200" is "nvidia-h200"."""
    plain = _TRADEMARK.sub(" ", name.lower())
    return re.sub("[^a-z0-9]+", "-", plain).strip("-") or "unnamed"


def baseline_path(directory: Path, device_slug: str, module: str) -> Path:
    """The file with the baselines of the test module ``module`` on a device."""
    return directory / device_slug / f"{module}.json"


def other_devices(directory: Path, module: str, device_slug: str) -> list[str]:
    """Slugs of the other devices that have baselines of ``module``, sorted."""
    try:
        slugs = sorted(child.name for child in directory.iterdir())
        return [slug for slug in slugs if slug != device_slug and baseline_path(directory, slug, module).is_file()]
    except OSError:  # no directory, or none that may be listed or entered
        return []


def load_baselines(path: Path) -> BaselineFile:
    """The file's content, empty where there is no such file.

    Raises StoreError that names the file, and the row, and what to do, where it cannot be read, is malformed, holds
    conflict markers, or was written by a newer version.
    """
    document = _document(path)
    return BaselineFile(document.device, document.baselines)


def load_baseline(path: Path, name: str) -> Baseline | None:
    """The row ``name`` of the file, None where there is none.

    Raises StoreError as :func:`load_baselines` does, but does not look into other rows: what is wrong inside one is its
    own kernel's concern, as long as the file is JSON.
    """
    document = _document(path)
    return document.baseline(name) if name in document.rows else None


def row_names(path: Path) -> tuple[str, ...]:
    """Names of the file's rows, malformed ones included; raises StoreError as :func:`load_baseline` does."""
    return tuple(_document(path).rows)


def write_baselines(path: Path, device: Mapping[str, Any], updates: Mapping[str, Baseline]) -> tuple[str, ...]:
    """Put the rows of ``updates`` into the file, as :func:`update_baselines` does."""
    return update_baselines(path, device, {name: partial(_replacement, row) for name, row in updates.items()})


def _replacement(row: Baseline, _: Baseline | None) -> Baseline:
    return row


def update_baselines(
    path: Path, device: Mapping[str, Any], updates: Mapping[str, Callable[[Baseline | None], Baseline]]
) -> tuple[str, ...]:
    """Replace rows by what ``updates`` make of them (None: there is none, or a malformed one), under the file's lease;
    returns the names of the rows that changed.

    The rest of the file stays as it is, byte for byte; only ``device`` is replaced too, if a row changed. An update may
    be asked twice, where another process changed the file although we had its lease. Raises StoreError as
    :func:`load_baselines` does, but does not look into rows that stay.
    """
    if not updates:
        return ()

    def change(old: Document) -> tuple[tuple[str, ...], Document]:
        new = old.updated(device, {name: update(old.readable(name)) for name, update in updates.items()})
        return tuple(name for name in updates if new.rows[name] is not old.rows.get(name)), new

    return _changed(path, change)


def orphans(rows: Iterable[str], ran: Collection[str], complete: bool) -> tuple[str, ...]:
    """Of the names of a file's ``rows`` those that no kernel of the run has, sorted; none unless the run was
    ``complete``: all tests of the file's module ran to their end."""
    return tuple(sorted(set(rows).difference(ran))) if complete else ()


def prune_baselines(path: Path, names: Collection[str]) -> tuple[str, ...]:
    """Take the rows ``names`` out of the file, under its lease, and remove the file where no row is left.

    Returns the names of the rows that were there; the other rows keep their bytes. Raises StoreError as
    :func:`load_baselines` does, but does not look into rows.
    """
    if not names or not _document(path).rows:
        return ()

    def change(old: Document) -> tuple[tuple[str, ...], Document]:
        left = {name: member for name, member in old.rows.items() if name not in names}
        return tuple(name for name in old.rows if name not in left), replace(old, rows=left)

    return _changed(path, change)


def _changed(path: Path, change: Callable[[Document], tuple[tuple[str, ...], Document]]) -> tuple[str, ...]:
    """Put what ``change`` makes of the file in its place, under its lease; returns the rows that it names."""
    with files.locked(path, timeout_s=_LOCK_TIMEOUT_S) as lease:
        _hide_helper_files(path.parent)
        names, new = change(_document(path))
        is_alone = not names or lease.is_held()
        if names and is_alone:
            if new.rows:
                files.write_text(path, new.render())
            else:
                files.remove(path)
    # A process that was stopped for longer than a lease starts again from what the file is now.
    return names if is_alone else _changed(path, change)


def _document(path: Path) -> Document:
    try:
        content = files.read_bytes(path)
    except StoreError as error:
        raise StoreError(f"{error}; make it a file that can be read, or move it away and {RECORD}") from error
    return Document.parse(str(path), content)


def _hide_helper_files(directory: Path) -> None:
    """Keep the marker of the lease, and what a killed process leaves, out of git's sight."""
    ignore = directory / ".gitignore"
    if not ignore.exists():
        files.write_text(ignore, _IGNORED)
