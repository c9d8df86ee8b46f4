"""Finding configs in free text: brackets, strings, comments and literals, in one linear scan.

JSON, Python and JavaScript literals are read alike; trailing commas, comments, prose, code fences and a missing end do
no harm. Only literals are read: nothing is evaluated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

_MAX_DEPTH = 32
NOT_A_NUMBER: Any = object()
"""Stands for NaN, infinities and numbers of more digits than any parameter has."""


_WORDS = {
    "true": True, "false": False, "none": None, "null": None, "undefined": None,
    "nan": NOT_A_NUMBER, "inf": NOT_A_NUMBER, "infinity": NOT_A_NUMBER,
}  # fmt: skip
_NUMBER = r"[-+]?(?:\d++\.?\d*+|\.\d++)(?:[eE][-+]?\d++)?"
_OPENING = re.compile(r"(?P<open>[\[{])")
_END_OF_REASONING = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
# Every alternative is possessive or consumes what it failed on, so that the scan is linear whatever the text.
_TOKEN = re.compile(
    rf"""(?P<skip>[\s,]++ | //[^\n]*+ | \#[^\n]*+ | /\*(?:[^*]|\*(?!/))*+(?:\*/)? )
      | (?P<open>[\[{{(]) | (?P<close>[\]}})]) | (?P<colon>:)
      | (?P<string>"(?:[^"\\\n]|\\[^\n])*+" | '(?:[^'\\\n]|\\[^\n])*+' )
      | (?P<number>{_NUMBER})
      | (?P<word>[^\W\d]\w*+)
      | (?P<bad>["'][^\n]*+ | . )""",
    re.VERBOSE | re.DOTALL,
)
_CLOSES = {"]": "[", "}": "{", ")": "("}


def extract_objects(text: str, names: Collection[str]) -> tuple[list[dict[str, Any]], int]:
    """The objects of ``text`` that are meant as configs of parameters ``names``, and how many more were malformed.

    Of several documents the last that holds configs under the key "configs" counts, else the last list of configs, else
    every loose object. What precedes the end of a reasoning block counts only if nothing follows it.
    """
    reasoning = list(_END_OF_REASONING.finditer(text))
    documents = _Scanner(names).scan(text[reasoning[-1].end() :]) if reasoning else []
    documents = documents or _Scanner(names).scan(text)
    ranked = [d for d in documents if d.found] or documents
    best = max((_rank(d) for d in ranked), default=0)
    chosen = [d for d in ranked if _rank(d) == best]
    if best > 0:
        chosen = chosen[-1:]
    return [config for d in chosen for config in d.found], sum(d.malformed for d in chosen)


def literal(text: str) -> Any:
    """The number, truth value or flat list that a string spells; else the string."""
    text = text.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if re.fullmatch(_NUMBER, text):
        return _number(text)
    if re.fullmatch(r"[\[(][^\[\]()]{1,200}[\])]", text):
        return [literal(item.strip("'\" ")) for item in text[1:-1].split(",") if item.strip()]
    return text


def _number(text: str) -> Any:
    if len(text) > 40:
        return NOT_A_NUMBER
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


@dataclass
class _Container:
    """An open or finished bracket: its values so far, and the configs found inside it."""

    opener: str
    entries: dict[str, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)
    malformed: int = 0
    labelled: bool = False
    broken: bool = False
    key: str | None = None
    colon: bool = False

    @property
    def is_object(self) -> bool:
        return self.opener == "{"

    @property
    def is_empty(self) -> bool:
        return not (self.entries or self.elements or self.found)

    @property
    def expects_value(self) -> bool:
        return not self.is_object or (self.key is not None and self.colon)

    def add(self, value: Any) -> bool:
        """Take an element of a list, or the next key or value of an object; False where it cannot stand there."""
        if not self.is_object:
            self.elements.append(value)
        elif self.key is not None and self.colon:
            self.entries[self.key] = value
            self.key, self.colon = None, False
        elif self.key is None and isinstance(value, str):
            self.key = value
        else:
            return self.spoil()
        return True

    def meet_colon(self) -> bool:
        if not self.is_object or self.key is None or self.colon:
            return self.spoil()
        self.colon = True
        return True

    def spoil(self) -> bool:
        self.broken, self.key, self.colon = True, None, False
        return False

    def finish(self, complete: bool, names: Collection[str], inside: _Container | None) -> None:
        """Decide what was found in here, and hand it to the container around it."""
        if self.is_object:
            self._finish_object(complete and not self.broken and self.key is None, names, inside)
        if inside is not None:
            inside.found += self.found
            inside.malformed += self.malformed
            inside.labelled |= self.labelled
            inside.add(self.entries if self.is_object else self.elements)

    def _finish_object(self, sound: bool, names: Collection[str], inside: _Container | None) -> None:
        self.labelled |= "configs" in self.entries
        listed = inside is not None and not inside.is_object
        if sound and (not self.entries.keys().isdisjoint(names) or (listed and not self.found)):
            self.found = [self.entries]
        elif not sound and not self.found and not self.labelled and listed:
            self.malformed += 1


def _rank(document: _Container) -> int:
    return 2 if document.labelled else 0 if document.is_object else 1


class _Scanner:
    """Follows brackets from the first opening one on and collects the outermost that hold configs."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._open: list[_Container] = []
        self.documents: list[_Container] = []

    def scan(self, text: str) -> list[_Container]:
        """The outermost brackets of ``text`` that hold configs, or what was meant as one."""
        position = 0
        while match := (_TOKEN.match if self._open else _OPENING.search)(text, position):
            self._take(match)
            position = match.end()
        self._finish_all()
        return self.documents

    def _take(self, token: re.Match[str]) -> None:
        kind = token.lastgroup
        if kind == "open":
            self._open.append(_Container(token[0]))
            if len(self._open) > _MAX_DEPTH:
                self._finish_all()
        elif kind == "close":
            while self._open and self._open[-1].opener != _CLOSES[token[0]]:
                self._finish(complete=False)
            if self._open:
                self._finish(complete=True)
        elif not _feed(self._open[-1], token) and len(self._open) == 1 and self._open[0].is_empty:
            self._open.clear()  # prose in brackets: look on behind it

    def _finish(self, complete: bool) -> None:
        container = self._open.pop()
        container.finish(complete, self._names, self._open[-1] if self._open else None)
        if not self._open and (container.found or container.malformed):
            self.documents.append(container)

    def _finish_all(self) -> None:
        while self._open:
            self._finish(complete=False)


def _feed(container: _Container, token: re.Match[str]) -> bool:
    """Give a token to the innermost container; False where it cannot stand there."""
    kind, text = token.lastgroup, token[0]
    if kind == "skip":
        return True
    if kind == "colon":
        return container.meet_colon()
    if kind == "string":
        return container.add(_unquoted(text))
    if kind == "number":
        return container.add(_number(text))
    if kind == "word" and container.expects_value and text.lower() in _WORDS:
        return container.add(_WORDS[text.lower()])
    if kind == "word" and container.is_object:
        return container.add(text)
    return container.spoil()


def _unquoted(token: str) -> str:
    inner = token[1:-1]
    if token[0] == "'":
        inner = inner.replace("\\'", "'").replace('"', '\\"')
    try:
        return str(json.loads(f'"{inner}"', strict=False))
    except ValueError:
        return inner
