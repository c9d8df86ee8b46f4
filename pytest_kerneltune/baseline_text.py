"""The text of a baseline file: read so that what is not updated keeps its very bytes, and laid out for git.

Two branches that change, add or remove different rows merge as text, except where both add at the same place or remove
neighbours; ``merging.py`` does those. For that a row ends with a line that never changes (its sessions' bracket): the
comma after it, which comes and goes with the next row, then is not beside a line that another branch changed. Each
session is one line, so that no merge mixes two.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_kerneltune import files
from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.record import Baseline

SCHEMA = 2

RECORD = "run `pytest --autotune=none --update-baselines`"
_RESTORE = f"restore it from version control, or delete it and {RECORD}"
_LINES = ("past", "sessions")
_ORDER = ("code", "source", "config", "contract", *_LINES)
_CONFLICT = re.compile(rb"^(<{7}|={7}|>{7}|\|{7})(\s|$)", re.MULTILINE)
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Member:
    """One member of a JSON object: ``text`` runs from its name's opening quote to its value's end."""

    text: str
    value: Any


@dataclass(frozen=True)
class Document:
    """A baseline file's content. ``name`` is what errors call it, ``text`` the whole of it as it was read; ``members``
    are those of the file but its rows, by name: both are empty where there is no file."""

    name: str
    text: str = ""
    members: Mapping[str, Member] = field(default_factory=dict)
    rows: Mapping[str, Member] = field(default_factory=dict)

    @classmethod
    def parse(cls, name: str, content: bytes | None) -> Document:
        """Of a file's content, None where there is none; does not look into rows.

        Raises StoreError that names the file, and the row where one is to blame, and what to do.
        """
        if content is None:
            return cls(name)
        try:
            value = files.parse_json(content)
        except ValueError as error:
            raise StoreError(_unreadable(name, content, error)) from None
        _check(name, value)
        text = content.decode()
        members = _members(name, text, _after_space(text, 0))
        kernels = members.pop("kernels").text
        after_name = _DECODER.raw_decode(kernels)[1]
        return cls(name, text, members, _members(name, kernels, kernels.index("{", after_name)))

    @property
    def device(self) -> Mapping[str, Any]:
        """Facts of the device, for the reader."""
        return dict(self.members["device"].value) if self.members else {}

    @property
    def baselines(self) -> dict[str, Baseline]:
        """All rows; raises StoreError as :meth:`baseline` does."""
        return {name: self.baseline(name) for name in self.rows}

    def baseline(self, name: str) -> Baseline:
        """The row ``name``; raises StoreError that names it, what is wrong with it and what to do."""
        try:
            json.loads(f"{{{self.rows[name].text}}}", object_pairs_hook=_refuse_twice)
            return Baseline.from_json(self.rows[name].value)
        except ValueError as error:
            raise StoreError(f"{self.name}: the row {name!r} is malformed: {error}; {_RESTORE}") from error

    def readable(self, name: str) -> Baseline | None:
        """The row ``name``; None where there is none, or a malformed one."""
        try:
            return self.baseline(name) if name in self.rows else None
        except StoreError:
            return None

    def updated(self, device: Mapping[str, Any], rows: Mapping[str, Baseline]) -> Document:
        """With ``rows``, and ``device`` where that changes any: one that says what it said keeps its bytes.

        Raises StoreError for facts that are no JSON.
        """
        fresh = {name: self._row(name, row) for name, row in rows.items()}
        if all(self.rows.get(name) is member for name, member in fresh.items()):
            return self
        old = self.members.get("device")
        try:
            if old is None or canonical(old.value) != canonical(device):
                old = Member(f'"device": {_indented(device, "  ")}', dict(device))
        except (TypeError, ValueError) as error:
            raise StoreError(f"cannot write 'device' to {self.name}: {error}") from error
        return replace(self, members={**self.members, "device": old}, rows={**self.rows, **fresh})

    def render(self) -> str:
        """The text; of what was read and not changed the very text that was read."""
        kernels = _object({name: member.text for name, member in self.rows.items()}, "  ")
        others = {name: member.text for name, member in self.members.items()}
        return _object({**others, "kernels": f'"kernels": {kernels}', "schema": f'"schema": {SCHEMA}'}, "") + "\n"

    def _row(self, name: str, row: Baseline) -> Member:
        before = self.readable(name)
        try:
            if before is not None and canonical(before.to_json()) == canonical(row.to_json()):
                return self.rows[name]  # of an older schema, perhaps
            return row_member(name, row)
        except (TypeError, ValueError) as error:
            raise StoreError(f"cannot write {name!r} to {self.name}: {error}") from error


def has_conflict_markers(content: bytes) -> bool:
    """Whether git left versions of two branches in the file's ``content``."""
    return _CONFLICT.search(content) is not None


