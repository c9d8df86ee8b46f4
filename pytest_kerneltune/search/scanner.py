"""Finding objects in free text: brackets, strings, comments and literals, in one linear scan.

JSON, Python and JavaScript literals are read alike; trailing commas, comments, prose, code fences and a missing end do
no harm. Only literals are read: nothing is evaluated. The text may come in pieces: what is found does not depend on
where they are cut.
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
# Every alternative is possessive or consumes what it failed on, so that the scan is linear whatever the text.
_TOKEN = re.compile(
    rf"""(?P<skip>[\s,]++ | //[^\n]*+ | \#[^\n]*+ | /\*(?:[^*]|\*(?!/))*+(?:\*/)? )
      | (?P<open>dict\(|[\[{{(]) | (?P<close>[\]}})]) | (?P<colon>:|=>?)
      | (?P<string>"(?:[^"\\\n]|\\[^\n])*+" | '(?:[^'\\\n]|\\[^\n])*+' | [“”][^“”\n]*+[“”])
      | (?P<number>{_NUMBER})
      | (?P<word>[^\W\d]\w*+)
      | (?P<bad>["'“”][^\n]*+ | . )""",
    re.VERBOSE | re.DOTALL,
)
_CLOSES = {"]": ("[",), "}": ("{",), ")": ("(", "dict(")}
_LABEL = "configs"
_RETRIED = 4096  # characters of an unfinished token up to which it is looked at whenever more came


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
class Container:
    """An open or finished bracket: its values so far, and the configs found inside it.

    ``answers`` are those found under a key "configs", beside which nothing else in here counts.
    """

    opener: str
    entries: dict[str, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    malformed: int = 0
    labelled: bool = False
    broken: bool = False
    key: str | None = None
    colon: bool = False

    @property
    def is_object(self) -> bool:
        return self.opener not in ("[", "(")

    @property
    def is_empty(self) -> bool:
        return not (self.entries or self.elements or self.found)

    @property
    def expects_value(self) -> bool:
        return not self.is_object or (self.key is not None and self.colon)

    @property
    def expects_configs(self) -> bool:
        """Whether what comes next is the value of the key "configs"."""
        return self.is_object and self.key == _LABEL and self.colon

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

    def finish(self, complete: bool, names: Collection[str], inside: Container | None) -> None:
        """Decide what was found in here, and hand it to the container around it."""
        if self.is_object:
            self._finish_object(complete and not self.broken and self.key is None, names, inside)
        if inside is not None:
            inside.found += self.found
            inside.answers += self.found if self.labelled or inside.expects_configs else ()
            inside.malformed += self.malformed
            inside.labelled |= self.labelled
            inside.add(self.entries if self.is_object else self.elements)

    def _finish_object(self, sound: bool, names: Collection[str], inside: Container | None) -> None:
        self.labelled |= _LABEL in self.entries
        listed = inside is not None and not inside.is_object
        if self.answers:
            self.found = self.answers
        elif sound and (not self.entries.keys().isdisjoint(names) or (listed and not self.found)):
            self.found = [self.entries]
        elif not sound and not self.found and not self.labelled and listed:
            self.malformed += 1


class Scanner:
    """Follows brackets from the first opening one on.

    ``documents`` are the outermost that hold configs of parameters ``names``. ``settled`` are configs which, whatever
    follows in their document, will be among what is found there: elements of a list that is a document, or the value
    of a key "configs".
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._open: list[Container] = []
        self._position = 0
        self.patience = 0
        """Where a long token that is unfinished is worth another look."""
        self.documents: list[Container] = []
        self.settled: list[dict[str, Any]] = []

    def scan(self, text: str) -> list[Container]:
        """The outermost brackets of ``text`` that hold configs, or what was meant as one."""
        self.feed(text, 0, len(text), ended=True)
        self._finish_all()
        return self.documents

    def feed(self, text: str, start: int, end: int, ended: bool = False) -> None:
        """Read on in ``text`` up to ``end``, as far as what comes behind cannot change how that reads.

        ``text`` begins with what was fed before; reading begins at ``start`` the first time. ``ended``: nothing comes
        behind ``end``.
        """
        self._position = max(self._position, start)
        while match := (_TOKEN.match if self._open else _OPENING.search)(text, self._position, end):
            if not ended and not _is_whole(match, end):
                unfinished = end - self._position
                self.patience = end + unfinished // 16 if unfinished > _RETRIED else 0
                return
            self._take(match)
            self._position = match.end()
        if not self._open:
            self._position = max(self._position, end)

    def _take(self, token: re.Match[str]) -> None:
        kind = token.lastgroup
        if kind == "open":
            self._open.append(Container(token[0]))
            if len(self._open) > _MAX_DEPTH:
                self._finish_all()
        elif kind == "close":
            while self._open and self._open[-1].opener not in _CLOSES[token[0]]:
                self._finish(complete=False)
            if self._open:
                self._finish(complete=True)
        elif not _feed(self._open[-1], token) and len(self._open) == 1 and self._open[0].is_empty:
            self._open.clear()  # prose in brackets: look on behind it

    def _finish(self, complete: bool) -> None:
        container = self._open.pop()
        is_settled = container.is_object and self._is_answer_list()
        container.finish(complete, self._names, self._open[-1] if self._open else None)
        if is_settled:
            self.settled += container.found
        if not self._open and (container.found or container.malformed):
            self.documents.append(container)

    def _is_answer_list(self) -> bool:
        """Whether the innermost bracket is a list whose configs count, whatever comes."""
        if not self._open or self._open[-1].is_object:
            return False
        return len(self._open) == 1 or self._open[-2].expects_configs

    def _finish_all(self) -> None:
        while self._open:
            self._finish(complete=False)


def _is_whole(token: re.Match[str], end: int) -> bool:
    """Whether a token that ends at or before ``end`` is the same whatever stands behind ``end``."""
    if token.lastgroup in ("open", "close", "string"):
        return True
    rest = end - token.end()
    if token.lastgroup == "number":  # "1e" may be the beginning of "1e-5"
        return rest > 0 and (token.string[token.end()] not in "eE" or rest > 2)
    return rest > (2 if token.lastgroup == "bad" else 0)  # "-." of "-.5"


def _feed(container: Container, token: re.Match[str]) -> bool:
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
    if token[0] in "“”":
        return inner
    if token[0] == "'":
        inner = inner.replace("\\'", "'").replace('"', '\\"')
    try:
        return str(json.loads(f'"{inner}"', strict=False))
    except ValueError:
        return inner
