"""Text from outside, made fit to be shown: without secrets, control characters and length."""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from urllib.parse import parse_qsl, quote, quote_plus

from pytest_kerneltune.llm.source import Write
from pytest_kerneltune.search import Message
from pytest_kerneltune.search.dialogue import Request

MAX_LINE = 300
"""Characters of an error's text."""

_STRUCK = "***"
_CUT = "..."  # ends what a prompt does not show to its end
_MAX_READ = 20_000
# A shorter secret guards nothing, and striking it out would garble words; in replies, which are data, more so.
_SHORTEST, _SHORTEST_IN_REPLIES = 4, 8


def secrets_of(key: str, headers: Mapping[str, str], url: str) -> Iterator[str]:
    """What is secret of a request: key, headers' values and what these are made of, values in the address's query."""
    yield from (key, *_in_base64(key))
    for value in headers.values():
        yield value
        yield from (part for part in re.split("[;:=, ]+", value) if len(part) >= _SHORTEST_IN_REPLIES)
    yield from (value for _, value in parse_qsl(url.partition("?")[2]))


class Redaction:
    """Strikes ``secrets`` out, as they are and as JSON, URLs and web pages write them."""

    def __init__(self, secrets: Iterable[str]) -> None:
        spellings = {spelling for secret in secrets for spelling in _spellings(secret)}
        self._in_lines = _pattern(s for s in spellings if len(s) >= _SHORTEST)
        self._long = [s for s in spellings if len(s) >= _SHORTEST_IN_REPLIES]
        self._initials = {s[0] for s in self._long}
        self._in_replies = _pattern(self._long)

    def reply(self, text: str) -> str:
        """A reply, or a piece of one that holds no secret's beginning at its end."""
        return self._in_replies.sub(_STRUCK, text)

    def messages(self, messages: Sequence[Message]) -> Sequence[Message]:
        """A question, with the schema that it may have."""
        schema = messages.schema if isinstance(messages, Request) else None
        return Request((Message(m.role, self._prompt(m.content)) for m in messages), schema)

    def _prompt(self, text: str) -> str:
        *cut, rest = self.reply(text).split(_CUT)
        begun = ((part, self.begun(part)) for part in cut)
        shown = [f"{part[:-n]}{_STRUCK}" if n >= _SHORTEST_IN_REPLIES else part for part, n in begun]
        return _CUT.join([*shown, rest])

    def line(self, text: str, limit: int = MAX_LINE) -> str:
        """One line of at most ``limit`` characters."""
        if len(text) > _MAX_READ:
            text = text[:_MAX_READ]
            text = text[: len(text) - self.begun(text)]
        # Struck out twice: control characters may stand within a secret, and spaces may be part of one.
        text = self._in_lines.sub(_STRUCK, text)
        text = self._in_lines.sub(_STRUCK, re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text))
        line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        line = self._in_lines.sub(_STRUCK, line)
        return line if len(line) <= limit else line[: limit - 3] + "..."

    def begun(self, text: str) -> int:
        """How many characters at the end of ``text`` may be the beginning of a secret."""
        longest = max(map(len, self._long), default=1) - 1
        starts = (i for i in range(max(0, len(text) - longest), len(text)) if text[i] in self._initials)
        return next((len(text) - i for i in starts if any(s.startswith(text[i:]) for s in self._long)), 0)


class RedactedPieces:
    """Pieces of a reply on their way to ``write``, held back while they may turn out to be part of a secret.

    ``wanted`` is whether ``write`` wants more of them.
    """

    def __init__(self, redaction: Redaction, write: Write) -> None:
        self.wanted = True
        self._redaction, self._write, self._held = redaction, write, ""

    def take(self, piece: str) -> None:
        """Write what can be written of the reply so far."""
        text = self._redaction.reply(self._held + piece)
        end = len(text) - self._redaction.begun(text)
        self._held = text[end:]
        self._put(text[:end])

    def end(self) -> None:
        """Write what was held back: there is no more."""
        self._put(self._held)
        self._held = ""

    def _put(self, text: str) -> None:
        if text and self._write(text) is False:
            self.wanted = False


def _spellings(secret: str) -> Iterator[str]:
    # "Bearer KEY": the key is as secret as the whole.
    for text in {secret, secret.rpartition(" ")[2]}:
        yield from (
            text,
            json.dumps(text)[1:-1],
            repr(text)[1:-1],
            quote(text),
            quote(text, safe=""),
            quote_plus(text),
            html.escape(text),
        )


def _in_base64(secret: str) -> Iterator[str]:
    """How base64 writes ``secret``, wherever it stands in what is encoded: what depends on it alone."""
    yield b64encode(secret.encode()).decode()
    for before in range(3):
        encoded = b64encode(bytes(before) + secret.encode()).decode()
        code = encoded[-(-8 * before // 6) : 8 * (before + len(secret.encode())) // 6]
        yield from (code, code.translate(str.maketrans("+/", "-_")))


def _pattern(spellings: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest spelling; a short one only where it is a word."""
    alternatives = [
        re.escape(s) if len(s) >= _SHORTEST_IN_REPLIES else rf"(?<!\w){re.escape(s)}(?!\w)"
        for s in sorted(spellings, key=len, reverse=True)
    ]
    return re.compile("|".join(alternatives) or r"(?!)")
