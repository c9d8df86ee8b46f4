"""Replies that arrive piece by piece: bytes in, the text so far and in the end the body of an unstreamed reply out.

A stream is server-sent events or a JSON value a line. It is put together into the body that the server would have sent
at once (one ``merge_...`` function for each wire format), so that an answer is read the same way either way. What
cannot be read is passed over: comments that keep a connection alive, events of kinds that came later than this.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from pytest_kerneltune.llm.answers import as_object, first_object, objects, plain_text

Merge: TypeAlias = Callable[[dict[str, Any], dict[str, Any]], str]
"""Puts an event that is no error into the body so far and returns the text that it adds to the answer."""

_FIELD = re.compile(r"(?:data|event|id|retry)?:")
_DONE = "[DONE]"
_FINISH = "finish_reason"


def decoded(text: str | bytes | bytearray) -> Any:
    """The JSON value; None where it is none. A character that is no UTF-8 does not make it none."""
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    return None if isinstance(text, str) else decoded(text.decode(errors="replace"))


class ReplyStream:
    """Takes the bytes of a reply as they come, streamed or not. ``content`` is all of them."""

    def __init__(self, merge: Merge) -> None:
        self.content = bytearray()
        self._merge = merge
        self._body: dict[str, Any] = {}
        self._pieces: list[str] = []
        self._is_stream = self._done = False
        self._newlines = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")("replace"), True)
        self._line: list[str] = []
        self._data: list[str] = []
        self._events: Callable[[str], Iterator[Any]] | None = None

    def feed(self, chunk: bytes) -> str:
        """Take some bytes; the text that they add to the answer."""
        self.content += chunk
        return self._take(self._newlines.decode(chunk))

    def finish(self) -> str:
        """Take it that there are no more bytes; the text that the last, unfinished line adds to the answer."""
        return self._take(self._newlines.decode(b"", final=True) + "\n\n")

    @property
    def text(self) -> str:
        """The text that a stream has brought so far."""
        return "".join(self._pieces)

    @property
    def is_stream(self) -> bool:
        """Whether the reply is a stream with an event or more."""
        return self.whole is self._body

    @property
    def over(self) -> bool:
        """Whether a stream said that nothing more will come."""
        return self._done or bool(self._body.get("error") or self._body.get("done")) or _has_status(self._body)

    @property
    def broken(self) -> bool:
        """Whether the reply is a stream that said nothing of its end, or kept the connection alive and said nothing."""
        ended = self.over or self._body.get("stop_reason") or first_object(self._body.get("choices")).get(_FINISH)
        return not ended if self.is_stream else self._holds_comments_only()

    def _holds_comments_only(self) -> bool:
        lines = [line.strip() for line in self.content.splitlines()]
        return any(lines) and all(line.startswith(b":") for line in lines if line)

    @property
    def whole(self) -> Any:
        """The body of the reply; None if it is not to be understood."""
        if self._events == self._of_event_stream:
            return self._body if self._is_stream else None
        payload = decoded(self.content)
        cut_after_a_line = as_object(payload).get("done") is False
        return self._body if self._is_stream and (payload is None or cut_after_a_line) else payload

    def _take(self, text: str) -> str:
        *lines, rest = text.split("\n")
        if not lines:
            self._line.append(rest)
            return ""
        lines[0] = "".join(self._line) + lines[0]
        self._line = [rest]
        pieces = [self._merged(event) for line in lines for event in self._read(line)]
        self._pieces += pieces
        return "".join(pieces)

    def _merged(self, event: Any) -> str:
        if not isinstance(event, dict) or self.over:
            return ""
        self._is_stream = True
        if event.get("error"):
            self._body["error"] = event["error"]
            return ""
        return self._merge(self._body, event)

    def _read(self, line: str) -> Iterator[Any]:
        if self._events is None and line.strip():
            self._events = self._of_event_stream if _FIELD.match(line) else self._of_lines
        return iter(()) if self._events is None else self._events(line)

    def _of_event_stream(self, line: str) -> Iterator[Any]:
        """The events that a line completes: an empty line ends one, whose data may span several lines."""
        if line:
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            return
        lines, self._data = self._data, []
        event = decoded("\n".join(lines))
        # Some leave out the empty lines between events.
        yield from [event] if event is not None else map(decoded, lines)
        if _DONE in map(str.strip, lines):
            self._is_stream = self._done = True

    def _of_lines(self, line: str) -> Iterator[Any]:
        yield decoded(line)


def _has_status(body: Mapping[str, Any]) -> bool:
    return body.get("status") in ("completed", "incomplete", "failed", "cancelled")


def _known(fields: Any) -> dict[str, Any]:
    return {name: value for name, value in as_object(fields).items() if value is not None}


def _appended(parts: list[Any], kind: str, name: str, piece: Any) -> str:
    """``piece``, put behind the text of the one part of its type."""
    if not isinstance(piece, str):
        return ""
    part = next((p for p in parts if p.get("type") == kind), None)
    if part is None:
        parts.append(part := {"type": kind, name: ""})
    part[name] += piece
    return piece


def merge_responses(body: dict[str, Any], event: dict[str, Any]) -> str:
    """OpenAI Responses."""
    kind, delta = event.get("type"), event.get("delta")
    content = body.setdefault("output", [{"type": "message", "content": []}])[0]["content"]
    if kind == "response.output_text.delta":
        return _appended(content, "output_text", "text", delta)
    if kind == "response.refusal.delta":
        _appended(content, "refusal", "refusal", delta)
    elif kind == "error":
        body["error"] = {name: event.get(name) for name in ("code", "param", "message")}
    elif _has_status(whole := as_object(event.get("response"))):
        # Some gateways leave the output out of the last event.
        told = any(item.get("type") == "message" for item in objects(whole.get("output")))
        body |= {name: value for name, value in whole.items() if name != "output" or told}
    return ""


def merge_anthropic(body: dict[str, Any], event: dict[str, Any]) -> str:
    """Anthropic Messages."""
    kind, delta = event.get("type"), as_object(event.get("delta"))
    content = body.setdefault("content", [])
    if kind == "message_start":
        body["usage"] = _known(as_object(event.get("message")).get("usage"))
    elif kind == "content_block_start":
        block = as_object(event.get("content_block"))
        return _appended(content, "text", "text", block.get("text")) if block.get("type") == "text" else ""
    elif kind == "content_block_delta" and delta.get("type") == "text_delta":
        return _appended(content, "text", "text", delta.get("text"))
    elif kind == "message_delta":
        body |= _known({name: delta.get(name) for name in ("stop_reason", "stop_details")})
        body["usage"] = as_object(body.get("usage")) | _known(event.get("usage"))
    elif kind == "message_stop":
        body["done"] = True
    return ""


def merge_chat(body: dict[str, Any], event: dict[str, Any]) -> str:
    """Chat Completions."""
    choice = first_object(event.get("choices"))
    delta = as_object(choice.get("delta") or choice.get("message"))
    own = body.setdefault("choices", [{"message": {"content": "", "refusal": ""}}])[0]
    piece = plain_text(delta.get("content"))
    own["message"]["content"] += piece
    own["message"]["refusal"] += str(delta.get("refusal") or "")
    own |= _known({_FINISH: choice.get(_FINISH)})
    body |= _known({"usage": event.get("usage"), "error": choice.get("error")})
    return piece


def merge_ollama(body: dict[str, Any], event: dict[str, Any]) -> str:
    """Ollama's own format."""
    piece = plain_text(as_object(event.get("message")).get("content"))
    text = as_object(body.get("message")).get("content", "") + piece
    body |= event | {"message": {"content": text}}
    return piece