def row_member(name: str, row: Baseline) -> Member:
    """The row in our layout; raises TypeError or ValueError for what is no JSON."""
    value = row.to_json()
    return Member(f"{json.dumps(name)}: {_row_text(value)}", value)


def canonical(value: Any) -> str:
    """One line that is equal for equal values; raises TypeError for what JSON has not."""
    return json.dumps(value, sort_keys=True)


def _row_text(row: Mapping[str, Any]) -> str:
    parts = {name: _lines(row[name]) if name in _LINES else _indented(row[name], "      ") for name in _ORDER}
    return "{\n      " + ",\n      ".join(f'"{name}": {text}' for name, text in parts.items()) + "\n    }"


def _lines(values: Sequence[Any]) -> str:
    separator = "\n" + " " * 8
    return (
        "[" + separator + f",{separator}".join(_indented(value, "", None) for value in values) + "\n      ]"
        if values
        else "[]"
    )


def _indented(value: Any, indent: str, step: int | None = 2) -> str:
    return json.dumps(value, indent=step, sort_keys=True, allow_nan=False).replace("\n", f"\n{indent}")


def _object(members: Mapping[str, str], indent: str) -> str:
    if not members:
        return "{}"
    separator = f"\n{indent}  "
    return "{" + separator + f",{separator}".join(members[name] for name in sorted(members)) + f"\n{indent}}}"


def _check(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise _malformed(name, "it is not a JSON object")
    schema = value.get("schema")
    if type(schema) is not int or schema < 1:
        raise _malformed(name, f"'schema' is {schema!r}")
    if schema > SCHEMA:
        raise StoreError(
            f"{name} was written by a newer pytest-kerneltune (schema {schema}; this one knows {SCHEMA}): upgrade it"
        )
    for member in ("device", "kernels"):
        if not isinstance(value.get(member), dict):
            raise _malformed(name, f"{member!r} is missing or not an object")


def _unreadable(name: str, content: bytes, error: ValueError) -> str:
    if marker := _CONFLICT.search(content):
        line = content.count(b"\n", 0, marker.start()) + 1
        return (
            f"{name} holds conflict markers (line {line}): run `python -m pytest_kerneltune baselines resolve "
            f"{shlex.quote(name)}`, which merges it row by row, or finish the merge by hand, keeping one version of "
            "each row"
        )
    return str(_malformed(name, _where_not_finite(content) or str(error)))


def _where_not_finite(content: bytes) -> str:
    """The row that holds a NaN or an infinity, which JSON has not but Python reads, and its field; "" for none."""
    try:
        rows = json.loads(content)["kernels"].items()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ""
    for name, row in rows:
        try:
            Baseline.from_json(row)
        except ValueError as error:
            return f"the row {name!r} is malformed: {error}"
    return ""


def _malformed(name: str, reason: str) -> StoreError:
    return StoreError(f"{name} is no baseline file: {reason}; {_RESTORE}")


def _refuse_twice(pairs: Sequence[tuple[str, Any]]) -> None:
    """Python takes the last of two members of one name, and the reader of a file perhaps the first."""
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]!r} stands in it twice")


def _members(name: str, text: str, opening: int) -> dict[str, Member]:
    """The members of the object that opens at ``opening`` in the valid JSON ``text``."""
    found: dict[str, Member] = {}
    for key, member in _scan(text, opening):
        if key in found:
            raise _malformed(name, f"{key!r} stands in it twice")
        found[key] = member
    return found


def _scan(text: str, opening: int) -> Iterator[tuple[str, Member]]:
    at = _after_space(text, opening + 1)
    while text[at] != "}":
        key, end = _DECODER.raw_decode(text, at)
        colon = _after_space(text, end)
        value, end = _DECODER.raw_decode(text, _after_space(text, colon + 1))
        yield key, Member(text[at:end], value)
        at = _after_space(text, end)
        if text[at] == ",":
            at = _after_space(text, at + 1)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
