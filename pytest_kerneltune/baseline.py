"""Baselines in version control: one file per device and test module, one row per kernel.

::

    {
      "device": {...},              facts of the device, for the reader
      "kernels": {
        "softmax[n1024]": {...}     a gate.Baseline
      },
      "schema": 1
    }

Diffs stay as small as what changed: keys are sorted, and a row that is not updated keeps its very bytes, however it was
formatted. Nothing is written where no row changes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_kerneltune import files
from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.gate import Baseline

SCHEMA = 1

_RECORD = "run `pytest --autotune=none --update-baselines`"
_RESTORE = f"restore it from version control, or delete it and {_RECORD}"
_LOCK_TIMEOUT_S = 60.0
_CONFLICT = re.compile(rb"^(<{7}|={7}|>{7}|\|{7})(\s|$)", re.MULTILINE)
_TRADEMARK = re.compile(r"\((r|tm|c)\)")
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_IGNORED = "*.lock\n*.tmp\n.gitignore\n"


@dataclass(frozen=True)
class BaselineFile:
    """What a baseline file holds: facts of the device, and the rows by the kernel's name."""

    device: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, Baseline] = field(default_factory=dict)


@dataclass(frozen=True)
class _Member:
    """One member of a JSON object: ``text`` runs from its name's opening quote to its value's end."""

    text: str
    value: Any


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
    except OSError:  # no directory, or none that may be listed
        return []
    return [slug for slug in slugs if slug != device_slug and baseline_path(directory, slug, module).is_file()]


def load_baselines(path: Path) -> BaselineFile:
    """The file's content, empty where there is no such file.

    Raises StoreError that names the file, and the row, and what to do, where it cannot be read, is malformed, holds
    conflict markers, or was written by a newer version.
    """
    top = _document(path)
    if not top:
        return BaselineFile()
    return BaselineFile(
        top["device"].value, {name: _baseline(path, name, member.value) for name, member in _rows(path, top).items()}
    )


def write_baselines(path: Path, device: Mapping[str, Any], updates: Mapping[str, Baseline]) -> tuple[str, ...]:
    """Put the rows of ``updates`` into the file, under its lock; returns the names of the rows that changed.

    The rest of the file stays as it is, byte for byte; only ``device`` is replaced too, if a row changed. Raises
    StoreError as :func:`load_baselines` does, but does not look into rows that stay.
    """
    if not updates:
        return ()
    with files.locked(path, timeout_s=_LOCK_TIMEOUT_S):
        _hide_helper_files(path.parent)
        top = _document(path)
        rows = _rows(path, top)
        texts = {name: member.text for name, member in rows.items()}
        fresh = {name: _text(path, name, row.to_json(), rows.get(name), "    ") for name, row in updates.items()}
        changed = tuple(name for name, text in fresh.items() if text != texts.get(name))
        if changed:
            members = {name: member.text for name, member in top.items()}
            members["device"] = _text(path, "device", dict(device), top.get("device"), "  ")
            members["kernels"] = '"kernels": ' + _object({**texts, **fresh}, "  ")
            members["schema"] = f'"schema": {SCHEMA}'
            files.write_text(path, _object(members, "") + "\n")
    return changed


def _hide_helper_files(directory: Path) -> None:
    """Keep the lock, which has to stay beside its file, out of git's sight."""
    ignore = directory / ".gitignore"
    if not ignore.exists():
        files.write_text(ignore, _IGNORED)


def _document(path: Path) -> dict[str, _Member]:
    """The members of the file's object, checked; empty where there is no such file."""
    content = files.read_bytes(path)
    if content is None:
        return {}
    try:
        value = files.parse_json(content)
    except ValueError as error:
        raise StoreError(_unreadable(path, content, error)) from None
    if not isinstance(value, dict):
        raise _malformed(path, "it is not a JSON object")
    text = content.decode()
    top = _members(path, text, _after_space(text, 0))
    _check_schema(path, value.get("schema"))
    for name in ("device", "kernels"):
        if not isinstance(value.get(name), dict):
            raise _malformed(path, f"{name!r} is missing or not an object")
    return top


def _check_schema(path: Path, schema: Any) -> None:
    if type(schema) is not int or schema < 1:
        raise _malformed(path, f"'schema' is {schema!r}")
    if schema > SCHEMA:
        raise StoreError(
            f"{path} was written by a newer pytest-kerneltune (schema {schema}; this one knows {SCHEMA}): upgrade it"
        )


def _rows(path: Path, top: Mapping[str, _Member]) -> dict[str, _Member]:
    if not top:
        return {}
    text = top["kernels"].text
    return _members(path, text, text.index("{"))


def _baseline(path: Path, name: str, value: Any) -> Baseline:
    try:
        return Baseline.from_json(value)
    except ValueError as error:
        raise StoreError(f"{path}: the row {name!r} is malformed: {error}; {_RESTORE}") from error


def _unreadable(path: Path, content: bytes, error: ValueError) -> str:
    if marker := _CONFLICT.search(content):
        line = content.count(b"\n", 0, marker.start()) + 1
        return (
            f"{path} holds conflict markers (line {line}): finish the merge, keeping one version of each row, "
            f"or delete the rows in conflict and {_RECORD}"
        )
    return str(_malformed(path, str(error)))


def _malformed(path: Path, reason: str) -> StoreError:
    return StoreError(f"{path} is no baseline file: {reason}; {_RESTORE}")


def _members(path: Path, text: str, opening: int) -> dict[str, _Member]:
    """The members of the object that opens at ``opening`` in the valid JSON ``text``."""
    found: dict[str, _Member] = {}
    for name, member in _scan(text, opening):
        if name in found:
            raise _malformed(path, f"{name!r} stands in it twice")
        found[name] = member
    return found


def _scan(text: str, opening: int) -> Iterator[tuple[str, _Member]]:
    at = _after_space(text, opening + 1)
    while text[at] != "}":
        name, end = _DECODER.raw_decode(text, at)
        colon = _after_space(text, end)
        value, end = _DECODER.raw_decode(text, _after_space(text, colon + 1))
        yield name, _Member(text[at:end], value)
        at = _after_space(text, end)
        if text[at] == ",":
            at = _after_space(text, at + 1)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _text(path: Path, name: str, value: Any, old: _Member | None, indent: str) -> str:
    """The member's text: the old one where that says the same."""
    try:
        if old is not None and _canonical(old.value) == _canonical(value):
            return old.text
        lines = json.dumps(value, indent=2, sort_keys=True, allow_nan=False).splitlines()
    except (TypeError, ValueError) as error:
        raise StoreError(f"cannot write {name!r} to {path}: {error}") from error
    return f"{json.dumps(name)}: " + f"\n{indent}".join(lines)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _object(members: Mapping[str, str], indent: str) -> str:
    if not members:
        return "{}"
    separator = f"\n{indent}  "
    return "{" + separator + f",{separator}".join(members[name] for name in sorted(members)) + f"\n{indent}}}"
