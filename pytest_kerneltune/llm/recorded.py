"""Replies recorded in a file, replayed without a network.

The file is JSON: ``{"schema": 1, "exchanges": [{"request", "model", "kernel", "tokens_in", "tokens_out", "messages",
"reply", "remark"}, ...]}``. ``request`` identifies the conversation up to the reply: the SHA-256 of its messages
without the sections that depend on the machine or on measurements (``dialogue.LOCAL_SECTIONS``). So a conversation
recorded on one machine replays on any other, round by round, as long as kernel, inputs and space are the same. Tokens
(those of the recorded request) are absent where the provider did not say them, ``remark`` where the reply did not end
early.
``recording.py`` writes such files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

from pytest_kerneltune.errors import LLMError, LLMUnavailable
from pytest_kerneltune.llm.providers import Answer
from pytest_kerneltune.llm.source import Write, ignore
from pytest_kerneltune.llm.storing import read_document
from pytest_kerneltune.search import Message
from pytest_kerneltune.search.dialogue import LOCAL_SECTIONS, kernel_name, without_sections

SCHEMA = 1
REMARK = "replayed"

NO_MORE = Answer('{"configs": []}', remark="the recording ends here")
"""The reply after the last one of a conversation."""

_UNNAMED = "this kernel"
_LISTED = 4  # names in an error's text
_WAY_OUT = "name a file that KERNELTUNE_LLM_RECORD has written"


def request_id(messages: Sequence[Message]) -> str:
    """The hex digest by which a conversation is found in a file of recorded replies."""
    canonical = [[m.role, without_sections(m.content, LOCAL_SECTIONS)] for m in messages]
    return sha256(json.dumps(canonical, separators=(",", ":")).encode()).hexdigest()


class RecordedReplies:
    """Answers from the file ``path``; raises LLMUnavailable where it is missing or no such file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        document = load(path, f"the file of recorded replies {path} (KERNELTUNE_LLM_REPLIES)", _WAY_OUT)
        self._replies = {e["request"]: e for e in document["exchanges"]}

    @property
    def label(self) -> str:
        models = sorted({str(e.get("model") or "unknown model") for e in self._replies.values()})
        return f"recorded replies ({', '.join(models) or 'none'}) from {self._path.name}"

    def close(self) -> None:
        """Nothing is open."""

    def ask(self, messages: Sequence[Message], deadline: float | None = None, write: Write = ignore) -> Answer:
        """The recorded reply to ``messages``, which costs nothing; none, where those up to an earlier reply end the
        recording. Raises LLMError that says what differs where nothing of the conversation is recorded."""
        exchange = self._replies.get(request_id(messages))
        if exchange is None:
            if self._holds_beginning(messages):
                return NO_MORE
            raise LLMError(self._miss(messages))
        remark = exchange.get("remark")
        return Answer(exchange["reply"], remark=f"{REMARK}; {remark}" if remark and isinstance(remark, str) else REMARK)

    def _holds_beginning(self, messages: Sequence[Message]) -> bool:
        before_replies = (messages[:i] for i, message in enumerate(messages) if message.role == "assistant")
        return any(request_id(beginning) in self._replies for beginning in before_replies)

    def _miss(self, messages: Sequence[Message]) -> str:
        kernel = kernel_name(messages)
        return (
            f"{self._path.name} holds no recorded reply to this request for {kernel or _UNNAMED} "
            f"({request_id(messages)[:12]}): {self._reason(messages, kernel)}; record again: run once with "
            f"KERNELTUNE_LLM_RECORD={self._path} and a model to ask"
        )

    def _reason(self, messages: Sequence[Message], kernel: str) -> str:
        """Why nothing fits, told by the exchange of the kernel that differs least."""
        of_kernel = [e for e in self._replies.values() if str(e.get("kernel") or "") == kernel]
        alike = list(filter(None, (_places(_said(e)) for e in of_kernel)))
        if not alike:
            kernels = sorted({str(e.get("kernel") or _UNNAMED) for e in self._replies.values()})
            return f"it holds replies for {_listed(kernels)}" if kernels else "it holds no replies"
        asked = _places([(m.role, m.content) for m in messages])
        nearest = min(alike, key=lambda recorded: len(_differing(asked, recorded)))
        return _difference(asked, nearest)


# What differs between two conversations

_Places: TypeAlias = Mapping[tuple[int, str], str]
"""The text of each section by the message's number and the section's title, local ones left out."""


def _said(exchange: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Role and content of an exchange's messages; none where the file holds something else."""
    messages = exchange.get("messages")
    turns = [m for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    return [(str(m.get("role")), str(m.get("content"))) for m in turns]


def _places(turns: Iterable[tuple[str, str]]) -> _Places:
    places: dict[tuple[int, str], str] = {}
    for number, (role, content) in enumerate(turns):
        title = "the quoted reply" if role == "assistant" else "the first lines"
        places[number, title] = ""
        for line in without_sections(content, LOCAL_SECTIONS).split("\n"):
            title = line[3:].strip() if line.startswith("## ") else title
            places[number, title] = places.get((number, title), "") + line.rstrip() + "\n"
    return places


def _differing(asked: _Places, recorded: _Places) -> list[tuple[int, str]]:
    """The places that are not the same in both, in the order of the conversation."""
    return [place for place in {**asked, **recorded} if asked.get(place) != recorded.get(place)]


def _difference(asked: _Places, recorded: _Places) -> str:
    last = max(number for number, _ in recorded)
    titles = list(dict.fromkeys(title for number, title in _differing(asked, recorded) if number <= last))
    if not titles:
        return "the recorded conversation ends earlier"
    sections, differ = ("section", "differs") if len(titles) == 1 else ("sections", "differ")
    return f"the prompt's {sections} {_listed(titles)} {differ} from what was recorded"


def _listed(names: Sequence[str]) -> str:
    shown = [*names[:_LISTED], *([f"{len(names) - _LISTED} more"] if len(names) > _LISTED else [])]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


# The file


def load(path: Path, called: str, advice: str) -> dict[str, Any]:
    """The document in the file ``path``; raises LLMUnavailable where there is none.

    There the file is ``called`` so, and ``advice`` says what to do.
    """
    try:
        if path.exists() and not path.is_file():
            raise LLMUnavailable(f"{called} is not a file; {advice}")
        document = read_document(path)
    except OSError as error:
        raise LLMUnavailable(f"{called} cannot be read: {error.strerror}; {advice}") from None
    except ValueError as error:
        raise LLMUnavailable(f"{called} is not JSON ({error}); {advice}") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA or not _are_exchanges(document):
        raise LLMUnavailable(f"{called} is not a file of recorded replies of schema {SCHEMA}; {advice}")
    return document


def _are_exchanges(document: Mapping[str, Any]) -> bool:
    exchanges = document.get("exchanges")
    return isinstance(exchanges, list) and all(
        isinstance(e, dict) and isinstance(e.get("request"), str) and isinstance(e.get("reply"), str) for e in exchanges
    )
